"""Time forward passes on the CPU in all runtimes: PyTorch, ONNX Runtime, OpenVINO, and the peers' own code. Linux only.

    python benchmarks/runtimes.py --markdown benchmarks/runtimes.md

`vit_hub.benching.time_forward`, which `vit-hub bench --against timm,transformers,onnxruntime,openvino` prints too:
vit-hub in PyTorch and the others run in turn in every round after a warm-up, in inference mode, with the same weights
and the same number of threads, in one process for each model and dtype. The table has the medians over the processes.
ONNX Runtime and OpenVINO run programs that vit-hub exports, from a cache of the benchmark's own.

The models are ViT-S/16 and B/16 at 224 x 224 pixels with 1000 classes and random weights; the output are the logits.
Ratios are the other's time divided by vit-hub's in PyTorch: above 1 PyTorch is faster. "of the peak" is the arithmetic
of the model by vit-hub's time and by the rate of a product of two matrices in the same dtype, measured before.
"difference" is the largest absolute difference from vit-hub's logits. "-" did not run; the reasons are listed.
"auto" is what `--runtime auto` chose (most often) by its own short measurement after that, and "auto / best" that
runtime's time in the table divided by the shortest of all: 1 if the choice was right.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

import make_checkpoint
import measuring
import report

OURS = "vit-hub"
OTHERS = ("onnxruntime", "openvino", "timm", "transformers")
Cell = tuple[str, str, int, str]  # size, dtype, batch size, implementation


class Found(NamedTuple):
    """Timings of one implementation, and the reason if there are none."""

    timings: list[dict[str, Any]]
    problem: str


def measure_once(task: dict[str, Any]) -> Any:
    import random_model
    import torch
    import torchvision_operators  # noqa: F401

    from vit_hub.benching import peak_flops, time_forward
    from vit_hub.exporting.automatic import fastest_runtime

    os.environ["VIT_HUB_CACHE"] = task["cache"]
    dtype = getattr(torch, task["dtype"])
    model = random_model.model(task["size"], dtype=dtype)
    timings = time_forward(
        model,
        against=OTHERS,
        tasks=["output"],
        batch_sizes=task["batch_sizes"],
        rounds=task["rounds"],
        peak=peak_flops("cpu", dtype, task["side"]),
    )
    chosen = {size: fastest_runtime(model, batch_size=size) for size in task["batch_sizes"]}
    return [{**asdict(timing), "auto": chosen[timing.batch_size]} for timing in timings]


def measure(given: argparse.Namespace) -> dict[Cell, Found]:
    found: dict[Cell, Found] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as cache:
        for turn, size, dtype in product(range(given.processes), given.sizes, given.dtypes):
            report.step(f"process {turn + 1} of {given.processes}: {size}, {dtype}")
            task = {"size": size, "dtype": dtype, "batch_sizes": given.batch_sizes, "rounds": given.rounds}
            for timing in measuring.once(__file__, {**task, "side": given.side, "cache": cache}):
                cell = size, dtype, timing["batch_size"], timing["implementation"]
                found.setdefault(cell, Found([], timing["problem"])).timings.append(timing)
    return found


def row(found: dict[Cell, Found], size: str, dtype: str, batch: int) -> tuple[str, ...]:
    line = {name: found[size, dtype, batch, name] for name in (OURS, *OTHERS)}
    seconds = {name: middle(each, "seconds") for name, each in line.items()}
    own = seconds[OURS]
    times = [report.in_ms(seconds[name]) if seconds[name] else "-" for name in line]
    ratios = [f"{seconds[name] / own:.2f}" if seconds[name] else "-" for name in OTHERS]
    differences = [
        each["difference"] for name in OTHERS for each in line[name].timings if each["difference"] is not None
    ]
    auto = statistics.mode(timing["auto"] for timing in line[OURS].timings)
    best = min(each for each in seconds.values() if each)
    return (
        *(size, dtype, str(batch), *times, *ratios),
        *(auto, f"{seconds[OURS if auto == 'torch' else auto] / best:.2f}"),
        f"{100 * middle(line[OURS], 'of_peak'):.0f} %",
        f"{max(differences):.0e}" if differences else "-",
    )


def middle(found: Found, key: str) -> float:
    """The median over the processes; 0 where it did not run."""
    return 0.0 if found.problem else statistics.median(timing[key] for timing in found.timings)


def problems(found: dict[Cell, Found]) -> list[str]:
    """A line for every implementation that could not run in a dtype."""
    seen = {(name, dtype): each.problem for (_, dtype, _, name), each in found.items() if each.problem}
    return [f"* {name}, {dtype}: {problem}." for (name, dtype), problem in seen.items()]


def main() -> None:
    options = report.parser(__doc__, rounds=5)
    report.add_sizes(options, make_checkpoint.SIZES, "S,B")
    options.add_argument("--batch-sizes", type=numbers, default=[1, 8], help="separated by commas (default: 1,8)")
    options.add_argument("--dtypes", type=report.names, default=["float32", "bfloat16"], help="(default: both)")
    options.add_argument("--processes", type=int, default=2, help="of each kind (default: 2)")
    options.add_argument("--side", type=int, default=2048, help="of the matrices of the peak (default: 2048)")
    given: argparse.Namespace = options.parse_args()
    if given.once:
        print(json.dumps(measure_once(json.loads(given.once))))
        return
    with report.report("Runtimes", __doc__, given) as lines:
        found = measure(given)
        header = ("size", "dtype", "batch", OURS, *OTHERS, *(f"{name} / {OURS}" for name in OTHERS))
        rows = [row(found, *cell) for cell in product(given.sizes, given.dtypes, given.batch_sizes)]
        lines += [
            f"Medians of {given.processes} processes with {given.rounds} rounds each.",
            "",
            *report.table((*header, "auto", "auto / best", "of the peak", "difference"), rows, left=2),
            "",
            *problems(found),
        ]


def numbers(text: str) -> list[int]:
    return [int(part) for part in report.names(text)]


if __name__ == "__main__":
    main()
