from __future__ import annotations

import os
from pathlib import Path

# Each worker of pytest-xdist, and what it starts, computes with its share of the processors; torch reads it once.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torchvision_operators  # noqa: E402, F401

# What the tests start in other processes finds the package in a clone that is not installed, too.
ROOT = str(Path(__file__).resolve().parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
