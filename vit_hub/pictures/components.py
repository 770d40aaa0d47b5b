"""Principal components of patch tokens as colours: arXiv 2304.07193, figure 1."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vit_hub.pictures.drawing import DIVERGING, WIDTH, Array, Drawing, bare, photo, short
from vit_hub.pictures.kind import Kind
from vit_hub.pictures.principal import principal_components
from vit_hub.pictures.subject import Subject, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "TokenComponents", "as_colours", "token_components"]

_COMPONENTS = 3
_TAILS = (1, 99)  # percentiles that become 0 and 1


@dataclass(frozen=True)
class TokenComponents:
    """Principal components of the patch tokens of several images, in one basis.

    Attributes:
        values: of each image, [N, K], around the mean of all.
        basis: [K, D], of length one.
        shares: of the variance of all tokens, [K].
    """

    values: list[Array]
    basis: Array
    shares: Array


def token_components(tokens: Sequence[Array], count: int = _COMPONENTS) -> TokenComponents:
    """Return the first principal components of tokens, in float64; their signs make the largest weight positive.

    Args:
        tokens: of each image, [N, D].
        count: K, as many as there are if these are fewer.
    """
    together = np.concatenate(tokens).astype(np.float64)
    mean, components, shares = principal_components(together)
    basis = components[:count]
    return TokenComponents([(each - mean) @ basis.T for each in tokens], basis, shares[:count])


def as_colours(values: Sequence[Array]) -> list[Array]:
    """Return three components of each image [N, 3] as red, green and blue, 0 to 1, on one scale for all images."""
    low, high = np.percentile(np.concatenate(values), _TAILS, axis=0)
    return [np.clip((each - low) / np.maximum(high - low, 1e-12), 0, 1) for each in values]


def _obstacle(subject: Subject) -> str:
    count = min(subject.config.embed_dim, subject.patches)
    return f"there are fewer than three components: {count}" if subject.views and count < _COMPONENTS else ""


def _make(subject: Subject) -> Drawing:
    seen = subject.observations
    found = token_components([each.features for each in seen])
    # Components of the frames of a video are averaged to one map.
    maps = [each.on_grid(values.T) for each, values in zip(seen, found.values, strict=True)]
    colours = as_colours([each.reshape(_COMPONENTS, -1).T for each in maps])
    pictures = [
        np.moveaxis(colour.T.reshape(_COMPONENTS, *each.grid), 0, -1)
        for each, colour in zip(seen, colours, strict=True)
    ]
    images = "of one image" if len(seen) == 1 else f"of {len(seen)} images, in one basis"
    title = (
        f"Three principal components hold {found.shares.sum():.0%} of the variance of the patch tokens {images}; "
        f"the first {found.shares[0]:.0%}"
    )
    height = sum(WIDTH / (2 + _COMPONENTS) * min(view.aspect, 1.5) + 0.1 for view in subject.views)
    draw = functools.partial(_draw, subject.views, pictures, maps, found.shares)
    return Drawing(title, height + 0.35, draw)


def _draw(
    views: Sequence[View], pictures: Sequence[Array], maps: Sequence[Array], shares: Array, figure: Figure
) -> None:
    axes = figure.subplots(len(views), 2 + _COMPONENTS, squeeze=False)
    scale = [max(float(np.abs(each[index]).max()) for each in maps) for index in range(_COMPONENTS)]
    for line, view, colours, values in zip(axes, views, pictures, maps, strict=True):
        photo(line[0], view.pixels, short(view.name, 18))
        line[1].imshow(colours)
        bare(line[1])
        for index, place in enumerate(line[2:]):
            limit = max(scale[index], 1e-12)
            place.imshow(values[index], cmap=DIVERGING, vmin=-limit, vmax=limit)
            bare(place)
    axes[0, 1].set_title("as red, green, blue")
    for index in range(_COMPONENTS):
        axes[0, 2 + index].set_title(f"component {index + 1}: {shares[index]:.0%}")


KIND = Kind(
    "pca",
    "principal components of the patch tokens as colours",
    "The first three principal components of the tokens after the last block and its norm, of all images together, as "
    "red, green and blue, and each alone: blue negative, red positive. Like colours are like tokens, also between "
    "images. Unlike DINOv2's picture, the background is not removed.",
    (("Oquab et al. 2023, DINOv2, figure 1", "https://arxiv.org/abs/2304.07193"),),
    _make,
    _obstacle,
    of_images=True,
)
