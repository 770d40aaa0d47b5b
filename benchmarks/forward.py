"""Time forward passes against timm and transformers with the same weights.

    python benchmarks/forward.py --markdown benchmarks/forward.md

`vit_hub.benching.time_forward`, which `vit-hub bench` prints too, in several processes one after the other: in each,
the three run in turn in every round after a warm-up, in inference mode, and give a median; the table has the medians of
these. Ratios are the peer's time divided by vit-hub's: above 1 vit-hub is faster. "output" are the logits, "features"
all tokens before pooling. transformers runs its default attention: PyTorch's fused one, as in timm and vit-hub.

The models are ViT-Ti/16, S/16, B/16 and L/16 at 224 x 224 pixels with 1000 classes and random weights. "difference" is
the largest absolute difference of a peer's result from vit-hub's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import make_checkpoint
import measuring
import report

OURS, PEERS = "vit-hub", ("timm", "transformers")
SMALLER_BATCHES = {"L": [1, 8], "H": [1, 8]}


class Case(NamedTuple):
    """The measurements of one process."""

    size: str
    dtype: str
    compile: str | None
    batch_sizes: list[int]


def measure_once(task: dict[str, Any]) -> Any:
    import random_model
    import torch
    import torchvision_operators  # noqa: F401

    from vit_hub.benching import time_forward

    model = random_model.model(task["size"], dtype=getattr(torch, task["dtype"]))
    timings = time_forward(
        model, batch_sizes=task["batch_sizes"], rounds=task["rounds"], compile=task["compile"], tasks=task["tasks"]
    )
    return [asdict(timing) for timing in timings]


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for size in given.sizes:
        sizes = given.batch_sizes or SMALLER_BATCHES.get(size, [1, 8, 32])
        for dtype in given.dtypes:
            yield Case(size, dtype, None, sizes)
    for size in given.compile:
        for dtype in given.dtypes:
            yield Case(size, dtype, "default", [8])


def rows_of(case: Case, processes: list[list[dict[str, Any]]]) -> list[tuple[str, ...]]:
    """Make a row for every task and batch size, with medians over the processes."""
    found: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for timing in (timing for timings in processes for timing in timings):
        line = found.setdefault((timing["task"], timing["batch_size"]), {})
        line.setdefault(timing["implementation"], []).append(timing)
    rows = []
    for (task, batch_size), line in found.items():
        seconds = {
            name: statistics.median(each["seconds"] for each in timings)
            for name, timings in line.items()
            if not timings[0]["problem"]
        }
        peers = [name for name in PEERS if name in seconds]
        differences = [each["difference"] for name in peers for each in line[name] if each["difference"] is not None]
        mode = "eager" if case.compile is None else "compiled"
        times = [report.in_ms(seconds[name]) if name in seconds else "-" for name in (OURS, *PEERS)]
        ratios = [f"{seconds[name] / seconds[OURS]:.2f}" if name in seconds else "-" for name in PEERS]
        difference = f"{max(differences):.0e}" if differences else "-"
        rows.append((case.size, case.dtype, mode, task, str(batch_size), *times, *ratios, difference))
    return rows


def least(rows: list[tuple[str, ...]], task: str, shallow: bool) -> str:
    """The smallest ratio of the eager lines of a task, 12-layer models alone or all."""
    ratios = [
        (float(ratio), f"{row[0]}, {row[1]}, batch {row[4]}, {peer}")
        for row in rows
        if row[2] == "eager" and row[3] == task and (not shallow or make_checkpoint.SIZES[row[0]][1] == 12)
        for peer, ratio in zip(PEERS, row[8:10], strict=True)
        if ratio != "-"
    ]
    return "not measured" if not ratios else "{:.2f} ({})".format(*min(ratios))


def main() -> None:
    options = report.parser(__doc__, rounds=3)
    report.add_sizes(options, make_checkpoint.SIZES, "Ti,S,B,L")
    options.add_argument(
        "--batch-sizes",
        type=lambda text: [int(part) for part in text.split(",")],
        help="separated by commas (default: 1,8,32; L and H without 32)",
    )
    options.add_argument("--dtypes", type=report.names, default=["float32", "bfloat16"], help="(default: both)")
    options.add_argument("--tasks", type=report.names, default=["output", "features"], help="(default: both)")
    options.add_argument("--processes", type=int, default=2, help="of each kind (default: 2)")
    options.add_argument(
        "--compile",
        type=report.names,
        default=["S"],
        metavar="SIZES",
        help='sizes that are measured compiled as well, at batch size 8; "": none (default: S; it takes minutes)',
    )
    given: argparse.Namespace = options.parse_args()
    if given.once:
        print(json.dumps(measure_once(json.loads(given.once))))
        return
    with report.report("Forward passes", __doc__, given) as lines:
        every = list(cases(given))
        timings: dict[int, list[list[dict[str, Any]]]] = {index: [] for index in range(len(every))}
        for turn in range(given.processes):
            for index, case in enumerate(every):
                report.step(f"process {turn + 1} of {given.processes}: {case}")
                task = {**case._asdict(), "rounds": given.rounds, "tasks": given.tasks}
                timings[index].append(measuring.once(__file__, task))
        rows = [row for index, case in enumerate(every) for row in rows_of(case, timings[index])]
        header = ("size", "dtype", "mode", "task", "batch", OURS, *PEERS)
        ratios = (*(f"{name} / {OURS}" for name in PEERS), "difference")
        lines += [
            f"Medians of {given.processes} processes with {given.rounds} rounds each.",
            "",
            *report.table((*header, *ratios), rows, left=4),
            "",
            f"* Smallest ratio for logits of 12-layer models, eager: {least(rows, 'output', True)} "
            "(goal: at least 1.05).",
            f"* Smallest ratio for features, eager: {least(rows, 'features', False)} (goal: at least 0.98).",
        ]


if __name__ == "__main__":
    main()
