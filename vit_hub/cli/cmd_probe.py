"""``vit-hub probe``: how well a linear classifier tells the classes of embeddings apart."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb, test_option
from vit_hub.cli.output import Output, score_lines

_EPILOG = """\b
Examples:
  vit-hub embed dinov2-b14 imagenet/train/ -o train/
  vit-hub embed dinov2-b14 imagenet/val/ -o val/
  vit-hub probe train/ --test val/
"""


@click.command("probe", cls=Verb, short_help="Measure the accuracy of a linear probe.", epilog=_EPILOG)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@test_option
@click.option(
    "--strength",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Inverse of the regularization, scikit-learn's C.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides which images are held out without --test."
)
def command(output: Output, out: Path, test: Path | None, strength: float, seed: int) -> None:
    """Measure the accuracy of a logistic regression on OUT, a folder that `vit-hub embed` wrote, with labels.

    Features are standardized. Without --test a fifth of the images of each label is held out. With --quiet, print top-1
    alone. scikit-learn is needed: pip install 'vit-hub[embed]'.
    """
    from vit_hub.running.neighbours import probe

    found = probe(out, test, strength=strength, seed=seed)
    if output.json:
        output.document({"out": out, "test": test, "strength": strength, "seed": seed, **vars(found)})
    else:
        output.lines(score_lines(output, found))
