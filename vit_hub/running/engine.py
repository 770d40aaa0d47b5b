"""The engine: worker processes read ahead while the model computes, and results come in the order of the images."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from vit_hub.errors import VitHubError, first_line
from vit_hub.running.computing import Computation
from vit_hub.running.reading import Batch, Reader
from vit_hub.running.sources import Item

__all__ = ["Done", "automatic_workers", "batches_read", "computed", "run", "worker_errors"]

_MOST_WORKERS = 16
_AHEAD = 2  # batches for each worker
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


def automatic_workers() -> int:
    """Return how many processes read images: one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Report the end of a worker process, which torch raises wherever the main process is at that time.

    Raises:
        VitHubError: a worker process was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise VitHubError(
            f"a process that reads images ended: {first_line(error)}",
            hint="is there enough memory, and room in /dev/shm? Fewer processes: --workers 2, or 0",
        ) from error


def run(
    batches: Iterable[list[Item]], reader: Reader, computation: Computation, *, workers: int | None = None
) -> Iterator[Done]:
    """Yield the results of batches, in their order; to be gone through within :func:`worker_errors`.

    Args:
        batches: taken a few ahead of what is computed.
        reader: what is done to images before the model.
        computation: the model.
        workers: processes that read; 0: none, so that reading and computing take turns; None: as many as there are
            cores, none for a single batch.
    """
    stream = iter(batches)
    if workers is None:
        first = [batch for _, batch in zip(range(2), stream, strict=False)]
        workers = automatic_workers() if len(first) == 2 else 0
        stream = _chained(first, stream)
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
    stream: Iterator[list[Item]], reader: Reader, computation: Computation, workers: int
) -> Iterable[Batch]:
    """Return batches as worker processes have read them, in their order."""
    options: dict[str, Any] = {"prefetch_factor": _AHEAD, "worker_init_fn": _ignore_interrupts} if workers else {}
    return DataLoader(
        reader,  # type: ignore[arg-type]
        batch_sampler=_Once(stream),
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        pin_memory=computation.device.type == "cuda",
        **options,
    )


class _Once:
    """A stream as a sampler, which the data loader asks for its iterator once."""

    def __init__(self, stream: Iterator[list[Item]]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[list[Item]]:
        return self._stream


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _ignore_interrupts(_: int) -> None:
    """Leave it to the main process to end the workers: Ctrl-C reaches all of a terminal's processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chained(first: Sequence[list[Item]], rest: Iterator[list[Item]]) -> Iterator[list[Item]]:
    yield from first
    yield from rest


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
        window.append(batch)
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
