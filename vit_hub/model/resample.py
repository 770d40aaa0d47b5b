"""Resizing position tables and patch kernels as the original projects do it.

Every method acts on each axis alone, so it is a matrix: ``grid' = Wy @ grid @ Wx.T``. The functions here give that
matrix in float64; nothing calls an interpolation routine. Formulas: torch's and jax' resampling kernels (R. Keys,
"Cubic convolution interpolation", 1981) and the sampling positions of each project; all of them are compared with
tables that the projects themselves made. They are arithmetic on the new length, which may be a symbol of a program that
is being exported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vit_hub.errors import ConfigError
from vit_hub.model.config import RESIZE_METHODS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["axis_matrix", "axis_weights", "kernel_matrix", "narrow_cubic_matrix"]

Matrix = npt.NDArray[np.float64]


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel; ``a`` is -0.75 in torch's plain bicubic and -0.5 in the antialiased one."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return near.where(x <= 1, far.where(x < 2, 0.0))


def _plain_cubic(x: Tensor) -> Tensor:
    return _cubic(x, -0.75)


def _smooth_cubic(x: Tensor) -> Tensor:
    return _cubic(x, -0.5)


def _half_pixel(index: Tensor, old: int, new: int) -> Tensor:
    return (index + 0.5) * old / new - 0.5


def _half_pixel_offset(index: Tensor, old: int, new: int) -> Tensor:
    """DINO's and DINOv2's: the scale factor is (new + 0.1) / old, added against rounding of the size."""
    return (index + 0.5) * old / (new + 0.1) - 0.5


def _corners(index: Tensor, old: int, new: int) -> Tensor:
    import torch

    steps: int = torch.sym_max(new - 1, 1)  # type: ignore[no-untyped-call]
    return index * ((old - 1) / steps)


def _places(old: int, like: Tensor) -> Tensor:
    import torch

    return torch.arange(old, dtype=torch.float64, device=like.device)


def _clamped(positions: Tensor, old: int, kernel: Callable[[Tensor], Tensor], reach: int) -> Tensor:
    """Weights of a kernel that reads the border pixel wherever it reaches beyond."""
    base, places = positions.floor(), _places(old, positions)
    weights = positions.new_zeros(1)
    for step in range(1 - reach, reach + 1):
        column = (base + step).clamp(0, old - 1)
        weight = kernel(base + step - positions)
        weights = weights + weight[:, None].where(column[:, None] == places, 0.0)
    return weights


def _antialiased(positions: Tensor, old: int, new: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights of a kernel as wide as the shrinking asks for, renormalised where the border cuts it off."""
    import torch

    scale: float = torch.sym_max(old / new, 1.0)  # type: ignore[no-untyped-call]
    return _renormalized(positions, old, kernel, scale)


def _renormalized(positions: Tensor, old: int, kernel: Callable[[Tensor], Tensor], scale: float) -> Tensor:
    weights = kernel((_places(old, positions) - positions[:, None]) / scale)
    return weights / weights.sum(dim=1, keepdim=True)


def _geometric(index: Tensor, old: int, new: int) -> Tensor:
    """timm's and BEiT's rule for relative tables of 2n - 1 offsets: linear between coordinates in a geometric series.

    The ratio is searched so that the outermost old offset lands on the outermost new one.
    """
    import torch

    half, wanted = old // 2, index - new // 2
    low, high = index.new_tensor(1.01), index.new_tensor(1.5)
    width, ratio = 0.49, index.new_tensor(1.255)
    while width > 1e-6:
        ratio, width = (low + high) / 2, width / 2
        beyond = (1 - ratio**half) / (1 - ratio) > -wanted[0]
        low, high = low.where(beyond, ratio), ratio.where(beyond, high)
    side = (ratio ** _places(half, index)).cumsum(0)
    points = torch.cat((-side.flip(0), side.new_zeros(1), side))
    right = (points < wanted[:, None]).sum(1).clamp(0, old - 1)
    left = (right - 1).clamp(0, old - 1)
    from_left, to_right = (wanted - points[left]).clamp(min=0), (points[right] - wanted).clamp(min=0)
    both = (from_left == 0) & (to_right == 0)
    from_left, to_right = from_left.masked_fill(both, 1.0), to_right.masked_fill(both, 1.0)
    places = _places(old, index)
    from_side = (left[:, None] == places) * (to_right / (from_left + to_right))[:, None]
    return from_side + (right[:, None] == places) * (from_left / (from_left + to_right))[:, None]


_METHODS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "bilinear-align-corners": lambda i, old, new: _clamped(_corners(i, old, new), old, _triangle, 1),
    "bilinear-antialias": lambda i, old, new: _antialiased(_half_pixel(i, old, new), old, new, _triangle),
    "bilinear": lambda i, old, new: _clamped(_half_pixel(i, old, new), old, _triangle, 1),
    "bicubic": lambda i, old, new: _clamped(_half_pixel(i, old, new), old, _plain_cubic, 2),
    "bicubic-antialias": lambda i, old, new: _antialiased(_half_pixel(i, old, new), old, new, _smooth_cubic),
    "bicubic-offset": lambda i, old, new: _clamped(_half_pixel_offset(i, old, new), old, _plain_cubic, 2),
    "bicubic-align-corners": lambda i, old, new: _clamped(_corners(i, old, new), old, _plain_cubic, 2),
    "relpos-geometric": _geometric,
    "relpos-bilinear": lambda i, old, new: _clamped(_half_pixel(i, old, new), old, _triangle, 1),
}


def axis_weights(method: str, old: int, new: int, device: torch.device) -> Tensor:
    """Return the resampling of one axis as a matrix, [new, old] float64.

    Not always the identity where the sizes are equal: an axis that keeps its length is resampled with the other one,
    and the offset of DINO or the geometric coordinates of BEiT then move it.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in _METHODS:
        raise ConfigError(f"resize {method!r} is not known", hint=f"methods: {', '.join(RESIZE_METHODS)}")
    import torch

    return _METHODS[method](torch.arange(new, dtype=torch.float64, device=device), old, new)


@lru_cache(maxsize=64)
def axis_matrix(method: str, old: int, new: int) -> Matrix:
    """Return :func:`axis_weights` as an array that is computed once.

    Raises:
        ConfigError: there is no such method.
    """
    import torch

    # Not where torch makes tensors by default: numpy reads host memory only.
    matrix: Matrix = axis_weights(method, old, new, torch.device("cpu")).numpy()
    matrix.setflags(write=False)
    return matrix


def narrow_cubic_matrix(old: int, new: int) -> Matrix:
    """Return the matrix [new, old] of jax's and TensorFlow's bicubic resampling without antialiasing.

    Its kernel is that of ``bicubic-antialias``, from which it differs only where it shrinks.
    """
    import torch

    index = torch.arange(new, dtype=torch.float64)
    matrix: Matrix = _renormalized(_half_pixel(index, old, new), old, _smooth_cubic, 1.0).numpy()
    return matrix


def kernel_matrix(method: str, old: int, new: int) -> Matrix:
    """Return FlexiViT's pseudo-inverse resize of one axis of a kernel, [new, old] (arXiv 2212.08013, section 3.4).

    With B = ``axis_matrix(method, old, new)`` resizing images, the new kernel is pinv(B.T) @ kernel: its product with
    a resized patch is the old kernel's product with the patch, exactly when enlarging, in least squares otherwise. One
    axis at a time, so that enlarging one and shrinking the other stays well conditioned.
    """
    return np.asarray(np.linalg.pinv(axis_matrix(method, old, new).T), dtype=np.float64)
