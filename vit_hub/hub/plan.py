"""The plan of a download, from the registry and the cache alone: no request is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vit_hub.hub.cache.paths import bundled_file, canonical_file, fetched_file
from vit_hub.hub.cache.records import read_record
from vit_hub.hub.fetch import requires_hashes
from vit_hub.hub.lockfile import locked_model
from vit_hub.hub.names.address import address
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.locate import locate, refuse_local
from vit_hub.registry import Entry, WeightSource
from vit_hub.version import __version__

__all__ = ["Plan", "PlannedSource", "plan"]


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """One source, and what fetching its file takes.

    Attributes:
        address: ``hf://owner/name@revision/file``, a URL, or ``bundled:file``.
        format: the checkpoint format; empty if only the file can tell.
        revision: the commit, branch or tag on Hugging Face's hub; None: its newest state, or not on the hub.
        files: the files to fetch; some of them may not exist.
        size: bytes of the weight file, where documented.
        sha256: of the weight file, where documented.
        gated: the server wants a login and its terms accepted; None: not known.
        page: about it on Hugging Face's hub.
        cached: the weight file, if it is on this machine already.
        refused: nothing pins its hash, and ``VIT_HUB_REQUIRE_HASHES`` is set.
    """

    address: str
    format: str
    revision: str | None
    files: tuple[str, ...]
    size: int | None
    sha256: str | None
    gated: bool | None
    page: str | None
    cached: Path | None
    refused: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a download.

    Attributes:
        name: as given.
        id: in the registry; None: it does not have the model.
        license: None: not known.
        restricted: the licence is not an open one; None: not known.
        converted: the canonical file, if it is in the cache already.
        mirror: folder or address that is tried before the sources (``VIT_HUB_MIRROR``).
        sources: in order of preference; the first that delivers is taken.
    """

    name: str
    id: str | None
    license: str | None
    restricted: bool | None
    converted: Path | None
    mirror: str | None
    sources: tuple[PlannedSource, ...]

    @property
    def fetched_from(self) -> PlannedSource | None:
        """The first source to try; None if nothing need be fetched."""
        return None if self.converted or self.sources[0].cached else self.sources[0]


def plan(name: str, *, revision: str | None = None, lockfile: Path | None = None) -> Plan:
    """Plan what :func:`vit_hub.download` would do.

    Args:
        name: registry name or alias, timm name, Hugging Face repository, or URL.
        revision: as for :func:`vit_hub.download`.
        lockfile: follow this lock file.

    Raises:
        ConfigError: ``name`` is a local file, or there can be no such revision of it.
        ModelNotFoundError: nothing has this name.
        VitHubError: the lock file cannot be read.
    """
    refuse_local(name)
    if lockfile:
        entry, source, _ = locked_model(name, lockfile)
        sources: tuple[WeightSource, ...] = (source,)
    else:
        entry, sources = locate(name, revision=revision)
    return Plan(
        name=without_credentials(name),
        id=entry.id if entry else None,
        license=entry.license if entry else None,
        restricted=entry.restricted if entry else None,
        converted=_converted(entry, sources[0]) if entry else None,
        mirror=without_credentials(os.environ.get("VIT_HUB_MIRROR", "")) or None,
        sources=tuple(_planned(entry, source) for source in sources),
    )


def _converted(entry: Entry, source: WeightSource) -> Path | None:
    file = canonical_file(entry.id, source.sha256, __version__) if source.sha256 else None
    return file if file and file.is_file() else None


def _planned(entry: Entry | None, source: WeightSource) -> PlannedSource:
    files: tuple[str, ...] = (source.file or urlsplit(source.url or "").path.rpartition("/")[2],)
    gated: bool | None = source.gated
    page = None
    if source.kind == "hf":
        from vit_hub.hub.huggingface import page_of, possible_files

        files, page = possible_files(source), page_of(source)
        gated = source.gated if entry else None
    return PlannedSource(
        address=address(source),
        format=source.format,
        revision=source.revision,
        files=files,
        size=source.size,
        sha256=source.sha256,
        gated=gated,
        page=page,
        cached=_cached(source),
        refused=requires_hashes() and source.kind != "bundled" and not source.sha256,
    )


def _cached(source: WeightSource) -> Path | None:
    record = read_record(address(source))
    if record and record.path.is_file():
        return record.path
    if source.kind == "hf":
        from vit_hub.hub.huggingface import cached_weights

        return cached_weights(source)
    path = fetched_file(source.url or "") if source.kind == "https" else bundled_file(source.file or "")
    return path if path.is_file() else None
