"""Time loading against timm and transformers, and measure the memory it takes. Linux only.

    python benchmarks/load.py --markdown benchmarks/load.md

One random checkpoint per size (make_checkpoint.py), converted to all formats. Every measurement is a process of its
own that imports what it needs, then loads once; the loaders run in another order in every round, and the table has the
shortest of the rounds, since a virtual machine's host, which may have to find the memory first, makes any of them
several times as long. The file is read before each of them, so that it is in the page cache. "/ vit-hub" is the time
divided by vit-hub's for the same file: above 1 vit-hub is faster. "with a pass" is the time until the first image has
its output, since a mapped file is read only then.

What the imports left to Python's garbage collector is not collected before, as it would not be for a user: a loader
that makes thousands of objects then waits for the collector to traverse all of torch's.

Memory is what was added to the process after its imports: "peak" the high-water mark of resident memory
while loading (VmHWM, pages of mapped files included), "after" what is resident then, "after a pass" what is resident
after a forward pass of one image, which touches all weights. Memory not backed by a file (RssAnon) is sampled every
half millisecond, in one more process, for the load in bfloat16.

vit-hub maps files of its cache and reads the user's own, as here, unless it is told to map them.

"read and transpose" is `numpy.load` and every array in torch's layout, contiguous, once. timm makes its model with
random weights before it reads any file. The models are ViT-Ti/16, B/16, L/16 and H/14 with 1000 classes, in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_checkpoint
import measuring
import numpy as np
import report

OURS = "vit-hub"
MAPPED = "vit-hub, mmap=True"
BFLOAT16 = "vit-hub, bfloat16"
READ = "read and transpose"
# File and loader.
CASES = (
    ("canonical", OURS),
    ("canonical", MAPPED),
    ("canonical", BFLOAT16),
    ("npz", OURS),
    ("npz", "timm load_pretrained"),
    ("npz", READ),
    ("timm", OURS),
    ("timm", MAPPED),
    ("timm", "timm checkpoint_path"),
    ("hf", OURS),
    ("hf", MAPPED),
    ("hf", "transformers from_pretrained"),
)


def make_files(folder: Path, size: str) -> dict[str, Path]:
    """The same weights in every format; exact GELU, the default of timm's and transformers' models."""
    import vit_hub

    files = {kind: folder / name for kind, name in (("npz", "a.npz"), ("canonical", "b.safetensors"))}
    make_checkpoint.write(files["npz"], size, make_checkpoint.usual_patch(size))
    vit_hub.convert(files["npz"], files["canonical"], overrides={"act": "gelu"})
    for kind in ("timm", "hf"):
        files[kind] = vit_hub.convert(files["canonical"], folder / kind, to=kind).path
    return files


def loader(case: tuple[str, str], size: str, path: Path, device: str) -> Callable[[], Any]:
    """Do the imports and return a function that loads."""
    _, how = case
    if how in (OURS, MAPPED, BFLOAT16):
        import vit_hub

        load, dtype = vit_hub.load, "bfloat16" if how == BFLOAT16 else "float32"
        mmap = True if how == MAPPED else None
        return lambda: load(path, device=device, dtype=dtype, mmap=mmap)
    import peers

    if how == READ:
        return lambda: peers.read_and_transpose(path)
    if how.startswith("timm"):
        import timm  # noqa: F401

        def from_timm() -> Any:
            if path.suffix == ".npz":
                model = peers.timm_model(size)
                model.load_pretrained(str(path))
            else:
                model = peers.timm_model(size, checkpoint_path=str(path / "model.safetensors"))
            return model.eval().to(device)

        return from_timm
    from transformers import ViTForImageClassification

    return lambda: ViTForImageClassification.from_pretrained(path).to(device)


def load_once(task: dict[str, Any]) -> dict[str, float | None]:
    """Seconds and bytes of one load and of a pass after it, in a process that has done nothing before."""
    import torch

    case, device = tuple(task["case"]), task["device"]
    load = loader(case, task["size"], Path(task["path"]), device)
    if device != "cpu":
        torch.zeros(1, device=device)
    measuring.reset_peak()
    before = measuring.memory("VmRSS")
    if task["anonymous"]:
        with measuring.anonymous_peak() as found:
            load()
        return {"anonymous": found[0]}
    start = time.perf_counter()
    model = load()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    found: dict[str, float | None] = {
        "seconds": seconds,
        "peak": measuring.memory("VmHWM") - before,
        "after": measuring.memory("VmRSS") - before,
        "passed": None,
        "touched": None,
    }
    if isinstance(model, torch.nn.Module):
        images = torch.zeros(1, 3, 224, 224, device=device, dtype=next(model.parameters()).dtype)
        start = time.perf_counter()
        with torch.inference_mode():
            model(images)
        if device != "cpu":
            torch.cuda.synchronize()
        found["passed"] = seconds + time.perf_counter() - start
        found["touched"] = measuring.memory("VmRSS") - before
    return found


def measure(
    case: tuple[str, str], size: str, files: dict[str, Path], *, device: str = "cpu", anonymous: bool = False
) -> dict[str, float | None]:
    """:func:`load_once` in a process of its own."""
    path = files[case[0]]
    measuring.warm(path)
    task = {"case": case, "size": size, "path": str(path), "device": device, "anonymous": anonymous}
    found: dict[str, float | None] = measuring.once(__file__, task)
    return found


def shortest(measured: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the measurement of the shortest time."""
    return min(measured, key=lambda each: each["seconds"] or 0.0)


def rows_of(size: str, found: dict[tuple[str, str], dict[str, float | None]]) -> list[tuple[str, ...]]:
    rows = []
    for (kind, how), best in found.items():
        seconds, own = best["seconds"] or 0.0, found[kind, OURS]["seconds"] or 1.0
        memory = [report.in_mb(best[key]) for key in ("peak", "after", "touched")]
        passed = "-" if best["passed"] is None else report.in_ms(best["passed"])
        rows.append((size, kind, how, report.in_ms(seconds), f"{seconds / own:.2f}", passed, *memory))
    return rows


def figures(
    size: str, found: dict[tuple[str, str], dict[str, float | None]], anonymous: float, halved: int
) -> list[str]:
    """Write the results beside the goals."""
    seconds = {case: best["seconds"] or 0.0 for case, best in found.items()}
    bound = " (goal for B: at most 50 ms)" if size == "B" else ""
    ratio = seconds["npz", OURS] / seconds["npz", READ]
    return [
        f"* {size}, canonical, mapped: {report.in_ms(seconds['canonical', MAPPED])}{bound}; "
        f"npz / read and transpose: {ratio:.2f} (goal: at most 1.5); in bfloat16 at most "
        f"{report.in_mb(anonymous)} of memory that is no file's, {anonymous / halved:.2f} times the model's "
        f"{report.in_mb(halved)} (goal: never 2 times)."
    ]


def main() -> None:
    options = report.parser(__doc__, rounds=5)
    report.add_sizes(options, make_checkpoint.SIZES, "Ti,B,L,H", "; H takes 12 GB of disk")
    given: argparse.Namespace = options.parse_args()
    if given.once:
        print(json.dumps(load_once(json.loads(given.once))))
        return
    rows: list[tuple[str, ...]] = []
    goals: list[str] = []
    with report.report("Loading", __doc__, given) as lines:
        for size in given.sizes:
            with tempfile.TemporaryDirectory(dir=given.folder) as name:
                report.step(f"{size}: writing files")
                files = make_files(Path(name), size)
                measured: dict[tuple[str, str], list[dict[str, float | None]]] = {case: [] for case in CASES}
                for turn in range(given.rounds):
                    report.step(f"{size}: round {turn + 1} of {given.rounds}")
                    # What runs first leaves its memory to the next.
                    for case in random.Random(turn).sample(CASES, len(CASES)):
                        measured[case].append(measure(case, size, files))
                anonymous = measure(("canonical", BFLOAT16), size, files, anonymous=True)["anonymous"] or 0.0
            shapes = make_checkpoint.shapes(size, make_checkpoint.usual_patch(size), 224, 1000)
            halved = 2 * sum(int(np.prod(shape)) for _, shape in shapes)
            found = {case: shortest(each) for case, each in measured.items()}
            rows += rows_of(size, found)
            goals += figures(size, found, anonymous, halved)
        header = ("size", "file", "loader", "time", "/ vit-hub", "with a pass", "peak", "after", "after a pass")
        lines += [f"The shortest of {given.rounds} processes.", "", *report.table(header, rows, left=3), "", *goals]


if __name__ == "__main__":
    main()
