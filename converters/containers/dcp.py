"""Folders of torch.distributed.checkpoint: ``.metadata``, and the values in files of each process (``*.distcp``).

``.metadata`` pickles the names, dtypes, shapes and chunks of all tensors; each chunk is a ``torch.save`` file of its
own at an offset of some process' file.
Source: torch/distributed/checkpoint/{metadata,filesystem}.py.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit_hub.converters.containers.archive import read_members
from vit_hub.converters.containers.folder import is_name
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pickles import (
    Inert,
    Name,
    Pickle,
    PickleStream,
    StoredTensor,
    Unreadable,
    explained,
)
from vit_hub.converters.containers.zipped_values import unpickled
from vit_hub.converters.tensors import DTYPES, DTYPES_HINT, TORCH_DTYPES, Array, LazyTensor
from vit_hub.errors import CheckpointError

__all__ = ["METADATA", "read_dcp"]

METADATA = ".metadata"
_DAMAGED = "the folder is damaged or incomplete: copy it again"
# One a process, in practice.
_MAX_CHUNKS = 4096
# Axes along which a tensor is in parts.
_MAX_SPLIT = 4

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Chunk:
    """A block of a tensor, and where its file of ``torch.save`` lies."""

    offsets: Shape
    shape: Shape
    file: MappedFile
    start: int
    length: int


def read_dcp(folder: Path) -> tuple[dict[str, LazyTensor], dict[str, Unreadable], tuple[Path, ...]]:
    """Return the tensors of a folder, those of other dtypes, and its files; levels of nested dicts are joined by ``/``.

    A tensor that is one chunk is a view of the mapped file; of several it is put together when it is read.

    Raises:
        CheckpointError: damaged, incomplete, or compressed.
        UnsafeCheckpointError: the metadata ask for a function.
    """
    path = folder / METADATA
    what = "not the metadata of torch.distributed.checkpoint"
    file = MappedFile(path)
    with explained(path, what, refused=_DAMAGED, damaged=_DAMAGED):
        return _tensors(folder, _state(Pickle().load(PickleStream(file.stream(), file.size)), "Metadata"))


def _state(value: object, kind: str) -> dict[str, Any]:
    """Return the attributes of an object of torch.distributed.checkpoint."""
    if not isinstance(value, Inert) or value.kind.name != kind or not isinstance(value.state, dict):
        raise ValueError(f"a {kind} is expected")
    return value.state


def _tensors(
    folder: Path, root: dict[str, Any]
) -> tuple[dict[str, LazyTensor], dict[str, Unreadable], tuple[Path, ...]]:
    places: dict[tuple[str, Shape], dict[str, Any]] = {}
    for index, place in root["storage_data"].items():
        found = _state(index, "MetadataIndex")
        if found.get("offset") is not None:
            places[found["fqn"], _shape(found["offset"])] = _state(place, "_StorageInfo")
    files: dict[str, MappedFile] = {}
    tensors: dict[str, LazyTensor] = {}
    unreadable: dict[str, Unreadable] = {}
    for name, about in root["state_dict_metadata"].items():
        if isinstance(about, Inert) and about.kind.name == "TensorStorageMetadata":
            full = _full_name(name, root.get("planner_data"))
            if full in tensors or full in unreadable:
                raise ValueError(f"two tensors are named {full!r}")
            made = _tensor(folder, name, _state(about, "TensorStorageMetadata"), places, files)
            if isinstance(made, Unreadable):
                unreadable[full] = made
            else:
                tensors[full] = made
    if not tensors and not unreadable:
        raise CheckpointError(f"{folder}: holds no tensors", hint=_DAMAGED)
    return tensors, unreadable, (folder / METADATA, *(file.path for file in files.values()))


def _full_name(name: str, planned: object) -> str:
    """Return the name with the levels that the saved dicts had."""
    levels = planned.get(name) if isinstance(planned, dict) else None
    if isinstance(levels, tuple) and levels and all(isinstance(level, (str, int)) for level in levels):
        return "/".join(map(str, levels))
    return name


def _shape(value: object) -> Shape:
    if not isinstance(value, tuple) or any(type(size) is not int or size < 0 for size in value):
        raise ValueError("a shape of whole numbers is expected")
    return value


def _tensor(
    folder: Path,
    name: str,
    about: dict[str, Any],
    places: dict[tuple[str, Shape], dict[str, Any]],
    files: dict[str, MappedFile],
) -> LazyTensor | Unreadable:
    properties = about["properties"]
    state = properties.state if isinstance(properties, Inert) else None
    # A tuple, whose first item is the dtype, or attributes.
    kind = state[0] if isinstance(state, tuple) else _state(properties, "TensorProperties")["dtype"]
    if not isinstance(kind, Name):
        raise ValueError(f"tensor {name!r} has no dtype")
    dtype = TORCH_DTYPES.get(kind.name)
    if dtype is None:
        return Unreadable(f"has dtype torch.{kind.name}", DTYPES_HINT)
    shape = _shape(about["size"])
    chunks = [
        _chunk(folder, name, dtype, _state(item, "ChunkStorageMetadata"), places, files) for item in about["chunks"]
    ]
    where = f"{folder}: tensor {name!r}"
    if len(chunks) > _MAX_CHUNKS or not _tiles(chunks, shape):
        raise CheckpointError(f"{where}: its {len(chunks)} parts do not make up {shape}", hint=_DAMAGED)
    return LazyTensor(dtype, shape, partial(_read, where, DTYPES[dtype].carrier, shape, chunks))


def _chunk(
    folder: Path,
    name: str,
    dtype: str,
    about: dict[str, Any],
    places: dict[tuple[str, Shape], dict[str, Any]],
    files: dict[str, MappedFile],
) -> _Chunk:
    offsets, shape = _shape(about["offsets"]), _shape(about["sizes"])
    place = places[name, offsets]
    file_name, start, length = place["relative_path"], place["offset"], place["length"]
    if place.get("transform_descriptors"):
        raise CheckpointError(f"{folder}: tensor {name!r} is compressed", hint="save it without extensions")
    if not is_name(file_name):
        raise ValueError(f"{file_name!r} is no name in this folder")
    if file_name not in files:
        if not (folder / file_name).is_file():
            raise CheckpointError(f"{folder}: the file {file_name} that its metadata name is missing", hint=_DAMAGED)
        files[file_name] = MappedFile(folder / file_name)
    file = files[file_name]
    nbytes = math.prod(shape) * DTYPES[dtype].carrier.itemsize
    if type(start) is not int or type(length) is not int or start < 0 or not nbytes <= length <= file.size - start:
        raise CheckpointError(f"{file.path}: a part of tensor {name!r} is cut short", hint=_DAMAGED)
    return _Chunk(offsets, shape, file, start, length)


def _tiles(chunks: list[_Chunk], shape: Shape) -> bool:
    """Return whether chunks make up a shape without gaps and overlaps.

    How many chunks cover a place is known from the corners: each adds one to what is behind it along all axes, or takes
    it away. So the signed corners of all chunks that are not corners of the whole must cancel out.
    """
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.shape) == len(shape):
            return False
        if any(start + size > end for start, size, end in zip(chunk.offsets, chunk.shape, shape, strict=True)):
            return False
    filled = [chunk for chunk in chunks if 0 not in chunk.shape]
    if 0 in shape or not filled:
        return 0 in shape and not filled
    split = [axis for axis, size in enumerate(shape) if any(chunk.shape[axis] != size for chunk in filled)]
    if len(split) > _MAX_SPLIT:
        return False
    corners: Counter[Shape] = Counter()
    whole = (-1, (0,) * len(shape), shape)
    for sign, starts, sizes in (whole, *((1, chunk.offsets, chunk.shape) for chunk in filled)):
        for ends in itertools.product((0, 1), repeat=len(split)):
            corner = tuple(starts[axis] + end * sizes[axis] for axis, end in zip(split, ends, strict=True))
            corners[corner] += sign * (-1) ** sum(ends)
    return not any(corners.values())


def _read(where: str, dtype: np.dtype[np.generic], shape: Shape, chunks: list[_Chunk]) -> Array:
    if len(chunks) == 1 and chunks[0].shape == shape:
        return _values(where, dtype, chunks[0])
    whole: Array = np.empty(shape, dtype)
    for chunk in chunks:
        block = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.shape, strict=True))
        whole[block] = _values(where, dtype, chunk)
    return whole


def _values(where: str, dtype: np.dtype[np.generic], chunk: _Chunk) -> Array:
    """Return the values of a chunk, a view of the mapped file.

    Raises:
        CheckpointError: they are not as the metadata say.
    """
    part = chunk.file.part(chunk.start, chunk.length)
    try:
        tensor = unpickled(part, read_members(part))
        if not isinstance(tensor, StoredTensor) or tensor.shape != chunk.shape:
            raise ValueError("another tensor is in its place")
        array = tensor.lazy().read()
        if array.dtype != dtype:
            raise ValueError(f"{array.dtype} in place of {dtype}")
    except CheckpointError:
        raise
    # Damaged values can raise anything.
    except Exception as error:
        raise CheckpointError(f"{where}: its values cannot be read: {error}", hint=_DAMAGED) from error
    return array
