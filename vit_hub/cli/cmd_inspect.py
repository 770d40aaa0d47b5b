"""``vit-hub inspect``: a checkpoint's format, config and tensors, and what was left out or assumed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.description import config_data, config_lines, dropped_lines
from vit_hub.cli.options import Verb, complete_source, source_options, verbose_option
from vit_hub.cli.output import Output, amount, count_of

if TYPE_CHECKING:
    from vit_hub.converters import Checkpoint
    from vit_hub.converters.inspection import Values
    from vit_hub.converters.tensors import LazyTensor

_EPILOG = """\b
Examples:
  vit-hub inspect weights.pth
  vit-hub inspect weights.pth --tensors --values
  vit-hub inspect hf_folder/ --hash --json
"""


@click.command("inspect", cls=Verb, short_help="Show a checkpoint's format, config and tensors.", epilog=_EPILOG)
@click.argument("source", shell_complete=complete_source, metavar="SRC")
@click.option(
    "--tensors",
    "list_tensors",
    is_flag=True,
    help="List every tensor and where it comes from.",
)
@click.option("--values", "check_values", is_flag=True, help="Look for NaN, infinity and equal tensors.")
@click.option("--hash", "hash_files", is_flag=True, help="Compute the sha256 of the files.")
@verbose_option
@source_options
def command(
    output: Output,
    source: str,
    list_tensors: bool,
    check_values: bool,
    hash_files: bool,
    verbose: bool,
    source_options: dict[str, Any],
) -> None:
    """Show a checkpoint's format, config and tensors, and what is left out and why.

    Config fields with their usual values are not listed; with --verbose all are. SRC is fetched if it is not on this
    machine. Only headers are read, unless --values or --hash asks for more. With --quiet, print only the format. Of a
    file of `vit-hub export` show what it takes and gives, and where its weights come from.
    """
    from vit_hub.converters.containers.hashing import file_sha256
    from vit_hub.converters.containers.programs import program_facts
    from vit_hub.converters.inspection import head_is_zero, survey
    from vit_hub.progress import byte_bar

    if program_facts(Path(source)) is not None:
        _show_program(output, source, hash_files)
        return
    ckpt = vit_hub.open_checkpoint(source, **source_options, progress=not output.quiet)
    zero_head = head_is_zero(ckpt.tensors)
    total = sum(tensor.nbytes for tensor in ckpt.tensors.values())
    with byte_bar("checking", total, show=check_values and not output.quiet) as advance:
        values = survey(ckpt.tensors, advance) if check_values else None
    total = sum(file.stat().st_size for file in ckpt.source.files)
    with byte_bar("hashing", total, show=hash_files and not output.quiet) as advance:
        hashes = {file: file_sha256(file, advance) for file in ckpt.source.files} if hash_files else {}
    warnings = _warnings(ckpt, zero_head, values)
    if output.json:
        output.document(_as_data(ckpt, zero_head, values, warnings, hashes, list_tensors))
        return
    for message in warnings:
        output.warning(message)
    if output.quiet:
        output.lines([ckpt.format])
        return
    lines = [output.heading(str(ckpt.path)), *output.fields(_summary(ckpt, zero_head, values, hashes))]
    lines += ["", *config_lines(output, ckpt.config, ckpt.inferred, source_options["overrides"], every=verbose)]
    if ckpt.dropped:
        lines += ["", output.heading("Left out"), *dropped_lines(output, ckpt.dropped)]
    if list_tensors:
        lines += ["", output.heading("Tensors"), *_tensor_lines(output, ckpt)]
    output.lines(lines)


def _show_program(output: Output, source: str, hash_files: bool) -> None:
    """Show what an exported file says of itself."""
    from vit_hub.converters.containers.hashing import file_sha256
    from vit_hub.exporting.files import exported_file

    program = exported_file(source)
    assert program is not None
    hashes = {file: file_sha256(file) for file in program.files} if hash_files else {}
    if output.json:
        output.document(
            {
                "path": program.path,
                "program": program.target,
                "runtime": program.runtime,
                "what": program.what,
                "dtype": program.dtype,
                "image_size": program.image_size,
                "dynamic": program.dynamic,
                "with_preprocess": program.pixels is not None,
                "labels": program.labels,
                "passport": program.passport.to_dict() if program.passport else None,
                "version": program.version,
                "files": [
                    {"path": file, "size": file.stat().st_size, **({"sha256": hashes[file]} if file in hashes else {})}
                    for file in program.files
                ],
                **config_data(program.config),
            }
        )
        return
    if output.quiet:
        output.lines([program.target])
        return
    size = "{}x{}".format(*program.image_size)
    chans = program.config.in_chans
    takes = (
        f"uint8 [batch, {size.replace('x', ', ')}, {chans}], pixels"
        if program.pixels
        else (f"float32 [batch, {chans}, {size.replace('x', ', ')}], preprocessed")
    )
    lines = [("program", f"{program.target}, of vit-hub export {program.version}, run by {program.runtime}")]
    lines += [("file", f"{file.name}, {count_of(file.stat().st_size, 'byte')}") for file in program.files]
    lines += [("sha256", hashes[file]) for file in hashes]
    lines += [
        ("takes", takes + (" of any size in whole patches" if program.dynamic else "")),
        ("gives", program.what),
        ("dtype", program.dtype),
        ("classes", f"{len(program.labels)} with names" if program.labels else ""),
    ]
    if program.passport is not None:
        lines += [("made from", _source_text(record)) for record in program.passport.source]
        lines += [("weights", program.passport.weights_id), ("licence", program.passport.license)]
    shown = [output.heading(str(program.path)), *output.fields(lines)]
    output.lines([*shown, "", *config_lines(output, program.config)])


def _warnings(ckpt: Checkpoint, zero_head: bool, values: Values | None) -> list[str]:
    """Collect what may surprise users of the file."""
    from vit_hub.converters.inspection import ZERO_HEAD, other_copies

    found = [*ckpt.warnings, *([ZERO_HEAD] if zero_head else [])]
    read = f"under {ckpt.passport.prefix!r}" if ckpt.passport.prefix else "without a prefix"
    for prefix, reason in other_copies(ckpt).items():
        found.append(f"the file holds the model twice: the one {read} is read, not that under {prefix!r} ({reason})")
    for name, count in (values.not_finite if values else {}).items():
        found.append(f"{name}: {count_of(count, 'value')} of {math.prod(ckpt.tensors[name].shape):,} NaN or infinite")
    for names in values.equal if values else ():
        found.append(f"{', '.join(names)} have the same values")
    return found


def _summary(
    ckpt: Checkpoint, zero_head: bool, values: Values | None, hashes: dict[Path, str]
) -> Iterable[tuple[str, object]]:
    """Describe the file; what it does not have has no value."""
    passport = ckpt.passport
    canonical = ckpt.format == "canonical"
    yield "format", ckpt.format + (f", made from {passport.format}" if canonical and passport.source else "")
    yield "container", ckpt.source.container
    yield "prefix", "" if canonical else passport.prefix
    for file in ckpt.source.files:
        yield "file", f"{file.name}, {count_of(file.stat().st_size, 'byte')}"
        yield "sha256", hashes.get(file)
    yield "beside it", ", ".join(ckpt.source.sidecars)
    if canonical:
        for record in passport.source:
            yield "made from", _source_text(record)
    yield "weights", passport.weights_id
    yield "licence", passport.license
    yield "tensors", _totals(ckpt.tensors.values())
    if passport.carried:
        yield "unused", f"{', '.join(passport.carried)}: kept for the way back"
    if "head.weight" in ckpt.tensors:
        yield "head", "ALL ZEROS" if zero_head else "not all zeros"
    if values is not None:
        bad = len(values.not_finite)
        yield "values", f"NaN OR INFINITE in {count_of(bad, 'tensor')}" if bad else "all finite"


def _source_text(record: Mapping[str, Any]) -> str:
    size = f", {count_of(record['size'], 'byte')}" if "size" in record else ""
    return f"{record.get('file', '?')}{size}" + (f", sha256 {record['sha256']}" if "sha256" in record else "")


def _totals(tensors: Iterable[LazyTensor]) -> str:
    found = list(tensors)
    kinds = Counter(tensor.dtype for tensor in found)
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in kinds.items()) if len(kinds) > 1 else next(iter(kinds))
    return f"{len(found)}, {amount(sum(tensor.nbytes for tensor in found), 'B')}, {dtypes}"


def _tensor_lines(output: Output, ckpt: Checkpoint) -> list[str]:
    rows = [
        (name, "x".join(map(str, tensor.shape)) or "scalar", tensor.dtype, " + ".join(ckpt.origin.get(name, ())))
        for name, tensor in ckpt.tensors.items()
    ]
    if all(name == sources for name, _, _, sources in rows):
        return output.table(("name", "shape", "dtype"), [row[:3] for row in rows], indent="  ")
    return output.table(("name", "shape", "dtype", "in the file"), rows, indent="  ")


def _as_data(
    ckpt: Checkpoint,
    zero_head: bool,
    values: Values | None,
    warnings: list[str],
    hashes: dict[Path, str],
    list_tensors: bool,
) -> dict[str, Any]:
    data = {
        "path": ckpt.path,
        "format": ckpt.format,
        "container": ckpt.source.container,
        "prefix": ckpt.passport.prefix,
        "files": [
            {"path": file, "size": file.stat().st_size, **({"sha256": hashes[file]} if file in hashes else {})}
            for file in ckpt.source.files
        ],
        **config_data(ckpt.config),
        "inferred": ckpt.inferred,
        "provenance": ckpt.provenance,
        "tensor_count": len(ckpt.tensors),
        "tensor_bytes": sum(tensor.nbytes for tensor in ckpt.tensors.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in ckpt.tensors.values())),
        "head_is_zero": zero_head,
        "dropped": ckpt.dropped,
        "warnings": warnings,
    }
    if values is not None:
        data |= {"not_finite": values.not_finite, "equal": values.equal}
    if list_tensors:
        data["tensors"] = {
            name: {"shape": tensor.shape, "dtype": tensor.dtype, "sources": ckpt.origin.get(name, ())}
            for name, tensor in ckpt.tensors.items()
        }
    return data
