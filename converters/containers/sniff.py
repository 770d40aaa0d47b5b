"""Detection of containers by a file's first bytes, never by its name."""

from __future__ import annotations

import codecs
from pathlib import Path

from vit_hub.converters.containers.archive import read_directory
from vit_hub.converters.containers.exported import is_exported
from vit_hub.converters.containers.hdf5 import MAGIC
from vit_hub.converters.containers.msgpack_file import starts_msgpack
from vit_hub.converters.containers.onnx_file import looks_like_onnx
from vit_hub.converters.containers.programs import program_facts
from vit_hub.errors import CheckpointError, UnknownFormatError
from vit_hub.untrusted import read_bytes

__all__ = ["HEAD_BYTES", "HTML_PAGE", "LFS_POINTER", "describe", "sniff"]

HEAD_BYTES = 1024
HTML_PAGE = "an HTML page (a login or error page saved in place of the file?)"
LFS_POINTER = "a git-LFS pointer"
_READ = "supported are safetensors, npz, PyTorch, msgpack, HDF5 and ONNX files, and folders of them"
_MAGIC = (
    (b"GGUF", "a quantized GGUF file of llama.cpp (give the checkpoint that it was made from)"),
    (b"\x93NUMPY", "a single npy array, not an npz archive"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\xfd7zXZ", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
)


def sniff(path: Path) -> str:
    """Return the container of a file, or ``index`` for the JSON index of a sharded checkpoint.

    Raises:
        CheckpointError: an empty file, a git-LFS pointer, or a program that ``vit-hub export`` wrote.
        UnknownFormatError: anything else; the message says what it looks like.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise CheckpointError(f"{path}: the file is empty", hint="download it again")
    content = describe(head)
    if content == LFS_POINTER:
        raise CheckpointError(
            f"{path}: {LFS_POINTER}, not the weights themselves", hint="run `git lfs pull` in its repository"
        )
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    text = _is_text(head)
    # The length of the header before it, less than 4 GiB in a file that is not damaged.
    if not text and head[8:9] == b"{" and (head[4:8] == bytes(4) or not starts_msgpack(head)):
        return "safetensors"
    if head.startswith(MAGIC):
        return "hdf5"
    if not text and starts_msgpack(head):
        return "msgpack"
    if not text and (head[:1] == b"\x80" or head[257:262] == b"ustar"):
        return "torch"
    if looks_like_onnx(head) or head.lstrip().startswith(b"<?xml"):
        _refuse_program(path)
    if looks_like_onnx(head):
        return "onnx"
    if text and head.lstrip().startswith(b"{") and b'"weight_map"' in read_bytes(path):
        return "index"
    raise UnknownFormatError(f"{path}: looks like {content}, not a checkpoint", hint=_READ)


def _refuse_program(path: Path) -> None:
    """Refuse an ONNX or OpenVINO file of ``vit-hub export``, whose weights are cut and folded.

    Raises:
        CheckpointError: it is one.
    """
    facts = program_facts(path)
    if facts is not None:
        raise CheckpointError(
            f"{path}: is a program for {facts.target} that vit-hub export wrote, whose weights are rearranged, and no "
            "checkpoint",
            hint="`vit-hub predict`, `embed`, `eval`, `compare` and `inspect` take it as it is; for the weights give "
            "the checkpoint that it was exported from",
        )


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _sniff_zip(path: Path) -> str:
    names = [info.filename for info in read_directory(path)[0]]
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if is_exported(names) or any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return "torch"
    raise UnknownFormatError(
        f"{path}: a zip archive of neither numpy nor PyTorch, with {', '.join(names[:3]) or 'nothing'}", hint=_READ
    )


def describe(head: bytes) -> str:
    """Describe a file that is no checkpoint by its first ``HEAD_BYTES`` bytes, such as ``HTML_PAGE``."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return HTML_PAGE
    if head.startswith(b"version https://git-lfs"):
        return LFS_POINTER
    if not _is_text(head):
        return next((content for magic, content in _MAGIC if head.startswith(magic)), "unknown binary data")
    if start.startswith(b"<?xml"):
        return "an XML page (an error message of the server?)"
    return "JSON" if start.startswith((b"{", b"[")) else "a text file"
