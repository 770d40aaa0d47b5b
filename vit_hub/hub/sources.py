"""What a name, path, URL or repository stands for, and the file behind it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_hub.converters.containers import CONTAINER_SUFFIXES
from vit_hub.errors import CheckpointError, DownloadError, ModelNotFoundError
from vit_hub.hub.fetch import fetch
from vit_hub.registry import Entry, WeightSource, get_entry
from vit_hub.weights_manifest import outlines

if TYPE_CHECKING:
    from vit_hub.converters.checkpoint import Checkpoint

__all__ = ["Resolved", "fetch_any", "local_path", "locate", "open_resolved", "resolve"]

_HINTS = ("num_heads", "image_size", "pool")
_URL = re.compile("https?://", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_PATH = re.compile(r"\.{1,2}[/\\]|[/\\~]|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Resolved:
    """A checkpoint on this machine, and what the registry knows about it.

    Attributes:
        path: the file or folder to open.
        entry: the registry's entry.
        weight_source: where it was fetched from; None for a local path.
        hints: config fields that a file may not tell. Those that follow from the format it is in are not among them.
    """

    path: Path
    entry: Entry | None = None
    weight_source: WeightSource | None = None
    hints: Mapping[str, Any] = field(default_factory=dict)


def resolve(source: str | Path, *, offline: bool = False, progress: bool = False) -> Resolved:
    """Finds what ``source`` stands for and fetches it if need be.

    Args:
        source: in this order: an existing path; an address (``https://...``); a name that the registry knows; a
            Hugging Face repository ``owner/name`` or ``owner/name@revision``.
        offline: open no connection.
        progress: show progress bars on a terminal.

    Raises:
        CheckpointError: it looks like a path, and there is no such file.
        ModelNotFoundError: it is none of these; the hint names similar models.
        DownloadError: no source delivers; the message has every failure.
        IntegrityError: what was fetched is not what is pinned.
    """
    path = local_path(source)
    if path is not None:
        return Resolved(path)
    entry, candidates = locate(str(source))
    return fetch_any(entry, candidates, offline=offline, progress=progress)


def local_path(source: str | Path) -> Path | None:
    """The path that ``source`` is, or None where it is a name or an address.

    Raises:
        CheckpointError: it looks like a path, and there is no such file.
    """
    text = str(source)
    if isinstance(source, str) and _URL.match(text):
        return None
    try:
        path = Path(source).expanduser()
        if text and path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no home folder, a null character
        raise CheckpointError(f"{text!r} is not a path: {error}") from error
    if isinstance(source, Path) or _PATH.match(text) or Path(text).suffix in CONTAINER_SUFFIXES:
        raise CheckpointError(f"{text}: no such file or folder", hint="check the path; `vit-hub list` shows the names")
    return None


def locate(name: str) -> tuple[Entry | None, tuple[WeightSource, ...]]:
    """The registry's entry of a name or address, if it has one, and its sources in order of preference. No network.

    Raises:
        ModelNotFoundError: neither an address nor a name nor the form of a repository.
    """
    if _URL.match(name):
        return _locate_url(name)
    try:
        entry = get_entry(name)
    except ModelNotFoundError:
        match = _REPOSITORY.fullmatch(name)
        if match is None:
            raise
        return None, (WeightSource(kind="hf", format="", repo=match["repo"], revision=match["revision"]),)
    return entry, entry.sources


def _locate_url(url: str) -> tuple[Entry | None, tuple[WeightSource, ...]]:
    for outline in outlines().values():
        if url in outline.urls:
            entry = get_entry(outline.id)
            return entry, tuple(source for source in entry.sources if source.url == url)
    return None, (WeightSource(kind="https", format="", url=url),)


def fetch_any(
    entry: Entry | None, candidates: Sequence[WeightSource], *, offline: bool = False, progress: bool = False
) -> Resolved:
    """The first of the sources that delivers.

    Raises:
        DownloadError: none does.
        IntegrityError: one delivers something else than what is pinned; no other is asked then.
    """
    failures = []
    for source in candidates:
        try:
            path = fetch(source, offline=offline, progress=progress)
        except DownloadError as error:
            failures.append(error)
        else:
            return Resolved(path, entry, source, _hints(entry, source) if entry else {})
    if len(failures) == 1:
        raise failures[0]
    name = entry.id if entry else "it"
    raise DownloadError(
        f"none of the {len(failures)} sources of {name} delivers: {'; '.join(error.message for error in failures)}",
        hint="; ".join(dict.fromkeys(error.hint for error in failures if error.hint)),
    )


def _hints(entry: Entry, source: WeightSource) -> dict[str, Any]:
    fields = {**{name: getattr(entry.config, name) for name in _HINTS}, **source.config}
    return {name: fields[name] for name in _HINTS}


def open_resolved(
    resolved: Resolved, *, format: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Opens a checkpoint with all that the registry knows about it, and fills in its passport.

    Args:
        resolved: what :func:`resolve` gave.
        format: insist on a format instead of recognising it.
        overrides: config fields that the file cannot tell or tells wrongly.

    Raises:
        CheckpointError, ConfigError: as :func:`vit_hub.converters.open_checkpoint`.
    """
    from vit_hub import __version__
    from vit_hub.converters.checkpoint import open_checkpoint
    from vit_hub.preprocessing import Preprocessing

    ckpt = open_checkpoint(resolved.path, format=format, overrides=overrides, hints=resolved.hints)
    passport = dataclasses.replace(ckpt.passport, converter=ckpt.passport.converter or __version__)
    entry = resolved.entry
    if entry is not None:
        passport = dataclasses.replace(
            passport,
            weights_id=entry.id,
            license=entry.license,
            preprocess=Preprocessing.from_dict(entry.preprocess).to_dict(),
            # A source may have another head than the entry describes, or none.
            labels=entry.labels if ckpt.config.num_classes == entry.config.num_classes else None,
        )
    return dataclasses.replace(ckpt, passport=passport)
