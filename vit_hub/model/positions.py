"""Everything in a forward pass that depends on the image size, and what of it is computed instead of learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_hub.model.config import ViTConfig
from vit_hub.model.rope import axis_angles, expand_angles

__all__ = ["Geometry", "Resized", "computed_tables", "relative_bias", "relative_index", "sincos2d"]


class Geometry(NamedTuple):
    """Everything in a forward pass that depends on the image size.

    Attributes:
        config: the model at that size.
        positions: table added to the tokens, [1, rows, D].
        rope: cosines and sines of axial rotary embeddings, each [T, D/heads].
        pairs: row of the relative position table that each pair of tokens reads, [T, T].
        tables: relative position tables, one a block or one for all.
    """

    config: ViTConfig
    positions: Tensor | None
    rope: tuple[Tensor, Tensor] | None
    pairs: Tensor | None
    tables: list[Tensor]


class Resized(NamedTuple):
    """A geometry at another size than the model's, and the values of the tables that it was made from."""

    geometry: Geometry
    sources: dict[str, Tensor]

    def is_current(self, tables: Mapping[str, Tensor]) -> bool:
        """Return whether the tables still have those values.

        Nothing but the values tells: writes through ``.data`` or numpy change neither object nor version.
        """
        return all(
            (table.device, table.dtype) == (source.device, source.dtype) and torch.equal(table, source)
            for table, source in ((tables[name], source) for name, source in self.sources.items())
        )


def computed_tables(config: ViTConfig, weight: Tensor, periods: Tensor | None = None) -> dict[str, Tensor]:
    """Return sincos and rotary tables and relative indices at the size of a config, by the model's buffer names.

    Args:
        config: the model at the size wanted.
        weight: gives device and dtype.
        periods: stored periods of the rotary embedding, if the checkpoint has them.
    """
    found: dict[str, Tensor] = {}
    if config.pos_embed == "sincos2d":
        table = torch.as_tensor(sincos2d(config.grid_size, config.embed_dim))
        found["pos_table"] = table.to(weight).unsqueeze(0)
    if config.rope and not config.rope.mixed:
        stored = None if periods is None or periods.is_meta else periods.double().cpu().numpy()
        angles = torch.as_tensor(axis_angles(config.rope, config.grid_size, config.head_dim, stored))
        cos, sin = expand_angles(config.rope, angles, config.num_prefix_tokens)
        # Rotations need float32 whatever the weights are in.
        wide = torch.promote_types(weight.dtype, torch.float32)
        found |= {"rope_cos": cos.to(weight.device, wide), "rope_sin": sin.to(weight.device, wide)}
    if config.rel_pos != "none":
        found["rel_pos_index"] = relative_index(config).to(weight.device)
    return found


def relative_index(config: ViTConfig) -> Tensor:
    """Return the row of a relative position table that each pair of tokens reads, [T, T] (BEiT, arXiv 2106.08254).

    The last three rows are class to patch, patch to class and class to class.
    """
    rows, columns = config.grid_size
    y, x = (part.flatten() for part in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    down, right = y[:, None] - y[None] + rows - 1, x[:, None] - x[None] + columns - 1
    last = config.num_relative_rows
    index = F.pad(down * (2 * columns - 1) + right, (1, 0, 1, 0), value=last - 3)
    index[1:, 0] = last - 2
    index[0, 0] = last - 1
    return index


def relative_bias(table: Tensor, index: Tensor) -> Tensor:
    """Return the bias of the logits, [1, H, T, T], from a table [rows, H] and an index [T, T]."""
    return table[index].permute(2, 0, 1).unsqueeze(0)


def sincos2d(grid_size: tuple[int, int], dim: int, temperature: float = 10_000.0) -> npt.NDArray[np.float64]:
    """Return big_vision's fixed table ``posemb_sincos_2d`` (arXiv 2104.02057, appendix, but for the frequencies).

    Columns are sin(x w), cos(x w), sin(y w), cos(y w) with w_k = temperature ** -(k / (dim/4 - 1)), k < dim/4: unlike
    MoCo v3 and MAE, the last frequency is reached exactly.

    Args:
        grid_size: (rows, columns) of patches.
        dim: width of the table, a multiple of 4.
        temperature: the base of the frequencies.

    Returns:
        [rows * columns, dim] float64, patches in row-major order.
    """
    y, x = np.mgrid[: grid_size[0], : grid_size[1]]
    omega = temperature ** -(np.arange(dim // 4) / max(dim // 4 - 1, 1))
    x_angles, y_angles = np.outer(x.ravel(), omega), np.outer(y.ravel(), omega)
    return np.concatenate([np.sin(x_angles), np.cos(x_angles), np.sin(y_angles), np.cos(y_angles)], axis=1)
