"""Similarity of rotary positions by distance."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from vit_hub.model.rope import expand_angles, mixed_angles
from vit_hub.model.vit import VisionTransformer
from vit_hub.pictures.drawing import DIVERGING, INK, WIDTH, Array, Drawing, colorbar
from vit_hub.pictures.kind import ONE_PATCH, Kind
from vit_hub.pictures.positions import near_and_far
from vit_hub.pictures.subject import Subject, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "rotation_similarity"]


@torch.no_grad()
def rotation_similarity(model: VisionTransformer) -> Array:
    """Return how much of q . k is left between equal queries and keys of two patches, [rows, columns, rows, columns].

    It is the mean over channels of the cosine of the difference of their angles, 1 where no channel turns; of learned
    frequencies the mean over blocks and heads.

    Raises:
        ValueError: the model has no rotary positions.
    """
    config = model.config
    if config.rope is None:
        raise ValueError("the model has no rotary positions")
    grid, prefix = config.grid_size, config.num_prefix_tokens
    if config.rope.mixed and model.rope is not None:
        angles = mixed_angles(config.rope, grid, model.rope().cpu().double())
        cos, sin = expand_angles(config.rope, angles.flatten(0, 1), 0, config.head_dim)
    else:
        assert model.rope_cos is not None
        assert model.rope_sin is not None
        cos, sin = (part[prefix:].cpu().double().unsqueeze(0) for part in (model.rope_cos, model.rope_sin))
    count = grid[0] * grid[1]
    cos, sin = cos[:, :count], sin[:, :count]  # of a video, the first frame
    total = sum(c @ c.T + s @ s.T for c, s in zip(cos, sin, strict=True))
    return array(total / (len(cos) * config.head_dim)).reshape(*grid, *grid)


def _obstacle(subject: Subject) -> str:
    if subject.config.rope is None:
        return "the model has no rotary positions"
    return ONE_PATCH if subject.config.num_patches == 1 else ""


def _make(subject: Subject) -> Drawing:
    similarity = rotation_similarity(subject.model)
    near, far, half = near_and_far(similarity)
    title = (
        f"Rotations leave {near:.0%} of the product of equal queries and keys one patch apart, "
        f"{far:.0%} at {half} patches"
    )
    return Drawing(title, WIDTH * 0.44, functools.partial(_draw, similarity))


def _draw(similarity: Array, figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    rows, columns = similarity.shape[:2]
    row, column = rows // 2, columns // 2
    shown = left.imshow(similarity[row, column], cmap=DIVERGING, vmin=-1, vmax=1)
    left.plot(column, row, "s", markersize=7, markerfacecolor="none", markeredgecolor="black")
    left.set_title(f"to the patch in row {row + 1}, column {column + 1}")
    left.set_xlabel("column")
    left.set_ylabel("row")
    ticks = [sorted({0, size // 2, size - 1}) for size in (columns, rows)]
    left.set_xticks(ticks[0], [str(place + 1) for place in ticks[0]])
    left.set_yticks(ticks[1], [str(place + 1) for place in ticks[1]])
    colorbar(figure, shown, left, "share of q . k that is left")
    right.axhline(0, color="0.8", linewidth=1)
    right.plot(np.arange(columns), similarity[0, 0, 0], "o-", markersize=3, color=INK[0], label="along a row")
    right.plot(np.arange(rows), similarity[0, 0, :, 0], "s--", markersize=3, color=INK[1], label="along a column")
    right.set_ylim(-1, 1.05)
    right.set_xlabel("patches apart")
    right.set_title("by distance, from the first patch")
    right.legend(frameon=False)


KIND = Kind(
    "rope",
    "similarity by distance of rotary positions",
    "What is left of the product of a query and an equal key when both are rotated for two patches: the mean of "
    "cos(a_ik - a_jk) over the channels k, with angle a_ik of patch i.",
    (
        ("Su et al. 2021, section 3.4.3", "https://arxiv.org/abs/2104.09864"),
        ("Heo et al. 2024", "https://arxiv.org/abs/2403.13298"),
    ),
    _make,
    _obstacle,
)
