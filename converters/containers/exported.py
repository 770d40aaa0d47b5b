"""The weights in archives of ``torch.export.save`` (``.pt2``), read without the program that they hold.

Archives of today have a member a tensor, and a JSON file of their names, dtypes and shapes; those of before torch 2.8
hold a file of ``torch.save``.
Source: torch/export/pt2_archive/{constants,_package}.py, torch/_export/serde/schema.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from vit_hub.converters.containers.archive import Member, read_member, read_members
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pickles import (
    Storage,
    StoredTensor,
    Unreadable,
    explained,
    strided_tensor,
)
from vit_hub.converters.containers.zipped_values import read_values, unpickled
from vit_hub.errors import CheckpointError
from vit_hub.untrusted import parse_json

__all__ = ["is_exported", "read_exported"]

_CONFIG = "_weights_config.json"
_OLD_STATE = "serialized_state_dict.pt"
_DAMAGED = "the file is damaged: fetch or export it again"
# Numbers of dtypes in the JSON file.
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
}


def is_exported(names: Iterable[str]) -> bool:
    """Return whether a zip archive with members of these names comes from ``torch.export.save``."""
    return any(name.endswith(_CONFIG) or name.rpartition("/")[2] == _OLD_STATE for name in names)


def read_exported(file: MappedFile, members: Mapping[str, Member]) -> dict[str, StoredTensor | Unreadable]:
    """Return the parameters and buffers of an exported program, views of the mapped file where they are not compressed.

    Raises:
        CheckpointError: the archive is damaged, or holds no weights.
        UnsafeCheckpointError: a pickle in it would run code.
    """
    configs = [name for name in members if name.endswith(_CONFIG)]
    with explained(
        file.path, "not a readable archive of torch.export", refused="export the model again", damaged=_DAMAGED
    ):
        if not configs:
            return _old_state(file, members)
        if len(configs) > 1:
            raise CheckpointError(f"{file.path}: holds {len(configs)} models", hint="save one a file")
        config = parse_json(bytes(read_member(file, members[configs[0]])))["config"]
        folder = configs[0].rpartition("/")[0]
        return {name: _tensor(file, members, folder, entry) for name, entry in config.items()}


def _tensor(file: MappedFile, members: Mapping[str, Member], folder: str, entry: Any) -> StoredTensor | Unreadable:
    member = members[f"{folder}/{entry['path_name']}"]
    if entry.get("use_pickle"):
        part = _inside(file, member)
        found = unpickled(part, read_members(part))
    else:
        about = entry["tensor_meta"]
        dtype = _DTYPES.get(about["dtype"], "other")
        sizes, strides = (tuple(size["as_int"] for size in about[key]) for key in ("sizes", "strides"))
        storage = Storage(dtype, member.size, partial(read_values, file, member))
        found = strided_tensor(storage, about["storage_offset"]["as_int"], sizes, strides)
    if not isinstance(found, (StoredTensor, Unreadable)):
        raise ValueError("a tensor is expected")
    return found


def _old_state(file: MappedFile, members: Mapping[str, Member]) -> dict[str, StoredTensor | Unreadable]:
    name = next(name for name in members if name.rpartition("/")[2] == _OLD_STATE)
    part = _inside(file, members[name])
    root = unpickled(part, read_members(part))
    if not isinstance(root, dict):
        raise ValueError("a state dict is expected")
    return {str(name): found for name, found in root.items() if isinstance(found, (StoredTensor, Unreadable))}


def _inside(file: MappedFile, member: Member) -> MappedFile:
    if member.compressed:
        raise CheckpointError(f"{file.path}: member {member.name!r} is compressed", hint="export the model again")
    return file.part(member.offset, member.size)
