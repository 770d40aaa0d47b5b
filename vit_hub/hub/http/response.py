"""One request to a plain web server, and the response to it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore2
import httpx2

from vit_hub.errors import DownloadError
from vit_hub.hub.http.failures import check_certificates, explain, proxy_login
from vit_hub.hub.http.retry import ChangedError, TransientError, retry_after
from vit_hub.hub.names.credentials import hide_credentials
from vit_hub.version import __version__

__all__ = ["TRANSIENT", "Response", "html_error", "new_client", "request"]

TIMEOUT = httpx2.Timeout(30.0, connect=10.0)  # seconds, between two reads
HEAD_TIME = 15.0  # seconds, from a request to the end of the response's head, unless ...
_HEAD_TIME_SET = "VIT_HUB_TIMEOUT"  # ... this variable says another number, for servers that need longer
SLOW_RATE = 1024.0  # bytes per second; a connection that gives less than this ...
SLOW_TIME = 20.0  # ... over so many seconds is cut
_LONGEST = 3600  # seconds
_REDIRECTS = 10
_CHUNK = 1 << 20  # bytes
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_REMEDIES = {
    401: "the server requires a login: give the address as https://USER:PASSWORD@..., or fetch the file yourself and "
    "give its path",
    403: "the server refuses: fetch the file yourself and give its path",
    404: "check the address",
    407: proxy_login(),
    410: "the file is gone from there: look for another source",
}
_CONTENT_RANGE = re.compile("bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


# Compared by identity: no two responses are the same.
@dataclass(frozen=True, eq=False)
class Response:
    """The head of a response; the body is still to be read.

    Attributes:
        http: the client's response.
        total: bytes in the file; None: not known.
        validator: a strong ETag or a Last-Modified date that If-Range may carry; None: the server gives none.
        is_part: the body is the range that was requested; otherwise it is the whole file.
        takes_ranges: the server says that ranges can be requested.
    """

    http: httpx2.Response
    total: int | None
    validator: str | None
    is_part: bool
    takes_ranges: bool

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes; where its length is known, not a byte less.

        Raises:
            TransientError: the connection broke.
        """
        # Where a redirect led to, the query may be a signature that lets anybody fetch the file.
        url, stream = str(self.http.url.copy_with(query=None)), self.http.extensions.get("network_stream")
        with _RateWatch(stream) as watch, _transport_errors(url, watch):
            body, length = self.http.iter_raw(), _content_length(self.http)
            if length is None or "Transfer-Encoding" in self.http.headers:
                for chunk in body:
                    yield from watch.pass_on(chunk)
                return
            # The client copies each 64 KiB several times. Its first chunk empties its buffers; what follows is the
            # body and nothing else, and is read from the connection itself, which is closed afterwards.
            chunk = next(body, b"")
            while chunk:
                yield from watch.pass_on(chunk)
                length -= len(chunk)
                assert stream is not None
                chunk = stream.read(min(_CHUNK, length), timeout=TIMEOUT.read) if length else b""
            if watch.cut:
                raise TransientError(watch.cut, slow=True)
            if length:
                raise TransientError(f"the connection ended {length:,} bytes too early")

    def abort(self) -> None:
        """End, from another thread, a read that waits."""
        _shut(self.http.extensions["network_stream"])

    def close(self) -> None:
        """Release the connection."""
        self.http.close()


def new_client(credentials: tuple[str, str] | None = None) -> httpx2.Client:
    """Return a client for any number of threads. From https:// it never follows a redirect to http://.

    Args:
        credentials: user name and password; only the first server gets them, none that it redirects to.

    Raises:
        DownloadError: the environment's settings of proxies or certificates are invalid.
    """
    check_certificates()
    try:
        return httpx2.Client(
            # Without compression, so that Content-Length is the size of the file.
            headers={"User-Agent": f"vit-hub/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
            auth=credentials,
            timeout=_timeout(),
            follow_redirects=True,
            max_redirects=_REDIRECTS,
            # A connection for each request, which can be cut if its response does not come.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            event_hooks={"response": [_refuse_downgrade]},
        )
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        raise DownloadError(
            f"no connection can be made: {error}",
            hint="check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY (a SOCKS proxy needs `pip install socksio`)",
        ) from error


def request(
    client: httpx2.Client,
    url: str,
    *,
    start: int | None = None,
    end: int | None = None,
    total: int | None = None,
    validator: str | None = None,
) -> Response:
    """Request a file or a range of it. The caller closes the response.

    Args:
        client: of :func:`new_client`.
        url: of the file.
        start: offset of the first byte; None: the whole file.
        end: offset after the last byte; None: to the end.
        total: bytes in the file that the range belongs to.
        validator: of the file that the range belongs to; a server that has another version sends all of it.

    Raises:
        TransientError: no response, or one that says to come back.
        ChangedError: a range of another version.
        DownloadError: a refusal.
    """
    headers = {}
    if start is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if validator:
            headers["If-Range"] = validator
    watch = _HeadWatch()
    try:
        with _transport_errors(url, watch):
            extensions = {"trace": watch}
            http = client.send(client.build_request("GET", url, headers=headers, extensions=extensions), stream=True)
    except httpx2.UnsupportedProtocol as error:
        raise DownloadError(f"{url}: {error}", hint="only http:// and https:// can be fetched") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:  # the last of a name that is no domain's
        raise DownloadError(f"{url}: {error}", hint="check the address") from error
    try:
        _check_head(url, http, ranged=start is not None)
        if start is not None and http.status_code == 206:
            _check_range(http, start, end, total, validator)
            return Response(http, total, validator, is_part=True, takes_ranges=True)
        ranges = http.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        return Response(http, _content_length(http), _validator(http), is_part=False, takes_ranges=ranges)
    except BaseException:
        http.close()
        raise


def html_error(url: str) -> DownloadError:
    """Return the error for a page that came in place of a file."""
    return DownloadError(
        f"{url}: the server sent an HTML page in place of the file",
        hint="it may require a login, or this is the address of a page about the file: open it in a browser",
    )


class _HeadWatch:
    """A limit on the time until the head of a response is complete, as a trace of the client.

    The client's own limit is between two reads, and is never reached where a server goes on sending a byte at a time,
    or interim responses (1xx) without an end.

    Attributes:
        cut: what the server did until the connection was cut; empty: it was not.
        endless: it was sending as fast as could be read, so that another attempt is useless.
        slow: bytes of a body came.
    """

    def __init__(self) -> None:
        self.cut, self.endless, self.slow = "", False, False
        self._stream: Any = None
        self._timer: threading.Timer | None = None

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow the client from one event to the next."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._stream = info["return_value"]
        elif event.endswith("receive_response_headers.started"):
            self._timer = threading.Timer(_head_time(), self._expire, [self._stream])
            self._timer.daemon = True
            self._timer.start()
        elif "receive_response_headers." in event and self._timer:
            self._timer.cancel()

    def _expire(self, stream: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            self.endless = bool(select.select([stream.get_extra_info("socket")], [], [], 0)[0])
        self.cut = f"no response within {_head_time():g} seconds" + (", but interim ones without end" * self.endless)
        _shut(stream)


class _RateWatch:
    """A least rate of a body in the ``with`` body, also where the client waits for the end of what is no content.

    The time that the caller takes for a chunk, such as that of a disk that stalls, is not the server's.

    Attributes:
        cut: as of :class:`_HeadWatch`, like the others.
    """

    def __init__(self, stream: Any) -> None:
        self._count = 0
        self._held, self._passed = 0.0, 0.0  # seconds: with the caller, and when it got what it has
        self.cut, self.endless, self.slow = "", False, True
        self._stream = stream
        self._ended = threading.Event()

    def __enter__(self) -> _RateWatch:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def pass_on(self, chunk: bytes) -> Iterator[bytes]:
        """Count and yield a chunk."""
        self._count += len(chunk)
        self._passed = time.monotonic()
        yield chunk
        self._held += time.monotonic() - self._passed
        self._passed = 0.0

    def _with_caller(self) -> float:
        passed = self._passed
        return self._held + (time.monotonic() - passed if passed else 0.0)

    def _watch(self) -> None:
        count, held = 0, 0.0
        while not self._ended.wait(SLOW_TIME):
            before, count = count, self._count
            earlier, held = held, self._with_caller()
            gained, waited = count - before, SLOW_TIME - (held - earlier)
            if waited > SLOW_TIME / 2 and gained < SLOW_RATE * waited and self._stream is not None:
                self.cut = f"{gained:,} bytes in {waited:.0f} seconds"
                _shut(self._stream)
                return


def _timeout() -> httpx2.Timeout:
    """Return the client's own limits, of which the one between two reads leaves the head its time."""
    if not os.environ.get(_HEAD_TIME_SET):
        return TIMEOUT
    return httpx2.Timeout(max(TIMEOUT.read or 0.0, _head_time()), connect=TIMEOUT.connect)


def _head_time() -> float:
    """Return the seconds from a request to the end of the response's head.

    Raises:
        DownloadError: the variable that says them is no number of seconds.
    """
    given = os.environ.get(_HEAD_TIME_SET, "")
    try:
        seconds = float(given or HEAD_TIME)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST:
        raise DownloadError(
            f"{_HEAD_TIME_SET}={given!r} is no number of seconds up to {_LONGEST:,}", hint="unset it, or set 60"
        )
    return seconds


def _shut(stream: Any) -> None:
    with contextlib.suppress(OSError):
        stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _refuse_downgrade(http: httpx2.Response) -> None:
    if http.has_redirect_location and http.url.scheme == "https":
        target = http.url.join(http.headers["Location"])
        if target.scheme == "http":
            raise DownloadError(
                hide_credentials(f"{http.url}: redirected from https:// to {target}")
                + ", where anybody on the way could change it",
                hint="look for another address of the file",
            )


@contextlib.contextmanager
def _transport_errors(url: str, watch: _HeadWatch | _RateWatch) -> Iterator[None]:
    """Turn failures of the connection into transient errors, and those that will not pass into download errors."""
    try:
        yield
    except httpx2.UnsupportedProtocol:
        raise
    # The connection itself raises those of the layer below.
    except (httpx2.TransportError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        if watch.cut:
            if watch.endless:
                raise DownloadError(f"{url}: {watch.cut}", hint="look for another address of the file") from error
            raise TransientError(watch.cut, slow=watch.slow) from error
        failure = explain(error, url)
        if failure.final:
            reason = failure.message if failure.no_network else ""
            raise DownloadError(f"{url}: {failure.message}", hint=failure.hint, reason=reason) from error
        raise TransientError(failure.message, hint=failure.hint, no_network=failure.no_network) from error


def _check_head(url: str, http: httpx2.Response, *, ranged: bool) -> None:
    status = http.status_code
    answer = f"the server answered {status} {http.reason_phrase}".rstrip()
    if status in TRANSIENT:
        raise TransientError(answer, wait=retry_after(http.headers.get("Retry-After", "")))
    if ranged and status == 416:
        raise ChangedError(answer)
    if status != 200 and not (ranged and status == 206):
        raise DownloadError(f"{url}: {answer}", hint=_REMEDIES.get(status, "check the address"))
    if http.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise html_error(url)
    encoding = http.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise DownloadError(
            f"{url}: the server sends it compressed ({encoding}), which was not accepted",
            hint="fetch the file yourself and give its path",
        )


def _check_range(http: httpx2.Response, start: int, end: int | None, total: int | None, validator: str | None) -> None:
    given = http.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(given.strip())
    first, last, whole = map(int, match.groups()) if match else (-1, -1, -1)
    if first != start or whole != total or not start <= last < (end or whole):
        raise ChangedError(f"asked for byte {start:,} of {total:,}, the server sends {given or 'no Content-Range'}")
    # A server that ignores If-Range sends a range of whatever version it has now.
    now = http.headers.get("ETag" if (validator or "").startswith('"') else "Last-Modified", validator)
    if validator and now != validator:
        raise ChangedError(f"the file was {validator} and is {now} now")
    length = _content_length(http)
    if length not in (None, last - first + 1):
        raise ChangedError(f"the server sends {given} in {length:,} bytes")


def _content_length(http: httpx2.Response) -> int | None:
    declared = http.headers.get("Content-Length", "")
    return int(declared) if declared.isdecimal() else None


def _validator(http: httpx2.Response) -> str | None:
    """Return what If-Range may carry (RFC 9110, 13.1.5): only what changes with every change of the file."""
    etag, modified = http.headers.get("ETag", ""), http.headers.get("Last-Modified", "")
    if etag.startswith('"'):  # a weak one begins with W/
        return str(etag)
    try:
        age = parsedate_to_datetime(http.headers.get("Date", "")) - parsedate_to_datetime(modified)
        return str(modified) if age >= timedelta(seconds=1) else None
    except (ValueError, TypeError, OverflowError):
        return None
