"""Windows of the patch grid: attention within each of them alone (arXiv 2203.16527, section 3).

Shapes: B images, H heads, N patches of a grid, W windows of S patches each, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Partition", "decomposed_bias"]

Size = tuple[int, int]


def _divided(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Return quotient and rest; the exporter of ONNX knows no remainder by a size that is free."""
    quotient = x // by
    return quotient, x - quotient * by


class Partition(NamedTuple):
    """A grid cut into windows from its upper left corner; those at the other edges may reach beyond it.

    Places are computed, not reshaped, so that a program which is recorded for any size does not depend on how many
    windows there are.

    Attributes:
        grid: (rows, columns) of patches.
        size: (rows, columns) of a window.
        pad: what lies beyond the grid takes part in attention, as tokens of zeros.
    """

    grid: Size
    size: Size
    pad: bool

    @property
    def _windows(self) -> Size:
        """(rows, columns) of windows."""
        rows, columns = ((side + step - 1) // step for side, step in zip(self.grid, self.size, strict=True))
        return rows, columns

    def _patches(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The patch at each place of all windows, [W * S], and whether there is one; else it is some other."""
        (rows, columns), (down, right) = self.size, self._windows
        place = torch.arange(down * right * rows * columns, device=device)
        window, within = _divided(place, rows * columns)
        (upper, left), (lower, further) = _divided(window, right), _divided(within, columns)
        y, x = upper * rows + lower, left * columns + further
        inside = (y < self.grid[0]) & (x < self.grid[1])
        return y.clamp(max=self.grid[0] - 1) * self.grid[1] + x.clamp(max=self.grid[1] - 1), inside

    def _places(self, device: torch.device) -> Tensor:
        """The place of each patch in all windows, [N]."""
        (rows, columns), (_, right) = self.size, self._windows
        patch = torch.arange(self.grid[0] * self.grid[1], device=device)
        y, x = _divided(patch, self.grid[1])
        (upper, lower), (left, further) = _divided(y, rows), _divided(x, columns)
        return (upper * right + left) * rows * columns + lower * columns + further

    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens of all windows, one after the other, zeros beyond the grid: [B, N, D] -> [B, W * S, D]."""
        patches, inside = self._patches(x.device)
        return x.index_select(1, patches) * inside[:, None].to(x.dtype)

    def rotations(self, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines [..., N, D] for those tokens, [..., W * S, D]."""
        if rope is None:
            return None
        cos, sin = (part.index_select(-2, self._patches(part.device)[0]) for part in rope)
        return cos, sin

    def split(self, x: Tensor) -> Tensor:
        """Cut queries, keys or values into windows: [B, H, W * S, D] -> [B * W, H, S, D]."""
        down, right = self._windows
        parts = x.reshape(x.shape[0], x.shape[1], down * right, self.size[0] * self.size[1], x.shape[-1])
        return parts.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(0, 1)

    def join(self, x: Tensor) -> Tensor:
        """Put the windows back, without what lies beyond the grid: [B * W, H, S, D] -> [B, H, N, D]."""
        count = self._windows[0] * self._windows[1]
        parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).transpose(1, 2)
        whole = parts.clone(memory_format=torch.contiguous_format).flatten(2, 3)
        return whole.index_select(2, self._places(x.device))

    def mask(self, like: Tensor) -> Tensor | None:
        """Return minus infinity for keys beyond the grid that take no part, [B * W, 1, 1, S]; None if all do.

        Args:
            like: queries of the windows, [B * W, H, S, D].
        """
        fits = all(isinstance(side, int) and side % step == 0 for side, step in zip(self.grid, self.size, strict=True))
        if self.pad or fits:
            return None
        _, inside = self._patches(like.device)
        count = self._windows[0] * self._windows[1]
        penalty = like.new_zeros(inside.shape).masked_fill(~inside, -torch.inf)
        return penalty.reshape(count, 1, 1, like.shape[2]).repeat(like.shape[0] // count, 1, 1, 1)

    def scatter(self, maps: Tensor) -> Tensor:
        """Return attention within windows as that of the whole grid: [B * W, H, S, S] -> [B, H, N, N].

        What the zeros beyond the grid get of a row is left out.
        """
        patches, inside = self._patches(maps.device)
        count, total = self._windows[0] * self._windows[1], self.grid[0] * self.grid[1]
        places = torch.where(inside, patches, total).reshape(count, -1)  # one more place, for what is left out
        batch = maps.shape[0] // count
        whole = maps.new_zeros(batch, maps.shape[1], total + 1, total + 1)
        parts = maps.reshape(batch, count, *maps.shape[1:]).transpose(1, 2)
        whole[:, :, places[:, :, None], places[:, None, :]] = parts
        return whole[:, :, :total, :total]


def decomposed_bias(q: Tensor, rows: Tensor, columns: Tensor, grid: Size) -> Tensor:
    """Return the bias of the logits that queries make of relative positions by axis (arXiv 2112.01526, eq. 4).

    Args:
        q: queries of a grid, before they are scaled, [B, H, S, D].
        rows: table of the offsets of rows, [2 r - 1, D].
        columns: table of the offsets of columns, [2 c - 1, D].
        grid: (r, c), S = r c.

    Returns:
        [B, H, S, S].
    """
    down, right = (_offsets(table, side) for table, side in zip((rows, columns), grid, strict=True))
    places = torch.unflatten(q, 2, grid)
    by_row = places @ down.transpose(1, 2)  # [B, H, r, c, r]
    by_column = (places.transpose(2, 3) @ right.transpose(1, 2)).transpose(2, 3)  # [B, H, r, c, c]
    return (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4).flatten(2, 3)


def _offsets(table: Tensor, side: int) -> Tensor:
    """The row of a table for each pair of places on an axis: [2 n - 1, D] -> [n, n, D]."""
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place[None] + side - 1]
