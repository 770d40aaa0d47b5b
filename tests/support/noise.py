"""Small image files with pixels at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save_noise(path: Path, seed: int, size: tuple[int, int] = (40, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path
