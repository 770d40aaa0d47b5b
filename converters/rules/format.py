"""What a checkpoint format is: a table of rules, how to recognise it, and what its config files say.

Each module in :mod:`vit_hub.converters.formats` holds one or more :class:`Format` objects; nothing else in the
library knows any format by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.table import Drop, Rule, Table
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

__all__ = ["SQUARE_IMAGES", "SQUARE_PATCHES", "Dialect", "Format", "Requirement", "Sidecars", "Stated"]

Sidecars = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Dialect:
    """One spelling of a format's names: the values of its ``${variables}``; the default one has no name."""

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
    """Config fields that a source states itself, and where it states them."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    warnings: tuple[str, ...] = ()


# Only shapes tell these apart, so that no table refuses the others by its names.
DEFAULT_LIMITS = {"ffn": "mlp", "head_input": "pooled"}

SQUARE_IMAGES = Requirement("image_size", lambda c: c.image_size[0] == c.image_size[1], "its images are square")
SQUARE_PATCHES = Requirement("patch_size", lambda c: c.patch_size[0] == c.patch_size[1], "its patches are square")


@dataclass(frozen=True, kw_only=True)
class Format:
    """One checkpoint format.

    Attributes:
        name: what ``to=`` and ``format=`` call it; several formats may share a name (model types of one project), then
            the first that can express a model writes it.
        project: whose conventions it follows, for messages.
        rules: the table, read both ways.
        drops: tensors left out on purpose; patterns match names without the prefix.
        outside: what may stand beside the prefix and is left out; patterns match the whole name.
        dialects: spellings, the one written by default first.
        prefixes: what may stand before every name, in order of precedence; the first is written.
        conventions: config fields that files of the format never say.
        limits: config field -> the value, or a tuple of the values, that the original class can have, though the file
            could hold the tensors of others; fields it does not name have :data:`DEFAULT_LIMITS`.
        requires: conditions of the original class that no single field tells.
        axes: sizes of layout axes that a shape alone does not tell, ``(raw, tensors without prefix)``.
        evidence: how much else speaks for the format, ``(raw, prefix)``, where several explain the names equally
            well: wrapper, container, missing head, neighbouring files; below zero where that speaks against it.
        state: reads config files and original shapes, ``(raw, tensors without prefix, dialect)``.
        zeros: names and shapes of tensors that the original class always has though nothing depends on them; where the
            source had none they are written as zeros, ``(config, dialect)``.
        sidecars: config files to write beside the weights.
        dialect_for: which of the dialects left open fits a config.
        returned_only: written only to give back what was read in it.
        container: what the format's own project stores tensors in.
        filename: customary name of the weight file in a folder.
        metadata: safetensors metadata that the project's loaders expect.
    """

    name: str
    project: str
    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...] = ()
    outside: tuple[Drop, ...] = ()
    dialects: tuple[Dialect, ...] = (Dialect(),)
    prefixes: tuple[str, ...] = ("",)
    conventions: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, object] = field(default_factory=dict)
    requires: tuple[Requirement, ...] = ()
    axes: Callable[[RawCheckpoint, Mapping[str, LazyTensor]], Mapping[str, int]] = lambda raw, tensors: {}
    evidence: Callable[[RawCheckpoint, str], int] = lambda raw, prefix: 0
    state: Callable[[RawCheckpoint, Mapping[str, LazyTensor], Dialect], Stated] = lambda raw, tensors, dialect: Stated()
    zeros: Callable[[ViTConfig, Dialect], Mapping[str, tuple[int, ...]]] = lambda config, dialect: {}
    sidecars: Callable[[ViTConfig, Passport | None], Sidecars] = lambda config, passport: {}
    dialect_for: Callable[[ViTConfig, Sequence[Dialect]], Dialect] = lambda config, dialects: dialects[0]
    returned_only: bool = False
    container: str = "safetensors"
    filename: str = "model.safetensors"
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    def possible_values(self) -> dict[str, tuple[object, ...]]:
        """The config fields that the original class limits, each with its possible values."""
        limits = {**DEFAULT_LIMITS, **self.limits}
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
        """The name with the dialect, where that has one."""
        return f"{self.name}-{dialect.name}" if dialect.name else self.name

    def table(self, dialect: Dialect) -> Table:
        """The rules under one dialect."""
        return self._tables[self.dialects.index(dialect)]

    @cached_property
    def _tables(self) -> tuple[Table, ...]:
        return tuple(Table(self.rules, self.drops, dialect.variables) for dialect in self.dialects)
