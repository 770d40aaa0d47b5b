"""Programs that an interrupt reaches: what a shell runs in the background ignores it, and the tests may be run so."""

from __future__ import annotations

import sys

__all__ = ["COMMAND", "LISTEN"]

LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
COMMAND = (sys.executable, "-c", f"{LISTEN}from vit_hub.__main__ import run; run()")
