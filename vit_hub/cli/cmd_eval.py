"""``vit-hub eval``: accuracy on labelled images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.failures import FAILED
from vit_hub.cli.options import (
    Verb,
    complete_source,
    loading_options,
    running_options,
)
from vit_hub.cli.output import Output

if TYPE_CHECKING:
    from vit_hub.running.evaluation import Evaluation

_EPILOG = """\b
Examples:
  vit-hub eval vit-b16 imagenet/val/
  vit-hub eval vit-b16 "val/*.parquet" --device cuda --dtype bfloat16 --json
  vit-hub eval weights.pth photos/ --set num_heads=3 --mean 0.5 --std 0.5 --per-class
  vit-hub eval finetuned.safetensors photos/ --mapping classes.tsv --confusion confusion.csv
"""


@click.command("eval", cls=Verb, short_help="Measure accuracy on labelled images.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@click.argument("images", nargs=-1, required=True, metavar="DIR|PARQUET...", type=click.Path())
@click.option(
    "--mapping",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File that maps labels to classes: a JSON object, or lines of label, tab, index, synset or name.",
)
@click.option("--per-class", is_flag=True, help="Print the accuracy of each class.")
@click.option(
    "--confusion",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a CSV file with the number of images by label (rows) and prediction (columns).",
)
@click.option("--skip-errors", is_flag=True, help="Exit with 0 although images could not be read.")
@running_options
@loading_options
def command(
    output: Output,
    model: str,
    images: tuple[str, ...],
    mapping: Path | None,
    per_class: bool,
    confusion: Path | None,
    skip_errors: bool,
    running_options: dict[str, Any],
    loading_options: dict[str, Any],
) -> int:
    """Measure the accuracy of a classifier on labelled images.

    The images are in a folder with a subfolder for each class, in a parquet file with a column of labels, or in tar
    shards of WebDataset. A label that is a number is the index of the model's output; others are ImageNet's synsets
    (n01440764), names of classes, or what --mapping says. "interval" is Wilson's 95 % confidence interval of top-1; the
    published accuracy of the weights, where it is known, is compared with it. With --quiet, print top-1 alone.
    """
    found = vit_hub.evaluate(
        model,
        images,
        mapping=mapping,
        progress=not output.quiet and not output.json,
        **running_options,
        **loading_options,
    )
    if confusion is not None:
        _write_confusion(confusion, found)
    if output.json:
        output.document({name: value for name, value in vars(found).items() if name != "confusion"})
    elif output.quiet:
        output.lines([f"{found.top1:.4f}"])
    else:
        output.lines(_lines(output, found, per_class))
    return FAILED if found.errors and not skip_errors else 0


def _lines(output: Output, found: Evaluation, per_class: bool) -> list[str]:
    low, high = found.interval
    published = ""
    if found.published is not None:
        where = "within" if found.within else "outside"
        published = f"{found.published:.2%}, {where} the interval ({found.published_name})"
    rows = [
        ("images", f"{found.images:,}"),
        ("top-1", f"{found.top1:.2%} (95 % interval {low:.2%} to {high:.2%})"),
        ("top-5", f"{found.top5:.2%}"),
        ("published", published),
        ("errors", f"{found.errors:,} images could not be read" if found.errors else ""),
    ]
    lines = output.fields(rows, indent="")
    if per_class:
        cells = [
            (each.label, each.name or "", str(each.index), f"{each.images:,}", _share(each)) for each in found.classes
        ]
        header = ("label", "class", "index", "images", "top-1")
        lines += ["", *output.table(header, cells, right=("index", "images", "top-1"))]
    return lines


def _share(row: Any) -> str:
    return f"{row.top1:.2%}" if row.images else "-"


def _write_confusion(path: Path, found: Evaluation) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", *range(found.confusion.shape[1])])
        for row, each in zip(found.confusion.tolist(), found.classes, strict=True):
            writer.writerow([each.label, *row])
