"""``vit-hub search``: images of a folder of embeddings that are near another one."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb, complete_source, device_option, offline_option
from vit_hub.cli.output import Output

_EPILOG = """\b
Examples:
  vit-hub embed vit-b16 photos/ -o features/
  vit-hub search features/ cat.jpg
  vit-hub search features/ cat.jpg --k 100 --json
"""


@click.command("search", cls=Verb, short_help="Find the images nearest to one.", epilog=_EPILOG)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("image", type=click.Path())
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Number of images to print.")
@click.option("--model", shell_complete=complete_source, help="The model, where it is not where it was.")
@device_option
@offline_option
def command(output: Output, out: Path, image: str, k: int, model: str | None, device: str, offline: bool) -> None:
    """Find the images of OUT, a folder that `vit-hub embed` wrote, that are nearest to IMAGE.

    IMAGE is embedded by the same model with the same settings, as the folder's manifest says. All embeddings are
    compared with it, by the cosine of the angle. With --quiet, print one line per image: path and similarity, separated
    by a tab.
    """
    from vit_hub.running.neighbours import search

    found = search(out, image, k=k, source=model, device=device, offline=offline)
    if output.json:
        output.document({"out": out, "image": image, "neighbours": found})
    elif output.quiet:
        output.lines(f"{each.path}\t{each.similarity:.4f}" for each in found)
    else:
        rows = [(f"{each.similarity:.4f}", each.path, each.label or "") for each in found]
        output.lines(output.table(("similarity", "path", "label"), rows))
