"""Resizing position tables and patch kernels as the original projects do it.

Every method acts on each axis alone, so it is a matrix: ``grid' = Wy @ grid @ Wx.T``. The functions here give that
matrix in float64; nothing calls an interpolation routine. Formulas: torch's and jax' resampling kernels (R. Keys,
"Cubic convolution interpolation", 1981) and the sampling positions of each project; all of them are compared with
tables that the projects themselves made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vit_hub.errors import ConfigError
from vit_hub.model.config import RESIZE_METHODS

__all__ = ["axis_matrix", "kernel_matrix"]

Matrix = npt.NDArray[np.float64]


def _triangle(x: Matrix) -> Matrix:
    return np.asarray(np.maximum(1 - np.abs(x), 0), dtype=np.float64)


def _cubic(x: Matrix, a: float) -> Matrix:
    """Keys' cubic convolution kernel; ``a`` is -0.75 in torch's plain bicubic and -0.5 in the antialiased one."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _plain_cubic(x: Matrix) -> Matrix:
    return _cubic(x, -0.75)


def _smooth_cubic(x: Matrix) -> Matrix:
    return _cubic(x, -0.5)


def _half_pixel(old: int, new: int) -> Matrix:
    return np.asarray((np.arange(new) + 0.5) * old / new - 0.5, dtype=np.float64)


def _half_pixel_offset(old: int, new: int) -> Matrix:
    """DINO's and DINOv2's: the scale factor is (new + 0.1) / old, added against rounding of the size."""
    return np.asarray((np.arange(new) + 0.5) * old / (new + 0.1) - 0.5, dtype=np.float64)


def _corners(old: int, new: int) -> Matrix:
    return np.asarray(np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0), dtype=np.float64)


def _clamped(positions: Matrix, old: int, kernel: Callable[[Matrix], Matrix], reach: int) -> Matrix:
    """Weights of a kernel that reads the border pixel wherever it reaches beyond."""
    weights = np.zeros((len(positions), old))
    base = np.floor(positions).astype(int)
    for step in range(1 - reach, reach + 1):
        column = np.clip(base + step, 0, old - 1)
        np.add.at(weights, (np.arange(len(positions)), column), kernel(base + step - positions))
    return weights


def _antialiased(old: int, new: int, kernel: Callable[[Matrix], Matrix]) -> Matrix:
    """Weights of a kernel as wide as the shrinking asks for, renormalised where the border cuts it off."""
    scale = max(old / new, 1.0)
    weights = kernel((np.arange(old)[None] - _half_pixel(old, new)[:, None]) / scale)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def _geometric(old: int, new: int) -> Matrix:
    """timm's and BEiT's rule for relative tables of 2n - 1 offsets: linear between coordinates in a geometric series.

    The ratio is searched so that the outermost old offset lands on the outermost new one.
    """
    low, high, ratio = 1.01, 1.5, 1.255
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    side = np.cumsum(ratio ** np.arange(old // 2))
    points = np.concatenate([-side[::-1], [0.0], side])
    wanted = np.arange(new) - float(new // 2)
    right = np.clip(np.searchsorted(points, wanted), 0, old - 1)
    left = np.clip(right - 1, 0, old - 1)
    from_left, to_right = np.maximum(wanted - points[left], 0), np.maximum(points[right] - wanted, 0)
    both = (from_left == 0) & (to_right == 0)
    from_left, to_right = np.where(both, 1, from_left), np.where(both, 1, to_right)
    weights = np.zeros((new, old))
    rows = np.arange(new)
    np.add.at(weights, (rows, left), to_right / (from_left + to_right))
    np.add.at(weights, (rows, right), from_left / (from_left + to_right))
    return weights


_METHODS: dict[str, Callable[[int, int], Matrix]] = {
    "bilinear-align-corners": lambda old, new: _clamped(_corners(old, new), old, _triangle, 1),
    "bilinear-antialias": lambda old, new: _antialiased(old, new, _triangle),
    "bilinear": lambda old, new: _clamped(_half_pixel(old, new), old, _triangle, 1),
    "bicubic": lambda old, new: _clamped(_half_pixel(old, new), old, _plain_cubic, 2),
    "bicubic-antialias": lambda old, new: _antialiased(old, new, _smooth_cubic),
    "bicubic-offset": lambda old, new: _clamped(_half_pixel_offset(old, new), old, _plain_cubic, 2),
    "bicubic-align-corners": lambda old, new: _clamped(_corners(old, new), old, _plain_cubic, 2),
    "relpos-geometric": _geometric,
    "relpos-bilinear": lambda old, new: _clamped(_half_pixel(old, new), old, _triangle, 1),
}


@lru_cache(maxsize=64)
def axis_matrix(method: str, old: int, new: int) -> Matrix:
    """Return the resampling of one axis as a matrix, [new, old] float64.

    Not always the identity where the sizes are equal: an axis that keeps its length is resampled with the other one,
    and the offset of DINO or the geometric coordinates of BEiT then move it.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in _METHODS:
        raise ConfigError(f"resize {method!r} is not known", hint=f"methods: {', '.join(RESIZE_METHODS)}")
    matrix = _METHODS[method](old, new)
    matrix.setflags(write=False)
    return matrix


def kernel_matrix(method: str, old: int, new: int) -> Matrix:
    """Return FlexiViT's pseudo-inverse resize of one axis of a kernel, [new, old] (arXiv 2212.08013, section 3.4).

    With B = ``axis_matrix(method, old, new)`` resizing images, the new kernel is pinv(B.T) @ kernel: its product with
    a resized patch is the old kernel's product with the patch, exactly when enlarging, in least squares otherwise. One
    axis at a time, so that enlarging one and shrinking the other stays well conditioned.
    """
    return np.asarray(np.linalg.pinv(axis_matrix(method, old, new).T), dtype=np.float64)
