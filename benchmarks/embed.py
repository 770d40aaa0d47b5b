"""Measure embedding many images against transformers' pipeline, timm's data loader, and what bounds them. Linux only.

    python benchmarks/embed.py --markdown benchmarks/embed.md

The same generated JPEG files (500x375 pixels, smooth noise) and the same random weights for all, in one run. Each
measurement is a process of its own that loads the model and then times all images; the contestants take turns in every
round, and the table has the medians. The peers read and preprocess in as many worker processes as there are cores, and
all compute with as many threads.

* "vit-hub embed" reads, computes and writes parquet shards: all that the command does after the model is loaded, with
  its default of workers, in PyTorch and with `--runtime auto`, whose program is in the cache already.
* "timm" is its own recipe: `create_loader` with its evaluation transform, then the model; nothing is written.
* "transformers" is `pipeline("image-feature-extraction")`, at the best of its batch sizes; nothing is written.
* "decoding alone" is vit-hub's reading and preprocessing without a model; "forward alone" is the model on one batch
  again and again, without images. Where a GPU computes, the lower of both is the bound. Where both share the cores it
  is 1 / (1 / decoding + 1 / forward), "both in turn".

The preprocessing is that of timm's models: the shorter side to 248 pixels, bicubic, a crop of 224. transformers' cannot
do the same and resizes to 224, which is less work. Memory is the largest sum of the resident memory of all processes,
shared pages counted in each; the last lines compare a run over ten times as many images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import make_checkpoint
import measuring
import numpy as np
import report

OURS, AUTO = "vit-hub embed", "vit-hub embed, --runtime auto"
TIMM, TRANSFORMERS = "timm, its data loader", "transformers, its pipeline"
DECODING, FORWARD, FORWARD_AUTO = "decoding alone", "forward alone", "forward alone, --runtime auto"
BOTH, BOTH_AUTO = "both in turn", "both in turn, --runtime auto"
PREPROCESSING = {"interpolation": "bicubic", "crop_pct": 0.9, "mean": (0.5,) * 3, "std": (0.5,) * 3}
AS_TIMM = {**PREPROCESSING, "crop_mode": "center", "antialias": True, "quantize": "round"}
SIZE = (500, 375)


def make_images(folder: Path, count: int) -> None:
    """Write photos of smooth noise, each another."""
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
        grain = np.random.default_rng(number).normal(0, 8, (SIZE[1], SIZE[0], 1))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=90)


def make_models(folder: Path, size: str) -> None:
    """The same weights as a canonical file and as a folder of transformers."""
    import vit_hub

    make_checkpoint.write(folder / "a.npz", size, make_checkpoint.usual_patch(size))
    options: dict[str, Any] = {"overrides": {"act": "gelu"}}
    vit_hub.convert(folder / "a.npz", folder / "model.safetensors", **options)
    vit_hub.convert(folder / "model.safetensors", folder / "timm", to="timm")
    vit_hub.convert(folder / "model.safetensors", folder / "hf", to="hf")


def ours(task: dict[str, Any]) -> Callable[[], int]:
    import pyarrow.parquet  # noqa: F401

    import vit_hub

    folder = Path(task["folder"])
    model = vit_hub.load(folder / "model.safetensors", device=task["device"], dtype=task["dtype"])
    images = folder / "images"
    source: Path = images
    if task["copies"] > 1:
        source = folder / "list.txt"
        source.write_text("".join(f"{image}\n" for image in sorted(images.iterdir())) * task["copies"])
    runtime = "auto" if task["name"] == AUTO else "torch"
    options: dict[str, Any] = {"batch_size": task["batch"], "runtime": runtime, "preprocessing": AS_TIMM}
    out = Path(tempfile.mkdtemp(dir=folder))
    embed = vit_hub.embed  # imported here, on first use
    if runtime == "auto":
        embed(model, sorted(images.iterdir())[:1], out / "once", **options)

    def run() -> int:
        try:
            return embed(model, source, out / "all", **options).rows
        finally:
            shutil.rmtree(out)

    return run


def timms(task: dict[str, Any]) -> Callable[[], int]:
    import torch
    import torchvision_operators  # noqa: F401
    from peers import timm_model
    from timm.data import ImageDataset, create_loader

    folder, on_gpu = Path(task["folder"]), task["device"] != "cpu"
    path = str(next((folder / "timm").glob("*.safetensors")))
    model = timm_model(task["size"], checkpoint_path=path).eval().to(task["device"], getattr(torch, task["dtype"]))
    loader = create_loader(
        ImageDataset(str(folder / "images")),
        input_size=(3, 224, 224),
        batch_size=task["batch"],
        is_training=False,
        use_prefetcher=on_gpu,
        num_workers=task["workers"],
        device=torch.device(task["device"]),
        **PREPROCESSING,
    )

    def run() -> int:
        found = []
        with torch.inference_mode():
            for images, _ in loader:
                moved = images.to(task["device"], getattr(torch, task["dtype"]))
                found.append(model.forward_head(model.forward_features(moved), pre_logits=True).float().cpu())
        return len(torch.cat(found))

    return run


def pipelines(task: dict[str, Any]) -> Callable[[], int]:
    import torch
    import torchvision_operators  # noqa: F401
    from transformers import ViTImageProcessor, ViTModel, pipeline

    folder = Path(task["folder"])
    model = ViTModel.from_pretrained(folder / "hf", add_pooling_layer=False, dtype=getattr(torch, task["dtype"])).eval()
    processor = ViTImageProcessor(size={"height": 224, "width": 224}, resample=3)
    extract = pipeline(
        "image-feature-extraction", model=model, image_processor=processor, framework="pt", device=task["device"]
    )
    files = [str(path) for path in sorted((folder / "images").iterdir())]

    def run() -> int:
        options: dict[str, Any] = {"batch_size": task["batch"], "num_workers": task["workers"], "return_tensors": True}
        return sum(len(tokens[:, 0]) for tokens in extract(files, **options))

    return run


def decoding(task: dict[str, Any]) -> Callable[[], int]:
    import vit_hub
    from vit_hub.running.computing import Computation
    from vit_hub.running.engine import automatic_workers, batches_read
    from vit_hub.running.reading import Reader
    from vit_hub.running.sources import Sources, batches_of

    model = vit_hub.load(Path(task["folder"]) / "model.safetensors")
    spec = vit_hub.Preprocessing(image_size=224, **AS_TIMM)  # type: ignore[arg-type]
    items = list(Sources.of(Path(task["folder"]) / "images").items())
    computation = Computation(model, batch_size=task["batch"])

    def run() -> int:
        stream, workers = batches_of(items, task["batch"]), automatic_workers(computation.device, items)
        return sum(len(batch.images) for batch in batches_read(stream, Reader(spec), computation, workers))

    return run


def forward(task: dict[str, Any]) -> Callable[[], int]:
    import torch

    import vit_hub
    from vit_hub.exporting.automatic import fastest_runtime
    from vit_hub.exporting.runtimes import TORCH, in_runtime

    model = vit_hub.load(Path(task["folder"]) / "model.safetensors", device=task["device"], dtype=task["dtype"])
    images = torch.randn(task["batch"], 3, 224, 224)
    runtime = (
        fastest_runtime(model, what="embedding", batch_size=task["batch"]) if task["name"] == FORWARD_AUTO else TORCH
    )
    function = in_runtime(model, runtime, what="embedding")

    def run() -> int:
        count = 0
        while count < task["count"]:
            function(images.to(task["device"])).cpu()
            count += len(images)
        return count

    return run


CONTESTANTS = {
    OURS: ours,
    AUTO: ours,
    TIMM: timms,
    TRANSFORMERS: pipelines,
    DECODING: decoding,
    FORWARD: forward,
    FORWARD_AUTO: forward,
}


@contextmanager
def memory_of_all() -> Iterator[list[int]]:
    """Look at the resident memory of this process and its children; afterwards the list holds the largest sum."""
    import psutil

    found, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has ended
                    continue
            found[0] = max(found[0], total)

    me = psutil.Process()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def run_once(task: dict[str, Any]) -> dict[str, float]:
    """Images a second, and bytes, of one contestant in a process of its own."""
    import torch

    torch.set_num_threads(task["threads"])
    run = CONTESTANTS[task["name"]](task)
    with memory_of_all() as found:
        begun = time.perf_counter()
        count = run()
        seconds = time.perf_counter() - begun
    assert count >= task["count"] * task["copies"], count
    return {"rate": count / seconds, "memory": found[0]}


def measured(base: dict[str, Any], name: str, batch: int, copies: int = 1) -> dict[str, float]:
    found: dict[str, float] = measuring.once(__file__, {**base, "name": name, "batch": batch, "copies": copies})
    return found


def rates(base: dict[str, Any], batches: list[int], rounds: int) -> dict[str, tuple[float, float, int]]:
    """Medians of images a second and of bytes for each contestant at its best batch size, and that size."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in range(rounds):
        report.step(f"round {turn + 1} of {rounds}")
        for name in CONTESTANTS:
            for batch in batches if name != DECODING else batches[-1:]:
                report.step(f"  {name}, batches of {batch}")
                found.setdefault((name, batch), []).append(measured(base, name, batch))
    best: dict[str, tuple[float, float, int]] = {}
    for (name, batch), each in found.items():
        rate, memory = (statistics.median(one[key] for one in each) for key in ("rate", "memory"))
        if name not in best or rate > best[name][0]:
            best[name] = (rate, memory, batch)
    return best


def main() -> None:
    options = report.parser(__doc__, rounds=1)
    options.add_argument("--size", choices=make_checkpoint.SIZES, default="Ti", help="model (default: Ti)")
    options.add_argument("--count", type=int, default=2000, help="images (default: 2000)")
    options.add_argument("--batch-sizes", type=report.names, default=["8", "32"], help="default: 8,32")
    options.add_argument("--device", default="cpu", help="default: cpu")
    options.add_argument("--dtype", default="float32", help="default: float32")
    options.add_argument("--copies", type=int, default=10, help="how many times the images for memory (default: 10)")
    given: argparse.Namespace = options.parse_args()
    if given.once:
        print(json.dumps(run_once(json.loads(given.once))))
        return
    cores = len(os.sched_getaffinity(0))
    with (
        report.report("Embedding", __doc__, given, given.device) as lines,
        tempfile.TemporaryDirectory(dir=given.folder) as name,
    ):
        report.step("writing images and models")
        make_images(Path(name) / "images", given.count)
        make_models(Path(name), given.size)
        base = {
            "folder": name,
            "size": given.size,
            "count": given.count,
            "device": given.device,
            "dtype": given.dtype,
            "workers": cores,
            "threads": cores,
        }
        batches = [int(text) for text in given.batch_sizes]
        found = rates(base, batches, given.rounds)
        bounds = {}
        for title, own, computing in ((BOTH, OURS, FORWARD), (BOTH_AUTO, AUTO, FORWARD_AUTO)):
            decoded, computed = found[DECODING][0], found[computing][0]
            turns = 1 / (1 / decoded + 1 / computed)
            found[title] = (turns, 0.0, 0)
            bounds[own] = min(decoded, computed) if given.device != "cpu" else turns
        ours_rate = found[OURS][0]
        rows = [
            (title, str(batch or "-"), f"{rate:.1f}", f"{ours_rate / rate:.2f}", report.in_mb(memory or None))
            for title, (rate, memory, batch) in found.items()
        ]
        lines += [f"{given.count:,} images, ViT-{given.size}, {cores} cores.", ""]
        lines += report.table(("", "batch", "images/s", "vit-hub / this", "memory"), rows)
        lines.append("")
        for own, bound in bounds.items():
            of_bound, of_timm, of_pipeline = (
                found[own][0] / other for other in (bound, found[TIMM][0], found[TRANSFORMERS][0])
            )
            lines.append(
                f"* {own}: of the bound {of_bound:.2f} (goal: at least 0.95), of timm's recipe {of_timm:.2f} "
                f"(goal: 1.0), of transformers' pipeline {of_pipeline:.2f} (goal: 1.5)."
            )
        many = measured({**base, "name": OURS}, OURS, found[OURS][2], given.copies)["memory"]
        more = (many - found[OURS][1]) / report.MB
        lines += [
            f"* {given.copies * given.count:,} images take {more:+.0f} MB of memory beside {given.count:,} "
            "(goal: within 50 MB)."
        ]


if __name__ == "__main__":
    main()
