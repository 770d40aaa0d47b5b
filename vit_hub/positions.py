"""Position tables that are computed, not learned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["sincos2d"]


def sincos2d(grid_size: tuple[int, int], dim: int, temperature: float = 10_000.0) -> npt.NDArray[np.float64]:
    """Fixed sine-cosine table of big_vision's ``posemb_sincos_2d`` (arXiv 2104.02057, appendix, other frequencies).

    Columns are sin(x w), cos(x w), sin(y w), cos(y w) with w_k = temperature ** -(k / (dim/4 - 1)), k < dim/4: unlike
    MoCo v3 and MAE, the last frequency is reached exactly.

    Args:
        grid_size: (rows, columns) of patches.
        dim: width of the table, a multiple of 4.
        temperature: the base of the frequencies.

    Returns:
        [rows * columns, dim] float64, patches in row-major order.
    """
    y, x = np.mgrid[: grid_size[0], : grid_size[1]]
    omega = temperature ** -(np.arange(dim // 4) / max(dim // 4 - 1, 1))
    x_angles, y_angles = np.outer(x.ravel(), omega), np.outer(y.ravel(), omega)
    return np.concatenate([np.sin(x_angles), np.cos(x_angles), np.sin(y_angles), np.cos(y_angles)], axis=1)
