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

__all__ = ["atomic_path", "put_in_place", "steady_sync"]

_SYNC_BYTES = 16 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to in the ``with`` body; at its end the file takes its final name.

    The temporary file lies in the destination's folder (created if missing), so that the last step is a rename within
    one file system. On any exception, ``KeyboardInterrupt`` included, it is removed and ``path`` stays as it was. A
    killed process leaves at most one hidden ``.*.vit-hub.tmp`` file beside the destination, which the next writer of
    the same destination removes.

    Raises:
        CheckpointError: the operating system refuses (no space, no permission, ``path`` is a folder).
    """
    kind = f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{kind}-*.vit-hub.tmp"):
            _remove_if_abandoned(left)
        claim = _claimed(path.parent, kind)
        temporary = Path(claim.name)
        try:
            with claim:
                yield temporary
                if sys.platform == "win32":  # an open file cannot be renamed there
                    claim.close()
                put_in_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
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
    _sync(temporary)
    temporary.replace(path)
    _sync_folder(path.parent)


def _claimed(folder: Path, kind: str) -> BinaryIO:
    """Create a file that is locked by this process until it is closed or the process ends.

    On Windows an open file cannot be removed, so that no lock is needed.
    """
    while True:
        # Not by tempfile, whose files only their owner may read.
        file = (folder / f"{kind}-{secrets.token_hex(8)}.vit-hub.tmp").open("xb")
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
        # Another writer may have removed it as abandoned before it was locked.
        if Path(file.name).exists():
            return file
        file.close()


def _remove_if_abandoned(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        with temporary.open("rb") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where another process has it
                temporary.unlink()
        if sys.platform == "win32":
            temporary.unlink()


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system can: Windows cannot open a folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
