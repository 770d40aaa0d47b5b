"""Attention of each head to the image where the output is read: arXiv 2104.14294, figures 1 and 3."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_hub.pictures.distance import signed
from vit_hub.pictures.drawing import WIDTH, Array, Drawing, overlay, photo, short
from vit_hub.pictures.kind import Kind
from vit_hub.pictures.subject import Subject, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "breadth", "head_maps"]

_COLUMNS = (4, 7)  # fewest and most


def head_maps(subject: Subject) -> list[Array]:
    """Return the attention of each head to the patches of each image, [H, rows, columns] scaled to a sum of one.

    It is that of the class token in the last block, or of the query of a pooling by attention.

    Raises:
        ValueError: the model has neither.
    """
    found = []
    for seen in subject.observations:
        if seen.reader is None:
            raise ValueError("no token or query reads the patches")
        maps = seen.on_grid(seen.reader)
        total = maps.sum(axis=(1, 2), keepdims=True)
        found.append(maps / np.maximum(total, np.finfo(maps.dtype).tiny))
    return found


def breadth(maps: Array) -> Array:
    """Return the share of patches that each map [H, rows, columns] covers: exp(entropy) over their number, [H]."""
    flat = maps.reshape(len(maps), -1)
    logarithms = np.log(flat, out=np.zeros_like(flat), where=flat > 0)
    found: Array = np.exp(-(flat * logarithms).sum(axis=1)) / flat.shape[1]
    return found


def _obstacle(subject: Subject) -> str:
    if subject.config.class_token or subject.model.attn_pool is not None:
        return signed(subject)
    return "neither a class token nor a pooling by attention reads the patches"


def _make(subject: Subject) -> Drawing:
    maps = head_maps(subject)
    covered = np.mean([breadth(each) for each in maps], axis=0)
    narrow, wide = int(covered.argmin()), int(covered.argmax())
    what = "class token" if subject.config.class_token else "pooling query"
    title = (
        f"The {len(covered)} heads of the {what} cover {covered[narrow]:.0%} (head {narrow + 1}) to "
        f"{covered[wide]:.0%} (head {wide + 1}) of the image"
        if len(covered) > 1
        else f"The one head of the {what} covers {covered[0]:.0%} of the image"
    )
    columns = _columns(len(covered))
    lines = -(-(len(covered) + 1) // columns)
    heights = [view.aspect for view in subject.views]
    height = sum(lines * (WIDTH / columns * min(high, 1.5) + 0.2) for high in heights)
    return Drawing(title, height, functools.partial(_draw, subject.views, maps, subject.config.pixels_per_patch))


def _columns(heads: int) -> int:
    """How many pictures are side by side: two lines are enough for most models."""
    return min(max(-(-(heads + 1) // 2), _COLUMNS[0]), _COLUMNS[1])


def _draw(views: Sequence[View], maps: Sequence[Array], patch: tuple[int, int], figure: Figure) -> None:
    columns = _columns(len(maps[0]))
    lines = -(-(len(maps[0]) + 1) // columns)
    axes = figure.subplots(lines * len(views), columns, squeeze=False)
    for index, (view, heads) in enumerate(zip(views, maps, strict=True)):
        places = axes[index * lines : (index + 1) * lines].flat
        photo(places[0], view.pixels, short(view.name, 72 // columns))
        shares = breadth(heads)
        for number, place in enumerate(list(places)[1:]):
            if number < len(heads):
                overlay(place, view.pixels, heads[number], patch, f"head {number + 1}: {shares[number]:.0%}")
            else:
                place.set_axis_off()


KIND = Kind(
    "heads",
    "attention of each head to the image",
    "Attention of the class token to the patches in the last block, or of the query that pools them. The percentage is "
    "the share of patches that a map covers, exp(entropy) over their number. Maps are brightest from their 99th "
    "percentile on.",
    (("Caron et al. 2021, DINO, figures 1 and 3", "https://arxiv.org/abs/2104.14294"),),
    _make,
    _obstacle,
    of_images=True,
)
