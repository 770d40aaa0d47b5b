"""The download of one file: in as many attempts and runs as it takes, complete under its name or absent."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import httpx2

from vit_hub.converters.containers import open_raw
from vit_hub.converters.containers.sniff import HEAD_BYTES, HTML_PAGE, LFS_POINTER, describe, sniff
from vit_hub.errors import CheckpointError, DownloadError, IntegrityError, UnsafeCheckpointError, VitHubError
from vit_hub.hub.cache.hashes import check, stamp
from vit_hub.hub.http.part_file import PartFile
from vit_hub.hub.http.response import Response, html_error, new_client, request
from vit_hub.hub.http.retry import ChangedError, RetryPolicy, TransientError
from vit_hub.hub.http.transfer import NOTHING_KEPT, Transfer
from vit_hub.hub.names.credentials import credentials_of, without_credentials
from vit_hub.progress import byte_bar
from vit_hub.registry import WeightSource

__all__ = ["refuse_no_checkpoint", "stream_to"]

_CONTINUES = "run it again to continue: what was fetched is kept"
LARGE = 64 << 20  # bytes to come, from which on a file is divided among several connections ...
PIECE = 32 << 20  # ... that request so many bytes at a time
_PAGE = (
    64 << 10
)  # bytes; an answer of another size that is no larger is fetched anyway, so that the error can describe it


def stream_to(path: Path, source: WeightSource, *, checkpoint: bool = True, progress: bool = False) -> None:
    """Fetch ``source.url`` to ``path``, retrying after transient failures.

    An interrupted download leaves hidden files beside ``path``, which the next call continues. The caller holds the
    file lock of ``path``.

    Args:
        path: the file; it appears under this name complete and checked, or not at all.
        source: ``url``, which may have a user name and a password, and what is pinned of size and sha256.
        checkpoint: refuse a file that is no checkpoint.
        progress: show a bar on a terminal.

    Raises:
        DownloadError: the server does not deliver; the message has its answer.
        IntegrityError: the file is not the pinned one.
        CheckpointError: the file is no checkpoint.
        VitHubError: the file cannot be written: the disk is full, or refuses for another reason.
    """
    url = source.url or ""
    credentials, source = credentials_of(url), replace(source, url=without_credentials(url))
    part = PartFile(path, pinned=bool(source.sha256 or source.sha256_prefix))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.restore(source.size)
            with new_client(credentials) as client:
                sha256 = _fetch(client, part, source, path.name, progress)
        except (IntegrityError, OSError):
            part.discard()
            raise
        except KeyboardInterrupt as error:
            part.keep()
            if part.resumable:
                raise KeyboardInterrupt(_CONTINUES) from error
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


def _fetch(client: httpx2.Client, part: PartFile, source: WeightSource, label: str, progress: bool) -> str:
    """Complete the file, in as many attempts as it takes; return its sha256."""
    policy, furthest, divide = RetryPolicy(source.url or ""), part.size, True
    while True:
        try:
            return _attempt(client, part, source, label, divide=divide, progress=progress)
        except TransientError as error:
            failure, reached = error, part.size
        except ChangedError as error:
            failure, reached = TransientError(str(error)), part.size
            part.discard()
            # One address may stand for several servers with different ETags.
            divide = False
        policy.wait_after(failure, gained=reached > furthest)
        furthest = max(furthest, reached)


def _attempt(
    client: httpx2.Client, part: PartFile, source: WeightSource, label: str, *, divide: bool, progress: bool
) -> str:
    url, response = source.url or "", None
    if not part.complete:
        start = part.missing_pieces()[0].position if part.resumable else None
        response = request(client, url, start=start, total=part.total, validator=part.validator)
        if not response.is_part:
            _refuse_wrong_size(response, source)
            part.begin(response.total, response.validator)
        missing = _refuse_full_disk(part, source)
        if divide and response.takes_ranges and part.resumable and missing >= LARGE:
            part.divide(PIECE)
    with byte_bar(label, part.total, initial=part.size, show=progress) as advance:
        return Transfer(client, url, part, most=source.size).run(response, advance)


def _refuse_wrong_size(response: Response, source: WeightSource) -> None:
    if source.size is not None and response.total not in (None, source.size) and (response.total or 0) > _PAGE:
        raise IntegrityError(
            f"{source.url}: the server's file has {response.total:,} bytes, expected {source.size:,}",
            hint=NOTHING_KEPT,
        )


def _refuse_full_disk(part: PartFile, source: WeightSource) -> int:
    """Return how many bytes are to come, as far as that is known."""
    total = part.total if part.total is not None else source.size
    folder = part.file.parent
    missing, free = (total or 0) - part.size, shutil.disk_usage(folder).free
    if missing > free:
        raise VitHubError(
            f"{folder}: {source.url} needs {missing:,} bytes more, and {free:,} are free",
            hint="make room there, or set VIT_HUB_CACHE to a folder on a larger disk",
        )
    return missing


def _check(file: Path, source: WeightSource, sha256: str, checkpoint: bool) -> None:
    url = source.url or ""
    with file.open("rb") as stream:
        content = describe(stream.read(HEAD_BYTES))
    if content == HTML_PAGE:
        raise html_error(url)
    if content == LFS_POINTER:
        raise DownloadError(
            f"{url}: {LFS_POINTER}, not the weights themselves",
            hint="take the address of the file's download, not of its text in the repository",
        )
    check(source, url, size=file.stat().st_size, sha256=sha256, hint=NOTHING_KEPT)
    if checkpoint:
        refuse_no_checkpoint(file, url, is_pinned=bool(source.sha256 or source.sha256_prefix))


def refuse_no_checkpoint(file: Path, name: str, *, is_pinned: bool) -> None:
    """Refuse a fetched file that is in no known container, or that is cut.

    The connection cannot tell where a server gives no length, or a wrong one; the container's own lengths do.

    Args:
        file: where it is for now.
        name: the file, for the message.
        is_pinned: its hash was compared, so that it is complete.

    Raises:
        CheckpointError: it is no checkpoint, or an incomplete or damaged one.
    """
    try:
        if sniff(file) != "index" and not is_pinned:  # the files of an index are fetched after it
            open_raw(file)
    except UnsafeCheckpointError:
        pass  # complete; opening it says why it is refused
    except CheckpointError as error:
        raise type(error)(error.message.replace(str(file), name), hint=error.hint) from error
