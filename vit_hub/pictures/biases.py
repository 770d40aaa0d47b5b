"""Relative position biases of attention's logits, by the offset of two patches."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from vit_hub.model.vit import VisionTransformer
from vit_hub.pictures.drawing import DIVERGING, WIDTH, Array, Drawing, colorbar, spread
from vit_hub.pictures.kind import ONE_PATCH, Kind
from vit_hub.pictures.subject import Subject, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "relative_biases"]

_MOST = 6  # blocks shown


@torch.no_grad()
def relative_biases(model: VisionTransformer) -> Array:
    """Return the biases of two patches by the offset of the key from the query, [L, H, 2 rows - 1, 2 columns - 1].

    L is 1 where all blocks share a table.

    Raises:
        ValueError: the model has no table of biases.
    """
    config = model.config
    tables = []
    if config.rel_pos == "shared":
        made = model.shared_rel_pos
        if made is not None:
            tables = [made(model.rel_pos_offsets)]
        elif model.rel_pos_bias is not None:
            tables = [model.rel_pos_bias()]
    elif config.rel_pos == "block":
        for block in model.blocks:
            network, table = block.attn.rel_pos, block.attn.relative_position_bias_table  # type: ignore[union-attr]
            tables.append(table if network is None else network(model.rel_pos_offsets))  # type: ignore[operator]
    if not tables:
        raise ValueError("the model has no table of relative biases")
    sides = [2 * side - 1 for side in config.grid_size]
    found = np.stack([array(table)[: config.num_relative_offsets] for table in tables])
    # A row of the table is the offset of the query from the key.
    return np.moveaxis(found, 2, 1).reshape(len(found), -1, *sides)[..., ::-1, ::-1]


def _obstacle(subject: Subject) -> str:
    if subject.config.rel_pos == "decomposed":
        return "relative positions are multiplied with the queries, so their bias is another one for each image"
    if subject.config.num_patches == 1:
        return ONE_PATCH
    return "" if subject.config.rel_pos != "none" else "the model has no relative position biases"


def _make(subject: Subject) -> Drawing:
    means = relative_biases(subject.model).mean(axis=1)
    rows, columns = (side // 2 for side in means.shape[-2:])
    y, x = np.indices(means.shape[-2:])
    apart = np.hypot(y - rows, x - columns)
    far = max(1, max(rows, columns) // 2)
    near, away = means[:, (apart > 0) & (apart < 2)].mean(), means[:, apart >= far].mean()
    word = "favour near patches" if near > away else "favour far patches" if near < away else "do not tell distances"
    title = f"Relative biases {word}: {near:+.2f} to the next ones, {away:+.2f} from {far} patches on"
    places = spread(len(means), _MOST)
    lines = -(-len(places) // 3)
    return Drawing(title, lines * WIDTH / 3.1, functools.partial(_draw, means, places))


def _draw(means: Array, places: list[int], figure: Figure) -> None:
    axes = figure.subplots(-(-len(places) // 3), min(len(places), 3), squeeze=False)
    largest = max(float(np.abs(means[places]).max()), 1e-12)
    rows, columns = (side // 2 for side in means.shape[-2:])
    shown = None
    for index, axis in enumerate(axes.flat):
        if index >= len(places):
            axis.set_axis_off()
            continue
        extent = (-columns - 0.5, columns + 0.5, rows + 0.5, -rows - 0.5)
        shown = axis.imshow(means[places[index]], cmap=DIVERGING, vmin=-largest, vmax=largest, extent=extent)
        axis.set_title(f"block {places[index] + 1}" if len(means) > 1 else "all blocks")
        axis.set_xlabel("columns to the right")
    axes[0, 0].set_ylabel("rows below")
    colorbar(figure, shown, figure.axes, "bias, mean of the heads")


KIND = Kind(
    "relative",
    "relative position biases by offset",
    "The bias that is added to the logit of a query and a key, by the offset of the key from the query in patches, "
    "mean of the heads.",
    (("Bao et al. 2021, BEiT", "https://arxiv.org/abs/2106.08254"),),
    _make,
    _obstacle,
)
