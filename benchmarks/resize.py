"""Time another image size: building a position table, and every batch with ``dynamic=True``. Linux only.

    python benchmarks/resize.py --markdown benchmarks/resize.md

Tables: ViT-B's, 1 + 14 x 14 rows of 768 values to 1 + 24 x 24 (224 to 384 pixels, patches of 16), by the methods of
four projects. "first" computes the weights of each axis, too; they are kept. `interpolate` is
`torch.nn.functional.interpolate` with the arguments of the project that the method comes from and the permutations and
copies that it needs, in float32; vit-hub computes in float64. timm's `resample_abs_pos_embed` is timm's own method.
"difference" is the largest absolute difference between `interpolate` and vit-hub for values of order 1.

Batches: a model so small that the overhead shows (2 blocks of width 32, patches of 16 pixels), loaded from a file; one
image per batch, one thread, microseconds per batch. "fixed" is the model loaded at that size, "dynamic" that loaded at
32 x 32 pixels with `dynamic=True`; its tables for another size are kept after the first batch of that size, which
"first" shows. Every round measures all in turn; the tables have the medians.

Memory: the rise of resident memory at its high-water mark (VmHWM) while one table is built, in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import make_checkpoint
import measuring
import random_model
import report
import torch
import torchvision_operators  # noqa: F401
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional

import vit_hub
from vit_hub.model.resample import axis_matrix
from vit_hub.model.resize import resize_tensor, resized_config

# Method -> its project, and the arguments with which that project calls interpolate.
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "bilinear-align-corners": ("vit_jax", {"size": (24, 24), "mode": "bilinear", "align_corners": True}),
    "bicubic-antialias": ("timm", {"size": (24, 24), "mode": "bicubic", "antialias": True}),
    "bicubic": ("transformers", {"size": (24, 24), "mode": "bicubic"}),
    "bicubic-offset": ("DINOv2", {"scale_factor": (24.1 / 14, 24.1 / 14), "mode": "bicubic"}),
}
NATIVE, OTHER = 32, 48


def interpolate(table: Tensor, options: dict[str, object]) -> Tensor:
    grid = table[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, **options)  # type: ignore[arg-type]
    return torch.cat((table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def per_call(action: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - start) / count


def medians(actions: dict[str, Callable[[], object]], rounds: int, count: int) -> dict[str, float]:
    """Median seconds per call, each in turn in every round."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(per_call(action, count))
    return {name: statistics.median(found) for name, found in times.items()}


def setting() -> tuple[vit_hub.ViTConfig, vit_hub.ViTConfig, Tensor]:
    """Configs before and after, and the table before."""
    old = random_model.config("B")
    return old, resized_config(old, 384), torch.randn(1, 197, 768, generator=torch.Generator().manual_seed(0))


def memory_once() -> int:
    old, new, table = setting()
    measuring.reset_peak()
    before = measuring.memory("VmRSS")
    resize_tensor("pos_embed", table, old, new, "bicubic-antialias")
    return measuring.memory("VmHWM") - before


def tables(rounds: int, count: int) -> list[tuple[str, ...]]:
    old, new, table = setting()
    rows = []
    for method, (project, options) in METHODS.items():

        def again(method: str = method) -> Any:
            return resize_tensor("pos_embed", table, old, new, method)

        def first(method: str = method) -> Any:
            axis_matrix.cache_clear()
            return resize_tensor("pos_embed", table, old, new, method)

        def torchs(options: dict[str, object] = options) -> Tensor:
            return interpolate(table, options)

        actions: dict[str, Callable[[], object]] = {"first": first, "again": again, "interpolate": torchs}
        if project == "timm":
            actions["timm"] = lambda: resample_abs_pos_embed(table, [24, 24])
        found = medians(actions, rounds, count)
        difference = float((again() - torchs()).abs().max())
        times = [report.in_ms(found[name]) if name in found else "-" for name in ("first", "again", "interpolate")]
        timms = report.in_ms(found["timm"]) if "timm" in found else "-"
        ratio = f"{found['interpolate'] / found['again']:.2f}"
        rows.append((method, project, *times, timms, ratio, f"{difference:.0e}"))
    return rows


def batches(folder: Path, rounds: int, count: int) -> list[tuple[str, ...]]:
    make_checkpoint.write(folder / "a.npz", "tiny", 16, NATIVE, 10)
    file = folder / "b.safetensors"
    vit_hub.convert(folder / "a.npz", file)
    dynamic = vit_hub.load(file, dynamic=True)
    rows = []
    for size in (NATIVE, OTHER):
        images, fixed = torch.zeros(1, 3, size, size), vit_hub.load(file, image_size=size)
        actions: dict[str, Callable[[], object]] = {
            "fixed": partial(fixed, images),
            "dynamic": partial(dynamic, images),
        }
        firsts = []
        with torch.inference_mode():
            for _ in range(rounds):
                fresh = vit_hub.load(file, dynamic=True)
                fresh(torch.zeros(1, 3, NATIVE, NATIVE))
                firsts.append(per_call(partial(fresh, images), 1))
            found = medians(actions, rounds, count)
        times = (found["fixed"], found["dynamic"], found["dynamic"] - found["fixed"], statistics.median(firsts))
        rows.append((f"{size} x {size}", *(f"{1e6 * seconds:.1f}" for seconds in times)))
    return rows


def main() -> None:
    options = report.parser(__doc__, rounds=21)
    options.add_argument("--count", type=int, default=100, help="calls a measurement (default: 100)")
    given: argparse.Namespace = options.parse_args()
    if given.once:
        print(memory_once())
        return
    with report.report("Other image sizes", __doc__, given) as lines:
        header = ("method", "project", "first", "again", "interpolate", "timm", "interpolate / again")
        with torch.inference_mode():
            rows = tables(given.rounds, max(given.count // 10, 1))
        # Between tensors this small, threads spend their time waiting for one another.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            passes = batches(Path(name), given.rounds, given.count)
        torch.set_num_threads(threads)
        lines += [
            f"Medians of {given.rounds} rounds.",
            "",
            *report.table((*header, "difference"), rows, left=2),
            "",
            f"Peak memory while vit-hub builds its first table: {report.in_mb(measuring.once(__file__, {}))}.",
            "",
            "Microseconds per batch:",
            "",
            *report.table(("image", "fixed", "dynamic", "overhead", "first"), passes),
        ]


if __name__ == "__main__":
    main()
