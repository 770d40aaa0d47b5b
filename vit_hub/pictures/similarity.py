"""Similarity of the blocks of one model or of two: centred kernel alignment, arXiv 1905.00414."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vit_hub.pictures.drawing import SEQUENTIAL, Array, Drawing, colorbar, mean_text, short
from vit_hub.pictures.kind import Kind
from vit_hub.pictures.subject import Observation, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "block_similarity", "cka"]

_SAMPLES = 1024  # patches that are compared at most
_FEWEST = 4  # that the estimator needs


def cka(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """Return linear CKA of each two representations of the same samples, [len(first), len(second)], in float64.

    It is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (arXiv 1905.00414) with K = X X' and the unbiased estimator of
    HSIC (arXiv 2010.15327), which few samples of many values do not drive towards one.

    Args:
        first: representations of n samples, each [n, some width].
        second: others of the same samples, in the same order.

    Raises:
        ValueError: there are fewer than four samples, or not the same number in all.
    """
    counts = {len(each) for each in (*first, *second)}
    if len(counts) != 1 or min(counts) < _FEWEST:
        raise ValueError(f"representations need the same samples, at least {_FEWEST}, not {sorted(counts)}")
    left, right = (torch.stack([_centred(each) for each in side]) for side in (first, second))
    found: Array = (left @ right.T).numpy()
    return found


def _centred(values: Array) -> Tensor:
    """The products of each two samples [n, n] without the diagonal, centred without bias, as one vector of length one.

    The product of two such vectors is the quotient of the three estimates.
    """
    x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    x = x - x.mean(dim=0)  # changes nothing but the size of the numbers
    gram = x @ x.T
    gram.fill_diagonal_(0)
    n = len(gram)
    sums = gram.sum(dim=1)
    gram -= (sums[:, None] + sums) / (n - 2)
    gram += sums.sum() / ((n - 1) * (n - 2))
    gram.fill_diagonal_(0)
    found: Tensor = gram.flatten() / gram.norm().clamp_min(torch.finfo(gram.dtype).tiny)
    return found


def block_similarity(subject: Subject) -> Array:
    """Return CKA of the patch tokens after each block and after each of the other model, or of the same one: [L, L'].

    Samples are the patches of all images, at most 1024, evenly spread. Where the grids differ, tokens are averaged over
    the patches of the smaller one.

    Raises:
        ValueError: there are fewer than four patches.
    """
    other = subject.other or subject
    pairs = list(zip(subject.observations, other.observations, strict=True))
    grids = [(min(a.grid[0], b.grid[0]), min(a.grid[1], b.grid[1])) for a, b in pairs]
    sides = [
        [_on(each, grid) for each, grid in zip(side, grids, strict=True)]
        for side in ([a for a, _ in pairs], [b for _, b in pairs])
    ]
    first, second = (np.concatenate(side, axis=1) for side in sides)
    count = first.shape[1]
    chosen = np.linspace(0, count - 1, min(count, _SAMPLES)).round().astype(np.intp)
    return cka(list(first[:, chosen]), list(second[:, chosen]))


def _on(seen: Observation, grid: tuple[int, int]) -> Array:
    """Tokens after each block, averaged over the patches of a grid: [L, rows * columns, D]."""
    maps = torch.from_numpy(seen.on_grid(np.moveaxis(seen.tokens, 2, 1)))  # [L, D, rows, columns]
    averaged = torch.nn.functional.adaptive_avg_pool2d(maps, grid)
    return np.asarray(averaged.flatten(2).transpose(1, 2).numpy())


def _obstacle(subject: Subject) -> str:
    both = [each for each in (subject, subject.other) if each is not None]
    fewest = min(each.patches for each in both)
    return f"{fewest} patches are too few to compare" if subject.views and fewest < _FEWEST else ""


def _make(subject: Subject) -> Drawing:
    values = block_similarity(subject)
    names = subject.name, (subject.other or subject).name
    patches = sum(seen.grid[0] * seen.grid[1] for seen in subject.observations)
    note = f"From {min(patches, _SAMPLES)} patches of {len(subject.views)} image{'s' * (len(subject.views) > 1)}."
    height = min(max(3.2, 6.0 * values.shape[0] / values.shape[1]), 7.0)
    return Drawing(_title(values, subject.other is not None), height, functools.partial(_draw, values, names), note)


def _title(values: Array, several: bool) -> str:
    if several and values.shape[0] == values.shape[1]:
        own = np.diagonal(values)
        if own.min() > 1 - 1e-4:
            return f"Representations are the same up to rotation and scale: CKA is {own.min():.4f} at every depth"
        best = int((values.argmax(axis=1) == np.arange(len(values))).sum())
        return (
            f"CKA of blocks of the same depth is {mean_text(own.tolist(), '{:.2f}')}; {best} of {len(own)} blocks "
            "resemble the one of their own depth most"
        )
    if several:
        return f"Blocks of the two models resemble each other to at most {values.max():.2f}"
    if len(values) == 1:
        return "The model has one block, which is like itself"
    steps = np.diagonal(values, 1)
    sharpest = int(steps.argmin())
    return (
        f"First and last block are alike to {values[0, -1]:.2f}; representations change most from block "
        f"{sharpest + 1} to {sharpest + 2} ({steps[sharpest]:.2f})"
    )


def _draw(values: Array, names: tuple[str, str], figure: Figure) -> None:
    axes = figure.subplots()
    shown = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, origin="lower")
    for axis, count, name in ((axes.yaxis, values.shape[0], names[0]), (axes.xaxis, values.shape[1], names[1])):
        places = np.arange(0, count, max(1, count // 12))
        axis.set_ticks(places, [str(place + 1) for place in places])
        axis.set_label_text(f"block of {short(name, 44)}")
    axes.tick_params(length=0)
    if max(values.shape) <= 12:
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5,
                      color="white" if value < 0.6 else "black")  # fmt: skip
    for spine in axes.spines.values():
        spine.set_visible(False)
    colorbar(figure, shown, axes, "linear CKA")


KIND = Kind(
    "cka",
    "similarity of the blocks of one model or two (CKA)",
    "Linear centred kernel alignment of the patch tokens after each two blocks, HSIC(K, L) / sqrt(HSIC(K, K) "
    "HSIC(L, L)) by its unbiased estimator: 1 for representations that are equal up to rotation and scale, about 0 for "
    "unrelated ones.",
    (
        ("Kornblith et al. 2019", "https://arxiv.org/abs/1905.00414"),
        ("Nguyen et al. 2020", "https://arxiv.org/abs/2010.15327"),
        ("Raghu et al. 2021", "https://arxiv.org/abs/2108.08810"),
    ),
    _make,
    _obstacle,
    of_images=True,
)
