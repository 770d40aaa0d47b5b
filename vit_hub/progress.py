"""Progress bars on terminals, none elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vit_hub.shown import visible

__all__ = ["byte_bar", "on_terminal", "step_bar"]


def on_terminal() -> bool:
    """Return True if stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def byte_bar(label: str, total: int | None, *, show: bool, initial: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar that counts bytes during the ``with`` body, which calls the yielded function with each new count.

    Args:
        label: text before the bar.
        total: number of bytes; None: not known.
        show: draw the bar, if stderr is a terminal.
        initial: bytes already done; they do not count for the rate.
    """
    scale = {"unit": "B", "unit_scale": True}  # kB of 1000 bytes, as in text
    with _bar(label, show, total=total, initial=initial, **scale) as advance:
        yield advance


@contextmanager
def step_bar(label: str, total: int | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar that counts steps; otherwise like :func:`byte_bar`."""
    with _bar(label, show, total=total) as advance:
        yield advance


@contextmanager
def _bar(label: str, show: bool, **options: Any) -> Iterator[Callable[[int], None]]:
    if not (show and on_terminal()):
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(desc=visible(label), **options) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
