"""Measuring on Linux: memory, the page cache, a process for every measurement."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PIECE = 1 << 20


def warm(path: Path) -> None:
    """Read the file, or all files of the folder, so that they are in the page cache."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while stream.read(_PIECE):
                pass


def memory(key: str) -> int:
    """Bytes of this process: ``VmRSS`` resident, ``VmHWM`` its high-water mark, ``RssAnon`` not backed by a file."""
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Reset ``VmHWM`` to the present resident memory; if that is not permitted, the old peak stays.

    What was freed goes back to the system first: what comes next shall not find it there.
    """
    with suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def anonymous_peak() -> Iterator[list[int]]:
    """Sample ``RssAnon`` every half millisecond; afterwards the list holds its largest rise in bytes."""
    found, done = [0], threading.Event()
    start = memory("RssAnon")

    def look() -> None:
        while not done.wait(0.0005):
            found[0] = max(found[0], memory("RssAnon") - start)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found[0] = max(found[0], memory("RssAnon") - start)


def once(script: str, task: Mapping[str, Any], **variables: str) -> Any:
    """Run ``script --once TASK`` in a process with more environment variables and return its last line of output."""
    command = [sys.executable, script, "--once", json.dumps(task)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
