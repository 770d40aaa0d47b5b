"""Building a model from an opened checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from vit_hub.converters.casting import to_torch, torch_dtype
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig
from vit_hub.model.device import Uploader, usable_device
from vit_hub.model.shapes import tensor_shapes
from vit_hub.model.vit import VisionTransformer

__all__ = ["build"]

# Threads that lay out and cast tensors; more than a few only wait for memory.
_READERS = min(4, os.cpu_count() or 1)
# Rotations are computed from these in float64, whatever dtype the model has.
_KEPT_WIDE = ("rope_embed.periods",)
_LOG = logging.getLogger("vit_hub")


def build(
    ckpt: Checkpoint,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    mmap: bool = True,
    drop_rates: Mapping[str, float] | None = None,
) -> VisionTransformer:
    """Return the model of an opened checkpoint.

    Args:
        ckpt: the checkpoint.
        num_classes: as for :func:`vit_hub.load`, like the arguments that follow.
        in_chans: likewise.
        device: likewise.
        dtype: likewise.
        mmap: likewise.
        drop_rates: ``drop_rate``, ``attn_drop_rate``, ``drop_path_rate`` of the model.
    """
    if device is not None and str(device) != "meta":  # nothing can be computed on it
        device = usable_device(device)
    target = None if dtype == "auto" else dtype if isinstance(dtype, torch.dtype) else torch_dtype(dtype)
    if target is not None and not target.is_floating_point:
        raise ConfigError(f"dtype {dtype} is not a floating-point dtype")
    tensors = _read(ckpt.tensors, device, target, mmap)
    carried = {name: tensors.pop(name) for name in ckpt.passport.carried}
    config, passport = ckpt.config, ckpt.passport
    if num_classes is not None and num_classes != config.num_classes:
        config, passport = _replace_head(config, tensors, num_classes), passport.without_labels()
    if in_chans is not None and in_chans != config.in_chans:
        config = config.replace(in_chans=in_chans)
        first = next(name for name in _FIRST_KERNELS if name in tensors)
        tensors[first] = _adapt_channels(tensors[first], in_chans)
    with torch.device("meta"):
        model = VisionTransformer(config, **drop_rates or {})
    model.load_state_dict(tensors, strict=True, assign=True)
    model.passport, model.carried = passport, carried
    return model.eval()


def _read(
    tensors: Mapping[str, LazyTensor], device: str | torch.device | None, dtype: torch.dtype | None, mmap: bool
) -> dict[str, Tensor]:
    """Read every tensor, a few at a time so that there is never a second copy of all, to its device and dtype."""
    # By size, so that each reader gets as much as the others, and not all weights one and all biases another.
    names, place = sorted(tensors, key=lambda name: tensors[name].nbytes), torch.device(device or "cpu")

    def share(part: int) -> dict[str, Tensor]:
        uploader = Uploader(place) if place.type == "cuda" else None
        placed = {
            name: _placed(tensors[name], place, None if name in _KEPT_WIDE else dtype, mmap, uploader)
            for name in names[part::_READERS]
        }
        if uploader is not None:
            uploader.finish()
        return placed

    with ThreadPoolExecutor(_READERS) as pool:
        found = {name: tensor for part in pool.map(share, range(_READERS)) for name, tensor in part.items()}
    return {name: found[name] for name in tensors}


def _placed(
    lazy: LazyTensor, device: torch.device, dtype: torch.dtype | None, mmap: bool, uploader: Uploader | None
) -> Tensor:
    """The tensor on a device and, if it is floating point, in a dtype; with memory of its own unless ``mmap``."""
    stored = torch_dtype(lazy.dtype)
    target = dtype if dtype is not None and stored.is_floating_point else stored
    if uploader is not None:
        return uploader.upload(to_torch(lazy), target)
    is_view = target == stored and device.type == "cpu"
    return to_torch(lazy, own=is_view and not mmap).to(device=device, dtype=target)


def _replace_head(config: ViTConfig, tensors: dict[str, Tensor], num_classes: int) -> ViTConfig:
    """Replace the head by one of zeros, which is deterministic and leaves the features alone in the first gradients."""
    without = {} if num_classes else {"head_norm": False, "head_input": "pooled"}
    changed = config.replace(num_classes=num_classes, **without)
    shapes, like = tensor_shapes(changed), tensors["patch_embed.proj.weight"]
    for name in [name for name in tensors if name not in shapes]:
        del tensors[name]
    for name, shape in shapes.items():
        if name.startswith(("head.", "head_dist.")):
            tensors[name] = like.new_zeros(shape)
    _LOG.warning("the head for %d classes is replaced by zeros for %d", config.num_classes, num_classes)
    return changed


# The first of these that a model has reads the image.
_FIRST_KERNELS = (
    "patch_embed.backbone.stem.conv.weight",
    "patch_embed.backbone.layers.0.conv.weight",
    "patch_embed.proj.weight",
)


def _adapt_channels(kernel: Tensor, in_chans: int) -> Tensor:
    """Adapt a kernel [D, C, ...] to other channels as timm's ``adapt_input_conv`` does: sum for one, else repeat.

    A repeated kernel is scaled by C / in_chans, so that equal channels give the same tokens.
    """
    chans = kernel.shape[1]
    if in_chans == 1:
        return kernel.float().sum(dim=1, keepdim=True).to(kernel.dtype)
    repeated = kernel.repeat(1, -(-in_chans // chans), *(1 for _ in kernel.shape[2:]))[:, :in_chans]
    return (repeated.float() * (chans / in_chans)).to(kernel.dtype)
