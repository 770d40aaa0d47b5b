"""Axis layouts, written once and read in both directions.

``"d h e -> (h e) d"`` means: a tensor with axes d, h, e becomes one with two axes, the first of which runs over h and
then e. Read from right to left it is the inverse, if the sizes of all but one axis of each group are known. ``1``
is an axis of size one. The notation is that of einops, restricted to permutations of bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache

from vit_hub.converters.tensors import LazyTensor

__all__ = ["rearrange"]

Groups = tuple[tuple[str, ...], ...]


@cache
def _parse(layout: str) -> tuple[Groups, Groups]:
    left, right = (_groups(side) for side in layout.split("->"))
    names = sorted(axis for group in left for axis in group)
    if names != sorted(axis for group in right for axis in group) or len(set(names)) != len(names):
        raise ValueError(f"layout {layout!r} does not name every axis once on each side")
    return left, right


def _groups(side: str) -> Groups:
    tokens = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return tuple(() if single == "1" else tuple((several or single).split()) for several, single in tokens)


def _solve(groups: Groups, shape: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the size of every axis from the shape of the groups and the known sizes."""
    if len(groups) != len(shape):
        raise ValueError(f"expected {len(groups)} axes, found shape {shape}")
    solved: dict[str, int] = {}
    for group, total in zip(groups, shape, strict=True):
        known = {axis: sizes[axis] for axis in group if axis in sizes}
        free = [axis for axis in group if axis not in sizes]
        rest, remainder = divmod(total, math.prod(known.values()))
        if remainder or len(free) > 1 or (not free and rest != 1):
            raise ValueError(f"shape {shape} does not fit axes {group} with {known}")
        solved |= known | dict.fromkeys(free, rest)
    return solved


def rearrange(tensor: LazyTensor, layout: str, sizes: Mapping[str, int], *, inverse: bool = False) -> LazyTensor:
    """Rearrange a tensor from one side of a layout to the other.

    Args:
        tensor: has the shape of the left side (of the right side, if ``inverse``).
        layout: ``"left -> right"``; empty for no change.
        sizes: sizes of axes that the shape alone does not show.

    Raises:
        ValueError: the shape does not fit.
    """
    if not layout:
        return tensor
    before, after = _parse(layout)[:: -1 if inverse else 1]
    flat = [axis for group in before for axis in group]
    solved = _solve(before, tensor.shape, {axis: size for axis, size in sizes.items() if axis in flat})
    order = [flat.index(axis) for group in after for axis in group]
    shape = [math.prod(solved[axis] for axis in group) for group in after]
    return tensor.reshape([solved[axis] for axis in flat]).permute(order).reshape(shape)
