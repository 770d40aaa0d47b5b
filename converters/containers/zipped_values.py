"""The pickle and the values in the zip archives of ``torch.save`` and TorchScript."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit_hub.converters.containers.archive import Member, read_member, stored_array
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pickles import Pickle, Storage, storage_dtype, storage_itemsize
from vit_hub.converters.tensors import Array
from vit_hub.errors import CheckpointError
from vit_hub.untrusted import NAME_LENGTH, TENSORS

__all__ = ["joined", "read_values", "unpickled"]


class _ZippedValues:
    """The members ``ROOT/data.pkl`` and ``ROOT/data/KEY`` of an archive.

    Raises:
        CheckpointError: the values have another byte order.
    """

    def __init__(self, file: MappedFile, members: Mapping[str, Member]) -> None:
        self._file, self._members = file, members
        self._root = next(name for name in members if name.rpartition("/")[2] == "data.pkl").rpartition("/")[0]
        order = members.get(f"{self._root}/byteorder")
        if order is not None and bytes(read_member(file, order, 16)) != b"little":
            raise CheckpointError(
                f"{file.path}: its values are not little-endian", hint="save the file again on another machine"
            )

    def pickled(self) -> bytes:
        """Return the pickle."""
        return bytes(read_member(self._file, self._members[f"{self._root}/data.pkl" if self._root else "data.pkl"]))

    def storage(self, identity: Any) -> Storage:
        """Return the values that a persistent id of the pickle stands for.

        Raises:
            ValueError: there are none, or fewer than it says.
        """
        kind, class_, key, _, size = identity
        dtype = storage_dtype(class_)
        if kind != "storage" or type(size) is not int or not isinstance(key, (str, int)):
            raise ValueError("a reference to no values")
        if isinstance(key, str) and NAME_LENGTH.exceeded(len(key)):
            raise ValueError("the name of values is too long")
        name = f"{self._root}/data/{key}"
        member = self._members.get(name)
        if member is None:
            raise ValueError(f"no values {name!r} in the archive")
        nbytes = size * storage_itemsize(dtype)
        if size < 0 or nbytes > member.size:
            raise ValueError(f"{name!r} holds {member.size:,} bytes, too few for {size:,} values of {dtype}")
        return Storage(dtype, nbytes, partial(read_values, self._file, member))


def unpickled(file: MappedFile, members: Mapping[str, Member], pickle: type[Pickle] = Pickle) -> object:
    """Return what the pickle of an archive stands for, its tensors as views of the archive's values.

    Raises:
        Refused: the pickle would run code.
        CheckpointError: the values have another byte order.
        Exception: of any kind, if it is damaged.
    """
    values = _ZippedValues(file, members)
    return pickle(values.storage).load(io.BytesIO(values.pickled()))


def joined(path: Path, names: Sequence[str], separator: str, before: int) -> str:
    """Return the name of a tensor in nested containers, whose pickle can repeat them without end.

    Args:
        path: the file.
        names: those of the containers, and of the tensor in the last one.
        separator: between them.
        before: number of tensors found already.

    Raises:
        CheckpointError: the name is too long, or there are too many tensors.
    """
    too_long, too_many = NAME_LENGTH.exceeded(sum(map(len, names))), TENSORS.exceeded(before + 1)
    if too_long or too_many:
        problem = f"the name of a tensor {too_long}" if too_long else f"it {too_many}"
        raise CheckpointError(f"{path}: {problem}", hint="save the weights alone, as safetensors")
    return separator.join(names)


def read_values(file: MappedFile, member: Member, offset: int, dtype: np.dtype[np.generic], count: int) -> Array:
    """Return values of a member, from an offset in bytes; a view of the mapped file unless it is compressed.

    Raises:
        CheckpointError: the contents do not match the directory.
    """
    if not member.compressed:
        return stored_array(file, member, offset, dtype, (count,))
    values: Array = np.frombuffer(read_member(file, member), dtype, count, offset)
    return values
