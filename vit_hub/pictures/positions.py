"""Cosine similarity of the position table's rows: arXiv 2010.11929, figure 7 in the middle."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from vit_hub.model.config import ViTConfig
from vit_hub.model.resize import resize_table
from vit_hub.model.vit import VisionTransformer
from vit_hub.pictures.drawing import DIVERGING, WIDTH, Array, Drawing, bare, colorbar, spread
from vit_hub.pictures.kind import ONE_PATCH, VIT, Kind
from vit_hub.pictures.subject import Subject, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "by_distance", "position_similarity", "position_table", "small_maps"]

_CELLS = 5  # of an axis of the picture


def position_table(model: VisionTransformer, grid: tuple[int, int] | None = None) -> Array:
    """Return the positions that are added to the patches of one frame, [N, D] float64.

    Args:
        model: with a position table.
        grid: (rows, columns) of another size that the table is resized to; None: the model's own.

    Raises:
        ValueError: nothing is added to its patches.
    """
    config = model.config
    grid = grid or config.grid_size
    if model.pos_embed is not None:
        table = array(resize_table("pos_embed", model.pos_embed, config, grid, model.resize))[0]
        rows = table[config.num_prefix_rows : len(table) - config.num_detection_tokens]
    elif model.pos_embed_y is not None and model.pos_embed_x is not None:
        down, across = (
            array(resize_table(name, part, config, grid, model.resize))[0]
            for name, part in (("pos_embed_y", model.pos_embed_y), ("pos_embed_x", model.pos_embed_x))
        )
        rows = (down[:, None] + across[None]).reshape(-1, down.shape[-1])
    elif model.pos_table is not None:
        rows = array(model.pos_table)[0]
    else:
        raise ValueError("nothing is added to the patches")
    found: Array = rows[: grid[0] * grid[1]].astype(np.float64)
    return found


def position_similarity(table: Array, grid: tuple[int, int]) -> Array:
    """Return the cosine similarity of each two rows of a table [N, D]: [rows, columns, rows, columns]."""
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    units = table / np.maximum(lengths, np.finfo(table.dtype).tiny)
    return (units @ units.T).reshape(*grid, *grid)  # type: ignore[no-any-return]


def by_distance(similarity: Array) -> Array:
    """Return the mean of a similarity [rows, columns, rows, columns] over pairs of patches that are 0, 1, 2, ... apart.

    Euclidean distances are rounded to whole patches.
    """
    rows, columns = similarity.shape[:2]
    y, x = np.divmod(np.arange(rows * columns), columns)
    apart = np.rint(np.hypot(y[:, None] - y, x[:, None] - x)).astype(np.intp).ravel()
    counts = np.bincount(apart)
    found: Array = np.bincount(apart, similarity.ravel()) / np.maximum(counts, 1)
    return found


def near_and_far(similarity: Array) -> tuple[float, float, int]:
    """Return the mean similarity one patch away, that about half of the grid away, and how many patches these are."""
    means = by_distance(similarity)
    half = min(len(means) - 1, max(2, max(similarity.shape[:2]) // 2))
    return float(means[1]), float(means[half]), half


def small_maps(figure: Figure, similarity: Array, places: tuple[list[int], list[int]], numbered: bool = True) -> object:
    """Draw the similarity of some patches to all others, one small map each, and return what a scale is made of.

    Args:
        figure: or a part of one.
        similarity: [rows, columns, rows, columns].
        places: the rows and the columns of the patches.
        numbered: with the numbers of rows and columns.
    """
    axes = figure.subplots(len(places[0]), len(places[1]), squeeze=False)
    shown: object = None
    for line, row in zip(axes, places[0], strict=True):
        for place, column in zip(line, places[1], strict=True):
            shown = place.imshow(similarity[row, column], cmap=DIVERGING, vmin=-1, vmax=1)
            size = 7 if max(similarity.shape) <= 16 else 4
            place.plot(
                column, row, "s", markersize=size, markerfacecolor="none", markeredgecolor="black", clip_on=False
            )
            bare(place)
            if numbered and row == places[0][-1]:
                place.set_xlabel(f"column {column + 1}")
            if numbered and column == places[1][0]:
                place.set_ylabel(f"row {row + 1}")
    return shown


def _obstacle(subject: Subject) -> str:
    config = subject.config
    if config.pos_embed != "none":
        return ONE_PATCH if config.num_patches == 1 else ""
    others = [name for name, there in (("rotary", config.rope), ("relative", config.rel_pos != "none")) if there]
    return f"nothing is added to the patches; positions are {' and '.join(others) or 'not known to the model'}"


def title_of(similarity: Array, what: str) -> str:
    """Return a sentence on how a similarity [rows, columns, rows, columns] falls with the distance."""
    near, far, half = near_and_far(similarity)
    numbers = f"cosine similarity is {near:.2f} one patch away, {far:.2f} at {half} patches"
    if near - far > 0.02:
        return f"{what} of patches near each other are alike: {numbers}"
    return f"{what} do not tell near from far: {numbers}"


def _kind_of(config: ViTConfig) -> str:
    names = {"learned": "Learned positions", "factorized": "Learned positions, by row and column"}
    return names.get(config.pos_embed, "Sine and cosine positions")


def _make(subject: Subject) -> Drawing:
    grid = subject.config.grid_size
    similarity = position_similarity(position_table(subject.model), grid)
    places = spread(grid[0], _CELLS), spread(grid[1], _CELLS)
    side = (WIDTH - 1) / len(places[1])
    note = f"The table has {grid[0]}x{grid[1]} patches, of which {len(places[0])}x{len(places[1])} are shown."
    height = len(places[0]) * side * grid[0] / grid[1]
    return Drawing(
        title_of(similarity, _kind_of(subject.config)), height, functools.partial(_draw, similarity, places), note
    )


def _draw(similarity: Array, places: tuple[list[int], list[int]], figure: Figure) -> None:
    shown = small_maps(figure, similarity, places)
    colorbar(figure, shown, figure.axes, "cosine similarity")


KIND = Kind(
    "positions",
    "cosine similarity of the position table",
    "Each small map is one patch, marked by a square, and shows how alike its row of the position table is to the row "
    "of every other patch: cos(p_i, p_j) = p_i . p_j / (|p_i| |p_j|).",
    (("Dosovitskiy et al. 2020, figure 7, centre", VIT),),
    _make,
    _obstacle,
)
