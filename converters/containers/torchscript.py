"""The weights of TorchScript archives, read without executing the program that they hold.

An archive is a zip of code, constants and ``data.pkl``, the pickled module. The pickle names classes of the program
(``__torch__.*``), here replaced by plain holders of attributes, and a few functions of torch that build tensors, also
replaced; every other name is refused. Names are those of ``torch.jit.load(file).state_dict()``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vit_hub.converters.containers.archive import Member, check_expansion, read_member
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.tensors import DTYPES, DTYPES_HINT, Array, LazyTensor
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["is_torchscript", "read_torchscript"]

_DAMAGED = "the file is damaged or malicious: download it again"
_STORAGES = {dtype.storage: name for name, dtype in DTYPES.items()}
# Modules nest about ten levels; these bounds end the walk through one that contains itself.
_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000


def is_torchscript(members: Mapping[str, Member]) -> bool:
    """Return whether a zip archive holds a program beside its pickle."""
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in members)


class _Module:
    """The attributes of an object of any class of the program, without behaviour."""

    def __new__(cls, *arguments: object) -> _Module:
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        self.attributes: dict[Any, Any] = {}

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


@dataclass(frozen=True)
class _Storage:
    dtype: str
    size: int
    member: Member


class _Unpickler(pickle.Unpickler):
    """An unpickler of holders, dicts, lists and lazy tensors that refuses every other name."""

    def __init__(self, data: bytes, file: MappedFile, root: str, members: Mapping[str, Member]) -> None:
        super().__init__(io.BytesIO(data))
        self._file, self._root, self._members = file, root, members
        self._known: dict[str, Callable[..., object]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "collections.OrderedDict": dict,
            **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("int", "double", "bool", "tensor")},
            "torch.jit._pickle.restore_type_tag": _first,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name.endswith("Storage"):
            raise CheckpointError(f"{self._file.path}: holds values of torch.{name}", hint=DTYPES_HINT)
        found = self._known.get(f"{module}.{name}")
        if found is None:
            raise UnsafeCheckpointError(
                f"{self._file.path}: refused: this TorchScript archive asks for {module}.{name}",
                hint="on a machine you trust, load it with torch.jit.load and save its state_dict() as safetensors",
            )
        return found

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _location, size = reference
        name = f"{self._root}/data/{key}"
        member = self._members.get(name)
        if kind != "storage" or dtype not in DTYPES or not isinstance(size, int) or member is None:
            raise ValueError(f"no values {name!r} in the archive")
        if member.compressed:
            raise CheckpointError(
                f"{self._file.path}: member {name!r} is compressed", hint="save the file again with torch"
            )
        if size < 0 or size * DTYPES[dtype].carrier.itemsize > member.size:
            raise ValueError(f"{name!r} holds {member.size:,} bytes, too few for {size:,} values of {dtype}")
        return _Storage(dtype, size, member)

    def _tensor(
        self, storage: object, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
    ) -> object:
        """Replace torch._utils._rebuild_tensor_v2: a strided view of a storage."""
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ValueError("a tensor without values")
        if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
            raise ValueError(f"shape {shape}, strides {strides} and offset {offset} must be whole numbers")
        count = math.prod(shape)
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else 0
        if offset + span > storage.size:
            raise ValueError(f"shape {shape} with strides {strides} at {offset} reaches beyond {storage.size:,} values")
        check_expansion(self._file.path, "a tensor", count * DTYPES[storage.dtype].carrier.itemsize, self._file.size)
        read = partial(_read, self._file, storage, offset, span, tuple(shape), tuple(strides))
        return LazyTensor(storage.dtype, tuple(shape), read)


def _first(value: object, *_: object) -> object:
    return value


def _read(
    file: MappedFile, storage: _Storage, offset: int, span: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Array:
    dtype = DTYPES[storage.dtype].carrier
    flat = file.array(storage.member.offset + offset * dtype.itemsize, dtype, (span,))
    return np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])


def read_torchscript(file: MappedFile, members: Mapping[str, Member]) -> dict[str, LazyTensor]:
    """Return the parameters and buffers of a TorchScript archive as views of the mapped file.

    Raises:
        CheckpointError: the archive is damaged, compressed or without parameters.
        UnsafeCheckpointError: the pickle names something that weights do not need.
    """
    root, _, _ = next(name for name in members if name.rpartition("/")[2] == "data.pkl").rpartition("/")
    order = members.get(f"{root}/byteorder")
    if order is not None and bytes(read_member(file, order, 16)) != b"little":
        raise CheckpointError(
            f"{file.path}: its values are not little-endian", hint="save the file again on another machine"
        )
    data = bytes(read_member(file, members[f"{root}/data.pkl"]))
    try:
        _check_memo(data)
        module = _Unpickler(data, file, root, members).load()
    except CheckpointError:
        raise
    # A damaged pickle can raise anything.
    except Exception as error:
        raise CheckpointError(f"{file.path}: not a readable TorchScript archive: {error}", hint=_DAMAGED) from error
    tensors: dict[str, LazyTensor] = {}
    for count, (names, value) in enumerate(_walk(module, ())):
        if len(names) > _MAX_DEPTH or count > _MAX_OBJECTS:
            raise CheckpointError(
                f"{file.path}: modules nested deeper than {_MAX_DEPTH} levels or more than {_MAX_OBJECTS:,} objects",
                hint=_DAMAGED,
            )
        if isinstance(value, LazyTensor):
            tensors[".".join(names)] = value
    if not tensors:
        raise CheckpointError(
            f"{file.path}: a TorchScript archive whose module has no parameters",
            hint="a frozen module keeps them among the constants of its program: save the module before freezing it",
        )
    return tensors


def _check_memo(data: bytes) -> None:
    """Refuse memo numbers beyond what the pickle can use: the unpickler allocates that many entries."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"memo {argument} in a pickle of {len(data):,} bytes")


def _walk(value: object, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the attributes of modules below ``value``; as in a state dict, lists and dicts are not entered."""
    yield names, value
    if isinstance(value, _Module):
        for name, item in value.attributes.items():
            yield from _walk(item, (*names, str(name)))
