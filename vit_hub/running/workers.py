"""Worker processes that read images into memory which the main process shares with them."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vit_hub.errors import VitHubError
from vit_hub.running.reading import Batch, Outcome, Reader
from vit_hub.running.sources import Item

__all__ = ["read_by_workers"]

_AHEAD = 2  # batches that are read while one is used
_LOWEST = 19  # priority of a process
_PATIENCE = 5.0  # seconds for a process to end
Pixels: TypeAlias = "npt.NDArray[np.float32]"  # [images, values of the largest one]


@dataclass(frozen=True)
class _Worker:
    """A process, and what is sent to it and comes back: parts of batches, and where their images are."""

    process: BaseProcess
    connection: Connection

    def send(self, part: tuple[int, list[Item]]) -> None:
        try:
            self.connection.send(part)
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> list[Any]:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, Exception):
            raise answer
        found: list[Any] = answer
        return found

    def _ended(self) -> VitHubError:
        self.process.join(_PATIENCE)
        return VitHubError(
            f"a process that reads images ended with exit status {self.process.exitcode}",
            hint="is there enough memory? Fewer processes: --workers 1, or 0",
        )


def read_by_workers(
    batches: Iterable[list[Item]], reader: Reader, count: int, batch_size: int, *, polite: bool
) -> Iterator[Batch]:
    """Yield batches in their order, each read by all processes together while the one before is used.

    The memory for images is as large as three batches, and used again and again: images of a batch stay as they are
    until the next one is taken.

    Args:
        batches: taken two ahead.
        reader: what is done to images.
        count: of processes.
        batch_size: images in the largest batch.
        polite: let the processes have what the main process leaves of the cores.

    Raises:
        VitHubError: a process ended.
    """
    room = reader.largest()
    memory: Any = multiprocessing.RawArray("f", (_AHEAD + 1) * batch_size * room)
    pixels = _pixels(memory, room)
    firsts = itertools.cycle(range(0, len(pixels), batch_size))
    with _processes(count, reader, memory, room, polite) as workers:

        def begin(items: list[Item], first: int) -> _Begun:
            each = math.ceil(len(items) / count)
            starts = range(0, len(items), each)
            for worker, start in zip(workers, starts, strict=False):
                worker.send((first + start, items[start : start + each]))
            return _Begun(items, first, workers[: len(starts)])

        begun = deque[_Begun]()
        for items, first in zip(batches, firsts, strict=False):
            begun.append(begin(items, first))
            if len(begun) > _AHEAD:
                yield begun.popleft().batch(reader, pixels)
        while begun:
            yield begun.popleft().batch(reader, pixels)


@dataclass(frozen=True)
class _Begun:
    """A batch that is being read.

    Attributes:
        items: its images.
        first: place of the first of them in the memory.
        workers: that read a part of it, in order.
    """

    items: list[Item]
    first: int
    workers: list[_Worker]

    def batch(self, reader: Reader, pixels: Pixels) -> Batch:
        """Wait for the images; where they lie one after another they are not copied."""
        answers = [answer for worker in self.workers for answer in worker.receive()]
        if reader.native is None and not any(isinstance(answer, str) for answer in answers):
            (shape, _), count = answers[0], len(answers)
            images = torch.from_numpy(pixels[self.first : self.first + count].reshape(count, *shape))
            return Batch(self.items, images, [size for _, size in answers])
        outcomes = [_outcome(row, answer) for row, answer in zip(pixels[self.first :], answers, strict=False)]
        return reader.batch(self.items, outcomes)


def _pixels(memory: Any, room: int) -> Pixels:
    """Return the memory that processes share: a row for each image."""
    return np.frombuffer(memory, np.float32).reshape(-1, room)


def _outcome(row: npt.NDArray[np.float32], answer: Any) -> Outcome:
    """Return an image where it lies in the memory, and its size; or why there is none."""
    if isinstance(answer, str):
        return answer
    shape, size = answer
    return row[: math.prod(shape)].reshape(shape), size


@contextmanager
def _processes(count: int, reader: Reader, memory: Any, room: int, polite: bool) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        with _interrupts_later():
            for _ in range(count):
                ours, theirs = multiprocessing.Pipe()
                process = multiprocessing.Process(
                    target=_work, args=(theirs, reader, memory, room, polite), daemon=True, name="vit-hub reader"
                )
                process.start()
                theirs.close()
                workers.append(_Worker(process, ours))
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_PATIENCE)
            worker.process.kill()
            worker.connection.close()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C back, also from processes that are started meanwhile: a terminal sends it to all of them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, reader: Reader, memory: Any, room: int, polite: bool) -> None:
    """Read parts of batches until the main process ends this one, or itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how the main process ends this one, whatever it does itself
    torch.set_num_threads(1)
    if polite and hasattr(os, "nice"):
        os.nice(_LOWEST)
    pixels = _pixels(memory, room)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A thread sends the answers, so that both sides never wait for each other to receive.
    with ThreadPoolExecutor(1) as sending:
        while connection in wait([connection, parent.sentinel]):
            first, items = connection.recv()
            try:
                outcomes = zip(pixels[first:], reader.read(items), strict=False)
                answer: Any = [_stored(row, outcome) for row, outcome in outcomes]
            except Exception as error:  # raised again in the main process, for which it must be sent
                answer = RuntimeError(f"{type(error).__name__}: {error}")
            sending.submit(connection.send, answer)


def _stored(row: npt.NDArray[np.float32], outcome: Outcome) -> Any:
    """Put an image into the memory; return what the other side needs to find it there."""
    if isinstance(outcome, str):
        return outcome
    image, size = outcome
    row[: image.size] = image.reshape(-1)
    return image.shape, size
