"""A mirror: a plain folder, on disk or behind any web server, with the files of chosen weights by their hashes.

``index.json`` lists the files of each address; ``files/<sha256>`` are the files. ``VIT_HUB_MIRROR`` names the folder or
its address; it is tried before the original sources. :mod:`vit_hub.hub.make_mirror` writes it. A signed mirror has
``index.json.sig``, and among its files the signature of each delivery, which goes with it into the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_hub.converters.containers.together import finish_interrupted
from vit_hub.errors import DownloadError, SignatureError
from vit_hub.hub.cache.hashes import check, sha256_of, write_checked
from vit_hub.hub.cache.paths import fetched_file, file_lock, is_trusted, mirrored_folder
from vit_hub.hub.cache.records import Delivery, Pin, Record
from vit_hub.hub.names.address import address, is_commit, source_of
from vit_hub.hub.names.credentials import credentials_of, without_credentials
from vit_hub.hub.signing import FOLDER_SIGNATURE, TRUST, Trust, file_signature, read_signature, required_trust
from vit_hub.registry import WeightSource
from vit_hub.untrusted import INDEX_BYTES, SIGNATURE_BYTES, parse_json, read_bytes

__all__ = ["FILES", "INDEX", "VERSION", "copy_checked", "from_mirror", "get_bytes", "has_file", "parse_index"]

INDEX = "index.json"
FILES = "files"
VERSION = 1
LONGEST_INDEX = INDEX_BYTES.most
INDEX_TIME = 60.0  # seconds, for all of it
_CHUNK = 1 << 20
_HINT = "make the mirror again with `vit-hub mirror`, or unset VIT_HUB_MIRROR"
_TAMPERED = "nothing was kept; the mirror is damaged or tampered with: make it again, or unset VIT_HUB_MIRROR"


def from_mirror(source: WeightSource, *, offline: bool, progress: bool) -> Record | None:
    """Fetch the files of a source from the mirror into the cache.

    Args:
        source: of kind ``hf`` or ``https``.
        offline: open no connection; a mirror that is a folder is still used.
        progress: show bars on a terminal.

    Returns:
        None if there is no mirror, or if it does not have the source; a warning says so.

    Raises:
        IntegrityError: the mirror's file is not the pinned one, or not the one that its index lists.
        SignatureError: ``VIT_HUB_TRUST`` is set, and no trusted key signed the mirror's index.
        VitHubError: the cache cannot be written.
    """
    place = os.environ.get("VIT_HUB_MIRROR", "")
    is_remote = re.match("https?://", place, re.IGNORECASE)
    if not place or (offline and is_remote):
        return None
    try:
        base = place.rstrip("/") if is_remote else _folder(place)
        delivery = _look_up(_index(base), source)
        return _fetch_files(base, source, delivery, progress)
    except DownloadError as error:
        warnings.warn(f"the mirror is not used: {error.message}", stacklevel=2)
        return None


def _folder(place: str) -> Path:
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise DownloadError(f"{place}: {error}", hint="give the whole path in VIT_HUB_MIRROR") from error


def _look_up(index: dict[str, Any], source: WeightSource) -> Delivery:
    requested = address(source)
    if requested not in index["addresses"]:
        raise DownloadError(f"it does not have {requested}")
    try:
        delivery = Delivery.from_data(index["addresses"][requested])
        exact = source_of(delivery.address)
    except ValueError as error:
        raise DownloadError(f"{INDEX} is damaged: {error}", hint=_HINT) from error
    within = source.file is None or (exact.file or "").startswith(f"{source.file}/")
    wanted = replace(source_of(requested), file=exact.file if within else source.file)
    if not is_commit(source.revision):
        wanted = replace(wanted, revision=exact.revision)
    if exact != wanted:
        raise DownloadError(f"{INDEX} is damaged: it has {delivery.address} for {requested}", hint=_HINT)
    main = delivery.files[delivery.main]
    check(source, f"{requested} in the mirror", size=main.size, sha256=main.sha256, hint=_TAMPERED)
    return delivery


def _fetch_files(base: str | Path, source: WeightSource, delivery: Delivery, progress: bool) -> Record:
    folder, files = mirrored_folder(delivery.address), delivery.files
    if source.kind == "https":
        path = fetched_file(source.url or "")
        folder, files = path.parent, {path.name: files[delivery.main]}
    found = Record(folder, Delivery(delivery.address, files))
    wanted = {folder / name: pin for name, pin in files.items()}
    if delivery.signature:
        place = file_signature(found.path) if source.kind == "https" else folder / FOLDER_SIGNATURE
        wanted[place] = delivery.signature
    if not all(has_file(path, pin) for path, pin in wanted.items()):
        with file_lock(found.path):
            # The weights come last: where they are, the other files are too.
            for path in sorted(wanted, key=lambda path: path == found.path):
                if not has_file(path, wanted[path]):
                    _fetch_file(base, path, wanted[path], progress)
    return found


def has_file(path: Path, pin: Pin) -> bool:
    """Return whether the file exists and has the pinned content."""
    return path.is_file() and is_trusted(path) and sha256_of(path) == pin.sha256


def _fetch_file(base: str | Path, path: Path, pin: Pin, progress: bool) -> None:
    if isinstance(base, Path):
        copy_checked(base / FILES / pin.sha256, path, pin, hint=_TAMPERED, progress=progress)
        return
    from vit_hub.hub.http.download import stream_to

    url = f"{base}/{FILES}/{pin.sha256}"
    source = WeightSource(kind="https", format="", url=url, sha256=pin.sha256, size=pin.size)
    stream_to(path, source, progress=progress, checkpoint=False)


def copy_checked(file: Path, path: Path, pin: Pin, *, hint: str, progress: bool = False) -> None:
    """Copy a file with a pinned content; it appears complete and checked, or not at all.

    Raises:
        DownloadError: there is no such file.
        IntegrityError: it has another content; ``hint`` is the remedy.
        CheckpointError: the destination cannot be written.
    """
    try:
        opened = file.open("rb")
    except OSError as error:
        raise DownloadError(f"{file}: {error.strerror or error}", hint=_HINT) from error
    wanted = WeightSource(kind="https", format="", sha256=pin.sha256, size=pin.size)
    with opened:
        chunks = iter(lambda: opened.read(_CHUNK), b"")
        write_checked(path, chunks, wanted, str(file), hint=hint, progress=progress)


def parse_index(content: bytes, place: str) -> dict[str, Any]:
    """Parse the index of a mirror; only its outer form is checked.

    Raises:
        DownloadError: it is malformed, or of another version.
    """
    try:
        index = parse_json(content, most=LONGEST_INDEX)
        version = index["version"]
        if version != VERSION:
            raise DownloadError(
                f"{place}: {INDEX} is of version {version!r}, this vit-hub reads {VERSION}", hint="upgrade vit-hub"
            )
        if not all(isinstance(index[key], dict) for key in ("addresses", "models")):
            raise TypeError("'addresses' and 'models' are no objects")
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{place}: {INDEX} is damaged: {error}", hint=_HINT) from error
    found: dict[str, Any] = index
    return found


def _index(base: str | Path) -> dict[str, Any]:
    """Return the index, whose signer is verified where ``VIT_HUB_TRUST`` is set."""
    shown, trust = without_credentials(str(base)), required_trust()
    if isinstance(base, Path) and not (base / INDEX).is_file():
        finish_interrupted(base / INDEX)
    for remaining in (1, 0):
        content = _get(base, INDEX, LONGEST_INDEX)
        if len(content) > LONGEST_INDEX:
            raise DownloadError(f"{shown}: {INDEX} is longer than {LONGEST_INDEX:,} bytes", hint=_HINT)
        try:
            if trust is not None:
                _check_signer(base, content, trust)
            break
        except SignatureError:
            if not remaining:  # the first time, the two may have been read while they were written
                raise
    return parse_index(content, shown)


def _check_signer(base: str | Path, content: bytes, trust: Trust) -> None:
    shown, name = without_credentials(str(base)), file_signature(Path(INDEX)).name
    try:
        signature = _get(base, name, SIGNATURE_BYTES.most)
    except DownloadError as error:
        raise SignatureError(
            f"{shown}: this mirror is not signed, and {TRUST} requires it: {error.message}",
            hint="make it with `vit-hub mirror DIR NAME... --sign private.pem`, or unset VIT_HUB_MIRROR",
        ) from error
    try:
        read_signature(signature, Path(name), trust).check(Path(INDEX), hashlib.sha256(content).hexdigest())
    except SignatureError as error:
        raise SignatureError(f"{shown}: {error.message}", hint=error.hint) from error


def _get(base: str | Path, name: str, most: int) -> bytes:
    if not isinstance(base, Path):
        return get_bytes(f"{base}/{name}", most=most)
    try:
        return read_bytes(base / name, most=most)
    except OSError as error:
        raise DownloadError(f"{base / name}: {error.strerror or error}", hint=_HINT) from error


def get_bytes(url: str, *, most: int) -> bytes:
    """Return a small file of the web; of one that is longer than ``most`` a little more than that is read.

    Raises:
        DownloadError: the server does not deliver it in time.
    """
    from vit_hub.hub.http.response import new_client, request
    from vit_hub.hub.http.retry import TransientError

    content, login, url, since = bytearray(), credentials_of(url), without_credentials(url), time.monotonic()
    try:
        with new_client(login) as client:
            response = request(client, url)
            try:
                for chunk in response.chunks():
                    content += chunk
                    if len(content) > most:
                        break
                    if time.monotonic() - since > INDEX_TIME:
                        raise TransientError(f"{len(content):,} bytes in {INDEX_TIME:.0f} seconds")
            finally:
                response.close()
    except TransientError as error:
        raise DownloadError(f"{url}: {error}", hint=error.hint or _HINT) from error
    return bytes(content)
