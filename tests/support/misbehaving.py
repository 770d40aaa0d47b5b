"""A file server that knows ranges and validators, and misbehaves as configured, one request after the other."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from safetensors.numpy import save

__all__ = ["Fault", "File", "Host", "Request", "host", "hosting", "weights"]

_PIECE = 16 << 10


def weights(size: int, seed: int = 0) -> bytes:
    """Return a safetensors file with ``size`` random bytes after its header."""
    return save({"w": np.random.default_rng(seed).integers(0, 256, size, np.uint8)})


@dataclass
class File:
    """The file at an address, sent ``drip`` bytes at a time, at ``rate`` bytes per second over each connection."""

    content: bytes
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    if_range: bool = True  # whether If-Range is obeyed
    rate: float | None = None
    drip: int = _PIECE


@dataclass(frozen=True)
class Fault:
    """The fault of one response.

    Attributes:
        cut: the body ends after so many bytes.
        reset: it ends with a broken connection and not with an orderly one.
        status: given in place of the file.
        headers: added, or in place of the right ones, or, where empty, left out.
        body: sent in place of the right one.
        then: what the file is from the next answer on.
        parallel: only while another response is under way.
    """

    cut: int | None = None
    reset: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    then: File | None = None
    parallel: bool = False


@dataclass
class Request:
    """A request, and how much of the body was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    sent: int = 0

    @property
    def start(self) -> int | None:
        """Start of the requested range; None: the whole file."""
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else None


@dataclass
class Host:
    """``faults[path]`` apply to one response after the other, then there are none; ``requests`` are those received."""

    url: str
    files: dict[str, File] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, path: str, file: File, *faults: Fault) -> str:
        self.files[path], self.faults[path] = file, list(faults)
        return self.url + path

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.requests)

    def fault(self, path: str) -> Fault:
        with self.lock:
            waiting = self.faults.get(path, [])
            if not waiting or (waiting[0].parallel and self.busy < 2):
                return Fault()
            return waiting.pop(0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: Host

    def do_GET(self) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()))
        with self.host.lock:
            self.host.busy += 1
            self.host.most_busy = max(self.host.busy, self.host.most_busy)
            self.host.requests.append(request)
        try:
            self._answer(request, self.host.fault(self.path))
        except OSError:  # the client went away
            pass
        finally:
            with self.host.lock:
                self.host.busy -= 1
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self, request: Request, fault: Fault) -> None:
        file = self.host.files.get(self.path)
        if file is None:
            self._head(404, {"Content-Length": "0"})
            return
        if fault.then:
            self.host.files[self.path] = fault.then
        status, headers, body = self._file(file)
        if fault.status is not None:
            status, headers, body = fault.status, {}, b""
        if fault.body is not None:
            body = fault.body
        self._head(status, {"Content-Length": str(len(body)), **headers, **fault.headers})
        if self.command == "GET":
            self._body(body[: fault.cut], file, request)
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _file(self, file: File) -> tuple[int, dict[str, str], bytes]:
        headers = {"Date": formatdate(usegmt=True)}
        headers |= {"ETag": file.etag} if file.etag else {}
        headers |= {"Last-Modified": file.modified} if file.modified else {}
        headers |= {"Accept-Ranges": "bytes"} if file.ranges else {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if condition and file.if_range and condition not in (file.etag, file.modified):
            wanted = None
        if not wanted or not file.ranges:
            return 200, headers, file.content
        start, total = int(wanted[1]), len(file.content)
        if start >= total:
            return 416, {**headers, "Content-Range": f"bytes */{total}"}, b""
        end = min(int(wanted[2]) + 1, total) if wanted[2] else total
        return 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{total}"}, file.content[start:end]

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Connection": "close"}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _body(self, body: bytes, file: File, request: Request) -> None:
        for offset in range(0, len(body), file.drip):
            piece = body[offset : offset + file.drip]
            self.wfile.write(piece)
            request.sent += len(piece)
            if file.rate:
                time.sleep(len(piece) / file.rate)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def hosting() -> Iterator[Host]:
    """Run a server."""
    host = Host("")
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"host": host}))
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def host() -> Iterator[Host]:
    with hosting() as running:
        yield running
