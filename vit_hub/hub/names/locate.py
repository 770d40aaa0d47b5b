"""The meaning of a name or address: a local path, or the registry's entry and its sources. No network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import url2pathname

from vit_hub.converters.containers import CONTAINER_SUFFIXES
from vit_hub.converters.containers.together import finish_interrupted
from vit_hub.errors import CheckpointError, ConfigError, ModelNotFoundError, first_line
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.hugging_face import hub_source, is_address
from vit_hub.hub.names.wellformed import check_name, check_revision, split
from vit_hub.registry import Entry, WeightSource, get_entry, namesake
from vit_hub.untrusted import quoted
from vit_hub.weights_manifest import outlines

__all__ = ["known_source", "local_path", "locate", "refuse_local"]

_PATH = re.compile(r"\.{1,2}[/\\]|[/\\~]|[A-Za-z]:[/\\]")
_AUGREG = "augreg:"
_LOCAL = re.compile("(file:|local-dir:)", re.IGNORECASE)
_GOOGLE = re.compile("gs://(?=[^/]+/.)", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PUBLIC_GOOGLE = "https://storage.googleapis.com/"


def local_path(source: str | Path) -> Path | None:
    """Return the path that ``source`` is, or None if it is a name or an address.

    ``file://`` and the ``local-dir:`` of timm and open_clip may stand before a path.

    Raises:
        CheckpointError: it looks like a path, and there is no such file.
        ModelNotFoundError: it is a malformed address of a file.
    """
    if isinstance(source, str):
        source = _without_scheme(source)
    text = str(source)
    if isinstance(source, str) and is_address(text):
        return None
    try:
        path = Path(source).expanduser()
        if text and path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no HOME, a null character
        hint = "give the whole path, or set HOME" if isinstance(error, RuntimeError) else ""
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"{quoted(text)} is not a path: {reason}", hint=hint) from error
    if isinstance(source, Path) or _PATH.match(text) or Path(text).suffix in CONTAINER_SUFFIXES:
        finish_interrupted(path)
        if path.exists():
            return path
        raise CheckpointError(f"{text}: no such file or folder", hint="check the path; `vit-hub list` shows the names")
    return None


def _without_scheme(text: str) -> str | Path:
    """Return the path of a ``file:`` or ``local-dir:`` address; any other text as it is.

    Raises:
        CheckpointError: a file of another machine.
        ModelNotFoundError: it is malformed.
    """
    match = _LOCAL.match(text)
    if match is None:
        return text
    if match[1].lower() == "local-dir:":
        return Path(text[match.end() :])
    machine, path = split(text)
    if machine not in ("", "localhost"):
        raise CheckpointError(
            f"{text}: a file of the machine {machine}, not of this one", hint="write file:///path/to/file"
        )
    return Path(url2pathname(path))


def refuse_local(name: str) -> None:
    """Refuse a local file or folder, which cannot be downloaded.

    Raises:
        ConfigError: it is a local file or folder.
        CheckpointError: it looks like a path, and there is no such file.
    """
    if local_path(name) is not None:
        raise ConfigError(f"{name}: a local file or folder", hint=f"use `vit-hub convert {name} OUT` on it")


def locate(name: str, *, revision: str | None = None) -> tuple[Entry | None, tuple[WeightSource, ...]]:
    """Return the registry's entry of a name or address, if any, and its sources in order of preference. No network.

    Args:
        name: in this order: an address (``https://...``, ``hf://owner/name@revision/file``, ``hf-hub:owner/name``,
            ``gs://bucket/file``, ``s3://bucket/file``, ``augreg:FILE``); a name that the registry knows; a Hugging Face
            repository ``owner/name`` or ``owner/name@revision``.
        revision: branch, tag or commit of the Hugging Face repositories in place of the registry's. The pinned hashes
            belong to another commit then and are not checked; sources elsewhere are left out.

    Raises:
        ModelNotFoundError: neither an address nor a name nor in the form of a repository, or a name of several models.
        ConfigError: no source is on Hugging Face's hub, the name says another revision, or this can be none.
    """
    check_name(name)
    if revision is not None:
        check_revision(revision)
    entry, sources = _named(name)
    if revision is None:
        return entry, sources
    hub = [source for source in sources if source.kind == "hf"]
    # A repository's name asks for that one, not for others with the same weights.
    hub = [source for source in hub if name.lower() == str(source.repo).lower()] or hub
    if not hub:
        raise ConfigError(
            f"{without_credentials(name)}: none of its sources is on Hugging Face's hub, so it has no revision "
            f"{revision!r}",
            hint="leave out revision= (--revision)",
        )
    wanted = hub_source(name)
    if wanted and wanted.revision not in (None, revision):
        raise ConfigError(
            f"{name}: the name says revision {wanted.revision!r}, and revision= (--revision) says {revision!r}",
            hint="give one of them",
        )
    return entry, tuple(_at(source, revision) for source in hub)


def _at(source: WeightSource, revision: str) -> WeightSource:
    """Return the same file at another revision, of which nothing is documented."""
    if source.revision == revision:
        return source
    return dataclasses.replace(source, revision=revision, sha256=None, sha256_prefix=None, size=None, evidence="")


def _named(name: str) -> tuple[Entry | None, tuple[WeightSource, ...]]:
    if name.lower().startswith(_AUGREG):
        return _augreg(name[len(_AUGREG) :])
    google = _GOOGLE.match(name)
    if google:
        name = _PUBLIC_GOOGLE + quote(name[google.end() :])
    if is_address(name):
        return _known(url=name) or _on_hub(name) or (None, (WeightSource(kind="https", format="", url=name),))
    if _SCHEME.match(name):
        raise ModelNotFoundError(
            f"{name}: an address of this kind cannot be fetched",
            hint="https://, hf://, gs://, s3:// and file:// can; or fetch the file yourself and give its path",
        )
    try:
        entry = get_entry(name)
    except ModelNotFoundError:
        wanted = hub_source(name)
        # The registry knows several models in the repository.
        if wanted is None or (wanted.revision is None and any(_entries(wanted))):
            raise
        # As papers write it: no owner of a repository has such a name.
        if not is_address(name) and namesake(name):
            raise
        return _on_hub(name) or (None, (wanted,))
    return entry, entry.sources


def _known(url: str) -> tuple[Entry, tuple[WeightSource, ...]] | None:
    for entry in _entries(WeightSource(kind="https", format="", url=url)):
        return entry, tuple(source for source in entry.sources if source.url == url)
    return None


def _on_hub(name: str) -> tuple[Entry | None, tuple[WeightSource, ...]] | None:
    """Return a place on Hugging Face's hub, with what the registry knows about it."""
    wanted = hub_source(name)
    if wanted is None:
        return None
    found = [(entry, tuple(source for source in entry.sources if _holds(source, wanted))) for entry in _entries(wanted)]
    known = [(entry, sources) for entry, sources in found if sources]
    if len(known) > 1 and not wanted.file:
        ids = ", ".join(entry.id for entry, _ in known)
        raise ModelNotFoundError(f"{name!r} names {len(known)} models", hint=f"say which: {ids}")
    return known[0] if known else (None, (wanted,))


def known_source(exact: WeightSource) -> tuple[Entry, WeightSource] | None:
    """Return the registry's entry that has this source, and its own form of the source, which may pin more."""
    for entry in _entries(exact):
        for source in entry.sources:
            same_place = (source.kind, source.repo, source.url) == (exact.kind, exact.repo, exact.url)
            if same_place and source.file in (None, exact.file):
                return entry, source
    return None


def _entries(place: WeightSource) -> Iterator[Entry]:
    """Yield the registry's models at a URL, in a repository, or in the package."""
    repo = str(place.repo).lower()
    for outline in outlines().values():
        if place.kind == "bundled" or place.url in outline.urls or repo in map(str.lower, outline.repos):
            yield get_entry(outline.id)


def _holds(source: WeightSource, wanted: WeightSource) -> bool:
    """Return whether a source of the registry is the wanted one."""
    same_file = wanted.file in (None, source.file)
    same_repo = source.kind == "hf" and str(source.repo).lower() == str(wanted.repo).lower()
    return same_repo and same_file and wanted.revision in (None, source.revision or "main")


def _augreg(file: str) -> tuple[Entry, tuple[WeightSource, ...]]:
    """Return the entry of an AugReg file and its sources: the file itself, then others with the same weights."""
    from vit_hub.hub.names.augreg import entry_of, parse

    name = parse(file)
    known = _known(name.url)
    if known is None:
        entry = entry_of(name)
        return entry, entry.sources
    entry, own = known
    return entry, (*own, *(source for source in entry.sources if source not in own))
