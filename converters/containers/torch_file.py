"""PyTorch's ``torch.save`` files, read without executing their pickles and written one tensor at a time."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from vit_hub.converters.containers.archive import Member, check_expansion, read_members, stored_zip
from vit_hub.converters.containers.exported import is_exported, read_exported
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pickles import (
    Inert,
    Pickle,
    PickleStream,
    Storage,
    StoredTensor,
    Unreadable,
    explained,
    storage_dtype,
    storage_itemsize,
)
from vit_hub.converters.containers.pieces import Pieces
from vit_hub.converters.containers.torchscript import is_torchscript, read_torchscript
from vit_hub.converters.containers.zipped_values import joined, unpickled
from vit_hub.converters.tensors import DTYPES, Array, LazyTensor
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["EMBEDDED", "flatten", "read_state", "read_torch", "write_torch"]

_RESAVE = "on a machine you trust, save the weights as safetensors"
_DAMAGED = f"the file is damaged: download it again, or {_RESAVE}"
# Checkpoints nest three or four levels; these bounds end the walk through an object that contains itself.
_MAX_DEPTH = 32
_MAX_OBJECTS = 1_000_000
EMBEDDED = ("meta",)
"""Keys under which files keep plain data about themselves: mmengine's."""
_MAX_EMBEDDED = 4_000_000
# What a file older than the zip format begins with.
_MAGIC = 0x1950A86A20F9469CFC6C


def read_torch(path: Path) -> tuple[dict[str, LazyTensor], dict[str, Unreadable], dict[str, dict[str, Any]]]:
    """Return the tensors of a ``torch.save`` file, of TorchScript or of an exported program.

    Names of nested dicts and lists are joined by ``/``.

    They are views of the mapped file, but for compressed archives. What else the file holds beside them is read as
    plain data and left out.

    Returns:
        The tensors, those without plain values (quantized, sparse), each with what it is, and the plain data that the
        file keeps about itself: that of :data:`EMBEDDED`, by key.

    Raises:
        CheckpointError: the file is damaged or holds no named tensors.
        UnsafeCheckpointError: reading it would run code.
    """
    file, members = _opened(path)
    if is_exported(members):
        return (*flatten(path, read_exported(file, members), file.size), {})
    if is_torchscript(members):
        return (*read_torchscript(file, members), {})
    root = _unpickled(file, members)
    flat = flatten(path, root, sum(member.size for member in members.values()) or file.size)
    return (*flat, _embedded(root))


def read_state(path: Path) -> object:
    """Return what a ``torch.save`` file holds as plain data, in which tensors are only described.

    Raises:
        CheckpointError: the file is damaged.
        UnsafeCheckpointError: reading it would run code.
    """
    return _unpickled(*_opened(path))


def _opened(path: Path) -> tuple[MappedFile, dict[str, Member]]:
    """Return a file and its members; none, if it is older than the zip format."""
    file = MappedFile(path)
    if file.bytes(0, 2) == b"PK":
        return file, read_members(file)
    if file.bytes(257, 5) == b"ustar":
        raise UnsafeCheckpointError(f"{path}: PyTorch's tar format of before 2017 cannot be read safely", hint=_RESAVE)
    return file, {}


def _unpickled(file: MappedFile, members: dict[str, Member]) -> object:
    with explained(file.path, "not a readable PyTorch file", refused=_RESAVE, damaged=_DAMAGED):
        return unpickled(file, members) if members else _before_zip(file)


def _embedded(root: object) -> dict[str, dict[str, Any]]:
    """Return the plain data that a file keeps about itself, as JSON would give it back, without what is none."""
    found: dict[str, dict[str, Any]] = {}
    room = _MAX_EMBEDDED
    for key in EMBEDDED:
        about = root.get(key) if isinstance(root, dict) else None
        for name, value in about.items() if isinstance(about, dict) else ():
            pieces: list[str] = []
            try:
                # Piece by piece: a small pickle can name the same long list many times.
                for piece in json.JSONEncoder(allow_nan=False).iterencode(value):
                    pieces.append(piece)
                    room -= len(piece)
                    if room < 0:
                        return found
            # Dates, tensors, or a dict that contains itself.
            except (TypeError, ValueError, RecursionError):
                continue
            found.setdefault(key, {})[str(name)] = json.loads("".join(pieces))
    return found


def _before_zip(file: MappedFile) -> object:
    """Return the contents of a file of before the zip format.

    It holds pickles of magic number, protocol, system, object and keys of the storages, then each storage: its number
    of values in 8 bytes, and the values.

    Raises:
        Refused: a pickle would run code.
        CheckpointError: another byte order.
        Exception: of any kind, if it is damaged.
    """
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> object:
        if identity[0] == "module":
            return identity[1]
        kind, class_, key, _, size, view = identity
        dtype = storage_dtype(class_)
        if kind != "storage" or type(size) is not int or size < 0 or not isinstance(key, (str, int)):
            raise ValueError("a reference to no values")
        whole = storages.setdefault(str(key), Storage(dtype, size * storage_itemsize(dtype), _unplaced))
        if view is None:
            return whole
        _, offset, length = view
        start, nbytes = offset * storage_itemsize(dtype), length * storage_itemsize(dtype)
        if min(start, nbytes) < 0 or start + nbytes > whole.nbytes:
            raise ValueError("a part of values that reaches beyond them")
        return Storage(dtype, nbytes, lambda at, form, count: whole.read(start + at, form, count))

    with file.path.open("rb") as opened:
        stream = PickleStream(opened, file.size)
        first = Pickle().load(stream)
        if isinstance(first, (dict, Inert)):
            raise CheckpointError(
                f"{file.path}: a plain pickle, not a file of torch.save (detectron2's .pkl files are such)",
                hint="on a machine you trust, load it with pickle, and save its arrays as tensors, with torch.save or "
                "as safetensors",
            )
        if first != _MAGIC:
            raise ValueError("a plain pickle")
        Pickle().load(stream)
        system = Pickle().load(stream)
        if isinstance(system, dict) and not system.get("little_endian", True):
            raise CheckpointError(
                f"{file.path}: its values are not little-endian", hint="save the file again on another machine"
            )
        root = Pickle(storage).load(stream)
        keys: Any = Pickle().load(stream)
        offset = stream.tell()
    for key in keys:
        found = storages[str(key)]
        (count,) = struct.unpack("<q", file.bytes(offset, 8))
        nbytes = count * storage_itemsize(found.dtype)
        if count < 0 or nbytes < found.nbytes or offset + 8 + nbytes > file.size:
            raise ValueError(f"the values {key!r} are cut short")
        found.read = partial(_from_file, file, offset + 8)
        offset += 8 + nbytes
    if any(storage.read is _unplaced for storage in storages.values()):
        raise ValueError("values are missing")
    return root


def _unplaced(offset: int, dtype: np.dtype[np.generic], count: int) -> Array:
    raise ValueError("values are missing")


def _from_file(file: MappedFile, start: int, offset: int, dtype: np.dtype[np.generic], count: int) -> Array:
    return file.array(start + offset, dtype, (count,))


def flatten(path: Path, root: object, stored: int) -> tuple[dict[str, LazyTensor], dict[str, Unreadable]]:
    """Return the tensors below a dict, names of nested dicts and lists joined by ``/``.

    Args:
        stored: bytes that the file has for values.

    Raises:
        CheckpointError: no dict, none in it, two of one name, or nested without end.
        UnsafeCheckpointError: there are only whole modules.
    """
    if isinstance(root, Inert) and not root.mapping:
        raise _whole_module(path, root)
    if not isinstance(root, (dict, Inert)):
        kind = "Tensor" if isinstance(root, (StoredTensor, Unreadable)) else type(root).__name__
        raise CheckpointError(f"{path}: holds a bare {kind}, not named tensors", hint="save a state_dict()")
    tensors: dict[str, LazyTensor] = {}
    unreadable: dict[str, Unreadable] = {}
    modules: list[Inert] = []
    for count, (names, value) in enumerate(_walk(root, ())):
        if len(names) > _MAX_DEPTH or count > _MAX_OBJECTS:
            raise CheckpointError(
                f"{path}: nested deeper than {_MAX_DEPTH} levels, or more than {_MAX_OBJECTS:,} objects",
                hint=_RESAVE,
            )
        if isinstance(value, (StoredTensor, Unreadable)):
            name = joined(path, names, "/", len(tensors) + len(unreadable))
            if name in tensors or name in unreadable:
                raise CheckpointError(f"{path}: two tensors are named {name!r}", hint="rename one and save again")
        if isinstance(value, Unreadable):
            unreadable[name] = value
        elif isinstance(value, StoredTensor):
            tensors[name] = value.lazy()
            check_expansion(path, f"tensor {name!r}", tensors[name].nbytes, stored)
        elif isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" in value.state:
            modules.append(value)
    if not tensors and modules:
        raise _whole_module(path, modules[0])
    if not tensors and not unreadable:
        raise CheckpointError(f"{path}: holds no tensors", hint="save a state_dict()")
    return tensors, unreadable


def _whole_module(path: Path, found: Inert) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{path}: refused: holds a whole object, and making it would run {found.kind}",
        hint="on a machine you trust, save its state_dict(), as safetensors or with torch.save",
    )


def _walk(value: object, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield everything below ``value``, containers included, so that the caller can count and stop."""
    yield names, value
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, Inert):
        items = value.mapping.items()
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)) and not isinstance(value, Unreadable):
        items = enumerate(value)
    for key, item in items:
        yield from _walk(item, (*names, str(key)))


class _Storage:
    """The values of one tensor, stored in the member ``data/<key>``."""

    def __init__(self, key: int, tensor: LazyTensor) -> None:
        self.key = str(key)
        self.class_name = DTYPES[tensor.dtype].storage
        self.size = math.prod(tensor.shape)


class _Tensor:
    """A tensor that is pickled as torch pickles a contiguous one."""

    def __init__(self, key: int, tensor: LazyTensor) -> None:
        self.storage = _Storage(key, tensor)
        self.dtype = tensor.dtype
        self.shape = tensor.shape
        self.strides = tuple(
            math.prod(max(1, size) for size in tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        import torch
        from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3

        arguments: tuple[Any, ...] = (self.storage, 0, self.shape, self.strides, False, OrderedDict())
        if self.storage.class_name == "UntypedStorage":
            return _rebuild_tensor_v3, (*arguments, getattr(torch, DTYPES[self.dtype].torch))
        return _rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        import torch

        return "storage", getattr(torch, obj.class_name), obj.key, "cpu", obj.size


def write_torch(
    path: Path, tensors: Mapping[str, LazyTensor], pieces: Pieces, embedded: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the file that ``torch.save`` writes for plain tensors; a ``/`` in a name opens a nested dict.

    ``torch.save`` itself needs all tensors in memory at once. ``embedded`` is plain data to keep beside them, by key.

    Raises:
        CheckpointError: one name is both a tensor and a dict of tensors.
        OSError: it cannot be written.
    """
    root: dict[str, Any] = dict(embedded)
    for key, (name, tensor) in enumerate(tensors.items()):
        *parents, last = name.split("/")
        level = root
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                break
        if not isinstance(level, dict) or last in level:
            raise CheckpointError(f"{path}: {name!r} would be both a tensor and a dict of tensors")
        level[last] = _Tensor(key, tensor)
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(root)
    with stored_zip(path) as archive:
        archive.add("archive/data.pkl", [pickled.getvalue()])
        archive.add("archive/byteorder", [b"little"])
        for key, (_, parts) in enumerate(groupby(pieces(tensors), key=itemgetter(0))):
            archive.add(f"archive/data/{key}", (piece for _, piece in parts))
        archive.add("archive/version", [b"3\n"])
