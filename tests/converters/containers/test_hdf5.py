"""HDF5 files of Keras: read as h5py reads them, written so that h5py and Keras read them, and refusals by name."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vit_hub.converters.containers import open_raw, write_tensors
from vit_hub.converters.tensors import from_array
from vit_hub.errors import CheckpointError

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def refused(path: Path, message: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_raw(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


def test_what_h5py_writes(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    arrays = {
        "layers/dense/vars/0": W,
        "layers/dense/vars/1": W[0].astype(np.float16),
        "optimizer/vars/0": np.int64(3),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for name, options in {"gzip": {"compression": "gzip", "shuffle": True}, "lzf": {"compression": "lzf"}}.items():
            file.create_dataset(name, data=W, chunks=(2, 2), **options)
        file.create_dataset("chunked", data=W, chunks=(2, 2), fletcher32=True)
        file.create_group("layers/activation/vars")
    source = open_raw(path)
    assert source.container == "hdf5"
    wanted = {**arrays, "gzip": W, "lzf": W, "chunked": W}
    assert source.tensors.keys() == wanted.keys()
    for name, array in wanted.items():
        found = source.tensors[name].read()
        assert found.dtype == np.asarray(array).dtype
        assert np.array_equal(found, array), name


def test_bfloat16_as_keras_stores_it(tmp_path: Path) -> None:
    values = np.array([0x3F80, 0xC000], np.uint16)
    write_tensors(tmp_path / "x.h5", "hdf5", {"vars/0": from_array(values, "BF16")})
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["vars/0"].dtype == np.dtype("V2")
        assert file["vars/0"].attrs["dtype"] == "bfloat16"
        assert file["vars/0"][()].view(np.uint16).tolist() == values.tolist()
    assert open_raw(tmp_path / "x.h5").tensors["vars/0"].dtype == "BF16"


def test_lists_of_layers_that_keras_2_reads(tmp_path: Path) -> None:
    many = [f"vit/model/vit/encoder/layer_._{n}/{'long' * 30}/kernel:0" for n in range(600)]
    names = ["classifier/model/classifier/kernel:0", *many]
    write_tensors(tmp_path / "x.h5", "hdf5", dict.fromkeys(names, from_array(W)))
    with h5py.File(tmp_path / "x.h5") as file:
        assert file.attrs["layer_names"].tolist() == [b"classifier", b"vit"]
        assert file["classifier"].attrs["weight_names"].tolist() == [b"model/classifier/kernel:0"]
        # Longer lists than an attribute can hold are cut, as Keras cuts them.
        assert "weight_names" not in file["vit"].attrs
        parts = [file["vit"].attrs[f"weight_names{n}"].tolist() for n in range(len(file["vit"].attrs))]
        assert [f"vit/{name.decode()}" for part in parts for name in part] == many
        assert np.array_equal(file[many[-1]][()], W)


def test_links_to_elsewhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = W
    for link in (h5py.ExternalLink("other.h5", "secret"), h5py.SoftLink("/w")):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["w"] = W
            file["link"] = link
        refused(tmp_path / "x.h5", "'link' is a link")


def test_groups_in_themselves(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/w"] = W
        file["a/again"] = file["a"]
    refused(tmp_path / "x.h5", "stands twice")


def test_values_in_other_files(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(W.tobytes())
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", W.shape, W.dtype, external=[(str(tmp_path / "raw"), 0, W.nbytes)])
    refused(tmp_path / "x.h5", "in other files")
    layout = h5py.VirtualLayout(W.shape, W.dtype)
    layout[:] = h5py.VirtualSource(str(tmp_path / "x.h5"), "w", shape=W.shape)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("w", layout)
    refused(tmp_path / "v.h5", "in other files")


@pytest.mark.parametrize(
    "dtype", [">f4", "c8", "S5", h5py.string_dtype(), np.dtype([("a", "f4")]), "V2", h5py.vlen_dtype(np.float32)]
)
def test_odd_dtypes(tmp_path: Path, dtype: Any) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", (2,), dtype)
    assert "supported dtypes" in refused(tmp_path / "x.h5", "'w' has dtype").hint


def test_sizes_that_are_not_in_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", (100_000, 100_000), np.float32)
    refused(tmp_path / "x.h5", "has shape|not stored")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", (1000, 1000), np.float32)
    refused(tmp_path / "x.h5", "not stored in the file")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("w", (5000, 20_000), np.float32, chunks=(5000, 20_000), compression="gzip", fillvalue=0)
        file["w"][:2] = 0
    refused(tmp_path / "bomb.h5", "decompression bomb|has shape")
    with h5py.File(tmp_path / "null.h5", "w") as file:
        file["w"] = h5py.Empty("f4")
    refused(tmp_path / "null.h5", "has shape None")


def test_names_that_hdf5_cannot_hold(tmp_path: Path) -> None:
    for name in ("", ".", "a/./b", "a//b", "a\0b"):
        with pytest.raises(CheckpointError, match="cannot be the name"):
            write_tensors(tmp_path / "x.h5", "hdf5", {name: from_array(W)})
    for names in (("a", "a/b"), ("a/b", "a")):
        with pytest.raises(CheckpointError, match="a tensor and of a group"):
            write_tensors(tmp_path / "x.h5", "hdf5", dict.fromkeys(names, from_array(W)))
    assert list(tmp_path.iterdir()) == []


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "x.h5", "hdf5", {"w": from_array(W)})
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "vit-hub[keras]" in refused(tmp_path / "x.h5", "h5py, which reads and writes").hint
    with pytest.raises(CheckpointError, match="h5py"):
        write_tensors(tmp_path / "y.h5", "hdf5", {"w": from_array(W)})


FUZZ = """
import random, sys, tracemalloc
from pathlib import Path
from vit_hub.converters.containers import open_raw
from vit_hub.errors import VitHubError
path, whole = Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()
path.unlink()  # what is mapped stays as it is
for seed in range(int(sys.argv[2])):
    draw, content = random.Random(seed), bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(8, len(content))] = draw.randrange(256)
    changed = path.with_suffix(f".{seed}")
    changed.write_bytes(content[: draw.choice([len(content), draw.randrange(8, len(content))])])
    tracemalloc.start()
    try:
        for tensor in open_raw(changed).tensors.values():
            assert tensor.read().shape == tensor.shape
    except VitHubError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000, (seed, peak)
    changed.unlink()
print("done")
"""


def test_changed_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own, which a fault in the library would end."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layers/dense/vars/0"] = W
        file["layers/dense_1/vars/0"] = W[0]
        file.create_dataset("packed", data=W, chunks=(2, 2), compression="gzip")
        file["layers"].attrs["name"] = "layers"
    command = [sys.executable, "-c", FUZZ, str(tmp_path / "x.h5"), "400"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr[-2000:]
