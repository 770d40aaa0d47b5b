"""The command ``vit-hub``, also as ``python -m vit_hub``: Ctrl-C is one line from the first import to the last exit."""

from __future__ import annotations

import os
import signal
from types import FrameType

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave at once, while nothing is under way that would have to be cleaned up."""
    os.write(2, b"\nvit-hub: error: interrupted\n")
    os._exit(_INTERRUPTED)


def run() -> None:
    """Run the command; it raises ``SystemExit``."""
    usual = signal.getsignal(signal.SIGINT)
    outside = usual if usual is signal.SIG_IGN else _leave  # ignored: as after nohup
    signal.signal(signal.SIGINT, outside)
    from vit_hub.cli import main

    signal.signal(signal.SIGINT, usual)
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, outside)


if __name__ == "__main__":
    run()
