"""Short texts of large objects, and tables of them in notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["Shown", "table_of"]


class Shown:
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
