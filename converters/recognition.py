"""Which format, dialect and prefix a source is in: decided by content, how many tensors each table explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vit_hub.converters.containers import Source
from vit_hub.converters.format import Dialect, Format, all_formats, format_names, formats_named
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import CheckpointError, UnknownFormatError

__all__ = ["Match", "recognise"]


@dataclass(frozen=True)
class Match:
    """How well one format, dialect and prefix explain a source.

    Attributes:
        tensors: the tensors under the prefix, without it.
        ruled: how many of them a rule explains.
        unknown: names under the prefix that neither a rule nor a drop explains.
    """

    form: Format
    dialect: Dialect
    prefix: str
    tensors: Mapping[str, LazyTensor]
    ruled: int
    unknown: tuple[str, ...]

    @property
    def label(self) -> str:
        """What ``to=`` would call it."""
        return self.form.label(self.dialect)


def _match(source: Source, form: Format, dialect: Dialect, prefix: str) -> Match:
    inside = {name[len(prefix) :]: tensor for name, tensor in source.tensors.items() if name.startswith(prefix)}
    table = form.table(dialect)
    verdicts = {name: table.explain(name) for name in inside}
    unknown = tuple(name for name, verdict in verdicts.items() if not verdict)
    return Match(form, dialect, prefix, inside, sum(verdict == "rule" for verdict in verdicts.values()), unknown)


def recognise(source: Source, label: str | None = None) -> Match:
    """The best match: most tensors explained by rules, then fewest unknown, then the order of the formats.

    Args:
        source: an opened file or folder.
        label: a format name that the caller insists on.

    Raises:
        UnknownFormatError: no table explains at least half of the tensors, or there is no such format.
    """
    candidates: Sequence[tuple[Format, Sequence[Dialect]]] = [(form, form.dialects) for form in all_formats()]
    if label is not None:
        candidates = _insisted(label)
    matches = [
        _match(source, form, dialect, prefix)
        for form, dialects in candidates
        for dialect in dialects
        for prefix in form.prefixes
        if any(name.startswith(prefix) for name in source.tensors)
    ]
    best = max(matches, key=lambda match: (match.ruled, -len(match.unknown)), default=None)
    if best is None or 2 * best.ruled < len(best.tensors) or not best.ruled:
        raise UnknownFormatError(
            f"{source.path}: not a Vision Transformer checkpoint of a known format; {_near_miss(source, best)}",
            hint=f"formats: {', '.join(format_names())}; name one with format=, on the command line --format",
        )
    return best


def _insisted(label: str) -> list[tuple[Format, Sequence[Dialect]]]:
    """The formats of a name; a bare format name leaves the dialect to the content."""
    named = formats_named(label)
    if not named:
        raise UnknownFormatError(f"there is no format {label!r}", hint=f"formats: {', '.join(format_names())}")
    if label in {form.name for form, _ in named}:
        return [(form, form.dialects) for form, _ in named]
    return [(form, dialects) for form, dialects in named]


def _near_miss(source: Source, best: Match | None) -> str:
    total = len(source.tensors)
    if best is None or not best.ruled:
        return f"none of its {total} tensors is known, the first is {next(iter(source.tensors), '(none)')!r}"
    return f"{best.label} matches best, with {best.ruled} of {total} tensors"


def unexplained(match: Match, source: Source, unknown: Sequence[str]) -> CheckpointError:
    """The error for tensors that the best table does not know, each with the nearest name it does know."""
    import difflib

    patterns = match.form.table(match.dialect).foreign_names()
    lines = []
    for name in unknown[:8]:
        near = difflib.get_close_matches(name, patterns, n=1, cutoff=0.4)
        lines.append(f"{match.prefix}{name}" + (f" (nearest: {near[0]})" if near else ""))
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    return CheckpointError(
        f"{source.path}: {match.ruled} of {len(source.tensors)} tensors are {match.label}'s, but not "
        f"{', '.join(lines)}{more}",
        hint="every tensor must be accounted for; is it another model, or a file with additions?",
    )
