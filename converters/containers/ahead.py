"""Work in a second thread: preparing the next items, or a result that is needed later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue
from typing import TypeVar

__all__ = ["ahead", "meanwhile"]

T = TypeVar("T")

# Items in the queue: enough to keep both threads busy, few enough for the memory bound of a conversion.
_DEPTH = 4


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, made by a thread a few items ahead; its exceptions are raised here.

    This pays where making an item releases the GIL, as numpy's copies and file reads do.
    """
    waiting: Queue[Callable[[], T] | None] = Queue(_DEPTH)
    stopped = threading.Event()

    def make() -> None:
        try:
            for item in items:
                waiting.put(lambda item=item: item)  # type: ignore[misc]
                if stopped.is_set():
                    return
        except BaseException as error:
            waiting.put(lambda error=error: _raise(error))  # type: ignore[misc]
        finally:
            waiting.put(None)

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    take: Callable[[], T] | None = None
    try:
        while (take := waiting.get()) is not None:
            yield take()
    finally:
        stopped.set()
        while take is not None:  # discard the rest: the thread may be waiting for room
            take = waiting.get()
        thread.join()


def _raise(error: BaseException) -> T:  # type: ignore[type-var]
    raise error


@contextmanager
def meanwhile(work: Callable[[Callable[[int], None]], T]) -> Iterator[Callable[[], T]]:
    """Run some work in a thread during the ``with`` body, which gets a function that waits for the result.

    Args:
        work: takes a function to call at every step, with any count; it raises once the result is not needed.
    """
    unwanted = threading.Event()

    def step(count: int) -> None:
        if unwanted.is_set():
            raise CancelledError

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, step)
        try:
            yield future.result
        finally:
            unwanted.set()
