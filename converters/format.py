"""What a checkpoint format is: a table of rules, how to recognise it, and what its config files say.

Each module in :mod:`vit_hub.converters.formats` holds one or more :class:`Format` objects; nothing else in the
library knows any format by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from vit_hub.config import ViTConfig
from vit_hub.converters.containers import Source
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules import Drop, Rule, Table
from vit_hub.converters.tensors import LazyTensor

__all__ = ["Dialect", "Format", "Requirement", "Stated", "all_formats", "format_names", "formats_named"]

Sidecars = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Dialect:
    """One spelling of a format's names: the values of its ``$variables``."""

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


def _states_nothing(source: Source, tensors: Mapping[str, LazyTensor], table: Dialect) -> Stated:
    return Stated()


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
        prefixes: what may stand before every name, in order of precedence.
        conventions: config fields that files of the format never say.
        requires: what the original class cannot do.
        state: reads config files and original shapes, ``(source, tensors without prefix, dialect)``.
        sidecars: config files to write beside the weights.
        dialect_for: which of the dialects of one name fits a config.
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
    state: Callable[[Source, Mapping[str, LazyTensor], Dialect], Stated] = _states_nothing
    sidecars: Callable[[ViTConfig, Passport | None], Sidecars] = _no_sidecars
    dialect_for: Callable[[ViTConfig, Sequence[Dialect]], Dialect] = _first_dialect
    container: str = "safetensors"
    filename: str = "model.safetensors"
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    def label(self, dialect: Dialect) -> str:
        """The name with the dialect, where it is not the default one."""
        return self.name if dialect.name == self.dialects[0].name else f"{self.name}-{dialect.name}"

    def table(self, dialect: Dialect) -> Table:
        """The rules under one dialect."""
        return Table(self.rules, self.drops, dialect.variables)


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format, in order of precedence where two explain a file equally well (alphabetical by module)."""
    from vit_hub.converters import formats

    modules = sorted(info.name for info in pkgutil.iter_modules(formats.__path__))
    loaded = [importlib.import_module(f"{formats.__name__}.{name}") for name in modules]
    return tuple(item for module in loaded for item in module.FORMATS)


def format_names() -> list[str]:
    """What ``to=`` and ``format=`` accept: every format and dialect, and ``canonical``."""
    labels = [form.label(dialect) for form in all_formats() for dialect in form.dialects]
    return ["canonical", *dict.fromkeys(labels)]


def formats_named(label: str) -> list[tuple[Format, list[Dialect]]]:
    """The formats of a name, each with its dialects of that name (``hf`` or ``hf-v5``); empty if there is none."""
    found = []
    for form in all_formats():
        dialects = [dialect for dialect in form.dialects if form.label(dialect) == label]
        if dialects:
            found.append((form, dialects))
    return found
