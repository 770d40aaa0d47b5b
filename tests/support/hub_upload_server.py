"""The part of Hugging Face's API that uploads need, for the real huggingface_hub client; what came can be downloaded.

Its routes: create a repository or branch, check the card's metadata, say how each file is to be sent, take large files
by git-lfs, take a commit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from servers import HubServer, Reply, listening

TOKEN = "hf_tests"
OWNER = "me"


@dataclass
class UploadServer(HubServer):
    """A server that accepts ``TOKEN``, whose owner may write to repositories of ``OWNER`` and in no other place."""

    private: set[str] = field(default_factory=set)
    branches: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # by sha256
    messages: list[str] = field(default_factory=list)
    broken: str = ""  # a request whose path has this in it is answered 500

    def answer(self, method: str, path: str) -> Reply:
        parts = path.removeprefix("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo = "/".join(parts[2:4])
            if repo not in self.repos:
                return Reply(status=404, headers={"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in self.repos[repo][1]]
            about = {"private": repo in self.private, "sha": "c" * 40, "tags": []}
            return _json({"id": repo, "siblings": siblings, **about})
        return super().answer(method, path)

    def take(self, method: str, path: str, token: str | None, body: bytes) -> Reply:
        """Answer a request that changes something."""
        if self.broken and self.broken in path:
            return Reply(b"{}", 500)
        if method == "PUT":
            self.stored[path.rpartition("/")[2]] = body
            return Reply()
        if token != TOKEN:
            return Reply(b'{"error": "Invalid credentials in Authorization header"}', 401)
        parts = path.partition("?")[0].removeprefix("/").split("/")
        if parts[:2] == ["api", "validate-yaml"]:
            return self._validate(json.loads(body))
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2]).removesuffix(".git")
        if repo.partition("/")[0] != OWNER:
            return Reply(b'{"error": "You do not have write access"}', 403)
        if repo not in self.repos:
            return Reply(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if parts[-1] == "batch":
            return self._lfs(json.loads(body))
        if parts[4] == "branch":
            known = (repo, parts[5]) in self.branches or parts[5] == "main"
            self.branches.setdefault((repo, parts[5]), dict(self.repos[repo][1]))
            return Reply(b"{}", 409 if known else 200)
        if parts[4] == "preupload":
            files = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for item in json.loads(body)["files"]
            ]
            return _json({"files": files})
        return self._commit(repo, parts[5], [json.loads(line) for line in body.splitlines()])

    def _validate(self, asked: Any) -> Reply:
        if "license:" in asked["content"].split("---")[1]:
            return _json({"warnings": [], "errors": []})
        return Reply(json.dumps({"errors": [{"message": '"license" is required'}]}).encode(), 400)

    def _create(self, asked: Any) -> Reply:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            return Reply(b'{"error": "You do not have the rights to create a model there"}', 403)
        known = repo in self.repos
        if not known:
            self.add_repo(repo, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(repo)
        return _json({"url": f"{self.url}/{repo}"}, 409 if known else 200)

    def _lfs(self, asked: Any) -> Reply:
        objects = []
        for item in asked["objects"]:
            actions = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}
            objects.append({"oid": item["oid"], "size": item["size"], "actions": actions})
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, branch: str, lines: list[Any]) -> Reply:
        commit, files = self.repos[repo]
        target = files if branch == "main" else self.branches[repo, branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "lfsFile":
                content = self.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                target[value["path"]] = content
            else:
                target[value["path"]] = base64.b64decode(value["content"])
        return _json({"success": True, "commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit})


def _json(data: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(data).encode(), status, {"Content-Type": "application/json"})


@contextlib.contextmanager
def serving_uploads() -> Iterator[UploadServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(state.answer(self.command, self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            self._send(state.take(self.command, self.path, token, body))

        def _send(self, reply: Reply) -> None:
            state.requests.append((self.command, self.path))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)
            self.close_connection = True

        do_HEAD = do_GET
        do_PUT = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Handler) as url:
        state = UploadServer(url)
        yield state
