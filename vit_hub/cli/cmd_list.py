"""``vit-hub list``: the models of the registry, one a line."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from vit_hub.cli.options import Verb
from vit_hub.cli.output import Output, amount, count_of, pass_output, size_text
from vit_hub.errors import ModelNotFoundError
from vit_hub.layout import num_parameters
from vit_hub.registry import Entry, get_entry, list_models

_HEADER = ("model", "params", "image", "top-1", "licence", "formats")
_RIGHT = ("params", "image", "top-1")
_WILDCARDS = "*?[]"

_EPILOG = """\b
Examples:
  vit-hub list "vit-b*384"
  vit-hub list "google/*"
  vit-hub list augreg2 -q | xargs -n1 vit-hub download
"""


def _complete_family(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    families = dict.fromkeys(get_entry(name).family for name in list_models())
    return [CompletionItem(family) for family in families if family.startswith(incomplete)]


@click.command("list", cls=Verb, epilog=_EPILOG)
@click.argument("pattern", required=False)
@click.option("--family", shell_complete=_complete_family, help="Only the models of one family, such as augreg.")
@pass_output
def command(output: Output, pattern: str | None, family: str | None) -> None:
    """List the models that have a name here.

    PATTERN is matched with every name of a model (id, aliases, timm's name, repositories, files' names), case ignored:
    with * and ? as in a shell, and without them anywhere in the name.

    Columns: parameters; image size in pixels; accuracy in percent on ImageNet-1k, or on the data set named beside it,
    where somebody published it (`vit-hub info` says who); licence; formats in which the weights are published, the
    preferred one first. A narrow terminal hides the last columns. With --quiet only the ids.
    """
    entries = _chosen(pattern, family)
    if output.json:
        output.document([_as_data(entry) for entry in entries])
    elif output.quiet:
        output.lines(entry.id for entry in entries)
    else:
        output.lines(output.table(_HEADER, [_as_row(entry) for entry in entries], right=_RIGHT))
        output.note(f"{count_of(len(entries), 'model')}; `vit-hub info MODEL` tells all about one")


def _chosen(pattern: str | None, family: str | None) -> list[Entry]:
    """The models asked for.

    Raises:
        ModelNotFoundError: there is none.
    """
    is_part = pattern is not None and not set(pattern) & set(_WILDCARDS)
    found = [get_entry(name) for name in list_models(f"*{pattern}*" if is_part else pattern)]
    if not found and pattern is not None:
        raise ModelNotFoundError(f"no model's name matches {pattern!r}", hint=_suggestion(pattern.strip(_WILDCARDS)))
    chosen = [entry for entry in found if family in (None, entry.family)]
    if not chosen:
        families = dict.fromkeys(entry.family for entry in found)
        among = f" among those that match {pattern!r}" if pattern else ""
        raise ModelNotFoundError(f"no model is of family {family!r}{among}", hint=f"families: {', '.join(families)}")
    return chosen


def _suggestion(name: str) -> str:
    try:
        return f"did you mean {get_entry(name).id}?"
    except ModelNotFoundError as error:
        return error.hint


def _formats(entry: Entry) -> list[str]:
    return list(dict.fromkeys(source.format for source in entry.sources))


def _top1(entry: Entry) -> str:
    """The first published accuracy; the data set is named where it is not ImageNet-1k."""
    for metric in entry.metrics:
        data, _, rest = metric.name.partition(" ")
        if rest.startswith("top-1"):
            return f"{metric.value:.1f}" + (f" {data}" if data != "imagenet-1k" else "")
    return "-"


def _parameters(entry: Entry) -> int:
    return entry.params or num_parameters(entry.config)


def _as_row(entry: Entry) -> tuple[str, ...]:
    height, width = entry.config.image_size
    image = str(height) if height == width else size_text((height, width))
    return entry.id, amount(_parameters(entry)), image, _top1(entry), entry.license, ", ".join(_formats(entry))


def _as_data(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "aliases": entry.aliases,
        "family": entry.family,
        "params": _parameters(entry),
        "image_size": entry.config.image_size,
        "metrics": entry.metrics,
        "license": entry.license,
        "formats": _formats(entry),
    }
