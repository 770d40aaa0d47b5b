"""From any checkpoint to a model in one call."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_hub.config import size_pair
from vit_hub.converters.casting import to_torch, torch_dtype
from vit_hub.converters.format import all_formats
from vit_hub.devices import usable_device
from vit_hub.errors import ConfigError
from vit_hub.hub.sources import open_resolved, resolve
from vit_hub.layout import tensor_shapes
from vit_hub.model import VisionTransformer
from vit_hub.resizing import resized_checkpoint

if TYPE_CHECKING:
    from vit_hub.config import ViTConfig
    from vit_hub.converters import Checkpoint
    from vit_hub.converters.tensors import LazyTensor

__all__ = ["build", "load"]

# Threads that lay out and cast tensors; more than a few only wait for memory.
_READERS = min(4, os.cpu_count() or 1)
# Their modules are imported here, with all else that loading needs, and not while the first file waits.
all_formats()
_LOG = logging.getLogger("vit_hub")


def load(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    resize: str = "source",
    pad: bool = False,
    dynamic: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: bool = False,
) -> VisionTransformer:
    """A pretrained model, in evaluation mode.

    Nothing is initialised at random: the model is built on the ``meta`` device and the checkpoint's tensors, memory
    mapped where the file allows it, become its parameters.

    Args:
        source: registry name or alias, timm name, Hugging Face repository, URL, or a local file or folder of any
            supported format.
        image_size: another (height, width) in pixels: position tables are resized.
        patch_size: another (height, width) of a patch: the patch kernel is resized by FlexiViT's pseudo-inverse; the
            image keeps its grid unless ``image_size`` is given, too.
        resize: ``source``: position tables as the checkpoint's own project resizes them, so that the numbers are its
            authors'; or the name of a method.
        pad: accept an image size that is not a whole number of patches; images are padded with zeros.
        dynamic: take images of any size, each batch its own; models without a table to resize always do.
        num_classes: another number of classes: the head is replaced by a zero-initialised one (0: removed).
        in_chans: another number of image channels: the patch kernel is summed (1) or repeated, as timm does.
        device: where the parameters go; None leaves them in the memory-mapped file's host memory.
        dtype: of the parameters; ``"auto"`` keeps the stored ones.
        format: insist on a checkpoint format instead of recognising it.
        overrides: config fields that the file cannot tell, such as ``{"num_heads": 3}``.
        revision: branch, tag or commit of the Hugging Face repository, in place of the one that the registry pins.
        offline: open no connection; what is not in the cache is an error.
        progress: show progress bars on a terminal.

    Raises:
        ModelNotFoundError: no such name.
        DownloadError, IntegrityError: the weights cannot be had, or are not the pinned ones.
        CheckpointError, ConfigError: the file cannot be read as a Vision Transformer.
        ConfigError: the device cannot be used.
    """
    resolved = resolve(source, revision=revision, offline=offline, progress=progress)
    with _no_collection():
        ckpt = open_resolved(resolved, format=format, overrides=overrides)
        for message in ckpt.warnings:
            warnings.warn(f"{ckpt.path}: {message}", stacklevel=2)
        ckpt = resized_checkpoint(ckpt, image_size, patch_size, resize=resize, pad=pad)
        model = build(ckpt, num_classes=num_classes, in_chans=in_chans, device=device, dtype=dtype)
    model.dynamic, model.pad, model.resize = dynamic or model.dynamic, pad, resize
    if pad and image_size is not None:
        model.input_size = size_pair("image_size", image_size)
    return model


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from searching all of torch's objects while thousands of small ones are made.

    One such search takes longer than all the rest of loading a canonical file.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def build(
    ckpt: Checkpoint,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
) -> VisionTransformer:
    """The model of an opened checkpoint; arguments as for :func:`load`."""
    if device is not None and str(device) != "meta":  # which computes nothing, but shows the shapes
        device = usable_device(device)
    target = None if dtype == "auto" else dtype if isinstance(dtype, torch.dtype) else torch_dtype(dtype)
    if target is not None and not target.is_floating_point:
        raise ConfigError(f"dtype {dtype} is not a floating-point dtype")
    tensors = _read(ckpt.tensors, device, target)
    carried = {name: tensors.pop(name) for name in ckpt.passport.carried}
    config = ckpt.config
    if num_classes is not None and num_classes != config.num_classes:
        config = _replace_head(config, tensors, num_classes)
    if in_chans is not None and in_chans != config.in_chans:
        config = config.replace(in_chans=in_chans)
        first = next(name for name in _FIRST_KERNELS if name in tensors)
        tensors[first] = _adapt_channels(tensors[first], in_chans)
    with torch.device("meta"):
        model = VisionTransformer(config)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.reset_tables()
    model.passport, model.carried = ckpt.passport, carried
    return model.eval()


def _read(
    tensors: Mapping[str, LazyTensor], device: str | torch.device | None, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Every tensor on its device and in its dtype; a few are read at a time, so that no second copy is ever whole."""
    names = list(tensors)

    def share(part: int) -> dict[str, Tensor]:
        return {name: _placed(to_torch(tensors[name]), device, dtype) for name in names[part::_READERS]}

    with ThreadPoolExecutor(_READERS) as pool:
        found = {name: tensor for part in pool.map(share, range(_READERS)) for name, tensor in part.items()}
    return {name: found[name] for name in names}


def _placed(tensor: Tensor, device: str | torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """On the device and, where it is floating point, in the dtype asked for."""
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _replace_head(config: ViTConfig, tensors: dict[str, Tensor], num_classes: int) -> ViTConfig:
    """Zeros for a new head: its first gradients then come from the features alone, and nothing random is loaded."""
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
    """Kernel [D, C, p, q] for other channels, as timm's ``adapt_input_conv``: summed for one, else repeated.

    A repeated kernel is scaled by C / in_chans, so that equal channels give the same tokens.
    """
    chans = kernel.shape[1]
    if in_chans == 1:
        return kernel.float().sum(dim=1, keepdim=True).to(kernel.dtype)
    repeated = kernel.repeat(1, -(-in_chans // chans), 1, 1)[:, :in_chans]
    return (repeated.float() * (chans / in_chans)).to(kernel.dtype)
