"""From a name to a canonical file in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from vit_hub.errors import VitHubError
from vit_hub.hub.cache.hashes import rehash, sha256_of
from vit_hub.hub.cache.paths import canonical_file, file_lock, is_trusted
from vit_hub.hub.cache.records import Delivery, Pin, Record, canonical_record, read_record, write_record
from vit_hub.hub.fetch import record_of
from vit_hub.hub.lockfile import resolve_locked
from vit_hub.hub.names.locate import locate, refuse_local
from vit_hub.hub.resolve import Resolved, fetch_any, open_resolved
from vit_hub.hub.signing import required_trust
from vit_hub.progress import byte_bar
from vit_hub.registry import Entry, WeightSource
from vit_hub.version import __version__

if TYPE_CHECKING:
    from vit_hub.converters.passport import Passport
    from vit_hub.converters.read import Checkpoint

__all__ = ["download"]


def download(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    force: bool = False,
    progress: bool = False,
    locked: bool | str | Path = False,
) -> Path:
    """Fetch a model, verify it and convert it, each step once.

    Args:
        name: registry name or alias, timm name, Hugging Face repository, or URL.
        revision: branch, tag or commit of the Hugging Face repository, in place of the one that the registry pins.
        offline: open no connection.
        force: convert again even if the cache has the result.
        progress: show progress bars on a terminal.
        locked: take exactly the files of this lock file; True: ``vit-hub.lock`` in the working folder.

    Returns:
        The canonical safetensors file in the cache: config, provenance and licence are in its metadata.

    Raises:
        ConfigError: ``name`` is a local file, or there can be no such revision of it.
        ModelNotFoundError, DownloadError, IntegrityError: as :func:`vit_hub.hub.resolve.resolve`.
        CheckpointError: the weights cannot be read.
        VitHubError: the lock file cannot be read.
    """
    refuse_local(name)
    if locked is not False:
        resolved = resolve_locked(name, locked, revision=revision, offline=offline, progress=progress)
        return _locked(resolved, force, progress)
    entry, candidates = locate(name, revision=revision)
    if entry and not force and required_trust() is None:  # else the source's file is opened, which checks who signed it
        found = _converted_earlier(entry, candidates[0])
        if found:
            return found
    resolved = fetch_any(entry, candidates, offline=offline, progress=progress)
    return _canonical(resolved, force=force, progress=progress)


def _locked(resolved: Resolved, force: bool, progress: bool) -> Path:
    """Convert locked files, and hash a result that the cache has."""
    canonical = _canonical(resolved, force=force, progress=progress)
    known = read_record(canonical_record(canonical))
    if known and rehash(canonical) != known.delivery.files[canonical.name].sha256:
        return _canonical(resolved, force=True, progress=progress)
    return canonical


def _converted_earlier(entry: Entry, source: WeightSource) -> Path | None:
    """Return the canonical file of a pinned source, without the source's file or a connection."""
    if not source.sha256:
        return None
    file = canonical_file(entry.id, source.sha256, __version__)
    passport = _passport_of(file) if _is_intact(file) else None
    if passport is None or (passport.weights_id, passport.converter) != (entry.id, __version__):
        return None
    return file if [record.get("sha256") for record in passport.source] == [source.sha256] else None


def _canonical(resolved: Resolved, *, force: bool, progress: bool) -> Path:
    """Convert, unless the cache has a file with the passport that the new one would have."""
    from vit_hub.converters.write import convert_checkpoint

    ckpt = open_resolved(resolved)
    hashes = [sha256_of(path, ckpt.source.held.get(path)) for path in ckpt.source.files]
    if ckpt.format != "canonical":  # whose passport already has its origin
        ckpt = _recorded(ckpt, hashes, __version__)
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    file = canonical_file(_title(resolved), sha256, __version__)
    if not force and _is_current(file, ckpt):
        _record(file, resolved)
        return file
    with file_lock(file):
        if force or not _is_current(file, ckpt):  # another process may have made it meanwhile
            total = sum(tensor.nbytes for tensor in ckpt.tensors.values())
            with byte_bar("converting", total, show=progress) as advance:
                convert_checkpoint(ckpt, file, progress=advance)
            _record(file, resolved)
    return file


def _record(file: Path, resolved: Resolved) -> None:
    """Record the written file, so that it can be verified later."""
    known = read_record(canonical_record(file))
    if resolved.weight_source and not (known and known.is_intact()):
        source = record_of(resolved.weight_source, resolved.path).delivery.address
        write_record(
            canonical_record(file),
            Record(file.parent, Delivery(source, {file.name: Pin(sha256_of(file), file.stat().st_size)})),
        )


def _is_intact(file: Path) -> bool:
    known = read_record(canonical_record(file))
    return known.is_intact() if known else is_trusted(file)


def _recorded(ckpt: Checkpoint, hashes: list[str], version: str) -> Checkpoint:
    """Return the checkpoint with the hashes of its files and the converter's version in the passport."""
    files = [
        {"file": path.name, "size": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(ckpt.source.files, hashes, strict=True)
    ]
    return dataclasses.replace(ckpt, passport=dataclasses.replace(ckpt.passport, source=files, converter=version))


def _is_current(file: Path, ckpt: Checkpoint) -> bool:
    passport = _passport_of(file) if _is_intact(file) else None
    return passport is not None and passport.to_json() == ckpt.passport.to_json()


def _passport_of(file: Path) -> Passport | None:
    from vit_hub.converters.read import open_checkpoint

    try:
        return open_checkpoint(file, format="canonical").passport if file.is_file() else None
    except VitHubError:  # damaged: it is converted again
        return None


def _title(resolved: Resolved) -> str:
    source = resolved.weight_source
    if resolved.entry or source is None:
        return resolved.entry.id if resolved.entry else resolved.path.stem
    return source.repo or resolved.path.stem
