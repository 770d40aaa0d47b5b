"""``vit-hub list``: the models of the registry, one per line."""

from __future__ import annotations

import click

from vit_hub.cli.options import Verb
from vit_hub.cli.output import Output, amount, count_of, size_text
from vit_hub.errors import ModelNotFoundError
from vit_hub.registry import get_entry, list_models
from vit_hub.weights_manifest import Summary, summary

_HEADER = ("model", "params", "image", "top-1", "licence", "formats")
_RIGHT = ("params", "image", "top-1")
_WILDCARDS = "*?[]"

_EPILOG = """\b
Examples:
  vit-hub list "vit-b*384"
  vit-hub list "google/*"
  vit-hub list augreg2 -q | xargs -n1 vit-hub download
"""


def _complete_family(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    families = dict.fromkeys(summary(name).family for name in list_models())
    return [family for family in families if family.startswith(incomplete)]


@click.command("list", cls=Verb, short_help="List the models of the registry.", epilog=_EPILOG)
@click.argument("pattern", required=False)
@click.option(
    "--family",
    metavar="FAMILY",
    shell_complete=_complete_family,
    help="List only one family, such as augreg.",
)
def command(output: Output, pattern: str | None, family: str | None) -> None:
    """List the models of the registry.

    PATTERN is matched against every name of a model (id, aliases, timm name, repositories, file names), ignoring case:
    with * and ? as in a shell, without them anywhere in the name.

    Columns: parameters; image size in pixels; published top-1 accuracy of the model's own head in percent, on
    ImageNet-1k or the data set named beside it (`vit-hub info` names the publication, and has zero-shot, k-NN and
    linear results); licence, with * if it is not an open one (no commercial use, or terms of its own) and "login" if
    every source requires one; formats of the published weights, the preferred one first. A narrow terminal hides the
    last columns. With --quiet, print only the ids.
    """
    names = _chosen(pattern, family)
    if output.json:
        output.document([_as_data(name) for name in names])
    elif output.quiet:
        output.lines(names)
    else:
        rows = [(name, *_as_row(summary(name))) for name in names]
        output.lines(output.table(_HEADER, rows, right=_RIGHT))
        output.note(f"{count_of(len(names), 'model')}; `vit-hub info MODEL` shows more")


def _chosen(pattern: str | None, family: str | None) -> list[str]:
    """Return the ids that match.

    Raises:
        ModelNotFoundError: there is none.
    """
    is_part = pattern is not None and not set(pattern) & set(_WILDCARDS)
    found = list_models(f"*{pattern}*" if is_part else pattern)
    if not found and pattern is not None:
        raise ModelNotFoundError(f"no model's name matches {pattern!r}", hint=_suggestion(pattern.strip(_WILDCARDS)))
    chosen = [name for name in found if family in (None, summary(name).family)]
    if not chosen:
        families = dict.fromkeys(summary(name).family for name in found)
        among = f" among those that match {pattern!r}" if pattern else ""
        raise ModelNotFoundError(f"no model is of family {family!r}{among}", hint=f"families: {', '.join(families)}")
    return chosen


def _suggestion(name: str) -> str:
    try:
        return f"did you mean {get_entry(name).id}?"
    except ModelNotFoundError as error:
        return error.hint


def _as_row(model: Summary) -> tuple[str, ...]:
    height, width = model.image_size
    image = str(height) if height == width else size_text((height, width))
    licence = model.license + "*" * model.restricted + " (login)" * model.gated
    return amount(model.params), image, _top1(model), licence, ", ".join(model.formats)


def _top1(model: Summary) -> str:
    """Return the first published accuracy, with the data set if it is not ImageNet-1k."""
    if model.top1 is None:
        return "-"
    data, value = model.top1
    return f"{value:.1f}" + (f" {data}" if data != "imagenet-1k" else "")


def _as_data(name: str) -> dict[str, object]:
    entry, model = get_entry(name), summary(name)
    return {
        "id": name,
        "aliases": entry.aliases,
        "family": model.family,
        "params": model.params,
        "image_size": model.image_size,
        "metrics": entry.metrics,
        "license": model.license,
        "restricted": model.restricted,
        "gated": model.gated,
        "formats": model.formats,
    }
