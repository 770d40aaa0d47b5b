"""flax's msgpack files: the same bytes as flax writes, and refusals of damaged and deceitful ones in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_hub.converters.containers import msgpack_file, open_raw, write_tensors
from vit_hub.converters.tensors import from_array
from vit_hub.errors import CheckpointError, VitHubError


def packed(array: Any, code: int = 1) -> msgpack.ExtType:
    """An array as flax.serialization packs it."""
    content = (list(array.shape), array.dtype.name, array.tobytes())
    return msgpack.ExtType(code, msgpack.packb(content, use_bin_type=True))


W = np.arange(6, dtype=np.float32).reshape(2, 3)
TREE = {"layer": {"kernel": packed(W), "bias": packed(W[0])}, "scale": packed(W[0, :1].reshape(()))}


def written(path: Path, tree: Any) -> Path:
    path.write_bytes(msgpack.packb(tree, strict_types=True))
    return path


def test_the_same_bytes_as_flax_writes(tmp_path: Path) -> None:
    source = open_raw(written(tmp_path / "model.bin", TREE))
    assert source.container == "msgpack"
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == {
        "layer/kernel": (2, 3),
        "layer/bias": (3,),
        "scale": (),
    }
    assert np.array_equal(source.tensors["layer/kernel"].read(), W)
    write_tensors(tmp_path / "again.msgpack", "msgpack", source.tensors)
    assert (tmp_path / "again.msgpack").read_bytes() == (tmp_path / "model.bin").read_bytes()


def test_a_name_with_a_brace_where_a_safetensors_header_begins(tmp_path: Path) -> None:
    path = written(tmp_path / "model.bin", {"\xa0\U00010000{": packed(W)})
    assert path.read_bytes()[8:9] == b"{"
    assert open_raw(path).container == "msgpack"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 12, 200, 300, 70_000])
def test_markers_of_every_length(tmp_path: Path, size: int) -> None:
    array = np.arange(size, dtype=np.uint8)
    write_tensors(tmp_path / "x.msgpack", "msgpack", {"a" * max(1, min(size // 10, 1000)): from_array(array)})
    tree = {"a" * max(1, min(size // 10, 1000)): packed(array)}
    assert (tmp_path / "x.msgpack").read_bytes() == msgpack.packb(tree)
    (found,) = open_raw(tmp_path / "x.msgpack").tensors.values()
    assert np.array_equal(found.read(), array)


def test_training_states_hold_other_values(tmp_path: Path) -> None:
    state = {
        "step": 7,
        "params": TREE,
        "opt_state": {"0": {"count": packed(np.int32(3).reshape(()), code=3), "mu": None}},
        "notes": ["text", 2.5, -3, True, {"a": b"bytes"}, msgpack.ExtType(2, b"\x92\xcb" + b"\0" * 16)],
    }
    source = open_raw(written(tmp_path / "x", state))
    assert list(source.tensors) == [*(f"params/{name}" for name in ("layer/kernel", "layer/bias", "scale")),
                                    "opt_state/0/count"]  # fmt: skip


def chunked(array: Any, size: int) -> dict[str, Any]:
    """A large array as flax cuts it."""
    flat = array.reshape(-1)
    parts = [flat[start : start + size] for start in range(0, flat.size, size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): length for axis, length in enumerate(array.shape)},
        "chunks": {str(index): packed(part) for index, part in enumerate(parts)},
    }


def test_large_arrays_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msgpack_file, "_CHUNK_BYTES", 16)
    array = np.arange(15, dtype=np.float32).reshape(3, 5)
    source = open_raw(written(tmp_path / "x", {"big": chunked(array, 4), "w": packed(W[0])}))
    assert np.array_equal(source.tensors["big"].read(), array)
    write_tensors(tmp_path / "again", "msgpack", source.tensors)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "x").read_bytes()
    transposed = from_array(np.asarray(array.T))
    write_tensors(tmp_path / "t", "msgpack", {"big": transposed})
    assert (tmp_path / "t").read_bytes() == msgpack.packb({"big": chunked(np.ascontiguousarray(array.T), 4)})


def changed(**parts: Any) -> dict[str, Any]:
    return {"big": {**chunked(np.arange(6, dtype=np.float32), 4), **parts}}


DEEP: Any = packed(W)
for _ in range(200):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": msgpack.ExtType(1, msgpack.packb([[4, 4], "float32", b"short"]))}, "another number of bytes"),
        ({"a": msgpack.ExtType(1, msgpack.packb([[2**60, 0], "float32", b""]))}, "another number of bytes"),
        ({"a": msgpack.ExtType(1, msgpack.packb([[1], "complex64", b"12345678"]))}, "complex64"),
        ({"a": msgpack.ExtType(1, msgpack.packb("text"))}, "shape, dtype and bytes"),
        ({"a": msgpack.ExtType(9, b"1234")}, "unknown type 9"),
        ({"a": {1: packed(W)}}, "a name expected"),
        ({"a" * 20_000: packed(W)}, "20,000 bytes"),
        (DEEP, "deeper than 100"),
        ({"a/b": packed(W), "a": {"b": packed(W)}}, "twice"),
        (changed(shape={"0": 7}), "do not make it up"),
        (changed(shape={"1": 6}), "shape and the chunks"),
        (changed(chunks={"0": 5}), "shape and the chunks"),
        (changed(more={}), "do not make it up"),
    ],
)  # fmt: skip
def test_deceitful_files(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_raw(written(tmp_path / "x", tree))
    assert str(tmp_path / "x") in caught.value.message
    assert caught.value.hint


def test_truncated_and_continued_files(tmp_path: Path) -> None:
    whole = written(tmp_path / "x", TREE).read_bytes()
    for end in range(2, len(whole)):
        (tmp_path / "x").write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            open_raw(tmp_path / "x")
    (tmp_path / "x").write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="1 bytes follow"):
        open_raw(tmp_path / "x")


def test_a_map_that_claims_many_entries_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A tenth of the limit, since tracing memory takes its time for each value.
    monkeypatch.setattr(msgpack_file, "_MAX_ENTRIES", 100_000)
    (tmp_path / "x").write_bytes(b"\xdf\xff\xff\xff\xff\xa1a\xc0" + b"\xa1b\xdd\xff\xff\xff\xff" + b"\xc0" * 200_000)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="100,000 values"):
        open_raw(tmp_path / "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_one_name_for_a_tensor_and_a_dict(tmp_path: Path) -> None:
    for names in (("a", "a/b"), ("a/b", "a")):
        with pytest.raises(CheckpointError, match="a tensor and of a dict"):
            write_tensors(tmp_path / "x", "msgpack", dict.fromkeys(names, from_array(W)))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(msgpack.packb({**TREE, "big": chunked(W, 4), "list": [1, {"a": 2}]}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(content[: data.draw(st.integers(3, len(content)))])
    tracemalloc.start()
    try:
        for tensor in open_raw(tmp_path / "x").tensors.values():
            assert tensor.read().shape == tensor.shape
    except VitHubError:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
