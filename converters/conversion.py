"""Writing a checkpoint in any format that can express the model.

Whether a format can is not a list kept by hand: the file that would be written is read back, from headers alone, and
must give the same config.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_hub.config import ViTConfig
from vit_hub.converters.checkpoint import CONFIG_KEY, PASSPORT_KEY, Checkpoint, read_source
from vit_hub.converters.containers import CONTAINER_SUFFIXES, Source, open_source, write_tensors
from vit_hub.converters.containers.atomic import atomic_path
from vit_hub.converters.format import Dialect, Format, Sidecars, all_formats, format_names, formats_named
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import UnknownFormatError, UnsupportedByFormatError, VitHubError
from vit_hub.layout import field_of

__all__ = ["Report", "convert_checkpoint", "foreign_tensors", "write_canonical"]

# What a bare file never says and every loader of it is told: no reason to refuse, but to say so.
_TOLD_BY_CALLER = ("num_heads", "image_size")
# How a table is resized later does not change the numbers at the stored size.
_NOT_NUMERIC = ("resize",)


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        path: what :func:`vit_hub.load` accepts: the file, or the folder with its config files.
        format: the format written.
        config: the model.
        dropped: source name -> why it was left out.
        inferred: config field -> what it was taken from.
        warnings: what the user should know.
    """

    path: Path
    format: str
    config: ViTConfig
    dropped: dict[str, str] = field(default_factory=dict)
    inferred: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """Everything about to be written, still unread."""

    form: Format
    dialect: Dialect
    tensors: dict[str, LazyTensor]
    sidecars: Sidecars
    left_out: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def convert_checkpoint(
    ckpt: Checkpoint,
    destination: str | Path,
    *,
    to: str = "canonical",
    dtype: str | None = None,
    lossy: bool = False,
    keep_rest: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Writes an opened checkpoint in another format (or its own).

    Args:
        ckpt: what :func:`vit_hub.converters.open_checkpoint` gave.
        destination: a file with a known suffix, or a folder for the format's customary files.
        to: a name of :func:`vit_hub.converters.format_names`.
        dtype: ``F32``, ``F16``, ``BF16`` or ``F64``; None keeps every tensor's own.
        lossy: write it even where the format cannot express the model.
        keep_rest: also write what was left out of the source into ``*.rest.safetensors`` beside the result, and put
            such a file beside the source back in.
        progress: called with the bytes written since the last call.

    Raises:
        UnknownFormatError: there is no format ``to``.
        UnsupportedByFormatError: the format cannot express the model; names the field and the formats that can.
        VitHubError: the destination cannot be written.
    """
    target = Path(destination)
    container = CONTAINER_SUFFIXES.get(target.suffix)
    if to == "canonical":
        file = target if container else target / "model.safetensors"
        if container not in (None, "safetensors"):
            raise UnsupportedByFormatError(f"{target}: a canonical file is a .safetensors file")
        write_canonical(file, ckpt, dtype=dtype, progress=progress)
        report = Report(file, to, ckpt.config, dict(ckpt.dropped), dict(ckpt.inferred), list(ckpt.warnings))
    else:
        plan = _plan(ckpt, to, with_sidecars=container is None, lossy=lossy)
        report = _write(ckpt, plan, target, container, dtype, keep_rest, progress)
    if keep_rest:
        _write_rest(ckpt, report.path)
    return report


def foreign_tensors(ckpt: Checkpoint, to: str) -> tuple[dict[str, LazyTensor], Sidecars]:
    """The tensors and config files of another format, in memory: nothing is written.

    Raises:
        UnknownFormatError, UnsupportedByFormatError: as for :func:`convert_checkpoint`.
    """
    plan = _plan(ckpt, to, with_sidecars=True, lossy=False)
    return plan.tensors, plan.sidecars


def _plan(ckpt: Checkpoint, to: str, *, with_sidecars: bool, lossy: bool) -> _Plan:
    named = formats_named(to)
    if not named:
        raise UnknownFormatError(f"there is no format {to!r}", hint=f"formats: {', '.join(format_names())}")
    plans = [_plan_for(ckpt, form, list(dialects), with_sidecars) for form, dialects in named]
    best = min(plans, key=lambda plan: len(plan.problems))
    if best.problems and not lossy:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in best.problems)
        able = [name for name in _able(ckpt, with_sidecars) if name != to]
        raise UnsupportedByFormatError(
            f"{to} cannot express this model: {reasons}",
            hint=f"formats that can: {', '.join(able)}; or write it all the same with lossy=True (--lossy)",
        )
    return best


def _able(ckpt: Checkpoint, with_sidecars: bool) -> list[str]:
    """The formats that can express a model."""
    able = ["canonical"]
    for form in all_formats():
        if form.name not in able and not _plan_for(ckpt, form, list(form.dialects), with_sidecars).problems:
            able.append(form.name)
    return able


def _plan_for(ckpt: Checkpoint, form: Format, dialects: list[Dialect], with_sidecars: bool) -> _Plan:
    """What writing in one format would give, and everything that speaks against it."""
    config, passport = ckpt.config, ckpt.passport
    home = passport.format in {form.label(dialect) for dialect in dialects}
    named = [dialect for dialect in dialects if dialect.name == dialects[0].name]
    dialect = form.dialect_for(config, named)
    if home:
        dialect = next((item for item in dialects if dict(item.variables) == passport.variables), dialect)
    # What a source of this very format held, its project could do.
    problems = [] if home else [(need.field, need.message) for need in form.requires if not need.holds(config)]
    foreign, left = form.table(dialect).write(ckpt.tensors, _axis_sizes(config))
    carried = tuple(name for name in left if name in passport.carried)
    for name in left:
        if name not in carried and field_of(name) not in {field for field, _ in problems}:
            problems.append((field_of(name), f"it has no place for {name}"))
    sidecars = form.sidecars(config, passport) if with_sidecars else {}
    warnings: list[str] = []
    if not problems:
        changed, warnings = _read_back(ckpt, form, dialect, foreign, sidecars, home)
        problems += changed
    prefix = passport.prefix if home else ""
    tensors = {prefix + name: tensor for name, tensor in foreign.items()}
    if home:
        shapes = passport.shapes
        tensors = {name: tensor.reshape(shapes[name]) if name in shapes else tensor for name, tensor in tensors.items()}
    return _Plan(form, dialect, tensors, sidecars, carried, tuple(problems), tuple(warnings))


def _axis_sizes(config: ViTConfig) -> dict[str, int]:
    return {"h": config.num_heads, "p": config.patch_size[0], "q": config.patch_size[1], "c": config.in_chans}


def _read_back(
    ckpt: Checkpoint, form: Format, dialect: Dialect, foreign: Mapping[str, LazyTensor], sidecars: Sidecars, home: bool
) -> tuple[list[tuple[str, str]], list[str]]:
    """Fields that the written file would not give back, and what its readers will have to be told."""
    config = ckpt.config
    told = {name: getattr(config, name) for name in _TOLD_BY_CALLER}
    again = {**(ckpt.passport.overrides if home else {}), **told}
    source = Source(Path("planned"), form.container, dict(foreign), {}, sidecars, ())
    label = form.label(dialect)
    try:
        result = read_source(source, format=label, overrides=again).config
    except VitHubError as error:
        return [("config", error.message)], []
    changed = [
        (item.name, f"{getattr(config, item.name)!r} would be read back as {getattr(result, item.name)!r}")
        for item in dataclasses.fields(ViTConfig)
        if item.name not in _NOT_NUMERIC and getattr(config, item.name) != getattr(result, item.name)
    ]
    untold = []
    for name, value in told.items():
        try:
            alone = read_source(source, format=label, overrides={k: v for k, v in again.items() if k != name}).config
            known = getattr(alone, name) == value
        except VitHubError:
            known = False
        if not known:
            untold.append(f"the file does not say {name}={value}: whoever loads it must be told")
    return changed, untold


def _write(
    ckpt: Checkpoint,
    plan: _Plan,
    target: Path,
    container: str | None,
    dtype: str | None,
    keep_rest: bool,
    progress: Callable[[int], None] | None,
) -> Report:
    tensors = dict(plan.tensors)
    if keep_rest:
        tensors |= _read_rest(ckpt)
    file = target if container else target / plan.form.filename
    write_tensors(
        file, container or plan.form.container, _cast_all(tensors, dtype), plan.form.metadata, progress=progress
    )
    for name, content in plan.sidecars.items():
        with atomic_path(target / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    dropped = dict(ckpt.dropped)
    for name in plan.left_out:
        for source_name in ckpt.origin.get(name, (name,)):
            dropped[source_name] = f"unused by the model, and {plan.form.name} has no place for it"
    warnings = [*ckpt.warnings, *plan.warnings]
    warnings += [f"lossy: {name}: {reason}" for name, reason in plan.problems]
    label = plan.form.label(plan.dialect)
    return Report(target, label, ckpt.config, dropped, dict(ckpt.inferred), warnings)


def write_canonical(
    file: Path, ckpt: Checkpoint, *, dtype: str | None = None, progress: Callable[[int], None] | None = None
) -> None:
    """Writes the canonical file: tensors in canonical order; config and passport as metadata, keys sorted."""
    passport = ckpt.passport
    if ckpt.format != "canonical":
        passport = dataclasses.replace(passport, source=[_hashed(path) for path in ckpt.source.files])
    metadata = {
        "format": "pt",
        CONFIG_KEY: json.dumps(ckpt.config.to_dict(), sort_keys=True),
        PASSPORT_KEY: passport.to_json(),
    }
    write_tensors(file, "safetensors", _cast_all(ckpt.tensors, dtype), metadata, progress=progress)


def _hashed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"file": path.name, "size": path.stat().st_size, "sha256": digest.hexdigest()}


def _cast_all(tensors: Mapping[str, LazyTensor], dtype: str | None) -> Mapping[str, LazyTensor]:
    if dtype is None:
        return tensors
    from vit_hub.converters.casting import cast

    return {name: cast(tensor, dtype) for name, tensor in tensors.items()}


def _rest_path(path: Path) -> Path:
    return path / "rest.safetensors" if path.is_dir() else path.with_name(path.name + ".rest.safetensors")


def _write_rest(ckpt: Checkpoint, path: Path) -> None:
    rest = {name: ckpt.source.tensors[name] for name in ckpt.dropped if name in ckpt.source.tensors}
    if rest:
        write_tensors(_rest_path(path), "safetensors", rest, {"format": "pt"})


def _read_rest(ckpt: Checkpoint) -> Mapping[str, LazyTensor]:
    path = _rest_path(ckpt.path)
    return open_source(path).tensors if path.exists() else {}
