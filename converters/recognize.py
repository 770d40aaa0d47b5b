"""Recognition of format, dialect and prefix by content: how many tensors each table explains."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import all_formats, format_names, formats_named
from vit_hub.converters.rules.format import Dialect, Format
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import CheckpointError, UnknownFormatError

__all__ = ["Match", "recognize", "unexplained"]

Candidates = Sequence[tuple[Format, Sequence[Dialect]]]
# Separators of modules and of nested dicts in names.
_LEVEL = re.compile(r"[./]")


@dataclass(frozen=True)
class Match:
    """A format, dialect and prefix, and how well they explain a checkpoint.

    Attributes:
        tensors: the tensors under the prefix, without it.
        ruled: number of them that a rule explains.
        unknown: names under the prefix that neither a rule nor a drop explains.
        ambiguous: other formats, of other conventions, that explain the tensors just as well.
    """

    format: Format
    dialect: Dialect
    prefix: str
    tensors: Mapping[str, LazyTensor]
    ruled: int
    unknown: tuple[str, ...]
    ambiguous: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name that ``to=`` accepts."""
        return self.format.label(self.dialect)


def _match(raw: RawCheckpoint, fmt: Format, dialect: Dialect, prefix: str, complete: bool) -> Match | None:
    """Return the match; None if it is to be complete and a name is unknown."""
    inside = {name[len(prefix) :]: tensor for name, tensor in raw.tensors.items() if name.startswith(prefix)}
    table, ruled, unknown = fmt.table(dialect), 0, []
    for name in inside:
        verdict = table.explain(name)
        ruled += verdict == "rule"
        if not verdict:
            if complete:
                return None
            unknown.append(name)
    return Match(fmt, dialect, prefix, inside, ruled, tuple(unknown))


def _matches(raw: RawCheckpoint, candidates: Candidates, *, complete: bool = False) -> list[Match]:
    found = (
        _match(raw, fmt, dialect, prefix, complete)
        for fmt, dialects in candidates
        for dialect in dialects
        for prefix in fmt.prefixes
        if any(name.startswith(prefix) for name in raw.tensors)
    )
    return [match for match in found if match is not None]


def _best(raw: RawCheckpoint, matches: Sequence[Match]) -> Match | None:
    return max(
        matches,
        key=lambda match: (
            match.ruled > 0 and not match.unknown,
            match.ruled,
            -len(match.unknown),
            match.format.evidence(raw, match.prefix),
        ),
        default=None,
    )


def recognize(raw: RawCheckpoint, label: str | None = None) -> Match:
    """Return the best match.

    Criteria in order: no unknown names, most names explained by rules, fewest unknown, most evidence, first format.

    Args:
        raw: an opened file or folder.
        label: the format given by the caller.

    Raises:
        UnknownFormatError: no table explains half of the tensors, or there is no such format.
    """
    candidates: Candidates = [(fmt, fmt.dialects) for fmt in all_formats()]
    if label is not None:
        candidates = formats_named(label)
        if not candidates:
            raise UnknownFormatError(f"there is no format {label!r}", hint=f"formats: {', '.join(format_names())}")
    # Nearly every file has a complete match; counting the unknown names of all other tables takes much longer.
    matches = _matches(raw, candidates, complete=True)
    best = _best(raw, matches)
    if best is None or not best.ruled:
        matches = _matches(raw, candidates)
        best = _best(raw, matches)
    if best is None or not best.ruled or 2 * len(best.unknown) > len(best.tensors):
        known = f"formats: {', '.join(name for name in format_names() if '-' not in name)}"
        if label is None:
            wanted, hint = "a known format", f"{known}; name one with format=, on the command line --format"
        else:
            wanted, hint = f"the format {label}", f"without format= (--format) its content decides; {known}"
        raise UnknownFormatError(
            f"{raw.path}: not a Vision Transformer checkpoint of {wanted}; {_near_miss(raw, best)}", hint=hint
        )
    equal = [match for match in matches if (match.ruled, match.unknown) == (best.ruled, best.unknown)]
    possible = [match for match in equal if match.format.evidence(raw, match.prefix) >= 0]
    conventions = best.format.conventions
    others = (m.label for m in possible if m.format.conventions != conventions and m.label != best.label)
    return dataclasses.replace(best, ambiguous=tuple(dict.fromkeys(others)))


def _near_miss(raw: RawCheckpoint, best: Match | None) -> str:
    """Describe the best match, without an unknown prefix if that explains more."""
    total = len(raw.tensors)
    if best is not None and not best.ruled and not best.unknown and best.tensors:
        reasons = best.format.table(best.dialect).read(best.tensors, {}).dropped.values()
        return f"as {best.label} it holds only: {', '.join(dict.fromkeys(reasons))}"
    for prefix, count in _common_prefixes(raw):
        inside = {name[len(prefix) :]: item for name, item in raw.tensors.items() if name.startswith(prefix)}
        shorter = dataclasses.replace(raw, tensors=inside)
        found = _best(shorter, _matches(shorter, [(fmt, fmt.dialects) for fmt in all_formats()]))
        if found is not None and found.ruled > max(count // 2, best.ruled if best else 0):
            return (
                f"{found.ruled} of its {total} tensors would be {found.label}'s without the prefix {prefix!r}: "
                f"save them without it"
            )
    if best is None or not best.ruled:
        return f"none of its {total} tensors is known, the first is {next(iter(raw.tensors), '(none)')!r}"
    shown = ", ".join(best.unknown[:3]) + (", ..." if len(best.unknown) > 3 else "")
    return f"{best.label} matches best, with {best.ruled} of {total} tensors, but not {shown}"


def _common_prefixes(raw: RawCheckpoint) -> list[tuple[str, int]]:
    """Return the prefixes of at least a third of the names, up to three levels, with counts; the longest first."""
    counts = Counter(name[: level.end()] for name in raw.tensors for level in list(_LEVEL.finditer(name))[:3])
    common = [item for item in counts.items() if 3 * item[1] >= len(raw.tensors)]
    return sorted(common, key=lambda item: (-len(item[0]), item[0]))


def unexplained(match: Match, raw: RawCheckpoint, unknown: Sequence[str]) -> CheckpointError:
    """Return the error for unknown tensors, each with the nearest name that the table knows."""
    import difflib

    patterns = match.format.table(match.dialect).foreign_names()
    lines = []
    for name in unknown[:8]:
        near = difflib.get_close_matches(name.removeprefix(match.prefix), patterns, n=1, cutoff=0.4)
        lines.append(name + (f" (nearest: {near[0]})" if near else ""))
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    return CheckpointError(
        f"{raw.path}: {match.ruled} of {len(raw.tensors)} tensors are {match.label}'s, but not "
        f"{', '.join(lines)}{more}",
        hint="every tensor must be accounted for: the file is of another model, or holds additional tensors",
    )
