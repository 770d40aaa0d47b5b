from __future__ import annotations

import os
from pathlib import Path

import torchvision_operators  # noqa: F401

# What the tests start in other processes finds the package in a clone that is not installed, too.
ROOT = str(Path(__file__).resolve().parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
