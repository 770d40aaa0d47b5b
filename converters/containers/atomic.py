"""Files that appear under their final name whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vit_hub.errors import CheckpointError

__all__ = ["atomic_path"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write a file in the ``with`` body under the yielded temporary name; at the end it takes its final name.

    The temporary file lies in the destination's folder (made if missing), so that the last step is a rename within
    one file system. On any exception, ``KeyboardInterrupt`` included, it is removed and ``path`` stays as it was. A
    killed process leaves at most one hidden ``.*.vit-hub.tmp`` file beside the destination.

    Raises:
        CheckpointError: the operating system refuses (no space, no permission, ``path`` is a folder).
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.vit-hub.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Opened rather than made by tempfile, whose files nobody else may read.
            with temporary.open("xb"):
                pass
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="check the free space and the permissions of the folder; nothing was changed under this name",
        ) from error


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can (Windows cannot open a folder)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
