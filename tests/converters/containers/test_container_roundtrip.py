"""Written files are read back the same, by this package and by each format's own."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vit_hub.converters.containers import CONTAINER_SUFFIXES, open_raw, write_tensors
from vit_hub.converters.tensors import DTYPES, LazyTensor, from_array
from vit_hub.errors import CheckpointError

CONTAINERS = ("safetensors", "npz", "torch", "msgpack", "hdf5")


def tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> LazyTensor:
    carrier = DTYPES[dtype].carrier
    count = int(np.prod(shape))
    values = np.random.default_rng(seed).integers(0, 2 if dtype == "BOOL" else 256, count * carrier.itemsize, np.uint8)
    return from_array(values.view(carrier).reshape(shape), dtype)


def contents(tensors: dict[str, LazyTensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (item.dtype, item.shape, item.read().tobytes()) for name, item in tensors.items()}


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\\", exclude_categories=["C"]), min_size=1)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
models = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.builds(tensor, st.sampled_from(sorted(DTYPES)), shapes, st.integers(0, 99)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models, metadata=st.dictionaries(names, st.text(st.characters(codec="utf-8"))))
def test_any_tensors_come_back_in_order_with_equal_bytes(
    tmp_path: Path, container: str, model: dict[str, LazyTensor], metadata: dict[str, str]
) -> None:
    path = tmp_path / "file"
    if container in ("npz", "hdf5"):  # neither has 8-bit floats
        model = {name: item for name, item in model.items() if not item.dtype.startswith("F8")}
        assume(model)
    if container == "hdf5":  # there a path, in which these stand for groups
        assume({".", ".."}.isdisjoint(model))
    write_tensors(path, container, model, metadata)
    source = open_raw(path)
    assert source.container == container
    # HDF5 keeps names in order of the alphabet.
    assert list(source.tensors) == (sorted(model) if container == "hdf5" else list(model))
    assert contents(source.tensors) == contents(model)
    assert source.metadata == (metadata if container == "safetensors" else {})
    assert source.files == (path,)
    first = path.read_bytes()
    write_tensors(path, container, source.tensors, dict(reversed(source.metadata.items())))
    assert path.read_bytes() == first


def mixed() -> dict[str, LazyTensor]:
    """Every dtype, odd sizes first, so that a careless layout would misalign what follows."""
    return {
        f"group/{name}": tensor(name, (3, 5)) for name in sorted(DTYPES, key=lambda name: DTYPES[name].carrier.itemsize)
    } | {
        "group/scalar": tensor("F32", ()),
        "group/empty": tensor("F16", (0, 7)),
    }


def as_torch(item: LazyTensor) -> torch.Tensor:
    found = torch.from_numpy(item.read().copy())
    return found.view(getattr(torch, DTYPES[item.dtype].torch))


def same(found: torch.Tensor, item: LazyTensor) -> bool:
    expected = as_torch(item)
    bits = (lambda value: value.contiguous().view(-1).view(torch.uint8)) if expected.numel() else lambda value: value
    return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(bits(found), bits(expected))


def test_safetensors_own_readers_load_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, "safetensors", mixed(), {"b": "2", "a": "1"})
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == mixed().keys()
    assert all(same(loaded[name], item) for name, item in mixed().items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"a": "1", "b": "2"}
        assert all(same(file.get_tensor(name), item) for name, item in mixed().items())
    header_length = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + header_length) % 64 == 0
    assert path.read_bytes().index(b'"a"') < path.read_bytes().index(b'"b"')


def test_numpy_loads_the_npz(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    model = {name: item for name, item in mixed().items() if not item.dtype.startswith("F8")}
    write_tensors(path, "npz", model)
    with np.load(path, allow_pickle=False) as loaded:
        assert loaded.files == list(model)
        for name, item in model.items():
            expected = np.dtype("V2") if item.dtype == "BF16" else DTYPES[item.dtype].carrier
            assert loaded[name].dtype == expected
            assert loaded[name].shape == item.shape
            assert loaded[name].tobytes() == item.read().tobytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {(info.compress_type, info.date_time) for info in archive.infolist()} == {(0, (1980, 1, 1, 0, 0, 0))}


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_the_nested_file(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "model.pth"
    model = mixed() | {"top": tensor("F32", (2, 1, 3))}
    write_tensors(path, "torch", model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert list(loaded) == ["group", "top"]
    assert loaded["top"].is_contiguous()
    assert same(loaded["top"], model["top"])
    assert all(same(loaded["group"][name.removeprefix("group/")], item) for name, item in mixed().items())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    resaved = tmp_path / "again.pth"
    torch.save(loaded, resaved)
    assert contents(open_raw(resaved).tensors) == contents(open_raw(path).tensors)


def test_a_torch_name_cannot_be_both_tensor_and_dict(tmp_path: Path) -> None:
    for order in (["a", "a/b"], ["a/b", "a"], ["a", "a/b/c"]):
        with pytest.raises(CheckpointError, match="both a tensor and a dict"):
            write_tensors(tmp_path / "x.pth", "torch", {name: tensor("F32", (1,)) for name in order})
    assert list(tmp_path.iterdir()) == []


def test_reserved_name_in_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="__metadata__"):
        write_tensors(tmp_path / "x.safetensors", "safetensors", {"__metadata__": tensor("F32", (1,))})


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)])
def test_transposed_tensors_are_written_in_row_major_order(
    tmp_path: Path, container: str, axes: tuple[int, ...]
) -> None:
    # Larger than one piece of the copy in every layout, and no multiple of its tiles.
    values = np.arange(150 * 37 * 260, dtype=np.float32).reshape(150, 37, 260)
    written: list[int] = []
    write_tensors(
        tmp_path / "x", container, {"w": from_array(values).permute(axes)}, progress=lambda count: written.append(count)
    )
    assert np.array_equal(open_raw(tmp_path / "x").tensors["w"].read(), values.transpose(axes))
    assert sum(written) == values.nbytes
    assert len(written) > 1


def test_strided_and_reversed_arrays(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.int32).reshape(4, 6)
    views = {"step": values[::2, ::3], "reversed": values[::-1, ::-1], "broadcast": np.broadcast_to(values[:1], (3, 6))}
    write_tensors(tmp_path / "x", "npz", {name: from_array(view) for name, view in views.items()})
    source = open_raw(tmp_path / "x")
    assert all(np.array_equal(source.tensors[name].read(), view) for name, view in views.items())


@pytest.mark.parametrize("container", CONTAINERS)
def test_values_are_writable_without_touching_the_file(tmp_path: Path, container: str) -> None:
    path = tmp_path / "x"
    write_tensors(path, container, {"w": tensor("F32", (4,))})
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(open_raw(path).tensors["w"].read()).zero_()
    assert path.read_bytes() == before
    assert open_raw(path).tensors["w"].read().any()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_can_be_replaced_by_its_own_conversion(tmp_path: Path, container: str) -> None:
    path = tmp_path / "x"
    model = {"a": tensor("F32", (5,)), "b": tensor("F16", (2, 3))}
    write_tensors(path, container, model)
    write_tensors(path, container, open_raw(path).tensors)
    assert contents(open_raw(path).tensors) == contents(model)


def test_values_that_are_not_what_the_header_says(tmp_path: Path) -> None:
    wrong = LazyTensor("F32", (3,), lambda: np.zeros(4, np.float32))
    with pytest.raises(CheckpointError, match="'w': F32"):
        write_tensors(tmp_path / "x", "npz", {"w": wrong})
    assert list(tmp_path.iterdir()) == []


def test_suffixes_and_unknown_containers(tmp_path: Path) -> None:
    assert set(CONTAINER_SUFFIXES.values()) == set(CONTAINERS)
    with pytest.raises(ValueError, match="gguf"):
        write_tensors(tmp_path / "x", "gguf", {})


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    suffixes = {"npz": ".bin", "torch": ".safetensors", "safetensors": ".npz"}
    for container, suffix in suffixes.items():
        path = tmp_path / f"weights{suffix}"
        write_tensors(path, container, {"w": tensor("BF16", (4,))})
        source = open_raw(path)
        assert source.container == container
        assert contents(source.tensors) == contents({"w": tensor("BF16", (4,))})


def test_npz_of_numpy_with_fortran_order_and_compression(tmp_path: Path) -> None:
    arrays = {"a/kernel": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "b": np.arange(5), "s": np.float16(3)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        source = open_raw(tmp_path / "x.npz")
        assert {name: item.dtype for name, item in source.tensors.items()} == {
            "a/kernel": "F64",
            "b": "I64",
            "s": "F16",
        }
        for name, array in arrays.items():
            found = source.tensors[name].read()
            assert found.shape == array.shape
            assert np.array_equal(found, array)
            assert found.flags.writeable


def test_safetensors_with_data_at_an_odd_offset(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - (8 + len(header)) % 2)
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + np.array([1, 2], "<f4").tobytes())
    array = open_raw(tmp_path / "x").tensors["w"].read()
    assert array.tolist() == [1, 2]
    assert array.flags.aligned


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_as_training_leaves_them(tmp_path: Path, zipped: bool) -> None:
    import argparse
    from collections import OrderedDict

    shared = torch.arange(6.0)
    state = OrderedDict(
        a=shared.view(2, 3).T, b=shared[2:4], half=torch.ones(2, dtype=torch.bfloat16), zero=torch.tensor(7)
    )
    checkpoint = {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "args": argparse.Namespace(lr=0.1, name="x"),
        "list": [torch.ones(1), (torch.zeros(1), None)],
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "epoch": 3,
    }
    torch.save(checkpoint, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    source = open_raw(tmp_path / "x.pth")
    assert source.container == "torch"
    expected = {
        "model/a": state["a"],
        "model/b": state["b"],
        "model/half": state["half"],
        "model/zero": state["zero"],
        "optimizer/state/0/exp_avg": torch.zeros(2),
        "list/0": torch.ones(1),
        "list/1/0": torch.zeros(1),
        "parameter": torch.ones(3),
    }
    assert list(source.tensors) == list(expected)
    assert all(same(as_torch(source.tensors[name]), from_tensor(value)) for name, value in expected.items())


def from_tensor(value: torch.Tensor) -> LazyTensor:
    if value.dtype == torch.bfloat16:
        return from_array(value.view(torch.int16).numpy().view(np.uint16), "BF16")
    return from_array(value.numpy())
