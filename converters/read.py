"""Opening checkpoints of any format: lazy canonical tensors, a config, and an account of every tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import RawCheckpoint, open_raw
from vit_hub.converters.infer_config import infer_config
from vit_hub.converters.passport import Passport
from vit_hub.converters.recognize import Match, recognize, unexplained
from vit_hub.converters.rules.table import Reading
from vit_hub.converters.tensors import DTYPES, LazyTensor
from vit_hub.errors import CheckpointError, ConfigError
from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import tensor_shapes

__all__ = ["CONFIG_KEY", "PASSPORT_KEY", "Checkpoint", "open_checkpoint", "read_raw"]

CONFIG_KEY = "vit_hub.config"
PASSPORT_KEY = "vit_hub.passport"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint, whose values are read on demand.

    Attributes:
        path: the file or folder.
        format: a name that ``to=`` accepts; ``canonical`` for vit-hub's own files.
        config: the model.
        tensors: canonical name -> tensor, those of :func:`vit_hub.model.shapes.tensor_shapes` first, carried ones last.
        passport: where the weights come from and how to write them back.
        dropped: source name -> reason for leaving it out.
        inferred: config field -> its origin.
        warnings: messages for the user.
        source: the contents as stored.
        origin: canonical name -> the source names it came from.
    """

    path: Path
    format: str
    config: ViTConfig
    tensors: Mapping[str, LazyTensor]
    passport: Passport
    dropped: Mapping[str, str] = field(default_factory=dict)
    inferred: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    source: RawCheckpoint
    origin: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def provenance(self) -> dict[str, Any]:
        """The passport as plain data."""
        return self.passport.to_dict()


def open_checkpoint(
    path: str | Path,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Open a checkpoint of any known format without reading its tensors.

    Args:
        path: file or folder.
        format: the format to read it as, instead of recognising it.
        overrides: config fields that the file does not state or states wrongly.
        hints: config fields known from elsewhere (a registry), used where the file does not state them.

    Raises:
        UnknownFormatError: not a checkpoint, or of no known format.
        UnsafeCheckpointError: it can only be read by executing code from it.
        CheckpointError: damaged, or tensors are missing, unknown or of unexpected shape.
        ConfigError: a config field cannot be determined, or an override does not fit.
    """
    return read_raw(open_raw(path), format=format, overrides=overrides, hints=hints)


def read_raw(
    raw: RawCheckpoint,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read contents that are open already, or never were a file; see :func:`open_checkpoint`."""
    given = dict(overrides or {})
    if not raw.tensors:
        raise CheckpointError(f"{raw.path}: the file holds no tensors")
    if CONFIG_KEY in raw.metadata and format in (None, "canonical"):
        return _read_canonical(raw, given)
    if format == "canonical":
        raise CheckpointError(
            f"{raw.path}: not a canonical file: its metadata has no {CONFIG_KEY!r}",
            hint="without format= (--format) its content decides",
        )
    match = recognize(raw, format)
    sizes = {**match.format.axes(raw, match.tensors), **_axis_sizes(given)}
    try:
        reading = match.format.table(match.dialect).read(match.tensors, sizes)
    except CheckpointError as error:
        hint = "the file is damaged, or an override does not fit it"
        raise CheckpointError(f"{raw.path}: {error.message}", hint=hint) from error
    dropped = {match.prefix + name: reason for name, reason in reading.dropped.items()}
    unknown = [match.prefix + name for name in reading.unknown]
    for name in raw.tensors:
        if not name.startswith(match.prefix):
            reason = next((drop.reason for drop in match.format.outside if re.fullmatch(drop.pattern, name)), None)
            if reason is None:
                unknown.append(name)
            else:
                dropped[name] = reason
    if unknown:
        raise unexplained(match, raw, unknown)
    stated = match.format.state(raw, match.tensors, match.dialect)
    try:
        config, inferred = infer_config(
            {name: tensor.shape for name, tensor in reading.tensors.items()},
            overrides=given,
            stated={**(hints or {}), **stated.fields},
            stated_by=stated.by or "the registry",
            conventions=match.format.conventions,
            convention_of=match.format.project,
        )
    except ConfigError as error:
        raise ConfigError(f"{raw.path}: {error.message}", hint=error.hint) from error
    warnings = list(stated.warnings)
    if match.ambiguous:
        inferred["format"] = f"container, wrapper and tensors; {', '.join(match.ambiguous)} has the same tensor names"
        warnings.append(
            f"read as {match.label}; {', '.join(match.ambiguous)} checkpoints have the same tensor names: "
            f"give format= (--format) if it is one, because they may compute or resize differently"
        )
    passport = Passport(
        format=match.label,
        variables=dict(match.dialect.variables),
        prefix=match.prefix,
        container=raw.container,
        shapes={match.prefix + name: list(shape) for name, shape in reading.shapes.items()},
        names={match.prefix + name: match.prefix + found for name, found in reading.names.items()},
        carried=sorted(reading.carried),
        overrides={key: list(value) if isinstance(value, tuple) else value for key, value in given.items()},
        sidecars=dict(raw.sidecars),
        source=[{"file": file.name, "size": file.stat().st_size} for file in raw.files],
    )
    return Checkpoint(
        path=raw.path,
        format=match.label,
        config=config,
        tensors=_ordered(raw, config, reading.tensors, reading.carried, match, reading),
        passport=passport,
        dropped=dropped,
        inferred=inferred,
        warnings=tuple(warnings),
        source=raw,
        origin={name: tuple(match.prefix + part for part in parts) for name, parts in reading.origin.items()},
    )


def _axis_sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    """Return the given sizes of layout axes that shapes may not show: h heads, p x q patch."""
    sizes = {"h": fields["num_heads"]} if "num_heads" in fields else {}
    if "patch_size" in fields:
        patch = fields["patch_size"]
        sizes["p"], sizes["q"] = (patch, patch) if isinstance(patch, int) else patch
    return sizes


def _read_canonical(raw: RawCheckpoint, overrides: Mapping[str, Any]) -> Checkpoint:
    try:
        stored = json.loads(raw.metadata[CONFIG_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{raw.path}: {CONFIG_KEY} in the metadata is not JSON: {error}") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{raw.path}: {CONFIG_KEY} in the metadata is not a JSON object")
    try:
        config = ViTConfig.from_dict({**stored, **overrides})
    except ConfigError as error:
        raise ConfigError(f"{raw.path}: {error.message}", hint=error.hint) from error
    passport = Passport(format="canonical")
    if PASSPORT_KEY in raw.metadata:
        passport = Passport.from_json(raw.metadata[PASSPORT_KEY], str(raw.path))
    return Checkpoint(
        path=raw.path,
        format="canonical",
        config=config,
        tensors=_ordered(raw, config, raw.tensors, passport.carried, None, None),
        passport=passport,
        inferred={name: "metadata of the file" for name in stored if name not in overrides},
        source=raw,
        origin={name: (name,) for name in raw.tensors},
    )


def _ordered(
    raw: RawCheckpoint,
    config: ViTConfig,
    tensors: Mapping[str, LazyTensor],
    carried: list[str],
    match: Match | None,
    reading: Reading | None,
) -> dict[str, LazyTensor]:
    """Return the tensors in canonical order; check that none is missing, surplus, or of another shape or dtype."""
    expected = tensor_shapes(config)
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected and name not in carried]
    if missing or surplus:
        parts = [f"missing {_listed(missing)}" * bool(missing), f"unexpected {_listed(surplus)}" * bool(surplus)]
        label = match.label if match else "canonical"
        raise CheckpointError(
            f"{raw.path}: as a {label} checkpoint it has {'; '.join(part for part in parts if part)}",
            hint="the file is incomplete, or overrides do not fit it",
        )
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape:
            origin = f" (from {', '.join(reading.origin[name])})" if reading and name in reading.origin else ""
            raise CheckpointError(
                f"{raw.path}: tensor {name}{origin} has shape {found.shape}, the config says {shape}",
                hint="the file is damaged, or an override or its config.json does not fit it",
            )
        if not DTYPES[found.dtype].floating and not name.endswith("num_batches_tracked"):
            raise CheckpointError(
                f"{raw.path}: tensor {name} has dtype {found.dtype}; weights must be floating point",
                hint="a quantised or damaged checkpoint: use one in float32, float16 or bfloat16",
            )
    return {**{name: tensors[name] for name in expected}, **{name: tensors[name] for name in carried}}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
