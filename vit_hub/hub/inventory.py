"""What is in the cache, model by model, and how to remove it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vit_hub.errors import ModelNotFoundError, VitHubError
from vit_hub.hub.cache import cache_dir, fetched_file, lock_file, locked, readable
from vit_hub.hub.integrity import stamp_file
from vit_hub.hub.logins import without_login
from vit_hub.hub.origin import address, source_of
from vit_hub.hub.records import CANONICAL, Delivery, all_records
from vit_hub.hub.sources import locate
from vit_hub.registry import Entry, WeightSource, get_entry
from vit_hub.weights_manifest import outlines

__all__ = ["HUGGING_FACE", "Item", "find", "items", "known_source", "remove"]

HUGGING_FACE = "hugging face"
"""The kind of what lies in Hugging Face's own cache, which other programs use too."""


@dataclass(frozen=True)
class Item:
    """Files of one model that were fetched or made together.

    Attributes:
        name: the model's id in the registry, else its repository or URL.
        kind: ``canonical``, ``web``, ``mirrored`` or ``hugging face``: whose folder they lie in.
        path: the weight file, or the index of sharded ones.
        folder: what the names in ``delivery`` start from.
        delivery: what is recorded of the files; None: nothing.
        records: the files of the records.
        asked: the addresses that they were asked for by.
    """

    name: str
    kind: str
    path: Path
    folder: Path
    delivery: Delivery | None = None
    records: tuple[Path, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All its files, whether they are there or not."""
        return [self.folder / name for name in self.delivery.files] if self.delivery else [self.path]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files if file.is_file())

    @property
    def used(self) -> float | None:
        """When the weights were last read, as far as the file system tells, or written: seconds since 1970."""
        if not self.path.is_file():
            return None
        stat = self.path.stat()
        return max(stat.st_atime, stat.st_mtime)


def items() -> list[Item]:
    """Everything that vit-hub fetched or converted, in the order of names."""
    found: dict[tuple[Path, str], Item] = {}
    for file, asked, record in all_records():
        delivery = record.delivery
        canonical = asked.startswith(CANONICAL)
        key = (record.path, delivery.address)
        before = found.get(key)
        found[key] = Item(
            _name(delivery.address),
            "canonical" if canonical else _kind(record.folder),
            record.path,
            record.folder,
            delivery,
            (*(before.records if before else ()), file),
            (*(before.asked if before else ()), *(() if canonical else (asked,))),
        )
    recorded = {file for item in found.values() for file in item.files}
    unrecorded = [
        Item(path.parent.name, _kind(path.parent), path, path.parent) for path in _stored() if path not in recorded
    ]
    return sorted([*found.values(), *unrecorded], key=lambda item: (item.name, item.kind, item.path))


def _stored() -> Iterator[Path]:
    """The files of the cache that hold weights: not locks, nor what a killed process left."""
    for path in sorted([*cache_dir().glob("canonical/*/*.safetensors"), *cache_dir().glob("files/*/*")]):
        if path.is_file() and not path.name.startswith("."):
            yield path


_KINDS = {"files": "web", "mirrored": "mirrored", "canonical": "canonical"}


def _kind(folder: Path) -> str:
    return _KINDS.get(folder.parent.name, HUGGING_FACE) if cache_dir() in folder.parents else HUGGING_FACE


def known_source(exact: WeightSource) -> tuple[Entry, WeightSource] | None:
    """The registry's entry that has a source, and that source, which may pin more."""
    for outline in outlines().values():
        if exact.url in outline.urls or exact.repo in outline.repos or exact.kind == "bundled":
            entry = get_entry(outline.id)
            for source in entry.sources:
                if _place(source) == _place(exact) and source.file in (None, exact.file):
                    return entry, source
    return None


def _place(source: WeightSource) -> tuple[str, str | None, str | None]:
    return source.kind, source.repo, source.url


def _name(delivered: str) -> str:
    exact = source_of(delivered)
    known = known_source(exact)
    return known[0].id if known else exact.repo or exact.url or delivered


def find(name: str) -> list[Item]:
    """What is there of one model.

    Args:
        name: whatever :func:`vit_hub.download` takes, or an address as ``vit-hub cache ls`` shows it.

    Raises:
        ModelNotFoundError: nothing is.
    """
    name = without_login(name)
    names, addresses, paths = {name}, {name}, set()
    try:
        entry, candidates = locate(name)
    except ModelNotFoundError as error:
        hint = f"{error.hint}; `vit-hub cache ls` shows what is there"
    else:
        hint = f"`vit-hub download {name}` fetches it; `vit-hub cache ls` shows what is there"
        addresses |= {address(source) for source in candidates}
        paths = {fetched_file(source.url) for source in candidates if source.url}
        names |= {entry.id} if entry else set()
    names |= {readable(name) for name in names}  # the folder of converted files that nothing is recorded of
    found = [
        item for item in items() if item.name in names or item.path in paths or addresses & {*item.asked, *_exact(item)}
    ]
    if not found:
        raise ModelNotFoundError(f"nothing of {name} is in the cache", hint=hint)
    return found


def _exact(item: Item) -> tuple[str, ...]:
    return (item.delivery.address,) if item.delivery else ()


def remove(item: Item) -> bool:
    """Removes the files, stamps and records of one item; waits for a process that is writing it.

    Returns:
        False where the files were left: they lie in Hugging Face's cache and may be other programs' too.

    Raises:
        VitHubError: the cache cannot be written.
    """
    try:
        for file in (*map(stamp_file, item.files), *item.records):
            file.unlink(missing_ok=True)
        if item.kind != HUGGING_FACE and item.path.parent.is_dir():
            with locked(item.path):
                _remove_files(item)
    except OSError as error:
        raise VitHubError(
            f"{item.path}: cannot be removed: {error.strerror or error}", hint="check the permissions of the cache"
        ) from error
    return item.kind != HUGGING_FACE


def _remove_files(item: Item) -> None:
    lock = lock_file(item.path)
    if item.kind == "canonical":  # whose folder has other versions, which are items of their own
        item.path.unlink(missing_ok=True)
    else:
        for path in item.folder.rglob("*"):
            if path.is_file() and path != lock:
                path.unlink(missing_ok=True)
    # A file that is open, as the lock is, cannot be removed everywhere, and a folder with something in it nowhere.
    for remove_it in (lock.unlink, *(folder.rmdir for folder in _folders(item.folder))):
        with contextlib.suppress(OSError):
            remove_it()


def _folders(folder: Path) -> list[Path]:
    """A folder and all in it, the innermost first."""
    return [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]
