"""Shared by the formats of ViTDet's backbones: their table, and the positions that they take over from pre-training.

The table of positions is that of the images of the pre-training, with a row for a class token, of which there is none
here, and is resized to the grid. Source: detectron2/modeling/backbone/vit.py, utils.py (arXiv 2203.16527).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_hub.converters.casting import from_tensor, to_torch
from vit_hub.converters.formats import _sam
from vit_hub.converters.rules.table import Reading, Rule, rule, weight_and_bias
from vit_hub.converters.tensors import Array, LazyTensor, concat
from vit_hub.model.config import ViTConfig, size_pair
from vit_hub.model.resize import resize_table

__all__ = ["fit_positions", "remark", "row_counts", "rules"]

# The row of the class token. Its name comes before that of a whole table, which is written in place of both.
_CLASS_ROW = "class_position"


def rules(positions: str, patch: str, block: str, attention: str, table: str) -> tuple[Rule, ...]:
    """Return the table of a backbone.

    Args:
        positions: the position table.
        patch: the patch embedding.
        block: a block.
        attention: the attention of one, below it.
        table: canonical name of the position table as stored, where it is for another grid.
    """
    layers = {name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
    layers |= {f"attn.{name}": f"{attention}.{name}" for name in ("qkv", "proj")}
    named = {f"blocks.{{i}}.{ours}": f"{block}.{theirs}" for ours, theirs in layers.items()}
    return (
        rule((_CLASS_ROW, "pos_embed"), positions, weights=(1, "n"), axis=1),
        rule(table, positions, carried=True),
        *weight_and_bias("patch_embed.proj", patch),
        *(one for names in named.items() for one in weight_and_bias(*names)),
        *(rule(f"blocks.{{i}}.attn.rel_pos_{axis}", f"{block}.{attention}.rel_pos_{axis}") for axis in "hw"),
    )


def row_counts(tensors: Mapping[str, LazyTensor], positions: str) -> dict[str, int]:
    """Return the patches that a stored position table is for, as the size of an axis."""
    return {"n": tensors[positions].shape[1] - 1} if len(tensors[positions].shape) == 3 else {}


def remark(tensors: Mapping[str, LazyTensor], positions: str, fields: Mapping[str, Any], patch: int) -> tuple[str, ...]:
    """Return a warning where positions are resized when they are read: there is no exact way to a third size then."""
    rows = row_counts(tensors, positions).get("n", 0) if positions in tensors else 0
    size = fields.get("image_size")
    sides = (0, 0) if size is None else size_pair("image_size", size)
    if not rows or size is None or rows == (sides[0] // patch) * (sides[1] // patch):
        return ()
    return (
        f"positions of {rows} patches are resized to the grid, as the class does; for images of another size they are "
        "resized once more, where the class resizes those in the file",
    )


def fit_positions(reading: Reading, table: str, image_size: tuple[int, int] | None) -> None:
    """Resize the position table to the grid of an image, as the class does; the stored one is kept to be written.

    Args:
        reading: what was read.
        table: canonical name of the stored table.
        image_size: (height, width) in pixels of the images that the model is for; None: what relative positions tell.
    """
    if "pos_embed" not in reading.tensors:
        return
    stored, first = reading.tensors["pos_embed"], reading.tensors[_CLASS_ROW]
    reading.carried.append(_CLASS_ROW)
    p, q = reading.tensors["patch_embed.proj.weight"].shape[-2:]
    grid = (image_size[0] // p, image_size[1] // q) if image_size else _grid(reading.tensors)
    side = math.isqrt(stored.shape[1])
    if grid is None or side * side != stored.shape[1] or grid == (side, side) or not all(grid):
        return
    alone = {"num_heads": 1, "class_token": False, "pool": "none", "resize": _sam.CONVENTIONS["resize"]}
    config = ViTConfig(image_size=(side, side), patch_size=(1, 1), embed_dim=stored.shape[2], **alone)

    def read() -> Array:
        return from_tensor(resize_table("pos_embed", to_torch(stored), config, grid)).read()

    reading.tensors[table] = concat([part.permute((1, 0, 2)) for part in (first, stored)]).permute((1, 0, 2))
    reading.origin[table] = reading.origin["pos_embed"]
    reading.carried.append(table)
    reading.tensors["pos_embed"] = LazyTensor(stored.dtype, (1, grid[0] * grid[1], stored.shape[2]), read)


def _grid(tensors: Mapping[str, LazyTensor]) -> tuple[int, int] | None:
    """Return the grid of blocks without windows, by their tables of relative positions."""
    tables = [[tensor.shape for name, tensor in tensors.items() if name.endswith(f"rel_pos_{axis}")] for axis in "hw"]
    found = [max(((shape[0] + 1) // 2 for shape in shapes if shape), default=0) for shapes in tables]
    return (found[0], found[1]) if all(found) else None
