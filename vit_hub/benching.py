"""Timing of a model against peers and runtimes with the same weights, beside the bound of the device."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_hub.errors import ConfigError, UnsupportedByFormatError, VitHubError, first_line
from vit_hub.exporting.automatic import AUTO, fastest_runtime
from vit_hub.exporting.files import ExportedFile
from vit_hub.exporting.runtimes import RUNTIMES, TORCH, in_runtime
from vit_hub.interop import timm_model, to_transformers
from vit_hub.model.config import ViTConfig
from vit_hub.model.device import processor_name
from vit_hub.model.flops import forward_flops
from vit_hub.model.resize import resized_config
from vit_hub.model.vit import VisionTransformer
from vit_hub.untrusted import quoted
from vit_hub.version import installed_version

__all__ = [
    "AGAINST",
    "OURS",
    "PEERS",
    "TASKS",
    "Timing",
    "forward_pass",
    "machine",
    "peak_flops",
    "peer_modules",
    "time_forward",
    "time_program",
]

OURS = "vit-hub"
PEERS = ("timm", "transformers")
AGAINST = (*PEERS, *(name for name in RUNTIMES if name != TORCH))
TASKS = ("output", "features")

# Shorter runs are repeated within one measurement, to keep clock resolution and kernel launches out of the result.
_SHORTEST = 0.02
_WARM_UP = 2
# Threads of the implementation before wait for work in a loop that takes a core, for a while.
_PAUSE = 0.02
# Sides of the square matrices whose product is the bound: large enough that larger ones are no faster.
_SIDES = {"cpu": 2048, "cuda": 8192}
_PRODUCTS = 5

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One row of the table.

    Attributes:
        implementation: ``vit-hub``, the peer's or the runtime's name.
        runtime: that it ran in.
        task: ``output`` (logits or an embedding) or ``features`` (all tokens before pooling).
        batch_size: images.
        seconds: median over the rounds of one forward pass; None if it could not run.
        images_per_second: throughput at that median.
        speedup: the seconds divided by vit-hub's: more than 1 if vit-hub is faster; 1 for vit-hub.
        of_peak: the model's arithmetic (:func:`vit_hub.model.flops.forward_flops`, all tokens in all blocks) by the
            time and by the device's measured peak; None without one.
        difference: largest absolute difference of the result from vit-hub's.
        peak_memory: bytes that passes took at their peak: on a CUDA device those that PyTorch allocated, on Linux'
            processors the rise of the process's memory; None elsewhere, and on processors where passes are compiled.
        problem: reason why it could not run.
    """

    implementation: str
    runtime: str = TORCH
    task: str
    batch_size: int
    seconds: float | None = None
    images_per_second: float | None = None
    speedup: float | None = None
    of_peak: float | None = None
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
    peak: float | None = None,
    peers: Mapping[str, nn.Module] | None = None,
    runtime: str = TORCH,
    progress: Callable[[int], None] | None = None,
) -> list[Timing]:
    """Time forward passes in inference mode, one implementation after the other in every round.

    Args:
        model: on the device and in the dtype to be measured.
        against: names of :data:`AGAINST`; what cannot run gets a row with the reason. Runtimes run programs that are
            exported once into the cache, with as many threads as PyTorch has.
        tasks: names of :data:`TASKS`.
        batch_sizes: images per pass.
        rounds: measurements per row; their median is reported.
        compile: a mode of ``torch.compile`` for all modules of PyTorch; None: eager.
        peak: of the device, from :func:`peak_flops`.
        peers: modules of ``against`` that are made already, from :func:`peer_modules`.
        runtime: that computes vit-hub's own rows; ``auto``: the fastest for each batch size.
        progress: called with 1 after every task and batch size.

    Raises:
        ConfigError: no such peer, task or runtime, or a count below 1.
    """
    for kind, names, known in (("against", against, AGAINST), ("tasks", tasks, TASKS)):
        wrong = [name for name in names if name not in known]
        if wrong:
            raise ConfigError(f"{kind}={quoted(wrong[0])} is not known", hint=f"known: {', '.join(known)}")
    if rounds < 1 or any(size < 1 for size in batch_sizes):
        raise ConfigError("rounds and batch sizes must be at least 1")
    made = peers or {}
    others, problems = peer_modules(model, [name for name in against if name in PEERS and name not in made])
    modules: dict[str, nn.Module] = {OURS: model, **made, **others}
    table = []
    for task in tasks:
        what = "output" if task == "output" else "tokens"
        runs = {name: forward_pass(module, task) for name, module in modules.items()}
        if compile is not None:
            runs = {name: torch.compile(run, mode=compile, dynamic=False) for name, run in runs.items()}
        programs, refused = _programs(model, [name for name in against if name not in PEERS], what)
        for batch_size in batch_sizes:
            images = _images(model, batch_size)
            calls = {name: partial(run, images) for name, run in runs.items()}
            # Programs take float32, whatever they compute in.
            calls |= {name: partial(run, images.float()) for name, run in programs.items()}
            chosen = fastest_runtime(model, what=what, batch_size=batch_size) if runtime == AUTO else runtime
            if chosen != TORCH:
                calls[OURS] = partial(in_runtime(model, chosen, what=what), images.float())
            timings = _measured(calls, images, task, rounds, memory=compile is None or images.is_cuda)
            where = {**{name: name for name in programs}, OURS: chosen}
            table += [
                _beside(replace(timing, runtime=where.get(timing.implementation, TORCH)), model.config, peak)
                for timing in timings
            ]
            table += [
                Timing(implementation=name, task=task, batch_size=batch_size, problem=problem)
                for name, problem in {**problems, **refused}.items()
            ]
            if progress:
                progress(1)
    return table


def time_program(
    program: ExportedFile,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 7,
    peak: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Timing]:
    """Time a file of :func:`vit_hub.export` in its runtime; arguments as for :func:`time_forward`.

    Raises:
        ConfigError: the runtime is not installed.
        CheckpointError: it cannot open the file.
    """
    run, table = program.open(), []
    config = resized_config(program.config, program.image_size, pad=True)
    for batch_size in batch_sizes:
        images = torch.randn(batch_size, *program.config.input_shape(program.image_size))
        for timing in _measured({OURS: partial(run, images)}, images, program.what, rounds, memory=True):
            table.append(_beside(replace(timing, runtime=program.runtime), config, peak))
        if progress:
            progress(1)
    return table


def _beside(timing: Timing, config: ViTConfig, peak: float | None) -> Timing:
    """Return a timing with its share of the device's peak."""
    if peak is None or not timing.seconds:
        return timing
    return replace(timing, of_peak=forward_flops(config) * timing.batch_size / timing.seconds / peak)


def peak_flops(device: str | torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Measure the operations per second of the product of two square matrices, the bound of a model on a device.

    Args:
        device: to measure.
        dtype: of the matrices.
        side: of the matrices; None: large enough for the device.
    """
    place = torch.device(device)
    side = side or _SIDES.get(place.type, _SIDES["cpu"])
    a, b = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(_WARM_UP + _PRODUCTS):
        _wait(place)
        start = time.perf_counter()
        a @ b
        _wait(place)
        seconds.append(time.perf_counter() - start)
    return float(2 * side**3 / min(seconds))


def _programs(model: VisionTransformer, names: Sequence[str], what: str) -> tuple[dict[str, Run], dict[str, str]]:
    """Return what runs the model in other runtimes, and for each that cannot the reason."""
    found: dict[str, Run] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            found[name] = in_runtime(model, name, what=what)
        except VitHubError as error:
            problems[name] = error.message
    return found, problems


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Describe what the figures depend on besides the model: processor, threads, GPU, versions."""
    place = torch.device(device)
    found = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(place) if place.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in ("vit-hub", "torch", *AGAINST):
        if version := installed_version(package):
            found[package] = version
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
    # A model without a head is its own base, whatever it calls a part of it.
    has_head = not type(module).__name__.endswith("Model")
    inner = getattr(module, getattr(module, "base_model_prefix", ""), module) if has_head else module
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


def _wait(device: torch.device) -> None:
    """Wait for what was submitted to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measured(
    calls: Mapping[str, Callable[[], Tensor]], images: Tensor, task: str, rounds: int, *, memory: bool
) -> list[Timing]:
    results: dict[str, Tensor] = {}
    repeats: dict[str, int] = {}
    peaks: dict[str, int | None] = {}
    problems: dict[str, str] = {}
    seconds: dict[str, list[float]] = defaultdict(list)

    def once(name: str, count: int) -> float:
        _wait(images.device)
        start = time.perf_counter()
        for _ in range(count):
            calls[name]()
        _wait(images.device)
        return (time.perf_counter() - start) / count

    with torch.inference_mode():
        for name, call in calls.items():
            before = _memory_before(images.device) if memory else None
            try:
                for _ in range(_WARM_UP):
                    results[name] = call().clone()
            except Exception as error:  # of peers, some of whose classes want more than images
                if name == OURS:
                    raise
                problems[name] = f"{type(error).__name__}: {first_line(error)}"
                continue
            peaks[name] = None if before is None else _memory_peak(images.device) - before
            repeats[name] = max(1, round(_SHORTEST / once(name, 1)))
        order = list(repeats)
        for turn in range(rounds):
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                time.sleep(_PAUSE)
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
            difference=_difference(results[name].to(images.device), results[OURS]),
            peak_memory=peaks[name],
        )
        for name, median in medians.items()
    ] + [
        Timing(implementation=name, task=task, batch_size=len(images), problem=problem)
        for name, problem in problems.items()
    ]


def _memory_before(device: torch.device) -> int | None:
    """Return the bytes in use, and begin to look for the most; None where that cannot be measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        with contextlib.suppress(OSError, AttributeError):  # what earlier passes left is theirs; glibc only
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status("VmRSS")
    except (OSError, LookupError):
        return None


def _memory_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """Return a size of this process, in bytes, as Linux states it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    sizes = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return int(sizes[name].split()[0]) * 1024


def _difference(found: Tensor, ours: Tensor) -> float | None:
    return float((found.cpu().double() - ours.cpu().double()).abs().max()) if found.shape == ours.shape else None
