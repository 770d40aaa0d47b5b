"""Give all readers changed files: each input must be read, or refused with an error of vit-hub's, in time and memory.

    python tests/fuzz/fuzz.py --seconds 600 --jobs 2            # a long run
    python tests/fuzz/fuzz.py --inputs 30000 --jobs 2           # so many of each reader
    python tests/fuzz/fuzz.py --readers torch_zip --first 5000  # other inputs of one reader
    python tests/fuzz/fuzz.py --replay torch_zip:5017           # one finding, with its traceback

The same reader and number is always the same input. Inputs are read in a process of their own; one that takes more than
its time or memory ends it, and the next process goes on behind it. A table of inputs, time and rates comes at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

SECONDS = 8
"""That one input may take, of a processor."""
BYTES = 1 << 30
"""That one input may add to the process' memory."""
_ROOT = Path(__file__).parents[2]
_BATCH = 1000
# In memory where there is such a folder: writers wait for disks.
_SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Result:
    """Findings of a run.

    Attributes:
        counts: reader -> number of its inputs.
        seconds: reader -> that they took.
        findings: (reader, number of the input, what happened) of each that was neither read nor refused.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    findings: list[tuple[str, int, str]] = field(default_factory=list)


def run(
    names: list[str], first: int, *, inputs: int | None = None, seconds: float | None = None, jobs: int = 1
) -> Result:
    """Read inputs of readers in turn, so many of each, or until the time is over.

    Args:
        names: of the readers; empty: all.
        first: number of the first input of each.
        inputs: of each reader.
        seconds: after which no input is begun.
        jobs: processes at a time.
    """
    result, end = Result(), first + inputs if inputs else sys.maxsize
    until = time.time() + seconds if seconds is not None else math.inf
    share = min(_BATCH, -(-(end - first) // jobs))
    starts = iter(range(first, end, share))

    def work() -> None:
        while time.time() < until and (start := next(starts, None)) is not None:
            _batch(names, start, min(start + share, end), until, result)

    with ThreadPoolExecutor(jobs) as pool:
        for task in [pool.submit(work) for _ in range(jobs)]:
            task.result()
    return result


def _batch(names: list[str], start: int, stop: int, until: float, result: Result) -> None:
    """Read inputs of all readers; after one that ended its process, go on behind it."""
    done = ""
    while True:
        command = [sys.executable, "-W", "ignore", __file__, "--work", f"{start}:{stop}", "--after", done]
        process = subprocess.run(
            [*command, "--until", str(until), "--readers", ",".join(names)],
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        )
        reader, number, last = "", -1, None
        for line in process.stdout.splitlines():
            reader, number, last = json.loads(line)
            if last is None:
                result.counts[reader] += 1
                continue
            result.seconds[reader] += last[1]
            if last[0]:
                result.findings.append((reader, number, last[0]))
        if process.returncode == 0:
            return
        if number < 0:
            raise RuntimeError(f"the worker does not start: {process.stderr[-2000:]}")
        ended = f"no end after {SECONDS} s" if process.returncode == -signal.SIGPROF else f"exit {process.returncode}"
        result.findings.append((reader, number, f"{ended}: {process.stderr[-300:]}"))
        done = f"{reader}:{number}"


def _environment() -> dict[str, str]:
    paths = (str(_ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    limits = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "VIT_HUB_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **limits, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _work(start: int, stop: int, names: list[str], after: str, until: float) -> None:
    """Read inputs, and print a line before each (with None) and after each (with what is wrong, and seconds)."""
    with tempfile.TemporaryDirectory(prefix="vit-hub-fuzz-", dir=_SCRATCH) as scratch:
        place = Path(scratch)
        os.environ["VIT_HUB_CACHE"] = str(place / "cache")
        (place / "seeds").mkdir()
        from readers import readers

        known = readers(place / "seeds")
        todo = [(name, number) for number in range(start, stop) for name in names or known]
        if after:
            reader, _, number_ = after.partition(":")
            todo = todo[todo.index((reader, int(number_))) + 1 :]
        base = _peak()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 3 * BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for name, number in todo:
            if time.time() > until:
                break
            print(json.dumps([name, number, None]), flush=True)
            begun = time.perf_counter()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            what = _one(known[name], name, number, place)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if not what and _peak() - base > BYTES:
                what = f"{(_peak() - base) >> 20:,} MiB"
            base = max(base, _peak() - BYTES // 4)
            print(json.dumps([name, number, [what, time.perf_counter() - begun]]), flush=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _one(reader: object, name: str, number: int, place: Path, *, raising: bool = False) -> str:
    """Read one input; return what is wrong with how it ended."""
    from vit_hub.errors import VitHubError

    folder = place / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    random = Random(f"{name}:{number}")
    try:
        reader.read(reader.make(random), folder, random)  # type: ignore[attr-defined]
    except VitHubError as error:
        return "needs more memory than there is" if isinstance(error.__cause__, MemoryError) else ""
    except BaseException as error:
        if raising:
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "fuzz" not in frame.filename]
        last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"{type(error).__name__} at {last}: {str(error)[:150]}"
    return ""


def _replay(finding: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vit-hub-fuzz-", dir=_SCRATCH) as scratch:
        place = Path(scratch)
        os.environ.update(_environment(), VIT_HUB_CACHE=str(place / "cache"))
        (place / "seeds").mkdir()
        from readers import readers

        name, _, number = finding.partition(":")
        print(_one(readers(place / "seeds")[name], name, int(number), place, raising=True) or "read, or refused")


def main() -> int:
    """Run; return 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="how long (60, or as long as --inputs take)")
    parser.add_argument("--inputs", type=int, help="of each reader")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")
    parser.add_argument("--readers", default="", help="names of readers, separated by commas (all)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (0)")
    parser.add_argument("--replay", help="one input, as READER:NUMBER")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--after", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = [name for name in given.readers.split(",") if name]
    if given.work:
        start, _, stop = given.work.partition(":")
        _work(int(start), int(stop), names, given.after, given.until)
        return 0
    if given.replay:
        _replay(given.replay)
        return 0
    seconds = given.seconds if given.seconds or given.inputs else 60.0
    begun = time.monotonic()
    result = run(names, given.first, inputs=given.inputs, seconds=seconds, jobs=given.jobs)
    print(f"{'reader':18} {'inputs':>9} {'seconds':>9} {'a second':>9}")
    for name, count in result.counts.items():
        took = result.seconds[name]
        print(f"{name:18} {count:9,} {took:9,.1f} {count / max(took, 1e-9):9,.0f}")
    total = result.counts.total()
    took = time.monotonic() - begun
    print(f"{'all':18} {total:9,} {took:9,.1f} {total / took:9,.0f}, {len(result.findings)} findings")
    for reader, number, what in result.findings:
        print(f"{reader}:{number}: {what}")
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
