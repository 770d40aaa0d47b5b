"""numpy's npz: a zip archive of npy files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from vit_hub.converters.containers.archive import Member, read_member, read_members, stored_array, stored_zip
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pieces import Pieces
from vit_hub.converters.tensors import CARRIERS, DTYPES, DTYPES_HINT, Array, LazyTensor
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["read_npz", "write_npz"]

_SUFFIX = ".npy"
# Plain arrays have shorter headers; numpy itself refuses those above 10,000 bytes.
_HEADER_BYTES = 12_000
# numpy has no bfloat16 and saves such arrays as two bytes of unknown type.
_VOID = np.dtype("V2")
_NAMES = {**CARRIERS, _VOID: "BF16"}


def read_npz(path: Path) -> dict[str, LazyTensor]:
    """Return the arrays of an npz file, name without ``.npy`` -> tensor, in the file's order.

    Stored members are views of the mapped file, often not aligned to their item size; compressed members are unpacked
    as a whole at each read.

    Raises:
        CheckpointError: damaged archive, or a member that is not a plain array.
        UnsafeCheckpointError: a member that holds pickled objects.
    """
    file = MappedFile(path)
    tensors: dict[str, LazyTensor] = {}
    for member in read_members(file).values():
        if not member.name.endswith(_SUFFIX):
            raise CheckpointError(
                f"{path}: member {member.name!r} of the npz archive is not an array",
                hint="only .npy members are supported",
            )
        tensors[member.name[: -len(_SUFFIX)]] = _tensor(file, member)
    return tensors


def _tensor(file: MappedFile, member: Member) -> LazyTensor:
    where = f"{file.path}: member {member.name!r}"
    try:
        start, shape, fortran, dtype = _parsed(_header(read_member(file, member, _HEADER_BYTES)))
    # The header is a Python literal: parsing a malformed one raises nearly anything.
    except Exception as error:
        raise CheckpointError(
            f"{where} is not an array: {str(error).splitlines()[0]}", hint="the file is damaged or not an npz of arrays"
        ) from error
    if dtype.hasobject:
        raise UnsafeCheckpointError(
            f"{where} holds pickled Python objects, which could run code when read",
            hint="save it again as plain arrays on a machine you trust",
        )
    name = _NAMES.get(dtype)
    if name is None:
        raise CheckpointError(f"{where} has dtype {dtype.str!r}", hint=DTYPES_HINT)
    if any(axis < 0 for axis in shape):
        raise CheckpointError(f"{where} has shape {shape}", hint="the file is damaged")
    expected = math.prod(shape) * dtype.itemsize
    if member.size - start != expected:
        raise CheckpointError(
            f"{where}: {expected:,} bytes expected for shape {shape} and dtype {dtype.str!r}, "
            f"{member.size - start:,} declared",
            hint="the file is damaged: fetch it again",
        )
    read = partial(_read, file, member, start, DTYPES[name].carrier, shape, fortran)
    return LazyTensor(name, shape, read)


def _header(data: bytes | bytearray) -> bytes:
    """Return the header of an npy file, with the signature and the version."""
    start = 10 if data[6:8] == b"\x01\x00" else 12
    return bytes(data[: start + int.from_bytes(data[8:start], "little")])


@lru_cache  # the layers of a model have the same ones
def _parsed(header: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return the length of a header, and the shape, the order and the dtype in it.

    Raises:
        ValueError: another version, or a malformed header, which may raise nearly anything else.
    """
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy version {version}")
    return stream.tell(), tuple(shape), fortran, dtype


def _read(
    file: MappedFile, member: Member, start: int, dtype: np.dtype[np.generic], shape: tuple[int, ...], fortran: bool
) -> Array:
    if not member.compressed:
        return stored_array(file, member, start, dtype, shape, fortran=fortran)
    data = read_member(file, member)
    array: Array = np.ndarray(shape, dtype, buffer=data, offset=start, order="F" if fortran else "C")
    return array


def write_npz(path: Path, tensors: Mapping[str, LazyTensor], pieces: Pieces) -> None:
    """Write an npz file as ``np.savez`` does, one tensor at a time.

    Raises:
        OSError: it cannot be written.
    """
    with stored_zip(path) as archive:
        for name, parts in groupby(pieces(tensors), key=itemgetter(0)):
            archive.add(name + _SUFFIX, _npy(tensors[name], (piece for _, piece in parts)))


def _npy(tensor: LazyTensor, pieces: Iterator[memoryview]) -> Iterator[bytes | memoryview]:
    dtype = _VOID if tensor.dtype == "BF16" else DTYPES[tensor.dtype].carrier
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": tensor.shape})
    yield header.getvalue()
    yield from pieces
