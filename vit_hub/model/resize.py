"""Models at another image or patch size: which tensors change, and how each is resized.

Position tables follow the source's own method (``ViTConfig.resize``) unless another is named; prefix rows are carried
over untouched. What is computed (rotary angles, sincos tables, relative indices) is computed again by the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_hub.errors import ConfigError
from vit_hub.model.config import RESIZE_METHODS, ViTConfig, size_pair
from vit_hub.model.resample import axis_matrix, kernel_matrix

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SIZED", "TABLES", "resize_tensor", "resized_config", "table_method"]

# The ends of the names of stored tensors that depend on the image size, and with them of those on the patch size.
TABLES = ("pos_embed", "relative_position_bias_table")
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
        raise ConfigError(f"resize={resize!r} is not known", hint=f"source, {', '.join(RESIZE_METHODS)}")
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
    if name == "pos_embed":
        by_count = resize == "source" and old.resize_by_count
        return _resize_table(tensor, old, new, table_method(old, resize), by_count)
    if name == "patch_embed.proj.weight":
        return _resize_kernel(tensor, old, new)
    if name.endswith("relative_position_bias_table"):
        return _resize_relative(tensor, old, new, table_method(old, resize))
    return tensor


def _matrix(method: str, old: int, new: int, like: Tensor) -> Tensor:
    import torch

    return torch.tensor(axis_matrix(method, old, new), device=like.device)


def _resample(grid: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """[rows, columns, ...] at another size: a product of matrices in float64."""
    import torch

    wy, wx = (_matrix(method, int(grid.shape[axis]), size[axis], grid) for axis in (0, 1))
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
