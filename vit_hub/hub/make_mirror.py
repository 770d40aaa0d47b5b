"""Writing a mirror: :mod:`vit_hub.hub.mirror` describes its format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import atomic_path
from vit_hub.hub.cache.paths import file_lock
from vit_hub.hub.cache.records import Delivery, Record
from vit_hub.hub.fetch import record_of
from vit_hub.hub.mirror import FILES, INDEX, VERSION, copy_checked, has_file, parse_index
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.locate import refuse_local
from vit_hub.hub.resolve import Resolved, resolve
from vit_hub.registry import WeightSource
from vit_hub.untrusted import usable_path

__all__ = ["Mirrored", "add_to_mirror"]


@dataclass(frozen=True)
class Mirrored:
    """The files of one model in a mirror.

    Attributes:
        name: the model's id in the registry, else the given name.
        address: the origin of the files, with the commit.
        license: in the registry; None: it does not have the model.
        restricted: the licence is not an open one.
        files: their number.
        size: their bytes.
        added: new bytes.
    """

    name: str
    address: str
    license: str | None
    restricted: bool
    files: int
    size: int
    added: int


def add_to_mirror(
    folder: Path, names: Sequence[str], *, offline: bool = False, progress: bool = False
) -> Iterator[Mirrored]:
    """Fetch models and add their files to a mirror, one model after the other.

    Args:
        folder: the mirror's; made if missing.
        names: as for :func:`vit_hub.download`.
        offline: open no connection: take cached files.
        progress: show progress bars on a terminal.

    Raises:
        ConfigError: a name is a local file.
        VitHubError: as :func:`vit_hub.hub.resolve.resolve`; or the folder cannot be written, or has a damaged index.
    """
    usable_path(folder)
    for name in names:
        refuse_local(name)
    for name in names:
        resolved = resolve(name, offline=offline, progress=progress)
        assert resolved.weight_source is not None
        record = record_of(resolved.weight_source, resolved.path)
        added = sum(_add_file(folder, record, file, progress) for file in record.delivery.files)
        yield _add_to_index(folder, name, resolved, resolved.weight_source, record.delivery, added)


def _add_file(folder: Path, record: Record, name: str, progress: bool) -> int:
    """Copy one file, unless the mirror has it undamaged; return the number of new bytes."""
    pin = record.delivery.files[name]
    path = folder / FILES / pin.sha256
    if has_file(path, pin):
        return 0
    copy_checked(record.folder / name, path, pin, hint="fetch it again", progress=progress)
    return pin.size


def _add_to_index(
    folder: Path, name: str, resolved: Resolved, source: WeightSource, delivery: Delivery, added: int
) -> Mirrored:
    entry, file = resolved.entry, folder / INDEX
    found = Mirrored(
        entry.id if entry else without_credentials(name),
        delivery.address,
        entry.license if entry else None,
        entry.restricted if entry else False,
        len(delivery.files),
        sum(pin.size for pin in delivery.files.values()),
        added,
    )
    with file_lock(file, place="the mirror", hint="give a folder that you may write to"):
        index: dict[str, Any] = {"version": VERSION, "addresses": {}, "models": {}}
        if file.exists():
            index = parse_index(file.read_bytes(), str(folder))
        index["addresses"] |= dict.fromkeys(_addresses(source, delivery), delivery.to_data())
        index["models"][found.name] = {"address": found.address, "license": found.license}
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    return found


def _addresses(source: WeightSource, delivery: Delivery) -> list[str]:
    """Return the addresses to list it under: the requested one, with its commit, and with its commit and file."""
    exact = source_of(delivery.address)
    return [address(source), address(replace(source, revision=exact.revision)), delivery.address]
