"""Principal components of the patch filters: arXiv 2010.11929, figure 7 on the left."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vit_hub.model.vit import VisionTransformer
from vit_hub.pictures.drawing import DIVERGING, WIDTH, Array, Drawing, bare
from vit_hub.pictures.kind import VIT, Kind
from vit_hub.pictures.principal import principal_components
from vit_hub.pictures.subject import Subject, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "FilterComponents", "filter_components"]

_MOST = 28  # as in the paper
_COLUMNS = 7
_LARGE_PART = 0.9


@dataclass(frozen=True)
class FilterComponents:
    """Principal components of the patch filters.

    Attributes:
        components: of length one, largest value positive, [K, C, p, q], with K the lesser of filters and values; frames
            of patches of videos are side by side.
        shares: of the filters' variance, [K], largest first.
        filters: number of filters.
    """

    components: Array
    shares: Array
    filters: int


def filter_components(model: VisionTransformer) -> FilterComponents:
    """Return the principal components of the rows of E in eq. 1 of arXiv 2010.11929, around their mean, in float64."""
    kernel = array(model.patch_embed.proj.weight).astype(np.float64)
    if kernel.ndim == 5:  # [D, C, t, p, q]
        kernel = np.moveaxis(kernel, 2, 3).reshape(*kernel.shape[:2], kernel.shape[3], -1)
    rows = kernel.reshape(len(kernel), -1)
    _, components, shares = principal_components(rows)
    return FilterComponents(components.reshape(-1, *kernel.shape[1:]), shares, len(rows))


def _obstacle(subject: Subject) -> str:
    config = subject.config
    if config.stem != "patch":
        return f"the patch embedding reads feature maps of a {config.stem} stem, not pixels"
    return "" if config.in_chans in (1, 3) else f"filters of {config.in_chans} channels have no colours"


def _make(subject: Subject) -> Drawing:
    found = filter_components(subject.model)
    needed = int(np.searchsorted(found.shares.cumsum(), _LARGE_PART)) + 1
    shown = min(_MOST, len(found.components))
    rows = -(-shown // _COLUMNS)
    values = found.components[0].size
    title = (
        f"{needed} of {len(found.shares)} components hold {_LARGE_PART:.0%} of the variance of the {found.filters} "
        f"patch filters, the first alone {found.shares[0]:.0%}"
    )
    note = f"A filter has {values} values; the number is a component's share of the variance."
    high, wide = found.components.shape[-2:]
    return Drawing(title, rows * (WIDTH / _COLUMNS * high / wide + 0.22), functools.partial(_draw, found, shown), note)


def _draw(found: FilterComponents, shown: int, figure: Figure) -> None:
    rows = -(-shown // _COLUMNS)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for index, place in enumerate(axes):
        if index >= shown:
            place.set_axis_off()
            continue
        component = found.components[index]
        largest = np.abs(component).max()
        if len(component) == 1:
            place.imshow(component[0], cmap=DIVERGING, vmin=-largest, vmax=largest)
        else:
            place.imshow(np.moveaxis(0.5 + component / (2 * largest), 0, -1))
        bare(place, f"{index + 1}: {found.shares[index]:.1%}")


KIND = Kind(
    "filters",
    "principal components of the patch filters",
    "Principal components of the rows of the patch embedding, centred on grey. In many trained models patterns of low "
    "frequency come first; an untrained one has noise.",
    (("Dosovitskiy et al. 2020, figure 7, left", VIT),),
    _make,
    _obstacle,
)
