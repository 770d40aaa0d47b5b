"""Memory-mapped files whose memory is released as they are read."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import finalize

import numpy as np

from vit_hub.converters.containers.hashing import BLOCK_BYTES
from vit_hub.converters.tensors import Array
from vit_hub.errors import CheckpointError

__all__ = ["MappedFile", "Renewed", "files_opened"]

T = TypeVar("T")

# Touched pages of a mapped file count as memory of the process until the mapping is closed. So the file is remapped
# after this many bytes; an old mapping lives as long as one of its arrays. Each costs a file handle, hence the limit.
_GENERATION_BYTES = 32 << 20
_MOST_GENERATIONS = 128


_OPENED: ContextVar[dict[Path, list[MappedFile]] | None] = ContextVar("_OPENED", default=None)


@contextmanager
def files_opened() -> Iterator[dict[Path, list[MappedFile]]]:
    """Collect the files that are opened in the ``with`` body, by their paths: what was read, whoever asks later.

    Raises:
        CheckpointError: another file has taken the name of one, at the end of the body.
    """
    opened: dict[Path, list[MappedFile]] = {}
    token = _OPENED.set(opened)
    try:
        yield opened
    finally:
        _OPENED.reset(token)
    for file in (file for files in opened.values() for file in files):
        file.check_named()


class Renewed(Generic[T]):
    """A resource over mapped memory that is reopened after a number of bytes read."""

    def __init__(self, opener: Callable[[], T], size: int) -> None:
        self._opener = opener
        self._budget = max(_GENERATION_BYTES, size // _MOST_GENERATIONS)
        self._current: T | None = None
        self._read = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> T:
        """Return the resource to read ``nbytes`` from."""
        with self._lock:
            current = self._current
            if current is None or self._read + nbytes > self._budget:
                current = self._current = None
                current = self._current = self._opener()
                self._read = 0
            self._read += nbytes
            return current


class MappedFile:
    """A file whose arrays are copy-on-write views of mapped memory.

    The file stays open, so that reads see the same bytes even if another file has taken its name. A file that was
    changed in place since is refused at the next read; touching an array beyond the new end of a file that is cut short
    later ends the process, so whoever keeps arrays of files that others may change copies them.

    Attributes:
        checked: offsets of contents that were compared with a checksum already.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        finalize(self, self._file.close)
        self._whole: MappedFile | None = None
        self._start = 0
        self.size = self._file.seek(0, 2)
        self._stamp = self._state()
        self.checked = set[int]()
        self._mapping = Renewed(partial(self._map, self.size), self.size)
        if (opened := _OPENED.get()) is not None:
            opened.setdefault(path, []).append(self)

    def _map(self, size: int) -> mmap.mmap:
        try:
            return mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: cannot be mapped into memory: {error}", hint="check that the file is not being changed"
            ) from error

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def status(self) -> os.stat_result:
        """Return what the system says of the file that is open, whatever has its name now."""
        return os.fstat(self._file.fileno())

    def check_unchanged(self) -> None:
        """Refuse a file that was changed in place since it was opened.

        Raises:
            CheckpointError: it was.
        """
        if self._state() != self._stamp:
            raise CheckpointError(f"{self.path}: the file was changed while it was read", hint="open it again")

    def check_named(self) -> None:
        """Refuse a file whose name another one has taken since it was opened.

        Raises:
            CheckpointError: it has.
            OSError: it cannot be looked at.
        """
        if not os.path.samestat(self.status(), self.path.stat()):
            raise CheckpointError(f"{self.path}: another file took its name while it was opened", hint="open it again")

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Return the sha256 of the file as it is read here, whatever has its name now.

        Args:
            advance: called with each count of bytes hashed; an exception from it ends the work.

        Raises:
            CheckpointError: it was changed in place.
            OSError: it cannot be read.
        """
        digest = hashlib.sha256()
        for block in self.blocks(0, self.size):
            digest.update(block)
            if advance:
                advance(len(block))
        self.check_unchanged()
        return digest.hexdigest()

    def blocks(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield copies of ``size`` bytes from ``offset``, block by block.

        They are not read through the mapping, whose pages would count as memory of the process.
        """
        self.check_unchanged()
        for start in range(offset, offset + size, BLOCK_BYTES):
            count = min(BLOCK_BYTES, offset + size - start)
            if hasattr(os, "pread"):
                yield os.pread(self._file.fileno(), count, self._start + start)
            else:  # on Windows
                yield self.bytes(start, count)

    def part(self, start: int, size: int) -> MappedFile:
        """Return a part of the file as if it were a file of its own."""
        part = copy(self)
        # The file is closed with the whole.
        part._whole, part._start, part.size = self, self._start + start, size
        part.checked = set()
        return part

    def stream(self) -> BufferedReader:
        """Return a new stream of the contents."""
        return BufferedReader(_Stream(self))

    def bytes(self, offset: int, size: int) -> bytes:
        """Return a copy of ``size`` bytes from ``offset``, fewer at the end of the file."""
        self.check_unchanged()
        end = self._start + min(offset + size, self.size)
        return self._mapping.take(size)[self._start + offset : end]

    def array(
        self, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...], *, fortran: bool = False
    ) -> Array:
        """Return the values at ``offset``, which need not be aligned (``ndarray.flags.aligned``)."""
        self.check_unchanged()
        mapping = self._mapping.take(math.prod(shape) * dtype.itemsize)
        start = self._start + offset
        array: Array = np.ndarray(shape, dtype, buffer=mapping, offset=start, order="F" if fortran else "C")
        return array


class _Stream(RawIOBase):
    """The contents of a mapped file as a stream."""

    def __init__(self, file: MappedFile) -> None:
        self._mapped, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._mapped.size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._mapped.bytes(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
