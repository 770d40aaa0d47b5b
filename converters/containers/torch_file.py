"""PyTorch's ``torch.save`` files, read without executing their pickles and written one tensor at a time."""

from __future__ import annotations

import argparse
import io
import math
import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vit_hub.converters.containers.archive import Member, check_expansion, read_member, read_members, stored_zip
from vit_hub.converters.containers.mapped import MappedFile, Pieces, Renewed
from vit_hub.converters.containers.torchscript import is_torchscript, read_torchscript
from vit_hub.converters.tensors import DTYPES, DTYPES_HINT, TORCH_DTYPES, Array, LazyTensor
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["read_torch", "write_torch"]

_RESAVE = "on a machine you trust, save the weights as safetensors"
# Checkpoints nest three or four levels; these bounds end the walk through an object that contains itself.
_MAX_DEPTH = 32
_MAX_OBJECTS = 1_000_000
# Files older than the zip format begin with pickles of: magic number, protocol, system, object, keys.
_OLD_PICKLES = 5
_HARMLESS = re.compile(
    r"torch\.|collections\.|argparse\.Namespace$|_codecs\.encode$|builtins\.(set|bytearray|complex)$"
)


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a ``torch.save`` file, names of nested dicts and lists joined by ``/``, or of TorchScript.

    In the zip format they are views of the mapped file; older and compressed files are read as a whole.

    Raises:
        CheckpointError: the file is damaged or holds no named tensors.
        UnsafeCheckpointError: reading it would run code.
    """
    file = MappedFile(path)
    members: dict[str, Member] = {}
    if file.bytes(0, 2) == b"PK":
        members = read_members(file)
        if is_torchscript(members):
            return read_torchscript(file, members)
    elif file.bytes(257, 5) == b"ustar":
        raise UnsafeCheckpointError(f"{path}: PyTorch's tar format of before 2017 cannot be read safely", hint=_RESAVE)
    # torch.load maps only files that it opens by path, and takes any with this suffix for safetensors.
    mapped = bool(members) and not any(m.compressed for m in members.values()) and path.suffix != ".safetensors"
    stamp = _stamp(path)

    def load() -> dict[str, torch.Tensor]:
        if _stamp(path) != stamp:
            raise CheckpointError(f"{path}: the file was changed while it was read", hint="open it again")
        return _flatten(path, _load(file, members, mapped))

    state = load()
    largest = sum(member.size for member in members.values()) or file.size
    tensors: dict[str, LazyTensor] = {}
    renewed = Renewed(load, file.size)

    def take(nbytes: int) -> dict[str, torch.Tensor]:
        if not mapped:
            return state
        file.check_unchanged()
        return renewed.take(nbytes)

    for name, tensor in state.items():
        tensors[name] = _describe(path, name, tensor, largest, take)
    return tensors


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _load(file: MappedFile, members: Mapping[str, Member], mapped: bool) -> object:
    import torch

    try:
        # Training checkpoints hold the arguments of their command line: plain attributes, without behaviour.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            if mapped:
                return torch.load(file.path, map_location="cpu", mmap=True, weights_only=True)
            with file.path.open("rb") as stream:
                return torch.load(stream, map_location="cpu", mmap=False, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(file, members, str(error)) from error
    # A damaged pickle can raise anything.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"{file.path}: not a readable PyTorch file: {reason}", hint="the file is damaged: download it again"
        ) from error


def _refusal(file: MappedFile, members: Mapping[str, Member], message: str) -> CheckpointError:
    """Return the error for a pickle that torch's safe unpickler refused."""
    pickled = next((member for name, member in members.items() if name.rpartition("/")[2] == "data.pkl"), None)
    if pickled:
        scanned = _globals(io.BytesIO(read_member(file, pickled)), 1)
    else:
        with file.path.open("rb") as stream:
            scanned = _globals(stream, _OLD_PICKLES)
    refused = re.findall(r"GLOBAL ([\w.]+\w)", message) + [name for name in scanned if not _HARMLESS.match(name)]
    if refused:
        return UnsafeCheckpointError(
            f"{file.path}: refused: reading it would run {', '.join(dict.fromkeys(refused))}", hint=_RESAVE
        )
    reason = re.search(r"WeightsUnpickler error: (.*)", message)
    return CheckpointError(
        f"{file.path}: its pickle is damaged or not supported by the safe reader: "
        f"{reason[1] if reason else message.splitlines()[0]}",
        hint=f"download the file again, or {_RESAVE}",
    )


def _globals(stream: BinaryIO, pickles: int) -> list[str]:
    """Return the names of the Python objects that pickles import, without executing them."""
    found: list[str] = []
    try:
        for _ in range(pickles):
            strings: list[str] = []
            memo: dict[int, str] = {}
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    memo[len(memo) if argument is None else argument] = strings[-1] if strings else ""
                elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                    strings.append(memo.get(int(argument or 0), ""))
                elif isinstance(argument, str):
                    strings.append(argument)
    # The scan only improves an error message: the file is refused anyway.
    except Exception:
        pass
    return found


def _flatten(path: Path, root: object) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(root, dict):
        raise CheckpointError(
            f"{path}: holds a bare {type(root).__name__}, not named tensors", hint="save a state_dict()"
        )
    flat: dict[str, torch.Tensor] = {}
    for count, (names, value) in enumerate(_walk(root, ())):
        if len(names) > _MAX_DEPTH or count > _MAX_OBJECTS:
            raise CheckpointError(
                f"{path}: nested deeper than {_MAX_DEPTH} levels, or more than {_MAX_OBJECTS:,} objects",
                hint=_RESAVE,
            )
        if isinstance(value, torch.Tensor):
            name = "/".join(names)
            if name in flat:
                raise CheckpointError(f"{path}: two tensors are named {name!r}", hint="rename one and save again")
            flat[name] = value
    if not flat:
        raise CheckpointError(f"{path}: holds no tensors", hint="save a state_dict()")
    return flat


def _walk(value: object, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield everything below ``value``, containers included, so that the caller can count and stop."""
    yield names, value
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield from _walk(item, (*names, str(key)))


def _describe(
    path: Path, name: str, tensor: torch.Tensor, largest: int, take: Callable[[int], dict[str, torch.Tensor]]
) -> LazyTensor:
    import torch

    where = f"{path}: tensor {name!r}"
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        raise CheckpointError(f"{where} is sparse, nested or without values", hint="only plain tensors are supported")
    dtype = TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise CheckpointError(f"{where} has dtype {tensor.dtype}", hint=DTYPES_HINT)
    if tensor.untyped_storage().nbytes() > largest:
        raise CheckpointError(f"{where} is larger than the file", hint="the file is damaged: download it again")
    check_expansion(path, f"tensor {name!r}", tensor.nbytes, largest)
    return LazyTensor(dtype, tuple(tensor.shape), partial(_read, take, name, dtype, tensor.nbytes))


def _read(take: Callable[[int], dict[str, torch.Tensor]], name: str, dtype: str, nbytes: int) -> Array:
    import torch

    tensor = take(nbytes)[name]
    # numpy has no bfloat16.
    array: Array = (tensor.view(torch.int16) if dtype == "BF16" else tensor).numpy(force=True)
    return array.view(np.uint16) if dtype == "BF16" else array


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
        self.shape = tensor.shape
        self.strides = tuple(
            math.prod(max(1, size) for size in tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        return _rebuild_tensor_v2, (self.storage, 0, self.shape, self.strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        import torch

        return "storage", getattr(torch, obj.class_name), obj.key, "cpu", obj.size


def write_torch(path: Path, tensors: Mapping[str, LazyTensor], pieces: Pieces) -> None:
    """Write the file that ``torch.save`` writes for plain tensors; a ``/`` in a name opens a nested dict.

    ``torch.save`` itself needs all tensors in memory at once.

    Raises:
        CheckpointError: one name is both a tensor and a dict of tensors.
        OSError: it cannot be written.
    """
    root: dict[str, Any] = {}
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
