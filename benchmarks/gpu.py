"""Measure a CUDA GPU: throughput against timm and transformers, loading, and numbers against float64.

    python benchmarks/gpu.py --markdown benchmarks/gpu.md

Throughput: ViT-B/16 and L/16 in bfloat16 at 224 and 384 pixels with random weights, the same for all three; inference
mode; medians of rounds in which they run in turn. "eager" and "max-autotune" (a mode of torch.compile) are measured by
`vit_hub.benching.time_forward`, "CUDA graph" is the eager model captured once and replayed. "of the peak" is the
arithmetic of the model (vit_hub.model.flops.forward_flops, which counts the last block for all tokens, although vit-hub
needs fewer of it) by the time and by the measured rate of a product of two bfloat16 matrices of 8192 x 8192. Memory is
what a pass allocated on the GPU at its peak.

Loading: processes of their own that import what they need and start CUDA first; files as in load.py, in the page cache.
timm and transformers load to the host, then `.to("cuda")`. Memory is the host's: the rise of the high-water mark.

Numbers: logits of the same weights and images, relative to the largest logit, against vit-hub's in float64. TF32 is
float32 with `torch.set_float32_matmul_precision("high")`.

Without a GPU everything that can runs on the CPU with a tiny model, to see that it works, and no figure is kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import load
import random_model
import report
import torch
import torchvision_operators  # noqa: F401
from torch import Tensor

import vit_hub
from vit_hub.benching import OURS, PEERS, time_forward
from vit_hub.interop import timm_model, to_transformers
from vit_hub.model.flops import forward_flops

MISSING = "not measured: no GPU"
GRAPH = "CUDA graph"
MODES: dict[str, str | None] = {"eager": None, "max-autotune": "max-autotune"}
LOADS = (("canonical", OURS), ("timm", "timm checkpoint_path"), ("hf", "transformers from_pretrained"))
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "TF32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
}
NAMES = (OURS, *PEERS)
Run = Callable[[Tensor], Tensor]
# The first columns of a line -> the others.
Found = dict[tuple[str, ...], tuple[str, ...]]


class Plan(NamedTuple):
    """Sizes of models, sides of images and of the measured matrices, images per batch."""

    sizes: list[str]
    images: list[int]
    batch_size: int
    side: int
    rounds: int


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_of(runs: dict[str, Callable[[], Any]], device: str, rounds: int, count: int) -> dict[str, float]:
    """Medians of rounds in which all run in turn, each ``count`` times."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(count):
                run()
            synchronize(device)
            if turn:
                times[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(found) for name, found in times.items()}


def matmul_peak(device: str, side: int, rounds: int) -> float:
    """Operations per second of a product of two bfloat16 matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of({"": lambda: a @ b}, device, rounds, 10)[""]


def implementations(model: vit_hub.VisionTransformer, device: str) -> dict[str, Run]:
    """Make vit-hub's model and its peers with the same weights, each returning logits."""
    timms, transformers = (made(model).to(device) for made in (timm_model, to_transformers))
    return {OURS: model, "timm": timms, "transformers": lambda images: transformers(images).logits}


def captured(run: Run, images: Tensor) -> Callable[[], Any]:
    """A CUDA graph of a forward pass over these images."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(images)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def throughput(size: str, image: int, plan: Plan, device: str, peak: float) -> Found:
    """(size, image, mode, implementation) -> the other columns."""
    report.step(f"{size}, {image} pixels")
    model = random_model.model(size, image, dtype=torch.bfloat16, device=device)
    batch, found = plan.batch_size, Found()
    flops = batch * forward_flops(model.config)

    def line(mode: str, name: str, seconds: float, own: float, memory: int | None) -> None:
        shown = (report.in_ms(seconds), f"{batch / seconds:.0f}", f"{seconds / own:.2f}")
        found[size, str(image), mode, name] = (*shown, f"{100 * flops / seconds / peak:.1f} %", report.in_mb(memory))

    for mode, compiled in MODES.items():
        # Compiling for the CPU takes long and says nothing about a GPU.
        chosen = compiled if device != "cpu" else None
        timings = time_forward(model, tasks=["output"], batch_sizes=[batch], rounds=plan.rounds, compile=chosen)
        for timing in timings:
            line(mode, timing.implementation, timing.seconds or nan, timings[0].seconds or nan, timing.peak_memory)
        torch.compiler.reset()
    with torch.inference_mode():
        images = torch.randn(batch, 3, image, image, device=device, dtype=torch.bfloat16)
        plain = implementations(model, device)
        runs = {name: captured(run, images) if device != "cpu" else partial(run, images) for name, run in plain.items()}
        seconds = seconds_of(runs, device, plan.rounds, 3)
    for name in runs:
        line(GRAPH, name, seconds[name], seconds[OURS], None)
    return found


def loading(size: str, plan: Plan, folder: Path | None, device: str) -> Found:
    """(size, file, loader) -> the other columns."""
    report.step(f"{size}: loading")
    measured: dict[tuple[str, str], list[dict[str, float | None]]] = {way: [] for way in LOADS}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        files = load.make_files(Path(name), size)
        for _ in range(plan.rounds):
            for way in LOADS:
                measured[way].append(load.measure(way, size, files, device=device))
    found, own = Found(), nan
    for way, each in measured.items():
        middle = load.medians(each)
        seconds = middle["seconds"] or nan
        own = seconds if way == LOADS[0] else own
        found[(size, way[0], way[1])] = (report.in_ms(seconds), f"{seconds / own:.2f}", report.in_mb(middle["peak"]))
    return found


def parity(size: str, device: str) -> Found:
    """(size, precision) -> the largest relative errors of all three."""
    report.step(f"{size}: numbers")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 224, 224, generator=generator, dtype=torch.float64).to(device)

    def logits(dtype: torch.dtype) -> dict[str, Tensor]:
        made = implementations(random_model.model(size, dtype=dtype, device=device), device)
        with torch.inference_mode():
            return {name: run(images.to(dtype)).double() for name, run in made.items()}

    exact, found = logits(torch.float64)[OURS], Found()
    for title, (dtype, precision) in PRECISIONS.items():
        torch.set_float32_matmul_precision(precision)
        errors = {name: (result - exact).abs().max() / exact.abs().max() for name, result in logits(dtype).items()}
        found[size, title] = tuple(f"{float(errors[name]):.1e}" for name in NAMES)
    torch.set_float32_matmul_precision("highest")
    return found


def measure(plan: Plan, folder: Path | None, device: str) -> Found:
    peak = matmul_peak(device, plan.side, plan.rounds)
    found: Found = {("product",): (f"{peak / 1e12:.0f} TFLOP/s",)}
    for size in plan.sizes:
        for image in plan.images:
            found |= throughput(size, image, plan, device, peak)
        found |= loading(size, plan, folder, device)
        found |= parity(size, device)
    return found


def filled(
    names: tuple[str, ...], figures: tuple[str, ...], keys: Iterable[tuple[str, ...]], found: Found
) -> list[str]:
    """Make a table with a row for every key, measured or not."""
    rows = [(*key, *found.get(key, (MISSING, *["-"] * (len(figures) - 1)))) for key in keys]
    return report.table((*names, *figures), rows, left=len(names))


def shown(plan: Plan, found: Found) -> list[str]:
    (rate,) = found.get(("product",), (MISSING,))
    passes = product(plan.sizes, map(str, plan.images), [*MODES, GRAPH], NAMES)
    loads = ((size, *way) for size, way in product(plan.sizes, LOADS))
    figures = ("time", "images/s", "/ vit-hub", "of the peak", "memory")
    return [
        f"Batches of {plan.batch_size} images, bfloat16; medians of {plan.rounds} rounds.",
        f"Product of two bfloat16 matrices of {plan.side} x {plan.side}: {rate}.",
        "Goals: 1.1 times timm's throughput at equal settings, and 60 % of the peak for L/16.",
        "",
        *filled(("model", "image", "mode", "implementation"), figures, passes, found),
        "",
        "Loading to the GPU:",
        "",
        *filled(("model", "file", "loader"), ("time", "/ vit-hub", "host memory"), loads, found),
        "",
        "Largest error of the logits against float64:",
        "",
        *filled(("model", "precision"), NAMES, product(plan.sizes, PRECISIONS), found),
    ]


def main() -> None:
    options = report.parser(__doc__, rounds=7)
    options.add_argument("--sizes", type=report.names, default=["B", "L"], help="separated by commas (default: B,L)")
    options.add_argument("--batch-size", type=int, default=128, help="images per pass (default: 128)")
    options.add_argument("--tiny", action="store_true", help="a tiny model and one round; always so without a GPU")
    given: argparse.Namespace = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = Plan(given.sizes, [224, 384], given.batch_size, 8192, given.rounds)
    done = Plan(["tiny"], [224], 2, 256, 1) if given.tiny or device == "cpu" else plan
    with report.report("GPU", __doc__, given, device) as lines:
        found = measure(done, given.folder, device)
        lines += shown(plan, {}) if device == "cpu" else shown(done, found)


if __name__ == "__main__":
    main()
