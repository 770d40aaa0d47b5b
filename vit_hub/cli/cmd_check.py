"""``vit-hub check``: certify what a model computes here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import vit_hub
from vit_hub.cli.failures import DIFFERENT
from vit_hub.cli.options import (
    Verb,
    compile_option,
    complete_source,
    compute_options,
    names_option,
    runtime_option,
    source_options,
)
from vit_hub.cli.output import Output

if TYPE_CHECKING:
    from vit_hub.certifying.certificate import Certificate

_PEERS = ("timm", "transformers")
_VERDICTS = {"pass": "pass", "fail": "FAIL", "none": "-"}
_EPILOG = """\b
Examples:
  vit-hub check vit-b16
  vit-hub check finetuned.safetensors --device cuda --dtype bfloat16 --images photos/
  vit-hub check vit-s16 --runtime onnxruntime --against none
  vit-hub check vit-b16 --certificate b16.json
  vit-hub check --replay b16.json
"""


@click.command("check", cls=Verb, short_help="Certify what a model computes here.", epilog=_EPILOG)
@click.argument("model", required=False, shell_complete=complete_source)
@compute_options
@compile_option()
@runtime_option("What computes: PyTorch, a program exported for another runtime, or auto: the fastest on this machine.")
@click.option("--images", type=click.Path(), help="Folder, file or pattern of images to compute, too.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=32, show_default=True, help="At most so many of these images."
)
@names_option("--against", known=_PEERS, default=_PEERS, help="Libraries to compare with, with commas, or none.")
@click.option(
    "--certificate", type=click.Path(dir_okay=False, path_type=Path), help="Keep the record in this file, as JSON."
)
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Repeat a certificate with its own settings, on its device or another, and say what differs.",
)
@source_options
@click.pass_context
def command(
    ctx: click.Context,
    output: Output,
    model: str | None,
    compute_options: dict[str, Any],
    compile: str | None,
    runtime: str,
    images: str | None,
    limit: int,
    against: tuple[str, ...],
    certificate: Path | None,
    replay: Path | None,
    source_options: dict[str, Any],
) -> int:
    """Certify what a model computes here.

    The reference is the model in float64 on the CPU. Compared with it are each output as you run it, with the device,
    dtype, compilation and runtime that you give, and the peers' own code with the same weights. Golden cases of the
    model's format, which come with vit-hub, are compared with the recorded outputs of the authors' own code. The config
    is compared with what is recorded of its origin, because no output shows a wrong activation. Errors are relative to
    the largest value of an output.

    MODEL may be left out with --replay: it is then the one that the certificate names. The exit status is 3 if a line
    fails; with --quiet nothing is printed but these lines.
    """
    if replay is not None:
        _refuse_settings(ctx)
        if not _is_given(ctx, "device"):
            compute_options["device"] = None
    elif model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    found = vit_hub.check(
        model,
        **compute_options,
        compile=compile,
        runtime=runtime,
        images=images,
        limit=limit,
        against=against,
        certificate=certificate,
        replay=replay,
        progress=not output.quiet,
        **source_options,
    )
    if output.json:
        output.document(found.to_dict())
    else:
        output.lines(_lines(output, found, repeated=replay is not None))
    return 0 if found.passed else DIFFERENT


# What may stand beside --replay.
_BESIDE_REPLAY = ("model", "device", "certificate", "replay")


def _refuse_settings(ctx: click.Context) -> None:
    """Refuse settings beside a certificate, which has its own."""
    for param in ctx.command.params:
        name = param.name or ""
        if param.expose_value and name not in _BESIDE_REPLAY and _is_given(ctx, name):
            raise click.UsageError(f"{param.opts[-1]} is a setting, and --replay takes those of the certificate.")


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _lines(output: Output, found: Certificate, *, repeated: bool) -> list[str]:
    failing = [finding for finding in found.findings if finding.verdict == "fail"]
    if output.quiet:
        lines = [f"{finding.name}: {finding.text}" for finding in failing]
        return lines + [
            f"{change.name}: {change.now}, recorded {change.then}" for change in found.changes if change.fails
        ]
    rows = [(_VERDICTS[finding.verdict], finding.name, finding.text) for finding in found.findings]
    lines = output.table(("", "what", "result"), rows)
    if repeated:
        lines += ["", *_repeated(output, found)]
    verdict = "passed" if found.passed else "FAILED"
    return [*lines, "", f"{verdict}: {found.source}, weights sha256 {found.weights['sha256'][:16]}"]


def _repeated(output: Output, found: Certificate) -> list[str]:
    if not found.changes:
        return ["all figures, the weights and the config are those of the certificate"]
    rows = [
        ("FAIL" if change.fails else "-", change.name, _short(change.then), _short(change.now))
        for change in found.changes
    ]
    same = "the weights are the same" if _has_same_weights(found) else "the weights are others"
    return [*output.table(("", "differs", "certificate", "now"), rows), same]


def _has_same_weights(found: Certificate) -> bool:
    return not any(change.name == "weights sha256" for change in found.changes)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2e}"
    if isinstance(value, list) and value and all(isinstance(item, (int, float)) for item in value):
        return " ".join(f"{item:.6g}" for item in value[:3]) + " ..." * (len(value) > 3)
    return "-" if value is None else str(value)[:16] if isinstance(value, str) else str(value)
