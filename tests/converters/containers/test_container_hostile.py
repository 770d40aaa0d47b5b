"""Damaged, deceitful and foreign files: one error that names the file and the fault, and nothing executed."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_hub.converters.containers import open_raw, write_tensors
from vit_hub.converters.tensors import from_array
from vit_hub.errors import CheckpointError, UnknownFormatError, UnsafeCheckpointError

WEIGHTS = {"w": from_array(np.arange(6, dtype=np.float32).reshape(2, 3)), "b": from_array(np.ones(3, np.float32))}


def refused(path: Path, message: str, kind: type[CheckpointError] = CheckpointError) -> CheckpointError:
    with pytest.raises(kind, match=message) as caught:
        open_raw(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


# Not checkpoints at all


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        (b"# weights are here\n", "a text file"),
        ("für später".encode(), "a text file"),
        (b"abcdefgh{ text with a brace where a header would begin", "a text file"),
        (b"<!DOCTYPE html><title>Sign in</title>", "HTML"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML"),
        (b'{"model_type": "vit"}', "JSON"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x93NUMPY\x01\x00v\x00", "npy"),
        (b"\x1f\x8b\x08\x00\x00\x00", "gzip"),
        (b"\x00\x01\x02\x03\x04", "unknown binary"),
    ],
)
def test_what_is_no_checkpoint_is_described(tmp_path: Path, content: bytes, looks_like: str) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    refused(path, looks_like, UnknownFormatError)


def test_empty_file_missing_path_and_pointer(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.npz", "no such file")
    path = tmp_path / "weights.pth"
    path.touch()
    refused(path, "empty")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refused(path, "git-LFS pointer").hint


def test_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    refused(path, "word/document.xml", UnknownFormatError)


# npz


def npy(array: np.ndarray[Any, Any], *, shape: tuple[int, ...] | None = None) -> bytes:
    """The npy form of an array; ``shape`` is what its header claims instead."""
    stream = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class MakesFile:
    """Its pickle writes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Runs:
    """Its pickle runs a command when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.path}",)


def test_pickled_member_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, trace = tmp_path / "x.npz", tmp_path / "trace"
    np.savez(path, good=np.zeros(2), evil=np.array([Runs(trace)], dtype=object))
    refused(path, "'evil.npy' holds pickled", UnsafeCheckpointError)
    assert not trace.exists()


def test_a_pickle_in_place_of_an_array_is_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = npz(tmp_path / "x.npz", {"a.npy": pickle.dumps(Runs(trace))})
    refused(path, "'a.npy' is not an array")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array(["text"]), "<U4"),
        (np.zeros(2, np.complex64), "<c8"),
        (np.zeros(2, ">f4"), ">f4"),
        (np.zeros(2, "V3"), "V3"),
    ],
)
def test_dtypes_that_no_weights_have(tmp_path: Path, array: np.ndarray[Any, Any], dtype: str) -> None:
    np.savez(tmp_path / "x.npz", odd=array)
    refused(tmp_path / "x.npz", f"'odd.npy' has dtype .*{re.escape(dtype)}")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(3,), (5,), (2**40,), (-4,), (2**63, 2**63)])
def test_header_and_size_must_agree(tmp_path: Path, compression: int, shape: tuple[int, ...]) -> None:
    path = npz(tmp_path / "x.npz", {"a.npy": npy(np.zeros(4, np.float32), shape=shape)}, compression)
    refused(path, "'a.npy'.* (bytes expected|has shape)")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100,
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b" " * 16,
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16,
        b"\x93NUMPY\x01\x00\x02\x00{}",
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 50_000) + b"{" + b" " * 49_998 + b"}",
        b"not an array",
    ],
)
def test_malformed_array_headers(tmp_path: Path, content: bytes) -> None:
    refused(npz(tmp_path / "x.npz", {"a.npy": content}), "'a.npy' is not an array")


def test_member_that_is_no_array_file(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", {"a.npy": npy(np.zeros(1)), "readme.txt": b"hello"})
    refused(path, "readme.txt")


def test_duplicated_members(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    npz(path, {"a.npy": npy(np.zeros(1)), "b.npy": npy(np.zeros(1))})
    path.write_bytes(path.read_bytes().replace(b"b.npy", b"a.npy"))
    refused(path, "two members are named 'a.npy'")


def test_compressed_data_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).standard_normal(5000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.npy"):
        open_raw(path).tensors["a"].read()


@pytest.mark.parametrize("declared", [-8, 8])
def test_compressed_member_of_another_size_than_declared(tmp_path: Path, declared: int) -> None:
    array = npy(np.zeros(1000, np.float32))
    path = npz(tmp_path / "x.npz", {"a.npy": array}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    real = struct.pack("<I", len(array))
    assert content.count(real) == 2
    claimed = npy(np.zeros(1000 + declared // 4, np.float32))[:128] + bytes(4000)
    path = npz(path, {"a.npy": claimed}, zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace(real, struct.pack("<I", len(array) + declared)))
    with pytest.raises(CheckpointError, match=r"a\.npy"):
        open_raw(path).tensors["a"].read()


def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        for _ in range(200):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    refused(path, "expand from .* decompression bomb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def central(path: Path, index: int, field: str, value: int) -> None:
    """Overwrite a field of a member's entry in the archive's directory."""
    offset, form = {"flags": (8, "<H"), "method": (10, "<H"), "stored": (20, "<I"), "header": (42, "<I")}[field]
    content = bytearray(path.read_bytes())
    start = -1
    for _ in range(index + 1):
        start = content.index(b"PK\x01\x02", start + 1)
    struct.pack_into(form, content, start + offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("flags", 1, "encrypted"),
        ("method", 12, "method 12"),
        ("method", 99, "method 99"),
        ("stored", 10**6, "bytes stored"),
        ("header", 10, "no member begins"),
        ("header", 0, "ends at byte|overlap|twice"),
        ("header", 10**8, "damaged|beyond"),
    ],
)
def test_directories_that_lie(tmp_path: Path, field: str, value: int, message: str) -> None:
    path = npz(tmp_path / "x.npz", {"a.npy": npy(np.zeros(4)), "b.npy": npy(np.zeros(4))})
    central(path, 1, field, value)
    refused(path, message)


def test_member_that_runs_into_the_next(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", {"a.npy": npy(np.zeros(4)), "b.npy": npy(np.zeros(4))})
    content = path.read_bytes()
    size = struct.pack("<II", 160, 160)
    assert content.count(size) == 4
    path.write_bytes(content.replace(size, struct.pack("<II", 300, 300)))
    refused(path, r"a\.npy.* beyond")


# safetensors


def safetensors_file(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8)}, bytes(4), "bytes expected"),
        ({"a": entry(0, 8)}, bytes(12), "bytes expected"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "not a valid"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), "not a valid"),
        ({"a": entry(0, 8, shape=(3,))}, bytes(8), "not a valid"),
        ({"a": entry(0, 8, shape=(2**62, 2**62))}, bytes(8), "not a valid"),
        ({"a": entry(0, 8, dtype="F99")}, bytes(8), "not a valid"),
        ({"a": {"dtype": "F32"}}, bytes(8), "not a valid"),
        ({"a": 1}, bytes(8), "not a valid"),
        ({"__metadata__": {"a": 1}}, b"", "not a valid"),
        ({"a": entry(0, 2, dtype="F8_E8M0")}, bytes(2), "'a' has dtype F8_E8M0"),
        (b"{" + b"[" * 100_000, b"", "not JSON"),
        (b'{"a": ', b"", "not JSON"),
        (b'{"\xff": 1}', b"", "not JSON"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
            "names 'a' twice",
        ),
        (b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', bytes(4), "'dtype' twice"),
    ],
)
def test_malformed_safetensors(tmp_path: Path, header: dict[str, Any] | bytes, data: bytes, message: str) -> None:
    refused(safetensors_file(tmp_path / "x.safetensors", header, data), message)


@pytest.mark.parametrize("length", [3, 10**5, 2**40, 2**63, 2**64 - 1])
def test_header_length_that_does_not_fit(tmp_path: Path, length: int) -> None:
    path = safetensors_file(tmp_path / "x.safetensors", {"a": entry(0, 8)}, bytes(8), length)
    refused(path, "header")


# PyTorch


def test_offending_globals_are_named_and_nothing_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    checkpoint = {"w": torch.zeros(2), "evil": Runs(trace), "more": MakesFile(trace)}
    for zipped in (True, False):
        path = tmp_path / "x.pth"
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
        error = refused(path, r"would run .*(posix|nt)\.system", UnsafeCheckpointError)
        assert "pathlib" in error.message
        assert "safetensors" in error.hint
        assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_are_never_executed(tmp_path: Path, protocol: int) -> None:
    path, trace = tmp_path / "x.bin", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"a": Runs(trace), "b": Runs(trace)}, protocol))
    refused(path, r"(posix|nt)\.system", UnsafeCheckpointError)
    assert not trace.exists()


def test_text_pickle_is_never_executed(tmp_path: Path) -> None:
    path, trace = tmp_path / "x.bin", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Runs(trace), 0))
    refused(path, "text", UnknownFormatError)
    assert not trace.exists()


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"torch\.nn\.modules\.linear\.Linear", UnsafeCheckpointError)


def test_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    (tmp_path / "pickle").write_bytes(pickle.dumps(Runs(tmp_path / "trace")))
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    refused(path, "tar format", UnsafeCheckpointError)
    assert not (tmp_path / "trace").exists()


def knot() -> dict[str, Any]:
    """A dict that holds itself."""
    tied: dict[str, Any] = {"w": torch.zeros(1)}
    tied["self"] = tied
    return tied


def laughs() -> dict[str, Any]:
    """Thirty lists, each holding the one before twice: 2**30 leaves."""
    nested: list[Any] = []
    for _ in range(30):
        nested = [nested, nested]
    return {"w": torch.zeros(1), "nested": nested}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(2), "bare Tensor"),
        (lambda: [torch.zeros(2)], "bare list"),
        (lambda: 3, "bare int"),
        (lambda: {"epoch": 1}, "holds no tensors"),
        (lambda: {"a": {"b": torch.zeros(1)}, "a/b": torch.zeros(1)}, "named 'a/b'"),
        (lambda: {"c": torch.zeros(2, dtype=torch.complex64)}, "'c' has dtype torch.complex64"),
        (lambda: {"s": torch.eye(2).to_sparse()}, "'s' is sparse"),
        (lambda: {"m": torch.zeros(2, device="meta")}, "'m' is .*without values"),
        (lambda: {"x": torch.zeros(1).expand(10**8)}, "'x' would expand"),
        (knot, "nested deeper"),
        (laughs, "nested deeper"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_without_plain_named_tensors(
    tmp_path: Path, make: Callable[[], object], message: str, zipped: bool
) -> None:
    torch.save(make(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "x.pth", message)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensor_larger_than_its_values(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(77, 3)}, path, _use_new_zipfile_serialization=zipped)
    if not zipped:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"KMK\x03\x86", b"J\xff\xff\xff\x00K\x03\x86"))
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in members if name.endswith("data.pkl"))
        assert b"KMK\x03\x86" in members[name]
        members[name] = members[name].replace(b"KMK\x03\x86", b"J\xff\xff\xff\x00K\x03\x86")
        npz(path, members)
    refused(path, "not a readable PyTorch file|larger than the file|would expand")


def test_recompressed_torch_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    npz(path, members, zipfile.ZIP_DEFLATED)
    assert np.array_equal(open_raw(path).tensors["w"].read(), np.arange(100))


# Any container


@pytest.mark.parametrize("container", ["safetensors", "npz", "torch"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_files_are_refused(tmp_path: Path, container: str, data: st.DataObject) -> None:
    path = tmp_path / "x"
    write_tensors(path, container, WEIGHTS)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        open_raw(path)


@cache
def old_torch_file() -> bytes:
    """Made once: the format before zip files writes memory addresses, so that its length changes from save to save."""
    stream = io.BytesIO()
    state = {name: torch.from_numpy(item.read()) for name, item in WEIGHTS.items()}
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("container", ["safetensors", "npz", "torch", "old torch"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_no_other_error(tmp_path: Path, container: str, data: st.DataObject) -> None:
    path = tmp_path / "x"
    if container == "old torch":
        path.write_bytes(old_torch_file())
    else:
        write_tensors(path, container, WEIGHTS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        for item in open_raw(path).tensors.values():
            array = item.read()
            assert array.shape == item.shape
