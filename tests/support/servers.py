"""Local web servers for tests: one that gives configured replies, and one for the real huggingface_hub client."""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass(frozen=True)
class Reply:
    """One answer; ``length`` is what Content-Length claims, None: the body's, -1: nothing is claimed."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    delay: float = 0.0


Answer = Callable[[str, str], Reply]  # (method, path) -> reply


@dataclass
class Server:
    """``replies[path]`` are given in turn, the last one again and again; ``requests`` are those received."""

    url: str
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, *replies: Reply) -> str:
        self.replies[path] = list(replies)
        return self.url + path

    def answer(self, method: str, path: str) -> Reply:
        waiting = self.replies.get(path)
        if not waiting:
            return Reply(b"no such page", 404)
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def count(self, method: str = "GET") -> int:
        return sum(received == method for received, _ in self.requests)


@dataclass
class HubServer(Server):
    """The part of Hugging Face's API that downloads need.

    HEAD and GET of ``/{repo}/resolve/{revision}/{file}``, and GET of ``/api/models/{repo}/revision/{revision}``.
    """

    repos: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    refusal: int = 403  # status for a gated repository: 401 without a login
    commit_header: str = "X-Repo-Commit"
    revisions: set[str] = field(default_factory=set)  # beside main and the commit
    spoiled: dict[str, bytes] = field(default_factory=dict)  # file -> content sent instead of its own

    def add_repo(self, repo: str, files: Mapping[str, bytes], commit: str = "c" * 40) -> None:
        self.repos[repo] = (commit, dict(files))

    def answer(self, method: str, path: str) -> Reply:
        about = path.startswith("/api/models/")
        parts = path.partition("?")[0].removeprefix("/api/models" if about else "").removeprefix("/").split("/", 4)
        repo = "/".join(parts[:2])
        if not (about or (len(parts) == 5 and parts[2] == "resolve")) or repo not in self.repos:
            return Reply(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if repo in self.gated and not about:
            return Reply(status=self.refusal, headers={"X-Error-Code": "GatedRepo"})
        commit, files = self.repos[repo]
        if unquote("main" if len(parts) < 4 else parts[3]) not in (commit, "main", *self.revisions):
            return Reply(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        if about:
            known = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return Reply(json.dumps(known).encode(), headers={"Content-Type": "application/json"})
        name = unquote(parts[4])
        if name not in files:
            return Reply(status=404, headers={"X-Error-Code": "EntryNotFound", self.commit_header: commit})
        content = files[name]
        large = not name.endswith(".json")
        etag = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        headers = {self.commit_header: commit, "ETag": f'"{etag}"'}
        if large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        return Reply(self.spoiled.get(name, content), headers=headers)


TLS = Path(__file__).parent / "tls"


@contextlib.contextmanager
def listening(handler: Callable[..., BaseHTTPRequestHandler], certificate: str | None = None) -> Iterator[str]:
    """Run a server, with one of the certificates in ``tls/`` or in plain HTTP; yield its address."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / f"{certificate}.pem")
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@contextlib.contextmanager
def serving(kind: type[Server] = Server, certificate: str | None = None) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.command, self.path))
            reply = state.answer(self.command, self.path)
            time.sleep(reply.delay)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            length = len(reply.body) if reply.length is None else reply.length
            if length >= 0:
                self.send_header("Content-Length", str(length))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(reply.body)
            self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Handler, certificate) as url:
        state = kind(url)
        yield state
