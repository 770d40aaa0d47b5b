"""Attention rollout from the output to the image: arXiv 2010.11929, figures 6 and 14; arXiv 2005.00928."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_hub.pictures.distance import signed
from vit_hub.pictures.drawing import WIDTH, Array, Drawing, mean_text, overlay, photo, short
from vit_hub.pictures.kind import VIT, Kind
from vit_hub.pictures.subject import Observation, Subject, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "image_rollout", "share_of_half"]

_PAIRS = 2  # of an image and its map, side by side


def image_rollout(subject: Subject, seen: Observation) -> Array:
    """Return how much of the output comes from each patch by attention rollout, [rows, columns].

    It is the row of the class token where the model pools it; with a pooling by attention the rows of the patches,
    weighted by that; else their mean.

    Raises:
        ValueError: the weights of attention may be negative.
    """
    if seen.rollout is None:
        raise ValueError("attention has negative weights")
    config, tokens = subject.config, len(seen.rollout)
    inner = slice(config.num_prefix_tokens, tokens - config.num_detection_tokens)
    rows = seen.rollout[:, inner]
    if by_attention(subject) and seen.reader is not None:
        heads = seen.reader.mean(axis=0)
        return seen.on_grid(heads / heads.sum() @ rows[inner])
    return seen.on_grid(rows[0] if _by_class_token(subject) else rows[inner].mean(axis=0))


def by_attention(subject: Subject) -> bool:
    """Return whether the query of a pooling by attention is what reads the patches."""
    return subject.model.attn_pool is not None and not subject.config.class_token


def _by_class_token(subject: Subject) -> bool:
    return subject.config.class_token and subject.config.pool in ("cls", "cls_dist", "none")


def share_of_half(values: Array) -> float:
    """Return the smallest share of patches that holds half of a sum."""
    ordered = np.sort(values.ravel())[::-1].cumsum()
    return float((np.searchsorted(ordered, ordered[-1] / 2) + 1) / len(ordered))


def _make(subject: Subject) -> Drawing:
    maps = [image_rollout(subject, seen) for seen in subject.observations]
    shares = [share_of_half(values) for values in maps]
    what = "the class token" if _by_class_token(subject) else "the output"
    title = f"Half of what attention brings to {what} comes from {mean_text(shares)} of the image"
    reads = "the query of the pooling" if by_attention(subject) else "the mean of the patches"
    note = "" if _by_class_token(subject) else f"The model pools without a class token: followed is {reads}."
    high = max(view.aspect for view in subject.views)
    across = min(len(maps), _PAIRS)
    height = -(-len(maps) // across) * (WIDTH / (2 * across) * min(high, 1.5) + 0.2)
    patch = subject.config.pixels_per_patch
    return Drawing(title, height, functools.partial(_draw, subject.views, maps, shares, patch), note)


def _draw(
    views: Sequence[View], maps: Sequence[Array], shares: Sequence[float], patch: tuple[int, int], figure: Figure
) -> None:
    across = min(len(views), _PAIRS)
    axes = figure.subplots(-(-len(views) // across), 2 * across, squeeze=False).flat
    for view, values, share in zip(views, maps, shares, strict=True):
        photo(next(axes), view.pixels, short(view.name, 40 // across))
        overlay(next(axes), view.pixels, values, patch, f"half from {share:.0%}")
    for place in axes:
        place.set_axis_off()


KIND = Kind(
    "rollout",
    "attention rollout over the image",
    "R = A_L ... A_1 with A_l = (mean of the heads + identity) / 2: the share of each patch in the output, if only "
    "attention and the residual connections moved information. Maps are brightest from their 99th percentile on.",
    (("Abnar and Zuidema 2020", "https://arxiv.org/abs/2005.00928"), ("Dosovitskiy et al. 2020, figure 6", VIT)),
    _make,
    signed,
    of_images=True,
)
