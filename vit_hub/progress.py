"""Progress bars for people, none for pipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["byte_bar", "on_terminal", "step_bar"]


def on_terminal() -> bool:
    """Whether somebody watches stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def byte_bar(label: str, total: int | None, *, show: bool, initial: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar that counts bytes, for the time of the ``with`` body, which calls what it gets with each count of new ones.

    Args:
        label: stands before the bar.
        total: bytes in all, None: not known.
        show: whether bars are wanted; without a terminal there is none all the same.
        initial: bytes that are done already; they do not count for the rate.
    """
    scale = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with _bar(show, total=total, initial=initial, desc=label, **scale) as advance:
        yield advance


@contextmanager
def step_bar(label: str, total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar that counts steps; otherwise as :func:`byte_bar`."""
    with _bar(show, total=total, desc=label) as advance:
        yield advance


@contextmanager
def _bar(show: bool, **options: Any) -> Iterator[Callable[[int], None]]:
    if not (show and on_terminal()):
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(**options) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
