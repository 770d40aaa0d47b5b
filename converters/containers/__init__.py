"""Files of tensors: safetensors, npz, PyTorch, msgpack and HDF5.

They are opened by content, read lazily and written one tensor at a time; ONNX files are only read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vit_hub.converters.containers.ahead import ahead
from vit_hub.converters.containers.atomic import atomic_path, steady_sync
from vit_hub.converters.containers.dcp import METADATA, read_dcp
from vit_hub.converters.containers.folder import find_weights, is_customary, parts_of, read_index, read_sidecars
from vit_hub.converters.containers.hdf5 import read_hdf5, write_hdf5
from vit_hub.converters.containers.mapped import MappedFile, files_opened
from vit_hub.converters.containers.msgpack_file import read_msgpack, write_msgpack
from vit_hub.converters.containers.npz import read_npz, write_npz
from vit_hub.converters.containers.onnx_names import read_onnx
from vit_hub.converters.containers.pickles import Unreadable
from vit_hub.converters.containers.pieces import Buffers, Pieces, chunks
from vit_hub.converters.containers.safetensors_file import read_safetensors, write_safetensors
from vit_hub.converters.containers.sniff import sniff
from vit_hub.converters.containers.together import finish_interrupted
from vit_hub.converters.containers.torch_file import EMBEDDED, read_torch, write_torch
from vit_hub.converters.containers.training_folder import enter
from vit_hub.converters.tensors import DTYPES, LazyTensor
from vit_hub.errors import CheckpointError
from vit_hub.shown import ShortRepr
from vit_hub.untrusted import AXES, NAME_LENGTH, SIZE, TENSORS, gate

__all__ = ["CONTAINER_SUFFIXES", "EMBEDDED", "RawCheckpoint", "atomic_path", "open_raw", "write_tensors"]

# Suffixes decide only what is written; reading goes by content.
CONTAINER_SUFFIXES: dict[str, str] = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".pth": "torch",
    ".pt": "torch",
    ".bin": "torch",
    ".tar": "torch",
    ".msgpack": "msgpack",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}


_READERS: dict[str, Callable[[Path], dict[str, LazyTensor]]] = {
    "npz": read_npz,
    "msgpack": read_msgpack,
    "hdf5": read_hdf5,
}
_WRITERS: dict[str, Callable[[Path, Mapping[str, LazyTensor], Pieces], None]] = {
    "npz": write_npz,
    "msgpack": write_msgpack,
    "hdf5": write_hdf5,
}

# Half of a character, which cannot be written.
_SURROGATE = re.compile("[\ud800-\udfff]")
# From a run's folder to its weights.
_MOST_LEVELS = 6


@dataclass(frozen=True, repr=False)
class RawCheckpoint(ShortRepr):
    """The contents of a checkpoint as stored: known from headers, values still unread.

    Attributes:
        path: as given, a file or a folder.
        container: ``safetensors``, ``npz``, ``torch``, ``msgpack``, ``hdf5`` or ``onnx``.
        tensors: name -> tensor in the file's order, names of nested dicts joined by ``/``. Arrays can be written to
            without changing the file; those of an npz or msgpack file are often not aligned to their item size.
        metadata: that of a safetensors file; empty for the others.
        sidecars: JSON files beside the weights, file name -> contents; also what a PyTorch file keeps under ``meta``.
        files: the files that hold the weights.
        held: what is open, whatever has the names now: these files, and others that decided which are read.
        unreadable: names of tensors that have no plain values, with what they are; beside at least one plain tensor.
        warnings: messages for the user, such as which subfolder was chosen.
        program_fields: config fields that the program in the file shows, which ONNX has beside the weights.
        unopened: names of tensors in files of a sharded checkpoint that were not opened, with the file.
        documents: files that say what is read, and what it means (sidecars, indices, pointers), with the sha256 of what
            was read; empty for those that were looked for and are not there.
        admit: refuses files that are not to be read; called with what else of it is opened later.
    """

    path: Path
    container: str
    tensors: dict[str, LazyTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    held: Mapping[Path, MappedFile] = field(default_factory=dict)
    unreadable: dict[str, Unreadable] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    program_fields: Mapping[str, Any] = field(default_factory=dict)
    unopened: dict[str, Path] = field(default_factory=dict)
    documents: Mapping[Path, str] = field(default_factory=dict)
    admit: Callable[[RawCheckpoint], None] = lambda raw: None

    def size_of(self, file: Path) -> int:
        """Return the bytes of one of its files.

        Raises:
            OSError: it is not open, and cannot be found.
        """
        return self.held[file].size if file in self.held else file.stat().st_size

    def _facts(self) -> dict[str, object]:
        return {"path": str(self.path), "container": self.container, "tensors": len(self.tensors)}


def open_raw(
    path: str | Path, *, with_sidecars: bool = False, select: Callable[[Collection[str]], Collection[str]] | None = None
) -> RawCheckpoint:
    """Open a weight file, the index of a sharded one, or a folder with either; the container is detected by content.

    Args:
        path: of a file, or of a folder.
        select: returns, of the names of all tensors of a sharded checkpoint, those whose files are opened; None: all.
        with_sidecars: the JSON files beside a file are about it. Otherwise they are only if it has a customary name:
            the folder may hold unrelated things.

    Raises:
        CheckpointError: it is missing, damaged, incomplete or ambiguous.
        UnknownFormatError: it is in no known container.
        UnsafeCheckpointError: reading it could run code.
    """
    path = Path(path)
    warnings: list[str] = []
    documents: dict[Path, str] = {}
    deciding: dict[Path, list[MappedFile]] = {}
    try:
        with gate(path, "damaged, or not what it claims to be", "fetch the file again"):
            if not path.is_file():
                finish_interrupted(path)
            if path.is_dir():
                with files_opened() as deciding:
                    weights = _enter(path, warnings, documents)
            elif path.suffix == ".distcp" and path.with_name(METADATA).is_file():
                weights = path.with_name(METADATA)
            elif path.is_file():
                weights = path
            else:
                what = "not a regular file" if path.exists() else "no such file or folder"
                raise CheckpointError(f"{path}: {what}", hint="check the path")
            container = sniff(weights)
            if container == "index":
                contents = _read_shards(weights, select, documents)
            else:
                contents = _read_parts(container, parts_of(path, weights))
            _check_limits(contents)
            beside = with_sidecars or path != weights or is_customary(path.name)
            sidecars = {**(read_sidecars(weights, documents) if beside else {}), **contents.sidecars}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", hint="check the file and its permissions") from error
    if contents.unreadable and not contents.tensors:
        name, found = next(iter(contents.unreadable.items()))
        raise CheckpointError(f"{path}: tensor {name!r} {found.what}", hint=found.remedy)
    held = {**{file: opened[0] for file, opened in deciding.items()}, **contents.held}
    return replace(contents, path=path, sidecars=sidecars, held=held, warnings=tuple(warnings), documents=documents)


def _check_limits(contents: RawCheckpoint) -> None:
    """Refuse what no checkpoint has, before anything is done for each tensor or each of its axes.

    Raises:
        CheckpointError: too many tensors, or a name or shape beyond the limits.
    """
    where, names = str(contents.path), (*contents.tensors, *contents.unreadable)
    problem = TENSORS.exceeded(len(names))
    for name in names:
        if problem:
            break
        if said := NAME_LENGTH.exceeded(len(name)):
            where, problem = f"{contents.path}: the name {name[:40]!r}...", said
        elif not name.isascii() and _SURROGATE.search(name):
            where, problem = f"{contents.path}: the name {name!r}", "is no text"
        elif tensor := contents.tensors.get(name):
            where = f"{contents.path}: tensor {name!r}"
            problem = AXES.exceeded(len(tensor.shape))
            # Where one axis has no values, the file's size says nothing about the others.
            if not problem and 0 in tensor.shape and math.prod(size or 1 for size in tensor.shape) > SIZE.most:
                problem = f"has the shape {tensor.shape}, which no array can have"
    if problem:
        raise CheckpointError(f"{where} {problem}", hint="the file is damaged or malicious: fetch it again")


def _enter(folder: Path, warnings: list[str], seen: dict[Path, str]) -> Path:
    """Return the file of the weights of a folder, in the subfolder that a training tool puts them in."""
    for _ in range(_MOST_LEVELS):
        found = enter(folder, seen)
        if found is None:
            return find_weights(folder)
        folder, reason = found
        if reason:
            warnings.append(reason)
        if not folder.is_dir():
            return folder
    raise CheckpointError(f"{folder}: nested deeper than {_MOST_LEVELS} levels", hint="give the folder of the weights")


def _read(path: Path, container: str) -> RawCheckpoint:
    """Read a file, which stays open, with those that it names: held is what was read, whatever has their names now."""
    with files_opened() as opened:
        contents = _read_container(path, container)
    return replace(contents, held={file: opened[file][0] for file in contents.files})


def _read_container(path: Path, container: str) -> RawCheckpoint:
    if container == "safetensors":
        tensors, unreadable, metadata = read_safetensors(path)
        return RawCheckpoint(path, container, tensors, metadata, files=(path,), unreadable=unreadable)
    if path.name == METADATA:
        tensors, unreadable, files = read_dcp(path.parent)
        return RawCheckpoint(path, "torch", tensors, files=files, unreadable=unreadable)
    if container == "onnx":
        tensors, fields, files = read_onnx(path)
        return RawCheckpoint(path, container, tensors, files=files, program_fields=fields)
    if container in _READERS:
        return RawCheckpoint(path, container, _READERS[container](path), files=(path,))
    tensors, unreadable, embedded = read_torch(path)
    return RawCheckpoint(path, "torch", tensors, sidecars=embedded, files=(path,), unreadable=unreadable)


def _read_parts(container: str, files: tuple[Path, ...]) -> RawCheckpoint:
    """Read a file, or the files that hold a checkpoint together, whose tensors are named by their files.

    Args:
        container: that of the first file.
        files: one or more.
    """
    first, *others = files
    contents = _read(first, container)
    if not others:
        return contents
    parts = {first.name: contents, **{file.name: _read(file, sniff(file)) for file in others}}
    tensors = {f"{file}:{name}": item for file, part in parts.items() for name, item in part.tensors.items()}
    held = {path: file for part in parts.values() for path, file in part.held.items()}
    return RawCheckpoint(first, contents.container, tensors, files=files, held=held)


def _read_shards(
    index: Path, select: Callable[[Collection[str]], Collection[str]] | None, documents: dict[Path, str]
) -> RawCheckpoint:
    shards = read_index(index, documents)
    names = [name for held in shards.values() for name in held]
    try:
        wanted = set(select(names)) if select else None
    except CheckpointError as error:
        raise CheckpointError(f"{index}: {error.message}", hint="give the file of the image encoder alone") from error
    chosen = {shard: names for shard, names in shards.items() if wanted is None or not wanted.isdisjoint(names)}
    for shard in chosen:
        if not shard.is_file():
            raise CheckpointError(f"{index}: the file {shard.name} that it names is missing", hint="fetch it as well")
    kinds = {sniff(shard) for shard in chosen}
    if len(kinds) > 1 or kinds & {"index", "onnx"}:
        raise CheckpointError(f"{index}: its files are of different containers: {', '.join(sorted(kinds))}")
    [container] = kinds
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    unreadable: dict[str, Unreadable] = {}
    opened: dict[Path, MappedFile] = {}
    for shard, names in chosen.items():
        found = _read(shard, container)
        held = found.tensors.keys() | found.unreadable.keys()
        # TensorFlow's index has the model's name before those that the files have.
        missing = [name for name in names if name not in held and name.partition("/")[2] not in held]
        if missing:
            raise CheckpointError(
                f"{shard}: tensor {missing[0]!r} is not in this file, as {index.name} says",
                hint="the files are of different versions: download all of them again",
            )
        twice = tensors.keys() & found.tensors.keys()
        if twice:
            raise CheckpointError(f"{shard}: tensor {min(twice)!r} is also in another file of {index.name}")
        opened |= found.held
        tensors |= found.tensors
        metadata |= found.metadata
        unreadable |= found.unreadable
    return RawCheckpoint(
        index,
        container,
        tensors,
        metadata,
        files=tuple(chosen),
        held=opened,
        unreadable=unreadable,
        unopened={name: shard for shard, names in shards.items() if shard not in chosen for name in names},
    )


def write_tensors(
    path: Path,
    container: str,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str] | None = None,
    *,
    embedded: Mapping[str, Mapping[str, Any]] | None = None,
    finish: Callable[[], Mapping[str, str]] | None = None,
    progress: Callable[[int], None] | None = None,
    within: Path | None = None,
) -> None:
    """Write tensors one at a time to a file that appears complete or not at all; equal input gives equal bytes.

    A second thread prepares the next tensors meanwhile.

    Args:
        path: the file; its folder is created if missing.
        container: ``safetensors``, ``npz``, or ``torch``, ``msgpack`` and ``hdf5``, where a ``/`` in a name opens a
            nested dict or a group.
        tensors: name -> tensor, in the order to write.
        metadata: for the header of a safetensors file; other containers cannot store any.
        embedded: plain data for a torch file to keep beside the tensors, by key; other containers cannot store any.
        finish: returns the final metadata when all values are written, each text as long as in ``metadata``.
        progress: called with the number of bytes of values written since the last call.
        within: the folder in which files that belong together are written, as for :func:`atomic_path`.

    Raises:
        CheckpointError: the file cannot be written, or values do not match their header.
        ValueError: unknown container.
    """
    if container not in CONTAINER_SUFFIXES.values():
        raise ValueError(f"there is no container {container!r}")
    small = next((name for name, tensor in tensors.items() if tensor.dtype.startswith("F8")), None)
    if small is not None and container in ("npz", "hdf5"):
        raise CheckpointError(
            f"{path}: tensor {small!r} is of 8-bit floats, which this container cannot hold",
            hint="write safetensors, or change the dtype",
        )
    with atomic_path(path, within) as temporary, steady_sync(temporary) as written:
        pieces = partial(_pieces, tensors, progress, written)
        if container == "safetensors":
            write_safetensors(temporary, tensors, metadata or {}, pieces, finish)
        elif container == "torch":
            write_torch(temporary, tensors, pieces, embedded or {})
        else:
            _WRITERS[container](temporary, tensors, pieces)


def _pieces(
    tensors: Mapping[str, LazyTensor],
    progress: Callable[[int], None] | None,
    written: Callable[[int], None],
    names: Iterable[str],
) -> Iterator[tuple[str, memoryview]]:
    """Yield the bytes of these tensors, at least one piece for each, even if empty."""
    buffers = Buffers()
    for name, piece in ahead(_read_pieces(tensors, names, buffers)):
        yield name, piece
        buffers.give_back(piece)
        written(piece.nbytes)
        if progress:
            progress(piece.nbytes)


def _read_pieces(
    tensors: Mapping[str, LazyTensor], names: Iterable[str], buffers: Buffers
) -> Iterator[tuple[str, memoryview]]:
    for name in names:
        for part in _parts(tensors[name]):
            array = part.read()
            if array.shape != part.shape or array.dtype != DTYPES[part.dtype].carrier:
                raise CheckpointError(
                    f"tensor {name!r}: {part.dtype} {part.shape} expected, {array.dtype} {array.shape} read",
                    hint="the file was changed while it was read",
                )
            for piece in chunks(array, buffers):
                yield name, piece


def _parts(tensor: LazyTensor) -> Iterator[LazyTensor]:
    """Yield the tensors whose values in turn are those of a tensor."""
    if not tensor.parts:
        yield tensor
    for part in tensor.parts:
        yield from _parts(part)
