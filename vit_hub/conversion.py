"""Open, convert and compare checkpoints by any name that :func:`vit_hub.load` takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vit_hub.converters.checkpoint import Checkpoint
from vit_hub.converters.comparison import TOLERANCE, Comparison, compare_checkpoints
from vit_hub.converters.conversion import Report, convert_checkpoint
from vit_hub.errors import ConfigError
from vit_hub.hub.sources import open_resolved, resolve
from vit_hub.resizing import resized_checkpoint
from vit_hub.transforms import preprocessing_of

__all__ = ["compare", "convert", "open_checkpoint"]


def open_checkpoint(
    source: str | Path,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: bool = False,
) -> Checkpoint:
    """Opens a checkpoint of any format, without reading its tensors.

    Args:
        source: registry name, Hugging Face repository, URL, or local file or folder.
        format: insist on a format instead of recognising it.
        overrides: config fields that the file cannot tell.
        revision: branch, tag or commit of the Hugging Face repository, as for :func:`vit_hub.load`.
        offline: open no connection.
        progress: show progress bars on a terminal.

    Returns:
        ``.format``, ``.config``, ``.tensors`` (canonical names, lazy), ``.provenance``, ``.dropped``, ``.inferred``.

    Raises:
        VitHubError: as for :func:`vit_hub.load`.
    """
    resolved = resolve(source, revision=revision, offline=offline, progress=progress)
    return open_resolved(resolved, format=format, overrides=overrides)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "canonical",
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    resize: str = "source",
    dtype: str | None = None,
    lossy: bool = False,
    keep_rest: bool = False,
    revision: str | None = None,
    offline: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Converts a checkpoint; every tensor of the source is accounted for in the report.

    Args:
        source: registry name, Hugging Face repository, URL, or local file or folder.
        destination: a file (its suffix says the container) or a folder for the format's customary files.
        to: the target format: ``canonical``, ``timm``, ``hf``, ``vit_jax`` ..., or what ``open_checkpoint(...).format``
            said.
        format: insist on a source format instead of recognising it.
        overrides: config fields that the source cannot tell.
        image_size: write the model for another (height, width) in pixels: position tables are resized.
        patch_size: another (height, width) of a patch, as for :func:`vit_hub.load`.
        resize: ``source``: position tables as the source's own project resizes them; or the name of a method.
        dtype: change the dtype (``bfloat16``, ``float16``, ``float32``); None keeps every tensor's own.
        lossy: write it even where the target cannot express the model; the warnings say what changes and by how much.
        keep_rest: keep what is left out of the source in ``*.rest.safetensors`` beside the result.
        revision: branch, tag or commit of the Hugging Face repository, as for :func:`vit_hub.load`.
        offline: open no connection.
        progress: called with the bytes written since the last call.

    Raises:
        ConfigError: the image is not a whole number of patches, or there is no such method.
        UnsupportedByFormatError: the target cannot express the model; names the field and the formats that can.
        VitHubError: the source cannot be read or the destination cannot be written.
    """
    told: dict[str, Any] = {"format": format, "overrides": overrides, "revision": revision, "offline": offline}
    ckpt = open_checkpoint(source, **told, progress=progress is not None)
    ckpt = resized_checkpoint(ckpt, image_size, patch_size, resize=resize)
    if ckpt.passport.preprocess is None and to != "canonical":
        ckpt = _with_preprocessing(ckpt)
    report = convert_checkpoint(
        ckpt, destination, to=to, dtype=dtype, lossy=lossy, keep_rest=keep_rest, progress=progress
    )
    if any(message.startswith("lossy:") for message in report.warnings):
        report.warnings.append(_loss(ckpt, report))
    return report


def _with_preprocessing(ckpt: Checkpoint) -> Checkpoint:
    """The conventional preprocessing, for config files that have a place for it."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = preprocessing_of(ckpt.passport, ckpt.config.image_size, ckpt.config.in_chans)
    except ConfigError:
        # Images of other than one or three channels: no config file has words for them.
        return ckpt
    return dataclasses.replace(ckpt, passport=dataclasses.replace(ckpt.passport, preprocess=found.to_dict()))


def _loss(ckpt: Checkpoint, report: Report) -> str:
    """By how much a lossy conversion changes the outputs, in words."""
    from vit_hub.hub.sources import Resolved

    told = {"num_heads": ckpt.config.num_heads, "image_size": ckpt.config.image_size}
    try:
        written = open_resolved(Resolved(report.path), format=report.format, overrides=told)
        difference = _outputs_differ(ckpt, written)
    except Exception as error:
        return f"lossy: the result cannot be read back to measure the loss: {error}"
    if difference is None:
        return "lossy: the outputs have another shape than the source's"
    return f"lossy: outputs on a random image differ from the source's by up to {difference:.2g}"


def compare(
    first: str | Path,
    second: str | Path,
    *,
    formats: tuple[str | None, str | None] = (None, None),
    overrides: Mapping[str, Any] | None = None,
    offline: bool = False,
) -> Comparison:
    """The same weights? The same numbers? Across any two formats.

    Args:
        first: registry name, Hugging Face repository, URL, or local file or folder.
        second: likewise.
        formats: insist on formats instead of recognising them.
        overrides: config fields that neither file can tell.
        offline: open no connection.

    Returns:
        ``.same_weights``, ``.same_numbers``, a row per tensor, the config fields that differ, and the largest
        difference of the outputs on a random image.

    Raises:
        VitHubError: one of them cannot be read.
    """
    a = open_checkpoint(first, format=formats[0], overrides=overrides, offline=offline)
    b = open_checkpoint(second, format=formats[1], overrides=overrides, offline=offline)
    return compare_checkpoints(a, b, _outputs_differ)


def _outputs_differ(a: Checkpoint, b: Checkpoint) -> float | None:
    """Largest absolute difference of outputs and embeddings on one seeded random image; None if shapes differ."""
    import torch

    from vit_hub.loading import build

    models = [build(item) for item in (a, b)]
    if models[0].config.image_size != models[1].config.image_size or (
        models[0].config.in_chans != models[1].config.in_chans
    ):
        return None
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, models[0].config.in_chans, *models[0].config.image_size, generator=generator)
    poolless = any(model.config.pool == "none" for model in models)
    with torch.inference_mode():
        # Embeddings too: heads may differ in width, or hide everything behind zeros.
        outputs = [
            (model(images), model.forward_features(images) if poolless else model.embed(images)) for model in models
        ]
    differences = [float((x - y).abs().max()) for x, y in zip(*outputs, strict=True) if x.shape == y.shape]
    # The outputs' own difference tells most, unless it is nothing but rounding.
    return next((found for found in differences if found > TOLERANCE), max(differences, default=None))
