"""Mean attention distance of each head by depth: arXiv 2010.11929, figures 7 (right) and 11."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from vit_hub.pictures.attention import patch_distances
from vit_hub.pictures.drawing import INK, Array, Drawing, block_ticks
from vit_hub.pictures.kind import VIT, Kind
from vit_hub.pictures.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "attention_distance"]


def attention_distance(subject: Subject) -> Array:
    """Return the mean attention distance of each head in patches, mean of the images: [L, H].

    Raises:
        ValueError: there is no image, or the weights of attention may be negative.
    """
    found = [seen.distances for seen in subject.observations if seen.distances is not None]
    if not found:
        raise ValueError("no image, or attention with negative weights")
    mean: Array = np.mean(found, axis=0)
    return mean


def signed(subject: Subject) -> str:
    """Return why weights of attention are no shares; empty where they are."""
    return "differential attention has negative weights" if subject.config.differential else ""


def _make(subject: Subject) -> Drawing:
    distances = attention_distance(subject)
    grids = {seen.grid for seen in subject.observations}
    even = float(np.mean([float(patch_distances(grid).mean()) for grid in grids]))
    first, last = distances[0].mean(), distances[-1].mean()
    local = int((distances[0] < even / 2).sum())
    title = f"Heads in the first block look {first:.1f} patches far, in the last {last:.1f}"
    if local:
        title += f"; {local} of the first {distances.shape[1]} less than half as far as evenly spread attention"
    else:
        title += f"; evenly spread attention would give {even:.1f}"
    count = len(subject.views)
    note = f"Mean of {count} image{'s' * (count > 1)}."
    pixels = subject.config.pixels_per_patch
    return Drawing(title, 4.0, functools.partial(_draw, distances, even, pixels), note)


def _draw(distances: Array, even: float, pixels: tuple[int, int], figure: Figure) -> None:
    axes = figure.subplots()
    blocks = np.arange(1, len(distances) + 1)
    places = np.repeat(blocks, distances.shape[1])
    axes.axhline(even, color="0.55", linestyle="--", linewidth=1.2, label="attention spread evenly")
    axes.plot(blocks, distances.mean(axis=1), color=INK[1], linewidth=1.5, label="mean of the heads")
    axes.scatter(places, distances.ravel(), s=28, color=INK[0], alpha=0.75, linewidths=0, label="one head", zorder=3)
    axes.set_xlabel("block")
    axes.set_ylabel("mean attention distance in patches")
    axes.set_ylim(0, max(even, float(distances.max())) * 1.12)
    axes.set_xticks(block_ticks(len(blocks)))
    axes.legend(frameon=False, loc="lower right", ncols=3, bbox_to_anchor=(1, 1))
    if pixels[0] == pixels[1]:
        side = axes.secondary_yaxis(
            "right", functions=(lambda y: np.multiply(y, pixels[0]), lambda y: np.divide(y, pixels[0]))
        )
        side.set_ylabel("in pixels")


KIND = Kind(
    "distance",
    "mean attention distance of each head by depth",
    "The distance from a patch to all others, weighted by its attention to them (scaled to a sum of one over the "
    "patches), mean of all patches. Low values are heads that look around themselves, like small convolutions.",
    (("Dosovitskiy et al. 2020, figures 7 (right) and 11", VIT),),
    _make,
    signed,
    of_images=True,
)
