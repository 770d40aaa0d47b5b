"""The contents of the cache, model by model; removal of models and of useless files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vit_hub.errors import ModelNotFoundError, VitHubError
from vit_hub.hub.cache.hashes import is_current, stamp_file
from vit_hub.hub.cache.paths import (
    CHOICE,
    PROGRAM_RECORD,
    STORES,
    cache_dir,
    fetched_file,
    file_lock,
    file_lock_path,
    readable,
)
from vit_hub.hub.cache.records import CANONICAL, Delivery, all_records
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.locate import known_source, locate
from vit_hub.untrusted import read_json
from vit_hub.version import __version__, installed_version

__all__ = ["HUGGING_FACE", "PROGRAM", "Item", "Leftover", "find", "items", "prune", "remove"]

HUGGING_FACE = "hugging face"
"""The kind of items in Hugging Face's own cache, which other programs use too."""
PROGRAM = "program"
"""The kind of models that were exported for another runtime."""


@dataclass(frozen=True)
class Item:
    """Files of one model that were fetched or converted together.

    Attributes:
        name: the model's id in the registry, else its repository or URL.
        kind: the folder that they lie in: ``canonical``, ``web``, ``mirrored``, ``program`` or ``hugging face``.
        path: the weight file, or the index of sharded ones.
        folder: the root of the names in ``delivery``.
        delivery: as recorded; None: there is no record.
        records: the files of the records.
        requested: the addresses that were requested.
    """

    name: str
    kind: str
    path: Path
    folder: Path
    delivery: Delivery | None = None
    records: tuple[Path, ...] = ()
    requested: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All its files, present or missing."""
        if self.kind == PROGRAM:
            return sorted(self.folder.glob("program.*"))
        return [self.folder / name for name in self.delivery.files] if self.delivery else [self.path]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files if file.is_file())

    @property
    def used(self) -> float | None:
        """Time of the last access to the weights, as far as the file system records it: seconds since 1970."""
        if not self.path.is_file():
            return None
        stat = self.path.stat()
        return max(stat.st_atime, stat.st_mtime)


def items() -> list[Item]:
    """Return everything that vit-hub fetched or converted, sorted by name."""
    found: dict[tuple[Path, str], Item] = {}
    for file, requested, record in all_records():
        delivery = record.delivery
        canonical = requested.startswith(CANONICAL)
        key = (record.path, delivery.address)
        before = found.get(key)
        found[key] = Item(
            _name(delivery.address),
            "canonical" if canonical else _kind(record.folder),
            record.path,
            record.folder,
            delivery,
            (*(before.records if before else ()), file),
            (*(before.requested if before else ()), *(() if canonical else (requested,))),
        )
    recorded = {file for item in found.values() for file in item.files}
    unrecorded = [
        Item(path.parent.name, _kind(path.parent), path, path.parent) for path in _stored() if path not in recorded
    ]
    return sorted([*found.values(), *unrecorded, *_programs()], key=lambda item: (item.name, item.kind, item.path))


def _stored() -> Iterator[Path]:
    """Yield the weight files of the cache: neither locks, signatures, nor what a killed process left."""
    for path in sorted([*cache_dir().glob("canonical/*/*.safetensors"), *cache_dir().glob("files/*/*")]):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".sig":
            yield path


def _programs() -> Iterator[Item]:
    for record in sorted(cache_dir().glob(f"programs/*/{PROGRAM_RECORD}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # being made, or damaged
            about = read_json(record)
            name = str(about["model"] or "a model without a name")
            for main in (file for file in about["files"] if file.endswith((".onnx", ".xml"))):
                yield Item(name, PROGRAM, record.with_name(main), record.parent)


_KINDS = {"files": "web", "mirrored": "mirrored", "canonical": "canonical"}


def _kind(folder: Path) -> str:
    return _KINDS.get(folder.parent.name, HUGGING_FACE) if cache_dir() in folder.parents else HUGGING_FACE


def _name(delivered: str) -> str:
    exact = source_of(delivered)
    known = known_source(exact)
    return known[0].id if known else exact.repo or exact.url or delivered


def find(name: str) -> list[Item]:
    """Return the items of one model.

    Args:
        name: as for :func:`vit_hub.download`, or an address as ``vit-hub cache ls`` shows it.

    Raises:
        ModelNotFoundError: there are none.
    """
    name = without_credentials(name)
    names, addresses, paths = {name}, {name}, set()
    try:
        entry, candidates = locate(name)
    except ModelNotFoundError as error:
        hint = f"{error.hint}; `vit-hub cache ls` lists the cache"
    else:
        hint = f"`vit-hub download {name}` fetches it; `vit-hub cache ls` lists the cache"
        addresses |= {address(source) for source in candidates}
        paths = {fetched_file(source.url) for source in candidates if source.url}
        names |= {entry.id} if entry else set()
    names |= {readable(name) for name in names}  # the folder of converted files without a record
    found = [
        item
        for item in items()
        if item.name in names or item.path in paths or addresses & {*item.requested, *_exact(item)}
    ]
    if not found:
        raise ModelNotFoundError(f"no files of {name} are in the cache", hint=hint)
    return found


def _exact(item: Item) -> tuple[str, ...]:
    return (item.delivery.address,) if item.delivery else ()


def remove(item: Item) -> bool:
    """Remove the files, stamps and records of one item; wait for a process that is writing it.

    Returns:
        False if the files were left: they lie in Hugging Face's cache, where other programs may use them.

    Raises:
        VitHubError: the cache cannot be written.
    """
    try:
        for file in (*map(stamp_file, item.files), *item.records):
            file.unlink(missing_ok=True)
        if item.kind != HUGGING_FACE and item.path.parent.is_dir():
            with file_lock(item.path):
                _remove_files(item)
    except OSError as error:
        raise VitHubError(
            f"{item.path}: cannot be removed: {error.strerror or error}", hint="check the permissions of the cache"
        ) from error
    return item.kind != HUGGING_FACE


def _remove_files(item: Item) -> None:
    lock = file_lock_path(item.path)
    if item.kind == "canonical":  # other versions in its folder are items of their own
        item.path.unlink(missing_ok=True)
    else:
        for path in item.folder.rglob("*"):
            if path.is_file() and path != lock:
                path.unlink(missing_ok=True)
    # Some systems cannot remove an open file, as the lock is, and none a folder that is not empty.
    for remove_it in (lock.unlink, *(folder.rmdir for folder in _folders(item.folder))):
        with contextlib.suppress(OSError):
            remove_it()


def _folders(folder: Path) -> list[Path]:
    """Return a folder and all folders in it, the innermost first."""
    return [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]


_DAY = 86400.0
_HOUR = 3600.0


@dataclass(frozen=True)
class Leftover:
    """A useless file: ``reason`` says why, ``size`` is in bytes."""

    path: Path
    reason: str
    size: int


def prune(*, days: float, dry_run: bool = False) -> list[Leftover]:
    """Remove useless files; what another process is writing stays.

    Args:
        days: keep unfinished downloads that are younger than so many days.
        dry_run: remove nothing.

    Returns:
        The files that were removed, or would be.

    Raises:
        VitHubError: the cache cannot be written.
    """
    found = []
    try:
        for folder in _weight_folders():
            found += _prune_folder(folder, days, dry_run)
        found += _removed(_notes(), dry_run)
    except OSError as error:
        raise VitHubError(
            f"{error.filename}: cannot be removed: {error.strerror or error}", hint="check the permissions of the cache"
        ) from error
    return found


def _weight_folders() -> list[Path]:
    """Return every folder with weights, the innermost first."""
    stores = [cache_dir() / store for store in STORES]
    return sorted((path for store in stores for path in store.rglob("*") if path.is_dir()), reverse=True)


def _prune_folder(folder: Path, days: float, dry_run: bool) -> list[Leftover]:
    from filelock import FileLock, Timeout

    locks = sorted(folder.glob(".*.lock"))
    with ExitStack() as held:
        try:
            for lock in locks:
                held.enter_context(FileLock(lock, blocking=False))
        except (Timeout, FileNotFoundError):  # another process is at work here, or has just removed the folder
            return []
        except OSError:  # the folder cannot be written: nothing would be removed
            if dry_run:
                return []
            raise
        useless = [*_unfinished(folder, days, bool(locks)), *_outdated(folder), *((path, "lock") for path in locks)]
        # A writer makes a lock first: without a new one, none of these files is in use.
        if sorted(folder.glob(".*.lock")) != locks:
            return []
        found = _removed(useless, dry_run)
    if not dry_run:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()
    return found


def _removed(useless: Iterable[tuple[Path, str]], dry_run: bool) -> list[Leftover]:
    """Remove these files, each with its reason; return those that existed."""
    found = []
    for path, reason in useless:
        with contextlib.suppress(FileNotFoundError):
            found.append(Leftover(path, reason, path.stat().st_size))
            if not dry_run:
                _unlink(path)
    return found


def _unlink(path: Path) -> None:
    # A process that waits for the lock sees that its file is gone, and makes another. Windows removes no open file.
    with contextlib.suppress(PermissionError) if path.suffix == ".lock" else contextlib.nullcontext():
        path.unlink()


def _unfinished(folder: Path, days: float, is_ours: bool) -> Iterator[tuple[Path, str]]:
    """Yield what killed processes left; ``is_ours``: the locks are held, so no other process is at work."""
    for path in sorted(folder.glob(".*.vit-hub.*")):
        resumable = path.name.endswith((".vit-hub.part", ".vit-hub.journal"))
        # Without a lock, only its age tells whether a process is still writing it.
        age = days * _DAY if resumable else 0.0 if is_ours else _HOUR
        if _idle(path) >= age:
            yield path, "unfinished download" if resumable else "left by a killed process"


def _outdated(folder: Path) -> Iterator[tuple[Path, str]]:
    if folder.parent.name == "canonical":
        for path in sorted(folder.glob("*.safetensors")):
            if not path.stem.endswith(f"-{__version__}"):
                yield path, "converted by another version"
    elif folder.parent.name in ("programs", "choices") and not _is_of_these_versions(folder):
        yield from ((path, "made with another version") for path in sorted(folder.iterdir()) if _is_content(path))
    elif any(place.name.endswith(".vit-hub.tmp") for place in (folder, folder.parent)):
        yield from ((path, "left by a killed process") for path in sorted(folder.iterdir()) if _idle(path) >= _HOUR)


def _is_content(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _is_of_these_versions(folder: Path) -> bool:
    """Return whether a program or choice was made with the packages that are installed: others are not used again."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        record = next(path for name in (PROGRAM_RECORD, CHOICE) if (path := folder / name).is_file())
        versions = read_json(record)["settings"]["versions"]
        return all(installed_version(name) == version for name, version in versions.items())
    return False


def _idle(path: Path) -> float:
    """Return the seconds since the file was written; -1 if it has just been removed."""
    return time.time() - path.stat().st_mtime if path.is_file() else -1.0


def _notes() -> Iterator[tuple[Path, str]]:
    """Yield the stamps and records of files that are gone."""
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
