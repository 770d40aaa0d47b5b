"""``vit-hub recommend``: choose a model by published results, and explain why."""

from __future__ import annotations

from typing import Any

import click

from vit_hub.choosing import TASKS, Recommendation, recommend, results_for
from vit_hub.cli.options import Verb, selection_options
from vit_hub.cli.output import Output, amount, count_of
from vit_hub.model.flops import forward_flops
from vit_hub.registry import UNKNOWN_LICENSE, get_entry
from vit_hub.shown import size_text

_SHOWN = 5
_HEADERS = {"features": ("linear", "k-NN"), "classify": ("top-1",)}
_USES = {"features": "vit-hub embed {id} IMAGES -o FOLDER", "classify": "vit-hub predict {id} IMAGE"}
_EPILOG = """\b
Examples:
  vit-hub recommend --task features --max-params 30M --license commercial
  vit-hub recommend --task classify --max-gflops 10
  vit-hub download "$(vit-hub recommend --task features --max-params 100M -q)"
"""


@click.command("recommend", cls=Verb, short_help="Choose a model, and explain the choice.", epilog=_EPILOG)
@click.argument("words", nargs=-1, metavar="[WORD...]")
@click.option(
    "--task",
    type=click.Choice(TASKS),
    required=True,
    help="features: an encoder for search, clustering, probes; classify: a model with classes of its own.",
)
@selection_options
def command(output: Output, words: tuple[str, ...], task: str, **conditions: Any) -> None:
    """Choose the model with the best published result among those that meet the conditions, and explain the choice.

    Nothing is guessed: features are ranked by the published accuracy of a linear classifier on them, then of k nearest
    neighbours, classifiers by that of their own head, all on ImageNet-1k. Models without such a result on record are
    counted, not ranked. Your images may ask for another model: `vit-hub knn`, `probe` and `eval` measure on them. WORDs
    and conditions are those of `vit-hub list`. With --quiet, print only the id.
    """
    found = recommend(task, pattern=words, **conditions)
    if output.json:
        output.document(found)
    elif output.quiet:
        output.lines([found.id])
    else:
        output.lines(_lines(output, found))


def _lines(output: Output, found: Recommendation) -> list[str]:
    entry = get_entry(found.id)
    first, *further = found.results
    best = f", the best on record of {count_of(len(found.ranked), 'model')}" if len(found.ranked) > 1 else ""
    licence = "not an open one: read its terms" if entry.restricted else "an open one"
    cost, size = amount(forward_flops(entry.config), "FLOP"), size_text(entry.config.image_size)
    rows = [
        ("because of", f"{first.value} % {first.name}{best}, according to {first.evidence}"),
        *(("and", f"{metric.value} % {metric.name}, according to {metric.evidence}") for metric in further),
        ("licence", f"{entry.license}, {licence}" if entry.license != UNKNOWN_LICENSE else UNKNOWN_LICENSE),
        ("cost", f"{amount(entry.params or 0)} parameters, {cost} for one image of {size} pixels"),
        ("trained on", ", then ".join(entry.data.values())),
        ("access", "requires a login and acceptance of terms" if all(s.gated for s in entry.sources) else ""),
        ("not on record", "; ".join(found.unknown)),
        ("not ranked", _unranked(found)),
        ("use", _USES[found.task].format(id=found.id)),
    ]
    lines = [output.heading(found.id), *output.fields(rows)]
    if len(found.ranked) > 1:
        header = ("next", *_HEADERS[found.task], "params", "licence")
        lines += ["", *output.table(header, [_row(name, found.task) for name in found.ranked[1:_SHOWN]], indent="  ")]
    return lines


def _unranked(found: Recommendation) -> str:
    count = len(found.unranked)
    return f"{count_of(count, 'model')} without such a result on record, which may be better" if count else ""


def _row(name: str, task: str) -> tuple[str, ...]:
    entry = get_entry(name)
    values = [f"{metric.value:.1f}" for metric in results_for(task, entry)]
    values += ["-"] * (len(_HEADERS[task]) - len(values))
    return (name, *values, amount(entry.params or 0), entry.license + "*" * entry.restricted)
