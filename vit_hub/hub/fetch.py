"""The verified file of a source: from the cache, from the package, or from the network."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from vit_hub.converters.containers import atomic_path
from vit_hub.errors import DownloadError, IntegrityError, SignatureError
from vit_hub.hub.cache.hashes import sha256_of, verify
from vit_hub.hub.cache.paths import bundled_file, cache_dir, fetched_file, file_lock, is_trusted
from vit_hub.hub.cache.records import Delivery, Pin, Record, as_first_seen, forgetting, read_record, remember
from vit_hub.hub.mirror import from_mirror, get_bytes
from vit_hub.hub.names.address import address, is_fixed
from vit_hub.hub.signing import (
    FOLDER_SIGNATURE,
    file_signature,
    find_signature,
    open_signature,
    read_signature,
    required_trust,
)
from vit_hub.registry import WeightSource
from vit_hub.untrusted import SIGNATURE_BYTES

__all__ = ["describe", "fetch", "is_offline", "record_of", "requires_hashes"]

_UNSET = ("", "0", "false", "no", "off")


def is_offline(offline: bool = False) -> bool:
    """Return whether no connection may be opened: the argument, ``VIT_HUB_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``.

    As to ``huggingface_hub``, ``TRANSFORMERS_OFFLINE`` says it where ``HF_HUB_OFFLINE`` says nothing.
    """
    return offline or _is_set("VIT_HUB_OFFLINE") or _is_set("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def requires_hashes() -> bool:
    """Return whether only weights may be fetched whose whole hash is pinned: ``VIT_HUB_REQUIRE_HASHES=1``."""
    return _is_set("VIT_HUB_REQUIRE_HASHES")


def _is_set(*names: str) -> bool:
    """Return whether the first of the variables that is not empty means yes."""
    return next(filter(None, map(os.environ.get, names)), "").lower() not in _UNSET


def fetch(source: WeightSource, *, offline: bool = False, progress: bool = False) -> Path:
    """Return the file of one source. It is fetched once; a pinned size or hash is verified once.

    If no hash is pinned, the file must be the one that the address delivered first. ``VIT_HUB_MIRROR`` is tried before
    the source itself. ``VIT_HUB_REQUIRE_HASHES=1`` refuses a source whose whole hash is not pinned. Where
    ``VIT_HUB_TRUST`` is set, the signature of the file is fetched with it; it is verified where the file is opened.

    Args:
        source: of kind ``bundled``, ``https``, or ``hf``; an ``hf`` source without a file stands for the weights of
            the repository.
        offline: open no connection (also ``VIT_HUB_OFFLINE=1`` and ``HF_HUB_OFFLINE=1``).
        progress: show progress bars on a terminal.

    Returns:
        A read-only file: it lies in a cache or in the package.

    Raises:
        DownloadError: it cannot be fetched, or its hash must be pinned and is not; the hint has the remedy.
        IntegrityError: it is not the pinned file, or not the one that came first, and nothing of it stays in vit-hub's
            cache; or the file in the cache was changed since it was fetched, or is a link or another user's.
        SignatureError: ``VIT_HUB_TRUST`` is set, and no trusted key signed the index of the mirror, or what its address
            has for a signature.
        VitHubError: the cache cannot be written.
    """
    offline = is_offline(offline)
    if source.kind == "bundled":
        return _bundled(source)
    requested = address(source)
    if requires_hashes() and not source.sha256:
        raise DownloadError(
            f"{requested}: nothing pins its sha256, and VIT_HUB_REQUIRE_HASHES (--require-hashes) is set",
            hint="pin it once without that: `vit-hub lock NAME`; then take it with locked=True (--locked)",
        )
    known = read_record(requested)
    # A request is made again only if the source may have moved, or a signature is needed.
    if known and (offline or is_fixed(source)) and known.fits(source) and not _lacks_signature(known.path):
        return known.path
    _refuse_changed(source, known)
    wanted = as_first_seen(source, known)
    try:
        mirrored = from_mirror(wanted, offline=offline, progress=progress)
        found = mirrored or describe(wanted, _from_origin(wanted, offline, progress))
    except IntegrityError as error:
        if wanted is source or isinstance(error, SignatureError):
            raise
        raise IntegrityError(
            error.message, hint="; ".join(filter(None, (forgetting(requested), error.hint)))
        ) from error
    # Offline, Hugging Face's cache may have only some of the repository's files.
    remember(source, found, keep=mirrored is not None or not offline)
    return found.path


def _from_origin(source: WeightSource, offline: bool, progress: bool) -> Path:
    if source.kind == "hf":
        from vit_hub.hub.huggingface import fetch_beside, fetch_from_hub

        path = fetch_from_hub(source, offline=offline, progress=progress)
        if _lacks_signature(path):
            fetch_beside(path, source, FOLDER_SIGNATURE, offline=offline)
        return path
    path = _from_web(source, offline, progress)
    if _lacks_signature(path) and not offline:
        _fetch_signature(path, source)
    return path


def _lacks_signature(path: Path) -> bool:
    """Return whether a signature is required, and there is none, or one by a key that is not, or no longer, trusted."""
    trust = required_trust()
    place = find_signature(path)
    try:
        return trust is not None and (place is None or not open_signature(place, trust))
    except SignatureError:
        return True


def _fetch_signature(path: Path, source: WeightSource) -> None:
    """Fetch ``ADDRESS.sig``, if there is one, beside the file of an address of the web.

    Raises:
        SignatureError: it is no signature, or not by a trusted key; it is not kept.
    """
    place, trust = file_signature(path), required_trust()
    parts = urlsplit(source.url or "")
    if parts.scheme.lower() not in ("http", "https"):
        return
    with suppress(DownloadError):
        content = get_bytes(parts._replace(path=f"{parts.path}.sig").geturl(), most=SIGNATURE_BYTES.most)
        if trust is not None:
            read_signature(content, place, trust)
        with file_lock(path), atomic_path(place) as temporary:
            temporary.write_bytes(content)


def _bundled(source: WeightSource) -> Path:
    path = bundled_file(source.file or "")
    hint = "the installation is incomplete: install vit-hub again"
    if not path.is_file():
        raise DownloadError(f"{path}: the package's own file is missing", hint=hint)
    verify(path, source, hint=hint)
    return path


def _from_web(source: WeightSource, offline: bool, progress: bool) -> Path:
    path = fetched_file(source.url or "")
    if _is_fetched(path, source):
        return path
    if offline:
        if path.is_file():
            verify(path, source, hint=f"fetch it again with a connection, or put the right file at {path}")
        raise DownloadError(
            f"{address(source)}: not in the cache, and offline mode is on",
            hint="fetch it once with a connection: without offline=True (--offline), VIT_HUB_OFFLINE, "
            f"HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE; or put the file at {path}",
        )
    with file_lock(path):
        if not _is_fetched(path, source):  # another process may have fetched it meanwhile
            if (source.url or "").lower().startswith("s3://"):
                from vit_hub.hub.object_store import copy_object

                copy_object(path, source, progress=progress)
            else:
                from vit_hub.hub.http.download import stream_to

                stream_to(path, source, progress=progress)
    return path


def _is_fetched(path: Path, source: WeightSource) -> bool:
    return path.is_file() and is_trusted(path) and _is_pinned(path, source)


def _is_pinned(path: Path, source: WeightSource) -> bool:
    try:
        verify(path, source, hint="")
    except IntegrityError:
        return False
    return True


def _refuse_changed(source: WeightSource, known: Record | None) -> None:
    """Refuse a file in vit-hub's cache that is not the fetched one: it is evidence, which is not to be written over.

    Raises:
        IntegrityError: a file of the source was changed since it was fetched, or is a link or another user's.
    """
    found = {fetched_file(source.url or ""): ""} if source.kind == "https" else {}
    if known:
        found |= {known.folder / name: pin.sha256 for name, pin in known.delivery.files.items()}
    for path, sha256 in found.items():
        if path.is_relative_to(cache_dir()) and os.path.lexists(path):
            problem = _problem(path, sha256, source)
            if problem:
                remedy = f"`vit-hub cache rm {address(source)}` removes it; then it can be fetched again"
                raise IntegrityError(f"{path}: {problem}", hint=remedy)


def _problem(path: Path, sha256: str, source: WeightSource) -> str:
    """Return why a file in the cache is not the fetched one; empty if it is, or if nothing says which one that is."""
    if not is_trusted(path):
        return "a link, or another user's file, is not trusted in the cache"
    try:
        found = sha256_of(path) if sha256 else ""
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    # A file that fits a newer pin than the record's is of a process that was killed before it wrote its record.
    if found == sha256 or (source.sha256 and _is_pinned(path, source)):
        return ""
    return f"changed since it was fetched: its sha256 is {found}, expected {sha256}"


def describe(source: WeightSource, path: Path) -> Record:
    """Return the record of a source, from the place and the content of its file in the cache or the package."""
    if source.kind != "hf":
        return Record(path.parent, Delivery(address(source), {path.name: _seen(path)}))
    from vit_hub.hub.huggingface import describe_fetched

    folder, exact, found = describe_fetched(source, path)
    return Record(folder, Delivery(exact, {file.relative_to(folder).as_posix(): _seen(file) for file in found}))


def _seen(path: Path) -> Pin:
    return Pin(sha256_of(path), path.stat().st_size)


def record_of(source: WeightSource, path: Path) -> Record:
    """Return the record of a source, for a file that was just fetched from it."""
    known = read_record(address(source))
    return known if known and known.path == path else describe(source, path)
