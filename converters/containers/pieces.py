"""Arrays as row-major bytes, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np

from vit_hub.converters.tensors import Array

__all__ = ["Buffers", "Pieces", "chunks", "fill", "is_own"]

# Takes names of tensors and yields, in that order, (name, bytes), with one or more pieces for each. A piece holds its
# bytes until the next one is taken.
Pieces: TypeAlias = "Callable[[Iterable[str]], Iterator[tuple[str, memoryview]]]"

_CHUNK_BYTES = 2 << 20
# A tile stays in a core's second-level cache, and this many of its columns fill whole cache lines.
_TILE_BYTES = 1 << 18
_COLUMNS = 128
_PADDING_BYTES = 64


class Buffers:
    """Memory for pieces that is used again: in new memory each page costs the system a fault."""

    def __init__(self) -> None:
        self._free: list[Array] = []
        self._lent: dict[int, Array] = {}

    def take(self, nbytes: int) -> Array:
        """Return ``nbytes`` bytes of a buffer."""
        buffer = self._free.pop() if self._free else np.empty(_CHUNK_BYTES, np.uint8)
        if buffer.nbytes < nbytes:
            buffer = np.empty(nbytes, np.uint8)
        lent: Array = buffer[:nbytes]
        self._lent[id(lent)] = lent
        return lent

    def give_back(self, piece: memoryview) -> None:
        """Take the memory of a piece back, if it is that of a buffer."""
        lent = self._lent.pop(id(piece.obj), None)
        if lent is not None and lent.base is not None:
            self._free.append(lent.base)


def chunks(array: Array, buffers: Buffers) -> Iterator[memoryview]:
    """Yield the bytes of an array in row-major order in pieces of 2 MiB, one empty piece if it has none.

    A contiguous array is not copied, any other piece by piece, into memory that the receiver gives back.
    """
    array = np.atleast_1d(np.squeeze(array))
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8).data
        for start in range(0, max(1, flat.nbytes), _CHUNK_BYTES):
            yield flat[start : start + _CHUNK_BYTES]
        return
    rows = max(1, _CHUNK_BYTES * array.shape[0] // array.nbytes)
    for start in range(0, array.shape[0], rows):
        part = array[start : start + rows]
        copy = buffers.take(part.nbytes)
        fill(copy.view(array.dtype).reshape(part.shape), part)
        yield copy.data


def is_own(array: Array) -> bool:
    """Return whether numpy allocated the array's memory, so that it belongs to no file or tensor."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is None


def fill(copy: Array, array: Array) -> None:
    """Copy an array into a row-major one of the same shape and dtype.

    numpy's own copy of a transposed matrix misses the cache at every element, more so where the distance of two rows is
    a power of two. So a tile is copied in the order of the array's memory, and from there in that of the copy; its rows
    are longer than their values, so that they do not compete for the same cache lines.
    """
    array = np.squeeze(array)
    copy = copy.reshape(array.shape)
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    if not array.size or order == list(range(array.ndim)):
        np.copyto(copy, array)
        return
    rows, columns = array.shape[0], array.shape[-1]
    unit = array.nbytes // (rows * columns)
    height = min(rows, max(1, _TILE_BYTES // (unit * min(columns, _COLUMNS))))
    width = min(columns, max(_COLUMNS, _TILE_BYTES // (unit * height)))
    sizes = [(height, *array.shape[1:-1], width)[axis] for axis in order]
    padded = (*sizes[:-1], sizes[-1] + _PADDING_BYTES // array.itemsize)
    tile = np.empty(padded, array.dtype)[..., : sizes[-1]].transpose(np.argsort(order))
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            block = array[row : row + height, ..., column : column + width]
            part = tile[: block.shape[0], ..., : block.shape[-1]]
            np.copyto(part, block)
            np.copyto(copy[row : row + height, ..., column : column + width], part)
