"""Files that others touched: cut by a server, changed in place, planted in a shared cache."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from hub_fixtures import cache, server
from PIL import Image
from servers import Reply, Server
from tiny import timm_file, vit_jax_file

import vit_hub
import vit_hub.hub.cache.paths
import vit_hub.hub.http.response
import vit_hub.hub.http.retry
from vit_hub.cli import main
from vit_hub.errors import CheckpointError, ConfigError, DownloadError, IntegrityError, ModelNotFoundError, VitHubError
from vit_hub.exporting.runtimes import in_runtime
from vit_hub.hub.cache.hashes import sha256_of, stamp_file
from vit_hub.hub.cache.paths import PROGRAM_RECORD, cache_dir, fetched_file, file_lock, is_trusted
from vit_hub.hub.cache.records import read_record, record_file
from vit_hub.hub.fetch import fetch
from vit_hub.hub.http.part_file import PartFile
from vit_hub.hub.lockfile import lock
from vit_hub.registry import WeightSource
from vit_hub.running.reading import content_of
from vit_hub.running.sources import Item, Place

__all__ = ["cache", "server"]  # fixtures

WEIGHTS = timm_file()


def web(url: str) -> WeightSource:
    return WeightSource(kind="https", format="", url=url)


def flip(path: Path) -> None:
    """Change one bit in place and set the times back."""
    before = path.stat()
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(bytes([content[-5] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("content", [WEIGHTS, vit_jax_file()], ids=["safetensors", "npz"])
@pytest.mark.parametrize("lying", [False, True])
def test_a_cut_file_without_a_true_length_is_not_kept(server: Server, content: bytes, lying: bool) -> None:
    url = server.add("/x", Reply(content[:-300], length=None if lying else -1), Reply(content))
    with pytest.raises(CheckpointError, match=url):
        fetch(web(url))
    assert not fetched_file(url).exists()
    assert read_record(url) is None
    assert fetch(web(url)).read_bytes() == content


def test_a_file_changed_in_place_is_noticed_with_its_times_set_back(server: Server) -> None:
    url = server.url + "/tiny.safetensors"
    path = fetch(web(url))
    before = sha256_of(path)
    flip(path)
    assert sha256_of(path) != before
    with pytest.raises(IntegrityError, match=f"changed since it was fetched.*{before}"):
        fetch(web(url))
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError, match="cannot be read"):
        fetch(web(url))


def test_locked_hashes_whatever_the_stamp_says(server: Server) -> None:
    url = server.url + "/tiny.safetensors"
    lock([url])
    path = fetched_file(url)
    stamp = stamp_file(path).read_text()
    flip(path)
    true = sha256_of(path)
    # As a clock set back, or a disk that damages a file, would leave it.
    stamp_file(path).write_text(stamp_file(path).read_text().replace(true, stamp.rpartition('"sha256": "')[2][:64]))
    with pytest.raises(IntegrityError, match=true):
        vit_hub.download(url, locked=True)


def plant(path: Path, content: bytes, how: str, folder: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "link":
        (folder / "elsewhere").write_bytes(content)
        path.symlink_to(folder / "elsewhere")
        return
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path.write_bytes(content)
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("how", ["link", "other owner"])
def test_a_planted_file_is_not_trusted(server: Server, tmp_path: Path, how: str) -> None:
    url = server.url + "/tiny.safetensors"
    path = fetched_file(url)
    plant(path, WEIGHTS[:-1] + b"\0", how, tmp_path)
    assert not is_trusted(path)
    for offline in (True, False):
        with pytest.raises(IntegrityError, match="not trusted"):
            fetch(web(url), offline=offline)
    assert CliRunner().invoke(main, ["cache", "rm", url]).exit_code == 0
    assert fetch(web(url)).read_bytes() == WEIGHTS
    assert is_trusted(path)


@pytest.mark.parametrize("how", ["link", "other owner"])
def test_planted_records_and_stamps_are_not_trusted(server: Server, tmp_path: Path, how: str) -> None:
    url = server.url + "/tiny.safetensors"
    path = fetch(web(url))
    for file, found in ((record_file(url), lambda: read_record(url)), (stamp_file(path), lambda: sha256_of(path))):
        content, honest = file.read_bytes(), found()
        file.unlink()
        plant(file, content.replace(b"0", b"1"), how, tmp_path)
        assert found() in (None, honest)


@contextlib.contextmanager
def sending(send: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server that answers each connection with ``send``, until the client leaves."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            send(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x.safetensors"


def interim(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)  # there is always one to be read


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        time.sleep(0.05)
        connection.sendall(b"x")


@pytest.mark.parametrize(("send", "times"), [(interim, 0), (drip, 3)])
def test_a_head_that_never_ends(
    send: Callable[[socket.socket], None], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", waits.append)
    monkeypatch.setattr(vit_hub.hub.http.response, "HEAD_TIME", 0.3)
    with sending(send) as url, pytest.raises(DownloadError, match=r"no response within 0\.3 seconds"):
        fetch(web(url))
    assert len(waits) == times


def late(connection: socket.socket) -> None:
    time.sleep(0.6)
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(WEIGHTS) + WEIGHTS)


def test_a_slow_server_may_be_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", lambda seconds: None)
    monkeypatch.setattr(vit_hub.hub.http.response, "HEAD_TIME", 0.2)
    with sending(late) as url:
        with pytest.raises(DownloadError, match=r"no response within 0\.2 seconds"):
            fetch(web(url))
        monkeypatch.setenv("VIT_HUB_TIMEOUT", "20")
        assert fetch(web(url)).read_bytes() == WEIGHTS
    for given in ("x", "-1", "nan", "1e9"):
        monkeypatch.setenv("VIT_HUB_TIMEOUT", given)
        with pytest.raises(DownloadError, match="VIT_HUB_TIMEOUT"):
            fetch(web("http://127.0.0.1:9/y.safetensors"))


def endless_chunk(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n4;")
    while True:
        time.sleep(0.02)
        connection.sendall(b"x")


def endless_trailer(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\nX: ")
    while True:
        time.sleep(0.02)
        connection.sendall(b"x")


def slow_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        time.sleep(0.02)
        connection.sendall(b"x")


@pytest.mark.parametrize("send", [endless_chunk, endless_trailer, slow_body])
def test_a_body_that_never_ends(send: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", waits.append)
    monkeypatch.setattr(vit_hub.hub.http.response, "SLOW_TIME", 0.3)
    with sending(send) as url:
        with pytest.raises(DownloadError, match="bytes in 0 seconds"):
            fetch(web(url))
        assert len(waits) == 3
        with pytest.raises(DownloadError, match="bytes in 0 seconds"):
            content_of(Item(0, "x", None, Place("url", url), url))


@pytest.mark.parametrize(
    "headers",
    [
        {"Last-Modified": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 +99999999999999"},
        {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
    ],
)
def test_dates_that_are_none(server: Server, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", lambda seconds: None)
    busy = Reply(status=503 if "Retry-After" in headers else 200, headers=headers, body=WEIGHTS)
    assert fetch(web(server.add("/x.safetensors", busy, Reply(WEIGHTS)))).read_bytes() == WEIGHTS


def test_a_lock_whose_holder_does_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.cache.paths, "LOCK_TIME", 0.2)
    path, errors = cache / "files" / "x", []

    def wait() -> None:
        try:
            with file_lock(path):
                pass
        except VitHubError as error:
            errors.append(error.message)

    with file_lock(path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert "another process holds its lock" in errors[0]
    with file_lock(path):
        pass


def test_load_and_convert_obey_the_lock_file(server: Server, tmp_path: Path) -> None:
    url = server.url + "/tiny.npz"
    lock([url])
    options = {"num_heads": 3, "act": "gelu_tanh"}
    model = vit_hub.load(url, locked=True, overrides=options)
    vit_hub.convert(url, tmp_path / "out.safetensors", locked="vit-hub.lock", overrides=options)
    assert vit_hub.compare(tmp_path / "out.safetensors", url).same_weights
    assert model.config.num_heads == 3
    with pytest.raises(ModelNotFoundError, match="is not in it"):
        vit_hub.load(server.url + "/tiny.safetensors", locked=True)
    with pytest.raises(ModelNotFoundError, match="is not in it"):
        vit_hub.load(url, locked=True, head=server.url + "/tiny.safetensors")
    with pytest.raises(ConfigError, match="a local file"):
        vit_hub.load(tmp_path / "out.safetensors", locked=True)
    locked = Path("vit-hub.lock")
    locked.write_text(locked.read_text().replace(sha256_of(fetch(web(url))), "0" * 64))
    with pytest.raises(IntegrityError, match="0" * 64):
        vit_hub.load(url, locked=True, overrides=options)


def test_hashes_can_be_required(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url + "/tiny.safetensors"
    lock([url])
    shown = CliRunner().invoke(main, ["download", "--require-hashes", url])
    assert shown.exit_code != 0
    assert "nothing pins its sha256" in shown.stderr
    assert CliRunner().invoke(main, ["download", "--require-hashes", "vit-nano-digits"]).exit_code == 0
    monkeypatch.setenv("VIT_HUB_REQUIRE_HASHES", "1")
    with pytest.raises(DownloadError, match="nothing pins its sha256"):
        fetch(web(url))
    assert vit_hub.download("vit-nano-digits").is_file()
    assert fetch(dataclasses.replace(web(url), sha256=hashlib.sha256(WEIGHTS).hexdigest())).is_file()
    assert vit_hub.open_checkpoint(url, locked=True, overrides={"num_heads": 3}).config.num_heads == 3


def test_each_command_that_fetches_can_require_hashes() -> None:
    for name in main.list_commands(click.Context(main)):
        command = main.get_command(click.Context(main), name)
        assert command is not None
        options = {option for param in command.params for option in param.opts}
        assert ("--offline" in options) == ("--require-hashes" in options), name


@pytest.mark.parametrize("verb", ["convert", "inspect", "embed", "export"])
def test_commands_take_exactly_the_locked_files(server: Server, tmp_path: Path, verb: str) -> None:
    url = server.url + "/tiny.safetensors"
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    rest = {"convert": [tmp_path / "c.safetensors"], "embed": [picture, "--out", tmp_path / "out", "--workers", 0]}
    rest["export"] = [tmp_path / "m.onnx"]
    call = [verb, url, *map(str, rest.get(verb, [])), "--set", "num_heads=3", "--locked", "--lockfile", "a.lock"]
    missing = CliRunner().invoke(main, call)
    assert (missing.exit_code, "no such lock file" in missing.stderr) == (1, True)
    lock([url], Path("a.lock"))
    found = CliRunner().invoke(main, call)
    assert found.exit_code == 0, found.output
    pinned = sha256_of(fetched_file(url))
    Path("a.lock").write_text(Path("a.lock").read_text().replace(pinned, "0" * 64))
    refused = CliRunner().invoke(main, [*call, *(["--force"] if verb in ("convert", "export") else [])])
    assert (refused.exit_code, "0" * 64 in refused.stderr) == (1, True)


def test_a_local_file_is_in_no_lock_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(WEIGHTS)
    lock(["vit-nano-digits"])
    with pytest.raises(ConfigError, match="in no lock file"):
        vit_hub.load(path, locked=True)


@pytest.mark.parametrize("how", ["link", "other owner"])
def test_a_planted_begin_of_a_download_is_not_continued(server: Server, tmp_path: Path, how: str) -> None:
    url = server.url + "/tiny.safetensors"
    path = fetched_file(url)
    part = PartFile(path, pinned=False)
    plant(part.file, b"evil" * 10, how, tmp_path)
    journal = {"version": 1, "total": len(WEIGHTS), "validator": '"a"', "have": [[0, 40]]}
    part.journal.write_text(json.dumps(journal))
    part.restore(None)
    assert part.size == 0
    assert fetch(web(url)).read_bytes() == WEIGHTS


@pytest.mark.parametrize(("planted", "how"), [("program.onnx", "link"), (PROGRAM_RECORD, "other owner")])
def test_a_planted_program_is_made_anew(planted: str, how: str, tmp_path: Path) -> None:
    model = vit_hub.load("vit-nano-digits")
    images = torch.rand(1, *model.config.input_shape(model.input_size))
    wanted = in_runtime(model, "onnxruntime")(images)
    [file] = cache_dir().glob(f"programs/*/{planted}")
    content = file.read_bytes()
    file.unlink()
    plant(file, content, how, tmp_path)
    assert not is_trusted(file)
    assert torch.equal(in_runtime(model, "onnxruntime")(images), wanted)
    assert is_trusted(file)
