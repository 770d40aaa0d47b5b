"""How far and where a model looks: mean distances and rollout of its attention.

Shapes: H heads, T tokens, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["joined", "mean_distance", "patch_distances", "rollout", "rollout_step"]


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Return the attention of one block to one image, [H, T, T] float32; layers side by side give more heads.

    Args:
        maps: of its layers, each [1, heads, T, T].
    """
    return (maps[0] if len(maps) == 1 else torch.cat(list(maps), dim=1))[0].float()


def patch_distances(grid: tuple[int, int], frames: int = 1, device: torch.device | None = None) -> Tensor:
    """Return the Euclidean distance of each two patches of a grid, [N, N], in patches.

    Args:
        grid: (rows, columns).
        frames: patches of a video at each place; those of different frames at one place are no distance apart.
        device: where to compute.
    """
    axes = (torch.arange(size, dtype=torch.float32, device=device) for size in grid)
    places = torch.cartesian_prod(*axes).repeat(frames, 1)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def mean_distance(weights: Tensor, distances: Tensor) -> Tensor:
    """Return how far each head looks on average, [H]: arXiv 2010.11929, figure 7 on the right.

    The distance of a query to all keys is weighted by attention, which is scaled to a sum of one over the patches, and
    averaged over the queries.

    Args:
        weights: attention of patches to patches, [H, N, N].
        distances: of each two patches, [N, N].
    """
    looked = weights.sum(dim=-1).clamp_min(torch.finfo(weights.dtype).tiny)
    return ((weights * distances).sum(dim=-1) / looked).mean(dim=-1)


def rollout_step(rolled: Tensor | None, weights: Tensor) -> Tensor:
    """Return the rollout after one more block, [T, T] (arXiv 2005.00928).

    Heads are averaged, as in arXiv 2010.11929, appendix D.8; half of each token comes past the attention, by the
    residual connection; rows are scaled to a sum of one; the product leads back to the input.

    Args:
        rolled: the rollout so far; None before the first block.
        weights: attention of the block, [H, T, T].
    """
    mean = weights.mean(dim=0)
    mean = mean / mean.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(mean.dtype).tiny)
    step = 0.5 * mean
    step.diagonal().add_(0.5)
    return step if rolled is None else step @ rolled


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Return the attention rollout over the maps of all blocks, each [H, T, T]: [T, T], rows sum to one."""
    rolled: Tensor | None = None
    for weights in maps:
        rolled = rollout_step(rolled, weights)
    if rolled is None:
        raise ValueError("there is no map")
    return rolled
