"""Records in the cache of what each address delivered first: later deliveries must be the same.

Without them a source that pins no hash would be trusted again with each fetch. The records also say where the files
are, so that files in the cache are found without a request, and can be verified, listed and removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, TypedDict

from vit_hub.converters.containers import atomic_path
from vit_hub.converters.containers.folder import weight_files
from vit_hub.errors import IntegrityError, VitHubError
from vit_hub.hub.cache.hashes import check, sha256_of
from vit_hub.hub.cache.paths import cache_dir, is_trusted, readable
from vit_hub.hub.names.address import address, is_fixed, source_of
from vit_hub.hub.names.wellformed import is_safe_name
from vit_hub.registry import WeightSource
from vit_hub.untrusted import Between, Matching, conform, read_json

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
"""The prefix of the keys of converted files' records; their place in the cache follows."""
_VERSION = 1


class _PinData(TypedDict):
    sha256: Annotated[str, Matching("[0-9a-f]{64}", "a hash of 64 hex digits")]
    size: Annotated[int, Between(0, 1 << 63)]


class _DeliveryData(TypedDict):
    address: str
    files: dict[str, _PinData]


class _SignedData(_DeliveryData, total=False):
    signature: _PinData


class _RecordData(_DeliveryData):
    asked: str
    folder: Annotated[str, Matching("[^\0]+", "the path of a folder")]


@dataclass(frozen=True)
class Pin:
    """The expected content of a file: ``sha256`` in 64 hex digits, ``size`` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Delivery:
    """The files that one address delivered.

    Attributes:
        address: the exact one, with the commit and the file, also where the requested address did not give them.
        files: everything that belongs to the weights, shards and config files included, by name with ``/``.
        signature: that of all of them, in a signed mirror.
    """

    address: str
    files: Mapping[str, Pin]
    signature: Pin | None = None

    @property
    def main(self) -> str:
        """The name of the weight file, or of the index of sharded ones."""
        if len(self.files) == 1:
            return next(iter(self.files))
        file = source_of(self.address).file or ""
        if file in self.files:
            return file
        # The address is of a folder, for weights under a name of their own.
        found = weight_files([name.rpartition("/")[2] for name in self.files])
        return f"{file}/{found[0]}".lstrip("/") if found else ""

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON data."""
        files = {name: asdict(pin) for name, pin in self.files.items()}
        signed = {"signature": asdict(self.signature)} if self.signature else {}
        return {"address": self.address, "files": files, **signed}

    @classmethod
    def from_data(cls, data: Any) -> Delivery:
        """Invert :meth:`to_data`, for untrusted data.

        Raises:
            ValueError: it is malformed, or a name leads out of a folder.
        """
        conform(data, _SignedData, "a record")
        files = data["files"]
        for name in files:
            if not is_safe_name(name):
                raise ValueError(f"{name!r} is not a name of a file")
        signature = data.get("signature")
        found = cls(
            data["address"],
            {name: Pin(pin["sha256"], pin["size"]) for name, pin in files.items()},
            Pin(signature["sha256"], signature["size"]) if signature else None,
        )
        source_of(found.address)
        if found.main not in files:
            raise ValueError(f"{found.address}: its file is not among its 'files'")
        return found


@dataclass(frozen=True)
class Record:
    """A delivery and the folder of its files."""

    folder: Path
    delivery: Delivery

    @property
    def path(self) -> Path:
        """The weight file, or the index of sharded ones."""
        return self.folder / self.delivery.main

    def fits(self, source: WeightSource) -> bool:
        """Return whether all files are on disk, unchanged, and what the source pins."""
        main = self.delivery.files[self.delivery.main]
        try:
            check(source, "", size=main.size, sha256=main.sha256, hint="")
        except IntegrityError:
            return False
        return self.is_intact()

    def is_intact(self) -> bool:
        """Return whether all files are on disk, unchanged, and nobody else's."""
        files = {self.folder / name: pin for name, pin in self.delivery.files.items()}
        try:
            return all(is_trusted(path) and sha256_of(path) == pin.sha256 for path, pin in files.items())
        except OSError:
            return False


def as_first_seen(source: WeightSource, known: Record | None) -> WeightSource:
    """Return the source; if it pins no hash itself, pinned to what it delivered first."""
    if known is None or source.sha256 or source.sha256_prefix:
        return source
    pin = known.delivery.files[known.delivery.main]
    return replace(source, sha256=pin.sha256, size=pin.size)


def remember(source: WeightSource, found: Record, *, keep: bool) -> None:
    """Compare a delivery with the first one from the same address, or record it as the first.

    Args:
        source: the requested one. If it pins a hash, the weight file itself has been compared already.
        found: what it delivered.
        keep: write a record, if the cache can be written.

    Raises:
        IntegrityError: another file than at first.
    """
    for requested in dict.fromkeys((address(source), found.delivery.address)):
        known = read_record(requested)
        if known:
            pinned = source.sha256 or source.sha256_prefix
            first = _with_main_of(found.delivery, known.delivery) if pinned else known.delivery
            words = difference(first, found.delivery)
            if words:
                raise IntegrityError(f"{requested}: {words}", hint=forgetting(requested))
        if keep and found != known:
            write_record(requested, found)


def _with_main_of(found: Delivery, known: Delivery) -> Delivery:
    return replace(known, files={**known.files, found.main: found.files[found.main]})


def difference(expected: Delivery, found: Delivery) -> str:
    """Describe how the files of a delivery differ from the expected ones, with both hashes; empty if they do not."""
    for name, pin in expected.files.items():
        if name not in found.files:
            return f"{name} is missing, expected with sha256 {pin.sha256}"
        if found.files[name] != pin:
            seen = found.files[name]
            return (
                f"{name}: its sha256 is {seen.sha256} ({seen.size:,} bytes), expected {pin.sha256} ({pin.size:,} bytes)"
            )
    surplus = [name for name in found.files if name not in expected.files]
    return f"{', '.join(surplus)} is new" if surplus else ""


def forgetting(requested: str) -> str:
    """Return the hint for an address that delivers another file than at first."""
    since = _first_use(record_file(requested))
    remedy = f"it differs from the first download{since}: `vit-hub cache rm {requested}` removes that record"
    return remedy + ("" if is_fixed(source_of(requested)) else "; a pinned revision never changes")


def _first_use(file: Path) -> str:
    try:
        return f" ({datetime.fromtimestamp(file.stat().st_mtime, timezone.utc):%Y-%m-%d})"
    except OSError:
        return ""


def canonical_record(file: Path) -> str:
    """Return the key of a converted file's record."""
    return f"{CANONICAL}{file.parent.name}/{file.name}"


def record_file(requested: str) -> Path:
    """Return the place of an address's record."""
    return cache_dir() / "records" / f"{readable(requested)}-{hashlib.sha256(requested.encode()).hexdigest()[:16]}.json"


def read_record(requested: str) -> Record | None:
    """Return the record of an address; None if there is no readable one."""
    found = _read(record_file(requested))
    return found[1] if found and found[0] == requested else None


def all_records() -> Iterator[tuple[Path, str, Record]]:
    """Yield every record: its file, the requested address, and the delivery."""
    for file in sorted((cache_dir() / "records").glob("*.json")):
        found = _read(file)
        if found:
            yield file, *found


def _read(file: Path) -> tuple[str, Record] | None:
    try:
        data = read_json(file) if is_trusted(file) else None
        if not isinstance(data, dict) or data.get("version") != _VERSION:
            return None
        conform(data, _RecordData, "a record")
        found = Record(Path(data["folder"]), Delivery.from_data(data))
        for name in ("", *found.delivery.files):
            (found.folder / name).exists()  # raises where the system cannot have such a path
        return data["asked"], found
    except (OSError, ValueError):
        return None


def write_record(requested: str, record: Record) -> None:
    """Write a record, if the cache can be written."""
    data = {"version": _VERSION, "asked": requested, "folder": str(record.folder), **record.delivery.to_data()}
    with contextlib.suppress(VitHubError), atomic_path(record_file(requested)) as temporary:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
