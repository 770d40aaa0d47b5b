"""Files at plain addresses: fetched in as many attempts and runs as it takes, whole under their name or not at all."""

from __future__ import annotations

import contextlib
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import httpx2

from vit_hub.converters.containers.sniff import sniff
from vit_hub.errors import CheckpointError, DownloadError, IntegrityError, VitHubError
from vit_hub.hub.cache.hashes import check, stamp
from vit_hub.hub.http.part_file import Part
from vit_hub.hub.http.response import Answer, ask, html_error, new_client
from vit_hub.hub.http.retry import ChangedError, PassingError, Patience
from vit_hub.hub.http.transfer import NOTHING_KEPT, Transfer
from vit_hub.hub.names.credentials import login_of, without_login
from vit_hub.progress import byte_bar
from vit_hub.registry import WeightSource

__all__ = ["stream_to"]

CONNECTIONS = 4
_PAGE = 64 << 10  # bytes; what comes in place of a file and is smaller is looked at, to say what it is
_HEAD = 1024
_LFS = b"version https://git-lfs"


def stream_to(path: Path, source: WeightSource, *, checkpoint: bool = True, progress: bool = False) -> None:
    """Fetches ``source.url`` to ``path``, trying again after failures that may pass.

    What an interrupted call leaves beside ``path``, in hidden files, the next one continues. The caller holds the lock
    of ``path``.

    Args:
        path: the file; it appears under this name whole and checked, or not at all.
        source: ``url``, which may have a user name and a password, and what is pinned of size and sha256.
        checkpoint: refuse what is no checkpoint.
        progress: show a bar on a terminal.

    Raises:
        DownloadError: the server does not deliver; the message has its answer.
        IntegrityError: what it delivers is not what is pinned.
        CheckpointError: what it delivers is no checkpoint.
        VitHubError: the disk is full, or does not take the file for another reason.
    """
    login, source = login_of(source.url or ""), replace(source, url=without_login(source.url or ""))
    part = Part(path, pinned=bool(source.sha256 or source.sha256_prefix))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.restore(source.size)
            with new_client(login) as client:
                sha256 = _fetch(client, part, source, path.name, progress)
        except (IntegrityError, OSError):
            part.discard()
            raise
        except BaseException:
            part.keep()
            raise
        try:
            _check(part.file, source, sha256, checkpoint)
            part.finish()
        except BaseException:
            part.discard()
            raise
    except OSError as error:
        raise VitHubError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="check the free space and the permissions of the folder, or set VIT_HUB_CACHE to another one; "
            "nothing was kept",
        ) from error
    stamp(path, sha256)


def _fetch(client: httpx2.Client, part: Part, source: WeightSource, label: str, progress: bool) -> str:
    """Fills the part; gives the sha256."""
    patience, connections = Patience(source.url or "", threading.Event()), CONNECTIONS
    furthest = part.size
    while True:
        try:
            return _attempt(client, part, source, connections, label, progress)
        except PassingError as error:
            failure, reached = error, part.size
        except ChangedError as error:
            failure, reached = PassingError(str(error)), part.size
            part.discard()
            # Behind one address may be several servers whose ETags differ.
            connections = 1
        patience.wait_after(failure, gained=reached > furthest)
        furthest = max(furthest, reached)


def _attempt(
    client: httpx2.Client, part: Part, source: WeightSource, connections: int, label: str, progress: bool
) -> str:
    url = source.url or ""
    with contextlib.ExitStack() as stack:
        answer = None
        if not part.complete:
            start = part.gaps()[0].position if part.resumable and part.size else None
            answer = ask(client, url, start=start, total=part.total, validator=part.validator)
            stack.callback(answer.close)
            if not answer.is_part:
                _refuse_wrong_size(answer, source)
                part.begin(answer.total, answer.validator)
            _refuse_full_disk(part, source)
            if not (answer.takes_ranges and part.resumable):
                connections = 1
        advance = stack.enter_context(byte_bar(label, part.total, initial=part.size, show=progress))
        return Transfer(client, url, part, most=source.size).run(answer, connections, advance)


def _refuse_wrong_size(answer: Answer, source: WeightSource) -> None:
    if source.size is not None and answer.total not in (None, source.size) and (answer.total or 0) > _PAGE:
        raise IntegrityError(
            f"{source.url}: the server's file has {answer.total:,} bytes, expected are {source.size:,}",
            hint=NOTHING_KEPT,
        )


def _refuse_full_disk(part: Part, source: WeightSource) -> None:
    total = part.total if part.total is not None else source.size
    folder = part.file.parent
    needed, free = (total or 0) - part.size, shutil.disk_usage(folder).free
    if needed > free:
        raise VitHubError(
            f"{folder}: {source.url} needs {needed:,} bytes more, and {free:,} are free",
            hint="make room there, or set VIT_HUB_CACHE to a folder on a larger disk",
        )


def _check(file: Path, source: WeightSource, sha256: str, checkpoint: bool) -> None:
    url = source.url or ""
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise html_error(url)
    if head.startswith(_LFS):
        raise DownloadError(
            f"{url}: a git-LFS pointer, not the weights themselves",
            hint="take the address of the file's download, not of its text in the repository",
        )
    check(source, url, size=file.stat().st_size, sha256=sha256, hint=NOTHING_KEPT)
    if checkpoint:
        try:
            sniff(file)
        except CheckpointError as error:
            raise type(error)(error.message.replace(str(file), url), hint=error.hint) from error
