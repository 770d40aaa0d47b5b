"""``vit-hub.lock``: written, obeyed, and refused where it cannot be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hub_fixtures import MakeEntry, cache, make_entry, server
from hub_process import COMMIT, REPO, Hub, config_file, hub
from servers import Reply, Server
from tiny import timm_file, vit_jax_file

import vit_hub
from vit_hub.cli import main
from vit_hub.errors import IntegrityError, ModelNotFoundError, VitHubError
from vit_hub.hub.cache.paths import cache_dir
from vit_hub.hub.lockfile import LOCKFILE, lock, locked_model, read_lock
from vit_hub.registry import WeightSource

__all__ = ["cache", "hub", "make_entry", "server"]  # fixtures

WEIGHTS, NPZ = timm_file(), vit_jax_file()
OTHER = NPZ[:-1] + bytes([NPZ[-1] ^ 1])
SHA256, NPZ_SHA256, OTHER_SHA256 = (hashlib.sha256(content).hexdigest() for content in (WEIGHTS, NPZ, OTHER))


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_the_file_is_stable_and_readable(make_entry: MakeEntry, server: Server) -> None:
    make_entry(WeightSource(kind="https", format="vit_jax", url=server.url + "/tiny.npz"))
    lock(["tiny"])
    files = {"tiny.npz": {"sha256": NPZ_SHA256, "size": len(NPZ)}}
    expected = {"models": {"tiny": {"address": server.url + "/tiny.npz", "files": files}}, "version": 1}
    assert LOCKFILE.read_text(encoding="utf-8") == json.dumps(expected, indent=2) + "\n"
    lock(["tiny", "tiny"])
    assert LOCKFILE.read_text(encoding="utf-8") == json.dumps(expected, indent=2) + "\n"
    assert [path.name for path in Path.cwd().iterdir()] == ["vit-hub.lock"]


def test_other_models_stay(server: Server) -> None:
    first, second = server.url + "/tiny.npz", server.url + "/tiny.safetensors"
    lock([second])
    before = read_lock(LOCKFILE)
    lock([first])
    assert read_lock(LOCKFILE) == {**before, first: read_lock(LOCKFILE)[first]}
    assert list(json.loads(LOCKFILE.read_text())["models"]) == sorted([first, second])


def test_what_another_process_locks_meanwhile_stays(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [server.url + "/tiny.npz", server.url + "/tiny.safetensors"]
    plain = vit_hub.hub.lockfile.resolve

    def slow(name: str, **options: Any) -> Any:
        monkeypatch.setattr(vit_hub.hub.lockfile, "resolve", plain)
        lock(urls[1:])
        return plain(name, **options)

    monkeypatch.setattr(vit_hub.hub.lockfile, "resolve", slow)
    assert list(lock(urls[:1])) == urls[:1]
    assert set(read_lock(LOCKFILE)) == set(urls)


def test_an_alias_is_locked_under_its_id() -> None:
    lock(["vit-nano-digits"], Path("other.lock"))
    assert run("lock", "vit-nano-digits", "--lockfile", "other.lock", "--offline").exit_code == 0
    assert list(read_lock(Path("other.lock"))) == ["vit-nano-digits"]
    path = vit_hub.download("vit-nano-digits", locked="other.lock")
    assert path == vit_hub.download("vit-nano-digits")


def test_locked_is_what_was_locked(make_entry: MakeEntry, server: Server, cache: Path) -> None:
    """A changed file at the source is refused, on a machine that never saw the first one."""
    make_entry(WeightSource(kind="https", format="vit_jax", url=server.url + "/tiny.npz"))
    lock(["tiny"])
    path = vit_hub.download("tiny", locked=True)
    content = path.read_bytes()
    shutil.rmtree(cache)
    assert vit_hub.download("tiny", locked=True).read_bytes() == content
    shutil.rmtree(cache)
    server.add("/tiny.npz", Reply(OTHER))
    with pytest.raises(IntegrityError) as error:
        vit_hub.download("tiny", locked=True)
    assert NPZ_SHA256 in error.value.message
    assert OTHER_SHA256 in error.value.message
    assert not list((cache_dir() / "files").rglob("*.npz"))
    assert not list(cache_dir().rglob("*.safetensors"))


def test_only_the_locked_source_is_asked(make_entry: MakeEntry, server: Server, cache: Path) -> None:
    second = WeightSource(kind="https", format="vit_jax", url=server.url + "/tiny.npz")
    make_entry("/gone.safetensors", second)
    with pytest.warns(UserWarning, match="404"):
        lock(["tiny"])
    shutil.rmtree(cache)
    server.requests.clear()
    vit_hub.download("tiny", locked=True)
    assert {path for _, path in server.requests} == {"/tiny.npz"}
    entry, source, _ = locked_model("tiny", LOCKFILE)
    assert entry is not None
    assert source == dataclasses.replace(second, sha256=NPZ_SHA256, size=len(NPZ))


def _pin(sha256: str) -> dict[str, object]:
    return {"sha256": sha256, "size": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not a lock file"),
        ("[]", "no 'models'"),
        ('{"version": 2, "models": {}}', "version 2"),
        ('{"models": {}}', "version None"),
        ('{"version": 1, "models": {"x": 3}}', "an object is expected"),
        ('{"version": 1, "models": {"x": {"address": "https://e.org/x"}}}', "no 'files'"),
        ('{"version": 1, "models": {"x": {"address": "x", "files": {"x": {}}}}}', "no 'sha256'"),
        (json.dumps({"version": 1, "models": {"x": {"address": "x", "files": {"x": _pin("z" * 64)}}}}), "64 hex"),
        (
            json.dumps({"version": 1, "models": {"x": {"address": "x", "files": {"../x": _pin("0" * 64)}}}}),
            "not a name",
        ),
    ],
)
def test_a_lock_file_that_cannot_be_read(content: str, words: str) -> None:
    LOCKFILE.write_text(content)
    for action in (lambda: vit_hub.download("vit-nano-digits", locked=True), lambda: lock(["vit-nano-digits"])):
        with pytest.raises(VitHubError, match=words) as error:
            action()
        assert "vit-hub.lock" in error.value.message
        assert error.value.hint
    assert LOCKFILE.read_text() == content


def test_no_lock_file_and_no_such_name() -> None:
    with pytest.raises(VitHubError, match=r"vit-hub\.lock: no such lock file"):
        vit_hub.download("vit-nano-digits", locked=True)
    LOCKFILE.write_text('{"version": 1, "models": {}}')
    with pytest.raises(ModelNotFoundError, match="vit-nano-digits is not in it") as error:
        vit_hub.download("vit-nano-digits", locked=True)
    assert "vit-hub lock vit-nano-digits" in error.value.hint


def test_a_failure_leaves_the_lock_file_alone(server: Server) -> None:
    lock([server.url + "/tiny.npz"])
    before = LOCKFILE.read_bytes()
    result = run("lock", server.url + "/tiny.safetensors", server.url + "/gone.npz")
    assert result.exit_code == 1
    assert LOCKFILE.read_bytes() == before


def test_a_local_file_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(NPZ)
    result = run("lock", tmp_path / "x.npz")
    assert result.exit_code == 1
    assert "a local file" in result.stderr


def test_the_command_tells_what_it_locked() -> None:
    document = json.loads(run("lock", "vit-nano-digits", "--json").stdout)
    assert document["lockfile"] == "vit-hub.lock"
    [model] = document["models"]
    assert (model["name"], model["address"]) == ("vit-nano-digits", "bundled:vit_nano_digits.npz")
    assert run("lock", "vit-nano-digits", "-q").stdout == "vit-hub.lock\n"
    header, row = run("lock", "vit-nano-digits").stdout.splitlines()
    assert header.split() == ["model", "files", "size", "from"]
    assert row.split() == ["vit-nano-digits", "1", "file", "349", "kB", "bundled:vit_nano_digits.npz"]


def test_download_takes_all_that_is_locked() -> None:
    run("lock", "vit-nano-digits")
    expected = run("download", "vit-nano-digits", "-q").stdout
    assert run("download", "--locked", "-q").stdout == expected
    LOCKFILE.rename("other.lock")
    assert run("download", "--locked", "--lockfile", "other.lock", "-q").stdout == expected
    assert run("download", "vit-nano-digits", "--locked", "--lockfile", "other.lock", "-q").stdout == expected
    assert run("download", "--locked").exit_code == 1
    for args in ((), ("--lockfile", "other.lock"), ("--locked", "--revision", "x", "vit-nano-digits")):
        assert run("download", *args).exit_code in (1, 2)


Models = dict[str, Any]


@pytest.fixture
def locked(hub: Hub) -> Callable[[], Models]:
    """The models of the lock file of the hub's machine."""
    return lambda: json.loads((hub.folder / "work" / "vit-hub.lock").read_text())["models"]  # type: ignore[no-any-return]


def test_a_repository_is_locked_to_its_commit(hub: Hub, locked: Callable[[], Models]) -> None:
    hub.run("lock", REPO)
    config = config_file()
    assert locked() == {
        REPO: {
            "address": f"hf://{REPO}@{COMMIT}/model.safetensors",
            "files": {
                "config.json": {"sha256": hashlib.sha256(config).hexdigest(), "size": len(config)},
                "model.safetensors": {"sha256": SHA256, "size": len(WEIGHTS)},
            },
        }
    }
    path = hub.run("download", REPO, "--locked")
    assert hub.run("download", "--locked", "--offline") == path
    shutil.rmtree(hub.folder / "hf")
    shutil.rmtree(hub.folder / "cache")
    hub.publish({"config.json": config_file(heads=4)}, "d" * 40)
    error = hub.answer("download", REPO, "--locked", code=1)["error"]
    assert "no such revision" in error["message"]  # the server keeps one commit


def test_a_config_that_is_not_the_locked_one(hub: Hub, locked: Callable[[], Models]) -> None:
    hub.run("lock", REPO)
    shutil.rmtree(hub.folder / "hf")
    shutil.rmtree(hub.folder / "cache")
    hub.publish({"config.json": config_file(heads=4)})
    error = hub.answer("download", "--locked", code=1)["error"]
    assert error["type"] == "IntegrityError"
    for content in (config_file(), config_file(heads=4)):
        assert hashlib.sha256(content).hexdigest() in error["message"]
    assert not list((hub.folder / "cache").glob("canonical/*/*.safetensors"))


def test_locking_again_follows_the_repository(hub: Hub, locked: Callable[[], Models]) -> None:
    hub.run("lock", REPO)
    hub.publish({"README.md": b""}, "d" * 40)
    hub.run("lock", REPO)
    assert locked()[REPO]["address"] == f"hf://{REPO}@{'d' * 40}/model.safetensors"
