"""Recognition of format, dialect and prefix by content: how many tensors each table explains under which prefix.

Every encoder has a patch embedding. Where a table's name of it ends the name of a tensor, what stands before is a
possible prefix, so that wrappers, attributes of a larger model and nested dicts need no list.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import all_formats, format_names, formats_named, unknown_format
from vit_hub.converters.formats._transformers import model_types
from vit_hub.converters.rules.extras import CLASSIFIER, PREFERENCES, beside_reason, no_weight, other_module, remedy
from vit_hub.converters.rules.format import Dialect, Format
from vit_hub.converters.rules.table import Names, Table
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import CheckpointError, UnknownFormatError
from vit_hub.untrusted import COMPARISONS, SUGGESTIONS, quoted

__all__ = ["Match", "beyond", "encoder_names", "recognize", "unexplained"]

# Separators of modules and of nested dicts in names.
_LEVEL = re.compile(r"[./]")
# A copy with this share of the other's tensors is another model, not a part of it; so is a smaller one that is whole,
# with a patch embedding and a block at least.
_COPY = 0.5
_FEWEST = 10
_SHOWN = 8
_CHOOSE = (
    "name the format and the beginning of the names with format= and prefix=, on the command line --format and --prefix"
)


@dataclass(frozen=True)
class Match:
    """A format, dialect and prefix, and how well they explain a checkpoint.

    Attributes:
        kernel: full name of the patch embedding.
        tensors: the tensors that rules and drops of the table explain, without the prefix.
        ruled: number of them that a rule explains.
        unknown: full names inside of the encoder that nothing explains.
        dropped: full name -> reason for leaving it out.
        classifier: full name of a tensor that may be a classifier in another place than the table's -> the layer, and
            the part of it.
        warnings: messages for the user.
        ambiguous: other formats, of other conventions, that explain the tensors just as well.
    """

    format: Format
    dialect: Dialect
    prefix: str
    kernel: str
    tensors: Mapping[str, LazyTensor]
    ruled: int
    unknown: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    classifier: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The table of the dialect."""
        return self.format.table(self.dialect)

    @property
    def label(self) -> str:
        """The name that ``to=`` accepts."""
        return self.format.label(self.dialect)


def recognize(raw: RawCheckpoint, label: str | None = None, prefix: str | None = None) -> Match:
    """Return the best match.

    Criteria in order: no unknown names, most names explained, most of them by rules, fewest unknown, most evidence,
    first format.

    Args:
        raw: an opened file or folder.
        label: the format given by the caller.
        prefix: the beginning of the names of the model to read, given by the caller.

    Raises:
        UnknownFormatError: no table explains half of the tensors, or there is no such format.
        CheckpointError: there are several models, of which none is the one that its project reads.
    """
    candidates: Sequence[tuple[Format, Sequence[Dialect]]] = [(fmt, fmt.dialects) for fmt in all_formats()]
    if label is not None:
        candidates = formats_named(label)
        if not candidates:
            raise unknown_format(label)
    extras = {name: reason for name, tensor in raw.tensors.items() if (reason := no_weight(name, tensor))}
    names = [name for name in raw.tensors if name not in extras]
    tables = [(fmt, dialect, fmt.table(dialect).patch_kernel) for fmt, dialects in candidates for dialect in dialects]
    # Many tables share the name of the patch embedding, and so the names as they are seen from what stands before it.
    starts = {kernel: _starts(names, kernel, prefix) for kernel in {kernel for _, _, kernel in tables}}
    compared = len(names) * sum(len(starts[kernel]) for _, _, kernel in tables)
    if said := COMPARISONS.exceeded(compared):
        raise CheckpointError(
            f"{raw.path}: its {len(names):,} tensors may be of many models: recognition {said}",
            hint=_CHOOSE,
        )
    views = {start: _View(names, start) for found in starts.values() for start, _ in found}
    seen = [
        (fmt, dialect, start, name, fmt.table(dialect).explain(views[start].inside))
        for fmt, dialect, kernel in tables
        for start, name in starts[kernel]
    ]
    found: list[Match] = []
    whole: dict[tuple[str, str], int] = {}  # the tensors that a match without unknown names explains
    for fmt, dialect, start, name, explained in sorted(seen, key=lambda item: -len(item[-1])):
        if len(explained) < whole.get((start, name), 0):
            continue  # whatever else it leaves out, it is not the best
        match = _match(raw, views[start], extras, fmt, dialect, start, name, explained)
        found.append(match)
        if match.ruled and not match.unknown:
            whole[start, name] = len(explained)
    models = _models(raw, found)
    if not models or len(models[0].unknown) > models[0].ruled or not models[0].ruled:
        raise _unknown(raw, label, prefix, models[0] if models else None)
    best = _choose(raw, models, prefix)
    equal = [match for match in found if match.kernel == best.kernel and _explained(match) == _explained(best)]
    possible = [match for match in equal if match.format.evidence(raw, match.prefix) >= 0]
    conventions = best.format.conventions
    others = (m.label for m in possible if m.format.conventions != conventions and m.label != best.label)
    unopened = {name: beside_reason(beyond(best.prefix, name)) for name in raw.unopened}
    return dataclasses.replace(best, ambiguous=tuple(dict.fromkeys(others)), dropped={**best.dropped, **unopened})


def encoder_names(names: Collection[str]) -> Collection[str]:
    """Return the names that may be of an image encoder or of its classifier, by any table; all if none shows one.

    Raises:
        CheckpointError: they may be of too many models.
    """
    tables = {id(table): table for fmt in all_formats() for dialect in fmt.dialects if (table := fmt.table(dialect))}
    known: dict[str, list[Table]] = {}  # what may stand before the names of tables, with these
    for kernel in {table.patch_kernel for table in tables.values()}:
        for start in {start for start, _ in _starts(names, kernel, None)}:
            known.setdefault(start, []).extend(table for table in tables.values() if table.patch_kernel == kernel)
    if not known:
        return names
    compared = len(names) * len(known)
    if compared <= COMPARISONS.most:
        compared += sum(len(found) * sum(name.startswith(start) for name in names) for start, found in known.items())
    if said := COMPARISONS.exceeded(compared):
        raise CheckpointError(f"its {len(names):,} tensors may be of many models: recognition {said}")
    roots = tuple({start + root for start, found in known.items() for table in found for root in table.roots})
    others = [name for name in names if not name.startswith(roots)]
    explained: set[str] = set()
    for start, found in known.items():
        inside = Names(name[len(start) :] for name in others if name.startswith(start))
        ruled = {name for table in found for name in table.ruled(inside)}
        explained |= {start + name for name in inside if name in ruled or any(t.drop_reason(name) for t in found)}
    return [
        name
        for name in names
        if name.startswith(roots)
        or name in explained
        or any(CLASSIFIER.fullmatch(beyond(start, name)) for start in known)
    ]


def _starts(names: Iterable[str], kernel: str, prefix: str | None) -> list[tuple[str, str]]:
    """Return what may stand before the names of a table, with the patch embedding that shows it."""
    return [
        (name.removesuffix(kernel), name)
        for name in names
        if name.endswith(kernel) and name[: -len(kernel)][-1:] in ("", ".", "/") and _begins(name, prefix or "")
    ]


def _begins(name: str, prefix: str) -> bool:
    """Return whether a name begins with a prefix, whose last separator may be left out."""
    return name.startswith(prefix) and (prefix[-1:] in ("", ".", "/") or name[len(prefix) :][:1] in (".", "/"))


@dataclass(frozen=True)
class _Seen:
    """A name as it is seen from a prefix.

    Attributes:
        full: as stored.
        inside: what follows the prefix; None if it does not begin with it.
        level: without the levels that it shares with the prefix.
    """

    full: str
    inside: str | None
    level: str

    @cached_property
    def classifier(self) -> tuple[str, str] | None:
        """The layer and the part of it, if this may be a classifier in another place than a table's."""
        found = CLASSIFIER.fullmatch(self.level)
        return (found["layer"], found["part"]) if found else None

    @cached_property
    def other(self) -> str:
        """The reason why this is another module at the level of the encoder; empty if it may be none."""
        return other_module(self.level)


class _View:
    """The names of a file as they are seen from a prefix."""

    def __init__(self, names: Iterable[str], prefix: str) -> None:
        self.names = [
            _Seen(name, name[len(prefix) :] if name.startswith(prefix) else None, beyond(prefix, name))
            for name in names
        ]
        self.inside = Names(seen.inside for seen in self.names if seen.inside is not None)


def _match(
    raw: RawCheckpoint,
    view: _View,
    extras: Mapping[str, str],
    fmt: Format,
    dialect: Dialect,
    prefix: str,
    kernel: str,
    explained: Mapping[str, str],
) -> Match:
    table = fmt.table(dialect)
    roots = tuple(prefix + root for root in table.roots)
    inside: dict[str, LazyTensor] = {}
    unknown, classifier, dropped = [], {}, dict(extras)
    for name in view.names:
        if name.inside is not None and name.inside in explained:
            inside[name.inside] = raw.tensors[name.full]
        elif name.classifier:
            classifier[name.full] = name.classifier
        elif not name.full.startswith(roots):
            dropped[name.full] = beside_reason(name.level)
        elif reason := name.other or other_module(beyond(roots[0], name.full)):
            dropped[name.full] = reason
        else:
            unknown.append(name.full)
    heads = {_LEVEL.split(name)[0] for name in table.heads if name in inside}
    # Layers beside those that the table knows: the model's classifier is not what the table says.
    surplus = [name for name, (layer, _) in classifier.items() if _LEVEL.split(layer)[0] in heads]
    classifier = {name: found for name, found in classifier.items() if name not in surplus}
    ruled = sum(verdict == "rule" for verdict in explained.values())
    return Match(fmt, dialect, prefix, kernel, inside, ruled, (*unknown, *surplus), dropped, classifier)


def beyond(prefix: str, name: str) -> str:
    """Return a name without the levels that it shares with a prefix."""
    for start in _levels(prefix):
        if name.startswith(start):
            return name[len(start) :]
    return name


@lru_cache
def _levels(prefix: str) -> tuple[str, ...]:
    """Return the beginnings of a prefix that end at a level, the longest first."""
    return tuple(prefix[: level.end()] for level in _LEVEL.finditer(prefix))[::-1]


def _explained(match: Match) -> tuple[bool, int, int, int]:
    return match.ruled > 0 and not match.unknown, len(match.tensors), match.ruled, -len(match.unknown)


def _rank(raw: RawCheckpoint, match: Match) -> tuple[tuple[bool, int, int, int], int]:
    return _explained(match), match.format.evidence(raw, match.prefix)


def _models(raw: RawCheckpoint, matches: Sequence[Match]) -> list[Match]:
    """Return the best match of each patch embedding, the best first."""
    groups: dict[str, list[Match]] = {}
    for match in matches:
        groups.setdefault(match.kernel, []).append(match)
    best = [max(_most_specific(group), key=lambda match: _rank(raw, match)) for group in groups.values()]
    return sorted(best, key=lambda match: _rank(raw, match), reverse=True)


def _most_specific(matches: Sequence[Match]) -> list[Match]:
    """Return the matches without those of which another explains as much and names more of the prefix itself.

    Such a table knows what stands around the encoder: what it does not know there is no other module.
    """
    sizes = [(len(match.prefix), len(match.tensors)) for match in matches]
    return [
        match
        for match, (prefix, explained) in zip(matches, sizes, strict=True)
        if not any(other < prefix and more >= explained for other, more in sizes)
    ]


def _choose(raw: RawCheckpoint, models: Sequence[Match], prefix: str | None) -> Match:
    """Return the model to read: the only one, or of several copies the one that the project itself evaluates.

    A prefix that the caller gave may also begin the names of other models: that which has it and no more is meant.

    Raises:
        CheckpointError: there are several models.
    """
    rivals = [
        match
        for match in models
        if match.ruled >= _COPY * models[0].ruled or (not match.unknown and match.ruled >= _FEWEST)
    ]
    exact = [match for match in rivals if prefix is not None and match.prefix.rstrip("./") == prefix.rstrip("./")]
    if len(exact) == 1:
        others = tuple(match.prefix for match in rivals if len(match.prefix) > len(exact[0].prefix))
        apart = {name: "of another model in the file" for name in exact[0].unknown if name.startswith(others)}
        unknown = tuple(name for name in exact[0].unknown if name not in apart)
        return dataclasses.replace(exact[0], unknown=unknown, dropped={**exact[0].dropped, **apart})
    for match in rivals:
        reasons = {other.prefix: _preferred(match.prefix, other.prefix) for other in rivals if other is not match}
        if all(reasons.values()):
            dropped = {
                name: next((why for prefix, why in reasons.items() if name.startswith(prefix)), reason)
                for name, reason in match.dropped.items()
            }
            warnings = tuple(
                f"{match.prefix!r} is read, {prefix!r} is not ({why}); prefix= (--prefix) chooses"
                for prefix, why in reasons.items()
            )
            return dataclasses.replace(match, dropped=dropped, warnings=warnings)
    listed = ", ".join(f"{match.prefix!r} ({match.ruled} tensors, {match.label})" for match in rivals)
    raise CheckpointError(
        f"{raw.path}: holds several models: {listed}",
        hint=f"choose one: prefix={rivals[0].prefix!r}, on the command line --prefix {rivals[0].prefix or repr('')}",
    )


def _preferred(first: str, second: str) -> str:
    """Return why the model under the first prefix is read rather than that under the second; empty if it is not."""
    one, two = _LEVEL.split(first), _LEVEL.split(second)
    return next((p.reason for p in PREFERENCES if p.read in one and p.read not in two and p.other in two), "")


def _unknown(raw: RawCheckpoint, label: str | None, prefix: str | None, best: Match | None) -> UnknownFormatError:
    """Return the error for a file of which no table explains half."""
    known = f"formats: {', '.join(name for name in format_names() if '-' not in name)}"
    if label is None:
        wanted, hint = "a known format", f"{known}; name one with format=, on the command line --format"
    else:
        wanted, hint = f"the format {label}", f"without format= (--format) its content decides; {known}"
    where = f" under {quoted(prefix)}" if prefix else ""
    shown = remedy(_some(raw))
    if shown:
        return UnknownFormatError(f"{raw.path}: not readable as it is: {shown[0]}", hint=shown[1])
    return UnknownFormatError(
        f"{raw.path}: not a Vision Transformer checkpoint of {wanted}{where}; {_near_miss(raw, best)}{_named(raw)}",
        hint=hint,
    )


def _named(raw: RawCheckpoint) -> str:
    """Return what config.json says the model is, for a message."""
    types = model_types(raw.sidecars)
    return f"; config.json names the model type {' with '.join(types)}" if types else ""


def _some(raw: RawCheckpoint) -> list[str]:
    """Return the first names of a file, so many as a message is made from."""
    return list(raw.tensors)[: SUGGESTIONS.most]


def _near_miss(raw: RawCheckpoint, best: Match | None) -> str:
    """Describe the best match, or the table that knows most names of a file without a patch embedding."""
    total = len(raw.tensors)
    if best is None:
        names = _some(raw)
        tables = ((fmt, dialect, fmt.table(dialect)) for fmt in all_formats() for dialect in fmt.dialects)
        starts = {start for fmt in all_formats() for start in fmt.prefixes}
        inside = {start: Names(name.removeprefix(start) for name in names) for start in starts}
        counted = [
            (len(table.explain(inside[start])), fmt.label(dialect))
            for fmt, dialect, table in tables
            for start in fmt.prefixes
        ]
        count, label = max(counted, key=lambda item: item[0])
        if count:
            first = f"first {len(names)} of " if len(names) < total else ""
            return f"{count} of its {first}{total} tensors are named as in {label}, but there is no patch embedding"
        return f"none of its {total} tensors is known, the first is {next(iter(raw.tensors), '(none)')!r}"
    shown = ", ".join(best.unknown[:3]) + (", ..." if len(best.unknown) > 3 else "")
    return f"{best.label} matches best, with {best.ruled} of {total} tensors, but not {shown}"


def unexplained(match: Match, raw: RawCheckpoint, unknown: Sequence[str]) -> CheckpointError:
    """Return the error for unknown tensors, each with the nearest name that the table knows."""
    import difflib

    shown = remedy(list(unknown[: SUGGESTIONS.most]))
    if shown:
        return CheckpointError(f"{raw.path}: {unknown[0]}: {shown[0]}", hint=shown[1])
    patterns = match.table.foreign_names()
    lines = []
    for name in unknown[:_SHOWN]:
        near = difflib.get_close_matches(name.removeprefix(match.prefix), patterns, n=1, cutoff=0.4)
        lines.append(name + (f" (nearest: {near[0]})" if near else ""))
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    return CheckpointError(
        f"{raw.path}: {match.ruled} of {len(raw.tensors)} tensors are {match.label}'s, but not "
        f"{', '.join(lines)}{more}{_named(raw)}",
        hint="every tensor of the encoder must be accounted for: the file is of another model",
    )
