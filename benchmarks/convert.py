"""Times conversions beside ``cp`` of the same file in the same run, and measures the memory they take. Linux only.

    python benchmarks/convert.py --markdown benchmarks/convert.md

Writes a random checkpoint (make_checkpoint.py), then converts it npz -> canonical -> Hugging Face -> npz. The last file
must hold the same bytes per tensor as the first.

Time: every round runs ``cp``, ``cp`` and ``sync`` (a conversion ends with fsync, ``cp`` does not) and the conversion of
one file, one after the other; the table has the medians. The file is read before each of them, so that it is in the
page cache; outputs are new files; the interpreter is up with vit_hub imported. "CPU" is user and system time, which
other work on the machine changes less.

Memory: one more run a conversion, in a process of its own; what it had after the import is subtracted. "Resident" is
the high-water mark of the process's resident memory, pages of mapped files included (VmHWM: ru_maxrss without what the
parent process had). "Anonymous" is the largest RssAnon seen at any piece written: memory that is no file's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import make_checkpoint
import numpy as np

import vit_hub

MB = 1_000_000
# Reading /proc takes as long as writing a hundred kilobytes, so memory is measured apart from time.
MEASURE = """
import json, sys
from pathlib import Path
import vit_hub
vit_hub.convert

def memory(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024

def look(written):
    global anonymous
    anonymous = max(anonymous, memory("RssAnon"))

resident, anonymous = memory("VmHWM"), memory("RssAnon")
before = {"resident": resident, "anonymous": anonymous}
vit_hub.convert(sys.argv[1], sys.argv[2], to=sys.argv[3], progress=look)
print(json.dumps({"resident": memory("VmHWM") - resident, "anonymous": anonymous - before["anonymous"]}))
"""


@dataclass(frozen=True)
class Conversion:
    """One line of the table; ``file`` is the source's weights, to be copied."""

    title: str
    source: Path
    file: Path
    destination: Path
    to: str


@dataclass(frozen=True)
class Result:
    """Medians in seconds, memory in bytes above the interpreter and its imports."""

    title: str
    cp: float
    cp_sync: float
    convert: float
    cp_cpu: float
    convert_cpu: float
    resident: int
    anonymous: int


def memory_of(source: Path, destination: Path, to: str) -> dict[str, int]:
    """Peak memory in bytes, ``resident`` and ``anonymous``, of one conversion in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(source), str(destination), to]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def warm(file: Path) -> None:
    """Reads the file, so that it is in the page cache."""
    with file.open("rb") as stream:
        while stream.read(MB):
            pass


def time_copy(file: Path, *, sync: bool) -> tuple[float, float]:
    """Wall and CPU seconds."""
    copy = file.with_name("copy")
    warm(file)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", "--reflink=never", str(file), str(copy)], check=True)
    if sync:
        subprocess.run(["sync", str(copy)], check=True)
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    copy.unlink()
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_conversion(conversion: Conversion) -> tuple[float, float]:
    """Wall and CPU seconds."""
    remove(conversion.destination)
    warm(conversion.file)
    start, before = time.perf_counter(), time.process_time()
    vit_hub.convert(conversion.source, conversion.destination, to=conversion.to)
    return time.perf_counter() - start, time.process_time() - before


def run(conversions: list[Conversion], rounds: int) -> list[Result]:
    for conversion in conversions:  # each makes the next one's source
        time_conversion(conversion)
    times: dict[str, list[tuple[float, ...]]] = {conversion.title: [] for conversion in conversions}
    for _ in range(rounds):
        for conversion in conversions:
            cp, cp_cpu = time_copy(conversion.file, sync=False)
            cp_sync, _ = time_copy(conversion.file, sync=True)
            convert, convert_cpu = time_conversion(conversion)
            times[conversion.title].append((cp, cp_sync, convert, cp_cpu, convert_cpu))
    results = []
    for conversion in conversions:
        medians = [statistics.median(column) for column in zip(*times[conversion.title], strict=True)]
        remove(conversion.destination)
        memory = memory_of(conversion.source, conversion.destination, conversion.to)
        results.append(Result(conversion.title, *medians, **memory))
    return results


def check_round_trip(first: Path, last: Path) -> None:
    """Both npz files hold the same names, shapes, dtypes and bytes."""
    with np.load(first) as a, np.load(last) as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            x, y = a[name], b[name]
            assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes()), name


def table(results: list[Result], largest: int) -> list[str]:
    bound = max(150 * MB, 2 * largest)
    columns = ("cp", "cp + sync", "convert", "convert / cp", "convert / (cp + sync)", "CPU: cp", "CPU: convert")
    lines = [f"| conversion | {' | '.join(columns)} | resident | anonymous |", "|---|" + 9 * "---:|"]
    for r in results:
        cells = [
            *(f"{seconds:.2f} s" for seconds in (r.cp, r.cp_sync, r.convert)),
            *(f"{ratio:.1f}" for ratio in (r.convert / r.cp, r.convert / r.cp_sync)),
            *(f"{seconds:.2f} s" for seconds in (r.cp_cpu, r.convert_cpu)),
            *(f"{memory / MB:.0f} MB" for memory in (r.resident, r.anonymous)),
        ]
        lines.append(f"| {r.title} | {' | '.join(cells)} |")
    return [*lines, "", f"Largest tensor: {largest / MB:.1f} MB. Bound on resident memory: {bound / MB:.0f} MB."]


def machine(folder: Path) -> str:
    """Processor, memory, file system and versions, in words."""
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], check=True, capture_output=True, text=True)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    linux, _, _ = platform.release().partition("-")
    return (
        f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores, {total:.0f} GiB of memory, file system "
        f"{kind.stdout.strip()}, Linux {linux}, Python {platform.python_version()}, numpy {np.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=make_checkpoint.SIZES, default="B", help="size of the model (default: B)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--folder", type=Path, help="where the files are written (default: a temporary folder)")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        npz, canonical, hf, back = (folder / part for part in ("a.npz", "b.safetensors", "c", "d.npz"))
        make_checkpoint.write(npz, given.size)
        sizes = make_checkpoint.shapes(given.size, 16, 224, 1000)
        largest = max(4 * int(np.prod(shape)) for _, shape in sizes)
        size, where = npz.stat().st_size, machine(folder)
        conversions = [
            Conversion("npz -> canonical", npz, npz, canonical, "canonical"),
            Conversion("canonical -> Hugging Face", canonical, canonical, hf, "hf"),
            Conversion("Hugging Face -> npz", hf, hf / "model.safetensors", back, "vit_jax"),
        ]
        loads = [os.getloadavg()[0]]
        results = run(conversions, given.rounds)
        loads.append(os.getloadavg()[0])
        check_round_trip(npz, back)
    text = "\n".join(
        [
            f"ViT-{given.size}/16, {size / MB:.0f} MB, random values; medians of {given.rounds} rounds.",
            f"{where}.",
            f"Load average of the machine before and after: {loads[0]:.1f}, {loads[1]:.1f}.",
            "",
            *table(results, largest),
        ]
    )
    print(text)
    if given.markdown:
        explanation = (__doc__ or "").split("\n\n")[1:]
        given.markdown.write_text("\n\n".join(["# Conversions beside `cp`", text, *explanation]), encoding="utf-8")


if __name__ == "__main__":
    main()
