"""Machines without a connection, with a cache that cannot be written, and with many processes at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_process import COMMIT, REPO, Hub, hub
from servers import Reply, serving
from tiny import vit_jax_file

__all__ = ["hub"]  # a fixture

# Everything that could open a connection is imported before it is forbidden: the clients derive from the socket class.
FORBIDDEN = """
import socket, sys, huggingface_hub, httpx2, vit_hub
def refuse(*args, **named):
    raise AssertionError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
sys.addaudithook(lambda event, args: refuse() if event.startswith(("socket.connect", "socket.getaddrinfo")) else None)
"""
COMMAND = "from vit_hub.cli import main; main()"
LOAD = "print(vit_hub.load(sys.argv[1], offline='--offline' in sys.argv).config.depth)"


@pytest.fixture
def used(hub: Hub) -> tuple[Hub, str]:
    """A machine that has a repository, and a file of a plain web server that is gone; and that file's URL."""
    with serving() as web:
        url = web.add("/tiny.npz", Reply(vit_jax_file()))
        hub.run("lock", REPO, f"{REPO}@{COMMIT}", url)
        hub.run("download", "--locked")
    hub.server.requests.clear()
    return hub, url


def test_no_command_opens_a_socket_offline(used: tuple[Hub, str]) -> None:
    hub, url = used
    for args in (
        ("download", REPO, url, "vit-nano-digits"),
        ("download", "--locked"),
        ("lock", REPO, url),
        ("mirror", hub.folder / "mirror", REPO, url),
    ):
        hub.run(*args, "--offline", program=FORBIDDEN + COMMAND)
    for name in (REPO, url):
        assert hub.run(name, "--offline", program=FORBIDDEN + LOAD) == "2\n"
    missing = hub.run("download", "someone/else", "--offline", program=FORBIDDEN + COMMAND, code=1)
    assert "not in Hugging Face's cache, and offline" in missing
    hub.variables["VIT_HUB_MIRROR"] = "http://127.0.0.1:9"
    hub.run("download", REPO, "--offline", program=FORBIDDEN + COMMAND)
    shutil.rmtree(hub.folder / "cache")
    shutil.rmtree(hub.folder / "hf")
    hub.variables["VIT_HUB_MIRROR"] = str(hub.folder / "mirror")
    hub.run("download", REPO, url, "--offline", program=FORBIDDEN + COMMAND)
    assert hub.server.requests == []


@pytest.mark.parametrize("switch", ["VIT_HUB_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_switches_mean_the_same(used: tuple[Hub, str], switch: str) -> None:
    hub, url = used
    hub.variables[switch] = "1"
    hub.run("lock", REPO, url, program=FORBIDDEN + COMMAND)
    hub.run("download", "--locked", program=FORBIDDEN + COMMAND)
    assert hub.run(REPO, program=FORBIDDEN + LOAD) == "2\n"
    assert hub.server.requests == []


def test_what_only_looks_at_this_machine_opens_no_socket(used: tuple[Hub, str]) -> None:
    hub, url = used
    for args in (("verify",), ("verify", REPO), ("cache", "ls"), ("cache", "dir"), ("cache", "prune")):
        hub.run(*args, program=FORBIDDEN + COMMAND)
    hub.run("cache", "rm", REPO, url, program=FORBIDDEN + COMMAND)
    assert hub.server.requests == []


# Permissions would not stop a privileged user; this refuses what a read-only file system refuses.
READ_ONLY = """
import os, sys
folder = os.environ["VIT_HUB_CACHE"]
changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.link", "os.symlink", "os.truncate")
def refuse(event, args):
    if event in changes or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        if isinstance(args[0], (str, os.PathLike)) and os.fspath(args[0]).startswith(folder):
            raise OSError(30, "Read-only file system", args[0])
sys.addaudithook(refuse)
import vit_hub
"""


def everything(hub: Hub) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (hub.folder / "cache").rglob("*")}


def test_a_read_only_cache_serves_what_is_in_it(used: tuple[Hub, str]) -> None:
    hub, url = used
    before = everything(hub)
    for args in (
        ("download", REPO, url),
        ("download", "--locked", "--offline"),
        ("lock", REPO, url),
        ("mirror", hub.folder / "mirror", REPO, url, "--offline"),
        ("verify",),
        ("cache", "ls"),
        ("cache", "prune", "--dry-run"),
    ):
        hub.run(*args, program=READ_ONLY + COMMAND)
    for name in (REPO, url, "vit-nano-digits"):
        assert hub.run(name, program=READ_ONLY + LOAD).strip().isdecimal()
    # What has to be written is one clear error.
    for args in (
        ("download", "vit-nano-digits"),
        ("download", url + ".npz"),
        ("download", "--locked", "--force"),
        ("cache", "rm", REPO),
        ("cache", "prune"),
    ):
        printed = hub.run(*args, program=READ_ONLY + COMMAND, code=1)
        assert f"error: {hub.folder / 'cache'}" in printed
        assert "Read-only file system" in printed
        assert "hint: " in printed
    assert everything(hub) == before
    for folder in ("records", "stamps"):
        shutil.rmtree(hub.folder / "cache" / folder)
    hub.run("download", REPO, url, program=READ_ONLY + COMMAND)
    hub.run("verify", program=READ_ONLY + COMMAND)


def test_sixteen_processes_make_one_fetch_and_one_conversion(hub: Hub) -> None:
    program = (
        "import sys, vit_hub; path = vit_hub.download(sys.argv[1]); stat = path.stat();"
        "print(path, stat.st_ino, stat.st_mtime_ns)"
    )
    running = [hub.command(REPO, program=program) for _ in range(16)]
    results = [process.communicate(timeout=300) for process in running]
    assert {process.returncode for process in running} == {0}, results
    assert len({out for out, _ in results}) == 1
    assert hub.weight_requests() == 1
    assert hub.answer("verify", REPO)
    assert not list((hub.folder / "cache").rglob("*.vit-hub.*"))
