"""Python's garbage collector, which searches all of torch's objects while thousands of small ones are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_collection"]


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the collector from running in the ``with`` body.

    One search takes longer than all the rest of opening a canonical file and building its model. The body must not wait
    for anything, since garbage of other threads is not collected either.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
