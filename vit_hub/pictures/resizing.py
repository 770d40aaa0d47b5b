"""Position tables at other image sizes: what resizing does to their similarities."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_hub.model.vit import VisionTransformer
from vit_hub.pictures.drawing import WIDTH, Array, Drawing, spread
from vit_hub.pictures.kind import ONE_PATCH, Kind
from vit_hub.pictures.positions import position_similarity, position_table, small_maps
from vit_hub.pictures.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "ResizedTable", "draw_resized", "neighbours_nearest", "resized_tables"]

_SIZES = (0.75, 1.0, 1.5)  # of the model's own grid
_CELLS = 3  # of an axis, at each size
_SCALE = 0.32  # width of the scale beside a table of width 1


@dataclass(frozen=True)
class ResizedTable:
    """The similarities of a position table at one size.

    Attributes:
        image_size: (height, width) in pixels.
        similarity: of each two rows, [rows, columns, rows, columns].
        stored: it is the size that the table is stored for.
    """

    image_size: tuple[int, int]
    similarity: Array
    stored: bool


def resized_tables(model: VisionTransformer, grids: Sequence[tuple[int, int]]) -> list[ResizedTable]:
    """Return the similarities of a model's position table at other sizes, resized as the model resizes it.

    Args:
        model: with a learned position table.
        grids: (rows, columns) of patches of each size.
    """
    unit, own = model.config.pixels_per_patch, model.config.grid_size
    return [
        ResizedTable(
            model.config.image_size if grid == own else (grid[0] * unit[0], grid[1] * unit[1]),
            position_similarity(position_table(model, grid), grid),
            grid == own,
        )
        for grid in grids
    ]


def neighbours_nearest(similarity: Array) -> float:
    """Return the share of patches to which one of the eight around them is the most similar other one.

    Args:
        similarity: [rows, columns, rows, columns].
    """
    rows, columns = similarity.shape[:2]
    count = rows * columns
    others = similarity.reshape(count, count).copy()
    np.fill_diagonal(others, -np.inf)
    (y, x), (v, u) = np.divmod(np.arange(count), columns), np.divmod(others.argmax(axis=1), columns)
    return float((np.maximum(abs(y - v), abs(x - u)) == 1).mean())


def title_of(tables: Sequence[ResizedTable]) -> str:
    """Return a sentence on whether neighbours stay the nearest."""
    shares = [neighbours_nearest(table.similarity) for table in tables]
    texts = [
        f"{share:.0%} at {table.image_size[0]}x{table.image_size[1]}{' (stored)' * table.stored}"
        for share, table in zip(shares, tables, strict=True)
    ]
    stored = max(share for share, table in zip(shares, tables, strict=True) if table.stored)
    stays = "stay" if min(shares) > stored / 2 else "do not stay"
    return f"Patches {stays} most similar to a neighbour when the table is resized: {', '.join(texts)} pixels"


def draw_resized(tables: Sequence[ResizedTable], figure: Figure) -> None:
    """Draw a few small maps of each size, side by side."""
    made: Any = figure.subfigures(1, len(tables) + 1, wspace=0.06, width_ratios=[*[1.0] * len(tables), _SCALE])
    *parts, scale = made
    shown: object = None
    for part, table in zip(parts, tables, strict=True):
        rows, columns = table.similarity.shape[:2]
        shown = small_maps(part, table.similarity, (spread(rows, _CELLS), spread(columns, _CELLS)), numbered=False)
        how = "as stored" if table.stored else "resized"
        size = f"{table.image_size[0]}x{table.image_size[1]} pixels"
        part.suptitle(f"{size}\n{rows}x{columns} patches, {how}", fontsize=10)
    bar = scale.colorbar(shown, cax=scale.add_axes((0.05, 0.08, 0.14, 0.7)), ticks=(-1, -0.5, 0, 0.5, 1))
    bar.set_label("cosine similarity")
    bar.outline.set_visible(False)


def _obstacle(subject: Subject) -> str:
    if subject.config.pos_embed in ("learned", "factorized"):
        return ONE_PATCH if subject.config.num_patches == 1 else ""
    return "no table is resized: positions are computed for each size, or there are none"


def grids_of(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the grids that are shown: a smaller one, the stored one and a larger one."""
    found = [(max(1, round(grid[0] * size)), max(1, round(grid[1] * size))) for size in _SIZES]
    return list(dict.fromkeys(found))


def _make(subject: Subject) -> Drawing:
    tables = resized_tables(subject.model, grids_of(subject.config.grid_size))
    method = subject.config.resize if subject.model.resize == "source" else subject.model.resize
    rows, columns = subject.config.grid_size
    height = WIDTH / (len(tables) + _SCALE) * 0.98 * rows / columns + 0.45
    return Drawing(title_of(tables), height, functools.partial(draw_resized, tables), f"The method is {method}.")


KIND = Kind(
    "resize",
    "what resizing does to the position table",
    "Small maps as of the position table, of nine patches from corner to corner: the table as it is stored, and "
    "resized for a smaller and a larger image.",
    (),
    _make,
    _obstacle,
)
