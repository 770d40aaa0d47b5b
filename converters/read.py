"""Opening checkpoints of any format: lazy canonical tensors, a config, and an account of every tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from vit_hub.converters.classifier import Classifier, find_classifier
from vit_hub.converters.containers import RawCheckpoint, open_raw
from vit_hub.converters.dequantize import dequantized
from vit_hub.converters.formats import all_formats
from vit_hub.converters.infer_config import infer_config
from vit_hub.converters.passport import Passport
from vit_hub.converters.recognize import Match, beyond, encoder_names, recognize, unexplained
from vit_hub.converters.rules.extras import DEQUANTIZE, beside
from vit_hub.converters.rules.table import Reading
from vit_hub.converters.tensors import DTYPES, LazyTensor, zeros
from vit_hub.errors import CheckpointError, ConfigError
from vit_hub.model.config import ViTConfig, check_fields
from vit_hub.model.shapes import field_of, tensor_shapes
from vit_hub.shown import ShortRepr
from vit_hub.untrusted import TOKEN_VALUES, conform, gate, parse_json

__all__ = ["CONFIG_KEY", "CONFIG_SHA256_KEY", "PASSPORT_KEY", "Checkpoint", "open_checkpoint", "read_raw"]

CONFIG_KEY = "vit_hub.config"
# Of the text of the config, so that a change by hand shows in `vit-hub check`.
CONFIG_SHA256_KEY = "vit_hub.config_sha256"
PASSPORT_KEY = "vit_hub.passport"
_PATCH_KERNEL = "patch_embed.proj.weight"
_HEADS = ("head", "head_dist")
# A classifier beside them disables their rules, unless the caller says that the model has them.
_PRE_LOGITS = ("pre_logits.fc.weight", "pre_logits.fc.bias")


@dataclass(frozen=True, kw_only=True, repr=False)
class Checkpoint(ShortRepr):
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

    def _facts(self) -> dict[str, object]:
        return {
            "path": str(self.path),
            "format": self.format,
            "config": self.config,
            "tensors": len(self.tensors),
            "dtypes": sorted({tensor.dtype for tensor in self.tensors.values()}),
            "dropped": len(self.dropped),
            "warnings": list(self.warnings),
        }

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
    prefix: str | None = None,
    dequantize: bool = False,
) -> Checkpoint:
    """Open a checkpoint of any known format without reading its tensors.

    Args:
        path: file or folder.
        format: the format to read it as, instead of recognising it.
        overrides: config fields that the file does not state or states wrongly.
        hints: config fields known from elsewhere (a registry), used where the file does not state them.
        prefix: what the names of the model to read begin with, where a file holds several.
        dequantize: compute floating-point weights of quantized ones, where their arithmetic is public.

    Raises:
        UnknownFormatError: not a checkpoint, or of no known format.
        UnsafeCheckpointError: it can only be read by executing code from it.
        CheckpointError: damaged, or tensors are missing, unknown or of unexpected shape.
        ConfigError: a config field cannot be determined, or an override does not fit.
    """
    options: dict[str, Any] = {"overrides": overrides, "hints": hints, "prefix": prefix, "dequantize": dequantize}
    return read_raw(open_raw(path, select=encoder_names), format=format, **options)


def read_raw(
    raw: RawCheckpoint,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    dequantize: bool = False,
) -> Checkpoint:
    """Read contents that are open already, or never were a file; see :func:`open_checkpoint`."""
    given = dict(overrides or {})
    try:
        check_fields(given)
    except ConfigError as error:
        raise ConfigError(f"{raw.path}: {error.message}", hint=error.hint) from error
    beside = f", and {', '.join(raw.sidecars)} beside it" if raw.sidecars else ""
    with gate(raw.path, "its tensors or config files are damaged", f"check the file{beside}, or fetch them again"):
        return _read_raw(raw, format, given, hints, prefix, dequantize)


def _read_raw(
    raw: RawCheckpoint,
    format: str | None,
    given: dict[str, Any],
    hints: Mapping[str, Any] | None,
    prefix: str | None,
    dequantize: bool,
) -> Checkpoint:
    if dequantize:
        raw = dequantized(raw)
    if not raw.tensors:
        raise CheckpointError(f"{raw.path}: the file holds no tensors")
    if CONFIG_KEY in raw.metadata and format in (None, "canonical"):
        return _read_canonical(raw, given)
    if format == "canonical":
        raise CheckpointError(
            f"{raw.path}: not a canonical file: its metadata has no {CONFIG_KEY!r}",
            hint="without format= (--format) its content decides",
        )
    for fmt in all_formats():
        if refusal := fmt.refuses(raw):
            raise ConfigError(f"{raw.path}: {refusal}")
    source = raw
    raw, stored = _with_plain_names(raw)
    raw, channels_last = _channels_first(raw)
    try:
        match = recognize(raw, format, prefix)
    except CheckpointError as error:
        raise _without_values(raw) or error from error
    if failure := _without_values(raw, match):
        raise failure
    sizes = {**match.format.axes(raw, match.tensors), **_axis_sizes(given)}
    try:
        match, reading, classifier = _read(raw, match, sizes, given)
        absent = _add_biases(reading)
        match.format.adjust(raw, reading)
    except CheckpointError as error:
        hint = "the file is damaged, or an override does not fit it"
        raise CheckpointError(f"{raw.path}: {error.message}", hint=hint) from error

    def full(name: str) -> str:
        """Return the stored name of a tensor of the table."""
        found = classifier.moved.get(name, match.prefix + name)
        return stored.get(found, found)

    unknown = [*match.unknown, *(match.prefix + name for name in reading.unknown)]
    if unknown:
        raise unexplained(match, raw, unknown)
    stated = match.format.state(raw, match.tensors, match.dialect)
    try:
        config, inferred, guesses = infer_config(
            {name: tensor.shape for name, tensor in reading.tensors.items()},
            overrides=given,
            stated={**(hints or {}), **stated.fields, **raw.program_fields},
            stated_by=stated.by or "the registry",
            conventions=match.format.conventions,
            convention_of=match.format.project,
        )
    except ConfigError as error:
        raise ConfigError(f"{raw.path}: {error.message}", hint=error.hint) from error
    inferred |= dict.fromkeys(raw.program_fields.keys() & inferred.keys(), "the program beside the weights")
    guessed = [text for name, text in stated.guesses.items() if name not in given]
    warnings = [*raw.warnings, *match.warnings, *stated.warnings, *guessed, *classifier.warnings, *guesses]
    if match.prefix not in match.format.prefixes:
        inferred["prefix"] = f"{match.prefix!r} stands before the names of {match.label}"
    if channels_last:
        inferred["layout"] = "kernels have their channels last, as MLX stores them"
    if absent:
        warnings.append("the classifier has no bias, and gets one of zeros")
    if match.ambiguous:
        inferred["format"] = f"container, wrapper and tensors; {', '.join(match.ambiguous)} has the same tensor names"
        warnings.append(
            f"read as {match.label}; {', '.join(match.ambiguous)} checkpoints have the same tensor names: "
            f"give format= (--format) if it is one, because they may compute or resize differently"
        )
    dropped = {**match.dropped, **{match.prefix + name: reason for name, reason in reading.dropped.items()}}
    dropped |= classifier.dropped
    written = {name: found for name, found in reading.names.items() if found not in classifier.moved}
    claimed = {part for parts in reading.origin.values() for part in parts}
    written |= {name: name for name in claimed - set(written.values())}
    names = {match.prefix + name: full(found) for name, found in written.items()}
    passport = Passport(
        format=match.label,
        variables=dict(match.dialect.variables),
        prefix=match.prefix,
        container=raw.container,
        shapes={full(name): list(shape) for name, shape in reading.shapes.items()},
        names={name: found for name, found in names.items() if name != found},
        channels_last=sorted({full(part) for part in claimed} & {stored.get(name, name) for name in channels_last}),
        carried=sorted(reading.carried),
        absent=absent,
        overrides={key: list(value) if isinstance(value, tuple) else value for key, value in given.items()},
        sidecars=dict(raw.sidecars),
        source=[{"file": file.name, "size": raw.size_of(file)} for file in raw.files],
    )
    origin = {name: tuple(full(part) for part in parts) for name, parts in reading.origin.items()}
    passport, unusable = passport.with_stated(config.num_classes)
    warnings += unusable
    return Checkpoint(
        path=raw.path,
        format=match.label,
        config=config,
        tensors=_ordered(raw, config, reading.tensors, reading.carried, match.label, origin),
        passport=passport,
        dropped={stored.get(name, name): reason for name, reason in dropped.items()},
        inferred=inferred,
        warnings=tuple(warnings),
        source=source,
        origin=origin,
    )


def _without_values(raw: RawCheckpoint, match: Match | None = None) -> CheckpointError | None:
    """Return the error for weights that the file holds in another form than plain values; None if there are none.

    Args:
        match: the encoder, where it was recognised; else all weights count.
    """
    prefix = match.prefix if match else ""
    for name, found in raw.unreadable.items():
        if name.startswith(prefix) and not beside(beyond(prefix, name)):
            return CheckpointError(f"{raw.path}: tensor {name!r} {found.what}", hint=found.remedy)
    empty = [name for name, tensor in raw.tensors.items() if 0 in tensor.shape and name.startswith(prefix)]
    if 2 * len(empty) > len(raw.tensors):
        return CheckpointError(
            f"{raw.path}: {len(empty)} of {len(raw.tensors)} tensors are empty, such as {empty[0]!r}: "
            "DeepSpeed's ZeRO stage 3 leaves placeholders, the values are in files of the single processes",
            hint="run its zero_to_fp32.py in the checkpoint's folder, and give the file that it writes",
        )
    return None


def _read(
    raw: RawCheckpoint, match: Match, sizes: Mapping[str, int], given: Mapping[str, Any]
) -> tuple[Match, Reading, Classifier]:
    """Read the tensors of a match by its table, with a classifier that stands elsewhere."""
    wanted = [name for name in _PRE_LOGITS if given.get(field_of(name))]
    reading = match.table.read(match.tensors, sizes, wanted)
    kernel = reading.tensors.get(_PATCH_KERNEL)
    if kernel is None:
        return match, reading, Classifier()
    classifier = find_classifier(match, raw.tensors, kernel.shape[0], has_head="head.weight" in reading.tensors)
    moved = {name: raw.tensors[found] for name, found in classifier.moved.items()}
    if not moved:
        return match, reading, classifier
    left = {name: reason for name, reason in match.dropped.items() if name not in classifier.moved.values()}
    match = dataclasses.replace(match, tensors={**match.tensors, **moved}, dropped=left)
    reading = match.table.read(match.tensors, sizes, wanted)
    for name in set(reading.unknown) & moved.keys():
        # The table has no place for a classifier: it has the canonical name.
        reading.unknown.remove(name)
        reading.tensors[name], reading.origin[name] = moved[name], (name,)
    return match, reading, classifier


def _add_biases(reading: Reading) -> list[str]:
    """Give classifiers without a bias one of zeros; return the names of these."""
    tensors = reading.tensors
    absent = [f"{head}.bias" for head in _HEADS if f"{head}.weight" in tensors and f"{head}.bias" not in tensors]
    for name in absent:
        weight = tensors[name.replace("bias", "weight")]
        tensors[name] = zeros(weight.dtype, weight.shape[:1])
    return absent


# What torch puts between the names of modules that it compiles, shards or checkpoints.
_INFIX = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_WRAPPERS = re.compile(r"(.*/)?((module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|model)\.)*")
# Keras 2 stores a variable under its layer, the model and the layer again.
_KERAS_2 = re.compile(r"([^/]+)/[^/]+/(\1/.+:\d+)")


def _plain_name(raw: RawCheckpoint, name: str) -> str:
    """Return a name without what torch and Keras put into names of the same model."""
    if raw.container == "hdf5":
        repeated = _KERAS_2.fullmatch(name)
        return repeated[2] if repeated else name
    if raw.metadata.get("format") == "flax":  # its safetensors files have dots between nested dicts
        return name.replace(".", "/")
    start = cast("re.Match[str]", _WRAPPERS.match(name)).end()
    return name[:start] + _INFIX.sub("", name[start:])


def _with_plain_names(raw: RawCheckpoint) -> tuple[RawCheckpoint, dict[str, str]]:
    """Return the contents with plain names, and the stored names of those that had another."""
    plain_names = {name: _plain_name(raw, name) for name in raw.tensors}
    stored = {plain: name for name, plain in plain_names.items() if plain != name}
    if not stored:
        return raw, stored
    tensors = {plain_names[name]: tensor for name, tensor in raw.tensors.items()}
    if len(tensors) != len(raw.tensors):
        raise CheckpointError(f"{raw.path}: holds tensors twice, with and without wrappers in their names")
    return dataclasses.replace(raw, tensors=tensors), stored


def _channels_first(raw: RawCheckpoint) -> tuple[RawCheckpoint, list[str]]:
    """Return the contents with kernels as torch has them, [D, C, p, q], and the names of those that MLX left otherwise.

    MLX has the channels last, [D, p, q, C], under the names of torch's checkpoints. Where no metadata say so, shapes of
    square patches of RGB images tell.
    """
    kernels = [name for name, tensor in raw.tensors.items() if len(tensor.shape) in (4, 5) and name.endswith("weight")]
    shapes = [raw.tensors[name].shape for name in kernels]
    if raw.metadata.get("format") != "mlx" and not any(p == q > 4 and c == 3 for *_, p, q, c in shapes):
        return raw, []
    changed = {name: _last_to_second(raw.tensors[name]) for name in kernels}
    return dataclasses.replace(raw, tensors={**raw.tensors, **changed}), kernels


def _last_to_second(tensor: LazyTensor) -> LazyTensor:
    last = len(tensor.shape) - 1
    return tensor.permute((0, last, *range(1, last)))


def _axis_sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    """Return the given sizes of layout axes that shapes may not show: h heads, p x q patch."""
    sizes = {"h": fields["num_heads"]} if "num_heads" in fields else {}
    if "patch_size" in fields:
        patch = fields["patch_size"]
        sizes["p"], sizes["q"] = (patch, patch) if isinstance(patch, int) else patch
    return sizes


def _read_canonical(raw: RawCheckpoint, overrides: Mapping[str, Any]) -> Checkpoint:
    try:
        stored = parse_json(raw.metadata[CONFIG_KEY])
        conform(stored, dict[str, Any], CONFIG_KEY)
    except ValueError as error:
        raise CheckpointError(
            f"{raw.path}: {CONFIG_KEY} in the metadata cannot be read: {error}",
            hint="convert the original file again, or fetch the file again",
        ) from error
    try:
        config = ViTConfig.from_dict({**stored, **overrides})
    except ConfigError as error:
        raise ConfigError(f"{raw.path}: {error.message}", hint=error.hint) from error
    passport = Passport(format="canonical")
    if PASSPORT_KEY in raw.metadata:
        passport = Passport.from_json(raw.metadata[PASSPORT_KEY], str(raw.path))
    # Files of earlier versions have what config files stated in these only.
    passport, unusable = passport.with_stated(config.num_classes)
    return Checkpoint(
        path=raw.path,
        format="canonical",
        config=config,
        tensors=_ordered(raw, config, raw.tensors, passport.carried, "canonical", {}),
        passport=passport,
        inferred={name: "metadata of the file" for name in stored if name not in overrides},
        warnings=(*raw.warnings, *unusable),
        source=raw,
        origin={name: (name,) for name in raw.tensors},
    )


def _ordered(
    raw: RawCheckpoint,
    config: ViTConfig,
    tensors: Mapping[str, LazyTensor],
    carried: list[str],
    label: str,
    origin: Mapping[str, tuple[str, ...]],
) -> dict[str, LazyTensor]:
    """Return the tensors in canonical order; check that none is missing, surplus, or of another shape or dtype."""
    layers = config.depth * config.branches + config.pool_depth + sum(config.stem_stages) + len(config.stem_convs)
    if layers > len(tensors):  # before anything is done for each of them
        raise CheckpointError(
            f"{raw.path}: the config has depth={config.depth}, {layers} layers with those of stem and pooling, and the "
            f"tensors are {len(tensors)} in all",
            hint="the file is damaged, or an override does not fit it",
        )
    width = max(config.embed_dim, config.num_patches if config.rel_pos in ("block", "shared") else 0)
    if said := TOKEN_VALUES.exceeded(config.num_patches * config.num_tubelets * width):
        raise CheckpointError(
            f"{raw.path}: image_size={config.image_size} {said} in what is computed of its patches",
            hint="the file is damaged, or an override does not fit it",
        )
    expected = tensor_shapes(config)
    missing = [name for name in expected if name not in tensors]
    missing += [name for name in carried if name not in tensors]
    surplus = [name for name in tensors if name not in expected and name not in carried]
    if missing or surplus:
        parts = [f"missing {_listed(missing)}" * bool(missing), f"unexpected {_listed(surplus)}" * bool(surplus)]
        raise CheckpointError(
            f"{raw.path}: as a {label} checkpoint it has {'; '.join(part for part in parts if part)}",
            hint="the file is incomplete, or overrides do not fit it",
        )
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape:
            source = f" (from {', '.join(origin[name])})" if name in origin else ""
            raise CheckpointError(
                f"{raw.path}: tensor {name}{source} has shape {found.shape}, the config says {shape}",
                hint="the file is damaged, or an override or its config.json does not fit it",
            )
        if not DTYPES[found.dtype].floating and not name.endswith("num_batches_tracked"):
            raise CheckpointError(
                f"{raw.path}: tensor {name} has dtype {found.dtype}; weights must be floating point: it is quantized, "
                "or the file is damaged",
                hint=DEQUANTIZE,
            )
    return {**{name: tensors[name] for name in expected}, **{name: tensors[name] for name in carried}}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
