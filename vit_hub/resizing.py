"""Models at another image or patch size: which tensors change, and how each is resized.

Position tables follow the source's own method (``ViTConfig.resize``) unless another is named; prefix rows are carried
over untouched. What is computed (rotary angles, sincos tables, relative indices) is computed again by the model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

from vit_hub.config import RESIZE_METHODS, ViTConfig, size_pair
from vit_hub.converters.casting import to_torch
from vit_hub.converters.processors import resized_sidecars
from vit_hub.converters.tensors import Array, LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.layout import tensor_shapes
from vit_hub.resample import axis_matrix, kernel_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from vit_hub.converters.checkpoint import Checkpoint
    from vit_hub.converters.passport import Passport

__all__ = [
    "TableDifference",
    "resize_tensor",
    "resized_checkpoint",
    "resized_config",
    "resized_passport",
    "table_differences",
    "table_method",
]

_SIZES = ("image_size", "patch_size")
# Tensors that depend on them.
_TABLES = ("pos_embed", "relative_position_bias_table")
_SIZED = (*_TABLES, "patch_embed.proj.weight")

# Models with a relative table may have an absolute one beside it, which their projects resize so.
_BESIDE_RELATIVE = {"relpos-geometric": "bicubic-antialias", "relpos-bilinear": "bicubic"}
# big_vision and timm's npz loader derive patch kernels from a bilinear resize, timm from its antialiased bicubic.
_KERNEL_METHODS = {True: "bilinear", False: "bicubic-antialias"}


def table_method(config: ViTConfig, resize: str) -> str:
    """The method that a ``resize=`` argument means for a model.

    Raises:
        ConfigError: there is no such method.
    """
    if resize != "source" and resize not in RESIZE_METHODS:
        raise ConfigError(f"resize={resize!r} is not known", hint=f"source, {', '.join(RESIZE_METHODS)}")
    return config.resize if resize == "source" else resize


def resized_config(
    config: ViTConfig,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    *,
    pad: bool = False,
) -> ViTConfig:
    """The config of the same model at another size.

    Args:
        config: the model as stored.
        image_size: new (height, width) in pixels; None keeps it, or keeps the grid where the patch size changes.
        patch_size: new (height, width) of a patch; None keeps it.
        pad: round an image size up to whole patches instead of refusing it.

    Raises:
        ConfigError: the image is not a whole number of patches; names the nearest sizes that are.
    """
    patch = config.patch_size if patch_size is None else size_pair("patch_size", patch_size)
    if patch == config.patch_size and image_size is None:
        return config
    steps = zip(config.pixels_per_patch, config.patch_size, patch, strict=True)
    unit = tuple(step // before * after for step, before, after in steps)
    grown = tuple(count * step for count, step in zip(config.grid_size, unit, strict=True))
    wanted = size_pair("image_size", grown if image_size is None else image_size)
    # A model may have been made for a size that leaves pixels over: SigLIP so400m has patches of 14 pixels at 384.
    if patch == config.patch_size and wanted == config.image_size:
        return config
    up = tuple(-(-size // step) * step for size, step in zip(wanted, unit, strict=True))
    if up != wanted and not pad:
        down = tuple(max(size // step, 1) * step for size, step in zip(wanted, unit, strict=True))
        nearest = " and ".join(dict.fromkeys((str(down), str(up))))
        raise ConfigError(
            f"image_size={wanted} is not a whole number of patches of {unit} pixels",
            hint=f"nearest sizes that are: {nearest}; or pad=True in vit_hub.load",
        )
    return config.replace(image_size=up, patch_size=patch)


def resize_tensor(name: str, tensor: Tensor, old: ViTConfig, new: ViTConfig, resize: str = "source") -> Tensor:
    """A canonical tensor of a model at another size; the same object where nothing changes.

    Args:
        name: canonical name.
        tensor: as stored for ``old``.
        old: the config it fits.
        new: the config wanted, from :func:`resized_config`.
        resize: ``source`` or a method's name.

    Raises:
        ConfigError: there is no such method.
    """
    if name == "pos_embed":
        by_count = resize == "source" and old.resize_by_count
        return _resize_table(tensor, old, new, table_method(old, resize), by_count)
    if name == "patch_embed.proj.weight":
        return _resize_kernel(tensor, old, new)
    if name.endswith("relative_position_bias_table"):
        return _resize_relative(tensor, old, new, table_method(old, resize))
    return tensor


def resized_checkpoint(
    ckpt: Checkpoint,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    *,
    resize: str = "source",
    pad: bool = False,
) -> Checkpoint:
    """The same checkpoint at another size, still lazy: what loading and converting read when asked for one.

    A new patch size keeps the grid unless the image size is given, too. The passport then describes the model as
    resized, so that it is written at its new size in whatever format.

    Raises:
        ConfigError: the image is not a whole number of patches, or there is no such method.
    """
    from vit_hub.saving import from_tensor

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
        name: resized(name, tensor, shapes[name]) if name.endswith(_SIZED) and name in shapes else tensor
        for name, tensor in ckpt.tensors.items()
    }
    inferred = {name: origin for name, origin in ckpt.inferred.items() if name not in _SIZES}
    passport = resized_passport(ckpt.passport, old, new)
    return dataclasses.replace(ckpt, config=new, tensors=tensors, inferred=inferred, passport=passport)


def resized_passport(passport: Passport, old: ViTConfig, new: ViTConfig) -> Passport:
    """The record of a source, changed where it hangs on the size, so that the resized model can be written back."""
    # NaFlex' files have the position table as a grid and the patch kernel as a matrix.
    before, after = (
        ((*config.grid_size, config.embed_dim), (math.prod(config.patch_size) * config.in_chans, config.embed_dim))
        for config in (old, new)
    )
    odd = dict(zip(before, after, strict=True))
    return dataclasses.replace(
        passport,
        resized_from=passport.resized_from or {name: list(getattr(old, name)) for name in _SIZES},
        overrides={name: value for name, value in passport.overrides.items() if name not in _SIZES},
        shapes={name: list(odd.get(tuple(shape), shape)) for name, shape in passport.shapes.items()},
        preprocess=passport.preprocess and {**passport.preprocess, "image_size": list(new.image_size)},
        sidecars=resized_sidecars(passport.sidecars, new.image_size),
    )


class TableDifference(NamedTuple):
    """How far resized tables lie from those that the source's own method gives.

    Attributes:
        maximum: largest absolute difference of two values.
        mean: mean absolute difference, rows that are never resized left out.
        relative: that, in parts of the mean absolute value.
    """

    maximum: float
    mean: float
    relative: float


def table_differences(ckpt: Checkpoint, new: ViTConfig) -> dict[str, TableDifference]:
    """What choosing another method than the source's would change, before any image is seen.

    Args:
        ckpt: the model as stored.
        new: its config at another size, from :func:`resized_config`.

    Returns:
        Method -> difference over all stored tables, in the order of ``RESIZE_METHODS``; empty where the model stores
        no table or its grid stays the same. Methods of relative tables are there only if it has such a table.
    """
    import torch

    old = ckpt.config
    # Where the rows are that depend on the grid: past the prefix rows, or before the three of the class token.
    kept = slice(old.num_prefix_rows, None), slice(None, -3)
    tables = {
        name: (to_torch(tensor).double(), kept[name != "pos_embed"])
        for name, tensor in ckpt.tensors.items()
        if name.endswith(_TABLES) and name not in ckpt.passport.carried
    }
    if not tables or old.grid_size == new.grid_size:
        return {}

    def resized(resize: str) -> Tensor:
        found = [resize_tensor(name, table, old, new, resize)[..., rows, :] for name, (table, rows) in tables.items()]
        return torch.cat([table.flatten() for table in found])

    wanted, differences = resized("source"), {}
    for method in RESIZE_METHODS:
        if old.rel_pos != "none" or not method.startswith("relpos-"):
            errors = (resized(method) - wanted).abs()
            mean = float(errors.mean())
            differences[method] = TableDifference(float(errors.max()), mean, mean / (float(wanted.abs().mean()) or 1.0))
    return differences


def _matrix(method: str, old: int, new: int, like: Tensor) -> Tensor:
    import torch

    return torch.tensor(axis_matrix(method, old, new), device=like.device)


def _resample(grid: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """[rows, columns, ...] at another size: a product of matrices in float64."""
    import torch

    wy, wx = _matrix(method, grid.shape[0], size[0], grid), _matrix(method, grid.shape[1], size[1], grid)
    return torch.einsum("xw,yw...->yx...", wx, torch.einsum("yh,hw...->yw...", wy, grid.double()))


def _resize_table(table: Tensor, old: ViTConfig, new: ViTConfig, method: str, by_count: bool) -> Tensor:
    import torch

    if old.grid_size == new.grid_size or (by_count and old.num_patches == new.num_patches):
        return table
    rows = old.num_prefix_rows
    grid = table[0, rows:].reshape(*old.grid_size, -1)
    resized = _resample(grid, new.grid_size, _BESIDE_RELATIVE.get(method, method)).flatten(0, 1)
    return torch.cat((table[:, :rows], resized.to(table.dtype).unsqueeze(0)), dim=1)


def _resize_relative(table: Tensor, old: ViTConfig, new: ViTConfig, method: str) -> Tensor:
    """Offsets of 2n - 1 rows and columns; the three rows of the class token stay."""
    import torch

    if old.grid_size == new.grid_size:
        return table
    before, after = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old.grid_size, new.grid_size))
    resized = _resample(table[:-3].reshape(*before, -1), after, method).flatten(0, 1)
    return torch.cat((resized.to(table.dtype), table[-3:]))


def _resize_kernel(kernel: Tensor, old: ViTConfig, new: ViTConfig) -> Tensor:
    """[D, C, p, q] by FlexiViT's pseudo-inverse (arXiv 2212.08013, section 3.4), one axis after the other."""
    import torch

    if old.patch_size == new.patch_size:
        return kernel
    method = _KERNEL_METHODS[old.resize.startswith("bilinear")]
    sides = zip(old.patch_size, new.patch_size, strict=True)
    by, bx = (torch.tensor(kernel_matrix(method, *side), device=kernel.device) for side in sides)
    return torch.einsum("xw,dcyw->dcyx", bx, torch.einsum("yh,dchw->dcyw", by, kernel.double())).to(kernel.dtype)
