"""One request to a plain web server, and the answer to it."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime

import httpcore2
import httpx2

from vit_hub.errors import DownloadError
from vit_hub.hub.http.retry import ChangedError, PassingError, retry_after
from vit_hub.hub.names.credentials import hide_logins
from vit_hub.version import __version__

__all__ = ["Answer", "ask", "html_error", "new_client"]

TIMEOUT = httpx2.Timeout(30.0, connect=10.0)  # seconds, between two pieces of an answer
_REDIRECTS = 10
_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_REMEDIES = {
    401: "the server wants a login: give the address as https://USER:PASSWORD@..., or fetch the file yourself and give "
    "its path",
    403: "the server refuses: fetch the file yourself and give its path",
    404: "check the address",
    410: "the file is gone from there: look for another source",
}
_CONTENT_RANGE = re.compile("bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


@dataclass(frozen=True)
class Answer:
    """The head of an answer; the body is still to be read.

    Attributes:
        response: the client's.
        start: offset in the file of the body's first byte.
        length: bytes in the body, None: not known.
        total: bytes in the file, None: not known.
        validator: a strong ETag or a Last-Modified date that If-Range may carry, None: the server gives none.
        is_part: whether the server sends what was asked for; otherwise it sends all of the file.
        takes_ranges: whether the server says that parts can be asked for.
    """

    response: httpx2.Response
    start: int
    length: int | None
    total: int | None
    validator: str | None
    is_part: bool
    takes_ranges: bool

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes; where its length is known, not a byte less.

        Raises:
            PassingError: the connection broke.
        """
        with _transport_errors_pass():
            raw = self.response.iter_raw()
            if self.length is None or "Transfer-Encoding" in self.response.headers:
                yield from raw
                return
            # The client copies each 64 KiB several times. Its first chunk empties its buffers; what follows is the
            # body and nothing else, and is read from the connection itself, which is closed afterwards.
            first = next(raw, b"")
            yield first
            left = self.length - len(first)
            stream = self.response.extensions["network_stream"]
            while left > 0:
                chunk = stream.read(min(_CHUNK, left), timeout=TIMEOUT.read)
                if not chunk:
                    raise PassingError(f"{self.length - left:,} bytes came of {self.length:,}")
                left -= len(chunk)
                yield chunk

    def abort(self) -> None:
        """Ends, from another thread, a read that waits."""
        with contextlib.suppress(OSError):
            self.response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the connection."""
        self.response.close()


def new_client(login: tuple[str, str] | None = None) -> httpx2.Client:
    """A client for any number of threads. From https:// it never follows a redirect to http://.

    Args:
        login: user name and password; only the server that is asked first gets them, none that it redirects to.

    Raises:
        DownloadError: the environment's settings of proxies and certificates cannot be followed.
    """
    try:
        return httpx2.Client(
            # Without compression, so that Content-Length is the size of the file.
            headers={"User-Agent": f"vit-hub/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
            auth=login,
            timeout=TIMEOUT,
            follow_redirects=True,
            max_redirects=_REDIRECTS,
            event_hooks={"response": [_refuse_downgrade]},
        )
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        raise DownloadError(
            f"no connection can be made: {error}",
            hint="check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY (a SOCKS proxy wants `pip install socksio`), and "
            "SSL_CERT_FILE",
        ) from error


def ask(
    client: httpx2.Client,
    url: str,
    *,
    start: int | None = None,
    end: int | None = None,
    total: int | None = None,
    validator: str | None = None,
) -> Answer:
    """Asks for a file or a part of it. The answer is to be closed.

    Args:
        client: of :func:`new_client`.
        url: of the file.
        start: offset of the first byte that is wanted; None: the whole file.
        end: offset after the last one; None: to the end.
        total: bytes in the file that the part belongs to.
        validator: of the file that the part belongs to; a server whose file is another one sends all of it.

    Raises:
        PassingError: no answer, or one that asks to come back.
        ChangedError: a part of another file.
        DownloadError: a refusal.
    """
    headers = {}
    if start is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if validator:
            headers["If-Range"] = validator
    try:
        with _transport_errors_pass():
            response = client.send(client.build_request("GET", url, headers=headers), stream=True)
    except httpx2.UnsupportedProtocol as error:
        raise DownloadError(f"{url}: {error}", hint="only http:// and https:// can be fetched") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise DownloadError(f"{url}: {error}", hint="check the address") from error
    try:
        _refuse_bad_answer(url, response, ranged=start is not None)
        if start is not None and response.status_code == 206:
            return _part(response, start, end, total, validator)
        size = _content_length(response)
        ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        return Answer(response, 0, size, size, _validator(response), is_part=False, takes_ranges=ranges)
    except BaseException:
        response.close()
        raise


def html_error(url: str) -> DownloadError:
    """Says that a page came in place of a file."""
    return DownloadError(
        f"{url}: the server sent an HTML page in place of the file",
        hint="it may want a login, or this is the address of a page about the file: open it in a browser",
    )


def _refuse_downgrade(response: httpx2.Response) -> None:
    if response.has_redirect_location and response.url.scheme == "https":
        target = response.url.join(response.headers["Location"])
        if target.scheme == "http":
            raise DownloadError(
                hide_logins(f"{response.url}: redirected from https:// to {target}")
                + ", where anybody on the way could change it",
                hint="look for another address of the file",
            )


@contextlib.contextmanager
def _transport_errors_pass() -> Iterator[None]:
    try:
        yield
    except httpx2.UnsupportedProtocol:
        raise
    # The connection itself raises those of the layer below.
    except (httpx2.TransportError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        raise PassingError(str(error) or type(error).__name__) from error


def _refuse_bad_answer(url: str, response: httpx2.Response, *, ranged: bool) -> None:
    status = response.status_code
    answer = f"the server answered {status} {response.reason_phrase}".rstrip()
    if status in _PASSING:
        raise PassingError(answer, wait=retry_after(response.headers.get("Retry-After", "")))
    if ranged and status == 416:
        raise ChangedError(answer)
    if status != 200 and not (ranged and status == 206):
        raise DownloadError(f"{url}: {answer}", hint=_REMEDIES.get(status, "check the address"))
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise html_error(url)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise DownloadError(
            f"{url}: the server sends it compressed ({encoding}), against the request",
            hint="fetch the file yourself and give its path",
        )


def _part(response: httpx2.Response, start: int, end: int | None, total: int | None, validator: str | None) -> Answer:
    given = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(given.strip())
    first, last, whole = map(int, match.groups()) if match else (-1, -1, -1)
    if first != start or whole != total or not start <= last < (end or whole):
        raise ChangedError(f"asked for byte {start:,} of {total:,}, the server sends {given or 'it does not say what'}")
    # A server that knows nothing of If-Range sends a part of whatever file it has now.
    now = response.headers.get("ETag" if (validator or "").startswith('"') else "Last-Modified", validator)
    if validator and now != validator:
        raise ChangedError(f"the file was {validator} and is {now} now")
    length = last - first + 1
    if _content_length(response) not in (None, length):
        raise ChangedError(f"the server sends {given} in {_content_length(response):,} bytes")
    return Answer(response, first, length, whole, validator, is_part=True, takes_ranges=True)


def _content_length(response: httpx2.Response) -> int | None:
    declared = response.headers.get("Content-Length", "")
    return int(declared) if declared.isdecimal() else None


def _validator(response: httpx2.Response) -> str | None:
    """What If-Range may carry (RFC 9110, 13.1.5): only what changes with every change of the file."""
    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    if etag.startswith('"'):  # a weak one begins with W/
        return str(etag)
    try:
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(modified)
        return str(modified) if age >= timedelta(seconds=1) else None
    except (ValueError, TypeError):
        return None
