"""Files without a pinned hash must stay as they were when first used."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import time
from pathlib import Path

import pytest
from hub_fixtures import cache, server
from hub_process import COMMIT, REPO, Hub, config_file, hub
from huggingface_hub.utils import HFValidationError, validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from servers import Reply, Server
from tiny import timm_file, vit_jax_file

import vit_hub.hub.cache.hashes
from vit_hub.errors import DownloadError, IntegrityError
from vit_hub.hub.cache.inventory import find, items, remove
from vit_hub.hub.cache.records import Delivery, read_record
from vit_hub.hub.fetch import fetch
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.wellformed import is_safe_name
from vit_hub.registry import WeightSource

__all__ = ["cache", "hub", "server"]  # fixtures

WEIGHTS = timm_file()
OTHER = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
SHA256, OTHER_SHA256 = (hashlib.sha256(content).hexdigest() for content in (WEIGHTS, OTHER))


def web(url: str) -> WeightSource:
    return WeightSource(kind="https", format="timm", url=url)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"kind": "hf", "repo": "a/b"}, "hf://a/b"),
        ({"kind": "hf", "repo": "a/b", "revision": "v1"}, "hf://a/b@v1"),
        ({"kind": "hf", "repo": "a/b", "file": "x/y.npz"}, "hf://a/b/x/y.npz"),
        ({"kind": "hf", "repo": "a/b", "revision": "refs/pr/1", "file": "y.npz"}, "hf://a/b@refs%2Fpr%2F1/y.npz"),
        ({"kind": "https", "url": "https://example.org/x.npz?a=b"}, "https://example.org/x.npz?a=b"),
        ({"kind": "bundled", "file": "x.npz"}, "bundled:x.npz"),
    ],
)
def test_a_source_has_one_address(source: dict[str, str], text: str) -> None:
    made = WeightSource(format="", **source)  # type: ignore[arg-type]
    assert address(made) == text
    assert source_of(text) == made


NAMES = st.text("abcXYZ019._-", min_size=1, max_size=12).filter(lambda name: name.strip("."))


def is_possible(repo: str) -> bool:
    """Return whether the hub may have a repository of this name."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True


REPOSITORIES = st.tuples(NAMES, NAMES).map("/".join).filter(is_possible)
# Git has no names with two dots in a row.
REVISIONS = st.text("abc/01.-", min_size=1, max_size=9).filter(lambda revision: ".." not in revision)


@given(REPOSITORIES, st.none() | REVISIONS, st.none() | NAMES)
def test_addresses_are_read_back(repo: str, revision: str | None, file: str | None) -> None:
    source = WeightSource(kind="hf", format="", repo=repo, revision=revision, file=file)
    assert source_of(address(source)) == source


@pytest.mark.parametrize(
    "text",
    ["", "vit-b16", "hf://", "hf://a", "hf://a/b/%2e%2e/c", "ftp://example.org/x", "/etc/passwd", "bundled:../x"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        source_of(text)


def test_a_url_must_give_the_same_file_again(server: Server) -> None:
    url = server.add("/x.safetensors", Reply(WEIGHTS))
    path = fetch(web(url))
    path.unlink()
    assert fetch(web(url)).read_bytes() == WEIGHTS
    path.unlink()
    server.add("/x.safetensors", Reply(OTHER))
    with pytest.raises(IntegrityError) as error:
        fetch(web(url))
    assert SHA256 in error.value.message
    assert OTHER_SHA256 in error.value.message
    assert f"vit-hub cache rm {url}" in error.value.hint
    assert re.search(r"\(\d{4}-\d\d-\d\d\)", error.value.hint)
    assert not path.exists()
    for item in find(url):
        remove(item)
    assert fetch(web(url)).read_bytes() == OTHER


@pytest.mark.parametrize("offline", [False, True])
def test_a_file_damaged_in_the_cache_is_refused(server: Server, offline: bool) -> None:
    path = fetch(web(server.url + "/tiny.safetensors"))
    path.write_bytes(OTHER)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(IntegrityError, match=OTHER_SHA256):
        fetch(web(server.url + "/tiny.safetensors"), offline=offline)
    assert path.read_bytes() == OTHER


def test_a_new_pin_stands_above_the_record(server: Server) -> None:
    url = server.add("/x.safetensors", Reply(OTHER))
    fetch(web(url))
    server.add("/x.safetensors", Reply(WEIGHTS))
    pinned = dataclasses.replace(web(url), sha256=SHA256, size=len(WEIGHTS))
    assert fetch(pinned).read_bytes() == WEIGHTS
    assert fetch(web(url)).read_bytes() == WEIGHTS
    assert [item.name for item in items()] == [url]


def test_a_pin_that_is_not_kept_leaves_what_was_there(server: Server) -> None:
    path = fetch(web(server.url + "/tiny.safetensors"))
    with pytest.raises(IntegrityError):
        fetch(dataclasses.replace(web(server.url + "/tiny.safetensors"), sha256="0" * 64))
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": 2}', b'{"version": 1, "asked": "x"}'])
def test_a_damaged_record_is_none(server: Server, cache: Path, content: bytes) -> None:
    source = web(server.url + "/tiny.safetensors")
    fetch(source)
    [record] = (cache / "records").iterdir()
    record.write_bytes(content)
    assert read_record(address(source)) is None
    assert fetch(source).read_bytes() == WEIGHTS
    assert read_record(address(source)) is not None
    assert server.count() == 1


def test_what_was_fetched_is_found_without_hashing_in_a_millisecond(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = web(server.url + "/tiny.safetensors")
    path = fetch(source)
    monkeypatch.setattr(vit_hub.hub.cache.hashes, "rehash", lambda *args: pytest.fail("it is hashed"))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        assert fetch(source) == path
        times.append(time.perf_counter() - start)
    assert min(times) < 0.001


PIN = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/../b", "", ".", "a\\b", "C:x", "a\0", "a/", 3, "x" * 600])
def test_names_that_lead_elsewhere_are_no_names(name: object) -> None:
    assert not is_safe_name(name)
    with pytest.raises(ValueError, match="not a name|file is not"):
        Delivery.from_data({"address": "hf://a/b/x", "files": {name: PIN, "x": PIN}})


@pytest.mark.parametrize("name", ["x", "a/b.npz", "model-00001-of-00002.safetensors", ".hidden"])
def test_names_within_a_folder(name: str) -> None:
    assert is_safe_name(name)


def test_a_repository_must_stay_what_it_was(hub: Hub) -> None:
    path = hub.run("download", REPO)
    assert hub.run("download", REPO) == path
    hub.publish({"README.md": b"other words"}, "d" * 40)
    assert hub.run("download", REPO) == path
    hub.publish({"model.safetensors": OTHER}, "e" * 40)
    error = hub.answer("download", REPO, code=1)["error"]
    assert error["type"] == "IntegrityError"
    assert SHA256 in error["message"]
    assert OTHER_SHA256 in error["message"]
    assert f"vit-hub cache rm hf://{REPO}" in error["hint"]
    assert "revision" in error["hint"]
    # What came first is still there, and a revision says which is meant.
    assert hub.run("download", REPO, "--offline") == path
    assert hub.run("download", f"{REPO}@{'d' * 40}") == path
    assert hub.run("download", f"{REPO}@{'e' * 40}") != path
    hub.run("cache", "rm", f"hf://{REPO}")
    assert hub.run("download", REPO) != path


@pytest.mark.parametrize("config", [config_file(heads=4), None])
def test_the_config_of_a_repository_must_stay_too(hub: Hub, config: bytes | None) -> None:
    hub.run("download", REPO)
    hub.publish({"config.json": config} if config else {"preprocessor_config.json": b"{}"}, "d" * 40)
    error = hub.answer("download", REPO, code=1)["error"]
    assert error["type"] == "IntegrityError"
    assert "config.json" in error["message"]
    assert hashlib.sha256(config_file()).hexdigest() in error["message"] or config is None


def test_a_commit_is_found_again_without_the_client(hub: Hub) -> None:
    hub.run("download", f"{REPO}@{COMMIT}")
    before = len(hub.server.requests)
    program = "import sys, vit_hub; vit_hub.load(sys.argv[1]); assert 'huggingface_hub' not in sys.modules"
    hub.run(f"{REPO}@{COMMIT}", program=program)
    assert len(hub.server.requests) == before


def test_offline_nothing_is_recorded_of_what_may_be_incomplete(hub: Hub) -> None:
    hub.run("download", REPO)
    for record in (hub.folder / "cache" / "records").iterdir():
        record.unlink()
    hub.run("download", REPO, "--offline")
    assert {item["kind"] for item in hub.answer("cache", "ls")} == {"canonical"}


def test_sharded_weights_are_recorded_with_their_shards(hub: Hub) -> None:
    index = b'{"weight_map": {"x": "a.safetensors"}}'
    hub.server.add_repo(REPO, {"model.safetensors.index.json": index, "a.safetensors": WEIGHTS})
    hub.run("download", REPO, code=1)  # such an index cannot be opened
    [row] = hub.answer("cache", "ls")
    assert Path(row["path"]).name == "model.safetensors.index.json"
    assert {Path(file).name for file in row["files"]} == {"model.safetensors.index.json", "a.safetensors"}
    hub.server.add_repo(REPO, {"model.safetensors.index.json": index, "a.safetensors": OTHER}, "d" * 40)
    assert "a.safetensors" in hub.answer("download", REPO, code=1)["error"]["message"]


def test_a_file_that_is_missing_offline_is_no_integrity_error(server: Server) -> None:
    path = fetch(web(server.url + "/tiny.npz"))
    assert path.read_bytes() == vit_jax_file()
    path.unlink()
    with pytest.raises(DownloadError, match="offline"):
        fetch(web(server.url + "/tiny.npz"), offline=True)
