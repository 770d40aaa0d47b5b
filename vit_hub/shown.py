"""Text for people: untrusted text made visible, short texts of large objects, and tables of them in notebooks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

__all__ = ["ShortRepr", "size_text", "table_of", "visible"]

# Control characters but tabs, the second set of them (C1), separators of lines, marks that turn the direction of text.
_INVISIBLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """Return a text of one line in which nothing moves the cursor, restyles a terminal or reorders other text."""
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def size_text(size: tuple[int, int]) -> str:
    """Write ``224x224``: height, then width."""
    return f"{size[0]}x{size[1]}"


class ShortRepr:
    """Mixin for dataclasses (with ``repr=False``): a ``repr`` of one line, and a table in notebooks."""

    def _facts(self) -> Mapping[str, object]:
        """Return what the object is, as ``repr`` shows it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        return table_of(type(self).__name__, self._facts())


def table_of(title: str, facts: Mapping[str, object]) -> str:
    """Return facts as a table in HTML, with everything that comes from files escaped."""
    left = 'style="text-align: left"'
    rows = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"
