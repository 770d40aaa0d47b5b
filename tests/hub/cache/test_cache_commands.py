"""``vit-hub cache`` and ``vit-hub verify``: what is on this machine, and whether it is still what it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hub_fixtures import MakeEntry, cache, make_entry, server
from hub_process import COMMIT, REPO, Hub, hub
from servers import Reply, Server
from tiny import vit_jax_file

import vit_hub
import vit_hub.hub.cache.inventory
from vit_hub.cli import main
from vit_hub.errors import IntegrityError
from vit_hub.hub.cache.inventory import items, prune
from vit_hub.hub.cache.paths import cache_dir, canonical_file, file_lock
from vit_hub.hub.fetch import fetch
from vit_hub.registry import Entry, WeightSource

__all__ = ["cache", "hub", "make_entry", "server"]  # fixtures

NPZ = vit_jax_file()
SHA256 = hashlib.sha256(NPZ).hexdigest()
OLD = time.time() - 30 * 86400


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def answer(*args: object, code: int = 0) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def entry(make_entry: MakeEntry, server: Server, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """``tiny``, pinned."""
    source = WeightSource(kind="https", format="vit_jax", url=server.url + "/tiny.npz", sha256=SHA256, size=len(NPZ))
    entry = make_entry(source)
    known = vit_hub.hub.cache.inventory.known_source
    for module in ("inventory", "verify"):
        monkeypatch.setattr(
            f"vit_hub.hub.cache.{module}.known_source",
            lambda exact: (entry, source) if exact.url == source.url else known(exact),
        )
    return entry


@pytest.fixture
def file(entry: Entry) -> Path:
    """The fetched file of ``tiny``, which is converted, too."""
    vit_hub.download("tiny")
    [path] = (cache_dir() / "files").rglob("*.npz")
    return path


def damage(path: Path, *, keep_times: bool = True) -> None:
    stat = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (not keep_times)))


def statuses(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["kind"]: row["status"] for row in rows}


def test_everything_is_verified(file: Path) -> None:
    rows = answer("verify")
    assert statuses(rows) == {"web": "ok", "canonical": "ok", "bundled": "ok"}
    by_kind = {row["kind"]: row for row in rows}
    assert (by_kind["web"]["name"], by_kind["web"]["path"]) == ("tiny", str(file))
    assert (by_kind["web"]["sha256"], by_kind["web"]["size"]) == (SHA256, len(NPZ))
    assert by_kind["web"]["checked"] == ["record", "registry"]
    assert by_kind["bundled"]["name"] == "vit-nano-digits"
    header, *lines = run("verify").stdout.splitlines()
    assert header.split() == ["status", "size", "model", "file"]
    assert len(lines) == 3


def test_one_model_is_verified(file: Path) -> None:
    assert statuses(answer("verify", "tiny")) == {"web": "ok", "canonical": "ok"}
    assert statuses(answer("verify", "vit-nano-digits")) == {"bundled": "ok"}
    result = run("verify", "vit-b16")
    assert result.exit_code == 1
    assert "no files of vit-b16 are in the cache" in result.stderr
    assert "did you mean" in run("verify", "vit-b61").stderr


@pytest.mark.parametrize("kind", ["web", "canonical"])
def test_rot_is_found_though_the_file_looks_untouched(file: Path, kind: str) -> None:
    path = file if kind == "web" else Path(vit_hub.download("tiny"))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    damage(path)
    wrong = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = answer("verify", code=3)
    [row] = [row for row in rows if row["status"] != "ok"]
    assert (row["kind"], row["status"]) == (kind, "changed")
    assert right in row["problem"]
    assert wrong in row["problem"]
    assert row["hint"] == "`vit-hub cache rm tiny`, then `vit-hub download tiny`"
    result = run("verify", "-q")
    assert result.exit_code == 3
    assert result.stdout == f"{path}\n"
    assert row["hint"] in result.stderr
    # What verify found out is known from now on: the converted file is made again, the fetched one is refused.
    if kind == "canonical":
        assert vit_hub.download("tiny").is_file()
        assert run("verify").exit_code == 0
    else:
        with pytest.raises(IntegrityError, match=f"changed since it was fetched: its sha256 is {wrong}"):
            vit_hub.download("tiny", force=True)
        assert run("verify").exit_code == 3


def test_the_remedy_heals(file: Path) -> None:
    damage(file)
    assert run("verify").exit_code == 3
    assert run("cache", "rm", "tiny").exit_code == 0
    result = run("download", "tiny")
    assert result.exit_code == 0, result.output
    assert run("verify").exit_code == 0


def test_a_file_that_is_gone_is_missing(file: Path) -> None:
    file.unlink()
    [row] = [row for row in answer("verify", code=3) if row["status"] != "ok"]
    assert (row["status"], row["size"], row["path"]) == ("missing", None, str(file))
    assert "vit-hub download tiny" in row["hint"]
    assert [row["used"] is None for row in answer("cache", "ls") if row["kind"] == "web"] == [True]


def test_verified_files_are_not_hashed_when_they_are_loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(cache_dir() / "stamps")
    assert run("verify").exit_code == 0
    monkeypatch.setattr("vit_hub.hub.cache.hashes.rehash", lambda *args: pytest.fail("it is hashed"))
    vit_hub.load("tiny", offline=True)
    vit_hub.download("tiny", offline=True)


def test_the_lock_file_of_the_working_folder_is_compared(server: Server) -> None:
    url = server.url + "/tiny.npz"
    assert run("lock", url).exit_code == 0
    [row] = answer("verify", url)
    assert row["checked"] == ["record", "vit-hub.lock"]
    lock = json.loads(Path("vit-hub.lock").read_text())
    lock["models"][url]["files"]["tiny.npz"]["sha256"] = "0" * 64
    Path("vit-hub.lock").write_text(json.dumps(lock))
    [row] = answer("verify", url, code=3)
    assert "0" * 64 in row["problem"]
    assert row["problem"].endswith("(vit-hub.lock)")
    Path("vit-hub.lock").rename("other.lock")
    assert run("verify", url).exit_code == 0
    assert run("verify", url, "--lockfile", "other.lock").exit_code == 3
    assert run("verify", url, "--lockfile", "missing.lock").exit_code == 1


def test_files_that_nothing_is_known_of_are_said_so(server: Server, cache: Path) -> None:
    fetch(WeightSource(kind="https", format="", url=server.url + "/tiny.npz"))
    shutil.rmtree(cache / "records")
    [row] = [row for row in answer("verify") if row["kind"] == "web"]
    assert row["status"] == "not recorded"


def test_the_damaged_package_is_found(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(vit_hub.__file__).parent / "data", tmp_path / "data")
    monkeypatch.setattr("vit_hub.hub.cache.paths._DATA", tmp_path / "data")
    damage(tmp_path / "data" / "vit_nano_digits.npz")
    [row] = answer("verify", code=3)
    assert "install vit-hub again" in row["hint"]


def test_the_cache_is_listed(file: Path, cache: Path) -> None:
    canonical, web = answer("cache", "ls")
    assert (canonical["name"], canonical["kind"], canonical["path"]) == (
        "tiny",
        "canonical",
        str(vit_hub.download("tiny")),
    )
    assert (web["name"], web["kind"], web["path"], web["size"]) == ("tiny", "web", str(file), len(NPZ))
    assert abs(web["used"] - time.time()) < 100
    header, *lines = run("cache", "ls").stdout.splitlines()
    assert header.split() == ["model", "kind", "size", "used", "path"]
    assert [line.split()[0] for line in lines] == ["tiny", "tiny"]
    assert run("cache", "ls", "-q").stdout == "tiny\n"
    assert run("cache", "dir").stdout == f"{cache}\n"
    assert answer("cache", "dir") == {"folder": str(cache)}


def test_an_empty_cache(cache: Path) -> None:
    assert answer("cache", "ls") == []
    assert run("cache", "ls").stdout == run("cache", "prune").stdout == ""
    assert answer("cache", "prune") == {"dry_run": False, "size": 0, "files": []}
    assert statuses(answer("verify")) == {"bundled": "ok"}
    assert not cache.exists() or not [path for path in cache.rglob("*") if "stamps" not in path.parts]


def everything(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_all_of_a_model_is_removed(file: Path, cache: Path, server: Server) -> None:
    other = fetch(WeightSource(kind="https", format="", url=server.url + "/tiny.safetensors"))
    result = run("cache", "rm", "tiny")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert [item.path for item in items()] == [other]
    assert {path.parent.name for path in everything(cache)} == {other.parent.name, "records", "stamps"}
    assert len(list((cache / "stamps").iterdir())) == 1
    result = run("cache", "rm", "tiny")
    assert result.exit_code == 1
    assert "no files of tiny are in the cache" in result.stderr


def test_all_but_an_open_lock_is_removed(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:  # as Windows does it
        if path.suffix == ".lock":
            raise PermissionError(13, "The process cannot access the file", str(path))
        plain(path, missing_ok=missing_ok)

    def rmtree(folder: Path) -> None:
        raise PermissionError(13, "The process cannot access the file", str(folder))

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    vit_hub.download("tiny")
    assert run("cache", "rm", "tiny").exit_code == 0
    assert {path.suffix for path in everything(cache)} <= {".lock"}


def test_what_nothing_is_recorded_of_is_removed_too(server: Server, cache: Path) -> None:
    url = server.url + "/tiny.npz"
    fetch(WeightSource(kind="https", format="", url=url))
    shutil.rmtree(cache / "records")
    converted = canonical_file("someone/tiny", "0" * 64, "0.1.0")
    converted.parent.mkdir(parents=True)
    converted.write_bytes(b"")
    assert {item.kind for item in items()} == {"web", "canonical"}
    for name in (url, "someone/tiny"):
        assert run("cache", "rm", name).exit_code == 0
    assert items() == []
    assert everything(cache) == []


def test_names_are_completed(file: Path) -> None:
    environment = {"_VIT_HUB_COMPLETE": "bash_complete", "COMP_WORDS": "vit-hub cache rm t", "COMP_CWORD": "3"}
    result = CliRunner().invoke(main, [], env=environment)
    assert result.stdout.splitlines() == ["plain,tiny"]


def test_files_of_hugging_face_are_left(hub: Hub) -> None:
    hub.run("download", REPO)
    rows = {row["kind"]: row for row in hub.answer("cache", "ls")}
    assert {kind: row["name"] for kind, row in rows.items()} == {"canonical": REPO, "hugging face": REPO}
    weights = Path(rows["hugging face"]["path"])
    assert {Path(file).name for file in rows["hugging face"]["files"]} == {"model.safetensors", "config.json"}
    document = hub.answer("cache", "rm", REPO)
    assert document == {"removed": [rows["canonical"]["path"]], "left": [str(weights)]}
    assert weights.is_file()
    assert hub.answer("cache", "ls") == []
    assert everything(hub.folder / "cache") == []


def test_files_of_hugging_face_are_verified(hub: Hub) -> None:
    hub.run("download", f"{REPO}@{COMMIT}")
    rows = hub.answer("verify", REPO)
    assert sorted((row["kind"], Path(row["path"]).name, row["status"]) for row in rows)[1:] == [
        ("hugging face", "config.json", "ok"),
        ("hugging face", "model.safetensors", "ok"),
    ]
    [config] = (hub.folder / "hf" / "hub").rglob("config.json")
    damage(config)
    [row] = [row for row in hub.answer("verify", code=3) if row["status"] != "ok"]
    assert row["path"] == str(config)
    assert f"delete {config.resolve()}" in row["hint"]
    # The damage is known now, and the remedy helps.
    assert "error" in hub.answer("download", f"{REPO}@{COMMIT}", code=1)
    config.resolve().unlink()
    config.unlink()
    hub.run("download", f"{REPO}@{COMMIT}")
    hub.answer("verify")


@pytest.fixture
def litter(file: Path, cache: Path) -> dict[str, Path]:
    """Files of no use: reason -> one file of it."""
    web, canonical = file.parent, vit_hub.download("tiny").parent
    gone = cache / "files" / "gone" / "gone.npz"
    gone.parent.mkdir()
    gone.write_bytes(NPZ)
    vit_hub.hub.cache.hashes.sha256_of(gone)
    [stamp] = [path for path in (cache / "stamps").iterdir() if str(gone) in path.read_text()]
    gone.unlink()
    found = {
        "temporary": web / ".0123456789abcdef.vit-hub.tmp",
        "part": web / ".tiny.npz.vit-hub.part",
        "journal": web / ".tiny.npz.vit-hub.journal",
        "version": canonical / f"{'0' * 16}-0.0.1.safetensors",
        "stray": cache / "stamps" / ".0123456789abcdef.vit-hub.tmp",
    }
    for path in found.values():
        path.write_bytes(b"12345")
        os.utime(path, (OLD, OLD))
    return {**found, "stamp": stamp}


def test_prune_removes_what_is_of_no_use(litter: dict[str, Path], file: Path, cache: Path) -> None:
    kept = {vit_hub.download("tiny"), file}
    document = answer("cache", "prune", "--dry-run")
    assert {Path(row["path"]) for row in document["files"]} >= set(litter.values())
    assert document["size"] == sum(row["size"] for row in document["files"]) >= 25
    assert all(path.is_file() for path in litter.values())
    result = run("cache", "prune")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == len(document["files"]) + 1
    assert not any(path.exists() for path in litter.values())
    assert not (cache / "files" / "gone").exists()
    assert kept <= set(everything(cache))
    assert not list(cache.rglob("*.lock"))
    assert answer("cache", "prune")["files"] == []
    assert run("verify").exit_code == 0
    assert len(answer("cache", "ls")) == 2


def test_prune_keeps_what_can_be_continued(litter: dict[str, Path]) -> None:
    for name in ("part", "journal"):
        os.utime(litter[name], (time.time() - 86400, time.time() - 86400))
    prune(days=7)
    assert litter["part"].exists()
    assert litter["journal"].exists()
    assert not litter["temporary"].exists()
    prune(days=0.5)
    assert not litter["part"].exists()


def test_what_goes_away_while_prune_looks_is_no_failure(litter: dict[str, Path], cache: Path) -> None:
    # A link to nowhere is in the list of the folder, and cannot be looked at.
    for name in ("stamps/a.json", "stamps/.0.vit-hub.tmp", "records/a.json", "files/.0.vit-hub.tmp"):
        (cache / name).symlink_to("nowhere")
    assert {litter["stamp"], litter["stray"]} <= {leftover.path for leftover in prune(days=7)}


def test_prune_sees_who_begins_to_work_meanwhile(litter: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = vit_hub.hub.cache.inventory._unfinished

    def unfinished(folder: Path, days: float, is_ours: bool) -> list[tuple[Path, str]]:
        (folder / ".another.safetensors.lock").touch()
        return list(plain(folder, days, is_ours))

    monkeypatch.setattr(vit_hub.hub.cache.inventory, "_unfinished", unfinished)
    prune(days=7)
    assert litter["temporary"].exists()
    assert litter["version"].exists()
    assert not litter["stray"].exists()


def test_prune_leaves_alone_what_another_process_works_on(litter: dict[str, Path], file: Path) -> None:
    code = "import sys; from pathlib import Path; from vit_hub.hub.cache.paths import file_lock\n"
    code += "with file_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        prune(days=7)
        for name in ("temporary", "part", "journal"):
            assert litter[name].exists()
        assert not litter["version"].exists()
    finally:
        process.communicate("", timeout=60)
    prune(days=7)
    assert not litter["temporary"].exists()


def test_a_download_outlives_pruning(server: Server, cache: Path) -> None:
    """One process prunes again and again while others fetch."""
    url = server.add("/slow.npz", Reply(NPZ, delay=0.3))
    code = (
        "from vit_hub.hub.fetch import fetch; from vit_hub.registry import WeightSource;"
        f"fetch(WeightSource(kind='https', format='', url={url!r}))"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    while any(process.poll() is None for process in running):
        prune(days=0)
        time.sleep(0.01)
    assert [process.communicate()[1] for process in running] == [""] * 3
    assert server.count() == 1


def test_records_of_files_that_are_gone_are_pruned(file: Path, cache: Path) -> None:
    shutil.rmtree(file.parent)
    reasons = {row["reason"] for row in answer("cache", "prune")["files"]}
    assert {"record of files that are gone", "stamp of a file that is gone"} <= reasons
    assert {item["kind"] for item in answer("cache", "ls")} == {"canonical"}


def test_a_removal_waits_for_who_is_writing(server: Server) -> None:
    url = server.url + "/tiny.npz"
    path = fetch(WeightSource(kind="https", format="", url=url))
    code = f"from vit_hub.cli import main; print('here', flush=True); main(['cache', 'rm', {url!r}])"
    with file_lock(path):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        time.sleep(0.5)
        assert path.exists()
    assert process.communicate(timeout=60)[0] == f"{path}\n"
    assert not path.parent.exists()


def test_a_cache_elsewhere(server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """On another file system, where there is one."""
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else Path.cwd()
    folder = parent / f"vit-hub-test-{os.getpid()}"
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    monkeypatch.setenv("VIT_HUB_CACHE", str(folder))
    assert folder in vit_hub.download(server.url + "/tiny.npz").parents
    assert run("verify").exit_code == 0
    assert run("cache", "rm", server.url + "/tiny.npz").exit_code == 0
