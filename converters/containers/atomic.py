"""Files that appear under their final name complete or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vit_hub.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "abandoned", "atomic_path", "claim", "draft_name", "drafts", "is_draft", "put_in_place", "refusals", "steady_sync",
    "sync_file", "sync_folder",
]  # fmt: skip

_SYNC_BYTES = 16 << 20
_SUFFIX = ".vit-hub.tmp"


@contextmanager
def atomic_path(path: Path, within: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name to write to in the ``with`` body; at its end the file takes its final name.

    The temporary file lies in the destination's folder (created if missing), so that the last step is a rename within
    one file system. On any exception, ``KeyboardInterrupt`` included, it is removed and ``path`` stays as it was. A
    killed process leaves at most one hidden ``.*.vit-hub.tmp`` file beside the destination, which the next writer of
    the same destination removes.

    Args:
        path: the final name.
        within: the folder in which files that belong together are written, from
            :func:`vit_hub.converters.containers.together.files_together`: the file stays in it, under its name.

    Raises:
        CheckpointError: the operating system refuses (no space, no permission, ``path`` is a folder).
    """
    with refusals(path):
        if within is not None:
            (within / path.name).touch()
            yield within / path.name
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in drafts(path.parent, path.name):
            with contextlib.suppress(OSError), abandoned(left):
                left.unlink(missing_ok=True)
        while (held := claim(path.parent / draft_name(path.name))) is None:
            pass
        temporary = Path(held.name)
        try:
            with held:
                yield temporary
                if sys.platform == "win32":  # an open file cannot be renamed there
                    held.close()
                put_in_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error about a destination.

    Raises:
        CheckpointError: it refuses something in the ``with`` body.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = next((f"{folder} is a file, not a folder" for folder in path.parents if folder.is_file()), reason)
        raise CheckpointError(
            f"{path}: cannot be written: {reason}",
            hint="check the free space and the permissions of the folder; an existing file was not changed",
        ) from error


@contextmanager
def steady_sync(path: Path) -> Iterator[Callable[[int], None]]:
    """Sync a growing file to disk in a thread, so that the sync at its end waits less.

    The ``with`` body gets a function to call with each count of bytes written.
    """
    if not hasattr(os, "fdatasync"):
        yield lambda count: None
        return
    pending = 0
    running: Future[None] | None = None

    def written(count: int) -> None:
        nonlocal pending, running
        pending += count
        if pending >= _SYNC_BYTES and (running is None or running.done()):
            pending, running = 0, pool.submit(os.fdatasync, file.fileno())

    # An error of a sync here is raised by the one at the end.
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        yield written


def put_in_place(temporary: Path, path: Path) -> None:
    """Sync a finished file and rename it to its final name in the same folder.

    Raises:
        OSError: the operating system refuses.
    """
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def draft_name(name: str) -> str:
    """Return a new hidden name for what will be called ``name``."""
    return f"{_kind(name)}-{secrets.token_hex(8)}{_SUFFIX}"


def drafts(folder: Path, name: str | None = None) -> Iterator[Path]:
    """Yield what has such a name in a folder: for one final name, or for any."""
    return folder.glob(f"{'.*' if name is None else _kind(name)}-*{_SUFFIX}")


def is_draft(name: str) -> bool:
    """Return whether a path, with ``/``, is that of a draft or leads through one."""
    return any(part.startswith(".") and part.endswith(_SUFFIX) for part in name.split("/"))


def _kind(name: str) -> str:
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def claim(path: Path) -> BinaryIO | None:
    """Create a file that is locked by this process until it is closed or the process ends.

    On Windows an open file cannot be removed, so that no lock is needed.

    Returns:
        None: another writer removed it as abandoned before it was locked.
    """
    # Not by tempfile, whose files only their owner may read.
    file = path.open("xb")
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_EX)
    if path.exists():
        return file
    file.close()
    return None


@contextmanager
def abandoned(claimed: Path) -> Iterator[None]:
    """Hold, in the ``with`` body, a claimed file that nobody else holds, so as to remove it; on Windows it is removed.

    Raises:
        OSError: another process holds it, or it is no file.
    """
    with claimed.open("rb") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    if sys.platform == "win32":
        claimed.unlink()
        yield


def sync_file(path: Path) -> None:
    """Write a file's content to the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename durable where the system can: Windows cannot open a folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
