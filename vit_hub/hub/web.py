"""Files at plain addresses: streamed to disk, hashed on the way, whole or not there at all."""

from __future__ import annotations

import hashlib
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from vit_hub.converters.containers import atomic_path
from vit_hub.converters.containers.sniff import sniff
from vit_hub.errors import CheckpointError, DownloadError, IntegrityError
from vit_hub.hub.integrity import check, stamp
from vit_hub.progress import byte_bar
from vit_hub.registry import WeightSource

__all__ = ["stream_to"]

ATTEMPTS = 4
LONGEST_WAIT = 120.0  # seconds; a server that wants more is not waited for
_BACKOFF = 0.5  # seconds before the second attempt, doubled before each further one
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_REMEDIES = {
    401: "the server wants a login: fetch the file yourself and give its path",
    403: "the server refuses: fetch the file yourself and give its path",
    404: "check the address",
    410: "the file is gone from there: look for another source",
}


class _PassingError(Exception):
    """A failure that may not happen again."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def stream_to(path: Path, source: WeightSource, *, progress: bool = False) -> None:
    """Fetches ``source.url`` to ``path``, trying again after failures that may pass.

    Args:
        path: the file; it appears under this name whole and checked, or not at all.
        source: ``url``, and what is pinned of size and sha256.
        progress: show a bar on a terminal.

    Raises:
        DownloadError: the server does not deliver; the message has its answer.
        IntegrityError: what it delivers is not what is pinned.
        CheckpointError: what it delivers is no checkpoint, or the disk is full.
    """
    from vit_hub import __version__

    # Without compression, so that Content-Length is the size of the file.
    headers = {"User-Agent": f"vit-hub/{__version__}", "Accept-Encoding": "identity"}
    with httpx2.Client(headers=headers, timeout=_TIMEOUT, follow_redirects=True) as client:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _attempt(client, path, source, progress)
            except _PassingError as failure:
                wait = _BACKOFF * 2 ** (attempt - 1) if failure.wait is None else failure.wait
                if attempt == ATTEMPTS:
                    raise DownloadError(
                        f"{source.url}: {failure}, {ATTEMPTS} times", hint="try again later, or check the connection"
                    ) from failure
                if wait > LONGEST_WAIT:
                    raise DownloadError(
                        f"{source.url}: {failure}", hint=f"the server asks to come back in {wait:.0f} seconds"
                    ) from failure
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _attempt(client: httpx2.Client, path: Path, source: WeightSource, progress: bool) -> None:
    url = source.url or ""
    try:
        with client.stream("GET", url) as response:
            _refuse_bad_answer(url, response)
            _receive(response, path, source, progress)
    except httpx2.UnsupportedProtocol as error:
        raise DownloadError(f"{url}: {error}", hint="only http:// and https:// can be fetched") from error
    except httpx2.TransportError as error:
        raise _PassingError(str(error) or type(error).__name__) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise DownloadError(f"{url}: {error}", hint="check the address") from error


def _refuse_bad_answer(url: str, response: httpx2.Response) -> None:
    answer = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in _PASSING:
        raise _PassingError(answer, _retry_after(response.headers.get("Retry-After", "")))
    if response.status_code != 200:
        raise DownloadError(f"{url}: {answer}", hint=_REMEDIES.get(response.status_code, "check the address"))
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _html(url)


def _receive(response: httpx2.Response, path: Path, source: WeightSource, progress: bool) -> None:
    url = source.url or ""
    declared = response.headers.get("Content-Length", "")
    total = int(declared) if declared.isdecimal() else None
    digest, size = hashlib.sha256(), 0
    hint = "nothing was kept; the file was changed at its source, or the connection is tampered with"
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file, byte_bar(path.name, total, show=progress) as advance:
            for chunk in response.iter_bytes(_CHUNK):
                if not size and chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                    raise _html(url)
                size += len(chunk)
                if source.size is not None and size > source.size:
                    raise IntegrityError(f"{url}: more than the {source.size:,} bytes that are pinned", hint=hint)
                file.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
        if total is not None and response.num_bytes_downloaded != total:
            raise _PassingError(f"{response.num_bytes_downloaded:,} bytes came of {total:,}")
        check(source, url, size=size, sha256=digest.hexdigest(), hint=hint)
        try:
            sniff(temporary)
        except CheckpointError as error:
            raise type(error)(error.message.replace(str(temporary), url), hint=error.hint) from error
    stamp(path, digest.hexdigest())


def _html(url: str) -> DownloadError:
    return DownloadError(
        f"{url}: the server sent an HTML page in place of the file",
        hint="it may want a login, or this is the address of a page about the file: open it in a browser",
    )


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
