"""Servers that send something else than the file, and disks that do not take it."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from misbehaving import Fault, File, Host, host, hosting, weights
from test_resuming import FILE, SHA256, TOTAL, WEIGHTS, leave_a_part, left, path, several, waits, web

import vit_hub.hub.http.download
import vit_hub.hub.http.response
import vit_hub.hub.http.transfer
from vit_hub.errors import CheckpointError, DownloadError, IntegrityError, VitHubError
from vit_hub.hub.http.download import stream_to
from vit_hub.hub.http.response import new_client, request

__all__ = ["host", "path", "several", "waits"]  # fixtures

HTML = b"<!DOCTYPE html><title>Sign in</title>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 200072\n"
PINS = {"sha256": SHA256, "size": TOTAL}


@pytest.mark.parametrize("pins", [{}, PINS], ids=["free", "pinned"])
@pytest.mark.parametrize(
    ("body", "error", "match"),
    [(HTML, DownloadError, "an HTML page"), (POINTER, DownloadError, "a git-LFS pointer")],
    ids=["html", "lfs"],
)
def test_what_is_sent_in_place_of_the_file_is_named(
    host: Host, path: Path, body: bytes, error: type[VitHubError], match: str, pins: dict[str, Any]
) -> None:
    url = host.add(FILE, File(body))
    with pytest.raises(error, match=f"{url}: .*{match}") as caught:
        stream_to(path, web(url, **pins))
    assert caught.value.hint
    assert left(path) == []
    assert len(host.requests) == 1


def test_only_a_checkpoint_must_look_like_one(host: Host, path: Path) -> None:
    source = web(host.add(FILE, File(b'{"version": 1}')))
    with pytest.raises(CheckpointError, match="looks like JSON"):
        stream_to(path, source)
    stream_to(path, source, checkpoint=False)
    assert path.read_bytes() == b'{"version": 1}'


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("faults", [[], [Fault(cut=70_000)]], ids=["at once", "continued"])
def test_wrong_bytes_keep_nothing_and_say_both_hashes(host: Host, path: Path, faults: list[Fault]) -> None:
    wrong = weights(200_000, seed=3)
    source = web(host.add(FILE, File(wrong), *faults), **PINS)
    with pytest.raises(IntegrityError, match=SHA256) as error:
        stream_to(path, source)
    assert hashlib.sha256(wrong).hexdigest() in error.value.message
    assert left(path) == []


def test_a_large_file_of_another_size_is_not_fetched(host: Host, path: Path) -> None:
    url = host.add(FILE, File(WEIGHTS, rate=100_000))
    with pytest.raises(IntegrityError, match=f"{url}: .*200,072 bytes, expected 17"):
        stream_to(path, web(url, size=17))
    assert left(path) == []


def test_more_bytes_than_are_pinned_are_not_awaited(host: Host, path: Path) -> None:
    """A body without a length might never end."""
    url = host.add(FILE, File(WEIGHTS, rate=400_000), Fault(headers={"Content-Length": ""}))
    with pytest.raises(IntegrityError, match="more than the 50,000 bytes"):
        stream_to(path, web(url, size=50_000))
    assert left(path) == []


def test_a_length_that_is_too_short(host: Host, path: Path) -> None:
    url = host.add(FILE, File(WEIGHTS), Fault(headers={"Content-Length": str(TOTAL - 10)}))
    with pytest.raises(IntegrityError, match=SHA256):
        stream_to(path, web(url, sha256=SHA256))
    assert left(path) == []


def test_a_length_that_is_too_long(host: Host, path: Path) -> None:
    faults = [Fault(headers={"Content-Length": str(TOTAL + 10)})] * 2
    stream_to(path, web(host.add(FILE, File(WEIGHTS), *faults)))
    assert path.read_bytes() == WEIGHTS
    assert left(path) == [path.name]


def test_a_body_without_a_length_ends_with_the_connection(host: Host, path: Path) -> None:
    stream_to(path, web(host.add(FILE, File(WEIGHTS), Fault(headers={"Content-Length": ""}))))
    assert path.read_bytes() == WEIGHTS


def test_a_compressed_body_is_refused(host: Host, path: Path) -> None:
    with pytest.raises(DownloadError, match="compressed"):
        stream_to(path, web(host.add(FILE, File(WEIGHTS), Fault(headers={"Content-Encoding": "gzip"}))))
    assert host.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_in_the_middle_is_an_error_at_once(host: Host, path: Path, waits: list[float], status: int) -> None:
    source = web(host.add(FILE, File(WEIGHTS), Fault(cut=90_000), Fault(status=status)))
    with pytest.raises(DownloadError, match=f"the server answered {status}"):
        stream_to(path, source)
    assert len(host.requests) == 2


def test_a_part_that_says_nonsense_is_not_taken(host: Host, path: Path) -> None:
    nonsense = Fault(headers={"Content-Range": f"bytes 50000-{'9' * 5000}/{'9' * 5000}"})
    stream_to(path, web(host.add(FILE, File(WEIGHTS), Fault(cut=50_000), nonsense)))
    assert path.read_bytes() == WEIGHTS
    assert [request.start for request in host.requests] == [None, 50_000, None]


def test_a_sign_in_page_in_the_middle_does_not_cost_what_is_there(host: Host, path: Path) -> None:
    page = Fault(status=200, body=HTML, headers={"Content-Type": "text/html"})
    source = web(host.add(FILE, File(WEIGHTS), Fault(cut=90_000), page))
    with pytest.raises(DownloadError, match="an HTML page"):
        stream_to(path, source)
    stream_to(path, source)
    assert host.requests[-1].start == 90_000


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_busy_servers_are_asked_again(host: Host, path: Path, waits: list[float], status: int) -> None:
    faults = [Fault(status=status, headers={"Retry-After": "3"}), Fault(cut=50_000), Fault(status=status)]
    stream_to(path, web(host.add(FILE, File(WEIGHTS), *faults)))
    assert path.read_bytes() == WEIGHTS
    assert waits[0] == 3
    assert all(0.3 < wait < 2 for wait in waits[1:])


def test_redirects_that_go_round_are_an_error(host: Host, path: Path) -> None:
    there, back = (Fault(status=302, headers={"Location": target}) for target in ("/b", "/a"))
    url = host.add("/a", File(b""), *[there] * 99)
    host.add("/b", File(b""), *[back] * 99)
    with pytest.raises(DownloadError, match=url):
        stream_to(path, web(url))
    assert len(host.requests) < 20
    assert left(path) == []


def test_https_is_never_left_for_http(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def answer(sent: httpx2.Request) -> httpx2.Response:
        requested.append(str(sent.url))
        return httpx2.Response(302, headers={"Location": "http://example.org/b"})

    monkeypatch.setattr(httpx2, "Client", functools.partial(httpx2.Client, transport=httpx2.MockTransport(answer)))
    with new_client() as client, pytest.raises(DownloadError, match="redirected from https:// to http://example.org/b"):
        request(client, "https://example.org/a")
    assert requested == ["https://example.org/a"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://me:secret@127.0.0.1:9"),
        ("HTTPS_PROXY", "foo://me:secret@127.0.0.1:9"),
        ("HTTP_PROXY", "http://me:secret@[::"),
        ("SSL_CERT_FILE", "nowhere.pem"),
    ],
)
def test_settings_that_allow_no_connection_are_named(
    host: Host, path: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = leave_a_part(host, path, File(WEIGHTS), 50_000)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "socksio", None)  # not there
        patch.setenv(name, value)
        with pytest.raises(DownloadError, match="no connection can be made") as error:
            stream_to(path, source)
    assert name in error.value.hint
    assert "secret" not in str(error.value)
    stream_to(path, source)
    assert host.requests[-1].start == 50_000


def test_a_password_stays_with_its_host(host: Host, path: Path) -> None:
    with hosting() as other:
        elsewhere = Fault(status=302, headers={"Location": other.add(FILE, File(WEIGHTS))})
        url = host.add("/login", File(b""), elsewhere).replace("http://", "http://me:secret@")
        stream_to(path, web(url))
        assert host.requests[0].headers["Authorization"].startswith("Basic ")
        assert "Authorization" not in other.requests[0].headers
    assert path.read_bytes() == WEIGHTS


def test_a_stalled_connection_is_cut_and_continued(host: Host, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.http.response, "TIMEOUT", httpx2.Timeout(0.1))
    small = weights(20_000)
    stream_to(path, web(host.add(FILE, File(small, rate=10_000, drip=5_000))))
    assert path.read_bytes() == small
    starts = [request.start for request in host.requests]
    assert list(dict.fromkeys(starts)) == [None, 5_000, 10_000, 15_000, 20_000]  # a slow machine may cut one too early


def test_a_connection_that_drips_is_cut(host: Host, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.http.response, "SLOW_TIME", 0.1)
    monkeypatch.setattr(vit_hub.hub.http.response, "SLOW_RATE", 100_000.0)
    source = web(host.add(FILE, File(WEIGHTS, rate=10_000, drip=200)))
    with pytest.raises(DownloadError, match="bytes in 0 seconds, 4 times"):
        stream_to(path, source)
    host.files[FILE].rate = None
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS
    starts = [request.start or 0 for request in host.requests]
    assert len(starts) == 5
    assert starts == sorted(set(starts))


def test_a_disk_that_stalls_is_no_slow_server(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.http.response, "SLOW_TIME", 0.1)
    with new_client() as client:
        response = request(client, host.add(FILE, File(WEIGHTS, drip=50_000)))
        found = b""
        for chunk in response.chunks():
            found += chunk
            time.sleep(0.3 if len(found) < 120_000 else 0)
        response.close()
    assert found == WEIGHTS


def test_a_full_disk_is_said_before_the_first_byte(host: Host, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = web(host.add(FILE, File(WEIGHTS), Fault(cut=150_000), Fault(status=404)))
    with pytest.raises(DownloadError):
        stream_to(path, source)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50_071))
    with pytest.raises(VitHubError, match="needs 50,072 bytes more, and 50,071 are free") as error:
        stream_to(path, source)
    assert str(path.parent) in error.value.message
    assert "VIT_HUB_CACHE" in error.value.hint
    assert not isinstance(error.value, DownloadError)  # another source would not help
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50_072))
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS


FETCH = """
import resource, sys
from pathlib import Path
from vit_hub.errors import VitHubError
from vit_hub.hub.http.download import stream_to
from vit_hub.registry import WeightSource
path, limit = Path(sys.argv[1]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    stream_to(path, WeightSource(kind="https", format="", url=sys.argv[2]))
except VitHubError as error:
    print(error)
print([item.name for item in path.parent.iterdir()])
"""


def fetch_elsewhere(path: Path, url: str, *, limit: int = 0, before: str = "") -> tuple[str, str]:
    """Output of a process of its own, and the files that it leaves; ``before`` is a shell command that runs first."""
    command = ["unshare", "-rm", "sh", "-c", f'{before} && exec "$@"', "sh"] if before else []
    command += [sys.executable, "-c", FETCH, str(path), url, str(limit)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ), cwd=path.anchor)
    *said, names = done.stdout.splitlines()
    return "\n".join(said), names


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_file_that_may_not_grow_so_large(host: Host, path: Path) -> None:
    said, names = fetch_elsewhere(path, host.add(FILE, File(WEIGHTS)), limit=100_000)
    assert f"{path}: cannot be written: File too large" in said
    assert names == "[]"


def _mounts() -> bool:
    try:
        done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not _mounts(), reason="a small disk takes a system that lets users mount one in a namespace")
@pytest.mark.parametrize("known", [True, False], ids=["length", "no length"])
def test_a_disk_that_is_too_small(host: Host, path: Path, known: bool) -> None:
    path.parent.mkdir()
    fault = Fault() if known else Fault(headers={"Content-Length": ""})
    mount = f"mount -t tmpfs -o size=128k tmpfs '{path.parent}'"
    said, names = fetch_elsewhere(path, host.add(FILE, File(WEIGHTS), fault), before=mount)
    expected = "needs 200,072 bytes more, and 131,072 are free" if known else "No space left on device"
    assert expected in said
    assert "VIT_HUB_CACHE" in said
    assert names == "[]"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the system has no second file system to write to")
def test_a_cache_on_another_file_system_than_temporary_files(host: Host) -> None:
    folder = Path("/dev/shm") / f"vit-hub-test-{os.getpid()}"
    path = folder / "deeper" / "weights.safetensors"
    try:
        stream_to(path, web(host.add(FILE, File(WEIGHTS), Fault(cut=100_000)), **PINS))
        assert path.read_bytes() == WEIGHTS
        assert left(path) == [path.name]
    finally:
        shutil.rmtree(folder)
