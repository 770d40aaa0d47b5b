"""Measure a CUDA GPU: throughput against timm and transformers, loading, and numbers against float64.

    python benchmarks/gpu.py --markdown benchmarks/gpu.md

Throughput: ViT-S/16, B/16, L/16 and H/14 at 224 and 384 pixels, and DINOv3's ViT-B/16 at 256, in bfloat16 with random
weights, the same for all three; inference mode; medians of rounds in which they run in turn. "eager" and "compiled"
(torch.compile) are measured by `vit_hub.benching.time_forward`, "CUDA graph" is the eager model captured once and
replayed. "of the peak" is the arithmetic of the model (vit_hub.model.flops.forward_flops, which counts the last block
for all tokens, although vit-hub needs fewer of it) by the time and by the measured rate of a product of two bfloat16
matrices of 8192 x 8192. Memory is what passes allocated on the GPU at their peak.

Loading: the shorter of two processes that import what they need and start CUDA first; files are cached, as in load.py.
timm and transformers load to the host, then `.to("cuda")`. "of the bus" is the rate at which the file's bytes arrive by
the measured rate of a copy from pinned memory. Memory is the host's: the rise of the high-water mark.

Numbers: outputs for the same weights and images, relative to the largest, against vit-hub's in float64. TF32 is float32
with `torch.set_float32_matmul_precision("high")`.

The script ends within 8 minutes: steps are taken in the order of their worth, each only if the time that it takes at
most is left. What is left out, or fails, is without figures. Without a GPU all that can be run runs on the CPU with
tiny models, to see that it works, and no figure is kept.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from math import nan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import load
import random_model
import report
import torch
import torchvision_operators  # noqa: F401
from torch import Tensor, nn

import vit_hub
from vit_hub.benching import OURS, PEERS, Timing, forward_pass, peak_flops, peer_modules, time_forward
from vit_hub.model.flops import forward_flops

MISSING, LEFT_OUT = "not measured: no GPU", "left out"
EAGER, GRAPH, COMPILED = "eager", "CUDA graph", "compiled"
MODES = (EAGER, GRAPH, COMPILED)
DINOV3 = "DINOv3-B"
LOADS = (("canonical", OURS), ("timm", "timm checkpoint_path"), ("hf", "transformers from_pretrained"))
PRECISIONS = ("float32", "TF32", "bfloat16")
NAMES = (OURS, *PEERS)
SECONDS = 450.0  # of the 8 minutes; the rest is for a step that takes longer than expected, and for the start
Key = tuple[str, int]  # model, side of its images
Run = Callable[[Tensor], Tensor]
T = TypeVar("T")
# The first columns of a line -> the others.
Found = dict[tuple[str, ...], tuple[str, ...]]


class Plan(NamedTuple):
    """The measurements, each in the order of its worth.

    Attributes:
        models: model and side of images.
        compiled: those of them that are compiled, too.
        loads: sizes whose files are loaded.
        batch_size: images per pass, of the largest half as many.
        side: of the measured matrices.
        rounds: measurements per row.
        compile: the mode of torch.compile; None: not compiled at all.
    """

    models: list[Key]
    compiled: list[Key]
    loads: list[str]
    batch_size: int
    side: int
    rounds: int
    compile: str | None


class Budget:
    """Seconds that are left of those that a run may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def allows(self, step: str, seconds: float) -> bool:
        """Say what comes next, and whether there is time for it."""
        left = self._end - time.monotonic()
        report.step(f"{step} ({left:.0f} s left)" if seconds <= left else f"{step}: {LEFT_OUT}")
        return seconds <= left


class Bound(NamedTuple):
    """Measured rates of a device: operations a second of a product of matrices, bytes a second of a copy to it."""

    flops: float
    copy: float


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


def attempt(what: str, run: Callable[[], T]) -> T | None:
    """Return a result; None if it failed, which is said: the rest of a short time on a GPU is not to be lost."""
    try:
        return run()
    except Exception as problem:
        report.step(f"{what} failed: {type(problem).__name__}: {str(problem)[:300]}")
        return None


def bound(device: str, side: int, rounds: int) -> Bound:
    host = torch.empty(2 * side * side, dtype=torch.uint8, pin_memory=device != "cpu")
    there = torch.empty_like(host, device=device)
    seconds = seconds_of({"": lambda: there.copy_(host, non_blocking=True)}, device, rounds, 3)[""]
    return Bound(peak_flops(device, torch.bfloat16, side), host.numel() / seconds)


def made(key: Key, device: str) -> dict[str, nn.Module]:
    """Make vit-hub's model in float32 and its peers with the same weights."""
    name, image = key
    if name.startswith("DINOv3"):
        config = vit_hub.get_config("facebook/dinov3-vitb16-pretrain-lvd1689m").replace(
            image_size=(image, image), pool="cls"
        )
        if name != DINOV3:
            config = config.replace(embed_dim=32, depth=2, num_heads=2, mlp_dim=64)
    else:
        config = random_model.config(name, image)
    torch.manual_seed(0)
    with torch.device(device):
        model = vit_hub.VisionTransformer(config).eval()
    return {OURS: model, **peer_modules(model)[0]}


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


def images_of(key: Key, count: int, device: str, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, key[1], key[1], generator=generator, dtype=torch.float64).to(device, dtype)


def batch_of(key: Key, plan: Plan) -> int:
    return max(1, plan.batch_size // ((2 if key[1] > 256 else 1) * (2 if key[0] == "H" else 1)))


def throughput(key: Key, modules: dict[str, nn.Module], mode: str, plan: Plan, device: str, rate: float) -> Found:
    """(model, image, mode, implementation) -> the other columns, of modules in bfloat16."""
    batch, model = batch_of(key, plan), modules[OURS]
    assert isinstance(model, vit_hub.VisionTransformer)
    seconds: dict[str, float]
    memory: dict[str, int | None] = {}
    if mode == GRAPH:
        with torch.inference_mode():
            images = images_of(key, batch, device, torch.bfloat16)
            passes = {name: forward_pass(module) for name, module in modules.items()}
            capture = captured if device != "cpu" else partial  # the CPU has no graphs
            graphs = {name: attempt(name, partial(capture, run, images)) for name, run in passes.items()}
            seconds = seconds_of({name: run for name, run in graphs.items() if run}, device, plan.rounds, 3)
    else:
        # Compiling for the CPU takes long and says nothing about a GPU.
        chosen = plan.compile if mode == COMPILED and device != "cpu" else None
        others = {name: module for name, module in modules.items() if name != OURS}

        def timed(peers: dict[str, nn.Module]) -> list[Timing]:
            options: dict[str, Any] = {"rounds": plan.rounds, "compile": chosen, "peers": peers, "against": [*peers]}
            return time_forward(model, tasks=["output"], batch_sizes=[batch], **options)

        timings = attempt("with peers", partial(timed, others)) or timed({})
        seconds = {timing.implementation: timing.seconds or nan for timing in timings}
        memory = {timing.implementation: timing.peak_memory for timing in timings}
        torch.compiler.reset()
    work, found = batch * forward_flops(model.config), Found()
    for name, each in seconds.items():
        share = f"{100 * work / each / rate:.1f} %"
        shown = (report.in_ms(each), f"{batch / each:.0f}", f"{each / seconds[OURS]:.2f}", share)
        found[key[0], str(key[1]), mode, name] = (*shown, report.in_mb(memory.get(name)))
    return found


def error(module: nn.Module, images: Tensor, exact: Tensor) -> float:
    with torch.inference_mode():
        return float((forward_pass(module)(images).double() - exact).abs().max() / exact.abs().max())


def errors(key: Key, modules: dict[str, nn.Module], device: str) -> Found:
    """(model, precision) -> the largest relative errors of all; the modules are in bfloat16 afterwards."""
    images = images_of(key, 4, device, torch.float64)
    with torch.inference_mode():
        exact = copy.deepcopy(modules[OURS]).double()(images)
    found = Found()
    for title in PRECISIONS:
        dtype = torch.bfloat16 if title == "bfloat16" else torch.float32
        torch.set_float32_matmul_precision("high" if title == "TF32" else "highest")
        worst = {
            name: attempt(name, partial(error, module.to(dtype), images.to(dtype), exact))
            for name, module in modules.items()
        }
        found[key[0], title] = tuple("-" if worst.get(name) is None else f"{worst[name]:.1e}" for name in NAMES)
    torch.set_float32_matmul_precision("highest")
    return found


def loading(size: str, plan: Plan, folder: Path | None, device: str, rate: float) -> Found:
    """(size, file, loader) -> the other columns."""
    measured: dict[tuple[str, str], list[dict[str, float | None]]] = {way: [] for way in LOADS}
    found, own = Found(), nan
    with tempfile.TemporaryDirectory(dir=folder) as name:
        files = load.make_files(Path(name), size)
        for _ in range(min(2, plan.rounds)):
            for way in LOADS:
                measured[way].append(load.measure(way, size, files, device=device))
        weight = files["canonical"].stat().st_size
    for way, each in measured.items():
        best = load.shortest(each)
        seconds = best["seconds"] or nan
        own = seconds if way == LOADS[0] else own
        shown = (report.in_ms(seconds), f"{seconds / own:.2f}", f"{100 * weight / seconds / rate:.0f} %")
        found[(size, way[0], way[1])] = (*shown, report.in_mb(best["peak"]))
    return found


# Seconds that a step takes at most, on a GPU of 2022 or later: making models takes longer than measuring them.
AT_MOST = {"S": 20.0, "B": 25.0, DINOV3: 30.0, "L": 35.0, "H": 60.0}
COMPILING, LOADING = 2.5, 2.5  # times that


def steps(
    plan: Plan, folder: Path | None, device: str, rates: Bound
) -> Iterator[tuple[str, float, Callable[[], Found]]]:
    """Return the steps in the order of their worth: the name, the seconds that it takes at most, and the function."""
    kept: dict[Key, dict[str, nn.Module]] = {}

    def eagerly(key: Key) -> Found:
        modules = made(key, device)
        found = errors(key, modules, device) if key[1] <= 256 else Found()
        for module in modules.values():
            module.to(torch.bfloat16)
        for mode in (EAGER, GRAPH):
            found |= throughput(key, modules, mode, plan, device, rates.flops)
        if key in plan.compiled:
            kept[key] = modules
        return found

    def compiled(key: Key) -> Found:
        modules = kept.pop(key, None)
        return throughput(key, modules, COMPILED, plan, device, rates.flops) if modules else Found()

    first, rest = plan.models[:3], plan.models[3:]
    for key in first:
        yield f"{key[0]}, {key[1]} pixels", AT_MOST.get(key[0], 0), partial(eagerly, key)
    for key in plan.compiled[:2]:
        yield f"{key[0]}, {key[1]} pixels, compiled", COMPILING * AT_MOST.get(key[0], 0), partial(compiled, key)
    for size in plan.loads[:1]:
        yield (
            f"{size}: loading",
            LOADING * AT_MOST.get(size, 0),
            partial(loading, size, plan, folder, device, rates.copy),
        )
    for key in rest:
        yield f"{key[0]}, {key[1]} pixels", AT_MOST.get(key[0], 0), partial(eagerly, key)
    for key in plan.compiled[2:]:
        yield f"{key[0]}, {key[1]} pixels, compiled", COMPILING * AT_MOST.get(key[0], 0), partial(compiled, key)
    for size in plan.loads[1:]:
        yield (
            f"{size}: loading",
            LOADING * AT_MOST.get(size, 0),
            partial(loading, size, plan, folder, device, rates.copy),
        )


def measure(plan: Plan, folder: Path | None, device: str, seconds: float) -> Found:
    budget = Budget(seconds)
    rates = bound(device, plan.side, plan.rounds)
    found: Found = {("rates",): (f"{rates.flops / 1e12:.0f} TFLOP/s", f"{rates.copy / 1e9:.1f} GB/s")}
    for step, at_most, run in steps(plan, folder, device, rates):
        if budget.allows(step, at_most):
            found |= attempt(step, run) or {}
    return found


def filled(
    names: tuple[str, ...], figures: tuple[str, ...], keys: Iterable[tuple[str, ...]], found: Found
) -> list[str]:
    """Make a table with a row for every key, measured or not."""
    why = LEFT_OUT if found else MISSING
    rows = [(*key, *found.get(key, (why, *["-"] * (len(figures) - 1)))) for key in keys]
    return report.table((*names, *figures), rows, left=len(names))


def shown(plan: Plan, found: Found) -> list[str]:
    flops, copied = found.get(("rates",), (MISSING, MISSING))
    passes = [
        (name, str(image), mode, peer)
        for (name, image), mode, peer in product(plan.models, MODES, NAMES)
        if mode != COMPILED or (name, image) in plan.compiled
    ]
    loads = ((size, *way) for size, way in product(plan.loads, LOADS))
    checked = [name for name, image in plan.models if image <= 256]
    figures = ("time", "images/s", "/ vit-hub", "of the peak", "memory")
    return [
        f"Batches of {plan.batch_size} images in bfloat16, half of that for 384 pixels and for H each; medians of "
        f"{plan.rounds} rounds; compiled in the mode {plan.compile or 'default'}.",
        f"Product of two bfloat16 matrices of {plan.side} x {plan.side}: {flops}. Copy from pinned memory: {copied}.",
        "Goals: 1.1 times timm's throughput at equal settings, and 60 % of the peak for L/16.",
        "",
        *filled(("model", "image", "mode", "implementation"), figures, passes, found),
        "",
        "Loading to the GPU:",
        "",
        *filled(("model", "file", "loader"), ("time", "/ vit-hub", "of the bus", "host memory"), loads, found),
        "",
        "Largest error of the output against float64:",
        "",
        *filled(("model", "precision"), NAMES, product(checked, PRECISIONS), found),
    ]


PLAN = Plan(
    models=[
        ("B", 224),
        ("L", 224),
        (DINOV3, 256),
        ("S", 224),
        ("H", 224),
        ("B", 384),
        ("L", 384),
        ("S", 384),
        ("H", 384),
    ],
    compiled=[("B", 224), ("L", 224), (DINOV3, 256), ("S", 224)],
    loads=["L", "B", "H", "S"],
    batch_size=128,
    side=8192,
    rounds=5,
    compile="default",
)
TINY = Plan([("tiny", 224), ("DINOv3-tiny", 256)], [("tiny", 224)], ["tiny"], 2, 256, 1, None)


def main() -> None:
    options = report.parser(__doc__, rounds=PLAN.rounds)
    options.add_argument("--batch-size", type=int, default=PLAN.batch_size, help="images per pass (default: 128)")
    options.add_argument("--compile", default=PLAN.compile, metavar="MODE", help="of torch.compile (default: default)")
    options.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"after which no step begins (default: {SECONDS:.0f})"
    )
    options.add_argument("--tiny", action="store_true", help="tiny models and one round; always so without a GPU")
    given: argparse.Namespace = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = PLAN._replace(batch_size=given.batch_size, rounds=given.rounds, compile=given.compile)
    done = TINY if given.tiny or device == "cpu" else plan
    with report.report("GPU", __doc__, given, device) as lines:
        found = measure(done, given.folder, device, given.seconds)
        lines += shown(plan, {}) if device == "cpu" else shown(done, found)


if __name__ == "__main__":
    main()
