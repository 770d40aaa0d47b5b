"""``vit-hub convert``: convert a checkpoint to any format that can express the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.description import config_data, dropped_lines, grouped
from vit_hub.cli.options import (
    Verb,
    complete_source,
    force_option,
    format_option,
    resize_options,
    source_options,
    verbose_option,
)
from vit_hub.cli.output import Output, amount, count_of

if TYPE_CHECKING:
    from vit_hub.converters import Checkpoint, Report

_DTYPES = ("float32", "float16", "bfloat16", "float64")

_EPILOG = """\b
Examples:
  vit-hub convert B_16.npz b16.safetensors                  canonical, for vit_hub.load
  vit-hub convert B_16.npz b16/ --to hf                     a folder for transformers
  vit-hub convert vit-b16 b16.npz --to vit_jax              from the registry, for JAX
  vit-hub convert weights.pth out/ --set num_heads=3        supply what the file lacks
  vit-hub convert mae.pth out/ --keep-rest                  keep the decoder, too
  vit-hub convert dino.pth out/ --head linear.pth           join a linear head with its backbone
  vit-hub convert vit-b16 b16_384/ --to timm --image-size 384    for larger images
"""


@click.command("convert", cls=Verb, short_help="Convert a checkpoint to another format.", epilog=_EPILOG)
@click.argument("source", shell_complete=complete_source, metavar="SRC")
@click.argument("destination", type=click.Path(), metavar="DST")
@format_option(
    "--to",
    default="canonical",
    help="The format to write: canonical, timm, hf, hf_flax, hf_tf, keras_hub, vit_jax, big_vision, torchvision, "
    "mmpretrain, openai_clip, open_clip, facebook, videomae or unilm; or a dialect of one (listed in docs/formats.md).",
)
@resize_options
@click.option("--dtype", type=click.Choice(_DTYPES), help="Change the dtype. By default every tensor keeps its own.")
@click.option(
    "--lossy", is_flag=True, help="Write even if the format cannot express the model, and report what is lost."
)
@click.option(
    "--keep-rest",
    is_flag=True,
    help="Keep the tensors that are left out, in rest.safetensors or DST.rest.safetensors, for converting back.",
)
@click.option(
    "--strict-metadata",
    is_flag=True,
    help="Refuse to write files that lose class names, preprocessing or a text tower, instead of warning of it.",
)
@force_option
@verbose_option
@source_options
def command(
    output: Output,
    source: str,
    destination: str,
    to: str,
    resize_options: dict[str, Any],
    dtype: str | None,
    lossy: bool,
    keep_rest: bool,
    strict_metadata: bool,
    force: bool,
    verbose: bool,
    source_options: dict[str, Any],
) -> None:
    """Convert a checkpoint, tensor by tensor.

    Values stay the same bit for bit, unless the size or dtype is changed, or the format needs tensors folded, which is
    reported.

    DST is a file, whose suffix selects the container (.safetensors, .npz, .pth, ...), or a folder (no suffix, or / at
    its end), which gets the files customary for the format. Nothing that exists is replaced without --force, and with
    it no config file of anything but a model. Printed on stdout: the path for loading, the format, the size, and what
    was left out and why. With --quiet, print only the path.
    """
    from vit_hub.converters.containers.destination import check_destination
    from vit_hub.converters.resize import resized_checkpoint
    from vit_hub.converters.write import convert_checkpoint
    from vit_hub.progress import byte_bar

    check_destination(destination, overwrite=force)
    ckpt = vit_hub.open_checkpoint(source, **source_options, progress=not output.quiet)
    source_format = ckpt.format
    ckpt = resized_checkpoint(ckpt, **resize_options)
    with byte_bar("converting", _bytes(ckpt, dtype), show=not output.quiet) as advance:
        report = convert_checkpoint(
            ckpt,
            destination,
            to=to,
            dtype=dtype,
            lossy=lossy,
            keep_rest=keep_rest,
            strict_metadata=strict_metadata,
            overwrite=force,
            progress=advance,
        )
    if output.json:
        output.document(_as_data(report, source_format))
        return
    for message in report.warnings:
        output.warning(message)
    output.lines([str(report.path)])
    if not output.quiet:
        given = dict.fromkeys(source_options["overrides"], "--set")
        sizes = {"image_size": "--image-size", "patch_size": "--patch-size"}
        given |= {field: option for field, option in sizes.items() if resize_options[field] is not None}
        output.lines(_summary(output, report, source_format, given if verbose else None))


def _bytes(ckpt: Checkpoint, dtype: str | None) -> int:
    """Estimate how many bytes will be written."""
    from vit_hub.converters.tensors import DTYPES, TORCH_DTYPES

    if dtype is None:
        return sum(tensor.nbytes for tensor in ckpt.tensors.values())
    itemsize = DTYPES[TORCH_DTYPES[dtype]].carrier.itemsize
    return itemsize * sum(math.prod(tensor.shape) for tensor in ckpt.tensors.values())


def _summary(output: Output, report: Report, source_format: str, given: Mapping[str, str] | None) -> list[str]:
    """Describe the result; where the config is from only if ``given`` says which fields the user gave."""
    size = f"{amount(_size(report), 'B')} in {count_of(len(report.files), 'file')}"
    lines = output.fields([("format", f"{report.format}, from {source_format}"), ("size", size)])
    if given is not None:
        origins = [f"{origin}: {', '.join(fields)}" for origin, fields in grouped({**report.inferred, **given}).items()]
        lines += ["", output.heading("Config taken from"), *output.paragraphs(origins)]
    if report.dropped:
        lines += ["", output.heading("Left out"), *dropped_lines(output, report.dropped)]
    return lines


def _size(report: Report) -> int:
    return sum(file.stat().st_size for file in report.files)


def _as_data(report: Report, source_format: str) -> dict[str, Any]:
    return {
        "path": report.path,
        "files": report.files,
        "size": _size(report),
        "format": report.format,
        "source_format": source_format,
        **config_data(report.config),
        "inferred": report.inferred,
        "dropped": report.dropped,
        "warnings": report.warnings,
        "metadata_lost": report.metadata_lost,
    }
