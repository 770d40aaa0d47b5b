"""Loading a model from any checkpoint in one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vit_hub.conversion import open_checkpoint
from vit_hub.converters.build import build
from vit_hub.converters.collecting import no_collection
from vit_hub.converters.formats import all_formats
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.resize import resized_checkpoint
from vit_hub.hub.cache.paths import is_cached
from vit_hub.model.config import size_pair
from vit_hub.model.vit import VisionTransformer

__all__ = ["from_pretrained", "load"]

# Import the modules of all formats here, so that loading the first file does not pay for it.
all_formats()


def load(
    source: str | Path | Checkpoint,
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
    mmap: bool | None = None,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    base: str | Path | Checkpoint | None = None,
    head: str | Path | None = None,
    dequantize: bool = False,
    revision: str | None = None,
    locked: bool | str | Path = False,
    offline: bool = False,
    progress: bool = False,
) -> VisionTransformer:
    """Load a pretrained model, in evaluation mode.

    Nothing is initialised at random: the model is built on the ``meta`` device and the checkpoint's tensors become its
    parameters.

    Args:
        source: registry name or alias, timm name, Hugging Face repository, URL, a local file or folder of any supported
            format, or a checkpoint that :func:`vit_hub.open_checkpoint` opened.
        image_size: another (height, width) in pixels: position tables are resized.
        patch_size: another (height, width) of a patch: the patch kernel is resized by FlexiViT's pseudo-inverse; the
            image keeps its grid unless ``image_size`` is given, too.
        resize: ``source``: resize position tables as the checkpoint's own project does, to reproduce its outputs; or
            the name of a method.
        pad: accept an image size that is not a whole number of patches; images are padded with zeros.
        dynamic: take images of any size, one size per batch; models without a table to resize always do.
        num_classes: another number of classes: the head is replaced by a zero-initialised one (0: removed).
        in_chans: another number of image channels: the patch kernel is summed (1) or repeated, as timm does.
        device: where the parameters go; None: host memory.
        dtype: of the parameters; ``"auto"`` keeps the stored ones.
        mmap: let the parameters be views of the file, memory mapped, if it allows that: loading reads nothing, and
            memory is shared with the system's cache. The file must then stay as it is while the model lives: replace it
            by renaming, as all writers here do; a file that is cut short in place ends the process. False reads
            everything. None: map only files of vit-hub's cache, Hugging Face's cache and the package, which nothing
            changes in place.
        drop_rate: dropout in training (``model.train()``) where the paper has it: after the position table, the
            attention's projection and both linear layers of the feed-forward network. Like the next two, it is no part
            of what is saved.
        attn_drop_rate: dropout of the attention's weights in training.
        drop_path_rate: stochastic depth in training: the share of images that the last block leaves out; it grows
            linearly over the blocks, from 0.
        format: insist on a checkpoint format instead of recognising it.
        overrides: config fields that the file does not determine, such as ``{"num_heads": 3}``.
        prefix: what the names of the model to read begin with, such as ``student``, where a file holds several.
        base: of an adapter of peft: the model to merge it into, instead of the one that it names.
        head: file of a linear head to join with the model, such as ``dinov2_vits14_linear_head.pth``.
        dequantize: compute floating-point weights of quantized ones: bitsandbytes' 8 and 4 bits, 8-bit floats.
        revision: branch, tag or commit of the Hugging Face repository, instead of the one that the registry pins.
        locked: take exactly the files of this lock file, a head and an adapter's base included, and hash all of them;
            True: ``vit-hub.lock`` in the working folder.
        offline: open no connection; what is not in the cache is an error.
        progress: show progress bars on a terminal.

    Raises:
        ModelNotFoundError: there is no such name.
        DownloadError, IntegrityError: the weights cannot be fetched, or are not the pinned ones.
        CheckpointError, ConfigError: the file cannot be read as a Vision Transformer.
        ConfigError: the device cannot be used, or a rate is not in [0, 1).
    """
    ckpt = open_checkpoint(
        source,
        format=format,
        overrides=overrides,
        prefix=prefix,
        base=base,
        head=head,
        dequantize=dequantize,
        revision=revision,
        locked=locked,
        offline=offline,
        progress=progress,
    )
    if mmap is None:
        mmap = all(is_cached(file) for file in ckpt.source.files)
    with no_collection():
        for message in ckpt.warnings:
            warnings.warn(f"{ckpt.path}: {message}", stacklevel=2)
        ckpt = resized_checkpoint(ckpt, image_size, patch_size, resize=resize, pad=pad)
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate, "drop_path_rate": drop_path_rate}
        model = build(
            ckpt,
            num_classes=num_classes,
            in_chans=in_chans,
            device=device,
            dtype=dtype,
            mmap=mmap,
            drop_rates=rates,
        )
    model.dynamic, model.pad, model.resize = dynamic or model.dynamic, pad, resize
    if pad and image_size is not None:
        model.input_size = size_pair("image_size", image_size)
    return model


from_pretrained = load
"""The name that :func:`load` has in other libraries."""
