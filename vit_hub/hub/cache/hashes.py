"""Comparing files with what is pinned. A hashed file gets a stamp and is not hashed again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from vit_hub.converters.containers import atomic_path
from vit_hub.converters.containers.hashing import file_sha256
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.errors import IntegrityError, VitHubError
from vit_hub.hub.cache.paths import cache_dir, is_trusted
from vit_hub.progress import byte_bar
from vit_hub.registry import WeightSource
from vit_hub.untrusted import read_json

__all__ = ["check", "is_current", "rehash", "sha256_of", "stamp", "stamp_file", "verify", "write_checked"]


def check(source: WeightSource, name: str, *, size: int, sha256: str, hint: str) -> None:
    """Compare a file with what its source pins.

    Args:
        source: pins any of ``size``, ``sha256``, ``sha256_prefix``, or nothing.
        name: the file, for the message.
        size: the file's, in bytes.
        sha256: the file's, 64 hex digits.
        hint: the remedy if they differ.

    Raises:
        IntegrityError: they differ; the message has both.
    """
    if source.sha256 and sha256 != source.sha256:
        raise IntegrityError(f"{name}: its sha256 is {sha256}, expected {source.sha256}", hint=hint)
    if source.sha256_prefix and not sha256.startswith(source.sha256_prefix):
        raise IntegrityError(f"{name}: its sha256 is {sha256}, expected {source.sha256_prefix}...", hint=hint)
    if source.size is not None and size != source.size:
        raise IntegrityError(f"{name}: it has {size:,} bytes, expected {source.size:,}; sha256 {sha256}", hint=hint)


def write_checked(
    path: Path,
    chunks: Iterable[bytes],
    source: WeightSource,
    name: str,
    *,
    hint: str,
    progress: bool = False,
    inspect: Callable[[Path], None] | None = None,
) -> None:
    """Write a file as it comes; it appears complete, checked and stamped, or not at all.

    Args:
        path: the file.
        chunks: its contents.
        source: what is pinned of size and sha256.
        name: the file, for messages.
        hint: the remedy if it is not the pinned one.
        progress: show a bar on a terminal.
        inspect: called with the temporary file; what it raises keeps the file from appearing.

    Raises:
        IntegrityError: it is not the pinned one.
        CheckpointError: it cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with atomic_path(path) as temporary:
        with temporary.open("wb") as copy, byte_bar(path.name, source.size, show=progress) as advance:
            for chunk in chunks:
                copy.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
        check(source, name, size=size, sha256=digest.hexdigest(), hint=hint)
        if inspect:
            inspect(temporary)
    stamp(path, digest.hexdigest())


def verify(path: Path, source: WeightSource, *, hint: str) -> None:
    """Check a file on disk like :func:`check`; it is hashed only if a hash or size is pinned.

    Raises:
        IntegrityError: the file is not the pinned one.
    """
    if source.sha256 or source.sha256_prefix or source.size is not None:
        check(source, str(path), size=path.stat().st_size, sha256=sha256_of(path), hint=hint)


def sha256_of(path: Path, opened: MappedFile | None = None) -> str:
    """Return the sha256 of a file: from its stamp, or computed and stamped.

    Args:
        path: the file.
        opened: the file as it was opened, which is meant whatever has its name now.

    Raises:
        OSError: it cannot be read.
        CheckpointError: the opened file was changed in place.
    """
    try:
        file = stamp_file(path)
        stamped = read_json(file)
        if stamped["stat"] == _identity(path, opened) and is_trusted(file):
            return str(stamped["sha256"])
    except (OSError, ValueError, KeyError, TypeError, VitHubError):
        pass  # no stamp, a damaged one, or no cache: hash the file
    return rehash(path, opened=opened)


def rehash(path: Path, advance: Callable[[int], None] | None = None, *, opened: MappedFile | None = None) -> str:
    """Return the sha256 of a file, computed and stamped whatever its stamp says.

    Args:
        path: the file.
        advance: called with each count of bytes that were read.
        opened: as for :func:`sha256_of`.

    Raises:
        OSError, CheckpointError: as :func:`sha256_of`.
    """
    before = _identity(path, opened)
    found = opened.sha256(advance) if opened else file_sha256(path, advance)
    if _identity(path, opened) == before:
        stamp(path, found, opened)
    return found


def stamp(path: Path, sha256: str, opened: MappedFile | None = None) -> None:
    """Store the hash of a file as it is now. If the cache cannot be written, the file is hashed again later."""
    record = {"stat": _identity(path, opened), "sha256": sha256}
    with contextlib.suppress(VitHubError), atomic_path(stamp_file(path)) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")


def _identity(path: Path, opened: MappedFile | None = None) -> list[str | int]:
    """Return what a change of the file changes: its times can be set back, but not the one of the inode's change."""
    stat = opened.status() if opened else path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def stamp_file(path: Path) -> Path:
    """Return the place of a file's stamp."""
    return cache_dir() / "stamps" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def is_current(stamp: Path) -> bool:
    """Return whether a stamp is valid: its file exists and is unchanged."""
    try:
        stat = read_json(stamp)["stat"]
        return bool(stat == _identity(Path(stat[0])))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False
