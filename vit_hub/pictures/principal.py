"""Principal components."""

from __future__ import annotations

import numpy as np

from vit_hub.pictures.drawing import Array

__all__ = ["principal_components"]


def principal_components(rows: Array) -> tuple[Array, Array, Array]:
    """Return the mean of rows [N, V], their principal components and each one's share of the variance, in float64.

    Components [K, V], with K the lesser of N and V, are of length one, and their largest weight is positive.
    """
    mean = rows.mean(axis=0)
    _, lengths, components = np.linalg.svd(rows - mean, full_matrices=False)
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    variances = lengths**2
    shares = variances / max(variances.sum(), np.finfo(np.float64).tiny)
    return mean, components * np.where(largest < 0, -1, 1), shares
