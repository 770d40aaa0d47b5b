"""Rotary position embeddings of patch grids (arXiv 2104.09864, extended to two axes).

Every published variant is angle[n, k] = coordinate of patch n on an axis * frequency k, the angles of the two axes side
by side or in turns, and a rotation of channel pairs by those angles. They differ in coordinates, frequencies and pairs.
Shapes: N patches, P prefix tokens, T = P + N, E channels of one head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vit_hub.model.config import Rope

__all__ = ["axis_angles", "expand_angles", "grid_coordinates", "mixed_angles", "rotate"]


def grid_coordinates(rope: Rope, grid_size: tuple[int, int], device: torch.device, tubelets: int = 1) -> Tensor:
    """Return coordinates of every patch, [N, 2] float64, the axis that comes first in the channels in column 0.

    With ``rope.frames`` they are [N, 3], for so many patches of a video at each place, the first coordinate their time.

    ``index``: whole numbers plus the offset, scaled to the reference grid (timm, EVA-02, PE).
    ``centered``: patch centres mapped to [-1, 1], each axis by its own length or both by the longer or shorter
    (DINOv3, arXiv 2508.10104, section 3.2).
    """
    axes: list[Tensor] = []
    both: Callable[..., int] | None = {"max": torch.sym_max, "min": torch.sym_min}.get(rope.normalize)
    for axis, size in enumerate(grid_size):
        index = torch.arange(size, dtype=torch.float64, device=device)
        if rope.coordinates == "centered":
            axes.append((index + 0.5 + rope.offset) / (both(*grid_size) if both else size) * 2 - 1)
        else:
            axes.append((index + rope.offset) * _scale(rope, axis, size))
    y, x = torch.meshgrid(*axes, indexing="ij")
    order = (x, y) if rope.order == "xy" else (y, x)
    places = torch.stack([part.flatten() for part in order], dim=1)
    if not rope.frames:
        return places
    # Not repeat_interleave, which ONNX's exporter gets wrong for grids of any size.
    times = torch.arange(tubelets, dtype=torch.float64, device=device)[:, None].expand(-1, places.shape[0])
    return torch.cat((times.reshape(-1, 1), places.repeat(tubelets, 1)), dim=1)


def _scale(rope: Rope, axis: int, size: int) -> float:
    """Return the factor of the coordinates of an axis."""
    if rope.reference_grid is None:
        return 1.0
    if rope.reference_ends:
        last: int = torch.sym_max(size - 1, 1)  # type: ignore[no-untyped-call]
        return (rope.reference_grid[axis] - 1) / last
    return rope.reference_grid[axis] / size


def axis_angles(
    rope: Rope,
    grid_size: tuple[int, int],
    head_dim: int,
    periods: Tensor | None,
    device: torch.device,
    tubelets: int = 1,
) -> Tensor:
    """Return angles of axial RoPE, [N, E/2] float64 in radians; with ``rope.frames`` fewer, of all rotated pairs.

    Args:
        rope: which variant.
        grid_size: (rows, columns) of patches.
        head_dim: E.
        periods: the stored ones of DINOv3, if any, [E/4].
        device: where they are computed.
        tubelets: patches of a video at each place of the grid.
    """
    coordinates = grid_coordinates(rope, grid_size, device, tubelets)
    if periods is None:
        pairs = head_dim // (6 if rope.frames else 4)  # of each axis
        steps = torch.arange(pairs, dtype=torch.float64, device=device)
        both = torch.stack((steps, steps + 0.5)) if rope.frequencies == "alternate" else steps
        periods = rope.theta ** (both / pairs)
    turns = 2 * math.pi if rope.coordinates == "centered" else 1.0
    angles = coordinates[:, :, None] * (turns / periods.to(coordinates))
    return (angles.transpose(1, 2) if rope.axes == "turns" else angles).flatten(1)


def mixed_angles(rope: Rope, grid_size: tuple[int, int], freqs: Tensor) -> Tensor:
    """Return angles of RoPE-Mixed (arXiv 2403.13298, eq. 12): learned frequencies [2, L, H, E/2] -> [L, H, N, E/2]."""
    wide = freqs.to(torch.promote_types(freqs.dtype, torch.float32))
    first, second = grid_coordinates(rope, grid_size, freqs.device).to(wide.dtype).unbind(1)
    return first[:, None] * wide[0].unsqueeze(-2) + second[:, None] * wide[1].unsqueeze(-2)


def expand_angles(rope: Rope, angles: Tensor, prefix: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines per channel, [..., T, E]; prefix tokens and channels left over have angle zero."""
    angles = torch.nn.functional.pad(angles, (0, 0, prefix, 0))
    if rope.pairs == "half":
        full = torch.cat((angles, angles), dim=-1)
    elif rope.pairs == "tiled":
        axes = angles.chunk(3 if rope.frames else 2, dim=-1)
        full = torch.cat([axis for axis in axes for _ in range(2)], dim=-1)
    else:
        full = angles.repeat_interleave(2, dim=-1)
    full = torch.nn.functional.pad(full, (0, head_dim - full.shape[-1]))
    return full.cos(), full.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairs: str) -> Tensor:
    """Rotate channel pairs: (k, k + E/2) for ``half``, (2k, 2k + 1) for the others.

    Args:
        x: [B, H, T, E].
        cos: [..., T, E], at least float32.
        sin: likewise.
        pairs: which channels turn together.
    """
    if pairs == "half":
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    else:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)
