"""HDF5 files as Keras writes them, by h5py: groups of datasets, whose paths are the names of the tensors.

Datasets stored as they are, as Keras stores them, are views of the mapped file, because h5py tells where they begin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from vit_hub.converters.containers.archive import check_expansion
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pieces import Pieces
from vit_hub.converters.tensors import CARRIERS, DTYPES, DTYPES_HINT, Array, LazyTensor
from vit_hub.errors import CheckpointError

__all__ = ["MAGIC", "read_hdf5", "write_hdf5"]

MAGIC = b"\x89HDF\r\n\x1a\n"
_MAX_DEPTH = 100
_MAX_DATASETS = 1_000_000
_DAMAGED = "the file is damaged or incomplete: fetch it again"
_SAVE_AGAIN = "save it again with Keras, or with h5py without special options"
# deflate, shuffle, checksum and h5py's lzf; others are plug-ins, which would be loaded as code.
_FILTERS = (1, 2, 3, 32000)
# HDF5 has no bfloat16: Keras stores two bytes of unknown type, and names the dtype beside them.
_VOID = np.dtype("V2")
_NAMED = "dtype"
_NAMES = {**CARRIERS, _VOID: "BF16"}
# Object headers hold 64 KiB of attributes; Keras cuts longer lists in numbered parts.
_ATTRIBUTE_BYTES = 64_512
# Keras 2 stores a variable under its layer, the model and the layer again.
_REPEATED = re.compile(r"([^/]+)/[^/]+/\1/.+")
# All that reading a damaged file makes h5py raise.
_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError)


def _h5py(path: Path) -> Any:
    """Return the module h5py.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(
            f"{path}: h5py, which reads and writes HDF5 files, is not installed",
            hint="pip install 'vit-hub[keras]' installs it",
        ) from error
    return h5py


def read_hdf5(path: Path) -> dict[str, LazyTensor]:
    """Return the datasets of a file, path -> tensor.

    Raises:
        CheckpointError: h5py is missing; the file is damaged, or has links, virtual, external or compressed datasets of
            a kind that Keras does not write, or unsupported dtypes.
    """
    h5py = _h5py(path)
    mapped = MappedFile(path)
    try:
        # As a stream, so that the library does not take the path for occupied.
        with h5py.File(mapped.stream(), "r") as file:
            found = _walk(h5py, path, file, (), set())
            return {name: _tensor(h5py, mapped, name, dataset) for name, dataset in found}
    except _ERRORS as error:
        first = str(error).splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"{path}: not a readable HDF5 file: {first[0]}", hint=_DAMAGED) from error


def _walk(h5py: Any, path: Path, group: Any, names: tuple[str, ...], groups: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield every dataset below a group with its path, and follow no link to elsewhere."""
    address = h5py.h5o.get_info(group.id).addr
    if address in groups or len(names) > _MAX_DEPTH or len(groups) > _MAX_DATASETS:
        raise CheckpointError(f"{path}: group {'/'.join(names)!r} is nested too deeply or stands twice", hint=_DAMAGED)
    groups.add(address)
    for count, name in enumerate(group):
        full = "/".join((*names, name))
        try:
            full.encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{path}: a name is not UTF-8: {full!r}", hint=_DAMAGED) from error
        link = group.get(name, getlink=True)
        if count > _MAX_DATASETS or not isinstance(link, h5py.HardLink):
            kind = type(link).__name__
            raise CheckpointError(f"{path}: {full!r} is a link ({kind}), which may lead elsewhere", hint=_SAVE_AGAIN)
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _walk(h5py, path, item, (*names, name), groups)
        elif isinstance(item, h5py.Dataset):
            yield full, item
        else:
            raise CheckpointError(f"{path}: {full!r} is neither a group nor a dataset", hint=_SAVE_AGAIN)


def _tensor(h5py: Any, file: MappedFile, name: str, dataset: Any) -> LazyTensor:
    where = f"{file.path}: dataset {name!r}"
    if dataset.is_virtual or dataset.external:
        raise CheckpointError(f"{where} has its values in other files", hint=_SAVE_AGAIN)
    shape, dtype = dataset.shape, _NAMES.get(dataset.dtype)
    if dtype is None or (dtype == "BF16" and dataset.attrs.get(_NAMED) not in ("bfloat16", b"bfloat16")):
        raise CheckpointError(f"{where} has dtype {str(dataset.dtype)!r}", hint=DTYPES_HINT)
    if shape is None or any(axis > max(file.size, 1) << 10 for axis in shape):
        raise CheckpointError(f"{where} has shape {shape}", hint=_DAMAGED)
    carrier = DTYPES[dtype].carrier
    nbytes, stored = math.prod(shape) * carrier.itemsize, dataset.id.get_storage_size()
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        if nbytes == 0:
            return LazyTensor(dtype, shape, partial(np.zeros, shape, carrier))
        if offset is None or stored < nbytes or offset + nbytes > file.size:
            raise CheckpointError(f"{where}: {nbytes:,} bytes declared, but not stored in the file", hint=_DAMAGED)
        return LazyTensor(dtype, shape, partial(_mapped, file, offset, carrier, shape))
    unknown = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())} - {*_FILTERS}
    if unknown:
        raise CheckpointError(f"{where} is compressed by filter {min(unknown)}", hint=_SAVE_AGAIN)
    check_expansion(file.path, f"dataset {name!r}", nbytes, stored)
    return LazyTensor(dtype, shape, partial(_unpacked, h5py, file, name, carrier))


def _mapped(file: MappedFile, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    return np.require(file.array(offset, dtype, shape), requirements="A")


def _unpacked(h5py: Any, file: MappedFile, name: str, dtype: np.dtype[np.generic]) -> Array:
    try:
        with h5py.File(file.stream(), "r", rdcc_nbytes=0) as opened:
            array: Array = np.asarray(opened[name][()]).view(dtype)
    except _ERRORS as error:
        raise CheckpointError(f"{file.path}: dataset {name!r} cannot be read: {error}", hint=_DAMAGED) from error
    return array


def write_hdf5(path: Path, tensors: Mapping[str, LazyTensor], pieces: Pieces) -> None:
    """Write a file of datasets, one tensor at a time; ``/`` in a name opens a group.

    If all names are variables of TensorFlow (``:0`` at the end), the attributes by which Keras 2 finds them are added.

    Raises:
        CheckpointError: h5py is missing, or a name is not possible in HDF5.
        OSError: it cannot be written.
    """
    h5py = _h5py(path)
    for name in tensors:
        if not name or "\0" in name or {"", ".", ".."} & {*name.split("/")}:
            raise CheckpointError(f"{path}: {name!r} cannot be the name of a dataset in an HDF5 file")
    groups = {name[:end] for name in tensors for end, letter in enumerate(name) if letter == "/"}
    if not groups.isdisjoint(tensors):
        raise CheckpointError(f"{path}: {min(groups & tensors.keys())!r} cannot be the name of a tensor and of a group")
    try:
        with h5py.File(path, "w", locking=False) as file:
            # Sorted, so that the same tensors give the same bytes in whatever order they come.
            places = {name: _place(h5py, file, name, tensor) for name, tensor in sorted(tensors.items())}
            if all(name.endswith(":0") and "/" in name for name in tensors):
                _add_layers(file, list(tensors))
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be written as HDF5: {error}") from error
    with path.open("r+b") as raw:
        for name, group in groupby(pieces(tensors), key=itemgetter(0)):
            raw.seek(places[name])
            for _, piece in group:
                raw.write(piece)


def _place(h5py: Any, file: Any, name: str, tensor: LazyTensor) -> int:
    """Add a dataset whose room in the file is reserved, and return where its values begin; 0 if it has none."""
    kind = _VOID if tensor.dtype == "BF16" else DTYPES[tensor.dtype].carrier
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    space = h5py.h5s.create_simple(tensor.shape) if tensor.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    made = h5py.h5d.create(file.id, None, h5py.h5t.py_create(kind, logical=True), space, properties)
    h5py.h5o.link(made, file.id, name.encode(), lcpl=links)
    dataset = h5py.Dataset(made)
    if kind is _VOID:
        dataset.attrs[_NAMED] = "bfloat16"
    return int(made.get_offset() or 0)


def _add_layers(file: Any, names: Sequence[str]) -> None:
    """Add the lists by which Keras 2 finds layers and their variables; those of shards list the variables alone."""
    if not all(_REPEATED.fullmatch(name) for name in names):
        _add_list(file, "layer_names", names)
        return
    layers: dict[str, list[str]] = {}
    for name in names:
        layer, _, rest = name.partition("/")
        layers.setdefault(layer, []).append(rest)
    _add_list(file, "layer_names", list(layers))
    for layer, weights in layers.items():
        _add_list(file[layer], "weight_names", weights)


def _add_list(item: Any, name: str, values: Sequence[str]) -> None:
    data = np.array([value.encode() for value in values])
    count = -(-data.nbytes // _ATTRIBUTE_BYTES)
    if count == 1:
        item.attrs[name] = data
        return
    for index, part in enumerate(np.array_split(data, count)):
        item.attrs[f"{name}{index}"] = part
