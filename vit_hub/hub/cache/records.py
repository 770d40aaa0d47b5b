"""What an address delivered when it was first used, kept in the cache: later deliveries must be the same.

A source that pins no hash would else be trusted anew with each fetch. The records also know where the files are, so
that what is here already is found without asking anybody, and can be verified, listed and removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import atomic_path
from vit_hub.errors import IntegrityError, VitHubError
from vit_hub.hub.cache.hashes import check, sha256_of
from vit_hub.hub.cache.paths import cache_dir, readable
from vit_hub.hub.names.address import address, is_fixed, is_safe_name, source_of
from vit_hub.registry import WeightSource

__all__ = [
    "CANONICAL",
    "Delivery",
    "Pin",
    "Record",
    "all_records",
    "as_first_seen",
    "canonical_record",
    "difference",
    "forgetting",
    "read_record",
    "record_file",
    "remember",
    "write_record",
]

CANONICAL = "canonical:"
"""The records of converted files are kept under this and the file's place in the cache."""
_VERSION = 1
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Pin:
    """What a file must be: ``sha256`` in 64 hex digits, ``size`` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Delivery:
    """What one address delivered.

    Attributes:
        address: exactly where from: with the commit and the file, where the address asked for did not say them.
        files: all that belongs to the weights, shards and config files too, by name with ``/``.
    """

    address: str
    files: Mapping[str, Pin]

    @property
    def main(self) -> str:
        """The name of the weight file, or of the index of sharded ones."""
        [*names] = self.files
        return names[0] if len(names) == 1 else source_of(self.address).file or ""

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        files = {name: {"sha256": pin.sha256, "size": pin.size} for name, pin in self.files.items()}
        return {"address": self.address, "files": files}

    @classmethod
    def from_data(cls, data: Any) -> Delivery:
        """The inverse of :meth:`to_data`, for data that anybody may have written.

        Raises:
            ValueError: it is not that, or a name leads out of a folder.
        """
        if not isinstance(data, dict) or not isinstance(data.get("address"), str):
            raise ValueError("no 'address'")
        files = data.get("files")
        if not isinstance(files, dict) or not files:
            raise ValueError(f"{data['address']}: no 'files'")
        found = cls(data["address"], {name: _pin(name, files[name]) for name in files})
        source_of(found.address)
        if found.main not in files:
            raise ValueError(f"{found.address}: its file is not among its 'files'")
        return found


def _pin(name: object, data: Any) -> Pin:
    if not is_safe_name(name):
        raise ValueError(f"{name!r} is not a name of a file")
    sha256, size = (data.get("sha256"), data.get("size")) if isinstance(data, dict) else (None, None)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"{name}: 'sha256' is not 64 hex digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{name}: 'size' is not a number of bytes")
    return Pin(sha256, size)


@dataclass(frozen=True)
class Record:
    """A delivery and the folder that its files are in."""

    folder: Path
    delivery: Delivery

    @property
    def path(self) -> Path:
        """The weight file, or the index of sharded ones."""
        return self.folder / self.delivery.main

    def fits(self, source: WeightSource) -> bool:
        """Whether all of it is on disk, unchanged, and what the source pins."""
        main = self.delivery.files[self.delivery.main]
        try:
            check(source, "", size=main.size, sha256=main.sha256, hint="")
        except IntegrityError:
            return False
        return self.is_intact()

    def is_intact(self) -> bool:
        """Whether all of it is on disk, unchanged."""
        try:
            return all(sha256_of(self.folder / name) == pin.sha256 for name, pin in self.delivery.files.items())
        except OSError:
            return False


def as_first_seen(source: WeightSource, known: Record | None) -> WeightSource:
    """The source, pinned to what it delivered first where it pins no hash itself."""
    if known is None or source.sha256 or source.sha256_prefix:
        return source
    pin = known.delivery.files[known.delivery.main]
    return replace(source, sha256=pin.sha256, size=pin.size)


def remember(source: WeightSource, found: Record, *, keep: bool) -> None:
    """Compares a delivery with the first one from the same address, or records it as the first.

    Args:
        source: what was asked for. Where it pins a hash, the weight file itself is compared already.
        found: what it delivered.
        keep: whether to write a record; a cache that cannot be written costs no more than the record.

    Raises:
        IntegrityError: another file than at first.
    """
    for asked in dict.fromkeys((address(source), found.delivery.address)):
        known = read_record(asked)
        if known:
            pinned = source.sha256 or source.sha256_prefix
            first = _with_main_of(found.delivery, known.delivery) if pinned else known.delivery
            words = difference(first, found.delivery)
            if words:
                raise IntegrityError(f"{asked}: {words}", hint=forgetting(asked))
        if keep and found != known:
            write_record(asked, found)


def _with_main_of(found: Delivery, known: Delivery) -> Delivery:
    return replace(known, files={**known.files, found.main: found.files[found.main]})


def difference(expected: Delivery, found: Delivery) -> str:
    """How the files of a delivery differ from those expected, with both hashes; empty where they do not."""
    for name, pin in expected.files.items():
        if name not in found.files:
            return f"{name} is missing, expected is one with sha256 {pin.sha256}"
        if found.files[name] != pin:
            seen = found.files[name]
            return (
                f"{name}: its sha256 is {seen.sha256} ({seen.size:,} bytes), "
                f"expected is {pin.sha256} ({pin.size:,} bytes)"
            )
    surplus = [name for name in found.files if name not in expected.files]
    return f"{', '.join(surplus)} was not there before" if surplus else ""


def forgetting(asked: str) -> str:
    """What to do where an address delivers another file than at first."""
    since = _first_use(record_file(asked))
    remedy = f"it is not what came from there first{since}: `vit-hub cache rm {asked}` forgets that"
    return remedy + ("" if is_fixed(source_of(asked)) else "; a pinned revision never changes")


def _first_use(file: Path) -> str:
    try:
        return f" ({datetime.fromtimestamp(file.stat().st_mtime, timezone.utc):%Y-%m-%d})"
    except OSError:
        return ""


def canonical_record(file: Path) -> str:
    """What the record of a converted file is kept under."""
    return f"{CANONICAL}{file.parent.name}/{file.name}"


def record_file(asked: str) -> Path:
    """Where the record of an address is kept."""
    return cache_dir() / "records" / f"{readable(asked)}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"


def read_record(asked: str) -> Record | None:
    """The record of an address; None where there is none that can be read."""
    found = _read(record_file(asked))
    return found[1] if found and found[0] == asked else None


def all_records() -> Iterator[tuple[Path, str, Record]]:
    """Every record: its file, the address asked for, and what it delivered."""
    for file in sorted((cache_dir() / "records").glob("*.json")):
        found = _read(file)
        if found:
            yield file, *found


def _read(file: Path) -> tuple[str, Record] | None:
    try:
        data = json.loads(file.read_bytes())
        if data["version"] != _VERSION:
            return None
        return str(data["asked"]), Record(Path(data["folder"]), Delivery.from_data(data))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(asked: str, record: Record) -> None:
    """Keeps a record, if the cache can be written."""
    data = {"version": _VERSION, "asked": asked, "folder": str(record.folder), **record.delivery.to_data()}
    with contextlib.suppress(VitHubError), atomic_path(record_file(asked)) as temporary:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
