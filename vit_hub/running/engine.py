"""The engine: images are read, the model computes, and results come in the order of the images."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_hub.running.computing import Computation
from vit_hub.running.reading import Batch, Reader
from vit_hub.running.sources import Item
from vit_hub.running.workers import read_by_workers

__all__ = ["Done", "automatic_workers", "batches_read", "computed", "run"]

_MOST_WORKERS = 16
_TURNS = 8  # cores up to which reading and computing take turns on a CPU
_WINDOW = 8  # batches whose images are sorted by size


@dataclass(frozen=True)
class Done:
    """Results of a batch.

    Attributes:
        items: all of its images.
        kept: positions of those that were computed.
        sizes: (width, height) in pixels of the images that were computed.
        outputs: float32, one row for each of them; a list if their shapes differ.
        errors: position -> why there is no result.
    """

    items: list[Item]
    kept: list[int]
    sizes: list[tuple[int, int]]
    outputs: Any
    errors: dict[int, str]


def automatic_workers(device: torch.device, items: Iterable[Item]) -> int:
    """Return how many processes read images while the device computes, 0 where that would not help.

    On a few cores reading and computing disturb each other, so they take turns there; a GPU waits for nothing, and an
    address is waited for.
    """
    turns = device.type == "cpu" and cores() <= _TURNS and not any(item.place.kind == "url" for item in items)
    return 0 if turns else min(cores(), _MOST_WORKERS)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    batches: Iterable[list[Item]], reader: Reader, computation: Computation, *, workers: int | None = None
) -> Iterator[Done]:
    """Yield the results of batches, in their order.

    Args:
        batches: taken a few ahead of what is computed.
        reader: what is done to images before the model.
        computation: the model.
        workers: processes that read; 0: none, so that reading and computing take turns; None: as
            :func:`automatic_workers` has it, none for a single batch.

    Raises:
        VitHubError: a process ended.
    """
    stream = iter(batches)
    if workers is None:
        first = list(itertools.islice(stream, 2))
        workers = automatic_workers(computation.device, first[0]) if len(first) == 2 else 0
        stream = itertools.chain(first, stream)
    read = batches_read(stream, reader, computation, workers)
    if reader.native is not None:
        yield from _sorted_by_size(read, computation)
        return
    waiting: deque[tuple[Batch, Any]] = deque()
    for batch in read:
        waiting.append((batch, computation.submit(batch.images) if len(batch.images) else None))
        # On a GPU a batch is fetched after the next one was submitted; elsewhere it is done.
        if len(waiting) > (1 if computation.device.type == "cuda" else 0):
            yield computed(*waiting.popleft(), computation)
    while waiting:
        yield computed(*waiting.popleft(), computation)


def batches_read(
    stream: Iterable[list[Item]], reader: Reader, computation: Computation, workers: int
) -> Iterator[Batch]:
    """Yield batches as they were read; their images stay as they are until the next one is taken."""
    if workers:
        polite = computation.device.type == "cpu"
        yield from read_by_workers(stream, reader, workers, computation.batch_size, polite=polite)
        return
    reader = replace(reader, threads=cores())
    for items in stream:
        yield reader.batch(items, reader.read(items))


def computed(batch: Batch, submitted: Any, computation: Computation) -> Done:
    """Wait for the outputs of a batch; ``submitted`` is None if none of its images could be read."""
    outputs = [] if submitted is None else computation.fetch(submitted)
    kept = [index for index in range(len(batch.items)) if index not in batch.errors]
    return _finite(Done(batch.items, kept, batch.sizes, outputs, dict(batch.errors)))


def _finite(done: Done) -> Done:
    """Move results that are NaN or infinite to the errors."""
    good = [bool(np.isfinite(output).all()) for output in done.outputs]
    if all(good):
        return done
    reason = "the model's outputs are not finite"
    errors = {**done.errors, **{index: reason for index, fine in zip(done.kept, good, strict=True) if not fine}}
    rows = [row for row, fine in enumerate(good) if fine]
    outputs = done.outputs[rows] if isinstance(done.outputs, np.ndarray) else [done.outputs[row] for row in rows]
    return Done(done.items, [done.kept[row] for row in rows], [done.sizes[row] for row in rows], outputs, errors)


def _sorted_by_size(read: Iterable[Batch], computation: Computation) -> Iterator[Done]:
    """Compute images of many sizes: a window of batches is sorted, so that little padding is computed."""
    window: list[Batch] = []
    for batch in read:
        window.append(replace(batch, images=[image.clone() for image in batch.images]))
        if len(window) == _WINDOW:
            yield from _window_of(window, computation)
            window = []
    yield from _window_of(window, computation)


def _window_of(window: Sequence[Batch], computation: Computation) -> Iterator[Done]:
    images: list[Tensor] = [image for batch in window for image in batch.images]
    order = sorted(range(len(images)), key=lambda index: images[index].shape[-2] * images[index].shape[-1])
    outputs: list[Any] = [None] * len(images)
    for start in range(0, len(order), computation.batch_size):
        chosen = order[start : start + computation.batch_size]
        for index, output in zip(
            chosen, computation.fetch(computation.submit([images[i] for i in chosen])), strict=True
        ):
            outputs[index] = output
    start = 0
    for batch in window:
        found = outputs[start : start + len(batch.images)]
        start += len(found)
        kept = [index for index in range(len(batch.items)) if index not in batch.errors]
        yield _finite(Done(batch.items, kept, batch.sizes, found, dict(batch.errors)))
