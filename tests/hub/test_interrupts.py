"""Ctrl-C at any moment: one line, and how to go on where that is possible."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupting import COMMAND, LISTEN
from misbehaving import File, Host, host, weights
from tiny import vit_jax_file

__all__ = ["host"]  # fixture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
SEVEN = Path(__file__).parents[2] / "vit_hub" / "data" / "digits" / "7.png"

# Ctrl-C is pressed when a module is imported for the first time, or after everything else.
PROGRAM = """
import atexit, builtins, os, signal, sys, time
moment, swallowed = sys.argv.pop(1).split("/")
imported, seen = builtins.__import__, []

def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)

def importing(name, *args):
    if name == moment and not seen:
        seen.append(name)
        try:
            press()
        except KeyboardInterrupt:
            if swallowed:
                raise AttributeError("half of the module is missing")
            raise
    return imported(name, *args)

builtins.__import__ = importing
if moment == "exit":
    atexit.register(press)
from vit_hub.__main__ import run
run()
"""


def interrupted(moment: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LISTEN + PROGRAM, moment, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("moment", "args"),
    [
        ("click/", ("list",)),
        ("vit_hub.cli.failures/", ("list",)),
        ("vit_hub.registry/", ("list",)),
        ("vit_hub.registry/swallowed", ("list",)),
        ("exit/", ("list", "-q", "--limit", "1")),
        ("numpy/", ("inspect", "vit-nano-digits")),
        ("torch/", ("predict", "vit-nano-digits", SEVEN)),
        ("torch/swallowed", ("predict", "vit-nano-digits", SEVEN)),
    ],
)
def test_an_interrupt_is_one_line(moment: str, args: tuple[object, ...]) -> None:
    done = interrupted(moment, *args)
    assert done.stderr.strip() == "vit-hub: error: interrupted"
    assert done.returncode == 130


def test_an_ignored_interrupt_is_ignored() -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + PROGRAM
    command = [sys.executable, "-c", program, "click/", "list", "-q", "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout


@pytest.mark.parametrize("etag", ['"v1"', None], ids=["resumable", "not"])
def test_an_interrupted_download_goes_on_where_it_can(host: Host, tmp_path: Path, etag: str | None) -> None:
    content = vit_jax_file() if etag is None else weights(2_000_000)
    url = host.add("/w.npz", File(content, etag=etag, rate=len(content) / 4, drip=2_000))
    variables = {"VIT_HUB_CACHE": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    command = [*COMMAND, "inspect", url]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables})
    until = time.monotonic() + 60
    while not (host.requests and host.requests[0].sent > 8_000) and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    hints = ["hint: run it again to continue: what was fetched is kept"] if etag else []
    assert [line for line in err.splitlines() if line] == ["vit-hub: error: interrupted", *hints]
    assert running.returncode == 130
    host.files["/w.npz"].rate = None
    subprocess.run(command, capture_output=True, check=False, env={**os.environ, **variables})
    assert bool(host.requests[-1].start) is bool(etag)
