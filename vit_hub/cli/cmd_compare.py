"""``vit-hub compare``: compare weights and outputs of two checkpoints across formats."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.description import value_text
from vit_hub.cli.failures import DIFFERENT
from vit_hub.cli.options import Verb, complete_source, format_option, offline_option
from vit_hub.cli.output import Output, count_of
from vit_hub.cli.settings import set_option

if TYPE_CHECKING:
    from vit_hub.converters.compare import Comparison

_EPILOG = """\b
Examples:
  vit-hub compare B_16.npz b16_hf/
  vit-hub compare mine.safetensors vit-b16 --all
  vit-hub compare a.pth b.pth --quiet && echo the same
  vit-hub compare b16.onnx vit-b16
"""


@click.command("compare", cls=Verb, epilog=_EPILOG)
@click.argument("first", shell_complete=complete_source, metavar="A")
@click.argument("second", shell_complete=complete_source, metavar="B")
@click.option("--all", "show_all", is_flag=True, help="List every tensor, not only those that differ.")
@format_option("--format-a", help="Read A as this format instead of recognising it.")
@format_option("--format-b", help="Read B as this format instead of recognising it.")
@set_option
@offline_option
def command(
    output: Output,
    first: str,
    second: str,
    show_all: bool,
    format_a: str | None,
    format_b: str | None,
    overrides: dict[str, Any],
    offline: bool,
) -> int:
    """Compare two checkpoints of any formats.

    Same weights: every tensor that the model computes with has equal values; dtypes may differ. Same numbers: the
    outputs on a random image agree to 2e-5 (the embeddings, if only one has a head or their heads differ in size).
    Equal weights still give different outputs if the activation, number of heads or epsilon differ. --set applies to
    both. The exit status is 3 if weights or numbers differ; with --quiet nothing is printed.

    A file of `vit-hub export` is run in its runtime, on two random images, and its outputs are compared with those of
    the other one to the tolerance of its dtype, relative to the largest output: its weights are rearranged.
    """
    found = vit_hub.compare(first, second, formats=(format_a, format_b), overrides=overrides, offline=offline)
    if output.json:
        output.document({"a": first, "b": second, **vars(found)})
    elif not output.quiet:
        output.lines(_lines(output, found, show_all))
    return 0 if found.same_weights is not False and found.same_numbers else DIFFERENT


def _lines(output: Output, found: Comparison, show_all: bool) -> list[str]:
    lines = output.fields([("same weights", _weights(found)), ("same numbers", _numbers(found))], indent="")
    if found.config:
        rows = [(name, value_text(a), value_text(b)) for name, (a, b) in found.config.items()]
        lines += ["", *output.table(("config", "A", "B"), rows)]
    chosen = [row for row in found.tensors if show_all or row.status != "equal"]
    if chosen:
        rows = [(row.name, _STATUSES[row.status], _difference(row.max_difference)) for row in chosen]
        lines += ["", *output.table(("tensor", "status", "largest difference"), rows, right=("largest difference",))]
    return lines


_STATUSES = {
    "equal": "equal",
    "dtype": "equal in another dtype",
    "different": "different",
    "shape": "of another shape",
    "only in first": "only in A",
    "only in second": "only in B",
}


def _weights(found: Comparison) -> str:
    if found.same_weights is None:
        return "not compared: of an exported program there are outputs alone"
    counts = Counter(row.status for row in found.tensors)
    tensors = ", ".join(f"{count_of(count, 'tensor')} {_STATUSES[status]}" for status, count in counts.items())
    return f"{'yes' if found.same_weights else 'no'}: {tensors}"


def _numbers(found: Comparison) -> str:
    if found.output_difference is None:
        return "no: images or outputs have different shapes"
    answer = "yes" if found.same_numbers else "no"
    heads_differ = "num_classes" in found.config and found.same_weights is not None
    if found.output_difference == 0.0:
        return f"{answer}: no difference" + " of the embeddings" * heads_differ
    if found.same_weights is None:
        differ = f"outputs on random images differ by up to {found.output_difference:.2g}"
        return f"{answer}: {differ} (at most {found.tolerance:.2g} is the same)"
    what = "embeddings" if heads_differ else "outputs"
    return f"{answer}: {what} on a random image differ by up to {found.output_difference:.2g}"


def _difference(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
