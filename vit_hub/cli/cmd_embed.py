"""``vit-hub embed``: features of many images, in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import vit_hub
from vit_hub.cli.failures import FAILED, INTERRUPTED
from vit_hub.cli.options import (
    Verb,
    complete_source,
    loading_options,
    running_options,
)
from vit_hub.cli.output import Output, count_of

_EPILOG = """\b
Examples:
  vit-hub embed vit-b16 photos/ -o features/
  vit-hub embed vit-b16 "shards/*.tar" train.parquet -o features/ --device cuda --dtype bfloat16
  find / -name "*.jpg" | vit-hub embed vit-b16 - -o features/ --normalize
  torchrun --nproc-per-node 8 -m vit_hub embed vit-b16 photos/ -o features/ --device cuda

\b
Read the result with pyarrow.dataset.dataset("features/"), pandas.read_parquet("features/"), or any program that
reads a folder of parquet files.
"""


@click.command("embed", cls=Verb, short_help="Compute features of many images.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@click.argument("images", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write or go on with.",
)
@click.option(
    "--what",
    metavar="OUTPUT",
    default="embedding",
    show_default=True,
    help="embedding (pooled), logits, projection (CLIP's), tokens (all, before pooling), or block:N (as block N "
    "leaves them).",
)
@click.option("--normalize", is_flag=True, help="Divide embeddings by their length.")
@click.option(
    "--to",
    type=click.Choice(["parquet", "npy", "safetensors", "lance"]),
    default="parquet",
    show_default=True,
    help="Format of the files.",
)
@click.option(
    "--store",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype in the files; --dtype is that of the computation.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    help="Images in a file. Default: 1024, or fewer where their outputs are large.",
)
@click.option(
    "--max-patches",
    type=click.IntRange(min=1),
    help="Let each image keep its aspect ratio, with so many patches at most (NaFlex, SigLIP 2, rotary positions).",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Compute in this process, or on a cluster of Ray (that of RAY_ADDRESS, or of this machine).",
)
@click.option(
    "--actors", type=click.IntRange(min=1), help="Processes of Ray with the model. Default: one per GPU or core."
)
@click.option("--skip-errors", is_flag=True, help="Exit with 0 although images could not be read.")
@click.option("--retry-errors", is_flag=True, help="Compute the files with such images again.")
@running_options
@loading_options
def command(
    output: Output,
    model: str,
    images: tuple[str, ...],
    out: Path,
    skip_errors: bool,
    running_options: dict[str, Any],
    loading_options: dict[str, Any],
    **options: Any,
) -> int:
    """Compute features of images and write them to a folder.

    A SOURCE is an image, a folder with images at any depth (the first subfolder is the label), a pattern, a tar shard
    of WebDataset, a parquet file with a column of images, an http(s) address, a .txt file or - (stdin) with one of
    these a line.

    Rows have id, path, label, width, height and embedding. Every image gets one row in one run, however often it is
    interrupted: started again, the command computes what is missing. Images that cannot be read are listed in
    _errors.jsonl, and the exit status is 1. _manifest.json says which weights, preprocessing and settings the rows are
    of; others are refused. Under torchrun and SLURM each process computes its share of the files.
    """
    try:
        report = vit_hub.embed(
            model,
            images,
            out,
            **options,
            **running_options,
            **loading_options,
            progress=not output.quiet and not output.json,
        )
    except KeyboardInterrupt:
        hint = "run the same command again to go on: what is finished is not computed again"
        output.error({"type": "KeyboardInterrupt", "message": "interrupted", "hint": hint})
        return INTERRUPTED
    if output.json:
        output.document(report)
    else:
        lines = [("images", f"{report.images:,}"), ("written", count_of(report.rows, "row"))]
        lines += [
            ("done before", f"{count_of(report.skipped, 'shard')} of {report.shards:,}" if report.skipped else "")
        ]
        lines += [("missing", "" if report.complete else "shards of other processes")]
        lines += [("errors", f"{report.errors:,}, listed in {out / '_errors.jsonl'}" if report.errors else "")]
        output.lines([str(out)] if output.quiet else [output.heading(str(out)), *output.fields(lines)])
    return FAILED if report.errors and not skip_errors else 0
