"""Everything in a forward pass that depends on the image size, and what of it is computed instead of learned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vit_hub.model.config import RelPosMlp, ViTConfig
from vit_hub.model.rope import axis_angles, expand_angles

__all__ = [
    "HOST", "Geometry", "Holder", "Resized", "computed_tables", "relative_bias", "relative_index", "relative_offsets",
    "sincos2d",
]  # fmt: skip

HOST = torch.device("cpu")
"""Where tables are computed, wherever torch makes tensors by default."""


class Geometry(NamedTuple):
    """Everything in a forward pass that depends on the image size.

    Attributes:
        image_size: (height, width) in pixels, padding included.
        grid_size: (rows, columns) of patches.
        positions: computed table that is added to the tokens, [1, N, D].
        rope: cosines and sines of axial rotary embeddings, each [T, D/heads].
        pairs: row of the relative position table that each pair of tokens reads, [T, T].
        resized: learned tables at this size by name; None at the model's own, where they are as they are.
        offsets: scaled offsets of two patches, from which a network computes a relative position table, [N, 2].
    """

    image_size: tuple[int, int]
    grid_size: tuple[int, int]
    positions: Tensor | None
    rope: tuple[Tensor, Tensor] | None
    pairs: Tensor | None
    resized: dict[str, Resized] | None
    offsets: Tensor | None = None


class Resized(NamedTuple):
    """A learned table at another size than the model's, and the values that it was made from."""

    table: Tensor
    source: Tensor

    def is_current(self, table: Tensor) -> bool:
        """Return whether a table still has those values.

        Nothing but the values tells: writes through ``.data`` or numpy change neither object nor version.
        """
        same_kind = (table.device, table.dtype) == (self.source.device, self.source.dtype)
        return same_kind and torch.equal(table, self.source)


class Holder(nn.Module):
    """A tensor that several layers read, under a name of its own; called like a layer, so that it is there when read.

    Offloading and sharding bring the parameters of a module for the time of its call only.
    """

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.name = name
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value)

    def forward(self) -> Tensor:
        """Return the tensor."""
        return getattr(self, self.name)  # type: ignore[no-any-return]


def computed_tables(
    config: ViTConfig,
    grid_size: tuple[int, int],
    like: Tensor,
    periods: Tensor | None = None,
    device: torch.device = HOST,
    tubelets: int = 1,
) -> dict[str, Tensor]:
    """Return sincos and rotary tables and relative indices of a grid, by the model's buffer names.

    Args:
        config: the model.
        grid_size: (rows, columns) of patches.
        like: gives device and dtype of the tables.
        periods: stored periods of the rotary embedding, if the checkpoint has them.
        device: where they are computed, in float64.
        tubelets: patches of a video at each place of the grid.
    """
    found: dict[str, Tensor] = {}
    if config.pos_embed == "sincos1d":
        count = tubelets * grid_size[0] * grid_size[1]
        found["pos_table"] = _sincos1d(count, config.embed_dim, device).to(like).unsqueeze(0)
    elif config.pos_embed.startswith("sincos2d"):
        reached = config.pos_embed == "sincos2d"
        table = _sincos(grid_size, config.embed_dim, reached=reached, device=device)
        found["pos_table"] = table.to(like).unsqueeze(0)
    if config.rope and not config.rope.mixed:
        stored = None if periods is None or periods.is_meta else periods
        angles = axis_angles(config.rope, grid_size, config.head_dim, stored, device, tubelets)
        cos, sin = expand_angles(config.rope, angles, config.num_prefix_tokens, config.head_dim)
        # Rotations need float32 whatever the weights are in.
        wide = torch.promote_types(like.dtype, torch.float32)
        found |= {"rope_cos": cos.to(like.device, wide), "rope_sin": sin.to(like.device, wide)}
    if config.rel_pos in ("block", "shared"):
        found["rel_pos_index"] = relative_index(grid_size, config.class_token, device).to(like.device)
    if config.rel_pos_mlp:
        found["rel_pos_offsets"] = relative_offsets(config.rel_pos_mlp, grid_size, device).to(like)
    return found


def relative_index(grid_size: tuple[int, int], class_token: bool = True, device: torch.device = HOST) -> Tensor:
    """Return the row of a relative position table that each pair of tokens reads, [T, T] (BEiT, arXiv 2106.08254).

    With a class token, the last three rows are class to patch, patch to class and class to class.
    """
    rows, columns = grid_size
    sides = (torch.arange(size, device=device) for size in grid_size)
    y, x = (part.flatten() for part in torch.meshgrid(*sides, indexing="ij"))
    down, right = y[:, None] - y[None] + rows - 1, x[:, None] - x[None] + columns - 1
    patches = down * (2 * columns - 1) + right
    if not class_token:
        return patches
    offsets = (2 * rows - 1) * (2 * columns - 1)
    to_class = torch.full_like(patches[:, :1], offsets + 1)
    from_class = torch.cat((torch.full_like(to_class[:1], offsets + 2), torch.full_like(patches[:1], offsets)), dim=1)
    return torch.cat((from_class, torch.cat((to_class, patches), dim=1)))


def relative_offsets(mlp: RelPosMlp, grid_size: tuple[int, int], device: torch.device = HOST) -> Tensor:
    """Return the scaled offsets of two patches, [N, 2] float64, in the order of the rows of a relative position table.

    Swin V2 scales them to eighths of the grid (arXiv 2111.09883, eq. 4).
    """
    axes = []
    for size in grid_size:
        offset = torch.arange(2 * size - 1, dtype=torch.float64, device=device) - (size - 1)
        if mlp.scale == "swin":
            last: int = torch.sym_max(size - 1, 1)  # type: ignore[no-untyped-call]
            axes.append(offset.sign() * (1 + 8 * offset.abs() / last).log2() / 3)
        else:
            axes.append(offset.sign() * offset.abs().log1p())
    return torch.stack([part.flatten() for part in torch.meshgrid(*axes, indexing="ij")], dim=1)


def relative_bias(table: Tensor, index: Tensor) -> Tensor:
    """Return the bias of the logits, [1, H, T, T], from a table [rows, H] and an index [T, T]."""
    return table[index].permute(2, 0, 1).unsqueeze(0)


def sincos2d(
    grid_size: tuple[int, int], dim: int, temperature: float = 10_000.0, reached: bool = True
) -> npt.NDArray[np.float64]:
    """Return big_vision's fixed table ``posemb_sincos_2d`` (arXiv 2104.02057, appendix, but for the frequencies).

    Columns are sin(x w), cos(x w), sin(y w), cos(y w) with w_k = temperature ** -(k / (dim/4 - 1)), k < dim/4: the last
    frequency is reached exactly. In MoCo v3, MAE and AIMv2 it is not: k is divided by dim/4.

    Args:
        grid_size: (rows, columns) of patches.
        dim: width of the table, a multiple of 4.
        temperature: the base of the frequencies.
        reached: whether the last frequency is reached.

    Returns:
        [rows * columns, dim] float64, patches in row-major order.
    """
    return np.asarray(_sincos(grid_size, dim, temperature, reached).numpy(), dtype=np.float64)


def _sincos(
    grid_size: tuple[int, int],
    dim: int,
    temperature: float = 10_000.0,
    reached: bool = True,
    device: torch.device = HOST,
) -> Tensor:
    sides = (torch.arange(size, dtype=torch.float64, device=device) for size in grid_size)
    y, x = torch.meshgrid(*sides, indexing="ij")
    exponents = torch.arange(dim // 4, dtype=torch.float64, device=device) / max(dim // 4 - reached, 1)
    x_angles, y_angles = (part.flatten()[:, None] * temperature**-exponents for part in (x, y))
    return torch.cat((x_angles.sin(), x_angles.cos(), y_angles.sin(), y_angles.cos()), dim=1)


def _sincos1d(count: int, dim: int, device: torch.device) -> Tensor:
    """The table of arXiv 1706.03762, section 3.5, [count, dim]: sines in even columns, cosines in odd ones."""
    exponents = torch.arange(dim // 2, dtype=torch.float64, device=device) / (dim // 2)
    angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * 10_000.0**-exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
