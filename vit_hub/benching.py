"""Timing of a model on this machine against timm and transformers with the same weights."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_hub.errors import ConfigError, UnsupportedByFormatError, first_line
from vit_hub.interop import timm_model, to_transformers
from vit_hub.model.vit import VisionTransformer

__all__ = ["OURS", "PEERS", "TASKS", "Timing", "forward_pass", "machine", "peer_modules", "time_forward"]

OURS = "vit-hub"
PEERS = ("timm", "transformers")
TASKS = ("output", "features")

# Shorter runs are repeated within one measurement, to keep clock resolution and kernel launches out of the result.
_SHORTEST = 0.02
_WARM_UP = 2

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One row of the table.

    Attributes:
        implementation: ``vit-hub`` or the peer's name.
        task: ``output`` (logits or an embedding) or ``features`` (all tokens before pooling).
        batch_size: images.
        seconds: median over the rounds of one forward pass; None if it could not run.
        images_per_second: throughput at that median.
        speedup: the seconds divided by vit-hub's: more than 1 if vit-hub is faster; 1 for vit-hub.
        difference: largest absolute difference of the result from vit-hub's.
        peak_memory: bytes that the pass took on a CUDA device at its peak; None on other devices.
        problem: reason why it could not run.
    """

    implementation: str
    task: str
    batch_size: int
    seconds: float | None = None
    images_per_second: float | None = None
    speedup: float | None = None
    difference: float | None = None
    peak_memory: int | None = None
    problem: str = ""


def time_forward(
    model: VisionTransformer,
    *,
    against: Sequence[str] = PEERS,
    tasks: Sequence[str] = TASKS,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 7,
    compile: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Timing]:
    """Time forward passes in inference mode, one implementation after the other in every round.

    Args:
        model: on the device and in the dtype to be measured.
        against: names of :data:`PEERS`; a peer that cannot run gets a row with the reason.
        tasks: names of :data:`TASKS`.
        batch_sizes: images per pass.
        rounds: measurements per row; their median is reported.
        compile: a mode of ``torch.compile`` for all of them; None: eager.
        progress: called with 1 after every task and batch size.

    Raises:
        ConfigError: no such peer or task, or a count below 1.
    """
    for kind, names, known in (("against", against, PEERS), ("tasks", tasks, TASKS)):
        wrong = [name for name in names if name not in known]
        if wrong:
            raise ConfigError(f"{kind}={wrong[0]!r} is not known", hint=f"known: {', '.join(known)}")
    if rounds < 1 or any(size < 1 for size in batch_sizes):
        raise ConfigError("rounds and batch sizes must be at least 1")
    peers, problems = peer_modules(model, against)
    modules: dict[str, nn.Module] = {OURS: model, **peers}
    table = []
    for task in tasks:
        runs = {name: forward_pass(module, task) for name, module in modules.items()}
        if compile is not None:
            runs = {name: torch.compile(run, mode=compile, dynamic=False) for name, run in runs.items()}
        for batch_size in batch_sizes:
            table += _measured(runs, _images(model, batch_size), task, rounds)
            table += [
                Timing(implementation=name, task=task, batch_size=batch_size, problem=problem)
                for name, problem in problems.items()
            ]
            if progress:
                progress(1)
    return table


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Describe what the figures depend on besides the model: processor, threads, GPU, versions."""
    place = torch.device(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = {
        "processor": next(named, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(place) if place.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in ("vit-hub", "torch", *PEERS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def peer_modules(
    model: VisionTransformer, against: Sequence[str] = PEERS
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return peers' own modules with a model's weights, on its device, and for each missing peer the reason."""
    weight = model.patch_embed.proj.weight
    modules: dict[str, nn.Module] = {}
    problems: dict[str, str] = {}
    for name in against:
        make = timm_model if name == "timm" else to_transformers
        try:
            with warnings.catch_warnings():
                # Warnings about folding matter only if the result is kept.
                warnings.simplefilter("ignore")
                modules[name] = make(model).to(weight.device)
        except UnsupportedByFormatError as error:
            problems[name] = error.message
        # A broken installation of a peer fails with anything at all.
        except Exception as error:
            problems[name] = f"{type(error).__name__}: {first_line(error)}"
    return modules, problems


def forward_pass(module: nn.Module, task: str = "output") -> Run:
    """Return a pass of vit-hub's module or of a peer's that gives one tensor, for one of :data:`TASKS`."""
    if not type(module).__module__.startswith("transformers."):
        return module if task == "output" else module.forward_features  # type: ignore[return-value]
    inner = getattr(module, getattr(module, "base_model_prefix", ""), module)
    return (lambda images: inner(images).last_hidden_state) if task == "features" else (lambda x: _output(module(x)))


def _output(result: Any) -> Tensor:
    """Return the main tensor of a transformers model's result."""
    for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state"):
        found = getattr(result, name, None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise UnsupportedByFormatError(f"transformers' {type(result).__name__} holds nothing to compare")


def _images(model: VisionTransformer, batch_size: int) -> Tensor:
    weight = model.patch_embed.proj.weight
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, model.config.in_chans, *model.input_size, generator=generator)
    return images.to(weight.device, weight.dtype)


def _measured(runs: dict[str, Run], images: Tensor, task: str, rounds: int) -> list[Timing]:
    results: dict[str, Tensor] = {}
    repeats: dict[str, int] = {}
    peaks: dict[str, int | None] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def wait() -> None:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    def once(name: str, count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            runs[name](images)
        wait()
        return (time.perf_counter() - start) / count

    with torch.inference_mode():
        for name, run in runs.items():
            if images.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            for _ in range(_WARM_UP):
                results[name] = run(images).clone()
            peaks[name] = torch.cuda.max_memory_allocated() - before if images.is_cuda else None
            repeats[name] = max(1, round(_SHORTEST / once(name, 1)))
        order = list(runs)
        for turn in range(rounds):
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                seconds[name].append(once(name, repeats[name]))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return [
        Timing(
            implementation=name,
            task=task,
            batch_size=len(images),
            seconds=median,
            images_per_second=len(images) / median,
            speedup=median / medians[OURS],
            difference=_difference(results[name], results[OURS]),
            peak_memory=peaks[name],
        )
        for name, median in medians.items()
    ]


def _difference(found: Tensor, ours: Tensor) -> float | None:
    return float((found.double() - ours.double()).abs().max()) if found.shape == ours.shape else None
