"""safetensors files (https://github.com/huggingface/safetensors#format): a JSON header, then the values.

The safetensors package validates files. Reading and writing are implemented here, because its reader returns no
writable mapped arrays, and its writer needs all tensors in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pickles import Unreadable
from vit_hub.converters.containers.pieces import Pieces
from vit_hub.converters.tensors import DTYPES, DTYPES_HINT, Array, LazyTensor
from vit_hub.errors import CheckpointError
from vit_hub.untrusted import HEADER_BYTES, parse_json

__all__ = ["read_safetensors", "write_safetensors"]

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_ALIGNMENT = 64
_AGAIN = "the file is damaged or incomplete: download it again"


def read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, Unreadable], dict[str, str]]:
    """Return the tensors, as views of the mapped file in the header's order, those of other dtypes, and the metadata.

    Raises:
        CheckpointError: truncated or malformed file, or duplicated names.
    """
    file = MappedFile(path)
    header, start = _read_header(file)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, ValueError) as error:
        end = _data_end(header)
        if end is not None and start + end != file.size:
            raise CheckpointError(
                f"{path}: {start + end:,} bytes expected, {file.size:,} found", hint=_AGAIN
            ) from error
        raise CheckpointError(f"{path}: not a valid safetensors file: {error}", hint=_AGAIN) from error
    metadata = header.pop(_METADATA, None) or {}
    tensors = {name: _tensor(file, entry, start) for name, entry in header.items() if entry["dtype"] in DTYPES}
    others = {name: entry["dtype"] for name, entry in header.items() if name not in tensors}
    return tensors, {name: Unreadable(f"has dtype {dtype}", DTYPES_HINT) for name, dtype in others.items()}, metadata


def _read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """Return the parsed header and the offset of the data."""
    (length,) = _LENGTH.unpack(file.bytes(0, _LENGTH.size))
    start = _LENGTH.size + length
    if start > file.size:
        raise CheckpointError(
            f"{file.path}: the header is said to have {length:,} bytes, the file has {file.size:,}", hint=_AGAIN
        )
    if HEADER_BYTES.exceeded(length):
        raise CheckpointError(
            f"{file.path}: the header is said to have {length:,} bytes",
            hint=f"at most {HEADER_BYTES.most:,} are supported",
        )
    try:
        header = parse_json(file.bytes(_LENGTH.size, length), most=HEADER_BYTES.most)
        if not isinstance(header, dict):
            raise ValueError("an object is expected")
    except ValueError as error:
        raise CheckpointError(f"{file.path}: the safetensors header is not JSON: {error}", hint=_AGAIN) from error
    return header, start


def _data_end(header: dict[str, Any]) -> int | None:
    """Return the end of the data by a possibly malformed header; None if it does not say."""
    try:
        return max(int(entry["data_offsets"][1]) for name, entry in header.items() if name != _METADATA)
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _tensor(file: MappedFile, entry: dict[str, Any], start: int) -> LazyTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    offset = start + entry["data_offsets"][0]
    return LazyTensor(dtype, shape, partial(_read, file, offset, DTYPES[dtype].carrier, shape))


def _read(file: MappedFile, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    # Copies only unaligned data, which the format allows.
    return np.require(file.array(offset, dtype, shape), requirements="A")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    pieces: Pieces,
    finish: Callable[[], Mapping[str, str]] | None = None,
) -> None:
    """Write the header in the given order with the metadata's keys sorted, then one tensor at a time.

    The format allows no gaps between tensors, and readers expect each at a multiple of its item size. So the widest
    dtypes come first, in the given order within a dtype. The data begins at a multiple of 64 bytes.

    After all values are written, ``finish`` returns the metadata to keep, as long as ``metadata``.

    Raises:
        CheckpointError: a tensor has the name reserved for the metadata.
        OSError: it cannot be written.
    """
    if _METADATA in tensors:
        raise CheckpointError(f"{path}: no tensor of a safetensors file can be named {_METADATA!r}")
    stored = sorted(tensors, key=lambda name: -DTYPES[tensors[name].dtype].carrier.itemsize)
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    for name in stored:
        offsets[name] = (end, end + tensors[name].nbytes)
        end += tensors[name].nbytes
    entries = {
        name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets[name]}
        for name, tensor in tensors.items()
    }
    text = _header(metadata, entries)
    with path.open("wb") as file:
        file.write(text)
        for _, piece in pieces(stored):
            file.write(piece)
        if finish is not None:
            final = _header(finish(), entries)
            if len(final) != len(text):
                raise ValueError(f"the metadata took {len(text)} bytes at first and {len(final)} at last")
            file.seek(0)
            file.write(final)


def _header(metadata: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
    """Return the bytes of the file before its values."""
    about = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    text = json.dumps({**about, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text
