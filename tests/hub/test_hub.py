"""Hugging Face repositories, by the real huggingface_hub client against a local server.

The client reads its settings when it is imported, so it runs in processes of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import HubServer, Reply, serving
from tiny import timm_file

WEIGHTS = timm_file()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REPO = "someone/tiny-vit"
COMMIT = "c" * 40
CONFIG = json.dumps({"architecture": "vit_tiny_patch16_224"}).encode()
INDEX = "model.safetensors.index.json"
SWITCHES = ("VIT_HUB_OFFLINE", "HF_HUB_OFFLINE")
SNAPSHOT = f"models--someone--tiny-vit/snapshots/{COMMIT}"

PROGRAM = """
import json, shutil, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace
from vit_hub.errors import VitHubError
from vit_hub.hub.fetch import fetch
from vit_hub.hub.resolve import fetch_any
from vit_hub.registry import WeightSource
task = json.loads(sys.argv[1])
if task["free"] is not None:
    shutil.disk_usage = lambda path: SimpleNamespace(free=task["free"])
time.sleep = lambda seconds: None  # between the client's attempts
sockets = []
# Making a socket alone is harmless: urllib3 does it to see whether there is IPv6.
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
sys.addaudithook(lambda event, arguments: sockets.append(event) if event in NETWORK else None)
try:
    source, options = WeightSource(kind="hf", **task["source"]), {"offline": task["offline"], "progress": True}
    if task["next"]:
        later = WeightSource(kind="https", format="timm", url=task["next"])
        with warnings.catch_warnings(record=True) as heard:
            path = fetch_any(None, (source, later), **options).path
        result = {"path": str(path), "heard": [str(item.message) for item in heard]}
    else:
        path = fetch(source, **options)
        result = {"path": str(path), "beside": sorted(item.name for item in path.parent.iterdir())}
except VitHubError as error:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    result = {"error": kinds[kinds[0].startswith("_")], "message": error.message, "hint": error.hint}
print(json.dumps({**result, "sockets": sockets}))
"""

Fetch = Callable[..., dict[str, Any]]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving(HubServer) as running:
        assert isinstance(running, HubServer)
        yield running


@pytest.fixture
def fetch(server: HubServer, tmp_path: Path) -> Fetch:
    """Fetch a source in a new process: ``{"path", "beside"}`` or ``{"error", "message", "hint"}``.

    ``next`` is the address of a second source, ``free`` how many bytes the disk seems to have.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VIT_HUB_"))}
    environment |= {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "VIT_HUB_CACHE": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }

    def run(
        offline: bool = False,
        variables: dict[str, str] | None = None,
        next: str | None = None,
        free: int | None = None,
        **source: Any,
    ) -> dict[str, Any]:
        task = {"source": {"repo": REPO, "format": "timm", **source}, "offline": offline, "next": next, "free": free}
        command = [sys.executable, "-c", PROGRAM, json.dumps(task)]
        done = subprocess.run(
            command, env={**environment, **(variables or {})}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return {**result, "stderr": done.stderr}

    return run


def test_a_pinned_file_is_fetched_once_with_its_config(server: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    server.add_repo(REPO, {"model.safetensors": WEIGHTS, "config.json": CONFIG, "pytorch_model.bin": b"not asked for"})
    source = {"file": "model.safetensors", "revision": COMMIT, "sha256": SHA256, "size": len(WEIGHTS)}
    found = fetch(**source)
    assert found["path"] == str(tmp_path / "hf" / "hub" / SNAPSHOT / "model.safetensors")
    assert found["beside"] == ["config.json", "model.safetensors"]
    assert Path(found["path"]).read_bytes() == WEIGHTS
    assert "%" not in found["stderr"]

    before = len(server.requests)
    assert fetch(**source)["path"] == found["path"]
    assert len(server.requests) == before


@pytest.mark.parametrize(
    ("revision", "how"),
    [(COMMIT, {"offline": True}), *((None, {"variables": {name: "1"}}) for name in SWITCHES)],
    ids=["argument", *SWITCHES],
)
def test_offline_opens_no_socket(server: HubServer, fetch: Fetch, revision: str | None, how: dict[str, Any]) -> None:
    server.add_repo(REPO, {"model.safetensors": WEIGHTS, "config.json": CONFIG})
    source = {"file": "model.safetensors", "revision": revision}
    missing = fetch(**source, **how)
    assert (missing["error"], missing["sockets"]) == ("DownloadError", [])
    assert "model.safetensors is not in Hugging Face's cache, and offline mode is on" in missing["message"]
    assert "VIT_HUB_OFFLINE" in missing["hint"]
    online = fetch(**source)
    assert online["sockets"]
    offline = fetch(**source, **how)
    assert (offline["path"], offline["sockets"]) == (online["path"], [])


def test_a_file_in_a_folder_has_its_config_beside_it(server: HubServer, fetch: Fetch) -> None:
    server.add_repo(REPO, {"small/model.safetensors": WEIGHTS, "small/config.json": CONFIG, "config.json": b"{}"})
    assert fetch(file="small/model.safetensors")["beside"] == ["config.json", "model.safetensors"]


def test_the_pinned_hash_is_compared(server: HubServer, fetch: Fetch) -> None:
    server.add_repo(REPO, {"model.safetensors": WEIGHTS})
    found = fetch(file="model.safetensors", sha256="0" * 64)
    assert found["error"] == "IntegrityError"
    assert SHA256 in found["message"]
    assert "0" * 64 in found["message"]
    assert f"blobs/{SHA256}" in found["hint"]


def test_without_a_pin_the_servers_own_hash_is_compared(server: HubServer, fetch: Fetch) -> None:
    server.add_repo(REPO, {"model.safetensors": WEIGHTS})
    server.spoiled["model.safetensors"] = WEIGHTS[:-1] + b"!"
    found = fetch(file="model.safetensors")
    assert found["error"] == "IntegrityError"
    assert SHA256 in found["message"]
    assert f"blobs/{SHA256}" in found["hint"]


@pytest.mark.parametrize(
    ("change", "source", "words"),
    [
        ("", {"repo": "someone/else"}, ["someone/else", "does not exist, or is private", "HF_TOKEN"]),
        ("", {"revision": "v9"}, [f"{REPO}@v9", "no such revision"]),
        ("", {"file": "other.safetensors"}, [REPO, "has no file other.safetensors"]),
        ("", {"repo": "not/a/repo"}, ["not/a/repo"]),
        ("gated 403", {}, [REPO, "is gated", f"/{REPO}", "hf auth login", "HF_TOKEN"]),
        ("gated 401", {}, [REPO, "is gated", f"/{REPO}", "hf auth login", "HF_TOKEN"]),
        ("no hub", {}, [REPO, "model.safetensors cannot be fetched", "HF_ENDPOINT"]),
    ],
)
def test_what_cannot_be_had_has_a_remedy(
    server: HubServer, fetch: Fetch, change: str, source: dict[str, str], words: list[str]
) -> None:
    server.add_repo(REPO, {"model.safetensors": WEIGHTS})
    if change.startswith("gated"):
        server.gated.add(REPO)
        server.refusal = int(change[-3:])
    # A server that is down looks the same to us, after many attempts of the client.
    if change == "no hub":
        server.commit_header = "X-Other"
    found = fetch(**{"file": "model.safetensors", **source})
    assert found["error"] == "DownloadError"
    for word in words:
        assert word in found["message"] + " " + found["hint"]


@pytest.mark.parametrize("config", [True, False])
def test_offline_weights_without_their_config_are_not_guessed_at(
    server: HubServer, fetch: Fetch, tmp_path: Path, config: bool
) -> None:
    snapshot = tmp_path / "hf" / "hub" / SNAPSHOT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(WEIGHTS)
    if config:
        (snapshot / "config.json").write_bytes(CONFIG)
    found = fetch(file="model.safetensors", revision=COMMIT, offline=True)
    assert found.get("path") == (str(snapshot / "model.safetensors") if config else None)
    assert config or "config.json is not in" in found["message"]


@pytest.mark.parametrize(
    ("files", "chosen", "fetched"),
    [
        (["pytorch_model.bin", "model.safetensors", "config.json", "README.md"], "model.safetensors", ["config.json"]),
        (["pytorch_model.bin", "preprocessor_config.json"], "pytorch_model.bin", ["preprocessor_config.json"]),
        (["a.safetensors", "b.safetensors", INDEX], INDEX, ["a.safetensors", "b.safetensors"]),
    ],
)
def test_a_repository_gives_the_weights_that_it_has(
    server: HubServer, fetch: Fetch, files: list[str], chosen: str, fetched: list[str]
) -> None:
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    contents = {name: name.encode() for name in files}
    contents |= {name: json.dumps(index).encode() for name in files if name.endswith("index.json")}
    contents |= {name: CONFIG for name in files if name.endswith("config.json")}
    server.add_repo(REPO, contents)
    found = fetch()
    assert Path(found["path"]).name == chosen
    assert found["beside"] == sorted([chosen, *fetched])
    offline = fetch(offline=True)
    assert (offline["path"], offline["sockets"]) == (found["path"], [])


def test_a_repository_without_weights(server: HubServer, fetch: Fetch) -> None:
    server.add_repo(REPO, {"README.md": b"soon"})
    found = fetch()
    assert found["error"] == "DownloadError"
    assert "has no weights" in found["message"]
    assert "README.md" in found["hint"]


@pytest.mark.parametrize("shard", [None, "../x.safetensors", "a/x.safetensors", "/x.safetensors", "..", ""])
def test_a_damaged_index_is_named(server: HubServer, fetch: Fetch, shard: str | None) -> None:
    index = {"weight_map": 3 if shard is None else {"w": shard}}
    server.add_repo(REPO, {"model.safetensors.index.json": json.dumps(index).encode()})
    found = fetch()
    assert found["error"] == "CheckpointError"
    assert "model.safetensors.index.json" in found["message"]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("missing", "does not exist"), ("gated", "is gated"), ("no file", "has no file"), ("down", "cannot be fetched")],
)
def test_the_next_source_delivers_where_the_hub_does_not(
    server: HubServer, fetch: Fetch, trouble: str, words: str
) -> None:
    if trouble != "missing":
        server.add_repo(REPO, {"config.json": CONFIG} if trouble == "no file" else {"model.safetensors": WEIGHTS})
    if trouble == "gated":
        server.gated.add(REPO)
    with serving() as other:
        url = other.add("/model.safetensors", Reply(WEIGHTS))
        variables = {"HF_ENDPOINT": "http://127.0.0.1:9"} if trouble == "down" else {}
        found = fetch(file="model.safetensors", next=url, variables=variables)
    assert Path(found["path"]).read_bytes() == WEIGHTS
    [said] = found["heard"]
    assert f"taken from {url}, because" in said
    assert words in said


def test_a_wrong_file_from_the_hub_is_not_passed_over(server: HubServer, fetch: Fetch) -> None:
    server.add_repo(REPO, {"model.safetensors": WEIGHTS})
    with serving() as other:
        url = other.add("/model.safetensors", Reply(WEIGHTS))
        found = fetch(file="model.safetensors", sha256="0" * 64, next=url)
        assert found["error"] == "IntegrityError"
        assert other.requests == []


def test_a_full_disk_is_known_before_the_first_byte(server: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    server.add_repo(REPO, {"model.safetensors": WEIGHTS})
    found = fetch(file="model.safetensors", free=100)
    assert found["error"] == "VitHubError"
    assert "Not enough free disk space" in found["message"]
    assert "HF_HUB_CACHE" in found["hint"]
    assert not [path for method, path in server.requests if method == "GET" and "/resolve/" in path]
    assert not [path for path in (tmp_path / "hf" / "hub" / SNAPSHOT).rglob("*") if path.is_file()]
    assert fetch(file="model.safetensors")["path"]


def test_an_adapter_comes_with_its_config(server: HubServer, fetch: Fetch) -> None:
    server.add_repo(REPO, {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG, "README.md": b"x"})
    found = fetch()
    assert Path(found["path"]).name == "adapter_model.safetensors"
    assert found["beside"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert fetch(offline=True)["path"] == found["path"]
