"""The fastest runtime for a model on this machine, by a short measurement that is kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vit_hub.converters.containers import atomic_path
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.exporting.program import Run
from vit_hub.exporting.runtimes import RUNTIMES, TORCH, check_runtime, in_runtime, program_settings
from vit_hub.hub.cache.paths import choice_file, file_lock, is_trusted
from vit_hub.model.device import processor_name
from vit_hub.model.vit import VisionTransformer
from vit_hub.untrusted import read_json

__all__ = ["AUTO", "fastest_runtime"]

AUTO = "auto"
_ROUNDS = 5
_SECONDS = 3.0  # for each runtime


def fastest_runtime(model: VisionTransformer, *, what: str = "output", batch_size: int, stills: bool = False) -> str:
    """Return the name of the fastest runtime that is installed and holds the tolerance of the model's dtype.

    The choice is kept in the cache, for this machine, number of threads, model, output, batch size and versions.

    Args:
        model: in evaluation mode; on another device than the processor torch is the only runtime.
        what: the output, as for :func:`vit_hub.exporting.runtimes.in_runtime`.
        batch_size: images at a time.
        stills: as for :func:`vit_hub.exporting.runtimes.in_runtime`.
    """
    weight = model.patch_embed.proj.weight
    if weight.device.type != "cpu":
        return TORCH
    able = list(_able(str(weight.dtype).removeprefix("torch.")))
    if able == [TORCH]:
        return TORCH
    settings = program_settings(model, able, what, stills=stills)
    settings |= {"machine": [processor_name(), os.cpu_count(), torch.get_num_threads()], "batch_size": batch_size}
    path = choice_file(hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest())
    kept = _kept(path, able)
    if kept is not None:
        return kept
    with file_lock(path):  # so that processes do not measure at the same time
        kept = _kept(path, able)
        if kept is None:
            runs = dict(_runs(model, able, what, stills))
            shape = model.config.input_shape(model.input_size, stills=stills)
            images = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
            seconds = _measured(runs, images)
            kept = min(seconds, key=lambda name: seconds[name])
            record = {"runtime": kept, "seconds": seconds, "settings": settings}
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return kept


def _able(dtype: str) -> Iterator[str]:
    for name in RUNTIMES:
        with contextlib.suppress(ConfigError):
            check_runtime(name, dtype)
            yield name


def _kept(path: Path, able: list[str]) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        name = read_json(path)["runtime"]
        return name if name in able and is_trusted(path) else None
    return None


def _runs(model: VisionTransformer, able: list[str], what: str, stills: bool) -> Iterator[tuple[str, Run]]:
    """Yield the runtimes that take the model and hold the tolerance."""
    for name in able:
        with contextlib.suppress(UnsupportedByFormatError):
            yield name, in_runtime(model, name, what=what, stills=stills)


def _measured(runs: dict[str, Run], images: Tensor) -> dict[str, float]:
    """Return the shortest time of each, in seconds; they take turns, since the machine may be busy now and then."""
    found = dict.fromkeys(runs, float("inf"))
    stop = time.perf_counter() + _SECONDS * len(runs)
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            run(images)  # threads of the one before wait for more, and memory is laid out
            start = time.perf_counter()
            run(images)
            found[name] = min(found[name], time.perf_counter() - start)
        if time.perf_counter() > stop:
            break
    return found
