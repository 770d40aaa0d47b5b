"""flax's msgpack files: one map of nested maps, whose leaves are arrays in extension types of flax.

Sources: https://github.com/msgpack/msgpack/blob/master/spec.md and flax/serialization.py. Values are unaligned views of
the mapped file. Only the markers before them are parsed; numbers, texts and lists of training states are skipped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pieces import Pieces
from vit_hub.converters.tensors import DTYPES, DTYPES_HINT, TORCH_DTYPES, Array, LazyTensor
from vit_hub.errors import CheckpointError

__all__ = ["read_msgpack", "starts_msgpack", "write_msgpack"]

# flax's extension types: an array, a complex number, and a scalar of numpy.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
# flax cuts arrays of more bytes into flat chunks, because no value of msgpack holds 4 GiB.
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 2**30
_MAX_DEPTH = 100
_MAX_ENTRIES = 1_000_000
_MAX_NAMES_BYTES = 100_000_000
_MAX_NAME_BYTES = 10_000
_MAX_AXES = 32
_AGAIN = "the file is damaged or incomplete: fetch it again"

# Marker -> (size of the length that follows, in bytes), by kind of value.
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_UNSIGNED = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
# nil, booleans, floats and signed integers: the bytes after the marker.
_PLAIN = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def starts_msgpack(head: bytes) -> bool:
    """Return whether a file begins with a map whose first key is a text."""
    marker = head[:1]
    after = {**dict.fromkeys(range(0x81, 0x90), 1), 0xDE: 3, 0xDF: 5}.get(marker[0] if marker else 0)
    key = head[after] if after is not None and len(head) > after else 0
    return 0xA0 <= key < 0xC0 or key in _TEXTS


def read_msgpack(path: Path) -> dict[str, LazyTensor]:
    """Return the arrays of a file that flax wrote, names of nested maps joined by ``/``, in the file's order.

    Raises:
        CheckpointError: truncated or malformed file, nested too deeply, or an array of an unsupported dtype.
    """
    reader = _Reader(MappedFile(path))
    reader.read_map((), reader.map_length())
    if reader.position != reader.file.size:
        raise reader.error(f"{reader.file.size - reader.position:,} bytes follow the map")
    return reader.tensors


class _Reader:
    """A parser of the markers of one file, from which values are skipped."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.position = 0
        self.tensors: dict[str, LazyTensor] = {}
        self._entries = 0
        self._names_bytes = 0

    def error(self, what: str, hint: str = _AGAIN) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: at byte {self.position:,}: {what}", hint=hint)

    def read_map(self, names: tuple[str, ...], count: int) -> None:
        """Read the entries of a map, of which the marker has been read."""
        if len(names) > _MAX_DEPTH:
            raise self.error(f"nested deeper than {_MAX_DEPTH} levels")
        keys = set[str]()
        for _ in range(count):
            key = self._text()
            if key in keys:
                raise self.error(f"the name {key!r} stands twice in a map")
            keys.add(key)
            if key == _CHUNKED and len(keys) == 1:
                self._add(names, self._chunked_array(count))
                return
            self._read_value((*names, key))

    def _read_value(self, names: tuple[str, ...]) -> None:
        self._count()
        start = self.position
        marker = self._byte()
        length = self._length(marker, _MAPS, 0x80, 0x0F)
        if length is not None:
            self.read_map(names, length)
            return
        self.position = start
        tensor = self._array()
        if tensor is not None:
            self._add(names, tensor)
            return
        self._skip(len(names))

    def _add(self, names: tuple[str, ...], tensor: LazyTensor) -> None:
        name = "/".join(names)
        self._names_bytes += len(name)
        if not names or name in self.tensors or self._names_bytes > _MAX_NAMES_BYTES:
            raise self.error(
                f"an array named {name[:99]!r}, twice, or after names of more than {_MAX_NAMES_BYTES:,} bytes"
            )
        self.tensors[name] = tensor

    def _count(self) -> None:
        self._entries += 1
        if self._entries > _MAX_ENTRIES:
            raise self.error(f"more than {_MAX_ENTRIES:,} values", hint="this is no file of a model's weights")

    def _take(self, size: int) -> bytes:
        found = self.file.bytes(self.position, size)
        if len(found) != size:
            raise self.error(f"{size:,} bytes expected, {len(found):,} found")
        self.position += size
        return found

    def _byte(self) -> int:
        return self._take(1)[0]

    def _pass(self, size: int) -> None:
        if size > self.file.size - self.position:
            raise self.error(f"{size:,} bytes expected, {self.file.size - self.position:,} found")
        self.position += size

    def _number(self, kind: str) -> int:
        found: int = struct.unpack(kind, self._take(struct.calcsize(kind)))[0]
        return found

    def _length(self, marker: int, sized: Mapping[int, str], fixed: int = -1, mask: int = 0) -> int | None:
        """Return the length of a value of one kind after its marker; None for another kind."""
        if marker & ~mask & 0xFF == fixed:
            return marker & mask
        return self._number(sized[marker]) if marker in sized else None

    def map_length(self) -> int:
        """Return the number of entries of the map that begins here.

        Raises:
            CheckpointError: no map begins here.
        """
        length = self._length(self._byte(), _MAPS, 0x80, 0x0F)
        if length is None:
            raise self.error("a map expected")
        return length

    def _text(self) -> str:
        length = self._length(self._byte(), _TEXTS, 0xA0, 0x1F)
        if length is None or length > _MAX_NAME_BYTES:
            raise self.error("a name expected" if length is None else f"a name of {length:,} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"a name that is not UTF-8: {error}") from error

    def _unsigned(self) -> int:
        marker = self._byte()
        if marker < 0x80:
            return marker
        if marker not in _UNSIGNED:
            raise self.error("a size expected")
        return self._number(_UNSIGNED[marker])

    def _array(self) -> LazyTensor | None:
        """Return the array that begins here and pass it; None, and pass nothing, if none does."""
        start, marker = self.position, self._byte()
        size = _FIXED_EXTENSIONS[marker] if marker in _FIXED_EXTENSIONS else self._length(marker, _EXTENSIONS)
        if size is None or self._byte() not in (_ARRAY, _SCALAR):
            self.position = start
            return None
        end = self.position + size
        if self._length(self._byte(), _LISTS, 0x90, 0x0F) != 3:
            raise self.error("an array of flax expected: shape, dtype and bytes")
        axes = self._length(self._byte(), _LISTS, 0x90, 0x0F)
        if axes is None or axes > _MAX_AXES:
            raise self.error("the shape of an array expected")
        shape = tuple(self._unsigned() for _ in range(axes))
        kind = self._text()
        dtype = TORCH_DTYPES.get(kind)
        if dtype is None:
            raise self.error(f"an array of dtype {kind!r}", hint=DTYPES_HINT)
        nbytes = self._length(self._byte(), _BYTES)
        carrier, offset = DTYPES[dtype].carrier, self.position
        if nbytes != math.prod(shape) * carrier.itemsize or offset + nbytes != end or max(shape, default=0) > end:
            raise self.error(f"an array of shape {shape} and dtype {kind} has another number of bytes")
        self._pass(nbytes)
        return LazyTensor(dtype, shape, partial(self.file.array, offset, carrier, shape))

    def _chunked_array(self, count: int) -> LazyTensor:
        """Read the rest of a map that stands for an array of more than 1 GiB: its shape, and its chunks."""
        parts: dict[str, dict[str, Any]] = {}
        self._skip(0)
        for _ in range(count - 1):
            name = self._text()
            item: Callable[[], Any] = {"shape": self._unsigned, "chunks": self._array}.get(name, lambda: None)
            parts[name] = {}
            for _ in range(self.map_length()):
                self._count()
                index = self._text()
                parts[name][index] = item()
        lists = [parts.get(name, {}) for name in ("shape", "chunks")]
        if any(list(part) != [*map(str, range(len(part)))] or None in part.values() for part in lists):
            raise self.error("the shape and the chunks of a large array expected")
        shape, chunks = tuple(lists[0].values()), list(lists[1].values())
        dtypes = {chunk.dtype for chunk in chunks}
        found = sum(math.prod(chunk.shape) for chunk in chunks)
        if len(parts) != 2 or len(dtypes) != 1 or len(shape) > _MAX_AXES or found != math.prod(shape):
            raise self.error(f"the chunks of an array of shape {shape} do not make it up")
        if max(shape, default=0) > self.file.size:
            raise self.error(f"an array of shape {shape}")
        dtype = dtypes.pop()
        return LazyTensor(dtype, shape, partial(_joined, chunks, DTYPES[dtype].carrier, shape))

    def _skip(self, depth: int) -> None:
        """Pass one value that is no array."""
        marker = self._byte()
        text = self._length(marker, _TEXTS, 0xA0, 0x1F)
        size = self._length(marker, _BYTES) if text is None else text
        items = self._length(marker, _LISTS, 0x90, 0x0F)
        pairs = self._length(marker, _MAPS, 0x80, 0x0F)
        if marker < 0x80 or marker >= 0xE0:
            return
        if size is not None:
            self._pass(size)
        elif items is not None or pairs is not None:
            if depth > _MAX_DEPTH:
                raise self.error(f"nested deeper than {_MAX_DEPTH} levels")
            for _ in range(2 * (pairs or 0) + (items or 0)):
                self._count()
                self._skip(depth + 1)
        elif marker in _PLAIN:
            self._pass(_PLAIN[marker])
        elif marker in _UNSIGNED:
            self._number(_UNSIGNED[marker])
        else:
            fixed = _FIXED_EXTENSIONS.get(marker)
            length = self._length(marker, _EXTENSIONS) if fixed is None else fixed
            kind = None if length is None else self._byte()
            if length is None or kind not in (_ARRAY, _COMPLEX, _SCALAR):
                raise self.error(f"a value of unknown type {marker if kind is None else kind}")
            self._pass(length)


def _joined(chunks: list[LazyTensor], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(shape, dtype)
    flat, start = array.reshape(-1), 0
    for chunk in chunks:
        values = chunk.read().reshape(-1)
        flat[start : start + values.size] = values
        start += values.size
    return array


def write_msgpack(path: Path, tensors: Mapping[str, LazyTensor], pieces: Pieces) -> None:
    """Write the file that flax writes for nested dicts of arrays, one tensor at a time; ``/`` in a name opens a dict.

    Raises:
        CheckpointError: a name is that of a tensor and of a dict.
        OSError: it cannot be written.
    """
    tree: dict[str, Any] = {}
    for name in tensors:
        *parents, last = name.split("/")
        node: Any = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise CheckpointError(f"{path}: {name!r} cannot be the name of a tensor and of a dict")
        node[last] = name
    values = groupby(pieces(_leaves(tree)), key=itemgetter(0))
    with path.open("wb") as file:
        _write_map(file, tree, tensors, ((piece for _, piece in group) for _, group in values))


def _leaves(tree: Mapping[str, Any]) -> Iterator[str]:
    for value in tree.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def _write_map(
    file: BinaryIO, tree: Mapping[str, Any], tensors: Mapping[str, LazyTensor], values: Iterator[Iterable[memoryview]]
) -> None:
    file.write(_marker(len(tree), 0x80, 0x0F, _MAPS))
    for key, value in tree.items():
        file.write(_packed_text(key))
        if isinstance(value, dict):
            _write_map(file, value, tensors, values)
        else:
            _write_tensor(file, tensors[value], next(values))


def _write_tensor(file: BinaryIO, tensor: LazyTensor, pieces: Iterable[memoryview]) -> None:
    size = DTYPES[tensor.dtype].carrier.itemsize
    if tensor.nbytes <= _CHUNK_BYTES:
        file.write(_array_header(tensor.dtype, tensor.shape))
        for piece in pieces:
            file.write(piece)
        return
    count, most = math.prod(tensor.shape), _CHUNK_BYTES // size
    file.write(b"\x83" + _packed_text(_CHUNKED) + b"\xc3" + _packed_text("shape"))
    file.write(_marker(len(tensor.shape), 0x80, 0x0F, _MAPS))
    for index, axis in enumerate(tensor.shape):
        file.write(_packed_text(str(index)) + _packed_size(axis))
    lengths = [min(most, count - start) for start in range(0, count, most)]
    file.write(_packed_text("chunks") + _marker(len(lengths), 0x80, 0x0F, _MAPS))
    chunk, left = 0, 0
    for piece in pieces:
        while piece.nbytes:
            if not left:
                file.write(_packed_text(str(chunk)) + _array_header(tensor.dtype, (lengths[chunk],)))
                left, chunk = lengths[chunk] * size, chunk + 1
            file.write(piece[:left])
            piece, left = piece[left:], max(0, left - piece.nbytes)


def _array_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return everything of an array before its bytes."""
    sizes = b"".join(map(_packed_size, shape))
    nbytes = math.prod(shape) * DTYPES[dtype].carrier.itemsize
    head = b"\x93" + _marker(len(shape), 0x90, 0x0F, _LISTS) + sizes
    head += _packed_text(DTYPES[dtype].torch) + _marker(nbytes, -1, 0, _BYTES)
    whole = len(head) + nbytes
    fixed = next((marker for marker, length in _FIXED_EXTENSIONS.items() if length == whole), None)
    start = _marker(whole, -1, 0, _EXTENSIONS) if fixed is None else bytes((fixed,))
    return start + bytes((_ARRAY,)) + head


def _packed_text(text: str) -> bytes:
    data = text.encode()
    return _marker(len(data), 0xA0, 0x1F, _TEXTS) + data


def _packed_size(size: int) -> bytes:
    return bytes((size,)) if size < 0x80 else _marker(size, -1, 0, _UNSIGNED)


def _marker(length: int, fixed: int, mask: int, sized: Mapping[int, str]) -> bytes:
    """Return the shortest marker of a value with its length."""
    if fixed >= 0 and length <= mask:
        return bytes((fixed | length,))
    marker, kind = next(item for item in sized.items() if length < 256 ** struct.calcsize(item[1]))
    return bytes((marker,)) + struct.pack(kind, length)
