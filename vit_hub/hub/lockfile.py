"""``vit-hub.lock``: the exact files of a project's models, for the project to commit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from vit_hub.converters.containers import atomic_path
from vit_hub.errors import ConfigError, IntegrityError, ModelNotFoundError, VitHubError
from vit_hub.hub.cache.hashes import rehash
from vit_hub.hub.cache.records import Delivery, Pin, Record, difference
from vit_hub.hub.fetch import record_of
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.locate import local_path, locate, refuse_local
from vit_hub.hub.resolve import Resolved, fetch_any, resolve
from vit_hub.registry import Entry, WeightSource
from vit_hub.untrusted import read_json, usable_path

__all__ = ["LOCKFILE", "check_locked", "lock", "locked_model", "read_lock", "resolve_locked"]

LOCKFILE = Path("vit-hub.lock")
"""The default: in the working folder."""
_VERSION = 1


def lock(
    names: Iterable[str], file: Path = LOCKFILE, *, offline: bool = False, progress: bool = False
) -> dict[str, Delivery]:
    """Fetch models and write their exact files into the lock file; its other models stay.

    Args:
        names: as for :func:`vit_hub.download`.
        file: the lock file; made if missing.
        offline: open no connection: lock cached files.
        progress: show progress bars on a terminal.

    Returns:
        The locked deliveries by the names in the lock file: ids of the registry where there is one.

    Raises:
        ConfigError: a name is a local file.
        VitHubError: as :func:`vit_hub.hub.resolve.resolve`; or the existing lock file cannot be read.
    """
    if usable_path(file).exists():  # one that cannot be read is refused before anything is fetched
        read_lock(file)
    found = {}
    for name in names:
        refuse_local(name)
        resolved = resolve(name, offline=offline, progress=progress)
        found[_key(name, resolved.entry)] = _record(resolved).delivery
    # Read only now: fetching takes long, and another process may have locked something meanwhile.
    models = {**(read_lock(file) if file.exists() else {}), **found}
    data = {"version": _VERSION, "models": {name: delivery.to_data() for name, delivery in models.items()}}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    return found


def _key(name: str, entry: Entry | None) -> str:
    return entry.id if entry else without_credentials(name)


def _record(resolved: Resolved) -> Record:
    assert resolved.weight_source is not None
    return record_of(resolved.weight_source, resolved.path)


def read_lock(file: Path) -> dict[str, Delivery]:
    """Return the deliveries in a lock file, by name.

    Raises:
        VitHubError: it is missing, damaged, or of a version that this vit-hub does not know.
    """
    hint = "take it from version control again, or delete it and run `vit-hub lock`"
    try:
        data = read_json(file)
        if not isinstance(data, dict) or not isinstance(data.get("models"), dict):
            raise ValueError("no 'models'")
        version = data.get("version")
        if version != _VERSION:
            raise VitHubError(
                f"{file}: a lock file of version {version!r}; this vit-hub reads version {_VERSION}",
                hint="upgrade vit-hub",
            )
        return {name: Delivery.from_data(model) for name, model in data["models"].items()}
    except FileNotFoundError as error:
        raise VitHubError(f"{file}: no such lock file", hint="`vit-hub lock NAME...` makes it") from error
    except OSError as error:
        raise VitHubError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise VitHubError(f"{file}: not a lock file: {error}", hint=hint) from error


def locked_model(name: str, file: Path) -> tuple[Entry | None, WeightSource, Delivery]:
    """Return a locked model: its entry in the registry, its source with everything pinned, and all its files.

    Raises:
        ModelNotFoundError: the lock file does not have it.
        VitHubError: as :func:`read_lock`.
    """
    locked = read_lock(file)
    entry, candidates = locate(name)
    key = _key(name, entry)
    if key not in locked:
        shown = without_credentials(name)
        raise ModelNotFoundError(f"{file}: {shown} is not in it", hint=f"`vit-hub lock {shown}` adds it")
    return entry, _pinned(candidates, locked[key]), locked[key]


def resolve_locked(
    name: str,
    locked: bool | str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: bool = False,
) -> Resolved:
    """Fetch exactly the files of a lock file, and hash all of them.

    Args:
        name: as for :func:`vit_hub.download`.
        locked: the lock file; True: ``vit-hub.lock`` in the working folder.
        revision: refused, because the lock file gives it.
        offline: open no connection.
        progress: show progress bars on a terminal.

    Raises:
        ConfigError: a local file or folder, or a revision is given.
        ModelNotFoundError: the lock file does not have it.
        IntegrityError: a file is not the locked one.
        VitHubError: as :func:`read_lock` and :func:`vit_hub.hub.resolve.fetch_any`.
    """
    if local_path(name) is not None:
        raise ConfigError(f"{name}: a local file or folder is in no lock file", hint="leave out locked= (--locked)")
    if revision is not None:
        raise ConfigError(f"{name}: the lock file gives the revision", hint="leave out revision= (--revision)")
    file = LOCKFILE if isinstance(locked, bool) else usable_path(locked)
    entry, source, delivery = locked_model(name, file)
    resolved = fetch_any(entry, (source,), offline=offline, progress=progress)
    check_locked(resolved, delivery, file)
    return resolved


def _pinned(candidates: Sequence[WeightSource], delivery: Delivery) -> WeightSource:
    """Return the locked source, with what the registry knows about it."""
    exact, pin = source_of(delivery.address), delivery.files[delivery.main]

    def place(source: WeightSource) -> str:
        return address(replace(source, revision=None, file=source.file or exact.file))

    known = next((source for source in candidates if place(source) == place(exact)), exact)
    return replace(
        known, revision=exact.revision, file=exact.file, sha256=pin.sha256, sha256_prefix=None, size=pin.size
    )


def check_locked(resolved: Resolved, delivery: Delivery, file: Path) -> None:
    """Hash all fetched files, whatever their stamps say, and compare them with the locked ones.

    Raises:
        IntegrityError: a file differs; the message has both hashes.
    """
    found = _record(resolved)
    hashed = {
        name: Pin(rehash(found.folder / name), (found.folder / name).stat().st_size) for name in found.delivery.files
    }
    words = difference(delivery, replace(found.delivery, files=hashed))
    if words:
        raise IntegrityError(
            f"{file}: {address(source_of(delivery.address))}: {words}",
            hint="the lock file, or the file in the cache, is not the original; `vit-hub verify` says which",
        )
