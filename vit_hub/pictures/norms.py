"""Lengths of the tokens: arXiv 2309.16588, figures 2 and 3."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_hub.pictures.drawing import INK, SEQUENTIAL, WIDTH, Array, Drawing, bare, block_ticks, colorbar, photo, short
from vit_hub.pictures.kind import Kind
from vit_hub.pictures.subject import Subject, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "outliers"]

_TIMES = 3  # the median of the patches, from which on a token stands out


def outliers(norms: Array) -> Array:
    """Return which tokens are more than three times as long as the median, of the same shape."""
    return norms > _TIMES * np.median(norms)  # type: ignore[no-any-return]


def _make(subject: Subject) -> Drawing:
    config, seen = subject.config, subject.observations
    prefix = config.num_prefix_tokens
    inner = [each.norms[:, prefix : each.norms.shape[1] - config.num_detection_tokens] for each in seen]
    last = np.concatenate([norms[-1] for norms in inner])
    found = int(sum(outliers(norms[-1]).sum() for norms in inner))
    ratio = max(float(norms[-1].max() / max(np.median(norms[-1]), 1e-12)) for norms in inner)
    if found:
        title = (
            f"{found} of {len(last)} patch tokens ({found / len(last):.1%}) are more than {_TIMES} times as long as "
            f"the median, up to {ratio:.1f} times: they may be artefacts that registers take up"
        )
    else:
        title = f"No patch token stands out: the longest is {ratio:.1f} times as long as the median"
    names = ["class token"] * config.class_token + ["distillation token"] * config.distilled
    others = {name: np.mean([each.norms[:, index] for each in seen], axis=0) for index, name in enumerate(names)}
    if config.num_registers:
        registers = slice(prefix - config.num_registers, prefix)
        others["registers, mean"] = np.mean([each.norms[:, registers].mean(axis=1) for each in seen], axis=0)
    maps = [each.on_grid(norms[-1]) for each, norms in zip(seen, inner, strict=True)]
    patches = np.concatenate(inner, axis=1)
    columns = min(len(maps), 3)
    lines = -(-len(maps) // columns)
    high = max(view.aspect for view in subject.views)
    height = 2.9 + lines * (WIDTH / (2 * columns) * min(high, 1.5) * 0.85 + 0.35)
    return Drawing(title, height, functools.partial(_draw, subject.views, maps, patches, others, columns))


def _draw(
    views: Sequence[View],
    maps: Sequence[Array],
    patches: Array,
    others: dict[str, Array],
    columns: int,
    figure: Figure,
) -> None:
    from matplotlib.ticker import LogLocator

    lines = -(-len(maps) // columns)
    height = figure.get_figheight()
    parts: Any = figure.subfigures(2, 1, height_ratios=(height - 2.9, 2.9))
    upper, lower = parts
    axes = upper.subplots(lines, 2 * columns, squeeze=False)
    pairs = [(line[2 * index], line[2 * index + 1]) for line in axes for index in range(columns)]
    low, high = min(each.min() for each in maps), max(each.max() for each in maps)
    shown = None
    for index, (left, right) in enumerate(pairs):
        if index >= len(maps):
            left.set_axis_off()
            right.set_axis_off()
            continue
        photo(left, views[index].pixels, short(views[index].name, 60 // (2 * columns)))
        shown = right.imshow(maps[index], cmap=SEQUENTIAL, vmin=low, vmax=high)
        bare(right, "last block")
    colorbar(upper, shown, axes, "length of the token")
    place = lower.subplots()
    blocks = np.arange(1, len(patches) + 1)
    tails = np.percentile(patches, (0, 5, 50, 95, 100), axis=1)
    place.fill_between(blocks, tails[0], tails[4], color=INK[0], alpha=0.15, linewidth=0, label="patches, all")
    place.fill_between(blocks, tails[1], tails[3], color=INK[0], alpha=0.35, linewidth=0, label="patches, 5 to 95 %")
    place.plot(blocks, tails[2], color=INK[0], label="patches, median")
    for colour, style, (name, values) in zip(INK[1:], ("--", ":", "-."), others.items(), strict=False):
        place.plot(blocks, values, style, color=colour, label=name)
    place.set_yscale("log")
    place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.yaxis.set_major_formatter("{x:g}")
    place.yaxis.set_minor_formatter("")
    place.set_xlabel("block")
    place.set_ylabel("length of the tokens after it")
    place.set_xticks(block_ticks(len(blocks)))
    place.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


KIND = Kind(
    "norms",
    "lengths of the tokens",
    "Euclidean length of the tokens after each block, before the final norm. Large models without registers store "
    "global information in a few patches of the background, which then are far longer than the others.",
    (("Darcet et al. 2023, registers", "https://arxiv.org/abs/2309.16588"),),
    _make,
    of_images=True,
)
