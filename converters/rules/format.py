"""The definition of a checkpoint format: a table of rules, evidence to recognise it, config files and limits.

Each module in :mod:`vit_hub.converters.formats` holds one or more :class:`Format` objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.table import Drop, Reading, Rule, Table
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import Rope, ViTConfig

__all__ = [
    "ANY", "SQUARE_IMAGES", "SQUARE_PATCHES", "Dialect", "Format", "Requirement", "Sidecars", "Stated", "axis_sizes",
    "rotary",
]  # fmt: skip

Sidecars = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Dialect:
    """One spelling of the names of a format: the values of its ``${variables}``. The default one is unnamed."""

    name: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Requirement:
    """A condition of the original class over several config fields, or over a range of one.

    Attributes:
        field: the config field to name where it does not hold.
        holds: the condition.
        message: the condition in words.
    """

    field: str
    holds: Callable[[ViTConfig], bool]
    message: str


@dataclass(frozen=True)
class Stated:
    """Config fields that a checkpoint states, and where it states them.

    Attributes:
        fields: the fields.
        by: where they are stated.
        warnings: messages for the user.
        guesses: those about fields that are guesses, which are left out where the caller gives the field.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    warnings: tuple[str, ...] = ()
    guesses: Mapping[str, str] = field(default_factory=dict)


ANY: tuple[()] = ()
"""A limit that is none: the original class can have any value of the field."""
# Only shapes and missing tensors tell these apart, or nothing in a file does, so that no table refuses the others by
# its names.
DEFAULT_LIMITS: dict[str, object] = {
    "ffn": "mlp",
    "head_input": "pooled",
    "head_layers": 1,
    "norm": "layer",
    "parallel": "none",
    "branches": 1,
    "patch_padding": 0,
    "windows": None,
    "neck": None,
    "merger": None,
    "video": None,
    "qk_norm": (True, False),
    "layer_scale": (True, False),
    "proj_bias": True,
    "mlp_bias": True,
    "kv_heads": ((),),
    "pool_tokens": ((),),
}

SQUARE_IMAGES = Requirement("image_size", lambda c: c.image_size[0] == c.image_size[1], "its images are square")
SQUARE_PATCHES = Requirement("patch_size", lambda c: c.patch_size[0] == c.patch_size[1], "its patches are square")


def rotary(rope: Mapping[str, Any], message: str) -> Requirement:
    """Return the requirement of a rotary embedding, whatever the base of its frequencies."""
    return Requirement(
        "rope", lambda c: c.rope is not None and c.rope == Rope(**{**rope, "theta": c.rope.theta}), message
    )


def axis_sizes(config: ViTConfig) -> dict[str, int]:
    """Return the sizes of layout axes that shapes alone do not show, of a model that is written."""
    heads = {"h": config.num_heads, "m": config.pool_heads or config.num_heads}
    patch = {"p": config.patch_size[0], "q": config.patch_size[1], "c": config.patch_chans}
    return {**heads, **patch, "y": config.grid_size[0], "x": config.grid_size[1], "D": config.embed_dim}


@dataclass(frozen=True, kw_only=True)
class Format:
    """One checkpoint format.

    Attributes:
        name: for ``to=`` and ``format=``. Several formats may share a name (model types of one project); the first that
            can express a model writes it.
        project: the project whose conventions it follows, for messages.
        rules: the table, read in both directions.
        drops: tensors left out on purpose; patterns match names without the prefix.
        dialects: spellings; the first is written by default.
        prefixes: what stands before the names in the project's own files; the first is written. Any other prefix is
            read, too.
        conventions: config fields that files of the format never state.
        limits: config field -> the value, or a tuple of the values, that the original class can have, though the file
            could hold the tensors of others, or :data:`ANY`; fields it does not name have :data:`DEFAULT_LIMITS`.
        requires: conditions of the original class over several fields or ranges.
        axes: sizes of layout axes that shapes alone do not show, from ``(raw, tensors without prefix)``.
        evidence: for the format if several explain the names equally well, from ``(raw, prefix)``: wrapper, container,
            missing head, neighbouring files; negative is evidence against it.
        refuses: why the model that config files describe cannot be computed, whatever tensors there are, from ``raw``;
            empty if they describe none such.
        adjust: changes what the table read, ``(raw, reading)``, where values of tensors decide what others mean.
        restore: undoes ``adjust`` before the table writes, ``(tensors, config)``: the canonical tensors, carried ones
            included, as the table has them.
        state: reads config files and original shapes, ``(raw, tensors without prefix, dialect)``.
        zeros: names and shapes of tensors that the original class always has though no output depends on them, from
            ``(config, dialect)``; where the source has none they are written as zeros. A tensor in place of a shape is
            written as it is.
        sidecars: config files to write beside the weights.
        dialect_for: selects the dialect that fits a config.
        stored: the name in a file, from ``(name with prefix, container, sidecars)``, where files have more in their
            names than the table; a name that has it already stays. ``sidecars`` is empty for a file alone.
        returned_only: it is written only for models that were read in it.
        lacks: what the original project's own files have beside an image tower, and how to load one without: a warning
            wherever the format is written without it.
        container: the container that the original project uses.
        filename: customary name of the weight file in a folder.
        others: other containers of the project's own files -> customary name; a source in one is written back in it.
        shard: customary name of the only one of several files, whose names are not ``stored`` ones; a source in several
            files is written back in it, with an index. Empty if it is written as one file.
        metadata: safetensors metadata that the project's loaders expect.
    """

    name: str
    project: str
    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...] = ()
    dialects: tuple[Dialect, ...] = (Dialect(),)
    prefixes: tuple[str, ...] = ("",)
    conventions: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, object] = field(default_factory=dict)
    requires: tuple[Requirement, ...] = ()
    axes: Callable[[RawCheckpoint, Mapping[str, LazyTensor]], Mapping[str, int]] = lambda raw, tensors: {}
    evidence: Callable[[RawCheckpoint, str], int] = lambda raw, prefix: 0
    refuses: Callable[[RawCheckpoint], str] = lambda raw: ""
    adjust: Callable[[RawCheckpoint, Reading], None] = lambda raw, reading: None
    restore: Callable[[Mapping[str, LazyTensor], ViTConfig], Mapping[str, LazyTensor]] = lambda tensors, config: tensors
    state: Callable[[RawCheckpoint, Mapping[str, LazyTensor], Dialect], Stated] = lambda raw, tensors, dialect: Stated()
    zeros: Callable[[ViTConfig, Dialect], Mapping[str, tuple[int, ...] | LazyTensor]] = lambda config, dialect: {}
    sidecars: Callable[[ViTConfig, Passport | None], Sidecars] = lambda config, passport: {}
    dialect_for: Callable[[ViTConfig, Sequence[Dialect]], Dialect] = lambda config, dialects: dialects[0]
    stored: Callable[[str, str, Sidecars], str] = lambda name, container, sidecars: name
    returned_only: bool = False
    lacks: str = ""
    container: str = "safetensors"
    filename: str = "model.safetensors"
    others: Mapping[str, str] = field(default_factory=dict)
    shard: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    def possible_values(self) -> dict[str, tuple[object, ...]]:
        """Return the config fields that the original class limits, each with its possible values."""
        limits = {name: values for name, values in {**DEFAULT_LIMITS, **self.limits}.items() if values != ANY}
        return {name: values if isinstance(values, tuple) else (values,) for name, values in limits.items()}

    def obstacles(self, config: ViTConfig) -> list[tuple[str, str]]:
        """Return the fields of a config that the original class cannot have, and why."""
        found = []
        for name, values in self.possible_values().items():
            value = getattr(config, name)
            # By type, too: True equals 1.
            if not any(type(value) is type(item) and value == item for item in values):
                found.append((name, f"{value!r} is not supported, only {' or '.join(map(repr, values))}"))
        return found + [(need.field, need.message) for need in self.requires if not need.holds(config)]

    def label(self, dialect: Dialect) -> str:
        """Return the name with that of the dialect, if it has one."""
        return f"{self.name}-{dialect.name}" if dialect.name else self.name

    def table(self, dialect: Dialect) -> Table:
        """Return the table of one dialect."""
        return self._tables[self.dialects.index(dialect)]

    @cached_property
    def _tables(self) -> tuple[Table, ...]:
        return tuple(Table(self.rules, self.drops, dialect.variables) for dialect in self.dialects)
