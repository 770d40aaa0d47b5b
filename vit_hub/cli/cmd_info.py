"""``vit-hub info``: show what the registry knows about a model, or the config of a local file. Nothing is fetched.

With another image or patch size, also show the model at that size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.description import config_data, config_lines, memory_of, value_text
from vit_hub.cli.options import Verb, complete_source, image_size_option, patch_size_option, source_format_option
from vit_hub.cli.output import Output, amount, count_of
from vit_hub.cli.settings import set_option
from vit_hub.errors import DownloadError, ModelNotFoundError
from vit_hub.model.config import RESIZE_METHODS, ViTConfig
from vit_hub.model.flops import forward_flops, tokens_of
from vit_hub.model.shapes import num_parameters
from vit_hub.registry import Entry, Metric, WeightSource, get_entry
from vit_hub.shown import size_text

if TYPE_CHECKING:
    from vit_hub.converters import Checkpoint

_ALL = "all"  # --resize without a method
_STAGES = {"pretrain": "pretrained on", "finetune": "fine-tuned on"}
_PLACES = {"hf": " on Hugging Face", "bundled": " in the package itself"}
_RELATIONS = {
    "subset": "a subset: without the text tower, the head, or another part",
    "derived": "derived from those of the other sources",
}
_EPILOG = """\b
Examples:
  vit-hub info vit-b16
  vit-hub info google/vit-base-patch16-224 --json
  vit-hub info weights.pth --set num_heads=3
  vit-hub info vit-b16 --image-size 384              cost at another size
  vit-hub info b16.npz --image-size 384 --resize     effect of other resizing methods
"""


@click.command("info", cls=Verb, short_help="Show what is known about a model.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@image_size_option
@patch_size_option
@click.option(
    "--resize",
    is_flag=False,
    flag_value=_ALL,
    type=click.Choice([_ALL, "source", *RESIZE_METHODS]),
    metavar="[METHOD]",
    help="Show how far position tables resized by METHOD (default: by each method) are from those resized by the "
    "method of the checkpoint's own project. Needs the weights on this machine.",
)
@source_format_option
@set_option
def command(
    output: Output,
    model: str,
    image_size: tuple[int, int] | None,
    patch_size: tuple[int, int] | None,
    resize: str | None,
    format: str | None,
    overrides: dict[str, Any],
) -> None:
    """Show what is known about a model, without fetching anything.

    MODEL is a registry name, or a local file or folder, whose config is shown (`vit-hub inspect` shows the rest).
    --format and --set are for files. With --image-size or --patch-size, also show tokens, operations and memory at that
    size.
    """
    size = (image_size, patch_size)
    if resize and size == (None, None):
        raise click.UsageError("--resize needs --image-size or --patch-size: at the stored size nothing is resized.")
    ckpt: Checkpoint | None = None
    entry = _known(model)
    if entry is None:
        ckpt = vit_hub.open_checkpoint(model, format=format, overrides=overrides)
        config, data, lines = ckpt.config, _file_data(ckpt), _file_lines(output, ckpt, overrides)
    else:
        if format or overrides:
            raise click.UsageError("--format and --set are for local files; a name's config is the registry's.")
        config, data, lines = entry.config, _entry_data(entry), _entry_lines(output, entry)
    if size != (None, None):
        from vit_hub.model.resize import resized_config

        new = resized_config(config, *size)
        ckpt = (ckpt or _weights_at_hand(output, model)) if resize else None
        differences = _differences(ckpt, *size, resize) if ckpt and resize else None
        data["resized"] = {**config_data(new), "differences": differences}
        lines += ["", *_resized_lines(output, config, new, differences)]
    if output.json:
        output.document(data)
        return
    for message in data.get("warnings", ()):
        output.warning(message)
    output.lines(lines)


def _known(model: str) -> Entry | None:
    """Return the registry's entry, or None for a local path. Modules for loading are imported for other names only.

    Raises:
        CheckpointError: it looks like a path, and there is no such file.
        ModelNotFoundError: there is no such name.
    """
    with contextlib.suppress(ModelNotFoundError, OSError, RuntimeError, ValueError):
        if not Path(model).expanduser().exists():
            return get_entry(model)
    from vit_hub.hub.names.locate import local_path, locate

    if local_path(model) is not None:
        return None
    entry, _ = locate(model)
    if entry is None:
        raise ModelNotFoundError(
            f"the registry does not know {model!r}, and info fetches nothing",
            hint=f"`vit-hub inspect {model}` fetches and inspects it",
        )
    return entry


def _weights_at_hand(output: Output, model: str) -> Checkpoint | None:
    try:
        return vit_hub.open_checkpoint(model, offline=True)
    except DownloadError:
        output.warning(
            f"the weights of {model} are not on this machine, so their tables cannot be compared; "
            f"`vit-hub download {model}` fetches them"
        )
        return None


def _file_data(ckpt: Checkpoint) -> dict[str, Any]:
    found = {"path": ckpt.path, "format": ckpt.format, **config_data(ckpt.config)}
    return {**found, "inferred": ckpt.inferred, "warnings": ckpt.warnings}


def _file_lines(output: Output, ckpt: Checkpoint, overrides: dict[str, Any]) -> list[str]:
    lines = [output.heading(str(ckpt.path)), *output.fields([("format", ckpt.format)]), ""]
    return lines + config_lines(output, ckpt.config, ckpt.inferred, overrides)


def _preprocess(entry: Entry) -> dict[str, Any]:
    """Return the documented preprocessing; empty: none is."""
    from vit_hub.preprocessing.spec import Preprocessing

    return Preprocessing.from_dict(entry.preprocess).to_dict() if entry.preprocess else {}


def _entry_data(entry: Entry) -> dict[str, Any]:
    return {**vars(entry), **config_data(entry.config), "preprocess": _preprocess(entry)}


def _entry_lines(output: Output, entry: Entry) -> list[str]:
    lines = [output.heading(entry.id), *output.fields(_summary(entry))]
    lines += ["", *config_lines(output, entry.config)]
    lines += ["", output.heading("Preprocessing")]
    shown = [(name, value_text(value)) for name, value in _preprocess(entry).items()]
    lines += output.fields(shown) or output.paragraphs(["as the files beside the weights say"])
    lines += ["", output.heading("Weights, in order of preference")]
    lines += output.fields(row for number, source in enumerate(entry.sources, 1) for row in _source(number, source))
    if entry.metrics:
        lines += ["", output.heading("Published results")]
        lines += output.fields(_metric(metric) for metric in entry.metrics)
    return lines


def _summary(entry: Entry) -> Iterator[tuple[str, str]]:
    licence = entry.license + " (not an open licence: no commercial use, or terms of its own)" * entry.restricted
    yield from (("also called", ", ".join(entry.aliases)), ("family", entry.family), ("licence", licence))
    yield from ((_STAGES.get(stage, stage), data) for stage, data in entry.data.items())
    yield "classes", _classes(entry)
    yield "documented by", entry.evidence
    yield from (("note", note) for note in entry.notes)


def _classes(entry: Entry) -> str:
    if not entry.config.num_classes:
        return "none: the model has no head"
    count = f"{entry.config.num_classes:,}"
    if entry.labels is None:
        return f"{count} outputs of the head; their names are not known"
    from vit_hub.preprocessing.labels import label_names

    names = [name.split(",")[0] for name in label_names(entry.labels)]
    return f"{count} of {entry.labels}: {', '.join(names[:3])}, ..., {names[-1]}"


def _source(number: int, source: WeightSource) -> Iterator[tuple[str, object]]:
    """Describe one source; what is not documented has no value."""
    place = source.url or "/".join(part for part in (source.repo, source.file) if part)
    yield f"{number}. {source.format}", place + _PLACES.get(source.kind, "")
    facts = {
        "revision": source.revision,
        "sha256": source.sha256 or (source.sha256_prefix and f"{source.sha256_prefix}... (only its first digits)"),
        "size": source.size and count_of(source.size, "byte"),
        "documented by": source.evidence,
        "access": source.gated and "requires a login and acceptance of its terms",
        "file name": source.file_assumed and "assumed from the repository's convention",
        "tensors": _RELATIONS.get(source.relation),
        "differs in": ", ".join(f"{name}={value_text(value)}" for name, value in source.config.items()),
        "parameters": source.params and f"{source.params:,}",
        "note": source.note,
    }
    yield from ((f"   {name}", fact) for name, fact in facts.items())


def _metric(metric: Metric) -> tuple[str, str]:
    at = f" at {metric.image_size} pixels" if metric.image_size else ""
    return metric.name, f"{metric.value} %{at}, according to {metric.evidence}"


def _differences(
    ckpt: Checkpoint, image_size: tuple[int, int] | None, patch_size: tuple[int, int] | None, resize: str
) -> dict[str, Any]:
    """Return how far tables resized by all methods, or that of ``--resize``, are from those by the source's own."""
    from vit_hub.converters.resize import table_differences
    from vit_hub.model.resize import resized_config, table_method

    found = table_differences(ckpt, resized_config(ckpt.config, image_size, patch_size))
    if resize != _ALL:
        found = {method: item for method, item in found.items() if method == table_method(ckpt.config, resize)}
    return {"own": ckpt.config.resize, "by_method": found}


def _resized_lines(output: Output, old: ViTConfig, new: ViTConfig, differences: dict[str, Any] | None) -> list[str]:
    """Describe the model as it is and at its new size, side by side, and the differences of the methods, if any."""
    stored, resized = _figures(old), _figures(new)
    rows = [(name, text, resized[name]) for name, text in stored.items()]
    lines = [output.heading(f"At {size_text(new.image_size)} pixels")]
    lines += output.table(("", "stored", "resized"), rows, indent="  ")
    if differences is None:
        return lines
    lines += ["", output.heading("Position tables resized by other methods than its own")]
    if not differences["by_method"]:
        return [*lines, "  nothing is resized: the grid stays the same, or the model stores no position table"]
    table = [
        (
            f"{method} (its own)" if method == differences["own"] else method,
            f"{item.maximum:.2g}",
            f"{item.mean:.2g}",
            f"{item.relative:.1%}",
        )
        for method, item in differences["by_method"].items()
    ]
    header = ("method", "largest difference", "mean", "relative")
    return [*lines, *output.table(header, table, right=header[1:], indent="  ")]


def _figures(config: ViTConfig) -> dict[str, str]:
    found = {
        "image": size_text(config.image_size),
        "patch": size_text(config.patch_size),
        "grid": size_text(config.grid_size),
        "tokens": f"{tokens_of(config):,}",
        "parameters": f"{num_parameters(config):,}",
        "operations": amount(forward_flops(config), "FLOP"),
    }
    for dtype, memory in memory_of(config).items():
        for what, size in memory.items():
            found[f"{what}, {dtype}"] = "unknown" if size is None else amount(size, "B")
    return found
