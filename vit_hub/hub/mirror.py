"""A mirror: a plain folder, on disk or behind any web server, with the files of chosen weights by their hashes.

``index.json`` lists the files of each address; ``files/<sha256>`` are the files. ``VIT_HUB_MIRROR`` names the folder or
its address; it is tried before the original sources. :mod:`vit_hub.hub.make_mirror` writes it.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_hub.errors import DownloadError
from vit_hub.hub.cache.hashes import check, sha256_of, write_checked
from vit_hub.hub.cache.paths import fetched_file, file_lock, is_trusted, mirrored_folder
from vit_hub.hub.cache.records import Delivery, Pin, Record
from vit_hub.hub.names.address import address, is_commit, source_of
from vit_hub.hub.names.credentials import credentials_of, without_credentials
from vit_hub.registry import WeightSource
from vit_hub.untrusted import INDEX_BYTES, parse_json

__all__ = ["FILES", "INDEX", "VERSION", "copy_checked", "from_mirror", "has_file", "parse_index"]

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
    if not _is_there(found):
        with file_lock(found.path):
            # The weights come last: where they are, the other files are too.
            for name in sorted(files, key=lambda name: name == found.delivery.main):
                if not has_file(folder / name, files[name]):
                    _fetch_file(base, folder / name, files[name], progress)
    return found


def _is_there(record: Record) -> bool:
    return all(has_file(record.folder / name, pin) for name, pin in record.delivery.files.items())


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
    content = _read(base / INDEX) if isinstance(base, Path) else _get(f"{base}/{INDEX}")
    if len(content) > LONGEST_INDEX:
        raise DownloadError(
            f"{without_credentials(str(base))}: {INDEX} is longer than {LONGEST_INDEX:,} bytes", hint=_HINT
        )
    return parse_index(content, without_credentials(str(base)))


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(LONGEST_INDEX + 1)
    except OSError as error:
        raise DownloadError(f"{file}: {error.strerror or error}", hint=_HINT) from error


def _get(url: str) -> bytes:
    from vit_hub.hub.http.response import new_client, request
    from vit_hub.hub.http.retry import TransientError

    content, login, url, since = bytearray(), credentials_of(url), without_credentials(url), time.monotonic()
    try:
        with new_client(login) as client:
            response = request(client, url)
            try:
                for chunk in response.chunks():
                    content += chunk
                    if len(content) > LONGEST_INDEX:
                        break
                    if time.monotonic() - since > INDEX_TIME:
                        raise TransientError(f"{len(content):,} bytes in {INDEX_TIME:.0f} seconds")
            finally:
                response.close()
    except TransientError as error:
        raise DownloadError(f"{url}: {error}", hint=error.hint or _HINT) from error
    return bytes(content)
