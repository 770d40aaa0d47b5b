"""Windows of the patch grid: attention within each of them alone (arXiv 2203.16527, section 3).

Shapes: B images, H heads, N patches of a grid, W windows of S patches each, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Partition", "decomposed_bias"]

Size = tuple[int, int]


class Partition(NamedTuple):
    """A grid cut into windows from its upper left corner; those at the other edges may reach beyond it.

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

    @property
    def _beyond(self) -> Size:
        """Rows and columns of the windows that lie beyond the grid."""
        down, right = (
            count * step - side for count, step, side in zip(self._windows, self.size, self.grid, strict=True)
        )
        return down, right

    def _filled(self, x: Tensor) -> Tensor:
        """[..., N, D] -> [..., W * S, D], row-major, zeros beyond the grid."""
        down, right = self._beyond
        if isinstance(down, int) and isinstance(right, int) and not (down or right):
            return x
        return F.pad(torch.unflatten(x, -2, self.grid), (0, 0, 0, right, 0, down)).flatten(-3, -2)

    def fill(self, x: Tensor) -> Tensor:
        """Return the tokens that queries, keys and values are computed of: [B, N, D] -> [B, N or W * S, D]."""
        return self._filled(x) if self.pad else x

    def split(self, x: Tensor) -> Tensor:
        """Cut queries, keys or values into windows: [B, H, *, D] of :meth:`fill`'s tokens -> [B * W, H, S, D]."""
        (down, right), (rows, columns) = self._windows, self.size
        whole = x if self.pad else self._filled(x)
        parts = whole.reshape(x.shape[0], x.shape[1], down, rows, right, columns, x.shape[-1])
        return parts.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, x.shape[1], rows * columns, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """Put the windows back, without what lies beyond the grid: [B * W, H, S, D] -> [B, H, N, D]."""
        (down, right), (rows, columns) = self._windows, self.size
        parts = x.reshape(-1, down, right, x.shape[1], rows, columns, x.shape[-1]).permute(0, 3, 1, 4, 2, 5, 6)
        whole = parts.flatten(4, 5).flatten(2, 3)
        return whole[:, :, : self.grid[0], : self.grid[1]].flatten(2, 3)

    def mask(self, like: Tensor) -> Tensor | None:
        """Return minus infinity for keys beyond the grid that take no part, [B * W, 1, 1, S]; None if all do.

        Args:
            like: queries of the windows, [B * W, H, S, D].
        """
        if self.pad or not any(self._beyond):
            return None
        places = like.new_ones(1, 1, self.grid[0] * self.grid[1], 1)
        inside = self.split(places)[..., 0]  # [W, 1, S]
        penalty = torch.zeros_like(inside).masked_fill(inside == 0, -torch.inf)
        return penalty.repeat(like.shape[0] // len(penalty), 1, 1).unsqueeze(2)

    def scatter(self, maps: Tensor) -> Tensor:
        """Return attention within windows as that of the whole grid: [B * W, H, S, S] -> [B, H, N, N].

        What the zeros beyond the grid get of a row is left out.
        """
        count = self.grid[0] * self.grid[1]
        numbers = torch.arange(1, count + 1, device=maps.device).reshape(1, 1, count, 1)
        places = self.split(self._filled(numbers) if self.pad else numbers)[:, 0, :, 0]  # [W, S], zero beyond
        batch = maps.shape[0] // len(places)
        whole = maps.new_zeros(batch, maps.shape[1], count + 1, count + 1)
        parts = torch.unflatten(maps, 0, (batch, len(places))).transpose(1, 2)
        whole[:, :, places[:, :, None], places[:, None, :]] = parts
        return whole[:, :, 1:, 1:]


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
    by_row = torch.einsum("bhyxd,ykd->bhyxk", places, down)
    by_column = torch.einsum("bhyxd,xkd->bhyxk", places, right)
    return (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4).flatten(2, 3)


def _offsets(table: Tensor, side: int) -> Tensor:
    """The row of a table for each pair of places on an axis: [2 n - 1, D] -> [n, n, D]."""
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place[None] + side - 1]
