"""Fetching files: from plain web servers and from the package. Hugging Face's hub is in test_hub.py."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from hub_fixtures import cache, forbid_sockets, server
from hypothesis import given
from hypothesis import strategies as st
from servers import Reply, Server
from tiny import timm_file

import vit_hub.hub.cache.paths
import vit_hub.hub.http.response
import vit_hub.hub.http.retry
from vit_hub.cli import main
from vit_hub.errors import CheckpointError, DownloadError, IntegrityError, UnknownFormatError, VitHubError
from vit_hub.hub.cache.paths import cache_dir, fetched_file, readable
from vit_hub.hub.fetch import fetch, is_offline
from vit_hub.registry import WeightSource

__all__ = ["cache", "server"]  # fixtures

WEIGHTS = timm_file()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
FILE = "/weights/tiny.safetensors"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which take no time."""
    pauses: list[float] = []
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", pauses.append)
    return pauses


def web(url: str, **pins: Any) -> WeightSource:
    return WeightSource(kind="https", format="timm", url=url, **pins)


def kept(cache: Path) -> list[str]:
    """Names of the files in the cache, locks and stamps left out."""
    files = [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "stamps"]
    return [path.name for path in files if not path.name.endswith(".lock")]


def test_a_file_is_fetched_once_under_its_own_name(server: Server, cache: Path) -> None:
    source = web(server.add(FILE, Reply(WEIGHTS)), sha256=SHA256, size=len(WEIGHTS))
    path = fetch(source)
    assert path.read_bytes() == WEIGHTS
    assert path.name == "tiny.safetensors"
    assert cache in path.parents
    assert fetch(source) == path
    assert server.count() == 1


def test_urls_of_one_file_name_are_kept_apart(server: Server) -> None:
    first = fetch(web(server.add("/a/model.safetensors", Reply(WEIGHTS))))
    second = fetch(web(server.add("/b/model.safetensors", Reply(WEIGHTS))))
    assert first != second


@pytest.mark.parametrize("name", ["/%2E%2E%2F%2E%2E%2Fevil", "/a/..", "/", "/a%00b", "/" + "x" * 300, "/c%3A%5Cd.npz"])
def test_no_url_leads_out_of_the_cache(name: str, cache: Path) -> None:
    path = fetched_file("https://example.org" + name)
    assert path.parent.parent.resolve() == (cache / "files").resolve()


@given(st.text())
def test_any_name_becomes_one_portable_file_name(name: str) -> None:
    readable_name = readable(name)
    assert 0 < len(readable_name) <= 80
    assert readable_name[0] not in ".-"
    assert set(readable_name).isdisjoint('/\\:*?"<>| \0')
    assert readable(readable_name) == readable_name


@pytest.mark.parametrize(
    "pins",
    [{"sha256": "0" * 64}, {"sha256_prefix": "00000000"}, {"size": len(WEIGHTS) + 1}, {"size": len(WEIGHTS) - 1}],
    ids=lambda pins: next(iter(pins)),
)
def test_a_wrong_file_is_refused_and_not_kept(server: Server, cache: Path, pins: dict[str, Any]) -> None:
    url = server.add(FILE, Reply(WEIGHTS))
    with pytest.raises(IntegrityError) as error:
        fetch(web(url, **pins))
    assert url in error.value.message
    assert "sha256" not in pins or (SHA256 in error.value.message and "0" * 64 in error.value.message)
    assert kept(cache) == []
    assert server.count() == 1


def test_a_prefix_of_the_hash_is_enough_to_pin(server: Server) -> None:
    assert fetch(web(server.add(FILE, Reply(WEIGHTS)), sha256_prefix=SHA256[:8])).is_file()


@pytest.mark.parametrize("status", [401, 403, 404, 410, 418, 204])
def test_a_refusal_is_an_error_at_once(server: Server, cache: Path, status: int) -> None:
    url = server.add(FILE, Reply(status=status, length=-1 if status == 204 else None))
    with pytest.raises(DownloadError, match=f"{url}: the server answered {status}") as error:
        fetch(web(url))
    assert error.value.hint
    assert server.count() == 1
    assert kept(cache) == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(server: Server, waits: list[float], status: int) -> None:
    url = server.add(FILE, Reply(status=status), Reply(status=status), Reply(WEIGHTS))
    assert fetch(web(url)).read_bytes() == WEIGHTS
    assert len(waits) == 2
    assert 0 < waits[0] < waits[1]


def test_a_failure_that_does_not_pass_ends(server: Server, cache: Path, waits: list[float]) -> None:
    url = server.add(FILE, Reply(status=500))
    with pytest.raises(DownloadError, match="500 Internal Server Error, 4 times"):
        fetch(web(url))
    assert server.count() == 4
    assert kept(cache) == []


def test_retry_after_is_honoured(server: Server, waits: list[float]) -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=40), usegmt=True)
    url = server.add(
        FILE,
        Reply(status=429, headers={"Retry-After": "7"}),
        Reply(status=503, headers={"Retry-After": soon}),
        Reply(status=503, headers={"Retry-After": "a while"}),
        Reply(WEIGHTS),
    )
    fetch(web(url))
    assert waits[0] == 7
    assert 30 < waits[1] <= 40
    assert 0 < waits[2] <= 4


def test_a_server_that_asks_for_hours_is_not_waited_for(server: Server, waits: list[float]) -> None:
    url = server.add(FILE, Reply(status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(DownloadError, match="7200 seconds"):
        fetch(web(url))
    assert waits == []


def test_a_body_cut_short_is_fetched_again(server: Server, waits: list[float]) -> None:
    url = server.add(FILE, Reply(WEIGHTS[:100], length=len(WEIGHTS)), Reply(WEIGHTS))
    assert fetch(web(url)).read_bytes() == WEIGHTS


def test_a_body_always_cut_short_is_an_error(server: Server, cache: Path, waits: list[float]) -> None:
    url = server.add(FILE, Reply(WEIGHTS[:-1], length=len(WEIGHTS)))
    with pytest.raises(DownloadError, match=f"{url}.*4 times"):
        fetch(web(url))
    assert kept(cache) == []


def test_a_server_that_is_not_there(waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.npz"
        with pytest.raises(DownloadError, match="4 times"):
            fetch(web(url))


def test_a_stalled_server_times_out(server: Server, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.http.response, "TIMEOUT", httpx2.Timeout(0.05))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DownloadError, match="timed out, 4 times"):
            fetch(web(f"http://127.0.0.1:{silent.getsockname()[1]}/x.npz"))


def test_redirects_are_followed(server: Server) -> None:
    server.add("/moved", Reply(WEIGHTS))
    url = server.add(FILE, Reply(status=302, headers={"Location": "/moved"}))
    path = fetch(web(url))
    assert path.read_bytes() == WEIGHTS
    assert path.name == "tiny.safetensors"


@pytest.mark.parametrize("target", [FILE, "ftp://example.org/x"])
def test_a_redirect_to_nowhere_is_an_error(server: Server, cache: Path, waits: list[float], target: str) -> None:
    url = server.add(FILE, Reply(status=302, headers={"Location": target}))
    with pytest.raises(DownloadError, match=url):
        fetch(web(url))
    assert kept(cache) == []
    assert waits == []


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"<!DOCTYPE html><title>Sign in</title>", headers={"Content-Type": "application/octet-stream"}),
        Reply(b"\n  <HTML>", length=-1),
        Reply(b"please sign in", headers={"Content-Type": "text/html; charset=utf-8"}),
    ],
    ids=["doctype", "html", "type"],
)
def test_html_in_place_of_weights_is_refused(server: Server, cache: Path, reply: Reply) -> None:
    with pytest.raises(DownloadError, match="HTML page"):
        fetch(web(server.add(FILE, reply), sha256=SHA256))
    assert kept(cache) == []


@pytest.mark.parametrize("body", [b"", b'{"error": "quota exceeded"}', b"\x1f\x8b\x08" + bytes(99), WEIGHTS[:6]])
def test_what_is_no_checkpoint_is_not_kept(server: Server, cache: Path, body: bytes) -> None:
    url = server.add(FILE, Reply(body))
    with pytest.raises(CheckpointError, match=url) as error:
        fetch(web(url))
    assert str(cache) not in error.value.message
    assert isinstance(error.value, UnknownFormatError) or not body
    assert kept(cache) == []


def test_without_a_length_the_body_is_what_comes(server: Server) -> None:
    url = server.add(FILE, Reply(WEIGHTS, length=-1))
    assert fetch(web(url, sha256=SHA256)).read_bytes() == WEIGHTS


def test_a_verified_file_is_not_hashed_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = web(server.add(FILE, Reply(WEIGHTS)), sha256=SHA256)
    path = fetch(source)
    opened: list[str] = []
    original = Path.open

    def watched(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    fetch(source)
    assert path.name not in opened


def test_a_file_changed_in_the_cache_is_refused_until_it_is_removed(server: Server) -> None:
    source = web(server.add(FILE, Reply(WEIGHTS)), sha256=SHA256)
    path = fetch(source)
    stat = path.stat()
    path.write_bytes(WEIGHTS[:-1] + b"!")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(IntegrityError, match=f"expected {SHA256}") as error:
        fetch(source)
    assert server.count() == 1
    assert f"`vit-hub cache rm {source.url}`" in error.value.hint
    assert CliRunner().invoke(main, ["cache", "rm", str(source.url)]).exit_code == 0
    assert fetch(source).read_bytes() == WEIGHTS


def test_a_damaged_stamp_only_costs_time(server: Server, cache: Path) -> None:
    source = web(server.add(FILE, Reply(WEIGHTS)), sha256=SHA256)
    path = fetch(source)
    for stamp in (cache / "stamps").iterdir():
        stamp.write_text("[1, 2")
    assert fetch(source) == path
    assert server.count() == 1


@pytest.mark.parametrize("switch", ["argument", "VIT_HUB_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_opens_no_socket(switch: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_sockets(monkeypatch)
    if switch != "argument":
        monkeypatch.setenv(switch, "1")
    url = "https://example.org/tiny.npz"
    with pytest.raises(DownloadError, match=f"{url}: not in the cache, and offline") as error:
        fetch(web(url), offline=switch == "argument")
    assert str(fetched_file(url)) in error.value.hint
    assert not cache.exists()


def test_a_setting_of_the_hub_goes_before_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not is_offline()


def test_offline_finds_what_was_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = web(server.add(FILE, Reply(WEIGHTS)), sha256=SHA256)
    path = fetch(source)
    forbid_sockets(monkeypatch)
    assert fetch(source, offline=True) == path


def test_processes_that_ask_at_once_make_one_fetch(server: Server, cache: Path) -> None:
    url = server.add(FILE, Reply(WEIGHTS, delay=1.0))
    code = (
        "from vit_hub.hub.fetch import fetch; from vit_hub.registry import WeightSource;"
        f"print(fetch(WeightSource(kind='https', format='', url={url!r}, sha256={SHA256!r})))"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].strip() for process in running]
    assert printed == [str(fetched_file(url))] * 2
    assert server.count() == 1
    assert Path(printed[0]).read_bytes() == WEIGHTS


def test_a_cache_that_cannot_be_written_is_one_clear_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the folder should be refuses even a privileged user.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(VitHubError, match="cache cannot be written") as error:
        fetch(web(server.add(FILE, Reply(WEIGHTS))))
    assert "VIT_HUB_CACHE" in error.value.hint
    assert str(tmp_path) in error.value.message
    assert server.count() == 0


def test_bundled_files_come_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.cache.paths, "_DATA", tmp_path)
    (tmp_path / "tiny.npz").write_bytes(WEIGHTS)
    source = WeightSource(kind="bundled", format="vit_jax", file="tiny.npz", sha256=SHA256, size=len(WEIGHTS))
    forbid_sockets(monkeypatch)
    assert fetch(source, offline=True) == tmp_path / "tiny.npz"
    (tmp_path / "tiny.npz").write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(IntegrityError, match=SHA256):
        fetch(source)
    (tmp_path / "tiny.npz").unlink()
    with pytest.raises(DownloadError, match=r"tiny\.npz"):
        fetch(source)


def test_bundled_files_need_no_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.cache.paths, "_DATA", tmp_path)
    (tmp_path / "tiny.npz").write_bytes(WEIGHTS)
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "tiny.npz" / "cache"))
    fetch(WeightSource(kind="bundled", format="vit_jax", file="tiny.npz", sha256=SHA256, size=len(WEIGHTS)))


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", "~/there")
    assert cache_dir() == Path("~/there").expanduser()
    monkeypatch.delenv("VIT_HUB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "vit-hub" in cache_dir().parts


def test_bars_are_drawn_only_on_a_terminal(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(web(server.add("/a.safetensors", Reply(WEIGHTS))), progress=True)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(web(server.add("/b.safetensors", Reply(WEIGHTS))))
    assert capfd.readouterr() == ("", "")
    fetch(web(server.add("/c.safetensors", Reply(WEIGHTS))), progress=True)
    out, err = capfd.readouterr()
    assert "c.safetensors" in err
    assert out == ""
