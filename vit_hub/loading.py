"""From any checkpoint to a model in one call."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_hub.converters.casting import to_torch, torch_dtype
from vit_hub.errors import ConfigError
from vit_hub.model import VisionTransformer
from vit_hub.sources import open_resolved, resolve

if TYPE_CHECKING:
    from vit_hub.config import ViTConfig
    from vit_hub.converters import Checkpoint

__all__ = ["build", "load"]

_LOG = logging.getLogger("vit_hub")


def load(
    source: str | Path,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    offline: bool = False,
    progress: bool = False,
) -> VisionTransformer:
    """A pretrained model, in evaluation mode.

    Nothing is initialised at random: the model is built on the ``meta`` device and the checkpoint's tensors, memory
    mapped where the file allows it, become its parameters.

    Args:
        source: registry name or alias, timm name, Hugging Face repository, URL, or a local file or folder of any
            supported format.
        num_classes: another number of classes: the head is replaced by a zero-initialised one (0: removed).
        in_chans: another number of image channels: the patch kernel is summed (1) or repeated, as timm does.
        device: where the parameters go; None leaves them in the memory-mapped file's host memory.
        dtype: of the parameters; ``"auto"`` keeps the stored ones.
        format: insist on a checkpoint format instead of recognising it.
        overrides: config fields that the file cannot tell, such as ``{"num_heads": 3}``.
        offline: open no connection; what is not in the cache is an error.
        progress: show progress bars on a terminal.

    Raises:
        ModelNotFoundError: no such name.
        DownloadError, IntegrityError: the weights cannot be had, or are not the pinned ones.
        CheckpointError, ConfigError: the file cannot be read as a Vision Transformer.
    """
    resolved = resolve(source, offline=offline, progress=progress)
    ckpt = open_resolved(resolved, format=format, overrides=overrides)
    for message in ckpt.warnings:
        warnings.warn(f"{ckpt.path}: {message}", stacklevel=2)
    return build(ckpt, num_classes=num_classes, in_chans=in_chans, device=device, dtype=dtype)


def build(
    ckpt: Checkpoint,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
) -> VisionTransformer:
    """The model of an opened checkpoint; arguments as for :func:`load`."""
    target = None if dtype == "auto" else dtype if isinstance(dtype, torch.dtype) else torch_dtype(dtype)
    if target is not None and not target.is_floating_point:
        raise ConfigError(f"dtype {dtype} is not a floating-point dtype")
    tensors = {name: to_torch(tensor).to(device=device, dtype=target) for name, tensor in ckpt.tensors.items()}
    carried = {name: tensors.pop(name) for name in ckpt.passport.carried}
    config = ckpt.config
    if num_classes is not None and num_classes != config.num_classes:
        config = _replace_head(config, tensors, num_classes)
    if in_chans is not None and in_chans != config.in_chans:
        config = config.replace(in_chans=in_chans)
        tensors["patch_embed.proj.weight"] = _adapt_channels(tensors["patch_embed.proj.weight"], in_chans)
    with torch.device("meta"):
        model = VisionTransformer(config)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.reset_tables()
    model.passport, model.carried = ckpt.passport, carried
    return model.eval()


def _replace_head(config: ViTConfig, tensors: dict[str, Tensor], num_classes: int) -> ViTConfig:
    """Zeros for a new head: its first gradients then come from the features alone, and nothing random is loaded."""
    heads = [name for name in tensors if name.split(".")[0] in ("head", "head_dist")]
    like = tensors["patch_embed.proj.weight"]
    for name in heads:
        del tensors[name]
    changed = config.replace(num_classes=num_classes)
    if num_classes:
        width = config.representation_dim or config.projection_dim or config.embed_dim
        for head in ("head", "head_dist") if config.pool == "cls_dist" else ("head",):
            tensors[f"{head}.weight"] = like.new_zeros(num_classes, width)
            tensors[f"{head}.bias"] = like.new_zeros(num_classes)
    _LOG.warning("the head for %d classes is replaced by zeros for %d", config.num_classes, num_classes)
    return changed


def _adapt_channels(kernel: Tensor, in_chans: int) -> Tensor:
    """Patch kernel [D, C, p, q] for other channels, as timm's ``adapt_input_conv``: summed for one, else repeated.

    A repeated kernel is scaled by C / in_chans, so that equal channels give the same tokens.
    """
    chans = kernel.shape[1]
    if in_chans == 1:
        return kernel.float().sum(dim=1, keepdim=True).to(kernel.dtype)
    repeated = kernel.repeat(1, -(-in_chans // chans), 1, 1)[:, :in_chans]
    return (repeated.float() * (chans / in_chans)).to(kernel.dtype)
