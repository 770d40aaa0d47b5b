"""What a name, path, URL or repository stands for, and the file behind it."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_hub.converters.containers import CONTAINER_SUFFIXES
from vit_hub.errors import CheckpointError, ConfigError, DownloadError, ModelNotFoundError
from vit_hub.hub.fetch import fetch
from vit_hub.hub.hub_names import hub_source, is_address
from vit_hub.hub.logins import without_login
from vit_hub.hub.origin import address
from vit_hub.registry import Entry, WeightSource, get_entry, preferring
from vit_hub.weights_manifest import outlines

if TYPE_CHECKING:
    from vit_hub.converters.checkpoint import Checkpoint

__all__ = ["Resolved", "fetch_any", "local_path", "locate", "open_resolved", "refuse_local", "resolve"]

_HINTS = ("num_heads", "image_size", "pool")
# Fields that a file cannot have otherwise than the registry says, unless it is another file.
_FIXED = ("embed_dim", "depth", "mlp_dim", "patch_size", "stem", "stem_stages")
_PATH = re.compile(r"\.{1,2}[/\\]|[/\\~]|[A-Za-z]:[/\\]")
_AUGREG = "augreg:"


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


def resolve(
    source: str | Path, *, revision: str | None = None, offline: bool = False, progress: bool = False
) -> Resolved:
    """Finds what ``source`` stands for and fetches it if need be.

    Args:
        source: an existing path, or whatever :func:`locate` takes.
        revision: as for :func:`locate`.
        offline: open no connection.
        progress: show progress bars on a terminal.

    Raises:
        CheckpointError: it looks like a path, and there is no such file.
        ConfigError: there can be no such revision of it.
        ModelNotFoundError: it is none of these; the hint names similar models.
        DownloadError: no source delivers; the message has every failure.
        IntegrityError: what was fetched is not what is pinned.
    """
    path = local_path(source)
    if path is not None:
        if revision is not None:
            raise ConfigError(
                f"{source}: a local file or folder has no revisions", hint="leave out revision= (--revision)"
            )
        return Resolved(path)
    entry, candidates = locate(str(source), revision=revision)
    return fetch_any(entry, candidates, offline=offline, progress=progress)


def local_path(source: str | Path) -> Path | None:
    """The path that ``source`` is, or None where it is a name or an address.

    Raises:
        CheckpointError: it looks like a path, and there is no such file.
    """
    text = str(source)
    if isinstance(source, str) and is_address(text):
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


def refuse_local(name: str) -> None:
    """Only what is somewhere else can be downloaded.

    Raises:
        ConfigError: it is a local file or folder.
        CheckpointError: it looks like a path, and there is no such file.
    """
    if local_path(name) is not None:
        raise ConfigError(f"{name}: a local file or folder", hint=f"use `vit-hub convert {name} OUT` on it")


def locate(name: str, *, revision: str | None = None) -> tuple[Entry | None, tuple[WeightSource, ...]]:
    """The registry's entry of a name or address, if it has one, and its sources in order of preference. No network.

    Args:
        name: in this order: an address (``https://...``, ``hf://owner/name@revision/file``, ``hf-hub:owner/name``,
            ``augreg:FILE``); a name that the registry knows; a Hugging Face repository ``owner/name`` or
            ``owner/name@revision``.
        revision: branch, tag or commit of the Hugging Face repositories in place of the registry's. What is pinned
            belongs to another commit then and is not checked; sources elsewhere are left out.

    Raises:
        ModelNotFoundError: neither an address nor a name nor the form of a repository, or a name of several models.
        ConfigError: no source is on Hugging Face's hub, or the name says another revision.
    """
    entry, sources = _named(name)
    if revision is None:
        return entry, sources
    hub = [source for source in sources if source.kind == "hf"]
    # A repository's name asks for that one, not for others with the same weights.
    hub = [source for source in hub if name.lower() == str(source.repo).lower()] or hub
    if not hub:
        raise ConfigError(
            f"{without_login(name)}: none of its sources is on Hugging Face's hub, so it has no revision {revision!r}",
            hint="leave out revision= (--revision)",
        )
    asked = hub_source(name)
    if asked and asked.revision not in (None, revision):
        raise ConfigError(
            f"{name}: the name says revision {asked.revision!r}, and revision= (--revision) says {revision!r}",
            hint="say it once",
        )
    return entry, tuple(_at(source, revision) for source in hub)


def _at(source: WeightSource, revision: str) -> WeightSource:
    """The same file at another revision, of which nothing is documented."""
    if source.revision == revision:
        return source
    return dataclasses.replace(source, revision=revision, sha256=None, sha256_prefix=None, size=None, evidence="")


def _named(name: str) -> tuple[Entry | None, tuple[WeightSource, ...]]:
    if name.lower().startswith(_AUGREG):
        return _augreg(name[len(_AUGREG) :])
    if is_address(name):
        return _known(url=name) or _on_hub(name) or (None, (WeightSource(kind="https", format="", url=name),))
    try:
        entry = get_entry(name)
    except ModelNotFoundError:
        asked = hub_source(name)
        # The registry knows the repository, and several models in it.
        if asked is None or (asked.revision is None and _entries(asked)):
            raise
        return _on_hub(name) or (None, (asked,))
    return entry, entry.sources


def _known(url: str) -> tuple[Entry, tuple[WeightSource, ...]] | None:
    for outline in outlines().values():
        if url in outline.urls:
            entry = get_entry(outline.id)
            return entry, tuple(source for source in entry.sources if source.url == url)
    return None


def _on_hub(name: str) -> tuple[Entry | None, tuple[WeightSource, ...]] | None:
    """A place on Hugging Face's hub, with what the registry knows about what is there."""
    asked = hub_source(name)
    if asked is None:
        return None
    found = [(entry, tuple(source for source in entry.sources if _holds(source, asked))) for entry in _entries(asked)]
    known = [(entry, sources) for entry, sources in found if sources]
    if len(known) > 1 and not asked.file:
        ids = ", ".join(entry.id for entry, _ in known)
        raise ModelNotFoundError(f"{name!r} names {len(known)} models", hint=f"say which: {ids}")
    return known[0] if known else (None, (asked,))


def _entries(asked: WeightSource) -> list[Entry]:
    """The registry's models in a repository."""
    repo = str(asked.repo).lower()
    return [get_entry(outline.id) for outline in outlines().values() if repo in map(str.lower, outline.repos)]


def _holds(source: WeightSource, asked: WeightSource) -> bool:
    """Whether a source of the registry is what is asked for."""
    same_file = asked.file in (None, source.file)
    same_repo = source.kind == "hf" and str(source.repo).lower() == str(asked.repo).lower()
    return same_repo and same_file and asked.revision in (None, source.revision or "main")


def _augreg(file: str) -> tuple[Entry, tuple[WeightSource, ...]]:
    """One of the AugReg files: the file itself, then what else has its weights."""
    from vit_hub.hub.augreg import entry_of, parse

    name = parse(file)
    known = _known(name.url)
    if known is None:
        entry = entry_of(name)
        return entry, entry.sources
    entry, own = known
    return entry, (*own, *(source for source in entry.sources if source not in own))


def fetch_any(
    entry: Entry | None, candidates: Sequence[WeightSource], *, offline: bool = False, progress: bool = False
) -> Resolved:
    """The first of the sources that delivers. Where it is not the first one, a warning says which and why.

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
            if failures:
                reasons = "; ".join(error.message for error in failures)
                what = f"{entry.id}: " if entry else ""
                warnings.warn(f"{what}taken from {address(source)}, because {reasons}", stacklevel=2)
            entry = preferring(entry, source) if entry else None
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
        CheckpointError: it is not the model that the registry says, or as for
            :func:`vit_hub.converters.open_checkpoint`.
        ConfigError: likewise.
    """
    from vit_hub import __version__
    from vit_hub.converters.checkpoint import open_checkpoint
    from vit_hub.preprocessing import Preprocessing

    ckpt = open_checkpoint(resolved.path, format=format, overrides=overrides, hints=resolved.hints)
    passport = dataclasses.replace(ckpt.passport, converter=ckpt.passport.converter or __version__)
    entry = resolved.entry
    if entry is not None:
        _refuse_another_model(ckpt, entry, resolved.weight_source, overrides or {})
        passport = dataclasses.replace(
            passport,
            weights_id=entry.id,
            license=entry.license,
            preprocess=Preprocessing.from_dict(entry.preprocess).to_dict(),
            # A source may have another head than the entry describes, or none.
            labels=entry.labels if ckpt.config.num_classes == entry.config.num_classes else None,
        )
    return dataclasses.replace(ckpt, passport=passport)


def _refuse_another_model(
    ckpt: Checkpoint, entry: Entry, source: WeightSource | None, overrides: Mapping[str, Any]
) -> None:
    """The file is of the architecture that its name promises.

    Raises:
        CheckpointError: it is not.
    """
    promised = entry.config.replace(**(source.config if source else {}))
    for name in _FIXED:
        found, expected = getattr(ckpt.config, name), getattr(promised, name)
        if found != expected and name not in overrides:
            raise CheckpointError(
                f"{ckpt.path}: not the model {entry.id}: its {name} is {found}, and should be {expected}",
                hint=f"the file is another one than its source promised: {address(source) if source else 'unknown'}",
            )
