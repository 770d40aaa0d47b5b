"""The checkpoint formats, a module each; modules whose name begins with ``_`` hold what several share."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from vit_hub.converters.rules.format import Dialect, Format

__all__ = ["all_formats", "format_names", "formats_named"]


@cache
def all_formats() -> tuple[Format, ...]:
    """Return every format, in the order that decides where two explain a file equally well: by name of the module."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    loaded = [importlib.import_module(f"{__name__}.{name}") for name in modules]
    return tuple(item for module in loaded for item in module.FORMATS)


def format_names() -> list[str]:
    """Return the names that ``to=`` and ``format=`` accept: ``canonical``, every format, every dialect."""
    labels = [label for fmt in all_formats() for label in (fmt.name, *map(fmt.label, fmt.dialects))]
    return ["canonical", *dict.fromkeys(labels)]


def formats_named(label: str) -> list[tuple[Format, tuple[Dialect, ...]]]:
    """Return the formats that a label means, each with its possible dialects; empty if there is none.

    The name of a format allows all of its dialects, ``hf-v5`` those of this name.
    """
    found = []
    for fmt in all_formats():
        named = tuple(dialect for dialect in fmt.dialects if fmt.label(dialect) == label)
        dialects = fmt.dialects if fmt.name == label else named
        if dialects:
            found.append((fmt, dialects))
    return found
