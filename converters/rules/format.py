"""What a checkpoint format is: a table of rules, how to recognise it, and what its config files say.

Each module in :mod:`vit_hub.converters.formats` holds one or more :class:`Format` objects; nothing else in the
library knows any format by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vit_hub.converters.containers import Source
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.table import Drop, Rule, Table
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

__all__ = ["Dialect", "Format", "Requirement", "Sidecars", "Stated"]

Sidecars = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Dialect:
    """One spelling of a format's names: the values of its ``${variables}``; the default one has no name."""

    name: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Requirement:
    """What the original class of a format cannot do, though its file could hold the tensors."""

    field: str
    holds: Callable[[ViTConfig], bool]
    message: str


@dataclass(frozen=True)
class Stated:
    """Config fields that a source states itself, and where it states them."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    warnings: tuple[str, ...] = ()


# What tensors show by their shapes only, so that tables cannot refuse it.
_USUAL = (
    Requirement("ffn", lambda c: c.ffn == "mlp", "it has a plain MLP"),
    Requirement("head_input", lambda c: c.head_input == "pooled", "its head reads the pooled embedding"),
)


def _states_nothing(source: Source, tensors: Mapping[str, LazyTensor], table: Dialect) -> Stated:
    return Stated()


def _no_axes(source: Source, tensors: Mapping[str, LazyTensor]) -> Mapping[str, int]:
    return {}


def _no_zeros(config: ViTConfig, dialect: Dialect) -> Mapping[str, tuple[int, ...]]:
    return {}


def _no_evidence(source: Source, prefix: str) -> int:
    return 0


def _no_sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    return {}


def _first_dialect(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    return dialects[0]


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
        requires: what the original class cannot do; of ``ffn`` and ``head_input`` it has the usual ones unless one of
            these is about them.
        axes: sizes of layout axes that a shape alone does not tell, ``(source, tensors without prefix)``.
        evidence: how much else speaks for the format, ``(source, prefix)``, where several explain the names equally
            well: wrapper, container, missing head, neighbouring files; below zero where that speaks against it.
        state: reads config files and original shapes, ``(source, tensors without prefix, dialect)``.
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
    requires: tuple[Requirement, ...] = ()
    axes: Callable[[Source, Mapping[str, LazyTensor]], Mapping[str, int]] = _no_axes
    evidence: Callable[[Source, str], int] = _no_evidence
    state: Callable[[Source, Mapping[str, LazyTensor], Dialect], Stated] = _states_nothing
    zeros: Callable[[ViTConfig, Dialect], Mapping[str, tuple[int, ...]]] = _no_zeros
    sidecars: Callable[[ViTConfig, Passport | None], Sidecars] = _no_sidecars
    dialect_for: Callable[[ViTConfig, Sequence[Dialect]], Dialect] = _first_dialect
    returned_only: bool = False
    container: str = "safetensors"
    filename: str = "model.safetensors"
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    def obstacles(self, config: ViTConfig) -> list[tuple[str, str]]:
        """Fields of a config that the original class cannot do, and why."""
        spoken_of = {need.field for need in self.requires}
        needs = (*self.requires, *(need for need in _USUAL if need.field not in spoken_of))
        return [(need.field, need.message) for need in needs if not need.holds(config)]

    def label(self, dialect: Dialect) -> str:
        """The name with the dialect, where that has one."""
        return f"{self.name}-{dialect.name}" if dialect.name else self.name

    def table(self, dialect: Dialect) -> Table:
        """The rules under one dialect."""
        return self._tables[self.dialects.index(dialect)]

    @cached_property
    def _tables(self) -> tuple[Table, ...]:
        return tuple(Table(self.rules, self.drops, dialect.variables) for dialect in self.dialects)
