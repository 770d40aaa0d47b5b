"""``vit-hub knn``: how well nearest neighbours tell the classes of embeddings apart."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb, test_option
from vit_hub.cli.output import Output, score_lines

_EPILOG = """\b
Examples:
  vit-hub embed dinov2-b14 imagenet/train/ -o train/
  vit-hub embed dinov2-b14 imagenet/val/ -o val/
  vit-hub knn train/ --test val/ --k 20
"""


@click.command("knn", cls=Verb, short_help="Measure k-NN accuracy of embeddings.", epilog=_EPILOG)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@test_option
@click.option("--k", type=click.IntRange(min=1), default=20, show_default=True, help="Number of neighbours.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=0.07,
    show_default=True,
    help="The lower, the more the nearest of them count.",
)
def command(output: Output, out: Path, test: Path | None, k: int, temperature: float) -> None:
    """Measure the accuracy of weighted nearest neighbours on OUT, a folder that `vit-hub embed` wrote, with labels.

    This is DINO's protocol: each of the k nearest images votes for its label with exp(cosine / temperature). Without
    --test each image of OUT is classified by all others. With --quiet, print top-1 alone.
    """
    from vit_hub.running.neighbours import knn

    found = knn(out, test, k=k, temperature=temperature)
    if output.json:
        output.document({"out": out, "test": test, "k": k, "temperature": temperature, **vars(found)})
    else:
        output.lines(score_lines(output, found))
