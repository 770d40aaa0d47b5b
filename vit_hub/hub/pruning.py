"""What is in the cache and of no use any more: leftovers of killed processes, results of other versions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vit_hub.errors import VitHubError
from vit_hub.hub.cache import cache_dir
from vit_hub.hub.integrity import is_current
from vit_hub.hub.records import all_records

__all__ = ["Leftover", "prune"]

_DAY = 86400.0
_HOUR = 3600.0
_STORES = ("files", "mirrored", "canonical")


@dataclass(frozen=True)
class Leftover:
    """A file of no use: ``reason`` says why, ``size`` is in bytes."""

    path: Path
    reason: str
    size: int


def prune(*, days: float, dry_run: bool = False) -> list[Leftover]:
    """Removes what is of no use; what another process is writing stays.

    Args:
        days: keep unfinished downloads that were continued within so many days.
        dry_run: remove nothing.

    Returns:
        What was removed, or would be.

    Raises:
        VitHubError: the cache cannot be written.
    """
    found = []
    try:
        for folder in _folders():
            found += _prune_folder(folder, days, dry_run)
        found += _removed(_notes(), dry_run)
    except OSError as error:
        raise VitHubError(
            f"{error.filename}: cannot be removed: {error.strerror or error}", hint="check the permissions of the cache"
        ) from error
    return found


def _folders() -> list[Path]:
    """Every folder with weights, the innermost first."""
    stores = [cache_dir() / store for store in _STORES]
    return sorted((path for store in stores for path in store.rglob("*") if path.is_dir()), reverse=True)


def _prune_folder(folder: Path, days: float, dry_run: bool) -> list[Leftover]:
    from filelock import FileLock, Timeout

    locks = sorted(folder.glob(".*.lock"))
    with ExitStack() as held:
        try:
            for lock in locks:
                held.enter_context(FileLock(lock, blocking=False))
        except (Timeout, FileNotFoundError):  # somebody is at work here, or has just removed the folder
            return []
        except OSError:  # the folder cannot be written: nothing would go
            if dry_run:
                return []
            raise
        useless = [*_unfinished(folder, days, bool(locks)), *_outdated(folder), *((path, "lock") for path in locks)]
        # Who writes makes a lock first: with no new one there, nothing of the above is a living process's.
        if sorted(folder.glob(".*.lock")) != locks:
            return []
        found = _removed(useless, dry_run)
    if not dry_run:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()
    return found


def _removed(useless: Iterable[tuple[Path, str]], dry_run: bool) -> list[Leftover]:
    """What there still is of these files, each with its reason; they are removed."""
    found = []
    for path, reason in useless:
        with contextlib.suppress(FileNotFoundError):
            found.append(Leftover(path, reason, path.stat().st_size))
            if not dry_run:
                _unlink(path)
    return found


def _unlink(path: Path) -> None:
    # Who waits for the lock sees that its file is gone, and makes another. Windows does not remove what is open.
    with contextlib.suppress(PermissionError) if path.suffix == ".lock" else contextlib.nullcontext():
        path.unlink()


def _unfinished(folder: Path, days: float, is_ours: bool) -> Iterator[tuple[Path, str]]:
    """What killed processes left, where ``is_ours`` says that no living one can be at work."""
    for path in sorted(folder.glob(".*.vit-hub.*")):
        resumable = path.name.endswith((".vit-hub.part", ".vit-hub.journal"))
        # Without a lock to ask, only the time tells whether somebody is writing it.
        patience = days * _DAY if resumable else 0.0 if is_ours else _HOUR
        if _idle(path) >= patience:
            yield path, "unfinished download" if resumable else "left by a killed process"


def _outdated(folder: Path) -> Iterator[tuple[Path, str]]:
    from vit_hub import __version__

    if folder.parent.name == "canonical":
        for path in sorted(folder.glob("*.safetensors")):
            if not path.stem.endswith(f"-{__version__}"):
                yield path, "converted by another version"


def _idle(path: Path) -> float:
    """Seconds since the file was written; -1 where it has just gone."""
    return time.time() - path.stat().st_mtime if path.is_file() else -1.0


def _notes() -> Iterator[tuple[Path, str]]:
    """Stamps and records of files that are gone."""
    for folder in ("stamps", "records"):
        for path in sorted((cache_dir() / folder).glob(".*.vit-hub.tmp")):
            if _idle(path) >= _HOUR:
                yield path, "left by a killed process"
    for path in sorted((cache_dir() / "stamps").glob("*.json")):
        if not is_current(path):
            yield path, "stamp of a file that is gone"
    for path, _, record in all_records():
        if not any((record.folder / name).is_file() for name in record.delivery.files):
            yield path, "record of files that are gone"
