"""Writing a checkpoint in any format that can express the model.

This is not decided by a list: the planned file is read back, from headers alone, and must give the same config.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import EMBEDDED, RawCheckpoint, open_raw, write_tensors
from vit_hub.converters.containers.ahead import meanwhile
from vit_hub.converters.containers.atomic import atomic_path
from vit_hub.converters.containers.destination import canonical_file, container_of, refuse_existing
from vit_hub.converters.containers.folder import PART, is_customary
from vit_hub.converters.containers.hashing import file_sha256
from vit_hub.converters.containers.together import files_together
from vit_hub.converters.folding import FOLDS, Fold
from vit_hub.converters.formats import all_formats, formats_named, unknown_format
from vit_hub.converters.metadata import label_losses, preprocessing_losses
from vit_hub.converters.passport import Passport
from vit_hub.converters.read import (
    CONFIG_KEY,
    CONFIG_SHA256_KEY,
    PASSPORT_KEY,
    Checkpoint,
    open_checkpoint,
    read_raw,
)
from vit_hub.converters.rules.format import Dialect, Format, Sidecars, axis_sizes
from vit_hub.converters.tensors import LazyTensor, zeros
from vit_hub.errors import CheckpointError, ConfigError, UnsupportedByFormatError, VitHubError
from vit_hub.model.config import RESIZING, ViTConfig
from vit_hub.model.shapes import field_of
from vit_hub.preprocessing.of_checkpoint import settled
from vit_hub.shown import ShortRepr

__all__ = ["Report", "as_stored", "convert_checkpoint", "foreign_tensors", "prospects", "write_canonical"]

# Bare files never state these, and their loaders get them as options: a reason to warn, none to refuse.
_OPTIONS = ("num_heads", "image_size")
# Tensors that the model does not use, and that fit no other image size, are named so.
_SIZED = "sized."
_REST = "rest.safetensors"
# Files of a folder that are about the weights in it, and go when others take the place of these.
_ABOUT = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "open_clip_config.json",
)
_ABOUT_KERAS = (
    "config.json",
    "metadata.json",
    "task.json",
    "preprocessor.json",
    "image_converter.json",
    "task.weights.h5",
)


@dataclass(frozen=True, repr=False)
class Report(ShortRepr):
    """The result of a conversion.

    Attributes:
        path: for :func:`vit_hub.load`: the file, or the folder with its config files.
        format: the format written.
        config: the model.
        dropped: source name -> reason for leaving it out.
        inferred: config field -> its origin.
        warnings: messages for the user.
        metadata_lost: those of them about class names, preprocessing or a text tower that the written files lack.
        lossy: the format cannot express the model, but it was written anyway.
        files: all that were written, the one with the weights first.
    """

    path: Path
    format: str
    config: ViTConfig
    dropped: dict[str, str] = field(default_factory=dict)
    inferred: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    metadata_lost: list[str] = field(default_factory=list)
    lossy: bool = False
    files: list[Path] = field(default_factory=list)

    def _facts(self) -> dict[str, object]:
        return {
            "path": str(self.path),
            "format": self.format,
            "config": self.config,
            "dropped": len(self.dropped),
            "lossy": self.lossy,
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class _Plan:
    """A file to write, its values still unread; the checkpoint is the one given or a folded one."""

    ckpt: Checkpoint
    format: Format
    dialect: Dialect
    tensors: dict[str, LazyTensor]
    sidecars: Sidecars
    left_out: tuple[str, ...]  # canonical names that the format has no place for
    problems: tuple[tuple[str, str], ...]
    # Whether the source had this format and dialect, and how much the file differs from the source otherwise.
    native: bool
    distance: tuple[int, ...]
    folds: tuple[Fold, ...] = ()

    @property
    def lost(self) -> int:
        """The number of tensors that the model computes with and that the format has no place for."""
        return sum(name not in self.ckpt.passport.carried for name in self.left_out)

    @property
    def cost(self) -> int:
        """The cost of all folds."""
        return sum(fold.cost for fold in self.folds)

    @property
    def fields(self) -> set[str]:
        """The config fields that the format cannot express."""
        return {name for name, _ in self.problems}


@dataclass(frozen=True)
class _Place:
    """The destination of a conversion.

    Attributes:
        target: a file or a folder.
        is_folder: it is a folder.
        rest: tensors to keep beside the result.
        overwrite: replace files that exist.
    """

    target: Path
    is_folder: bool
    rest: Mapping[str, LazyTensor]
    overwrite: bool

    @property
    def rest_path(self) -> Path:
        """The file of the tensors that are kept."""
        return _rest_path(self.target, self.is_folder)

    @contextmanager
    def writing(self, files: Sequence[Path]) -> Iterator[Path]:
        """Yield a folder to write the result's files in, the first with the weights; at the end they are there.

        Raises:
            VitHubError: one exists and must not be overwritten, or the system refuses.
        """
        first = files[0]
        refuse_existing(files, overwrite=self.overwrite)
        obsolete = _companions(first) if self.is_folder else (self.rest_path.name,) if first.exists() else ()
        with files_together(first.parent, first.name, whole=self.is_folder, obsolete=obsolete) as within:
            yield within
            if self.rest:
                write_tensors(self.rest_path, "safetensors", self.rest, {"format": "pt"}, within=within)


def _companions(weights: Path) -> tuple[str, ...]:
    """Return the names of the files in a folder that are about its weights, and of no use without them.

    A canonical file says everything itself: a config file beside it is of something else.
    """
    if not weights.is_file() or not is_customary(weights.name):
        return ()
    try:
        itself = CONFIG_KEY in open_raw(weights).metadata
    except VitHubError:  # nobody knows what it is
        return ()
    about = _ABOUT_KERAS if weights.name == "model.weights.h5" else _ABOUT
    return (_REST,) if itself else (*about, _REST)


def convert_checkpoint(
    ckpt: Checkpoint,
    destination: str | Path,
    *,
    to: str = "canonical",
    dtype: str | None = None,
    lossy: bool = False,
    keep_rest: bool = False,
    strict_metadata: bool = False,
    overwrite: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Write an opened checkpoint in another format, or in its own.

    Args:
        ckpt: from :func:`vit_hub.converters.open_checkpoint`.
        destination: a file with a known suffix, or a folder (no suffix, or ``/`` at its end) for the customary files of
            the format.
        to: a name of :func:`vit_hub.converters.format_names`.
        dtype: ``F32``, ``F16``, ``BF16`` or ``F64``; None keeps that of each tensor.
        lossy: write it even if the format cannot express the model.
        keep_rest: also write the tensors left out to ``*.rest.safetensors`` beside the result, and add those of such a
            file beside the source.
        strict_metadata: refuse, before anything is written, what is else a warning: class names or preprocessing that
            the written files would not give back, or a text tower that they lack.
        overwrite: replace files that exist; config files only beside weights of the same folder, and all of theirs.
        progress: called with the bytes written since the last call.

    Raises:
        UnknownFormatError: there is no format ``to``.
        UnsupportedByFormatError: the format cannot express the model; the message names the field, the hint formats
            that can. Or ``strict_metadata`` is given and something would be lost. Or the destination has a suffix that
            stands for no container.
        VitHubError: the destination cannot be written.
    """
    target = Path(destination)
    container = container_of(destination)
    place = _Place(target, container is None, _left_out(ckpt) if keep_rest else {}, overwrite)
    if place.rest:
        refuse_existing([place.rest_path], overwrite=overwrite)
    if to == "canonical":
        file = canonical_file(destination)
        with place.writing([file]) as within:
            write_canonical(file, ckpt, dtype=dtype, progress=progress, within=within)
        report = Report(file, to, ckpt.config, dict(ckpt.dropped), dict(ckpt.inferred), list(ckpt.warnings))
        report.files.append(file)
    else:
        kept = _read_rest(ckpt) if keep_rest else {}
        # Tensors beside the encoder have the names of the source's format.
        rest = kept if ckpt.passport.format.partition("-")[0] == to.partition("-")[0] else {}
        planned = ckpt if container or rest else _alone(ckpt)
        plan = _plan(_with_preprocessing(planned), to, container=container, lossy=lossy)
        sidecars = dict(plan.sidecars)
        if rest and plan.native:
            # The model is complete again, as the config files of the source describe it.
            sidecars |= {name: content for name, content in ckpt.passport.sidecars.items() if name in sidecars}
        lost, remarks = _losses(ckpt, plan, sidecars, complete=bool(rest))
        if kept and not rest:
            source = ckpt.passport.format
            remarks.append(
                f"the {len(kept)} tensors kept beside the source are not written: their names are {source}'s"
            )
        if strict_metadata and lost:
            raise UnsupportedByFormatError(
                f"{to} would lose what is known about the model: {'; '.join(lost)}",
                hint="without strict_metadata (--strict-metadata) this is a warning; a canonical file keeps all of it",
            )
        plan = dataclasses.replace(plan, sidecars=sidecars)
        report = _write(ckpt, plan, place, container, dtype, rest, progress)
        report.warnings.extend(text for text in (*lost, *remarks) if text not in ckpt.warnings)
        report.metadata_lost.extend(lost)
        if report.lossy:
            report.warnings.append(_loss(ckpt, report))
    if place.rest:
        report.files.append(place.rest_path)
    return report


def foreign_tensors(ckpt: Checkpoint, to: str) -> tuple[dict[str, LazyTensor], Sidecars, list[str]]:
    """Return the tensors and config files of another format, and warnings, without writing anything.

    The warnings are about tensors that were folded and class names that the format has no place for.

    Raises:
        UnknownFormatError, UnsupportedByFormatError: as for :func:`convert_checkpoint`.
    """
    plan = _plan(_with_preprocessing(_alone(ckpt)), to, container=None, lossy=False)
    return plan.tensors, plan.sidecars, [*_folded(plan), *label_losses(ckpt.passport, ckpt.config, plan.sidecars, to)]


def prospects(ckpt: Checkpoint, to: str) -> tuple[dict[str, str], list[str]]:
    """Return why a format cannot express a model, by config field, and what would be folded; from headers alone.

    Raises:
        UnknownFormatError: there is no format ``to``.
    """
    if to == "canonical":
        return {}, []
    plan = _plan(ckpt, to, container=None, lossy=True)
    return dict(plan.problems), _folded(plan)


def as_stored(ckpt: Checkpoint) -> RawCheckpoint | None:
    """Return a checkpoint as its source's own format stores it, with the config files that were found beside that.

    For a file in a foreign format these are its contents. A canonical file's are planned as for the way back, but with
    the config files of its passport. None: it never was in another format, or is no longer what the passport describes.
    """
    passport = ckpt.passport
    if ckpt.format != "canonical":
        return ckpt.source
    if not formats_named(passport.format):
        return None
    plan = _plan(ckpt, passport.format, container=None, lossy=True)
    if not plan.native:
        return None
    metadata = _header(plan.format, passport, plan.native)
    return RawCheckpoint(ckpt.path, passport.container, plan.tensors, metadata, passport.sidecars)


def _alone(ckpt: Checkpoint) -> Checkpoint:
    """Return a checkpoint without the prefix of a larger model or a training tool: no class loads it from a folder."""
    passport = ckpt.passport
    if any(passport.prefix in fmt.prefixes for fmt, _ in formats_named(passport.format)):
        return ckpt
    return dataclasses.replace(ckpt, passport=dataclasses.replace(passport, prefix="", names={}))


def _plan(ckpt: Checkpoint, to: str, *, container: str | None, lossy: bool) -> _Plan:
    """Plan to write a file in a container, or a folder of the format's customary files (``container=None``)."""
    named = formats_named(to)
    if not named:
        raise unknown_format(to)
    writable = [(fmt, dialects) for fmt, dialects in named if not fmt.returned_only or _own(ckpt, fmt, dialects, to)]
    possible = writable or named
    # What a format can have as it is beats what it can have with folds, which cost: most formats need no plan.
    plain = [
        (fmt, dialects) for fmt, dialects in possible if not fmt.obstacles(ckpt.config) or _own(ckpt, fmt, dialects, to)
    ]
    plans = [_plan_for(ckpt, fmt, dialects, to, container) for fmt, dialects in plain]
    if all(plan.problems or plan.folds for plan in plans):
        plans = [_plan_for(ckpt, fmt, dialects, to, container) for fmt, dialects in possible]
    best = min(plans, key=lambda plan: (len(plan.problems), plan.cost, not plan.native, plan.distance, plan.lost))
    native = next((plan for plan in plans if plan.native), best)
    if container is not None and best is not native and _plan(ckpt, to, container=None, lossy=True).native:
        # In a folder its config file tells what a file alone does not: other names are no remedy.
        best = native
    if best.problems and not lossy:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in best.problems)
        able = [name for name in _able(ckpt, container) if name != to]
        hint = f"formats that can: {', '.join(able)}; or write it nevertheless with lossy=True (--lossy)"
        if container is not None and not _plan(ckpt, to, container=None, lossy=True).problems:
            hint = f"a folder, with {to}'s config file, can: give a destination without a suffix; {hint}"
        raise UnsupportedByFormatError(f"{to} cannot express this model: {reasons}", hint=hint)
    return best


def _able(ckpt: Checkpoint, container: str | None) -> list[str]:
    """Return the formats that can express a model."""
    able = ["canonical"]
    for fmt in all_formats():
        if (
            fmt.name not in able
            and not fmt.returned_only
            and not _plan_for(ckpt, fmt, fmt.dialects, fmt.name, container).problems
        ):
            able.append(fmt.name)
    return able


def _plan_for(ckpt: Checkpoint, fmt: Format, dialects: Sequence[Dialect], label: str, container: str | None) -> _Plan:
    """Plan to write in one format, with the folds that it needs."""
    plan = _plain_plan(ckpt, fmt, dialects, label, container)
    for fold in FOLDS:
        wanted = plan.fields & {*fold.fields}
        folded = fold.apply(plan.ckpt.config, plan.ckpt.tensors) if wanted else None
        if folded is not None:
            changed = dataclasses.replace(plan.ckpt, config=folded[0], tensors=folded[1])
            candidate = _plain_plan(changed, fmt, dialects, label, container)
            if not wanted & candidate.fields:
                plan = dataclasses.replace(candidate, folds=(*plan.folds, fold))
    return plan


def _folded(plan: _Plan) -> list[str]:
    return [f"irreversible: {fold.text}" for fold in plan.folds if fold.exact]


def _own(ckpt: Checkpoint, fmt: Format, dialects: Sequence[Dialect], label: str) -> list[Dialect]:
    """Return the dialect in which a checkpoint was read, if it is among these."""
    read, variables = ckpt.passport.format, ckpt.passport.variables
    return [d for d in dialects if fmt.label(d) == read == label and dict(d.variables) == variables]


def _plain_plan(ckpt: Checkpoint, fmt: Format, dialects: Sequence[Dialect], label: str, container: str | None) -> _Plan:
    """Plan to write in one format without folds, with everything that it cannot express."""
    config, passport = ckpt.config, ckpt.passport
    own = _own(ckpt, fmt, dialects, label)
    native = bool(own)
    dialect = own[0] if native else fmt.dialect_for(config, dialects)
    # The original class could do what a source of its format held, but perhaps not at another size.
    problems = [need for need in fmt.obstacles(config) if not native or need[0] in passport.resized_from]
    sized = {name for name in ckpt.tensors if name.startswith(_SIZED)} if passport.resized_from else set[str]()
    absent = {name for name in passport.absent if native and not ckpt.tensors[name].read().any()}
    kept = {name: tensor for name, tensor in ckpt.tensors.items() if name not in sized | absent}
    foreign, left = fmt.table(dialect).write(fmt.restore(kept, config), axis_sizes(config))
    if not native or sized:
        dtype = next(iter(ckpt.tensors.values())).dtype
        filled = fmt.zeros(config, dialect).items()
        foreign |= {
            name: item if isinstance(item, LazyTensor) else zeros(dtype, item)
            for name, item in filled
            if name not in foreign
        }
    if native:
        # A classifier beside a model whose class has none.
        foreign |= {name: ckpt.tensors[name] for name in left if passport.prefix + name in passport.names}
        left = [name for name in left if name not in foreign]
    for name in left:
        if name not in passport.carried and field_of(name) not in {field for field, _ in problems}:
            problems.append((field_of(name), f"it has no place for {name}"))
    prefix = passport.prefix if native else fmt.prefixes[0]
    tensors = {prefix + name: tensor for name, tensor in foreign.items()}
    if native:
        tensors = {passport.names.get(name, name): tensor for name, tensor in tensors.items()}
        for name, shape in passport.shapes.items():
            # A kernel for images of other channels has another size.
            if name in tensors and math.prod(shape) == math.prod(tensors[name].shape):
                tensors[name] = tensors[name].reshape(shape)
        for name in tensors.keys() & set(passport.channels_last):
            tensors[name] = tensors[name].permute((0, *range(2, len(tensors[name].shape)), 1))
    sidecars = fmt.sidecars(config, passport) if container in (None, "torch") else {}
    if container == "torch":
        sidecars = {name: content for name, content in sidecars.items() if name in EMBEDDED}
    fixed = False
    if not problems:
        problems, fixed = _read_back(ckpt, fmt, dialect, tensors, sidecars, native)
    other = int(fmt.label(dialect) != passport.format)
    distance = (other, int(fixed), *_distance(fmt, config, passport, sidecars))
    return _Plan(ckpt, fmt, dialect, tensors, sidecars, tuple(left), tuple(problems), native, distance)


def _distance(fmt: Format, config: ViTConfig, passport: Passport, sidecars: Sidecars) -> tuple[int, int]:
    """Return how far a file would be from the source; it ranks formats of one name that can all express the model.

    The content of config files comes first, then the number of conventions that the model follows.
    """
    kept = sum(
        sidecars.get(name, {}).get(key) == value
        for name, content in passport.sidecars.items()
        for key, value in content.items()
    )
    return -kept, -sum(getattr(config, name) == value for name, value in fmt.conventions.items())


def _header(fmt: Format, passport: Passport, native: bool) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    return {**fmt.metadata, **({"format": "mlx"} if native and passport.channels_last else {})}


def _reread(
    ckpt: Checkpoint,
    fmt: Format,
    dialect: Dialect,
    tensors: Mapping[str, LazyTensor],
    sidecars: Sidecars,
    native: bool,
    left_out: Collection[str] = (),
) -> ViTConfig:
    """Return the config that a planned file would be read with, given what a loader may be, but for what is left out.

    Raises:
        VitHubError: it would be refused.
    """
    given = {**(ckpt.passport.overrides if native else {}), **_options(ckpt.config)}
    overrides = {name: value for name, value in given.items() if name not in left_out}
    metadata = _header(fmt, ckpt.passport, native)
    raw = RawCheckpoint(Path("planned"), fmt.container, dict(tensors), metadata, sidecars)
    return read_raw(raw, format=fmt.label(dialect), overrides=overrides).config


def _read_back(
    ckpt: Checkpoint, fmt: Format, dialect: Dialect, tensors: Mapping[str, LazyTensor], sidecars: Sidecars, native: bool
) -> tuple[list[tuple[str, str]], bool]:
    """Return the fields that a planned file would not give back, and how each would be read.

    And whether a model that takes images of any size would be one of a fixed size.
    """
    config = ckpt.config
    try:
        result = _reread(ckpt, fmt, dialect, tensors, sidecars, native)
    except VitHubError as error:
        return [("config", error.message)], False
    changed = [
        (item.name, f"{getattr(config, item.name)!r} would be read back as {getattr(result, item.name)!r}")
        for item in dataclasses.fields(ViTConfig)
        if item.name not in RESIZING and getattr(config, item.name) != getattr(result, item.name)
    ]
    return changed, config.resize_square != result.resize_square


def _options(config: ViTConfig) -> dict[str, Any]:
    """Return the options that a loader of the model's bare file is given."""
    return {name: getattr(config, name) for name in _OPTIONS}


def _unstated(plan: _Plan) -> list[str]:
    """Return a warning for each option that the written file does not state."""
    options = _options(plan.ckpt.config)
    if _stated(plan, options) == options:  # of most files one reading tells it
        return []
    return [
        f"the file does not state {name}={value}: give it when you load the file"
        for name, value in options.items()
        if _stated(plan, [name]).get(name) != value
    ]


def _stated(plan: _Plan, left_out: Collection[str]) -> dict[str, Any]:
    """Return the options as a loader finds them that is not given some; empty if it refuses the file."""
    try:
        planned = (plan.ckpt, plan.format, plan.dialect, plan.tensors, plan.sidecars, plan.native)
        return _options(_reread(*planned, left_out))
    except VitHubError:
        return {}


def _write(
    ckpt: Checkpoint,
    plan: _Plan,
    place: _Place,
    container: str | None,
    dtype: str | None,
    rest: Mapping[str, LazyTensor],
    progress: Callable[[int], None] | None,
) -> Report:
    fmt, passport, target, sidecars = plan.format, ckpt.passport, place.target, dict(plan.sidecars)
    embedded = {name: sidecars.pop(name) for name in EMBEDDED if name in sidecars}
    file, tensors = target, {**plan.tensors, **rest}
    if container is None:
        own = passport.container if plan.native and passport.container in fmt.others else fmt.container
        sharded = plan.native and bool(fmt.shard) and own == fmt.container and len(passport.source) > 1
        container, file = own, target / (fmt.shard if sharded else fmt.others.get(own, fmt.filename))
        if sharded:
            sidecars |= _index(file.name, tensors)
    if file.name != fmt.shard:
        tensors = {fmt.stored(name, container, plan.sidecars): tensor for name, tensor in tensors.items()}
    metadata = _header(fmt, passport, plan.native)
    parts = _files(file, tensors)
    files = [*parts, *(target / name for name in sidecars)]
    with place.writing(files) as within:
        for path, part in parts.items():
            cast = _cast_all(part, dtype)
            write_tensors(path, container, cast, metadata, embedded=embedded, progress=progress, within=within)
        for name, content in sidecars.items():
            with atomic_path(target / name, within) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    dropped = dict(ckpt.dropped)
    for name in plan.left_out:
        for source_name in ckpt.origin.get(name, (name,)):
            unused = "unused by the model, and " if name in ckpt.passport.carried else ""
            dropped[source_name] = f"{unused}{plan.format.name} has no place for it"
    notes = [*ckpt.warnings, *_folded(plan), *([] if plan.problems else _unstated(plan))]
    notes += [f"lossy: {name}: {reason}" for name, reason in plan.problems]
    label = plan.format.label(plan.dialect)
    origins, lossy = dict(ckpt.inferred), bool(plan.problems)
    return Report(target, label, plan.ckpt.config, dropped, origins, notes, lossy=lossy, files=files)


def _files(file: Path, tensors: Mapping[str, LazyTensor]) -> dict[Path, dict[str, LazyTensor]]:
    """Return the files to write: that one, or those that stand before the names of their tensors."""
    found: dict[Path, dict[str, LazyTensor]] = {}
    for full, tensor in tensors.items():
        named = PART.fullmatch(full)
        path, name = (file.with_name(named[1]), named[2]) if named else (file, full)
        found.setdefault(path, {})[name] = tensor
    return found


def _index(shard: str, tensors: Mapping[str, LazyTensor]) -> Sidecars:
    """Return the index of the only file of a sharded checkpoint."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    name = re.sub(r"-\d+-of-\d+", "", shard)
    return {f"{name}.index.json": {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(tensors, shard)}}


def _with_preprocessing(ckpt: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its preprocessing as a record, or that of its project if none is stated."""
    try:
        found, _, _ = settled(ckpt.passport, ckpt.config.image_size, ckpt.config.in_chans)
    except ConfigError:
        # No config file can describe images of other than one or three channels.
        return ckpt
    return dataclasses.replace(ckpt, passport=dataclasses.replace(ckpt.passport, preprocess=found.to_dict()))


def _losses(ckpt: Checkpoint, plan: _Plan, sidecars: Sidecars, *, complete: bool) -> tuple[list[str], list[str]]:
    """Return what of the metadata is lost by writing a plan, and remarks on it.

    Args:
        ckpt: the source.
        plan: the file to write.
        sidecars: its config files.
        complete: what a source of the same format had besides the image tower is written, too.
    """
    label = plan.format.label(plan.dialect)
    lost, remarks = preprocessing_losses(ckpt.passport, plan.ckpt.config, sidecars, label)
    lost = [*label_losses(ckpt.passport, plan.ckpt.config, sidecars, label), *lost]
    lost += [f"{label} loses {fold.text}" for fold in plan.folds if not fold.exact]
    return [*lost, *([plan.format.lacks] if plan.format.lacks and not complete else [])], remarks


def _loss(ckpt: Checkpoint, report: Report) -> str:
    """Return a warning of how much a lossy conversion changes the outputs."""
    from vit_hub.converters.compare import output_difference

    try:
        written = open_checkpoint(report.path, format=report.format, overrides=_options(ckpt.config))
        difference = output_difference(ckpt, written)
    except Exception as error:
        return f"lossy: the loss is unknown, because the result cannot be read back: {error}"
    if difference is None:
        return "lossy: the outputs have another shape than those of the source"
    return f"lossy: outputs on a random image differ from the source's by up to {difference:.2g}"


def write_canonical(
    file: Path,
    ckpt: Checkpoint,
    *,
    dtype: str | None = None,
    progress: Callable[[int], None] | None = None,
    within: Path | None = None,
) -> None:
    """Write the canonical file: tensors in canonical order, config and passport as metadata with sorted keys.

    Arguments as for :func:`vit_hub.converters.containers.write_tensors`.
    """
    tensors, paths, held = _cast_all(ckpt.tensors, dtype), ckpt.source.files, ckpt.source.held
    if all("sha256" in item for item in ckpt.passport.source):
        write_tensors(file, "safetensors", tensors, _metadata(ckpt), progress=progress, within=within)
        return

    def hashed(hashes: Sequence[str]) -> dict[str, str]:
        files = [
            {"file": path.name, "size": ckpt.source.size_of(path), "sha256": sha256}
            for path, sha256 in zip(paths, hashes, strict=True)
        ]
        return _metadata(dataclasses.replace(ckpt, passport=dataclasses.replace(ckpt.passport, source=files)))

    # Hashing the source takes as long as the rest: it runs meanwhile, and the hashes are filled in at the end.
    def hash_all(step: Callable[[int], None]) -> list[str]:
        return [held[path].sha256(step) if path in held else file_sha256(path, step) for path in paths]

    with meanwhile(hash_all) as hashes:
        blank = hashed(["0" * 64] * len(paths))
        options: dict[str, Any] = {"progress": progress, "within": within}
        write_tensors(file, "safetensors", tensors, blank, finish=lambda: hashed(hashes()), **options)


def _metadata(ckpt: Checkpoint) -> dict[str, str]:
    config = json.dumps(ckpt.config.to_dict(), sort_keys=True)
    return {
        "format": "pt",
        CONFIG_KEY: config,
        CONFIG_SHA256_KEY: hashlib.sha256(config.encode()).hexdigest(),
        PASSPORT_KEY: ckpt.passport.to_json(),
    }


def _cast_all(tensors: Mapping[str, LazyTensor], dtype: str | None) -> Mapping[str, LazyTensor]:
    if dtype is None:
        return tensors
    from vit_hub.converters.casting import cast

    return {name: cast(tensor, dtype) for name, tensor in tensors.items()}


def _rest_path(path: Path, is_folder: bool) -> Path:
    return path / _REST if is_folder else path.with_name(f"{path.name}.{_REST}")


def _left_out(ckpt: Checkpoint) -> dict[str, LazyTensor]:
    """Return the tensors that reading left out, also those of files that it did not open."""
    unopened = {name: file for name, file in ckpt.source.unopened.items() if name in ckpt.dropped}
    for file in set(unopened.values()):
        if not file.is_file():
            raise CheckpointError(
                f"{file}: missing, and the tensors to keep are in it",
                hint="fetch all files of the repository, or leave out keep_rest (--keep-rest)",
            )
    opened = {file: _admitted(file, ckpt).tensors for file in set(unopened.values())}
    found = {**ckpt.source.tensors, **{name: opened[file][name] for name, file in unopened.items()}}
    return {name: found[name] for name in ckpt.dropped if name in found}


def _read_rest(ckpt: Checkpoint) -> Mapping[str, LazyTensor]:
    beside = [_rest_path(ckpt.path, ckpt.path.is_dir())]
    if ckpt.path.name == "model.safetensors":  # the file of a folder
        beside.append(_rest_path(ckpt.path.parent, True))
    return next((_admitted(path, ckpt).tensors for path in beside if path.exists()), {})


def _admitted(file: Path, ckpt: Checkpoint) -> RawCheckpoint:
    """Open a file that belongs to a checkpoint."""
    raw = open_raw(file)
    ckpt.source.admit(raw)
    return raw
