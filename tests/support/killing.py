"""Kill a piece of work at random moments, again and again. Run as a program, so that its children can be forked.

    python killing.py download URL PATH SHA256
    python killing.py convert SOURCE PATH SHA256
    python killing.py mirror FIRST SECOND FOLDER
    python killing.py replace CASES.json

Prints observations as JSON: the number of kills, of runs that finished before, of wrong files under the final name,
and the most hidden files at a time. ``VIT_HUB_TEST_KILLS`` is the number of kills.

``replace`` writes one of several things over another, for each case of ``CASES.json``:

    destination: file or folder to write
    jobs: each either arguments of ``vit_hub.convert``, or {"files": [...]}: what an export would have written
    others: name -> text of files beside those that are written, which must stay
    inside: work in the destination's folder, which cannot be exchanged then

It counts kills that left what neither was there before nor is written, with all other files of the folder: as ``wrong``
if the next command does not mend it, else as ``mended``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLS = int(os.environ["VIT_HUB_TEST_KILLS"])


def kill(task: Callable[[], None], after: float) -> bool:
    """Start a task and kill it after so many seconds; return whether it was killed before it ended."""
    child = start(task)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    ended_by = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended_by in (0, -signal.SIGKILL)
    return ended_by != 0


def run(task: Callable[[], None], path: Path, sha256: str, longest: float) -> dict[str, int]:
    """Kill ``task`` after at most ``longest`` seconds, ``KILLS`` times; then let it finish."""
    generator = random.Random(0)
    seen = {"killed": 0, "finished": 0, "wrong": 0, "most_hidden": 0}
    while seen["killed"] < KILLS:
        killed = kill(task, generator.uniform(0.0, longest))
        seen["killed" if killed else "finished"] += 1
        look(path, sha256, seen)
        if not killed:
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


def job_of(job: dict[str, Any], destination: Path) -> Callable[[], None]:
    """Return what writes a destination: a conversion, or files in place of an export's, by its own code."""
    import vit_hub
    from vit_hub.exporting import export

    if "files" not in job:
        return lambda: vit_hub.convert(destination=destination, **job) and None

    def written(program: object, path: Path, *rest: object) -> float:
        for file in map(Path, job["files"]):
            shutil.copyfile(file, path.with_name(path.stem + file.suffix))
        return 0.0

    def write() -> None:
        export._written = written
        export.write_program(None, destination, "openvino", export.Options(), 1.0)  # type: ignore[arg-type]

    return write


def state(folder: Path, drafts: str) -> dict[str, str]:
    """Return the hashes of all files of a folder, but for drafts of a killed process where they may lie in it."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    names = {file: str(file.relative_to(folder)) for file in files}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file, name in names.items()
        if not (drafts and drafts in name.partition("/")[0])
    }


def replace(case: dict[str, Any]) -> dict[str, int]:
    """Kill each job in turn while it replaces what another wrote."""
    from vit_hub.converters.containers.together import finish_interrupted

    destination, generator = Path(case["destination"]), random.Random(0)
    folder = destination.parent if destination.suffix else destination
    in_place = bool(destination.suffix) or case["inside"]
    drafts = ".vit-hub.tmp" if in_place else ""
    jobs, states, longest = [job_of(job, destination) for job in case["jobs"]], [], 0.0
    for job in jobs:
        shutil.rmtree(folder, ignore_errors=True)
        for name, text in case["others"].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.chdir(folder if case["inside"] else folder.parent)
        job()
        states.append(state(folder, drafts))
        begun = time.monotonic()
        job()  # over itself, as it will be over others
        longest = max(longest, time.monotonic() - begun)
    for job, wanted in zip(jobs, states, strict=True):
        job()
        assert state(folder, drafts) == wanted, (state(folder, drafts), wanted)
    seen = {"killed": 0, "finished": 0, "replaced": 0, "mended": 0, "wrong": 0, "most_hidden": 0}
    before = states[-1]
    while seen["killed"] < KILLS:
        chosen = generator.randrange(len(jobs))
        # Every other kill is aimed at the end, when files are put in place.
        early = 0.0 if generator.random() < 0.5 else 0.7
        killed = kill(jobs[chosen], longest * generator.uniform(early, 1.2))
        found = state(folder, drafts)
        if found not in (before, states[chosen]):
            # The next command opens it, or is the same again.
            generator.choice((lambda: finish_interrupted(destination), jobs[chosen]))()
            found = state(folder, drafts)
            seen["mended" if found in (before, states[chosen]) else "wrong"] += 1
            if found not in (before, states[chosen]):
                print({"before": before, "wanted": states[chosen], "found": found}, file=sys.stderr)
        seen["killed" if killed else "finished"] += 1
        seen["replaced"] += found != before
        hidden = [item for item in (folder if in_place else folder.parent).iterdir() if item.match(".*.vit-hub.tmp")]
        seen["most_hidden"] = max(seen["most_hidden"], len(hidden))
        before = found
    jobs[0]()
    assert state(folder, drafts) == states[0]
    return {**seen, "left": len(list(folder.glob(".*.vit-hub.tmp")) + list(folder.parent.glob(".*.vit-hub.tmp")))}


def mirror(first: str, second: str, folder: Path) -> dict[str, int]:
    """Kill what adds the second of two addresses to a mirror that has the first: all that it lists must be there."""
    from vit_hub.hub.make_mirror import add_to_mirror
    from vit_hub.hub.mirror import parse_index

    def add() -> None:
        list(add_to_mirror(folder, [second], offline=True))

    list(add_to_mirror(folder, [first]))
    index, files = folder / "index.json", folder / "files"
    old, had = index.read_bytes(), {file.name for file in files.iterdir()}
    list(add_to_mirror(folder, [second]))  # which fetches it
    new, has = index.read_bytes(), {file.name for file in files.iterdir() if file.name[0] != "."}
    begun = time.monotonic()
    for name in has - had:
        (files / name).unlink()
    index.write_bytes(old)
    add()
    longest, generator = 1.5 * (time.monotonic() - begun), random.Random(0)
    seen = {"killed": 0, "finished": 0, "replaced": 0, "wrong": 0}
    while seen["killed"] < KILLS:
        index.write_bytes(old)
        for name in has - had:
            (files / name).unlink(missing_ok=True)
        killed = kill(add, generator.uniform(0.0, longest))
        seen["killed" if killed else "finished"] += 1
        text, there = index.read_bytes(), [file for file in files.iterdir() if file.name[0] != "."]
        damaged = [file for file in there if hashlib.sha256(file.read_bytes()).hexdigest() != file.name]
        pins = [pin for place in parse_index(text, "it")["addresses"].values() for pin in place["files"].values()]
        listed = {pin["sha256"] for pin in pins}
        seen["replaced"] += text == new
        seen["wrong"] += text not in (old, new) or bool(damaged) or not listed <= {file.name for file in there}
    add()
    assert (index.read_bytes(), {file.name for file in files.iterdir()}) == (new, has)
    return seen


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "mirror":
        print(json.dumps(mirror(*arguments[:2], Path(arguments[2]))))
        return
    if what == "replace":
        print(json.dumps([replace(case) for case in json.loads(Path(arguments[0]).read_text())]))
        return
    source, name, sha256 = arguments
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
