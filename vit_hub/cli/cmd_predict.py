"""``vit-hub predict``: classify images."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import click

from vit_hub.cli.failures import FAILED, INTERRUPTED
from vit_hub.cli.options import (
    Verb,
    complete_source,
    loading_options,
    running_options,
)
from vit_hub.cli.output import Output, plain
from vit_hub.progress import on_terminal, step_bar

if TYPE_CHECKING:
    from vit_hub.running.classifying import Prediction

_COLUMNS = ("image", "rank", "index", "name", "probability")
_EPILOG = """\b
Examples:
  vit-hub predict vit-b16 cat.jpg dog.png
  vit-hub predict vit-b16 photos/ --top 1 --json
  vit-hub predict vit-b16 "shards/*.tar" --jsonl --device cuda > classes.jsonl
  vit-hub predict finetuned.safetensors photos/ --quiet
  vit-hub predict vit-b16 cat.jpg --image-size 384
"""


@click.command("predict", cls=Verb, short_help="Classify images.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path())
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Number of classes to print.")
@click.option("--jsonl", "form", flag_value="jsonl", help="Print one JSON object a line, as results come.")
@click.option("--csv", "form", flag_value="csv", help=f"Print lines of {', '.join(_COLUMNS)}, as results come.")
@running_options
@loading_options
def command(
    output: Output,
    model: str,
    images: tuple[str, ...],
    top: int,
    form: str | None,
    running_options: dict[str, Any],
    loading_options: dict[str, Any],
) -> int:
    """Classify images: print the most probable classes of each.

    An IMAGE is a file that Pillow can read, a folder with images at any depth, a pattern, a tar shard of WebDataset, a
    parquet file with a column of images, an http(s) address, a .txt file or - (stdin) with one of these a line. Images
    are preprocessed as the model's own project does it. If one cannot be read, the error goes to stderr, the others are
    classified nevertheless, and the exit status is 1. Results are printed as they come, and stay when you press Ctrl-C.
    With --quiet, print one line per image: path, class and probability, separated by tabs.
    """
    from vit_hub.running.classifying import classify
    from vit_hub.running.models import runnable
    from vit_hub.running.sources import Sources

    columns = {name: running_options.pop(name) for name in ("image_column", "label_column")}
    sources = Sources.of(images, **columns)
    net = runnable(
        model,
        progress=not output.quiet,
        **loading_options,
    )
    found: list[dict[str, Any]] = []
    failed = interrupted = False
    # Lines on a terminal would be mixed with a bar.
    show = not output.quiet and output.width is None and on_terminal()
    if form == "csv":
        output.lines([_csv(_COLUMNS)])
    try:
        with step_bar("classifying", sources.count() if show else None, show=show) as advance:
            for prediction in classify(net, sources, top=top, **running_options):
                advance(1)
                item = _data(prediction)
                failed = failed or prediction.error is not None
                if output.json:
                    found.append(item)
                elif form == "jsonl":
                    output.lines([json.dumps(plain(item))])
                elif prediction.error is not None:
                    output.error(item["error"])
                elif form == "csv":
                    rows = [
                        {"image": item["image"], "rank": rank + 1, **each} for rank, each in enumerate(item["classes"])
                    ]
                    output.lines(_csv(tuple(row[name] for name in _COLUMNS)) for row in rows)
                else:
                    output.lines(_lines(output, item))
    except KeyboardInterrupt:
        interrupted = True
        if not output.json:
            output.error(
                {"type": "KeyboardInterrupt", "message": "interrupted", "hint": "the lines above are complete"}
            )
    if output.json:
        output.document({"model": model, "predictions": found})
    return INTERRUPTED if interrupted else FAILED if failed else 0


def _data(prediction: Prediction) -> dict[str, Any]:
    name = prediction.item.name
    if prediction.error is None:
        return {"image": name, "classes": [vars(guess) for guess in prediction.classes]}
    hint = "is the file complete, and an image?"
    if "not finite" in prediction.error:
        hint = "`vit-hub inspect MODEL --values` looks for NaN in it"
    error = {"type": "VitHubError", "message": f"{name}: {prediction.error}", "hint": hint}
    return {"image": name, "error": error}


def _csv(cells: tuple[Any, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _lines(output: Output, prediction: dict[str, Any]) -> list[str]:
    rows = [(item["name"] or f"class {item['index']}", item["probability"]) for item in prediction["classes"]]
    if output.quiet:
        return [f"{prediction['image']}\t{rows[0][0]}\t{rows[0][1]:.4f}"]
    return [output.heading(str(prediction["image"])), *(f"  {share:7.2%}  {name}" for name, share in rows)]
