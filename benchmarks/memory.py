"""Measure the memory that a forward pass takes, against timm and transformers with the same weights. Linux only.

    python benchmarks/memory.py --markdown benchmarks/memory.md

The rise of resident memory at its high-water mark (VmHWM) during a pass, after a first one with one image: what is
above the weights and what the first pass left. Each implementation has a process of its own, in which the C library
gives every block of 128 kB or more pages of its own and returns them at once (MALLOC_MMAP_THRESHOLD_); otherwise the
figure depends on what earlier blocks happened to leave. The output are the logits, in inference mode.

The models are ViT-Ti/16, S/16, B/16 and L/16 at 224 x 224 pixels with 1000 classes and random weights.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import make_checkpoint
import measuring
import report

OURS, PEERS = "vit-hub", ("timm", "transformers")
OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}


def measure_once(task: dict[str, Any]) -> int:
    """Bytes that a pass takes at its peak."""
    import random_model
    import torch
    import torchvision_operators  # noqa: F401

    from vit_hub.benching import forward_pass, peer_modules

    dtype = getattr(torch, task["dtype"])
    model = random_model.model(task["size"], dtype=dtype)
    name = task["name"]
    run = forward_pass(model if name == OURS else peer_modules(model, [name])[0][name])
    images = torch.zeros(task["batch_size"], 3, 224, 224, dtype=dtype)
    with torch.inference_mode():
        run(images[:1])
        measuring.reset_peak()
        before = measuring.memory("VmRSS")
        run(images)
    return measuring.memory("VmHWM") - before


def main() -> None:
    options = report.parser(__doc__, rounds=3)
    report.add_sizes(options, make_checkpoint.SIZES, "Ti,S,B,L")
    options.add_argument("--batch-size", type=int, default=8, help="images per pass (default: 8)")
    options.add_argument("--dtypes", type=report.names, default=["float32", "bfloat16"], help="(default: both)")
    given: argparse.Namespace = options.parse_args()
    if given.once:
        print(json.dumps(measure_once(json.loads(given.once))))
        return
    with report.report("Memory of a forward pass", __doc__, given) as lines:
        rows = []
        for size in given.sizes:
            for dtype in given.dtypes:
                report.step(f"{size}, {dtype}")
                task = {"size": size, "dtype": dtype, "batch_size": given.batch_size}
                peaks = [
                    min(measuring.once(__file__, {**task, "name": name}, **OWN_PAGES) for _ in range(given.rounds))
                    for name in (OURS, *PEERS)
                ]
                ratios = [f"{peak / peaks[0]:.2f}" for peak in peaks[1:]]
                rows.append((size, dtype, str(given.batch_size), *map(report.in_mb, peaks), *ratios))
        header = ("size", "dtype", "batch", OURS, *PEERS, *(f"{name} / {OURS}" for name in PEERS))
        lines += [f"The least of {given.rounds} processes.", "", *report.table(header, rows, left=2)]


if __name__ == "__main__":
    main()
