"""Whole checkpoints at another size, still lazy, and how resizing methods differ (tables: vit_hub.model.resize)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_hub.converters.casting import from_tensor, to_torch
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.tensors import Array, LazyTensor
from vit_hub.model.config import RESIZE_METHODS, ViTConfig
from vit_hub.model.resize import SIZED, TABLES, resize_tensor, resized_config, table_method
from vit_hub.model.shapes import tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TableDifference", "resized_checkpoint", "table_differences"]


def resized_checkpoint(
    ckpt: Checkpoint,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    *,
    resize: str = "source",
    pad: bool = False,
) -> Checkpoint:
    """Return the checkpoint at another size, still lazy.

    A new patch size keeps the grid unless the image size is given, too. The passport describes the resized model, so
    that every format writes it at its new size.

    Raises:
        ConfigError: the image is not a whole number of patches, or the method is unknown.
    """
    old = ckpt.config
    table_method(old, resize)
    new = resized_config(old, image_size, patch_size, pad=pad)
    if new == old:
        return ckpt

    def resized(name: str, tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
        def read() -> Array:
            return from_tensor(resize_tensor(name, to_torch(tensor), old, new, resize)).read()

        return LazyTensor(tensor.dtype, shape, read)

    shapes = tensor_shapes(new)
    tensors = {
        name: resized(name, tensor, shapes[name]) if name.endswith(SIZED) and name in shapes else tensor
        for name, tensor in ckpt.tensors.items()
    }
    inferred = {name: origin for name, origin in ckpt.inferred.items() if name not in ("image_size", "patch_size")}
    passport = ckpt.passport.resized(old, new)
    return dataclasses.replace(ckpt, config=new, tensors=tensors, inferred=inferred, passport=passport)


@dataclass(frozen=True)
class TableDifference:
    """The difference of resized tables from those by the source's own method.

    Attributes:
        maximum: largest absolute difference of two values.
        mean: mean absolute difference, without rows that are never resized.
        relative: the mean, as a fraction of the mean absolute value.
    """

    maximum: float
    mean: float
    relative: float


def table_differences(ckpt: Checkpoint, new: ViTConfig) -> dict[str, TableDifference]:
    """Return how far tables resized by each method differ from those by the source's own.

    Args:
        ckpt: the model as stored.
        new: its config at another size, from :func:`resized_config`.

    Returns:
        Method -> difference over all stored tables, in the order of ``RESIZE_METHODS``; empty if the model stores no
        table or keeps its grid. Methods of relative tables are included only if it has one.
    """
    import torch

    old = ckpt.config
    # The rows that depend on the grid: after the prefix rows, or before those of the class token.
    kept = {
        "pos_embed": slice(old.num_prefix_rows, None),
        "relative_position_bias_table": slice(None, new.num_relative_offsets),
    }
    tables = {
        name: (to_torch(tensor).double(), kept.get(name.rpartition(".")[2], slice(None)))
        for name, tensor in ckpt.tensors.items()
        if name.endswith(TABLES) and name not in ckpt.passport.carried
    }
    if not tables or old.grid_size == new.grid_size:
        return {}

    def resized(resize: str) -> Tensor:
        found = [resize_tensor(name, table, old, new, resize)[..., rows, :] for name, (table, rows) in tables.items()]
        return torch.cat([table.flatten() for table in found])

    wanted = resized("source")
    differences: dict[str, TableDifference] = {}
    for method in RESIZE_METHODS:
        if old.rel_pos in ("block", "shared") or not method.startswith("relpos-"):
            errors = (resized(method) - wanted).abs()
            mean = float(errors.mean())
            differences[method] = TableDifference(float(errors.max()), mean, mean / (float(wanted.abs().mean()) or 1.0))
    return differences
