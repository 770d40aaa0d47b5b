"""Models at another image or patch size: which tensors change, and how each is resized.

Position tables follow the source's own method (``ViTConfig.resize``) unless another is named; prefix rows are carried
over untouched. What is computed (rotary angles, sincos tables, relative indices) is computed again by the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_hub.errors import ConfigError
from vit_hub.model.config import RESIZE_METHODS, ViTConfig, size_pair
from vit_hub.untrusted import quoted

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SIZED", "TABLES", "resize_table", "resize_tensor", "resized_config", "table_method", "whole_patches"]

Size = tuple[int, int]

# The ends of the names of stored tensors that depend on the image size, and with them of those on the patch size.
DECOMPOSED = ("rel_pos_h", "rel_pos_w")
TABLES = ("pos_embed", "mid_pos_embed", "pos_embed_y", "pos_embed_x", "relative_position_bias_table", *DECOMPOSED)
SIZED = (*TABLES, "patch_embed.proj.weight")

# Models with a relative table may have an absolute one beside it, which their projects resize so.
_BESIDE_RELATIVE = {"relpos-geometric": "bicubic-antialias", "relpos-bilinear": "bicubic"}
# big_vision and timm's npz loader derive patch kernels from a bilinear resize, timm from its antialiased bicubic.
_KERNEL_METHODS = {True: "bilinear", False: "bicubic-antialias"}


def table_method(config: ViTConfig, resize: str) -> str:
    """Return the method that a ``resize=`` argument means for a model.

    Raises:
        ConfigError: there is no such method.
    """
    if resize != "source" and resize not in RESIZE_METHODS:
        raise ConfigError(f"resize={quoted(resize)} is not known", hint=f"source, {', '.join(RESIZE_METHODS)}")
    return config.resize if resize == "source" else resize


def resized_config(
    config: ViTConfig,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    *,
    pad: bool = False,
) -> ViTConfig:
    """Return the config of the same model at another size.

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
    unit_h, unit_w = (step // before * after for step, before, after in steps)
    grown = tuple(count * step for count, step in zip(config.grid_size, (unit_h, unit_w), strict=True))
    wanted = size_pair("image_size", grown if image_size is None else image_size)
    # A model may have been made for a size that leaves pixels over: SigLIP so400m has patches of 14 pixels at 384.
    if patch == config.patch_size and wanted == config.image_size:
        return config
    up = whole_patches(wanted, (unit_h, unit_w), pad)
    return config.replace(image_size=up, patch_size=patch)


def whole_patches(size: tuple[int, int], unit: tuple[int, int], pad: bool) -> tuple[int, int]:
    """Return an image size in pixels as it is computed with, a whole number of patches.

    Args:
        size: (height, width) of the images.
        unit: (height, width) in pixels from one patch to the next.
        pad: round the size up instead of refusing it.

    Raises:
        ConfigError: the image is not a whole number of patches; names the nearest sizes that are.
    """
    # Rounded up without a negative number: ONNX divides towards zero.
    up = ((size[0] + unit[0] - 1) // unit[0] * unit[0], (size[1] + unit[1] - 1) // unit[1] * unit[1])
    if not pad and (size[0] % unit[0] or size[1] % unit[1]):
        down = tuple(max(side // step, 1) * step for side, step in zip(size, unit, strict=True))
        nearest = " and ".join(dict.fromkeys((str(down), str(up))))
        raise ConfigError(
            f"image_size={tuple(size)} is not a whole number of patches of {unit} pixels",
            hint=f"nearest sizes that are: {nearest}; or pad=True in vit_hub.load",
        )
    return up if pad else size


def resize_tensor(name: str, tensor: Tensor, old: ViTConfig, new: ViTConfig, resize: str = "source") -> Tensor:
    """Return a canonical tensor of a model at another size; the same object where nothing changes.

    Args:
        name: canonical name.
        tensor: as stored for ``old``.
        old: the config it fits.
        new: the config wanted, from :func:`resized_config`.
        resize: ``source`` or a method's name.

    Raises:
        ConfigError: there is no such method.
    """
    if name == "patch_embed.proj.weight":
        return _resize_kernel(tensor, old, new)
    if not name.endswith(TABLES) or (name.endswith(DECOMPOSED) and old.window(int(name.split(".")[1]))):
        return tensor
    return resize_table(name, tensor, old, new.grid_size, resize)


def resize_table(
    name: str, table: Tensor, config: ViTConfig, grid: Size, resize: str = "source", *, symbolic: bool = False
) -> Tensor:
    """Return a table of positions for another grid; the same object where nothing changes.

    Args:
        name: canonical name.
        table: as stored for ``config``.
        config: the config it fits.
        grid: (rows, columns) wanted.
        resize: ``source`` or a method's name.
        symbolic: the grid may be symbols of a program that is being recorded, so nothing is decided by its values.

    Raises:
        ConfigError: there is no such method.
    """
    import torch

    method, old = table_method(config, resize), config.grid_size
    by_count = name == "pos_embed" and resize == "source" and config.resize_by_count
    if not symbolic and (old == grid or (by_count and old[0] * old[1] == grid[0] * grid[1])):
        return table
    if name.startswith(("pos_embed", "mid_pos_embed")):
        first, last = config.num_prefix_rows, table.shape[-2] - config.num_detection_tokens
        # Of a factorized table each part has one axis.
        before, after = _sides(name, old), _sides(name, grid)
        square: int = torch.sym_max(*grid)  # type: ignore[no-untyped-call]
        wanted = _sides(name, (square, square)) if config.resize_square else after
        parts = []
        for part in table.flatten(0, -3):
            patches = _resample(part[first:last], before, wanted, _BESIDE_RELATIVE.get(method, method), symbolic)
            if config.resize_square:
                patches = _cropped(patches, wanted, after)
            parts.append(torch.cat((part[:first], patches, part[last:])))
        resized = torch.stack(parts).reshape(*table.shape[:-2], -1, table.shape[-1])
    elif name.endswith(DECOMPOSED):  # of one axis, which all projects resize so
        axis = DECOMPOSED.index(name.rpartition(".")[2])
        before, after = (2 * old[axis] - 1, 1), (2 * grid[axis] - 1, 1)
        resized = _resample(table, before, after, "bilinear", symbolic)
    else:  # offsets of 2n - 1 rows and columns; the three rows of a class token stay
        before, after = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, grid))
        count = config.num_relative_offsets
        resized = torch.cat((_resample(table[:count], before, after, method, symbolic), table[count:]))
    return _unless_same(table, resized, old, grid, by_count) if symbolic else resized


def _sides(name: str, grid: Size) -> Size:
    """The (rows, columns) that a position table has of a grid: one of either, where it is for one axis."""
    return (1 if name == "pos_embed_x" else grid[0], 1 if name == "pos_embed_y" else grid[1])


def _cropped(rows: Tensor, old: Size, new: Size) -> Tensor:
    """The first rows and columns of a grid's places, [N, C]."""
    import torch

    # By number: a slice's length is the lesser of two, of which a program for any size knows nothing.
    y, x = (torch.arange(side, device=rows.device) for side in new)
    return rows.index_select(0, (y[:, None] * old[1] + x).flatten())


def _resample(rows: Tensor, old: Size, new: Size, method: str, symbolic: bool) -> Tensor:
    """Rows of a grid's places, [N, C], at another size: a product of matrices in float64."""
    import torch

    from vit_hub.model.resample import axis_matrix, axis_weights

    wy, wx = (
        axis_weights(method, *sides, rows.device)
        if symbolic
        else torch.tensor(axis_matrix(method, *sides), device=rows.device)
        for sides in zip(old, new, strict=True)
    )
    grid = torch.einsum("yh,hwc->ywc", wy, rows.reshape(*old, -1).double())
    return torch.einsum("xw,ywc->yxc", wx, grid).flatten(0, 1).to(rows.dtype)


def _unless_same(table: Tensor, resized: Tensor, old: Size, grid: Size, by_count: bool) -> Tensor:
    """The resized table, or with its shape the table as it is where the running program finds its own grid."""
    import torch

    rows, columns = (torch.full((), size, device=table.device) for size in grid)
    same = (rows * columns == old[0] * old[1]) if by_count else (rows == old[0]) & (columns == old[1])
    axis = table.dim() - 2
    places = torch.arange(resized.shape[axis], device=table.device).clamp(max=table.shape[axis] - 1)
    return torch.where(same, table.index_select(axis, places), resized)


def _resize_kernel(kernel: Tensor, old: ViTConfig, new: ViTConfig) -> Tensor:
    """[D, C, (t,) p, q] by FlexiViT's pseudo-inverse (arXiv 2212.08013, section 3.4), one axis after the other."""
    import torch

    from vit_hub.model.resample import kernel_matrix

    if old.patch_size == new.patch_size:
        return kernel
    method = _KERNEL_METHODS[old.resize.startswith("bilinear")]
    sides = zip(old.patch_size, new.patch_size, strict=True)
    by, bx = (torch.tensor(kernel_matrix(method, *side), device=kernel.device) for side in sides)
    return torch.einsum("xw,...yw->...yx", bx, torch.einsum("yh,...hw->...yw", by, kernel.double())).to(kernel.dtype)
