"""Every checkpoint format, one module each; names that begin with ``_`` are what several of them share."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from vit_hub.converters.rules.format import Dialect, Format

__all__ = ["all_formats", "format_names", "formats_named"]


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format, in order of precedence where two explain a file equally well (alphabetical by module)."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    loaded = [importlib.import_module(f"{__name__}.{name}") for name in modules]
    return tuple(item for module in loaded for item in module.FORMATS)


def format_names() -> list[str]:
    """What ``to=`` and ``format=`` accept: every format and dialect, and ``canonical``."""
    labels = [label for fmt in all_formats() for label in (fmt.name, *map(fmt.label, fmt.dialects))]
    return ["canonical", *dict.fromkeys(labels)]


def formats_named(label: str) -> list[tuple[Format, tuple[Dialect, ...]]]:
    """The formats that a label means, each with the dialects it leaves open; empty if there is none.

    A format's own name leaves all its dialects open; ``hf-v5`` leaves those spelled so.
    """
    found = []
    for fmt in all_formats():
        named = tuple(dialect for dialect in fmt.dialects if fmt.label(dialect) == label)
        dialects = fmt.dialects if fmt.name == label else named
        if dialects:
            found.append((fmt, dialects))
    return found
