"""Kill a piece of work at random moments, again and again. Run as a program, so that its children can be forked.

    python killing.py download URL PATH SHA256
    python killing.py convert SOURCE PATH SHA256

Prints observations as JSON: the number of kills, of runs that finished before, of wrong files under the final name,
and the most hidden files at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

KILLS = 50


def run(task: Callable[[], None], path: Path, sha256: str, longest: float) -> dict[str, int]:
    """Kill ``task`` after at most ``longest`` seconds, ``KILLS`` times; then let it finish."""
    generator = random.Random(0)
    seen = {"killed": 0, "finished": 0, "wrong": 0, "most_hidden": 0}
    while seen["killed"] < KILLS:
        child = start(task)
        time.sleep(generator.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        ended_by = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended_by in (0, -signal.SIGKILL)
        seen["killed" if ended_by else "finished"] += 1
        look(path, sha256, seen)
        if ended_by == 0:
            path.unlink()
    last = start(task)
    assert os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) == 0
    look(path, sha256, seen)
    return {**seen, "left": len([item for item in path.parent.iterdir() if not item.name.endswith(".lock")])}


def start(task: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        task()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def look(path: Path, sha256: str, seen: dict[str, int]) -> None:
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        seen["wrong"] += 1
    hidden = [item for item in path.parent.iterdir() if item.name.startswith(".") and not item.name.endswith(".lock")]
    seen["most_hidden"] = max(seen["most_hidden"], len(hidden))


def main() -> None:
    what, source, name, sha256 = sys.argv[1:]
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "download":
        from vit_hub.hub.cache.paths import file_lock
        from vit_hub.hub.http import download, transfer
        from vit_hub.registry import WeightSource

        transfer.JOURNAL_EVERY = 0.02
        download.LARGE, download.PIECE = 1 << 19, 1 << 18

        def fetch() -> None:
            with file_lock(path):
                if not path.exists():
                    download.stream_to(path, WeightSource(kind="https", format="", url=source))

        seen = run(fetch, path, sha256, 0.25)
    else:
        import vit_hub

        def convert() -> None:
            vit_hub.convert(source, path, to="canonical")

        convert()  # here, so that the children need not import anything
        begun = time.monotonic()
        convert()
        longest = 2 * (time.monotonic() - begun)
        path.unlink()
        seen = run(convert, path, sha256, longest)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
