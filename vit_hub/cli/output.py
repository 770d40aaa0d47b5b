"""Output of the command: results on stdout, as text or as one JSON document; everything else on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from vit_hub.shown import visible

__all__ = ["Output", "amount", "count_of", "plain", "score_lines"]

_GAP = "  "
_ELLIPSIS = "..."
_NARROWEST = 8
_NARROWEST_TEXT = 20
_PREFIXES = ("", "k", "M", "G", "T")


@dataclass
class Output:
    """Writer of the results, notes, warnings and errors of one run.

    Attributes:
        json: results and errors are JSON documents.
        quiet: only results and errors.
        debug: errors come with their traceback.
    """

    json: bool = False
    quiet: bool = False
    debug: bool = False

    def document(self, data: Any) -> None:
        """Write the one JSON document of a run to stdout."""
        self._echo(json.dumps(plain(data), indent=2, allow_nan=False))

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines of text to stdout; line breaks within one are shown as what they are."""
        text = "\n".join(line if isinstance(line, _Styled) else visible(line) for line in lines)
        if text:
            self._echo(text)

    def note(self, text: str) -> None:
        """Write a remark to stderr, for users who read the result on a terminal."""
        if self.width is not None and not (self.quiet or self.json):
            self._echo(click.style(visible(text), dim=True), err=True)

    def announce(self, text: str) -> None:
        """Write what is about to happen to stderr."""
        if not (self.quiet or self.json):
            self._echo(click.style(_one_line(text), dim=True), err=True)

    def warning(self, text: str) -> None:
        """Write a warning to stderr."""
        if not self.quiet:
            self._echo(click.style("warning: ", fg="yellow") + _one_line(text), err=True)

    def error(self, error: Mapping[str, str]) -> None:
        """Write an error (``type``, ``message``, ``hint``): lines on stderr, or a JSON document on stdout."""
        if self.json:
            self.document({"error": error})
            return
        self._echo(click.style("vit-hub: error: ", fg="red", bold=True) + _one_line(error["message"]), err=True)
        if error["hint"]:
            self._echo(click.style("hint: ", fg="cyan") + _one_line(error["hint"]), err=True)

    def traceback(self, error: BaseException) -> None:
        """Write the traceback of an error to stderr."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self._echo(visible(line), err=True)

    def heading(self, text: str) -> str:
        """Style a title above lines."""
        return _Styled(click.style(visible(text), bold=True))

    def fields(self, pairs: Iterable[tuple[str, object]], *, indent: str = _GAP) -> list[str]:
        """Align ``name  value`` lines of the names that have a value; long ones continue below it on a terminal."""
        rows = [(name, str(value)) for name, value in pairs if value]
        label = max((len(name) for name, _ in rows), default=0)
        start = " " * (len(indent) + label + len(_GAP))
        return [line for name, text in rows for line in self._wrapped(text, f"{indent}{name:<{label}}{_GAP}", start)]

    def paragraphs(self, texts: Iterable[str]) -> list[str]:
        """Indent lines; long ones continue further in on a terminal."""
        return [line for text in texts for line in self._wrapped(text, _GAP, 2 * _GAP)]

    def _wrapped(self, text: str, first: str, rest: str) -> list[str]:
        """Break a text into lines that begin with ``first`` and then ``rest``, on a terminal only."""
        if self.width is None:
            return [first + text]
        width = max(self.width, len(rest) + _NARROWEST_TEXT)
        return textwrap.wrap(
            text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        )

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = (), indent: str = ""
    ) -> list[str]:
        """Align columns under a header. On a narrow terminal the last ones are cut or left out, elsewhere never.

        Args:
            header: titles of the columns.
            rows: one text per column.
            right: titles of the columns that are aligned to the right.
            indent: stands before every line.
        """
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        if self.width is not None:
            widths = _narrowed(widths, self.width - len(indent))

        def line(cells: Sequence[str]) -> str:
            fitted = [
                f"{_cut(cell, width):>{width}}" if title in right else f"{_cut(cell, width):<{width}}"
                for title, cell, width in zip(header, cells, widths, strict=False)
            ]
            return (indent + _GAP.join(fitted)).rstrip()

        return [self.heading(line(header)), *map(line, rows)]

    @property
    def width(self) -> int | None:
        """Columns of the terminal that stdout is; None if it is not a terminal."""
        # There is no stdout at all if it was closed.
        return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None

    def _echo(self, text: str, err: bool = False) -> None:
        # https://no-color.org: any value but the empty one. Else click decides by what the stream is.
        click.echo(text, err=err, color=False if os.environ.get("NO_COLOR") else None)


def plain(value: Any) -> Any:
    """Return JSON-ready data: dataclasses as objects, tuples as lists, paths as text, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


def amount(number: int, unit: str = "") -> str:
    """Write a count in three digits: ``86.6M``, ``35.1 G`` + unit with one."""
    value, power = float(number), 0
    while value >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    prefix = _PREFIXES[power]
    digits = f"{value:.0f}" if not prefix or value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return f"{digits} {prefix}{unit}" if unit else digits + prefix


def count_of(number: int, noun: str) -> str:
    """Write ``1 tensor``, ``2,000 tensors``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def score_lines(output: Output, found: Any) -> list[str]:
    """Describe the accuracy of a classifier on embeddings, a ``Score``."""
    if output.quiet:
        return [f"{found.top1:.4f}"]
    low, high = found.interval
    rows = [
        ("images", f"{found.images:,}, by {found.reference:,} others of {found.classes:,} labels"),
        ("top-1", f"{found.top1:.2%} (95 % interval {low:.2%} to {high:.2%})"),
        ("top-5", f"{found.top5:.2%}"),
    ]
    return output.fields(rows, indent="")


class _Styled(str):
    """A line whose escape sequences are ours."""

    __slots__ = ()


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - len(_ELLIPSIS)] + _ELLIPSIS


def _narrowed(widths: list[int], room: int) -> list[int]:
    """Fit column widths: from the right, columns are cut, then left out; the first, which names the row, stays."""
    found = list(widths)
    while len(found) > 1:
        excess = sum(found) + len(_GAP) * (len(found) - 1) - room
        if excess <= 0:
            return found
        if found[-1] - excess >= _NARROWEST:
            return [*found[:-1], found[-1] - excess]
        found.pop()
    return [min(found[0], max(room, _NARROWEST))]
