"""Tables resized in numpy, by the same matrices but without the model's code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vit_hub.model.resample import axis_matrix

__all__ = ["resize_grid"]


def resize_grid(
    table: npt.NDArray[np.floating], old: tuple[int, int], new: tuple[int, int], method: str
) -> npt.NDArray[np.float64]:
    """Return a table with one row per patch at another grid size.

    Args:
        table: [old rows * old columns, D], patches in row-major order.
        old: (rows, columns) of the table.
        new: (rows, columns) wanted.
        method: one of :data:`vit_hub.model.config.RESIZE_METHODS`.

    Returns:
        [new rows * new columns, D] float64; the values as they are where the grids are equal.
    """
    if old == new:
        return table.reshape(new[0] * new[1], -1).astype(np.float64)
    wy, wx = axis_matrix(method, old[0], new[0]), axis_matrix(method, old[1], new[1])
    grid = table.reshape(*old, -1).astype(np.float64)
    resized = np.einsum("yh,xw,hwd->yxd", wy, wx, grid, optimize=True)
    return np.asarray(resized.reshape(new[0] * new[1], -1), dtype=np.float64)
