"""Mirrors: written, asked first, and never believed without a hash."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hub_fixtures import MakeEntry, cache, forbid_sockets, make_entry, server
from hub_process import COMMIT, REPO, Hub, config_file, hub
from hypothesis import given
from hypothesis import strategies as st
from servers import Reply, Server, listening
from tiny import timm_file, vit_jax_file

import vit_hub.hub.cache.hashes
import vit_hub.hub.mirror
from vit_hub.cli import main
from vit_hub.errors import DownloadError, IntegrityError, VitHubError
from vit_hub.hub.cache.paths import cache_dir
from vit_hub.hub.fetch import fetch
from vit_hub.hub.make_mirror import add_to_mirror
from vit_hub.hub.mirror import parse_index
from vit_hub.registry import WeightSource

__all__ = ["cache", "hub", "make_entry", "server"]  # fixtures

WEIGHTS, NPZ = timm_file(), vit_jax_file()
SHA256, NPZ_SHA256 = (hashlib.sha256(content).hexdigest() for content in (WEIGHTS, NPZ))
FILES = {"config.json": config_file(), "model.safetensors": WEIGHTS}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def web(url: str, **pins: Any) -> WeightSource:
    return WeightSource(kind="https", format="timm", url=url, **pins)


@pytest.fixture
def url(server: Server) -> str:
    return server.url + "/tiny.safetensors"


@pytest.fixture
def mirror(url: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror of the server's file that is in use; the cache is empty again."""
    folder = tmp_path / "mirror"
    list(add_to_mirror(folder, [url]))
    shutil.rmtree(cache)
    monkeypatch.setenv("VIT_HUB_MIRROR", str(folder))
    return folder


@pytest.fixture
def served(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same, behind the plainest web server there is."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(partial(Quiet, directory=str(mirror))) as address:
        monkeypatch.setenv("VIT_HUB_MIRROR", address + "/")
        yield address


def change_index(mirror: Path, **changes: Any) -> None:
    """Change the index entry of the only address."""
    index = json.loads((mirror / "index.json").read_text())
    for entry in index["addresses"].values():
        entry.update(changes)
    (mirror / "index.json").write_text(json.dumps(index))


def test_a_mirror_is_a_plain_folder(mirror: Path, url: str) -> None:
    delivery = {"address": url, "files": {"tiny.safetensors": {"sha256": SHA256, "size": len(WEIGHTS)}}}
    index = {
        "addresses": {url: delivery},
        "models": {url: {"address": url, "license": None}},
        "version": 1,
    }
    assert (mirror / "index.json").read_text(encoding="utf-8") == json.dumps(index, indent=2) + "\n"
    [file] = (mirror / "files").iterdir()
    assert (file.name, file.read_bytes(), file.is_symlink()) == (SHA256, WEIGHTS, False)


def test_more_names_extend_it_and_the_same_ones_change_nothing(
    mirror: Path, make_entry: MakeEntry, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIT_HUB_MIRROR")
    make_entry(web(server.url + "/tiny.npz"), restricted=True)
    before = {path: path.stat().st_mtime_ns for path in (mirror / "files").iterdir()}
    [model] = add_to_mirror(mirror, ["tiny"])
    assert (model.name, model.license, model.restricted) == ("tiny", "mit", True)
    assert (model.files, model.size, model.added) == (1, len(NPZ), len(NPZ))
    content = (mirror / "index.json").read_bytes()
    [again] = add_to_mirror(mirror, ["tiny"])
    assert again.added == 0
    assert (mirror / "index.json").read_bytes() == content
    assert len(json.loads(content)["addresses"]) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in (mirror / "files").iterdir()} == {SHA256, NPZ_SHA256}


def test_writing_it_anew_repairs_it(mirror: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = mirror / "files" / SHA256
    stored.write_bytes(WEIGHTS[:-1] + b"!")
    monkeypatch.delenv("VIT_HUB_MIRROR")
    [again] = add_to_mirror(mirror, [url])
    assert stored.read_bytes() == WEIGHTS
    assert again.added == len(WEIGHTS)


@pytest.mark.parametrize("offline", [False, True])
def test_a_folder_is_asked_first(
    mirror: Path, server: Server, url: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.requests.clear()
    forbid_sockets(monkeypatch)
    path = fetch(web(url), offline=offline)
    assert path.read_bytes() == WEIGHTS
    assert cache_dir() in path.parents
    shutil.rmtree(mirror)
    assert fetch(web(url), offline=offline) == path


def test_a_web_server_is_asked_first(served: str, server: Server, url: str) -> None:
    server.requests.clear()
    path = fetch(web(url))
    assert path.read_bytes() == WEIGHTS
    assert server.requests == []


def test_a_web_server_is_not_asked_offline(served: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_sockets(monkeypatch)
    with pytest.raises(DownloadError, match="offline"):
        fetch(web(url), offline=True)


def test_what_it_does_not_have_comes_from_its_source(mirror: Path, server: Server) -> None:
    with pytest.warns(UserWarning, match="does not have"):
        path = fetch(web(server.url + "/tiny.npz"))
    assert path.read_bytes() == NPZ


@pytest.mark.parametrize("place", ["/nowhere", "http://127.0.0.1:9/"])
def test_a_mirror_that_is_not_there_is_a_warning(url: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_MIRROR", place)
    with pytest.warns(UserWarning, match=place.rstrip("/")):
        assert fetch(web(url)).read_bytes() == WEIGHTS


def test_a_file_that_is_gone_from_it_is_a_warning(mirror: Path, url: str) -> None:
    (mirror / "files" / SHA256).unlink()
    with pytest.warns(UserWarning, match=SHA256):
        assert fetch(web(url)).read_bytes() == WEIGHTS


@pytest.mark.parametrize("how", ["folder", "web server"])
@pytest.mark.parametrize("content", [WEIGHTS[:-1] + b"!", WEIGHTS[:-1], WEIGHTS + b"!", b""])
def test_wrong_bytes_are_refused_and_not_kept(
    request: pytest.FixtureRequest, mirror: Path, url: str, how: str, content: bytes
) -> None:
    if how == "web server":
        request.getfixturevalue("served")
    (mirror / "files" / SHA256).write_bytes(content)
    with pytest.raises(IntegrityError) as error:
        fetch(web(url))
    assert SHA256 in error.value.message or f"{len(WEIGHTS):,} bytes" in error.value.message
    assert not list(cache_dir().rglob("*.safetensors"))


def test_a_pinned_hash_stands_above_the_mirrors(mirror: Path, url: str) -> None:
    with pytest.raises(IntegrityError, match=SHA256) as error:
        fetch(web(url, sha256="0" * 64))
    assert "mirror" in error.value.message + error.value.hint
    assert not list(cache_dir().rglob("*.safetensors"))
    assert fetch(web(url, sha256=SHA256)).is_file()


def test_what_came_first_stands_above_the_mirrors(mirror: Path, server: Server, url: str) -> None:
    path = fetch(web(url))
    path.unlink()
    other = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    digest = hashlib.sha256(other).hexdigest()
    (mirror / "files" / digest).write_bytes(other)
    change_index(mirror, files={"tiny.safetensors": {"sha256": digest, "size": len(other)}})
    with pytest.raises(IntegrityError) as error:
        fetch(web(url))
    assert SHA256 in error.value.message
    assert digest in error.value.message
    assert f"vit-hub cache rm {url}" in error.value.hint


PIN = {"sha256": SHA256, "size": len(WEIGHTS)}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../evil": PIN}},
        {"files": {"/evil": PIN}},
        {"files": {"a\\..\\..\\evil": PIN}},
        {"files": {"tiny.safetensors": {**PIN, "sha256": "../../index.json"}}},
        {"files": {"tiny.safetensors": {**PIN, "size": -1}}},
        {"files": {"tiny.safetensors": 3}},
        {"files": []},
        {"address": "https://elsewhere.example/x"},
        {"address": "bundled:x"},
        {"address": 3},
    ],
)
def test_a_hostile_index_writes_nothing(mirror: Path, url: str, changes: dict[str, Any], tmp_path: Path) -> None:
    change_index(mirror, **changes)
    before = {path for path in tmp_path.rglob("*") if cache_dir() not in path.parents}
    with pytest.warns(UserWarning, match="damaged"):
        assert fetch(web(url)).read_bytes() == WEIGHTS
    assert {path for path in tmp_path.rglob("*") if cache_dir() not in path.parents} - {cache_dir()} == before


@pytest.mark.parametrize("content", [b"", b"[]", b"<html>", b'{"version": 2}', b'{"version": 1}', b"[" * 100_000])
def test_what_is_no_index(mirror: Path, url: str, content: bytes) -> None:
    (mirror / "index.json").write_bytes(content)
    with pytest.warns(UserWarning, match="index"):
        assert fetch(web(url)).read_bytes() == WEIGHTS
    with pytest.raises(VitHubError, match=r"index\.json"):
        list(add_to_mirror(mirror, [url]))
    assert (mirror / "index.json").read_bytes() == content


@pytest.mark.parametrize("how", ["folder", "web server"])
def test_an_endless_index_is_not_read(
    request: pytest.FixtureRequest, mirror: Path, url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "web server":
        request.getfixturevalue("served")
    monkeypatch.setattr(vit_hub.hub.mirror, "LONGEST_INDEX", 100)
    with pytest.warns(UserWarning, match="longer than 100 bytes"):
        assert fetch(web(url)).read_bytes() == WEIGHTS


@given(st.binary(max_size=60))
def test_any_bytes_are_an_index_or_an_error(content: bytes) -> None:
    try:
        assert isinstance(parse_index(content, "x")["addresses"], dict)
    except DownloadError as error:
        assert "index.json" in error.message


def test_an_interrupted_mirror_has_no_half_file(
    url: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(web(url))

    def interrupted(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vit_hub.hub.cache.hashes, "check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(add_to_mirror(tmp_path / "mirror", [url]))
    assert not [path for path in (tmp_path / "mirror").rglob("*") if path.is_file()]
    list(add_to_mirror(tmp_path / "mirror", [url]))
    assert (tmp_path / "mirror" / "files" / SHA256).read_bytes() == WEIGHTS


def test_processes_that_extend_it_at_once_lose_nothing(server: Server, tmp_path: Path) -> None:
    urls = [server.add(f"/{number}.npz", Reply(NPZ)) for number in range(4)]
    code = "from vit_hub.cli import main; main()"
    running = [subprocess.Popen([sys.executable, "-c", code, "mirror", str(tmp_path / "m"), url, "-q"]) for url in urls]
    assert [process.wait(timeout=60) for process in running] == [0] * 4
    assert sorted(json.loads((tmp_path / "m" / "index.json").read_text())["addresses"]) == urls
    assert [path.name for path in (tmp_path / "m" / "files").iterdir()] == [NPZ_SHA256]


def test_the_command_tells_what_it_did(make_entry: MakeEntry, server: Server, tmp_path: Path) -> None:
    make_entry(web(server.url + "/tiny.npz"), restricted=True, license="cc-by-nc-4.0")
    result = run("mirror", tmp_path / "m", "tiny", "vit-nano-digits")
    assert result.exit_code == 0, result.output
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["model", "size", "added", "licence", "from"]
    assert [row.split()[0] for row in rows] == ["tiny", "vit-nano-digits"]
    assert "tiny: its licence (cc-by-nc-4.0)" in result.stderr
    assert "vit-nano" not in result.stderr
    document = json.loads(run("mirror", tmp_path / "m", "tiny", "--json").stdout)
    assert [model["added"] for model in document["models"]] == [0]
    assert run("mirror", tmp_path / "m", "tiny", "-q").stdout == f"{tmp_path / 'm'}\n"


def test_a_mirror_that_cannot_be_written(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("mirror", tmp_path / "file" / "m", url)
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_a_repository_through_a_mirror(hub: Hub) -> None:
    """By the name it was mirrored under, by its commit, offline, and with its config beside it."""
    hub.run("mirror", hub.folder / "mirror", REPO)
    index = json.loads((hub.folder / "mirror" / "index.json").read_text())
    exact = f"hf://{REPO}@{COMMIT}/model.safetensors"
    assert set(index["addresses"]) == {f"hf://{REPO}", f"hf://{REPO}@{COMMIT}", exact}
    assert all(entry["address"] == exact for entry in index["addresses"].values())
    for name in ("hf", "cache"):
        shutil.rmtree(hub.folder / name)
    hub.variables["VIT_HUB_MIRROR"] = str(hub.folder / "mirror")
    hub.server.requests.clear()
    paths = {
        hub.run("download", name, *offline)
        for name in (f"{REPO}@{COMMIT}", REPO, exact)
        for offline in ((), ("--offline",))
    }
    assert len(paths) == 1
    assert hub.server.requests == []
    assert not (hub.folder / "hf").exists()
    [folder] = (hub.folder / "cache" / "mirrored").iterdir()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")} == FILES
    # What came from the mirror can be locked, mirrored again, and used without it.
    hub.run("lock", REPO)
    del hub.variables["VIT_HUB_MIRROR"]
    hub.run("download", "--locked", "--offline")
    hub.run("mirror", hub.folder / "second", REPO, "--offline")
    assert json.loads((hub.folder / "second" / "index.json").read_text()) == index
    [row, _] = sorted(hub.answer("cache", "ls"), key=lambda row: str(row["kind"]), reverse=True)
    assert (row["name"], row["kind"]) == (REPO, "mirrored")
    hub.run("cache", "rm", REPO)
    assert hub.answer("cache", "ls") == []
    assert not folder.exists()


def test_a_mirrored_config_is_verified(hub: Hub) -> None:
    hub.run("mirror", hub.folder / "mirror", REPO)
    (hub.folder / "mirror" / "files" / hashlib.sha256(config_file()).hexdigest()).write_bytes(config_file(heads=4))
    for name in ("hf", "cache"):
        shutil.rmtree(hub.folder / name)
    hub.variables["VIT_HUB_MIRROR"] = str(hub.folder / "mirror")
    error = hub.answer("download", REPO, code=1)["error"]
    assert error["type"] == "IntegrityError"
    for content in (config_file(), config_file(heads=4)):
        assert hashlib.sha256(content).hexdigest() in error["message"]
    assert not [path for path in (hub.folder / "cache").rglob("*") if path.suffix in (".json", ".safetensors")]
