"""The rule language: one table a format, read in both directions.

A :class:`Rule` pairs canonical tensor names with foreign ones and says how the axes are laid out. Nothing in a rule is
a function, so its inverse needs no second table.

* ``{i}`` in a name is a layer index. Where only the canonical side has it, the foreign tensor stacks all layers along
  a leading axis.
* Several foreign names are joined along the first axis (q, k, v into qkv); several canonical names cut it, in the
  proportion ``weights``.
* ``layout`` maps each foreign tensor to the canonical axes (see :mod:`vit_hub.converters.rearrange`). Alternatives
  after the first are accepted when read; the shape found is recorded so that it is written again.
* ``${name}`` in a foreign name is a variable of the dialect.
* ``unless`` names a foreign tensor whose presence takes a rule out of force.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vit_hub.converters.rearrange import rearrange
from vit_hub.converters.tensors import LazyTensor, concat, split, stack, unstack
from vit_hub.errors import CheckpointError

__all__ = ["Drop", "Reading", "Rule", "Table", "rule"]

_LAYER = "{i}"


@dataclass(frozen=True)
class Rule:
    """Canonical names, foreign names and the layout between them; build it with :func:`rule`.

    Attributes:
        layouts: how each foreign tensor maps to canonical axes; the first is written.
        weights: proportions of the canonical tensors along the first axis.
        carried: the model does not use the tensor; it is kept for the way back.
        unless: a foreign tensor that takes the rule out of force.
    """

    canonical: tuple[str, ...]
    foreign: tuple[str, ...]
    layouts: tuple[str, ...] = ("",)
    weights: tuple[int, ...] = (1,)
    carried: bool = False
    unless: str = ""

    @property
    def stacked(self) -> bool:
        """Whether one foreign tensor holds all layers."""
        return _LAYER in self.canonical[0] and _LAYER not in self.foreign[0]


def rule(
    canonical: str | tuple[str, ...],
    foreign: str | tuple[str, ...],
    *layouts: str,
    weights: tuple[int, ...] = (),
    carried: bool = False,
    unless: str = "",
) -> Rule:
    """A rule from single names or tuples of them."""
    names = (canonical,) if isinstance(canonical, str) else canonical
    others = (foreign,) if isinstance(foreign, str) else foreign
    return Rule(names, others, layouts or ("",), weights or (1,) * len(names), carried, unless)


@dataclass(frozen=True)
class Drop:
    """Foreign tensors left out on purpose: a regular expression over whole names, and why."""

    pattern: str
    reason: str


@dataclass
class Reading:
    """What a table made of a source.

    Attributes:
        tensors: canonical name -> tensor.
        origin: canonical name -> the foreign names it came from.
        carried: canonical names that the model does not use.
        dropped: foreign name -> reason.
        unknown: foreign names that no rule explains.
        shapes: foreign name -> shape, where it is not the one the table would write.
    """

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    carried: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Table:
    """The rules of one dialect of a format, names resolved."""

    def __init__(
        self, rules: Sequence[Rule], drops: Sequence[Drop] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        values = variables or {}
        self._rules = [
            dataclasses.replace(
                r, foreign=tuple(_substitute(name, values) for name in r.foreign), unless=_substitute(r.unless, values)
            )
            for r in rules
        ]
        self._drops = [(re.compile(_substitute(drop.pattern, values, re.escape)), drop.reason) for drop in drops]
        self._patterns = [[_compile(name) for name in r.foreign] for r in self._rules]

    def explain(self, name: str) -> str:
        """``"rule"``, ``"drop"`` or ``""``: whether the table knows a foreign name."""
        if any(pattern.fullmatch(name) for patterns in self._patterns for pattern in patterns):
            return "rule"
        return "drop" if any(pattern.fullmatch(name) for pattern, _ in self._drops) else ""

    def foreign_names(self) -> list[str]:
        """Every foreign name pattern, for near-miss messages."""
        return [name for r in self._rules for name in r.foreign]

    def read(self, source: Mapping[str, LazyTensor], sizes: Mapping[str, int]) -> Reading:
        """Foreign tensors to canonical ones; lazily, from their headers.

        Raises:
            CheckpointError: a shape that does not fit its rule.
        """
        result, claimed = Reading(), set[str]()
        for r, patterns in zip(self._rules, self._patterns, strict=True):
            if r.unless and r.unless in source:
                continue
            for name in source:
                match = patterns[0].fullmatch(name)
                if match is None or name in claimed:
                    continue
                layer = match.groupdict().get("i", "")
                names = tuple(part.replace(_LAYER, layer) for part in r.foreign)
                if any(part not in source or part in claimed for part in names):
                    continue
                claimed.update(names)
                self._read_one(r, names, layer, source, sizes, result)
        for name in source:
            if name not in claimed:
                reason = next((reason for pattern, reason in self._drops if pattern.fullmatch(name)), None)
                if reason is None:
                    result.unknown.append(name)
                else:
                    result.dropped[name] = reason
        return result

    @staticmethod
    def _read_one(
        r: Rule,
        names: tuple[str, ...],
        layer: str,
        source: Mapping[str, LazyTensor],
        sizes: Mapping[str, int],
        result: Reading,
    ) -> None:
        layers = [unstack(source[name]) for name in names] if r.stacked else [[source[name]] for name in names]
        for index, parts in enumerate(zip(*layers, strict=True)):
            try:
                laid_out = [_apply_layouts(part, r.layouts, sizes) for part in parts]
                pieces = split(concat([tensor for tensor, _ in laid_out]), r.weights)
            except ValueError as error:
                raise CheckpointError(f"tensor {', '.join(names)}: {error}") from error
            for name, part, (_, first) in zip(names, parts, laid_out, strict=True):
                if not first:
                    result.shapes[name] = source[name].shape if r.stacked else part.shape
            for name, piece in zip(r.canonical, pieces, strict=True):
                canonical = name.replace(_LAYER, str(index) if r.stacked else layer)
                result.tensors[canonical] = piece
                result.origin[canonical] = names
                if r.carried:
                    result.carried.append(canonical)

    def write(
        self, tensors: Mapping[str, LazyTensor], sizes: Mapping[str, int]
    ) -> tuple[dict[str, LazyTensor], list[str]]:
        """Canonical tensors to foreign ones; lazily. Also gives the canonical names that no rule can write."""
        patterns = [_compile(r.canonical[0]) for r in self._rules]
        foreign: dict[str, LazyTensor] = {}
        claimed = set[str]()
        for name in tensors:
            for r, pattern in zip(self._rules, patterns, strict=True):
                match = pattern.fullmatch(name)
                if match is None or name in claimed:
                    continue
                layers = [match.groupdict().get("i", "")]
                if r.stacked:
                    layers = [str(index) for index in range(sum(bool(pattern.fullmatch(other)) for other in tensors))]
                names = [[part.replace(_LAYER, layer) for part in r.canonical] for layer in layers]
                flat = [part for parts in names for part in parts]
                if any(part not in tensors or part in claimed for part in flat):
                    continue
                claimed.update(flat)
                columns = [
                    [
                        rearrange(piece, r.layouts[0], sizes, inverse=True)
                        for piece in split(concat([tensors[part] for part in parts]), (1,) * len(r.foreign))
                    ]
                    for parts in names
                ]
                for target, column in zip(r.foreign, zip(*columns, strict=True), strict=True):
                    foreign[target.replace(_LAYER, layers[0])] = stack(column) if r.stacked else column[0]
        return foreign, [name for name in tensors if name not in claimed]


def _substitute(text: str, values: Mapping[str, str], escape: Callable[[str], str] = str) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: escape(values[match.group(1)]), text)


def _compile(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape(_LAYER), r"(?P<i>\d+)"))


def _apply_layouts(tensor: LazyTensor, layouts: Sequence[str], sizes: Mapping[str, int]) -> tuple[LazyTensor, bool]:
    """The tensor under the first layout that fits it, and whether that is the one written by default."""
    for index, layout in enumerate(layouts):
        try:
            return rearrange(tensor, layout, sizes), index == 0
        except ValueError:
            if index == len(layouts) - 1:
                raise
    raise ValueError("no layout")
