"""``vit-hub list``: the models of the registry that meet conditions, one per line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from vit_hub.cli.description import value_text
from vit_hub.cli.options import Verb, selection_options
from vit_hub.cli.output import Output, amount, count_of, plain
from vit_hub.cli.settings import setting_option
from vit_hub.errors import ModelNotFoundError
from vit_hub.model.flops import forward_flops
from vit_hub.registry import SORTS, get_entry, list_models
from vit_hub.shown import size_text
from vit_hub.untrusted import quoted
from vit_hub.weights_manifest import Summary, summary

_RIGHT = ("params", "GFLOP", "image", "top-1")
# Condition -> its nouns, and the values of a model.
_COLUMNS: tuple[tuple[str, tuple[str, str], Callable[[Summary], tuple[str, ...]]], ...] = (
    ("family", ("family", "families"), lambda model: (model.family,)),
    ("license", ("licence", "licences"), lambda model: (model.license,)),
    ("format", ("format", "formats"), lambda model: model.formats),
)
_EPILOG = """\b
Examples:
  vit-hub list dinov2 base
  vit-hub list "google/*"
  vit-hub list --head --max-params 30M --license commercial --sort top1
  vit-hub list --image-size 384 --filter patch_size=16 --csv > models.csv
  vit-hub list augreg2 -q | xargs -n1 vit-hub download
"""


def _sort(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.removeprefix("-") not in SORTS:
        raise click.BadParameter(f"models are sorted by {', '.join(SORTS)}, or - before one, not by {value!r}.")
    return value


@click.command("list", cls=Verb, short_help="List the models of the registry.", epilog=_EPILOG)
@click.argument("words", nargs=-1, metavar="[WORD...]")
@selection_options
@click.option("--head/--no-head", default=None, help="List only models with a head, or without one.")
@setting_option(
    "--filter", "filter", "List only models with this value of a config field, such as patch_size=14. Repeatable."
)
@click.option(
    "--sort",
    metavar="KEY",
    callback=_sort,
    shell_complete=lambda ctx, param, incomplete: [name for name in SORTS if name.startswith(incomplete)],
    help=f"Sort by {', '.join(SORTS)}: the best top1 first, else the smallest; -KEY reverses it.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="List the first N only.")
@click.option("--tsv", "form", flag_value="tsv", help="Print columns separated by tabs, as a pipe gets them.")
@click.option("--csv", "form", flag_value="csv", help="Print the same columns with commas.")
@click.option("--jsonl", "form", flag_value="jsonl", help="Print one JSON object a line.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a table in Markdown.")
def command(output: Output, words: tuple[str, ...], form: str | None, **conditions: Any) -> None:
    """List the models of the registry that meet all conditions.

    Each WORD is part of one of a model's names (id, aliases, timm name, repositories, file names) or of its family;
    with * or ? it matches a whole name, as in a shell. Case is ignored. A model whose fact is not recorded does not
    meet a condition on it.

    Columns: parameters; image size in pixels; published top-1 accuracy of the model's own head in percent, on
    ImageNet-1k or the data set named beside it (`vit-hub info` names the publication, and has zero-shot, k-NN and
    linear results); licence, with * if it is not an open one (no commercial use, or terms of its own) and "login" if
    every source requires one; formats of the published weights, the preferred one first. A narrow terminal hides the
    last columns. GFLOP, billions of operations for one image (a multiply-add is two), is shown where it is asked for.
    A pipe gets tab-separated columns with a header. With --quiet, print only the ids.
    """
    filter = conditions.pop("filter") or None
    names = list_models(words, filter=filter, **conditions)
    if not names:
        raise _nothing(words, {**conditions, "filter": filter})
    costs = conditions["max_gflops"] is not None or "gflops" in (conditions["sort"] or "")
    if output.json:
        output.document([_as_data(name) for name in names])
    elif output.quiet:
        output.lines(names)
    elif form == "jsonl":
        output.lines(json.dumps(plain(_as_data(name)), allow_nan=False) for name in names)
    elif form in ("csv", "tsv") or (form is None and output.width is None):
        output.lines(_separated([_as_columns(name, costs) for name in names], "," if form == "csv" else "\t"))
    else:
        rows = [_as_row(name, costs) for name in names]
        header = tuple(rows[0])
        texts = [tuple(row.values()) for row in rows]
        if form == "markdown":
            output.lines(_markdown(header, texts))
            return
        output.lines(output.table(header, texts, right=_RIGHT))
        output.note(f"{count_of(len(names), 'model')}; `vit-hub info MODEL` shows more")


def _nothing(words: Sequence[str], conditions: Mapping[str, Any]) -> ModelNotFoundError:
    """Return the error for conditions that no model meets; the hint says which of them to give up."""
    given = {name: value for name, value in conditions.items() if value is not None and name not in ("sort", "limit")}
    unmatched = next((word for word in words if not list_models(word)), None)
    if unmatched is not None:
        hint = _suggestion(unmatched.strip("*?[]"))
        return ModelNotFoundError(f"no model's name matches {quoted(unmatched)}", hint=hint)
    for name, noun, column in _COLUMNS:
        if name in given and not list_models(**{name: given[name]}):
            every = sorted({value for model in list_models(words) for value in column(summary(model))})
            return ModelNotFoundError(
                f"no model is of {noun[0]} {quoted(given[name])}", hint=f"{noun[1]}: {', '.join(every)}"
            )
    without = {
        _option(name, given[name]): len(list_models(words, **{key: given[key] for key in given if key != name}))
        for name in given
    }
    if words:
        without[f"'{' '.join(words)}'"] = len(list_models(**given))
    rest = [f"{count_of(count, 'model')} without {option}" for option, count in without.items() if count]
    return ModelNotFoundError(
        f"no model meets all conditions: {', '.join(without)}", hint="; ".join(rest) or "give up several of them"
    )


def _option(name: str, value: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return option if value else f"--no-{name}"
    if isinstance(value, Mapping):
        return " ".join(f"{option} {key}={value_text(item)}" for key, item in value.items())
    return f"{option} {amount(int(value)) if name == 'max_params' else value_text(value)}"


def _suggestion(name: str) -> str:
    try:
        return f"did you mean {get_entry(name).id}?"
    except ModelNotFoundError as error:
        return error.hint


def _as_row(name: str, costs: bool) -> dict[str, str]:
    """Return the columns for people."""
    model = summary(name)
    height, width = model.image_size
    return {
        "model": name,
        "params": amount(model.params),
        **({"GFLOP": f"{forward_flops(get_entry(name).config) / 1e9:.3g}"} if costs else {}),
        "image": str(height) if height == width else size_text((height, width)),
        "top-1": _top1(model),
        "licence": model.license + "*" * model.restricted + " (login)" * model.gated,
        "formats": ", ".join(model.formats),
    }


def _as_columns(name: str, costs: bool) -> dict[str, object]:
    """Return the columns for programs; what is unknown is empty."""
    model = summary(name)
    data, top1 = model.top1 or ("", "")
    return {
        "id": name,
        "family": model.family,
        "params": model.params,
        **({"flops": forward_flops(get_entry(name).config)} if costs else {}),
        "image_size": size_text(model.image_size),
        "top1": top1,
        "top1_data": data,
        "license": model.license,
        "restricted": str(model.restricted).lower(),
        "gated": str(model.gated).lower(),
        "formats": " ".join(model.formats),
    }


def _separated(rows: Sequence[Mapping[str, object]], delimiter: str) -> list[str]:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue().splitlines()


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---:" if title in _RIGHT else "---" for title in header]
    # A star would be taken for emphasis.
    texts = [[cell.replace("*", "\\*") for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *texts)]


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
        "flops": forward_flops(entry.config),
        "num_classes": entry.config.num_classes,
        "image_size": model.image_size,
        "metrics": entry.metrics,
        "license": model.license,
        "restricted": model.restricted,
        "gated": model.gated,
        "formats": model.formats,
    }
