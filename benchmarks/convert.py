"""Time conversions against ``cp`` and a script with the peer's loader, and measure their memory. Linux only.

    python benchmarks/convert.py --markdown benchmarks/convert.md

Writes a random checkpoint per size (make_checkpoint.py), then converts it npz -> canonical -> Hugging Face -> npz. The
last file must hold the same bytes per tensor as the first. Models are ViT-B/16, L/16 and H/14 with 1000 classes.

Time: every round runs ``cp``, ``cp`` and ``sync`` (a conversion ends with fsync, ``cp`` does not), the conversion of
one file and the peer's script in another order; the table has the shortest of the rounds, since a virtual machine's
host, which may have to find the memory first, makes any of them several times as long. The file is read before each of
them, so that it is in the page cache; outputs are new files; the interpreter is up with everything imported, and each
has run once before. "CPU" is user and system time, which other work on the machine changes less.

The peer's script is the shortest that gives the same tensors (benchmarks/peers.py): timm's ``load_pretrained`` and
``safetensors.torch.save_file``; ``load_file``, renaming, ``from_pretrained`` and ``save_pretrained``; and
``from_pretrained``, transposing by hand and ``numpy.savez``, since no peer writes npz files. It ends without
fsync.

Memory: one more run each, in a process of its own; its memory after the imports is subtracted. "Resident" is the
high-water mark of the process's resident memory, pages of mapped files included (VmHWM: ru_maxrss without what the
parent process had). "Anonymous" is the largest RssAnon seen at any piece written: memory not backed by a file.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import make_checkpoint
import measuring
import numpy as np
import report
from report import MB
from safetensors.numpy import load_file

import vit_hub


@dataclass(frozen=True)
class Conversion:
    """One line of the table; ``file`` is the source's weights, to be copied."""

    title: str
    source: Path
    file: Path
    destination: Path
    to: str
    peer: str


def memory_once(source: str, destination: str, size: str, to: str, peer: str) -> dict[str, int]:
    """Peak memory in bytes, ``resident`` and ``anonymous``, of one conversion, or of the peer's script."""
    convert, anonymous = vit_hub.convert, 0

    # Reading /proc takes as long as writing a hundred kilobytes, so memory is measured apart from time.
    def look(written: int) -> None:
        nonlocal anonymous
        anonymous = max(anonymous, measuring.memory("RssAnon"))

    if not to:
        script = peer_script(peer)
    measuring.reset_peak()
    before = {key: measuring.memory(key) for key in ("VmRSS", "RssAnon")}
    if to:
        convert(source, destination, to=to, progress=look)
    else:
        script(Path(source), Path(destination), size)
    return {"resident": measuring.memory("VmHWM") - before["VmRSS"], "anonymous": anonymous - before["RssAnon"]}


def peer_script(name: str) -> Callable[[Path, Path, str], None]:
    """Return a function of peers.py with its imports done."""
    import peers

    if name == "npz_to_timm":
        import timm  # noqa: F401
    else:
        from transformers import ViTForImageClassification  # noqa: F401
        from transformers.utils import logging

        logging.disable_progress_bar()
    script: Callable[[Path, Path, str], None] = getattr(peers, name)
    return script


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def timed(action: Callable[[], object], file: Path) -> tuple[float, float]:
    """Measure wall and CPU seconds, child processes included; the file is in the page cache."""

    def cpu() -> float:
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    measuring.warm(file)
    start, before = time.perf_counter(), cpu()
    action()
    return time.perf_counter() - start, cpu() - before


def time_copy(file: Path, *, sync: bool) -> tuple[float, float]:
    copy = file.with_name("copy")

    def action() -> None:
        subprocess.run(["cp", "--reflink=never", str(file), str(copy)], check=True)
        if sync:
            subprocess.run(["sync", str(copy)], check=True)

    found = timed(action, file)
    copy.unlink()
    return found


def time_conversion(each: Conversion) -> tuple[float, float]:
    remove(each.destination)
    return timed(lambda: vit_hub.convert(each.source, each.destination, to=each.to), each.file)


def beside(path: Path) -> Path:
    """Return the path that the peer's script writes to."""
    return path.with_name(f"peer-{path.name}")


def time_peer(each: Conversion, size: str) -> tuple[float, float]:
    """Wall and CPU seconds."""
    script, destination = peer_script(each.peer), beside(each.destination)
    remove(destination)
    return timed(lambda: script(each.source, destination, size), each.file)


def run(conversions: list[Conversion], size: str, rounds: int) -> list[tuple[str, ...]]:
    for each in conversions:  # each makes the next one's source
        time_conversion(each)
        time_peer(each, size)
        check_same(each.destination, beside(each.destination))
        remove(beside(each.destination))
    times: dict[str, list[tuple[float, ...]]] = {each.title: [] for each in conversions}
    for turn in range(rounds):
        report.step(f"{size}: round {turn + 1} of {rounds}")
        for each in conversions:
            (cp, cp_cpu), (cp_sync, _), (convert, convert_cpu), (peer, peer_cpu) = time_all(each, size, turn)
            times[each.title].append((cp, cp_sync, convert, peer, cp_cpu, convert_cpu, peer_cpu))
    return [row_of(each, size, times[each.title]) for each in conversions]


def time_all(each: Conversion, size: str, turn: int) -> list[tuple[float, float]]:
    """Wall and CPU seconds of ``cp``, of ``cp`` and ``sync``, of the conversion and of the peer's script."""
    actions = (
        partial(time_copy, each.file, sync=False),
        partial(time_copy, each.file, sync=True),
        partial(time_conversion, each),
        partial(time_peer, each, size),
    )
    # What runs first leaves its memory to the next.
    order = random.Random(turn).sample(range(len(actions)), len(actions))
    found = {number: actions[number]() for number in order}
    remove(beside(each.destination))
    return [found[number] for number in range(len(actions))]


def row_of(each: Conversion, size: str, times: list[tuple[float, ...]]) -> tuple[str, ...]:
    """Make a row of the table; measure the memory, too."""
    cp, cp_sync, convert, peer, *cpu = (min(column) for column in zip(*times, strict=True))
    ours, theirs = each.destination, beside(each.destination)
    task = {"source": str(each.source), "size": size, "peer": each.peer}
    other = measuring.once(__file__, {**task, "destination": str(theirs), "to": ""})
    remove(theirs)
    remove(ours)
    own = measuring.once(__file__, {**task, "destination": str(ours), "to": each.to})
    return (
        size,
        each.title,
        *(f"{seconds:.2f} s" for seconds in (cp, cp_sync, convert, peer)),
        *(f"{ratio:.1f}" for ratio in (convert / cp, convert / cp_sync, peer / convert)),
        *(f"{seconds:.2f} s" for seconds in cpu),
        *(report.in_mb(memory) for memory in (own["resident"], own["anonymous"], other["resident"])),
    )


def check_same(first: Path, last: Path) -> None:
    """Check that both files or folders hold the same names, shapes, dtypes and bytes."""
    if first.suffix == ".npz":
        with np.load(first) as a, np.load(last) as b:
            assert set(a.files) == set(b.files)
            assert all(same(a[name], b[name]) for name in a.files)
        return
    found, other = (load_file(path / "model.safetensors" if path.is_dir() else path) for path in (first, last))
    assert set(found) == set(other)
    assert all(same(found[name], other[name]) for name in found)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def measure(size: str, given: argparse.Namespace) -> tuple[list[tuple[str, ...]], str]:
    """Return rows of the table, and remarks on memory."""
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        npz, canonical, hf, back = (folder / part for part in ("a.npz", "b.safetensors", "c", "d.npz"))
        patch = make_checkpoint.usual_patch(size)
        report.step(f"{size}: writing the file")
        make_checkpoint.write(npz, size, patch)
        conversions = [
            Conversion("npz -> canonical", npz, npz, canonical, "canonical", "npz_to_timm"),
            Conversion("canonical -> Hugging Face", canonical, canonical, hf, "hf", "timm_to_transformers"),
            Conversion("Hugging Face -> npz", hf, hf / "model.safetensors", back, "vit_jax", "transformers_to_npz"),
        ]
        rows = run(conversions, size, given.rounds)
        check_same(npz, back)
        bytes_of_file = npz.stat().st_size
    largest = max(4 * int(np.prod(shape)) for _, shape in make_checkpoint.shapes(size, patch, 224, 1000))
    return rows, (
        f"* ViT-{size}/{patch}: {report.in_mb(bytes_of_file)}, largest tensor {largest / MB:.1f} MB, bound on resident "
        f"memory {report.in_mb(max(150 * MB, 2 * largest))}; goal: at most 2 cp."
    )


def main() -> None:
    options = report.parser(__doc__, rounds=9)
    options.add_argument(
        "--size",
        dest="sizes",
        action="append",
        choices=make_checkpoint.SIZES,
        help="of the model; repeatable (default: B, L and H; H takes 13 GB of disk)",
    )
    given: argparse.Namespace = options.parse_args()
    if given.once:
        print(json.dumps(memory_once(**json.loads(given.once))))
        return
    with report.report("Conversions beside `cp`", __doc__, given) as lines:
        measured = [measure(size, given) for size in given.sizes or ("B", "L", "H")]
        header = ("size", "conversion", "cp", "cp + sync", "convert", "peer script")
        ratios = ("convert / cp", "convert / (cp + sync)", "peer / convert")
        used = ("CPU: cp", "CPU: convert", "CPU: peer", "resident", "anonymous", "peer: resident")
        rows = [row for part, _ in measured for row in part]
        lines += [f"Random values; the shortest of {given.rounds} rounds.", ""]
        lines += [*report.table((*header, *ratios, *used), rows, left=2), "", *(line for _, line in measured)]


if __name__ == "__main__":
    main()
