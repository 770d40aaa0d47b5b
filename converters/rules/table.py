"""The rule language: one table per format, read in both directions.

A :class:`Rule` pairs canonical tensor names with foreign ones and describes the layout of the axes. It contains no
functions, so that its inverse needs no second table.

* ``{i}`` in a name is a layer index. Where only the canonical side has it, the foreign tensor stacks all layers along
  a leading axis. Other letters are other indices; ``{s+1}`` counts from one where the other side counts from zero. An
  index that only the foreign side has (a chunk number) is recorded, so that it is written again.
* ``{_i}`` is an index after an underscore, left out where it is zero, as Keras numbers its layers.
* Several foreign names are joined along the first axis (q, k, v into qkv); several canonical names cut it, in the
  proportion ``weights``, or are each a copy of the whole (``copies``). A weight may be an axis of known size and a
  factor (``"3d"``); ``axis`` is the axis that is cut, where it is not the first. Foreign tensors have equal shares of
  the first axis, but for one whose share is the size of the axis ``first`` (the queries of grouped-query attention).
* ``layout`` maps each foreign tensor to the canonical axes (see :mod:`vit_hub.converters.rules.layouts`); ``h`` heads,
  ``m`` heads of map pooling, ``p`` x ``q`` patch and ``c`` channels of the patch embedding, ``y`` rows of the grid are
  known from the config, other axes from the shape. Alternatives after the first are accepted when read; the shape
  found is recorded so that it is written again.
* ``${name}`` in a foreign name is a variable of the dialect; ``a+b`` as its value stands for two foreign names.
* ``unless`` names a foreign tensor whose presence disables a rule.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import takewhile
from typing import Any

from vit_hub.converters.rules.layouts import rearrange
from vit_hub.converters.tensors import Array, LazyTensor, concat, copied, split, stack, unstack
from vit_hub.errors import CheckpointError, UnsupportedByFormatError

__all__ = ["Drop", "Names", "Reading", "Rule", "Table", "rule", "weight_and_bias"]

_LAYER = "{i}"
_INDEX = re.compile(r"\{(_?)([^\W_])(\+1)?\}")
_DIGITS = re.compile(r"_?\d+")


@dataclass(frozen=True)
class Rule:
    """Canonical names, foreign names and the layout between them; build it with :func:`rule`.

    Attributes:
        layouts: how each foreign tensor maps to canonical axes; the first is written.
        weights: proportions of the canonical tensors along the axis that is cut.
        first: the axis whose size the first foreign tensor has along its first axis; empty if all have the same.
        copies: the canonical tensors are equal, each the whole foreign tensor.
        carried: the model does not use the tensor; it is kept to be written back.
        axis: the axis that canonical tensors cut.
        unless: a foreign tensor whose presence disables the rule.
    """

    canonical: tuple[str, ...]
    foreign: tuple[str, ...]
    layouts: tuple[str, ...] = ("",)
    weights: tuple[int | str, ...] = (1,)
    copies: bool = False
    carried: bool = False
    unless: str = ""
    axis: int = 0
    first: str = ""

    @property
    def stacked(self) -> bool:
        """One foreign tensor holds all layers."""
        return _LAYER in self.canonical[0] and not _layered(self.foreign[0])


def rule(
    canonical: str | tuple[str, ...],
    foreign: str | tuple[str, ...],
    *layouts: str,
    weights: tuple[int | str, ...] = (),
    copies: bool = False,
    carried: bool = False,
    unless: str = "",
    axis: int = 0,
    first: str = "",
) -> Rule:
    """Return a rule from single names or tuples of them."""
    names = (canonical,) if isinstance(canonical, str) else canonical
    others = (foreign,) if isinstance(foreign, str) else foreign
    cut = weights or (1,) * len(names)
    return Rule(names, others, layouts or ("",), cut, copies, carried, unless, axis, first)


def weight_and_bias(canonical: str, foreign: str = "", joint: str = ".", **options: Any) -> tuple[Rule, Rule]:
    """Return the rules of a layer's weight and bias.

    Args:
        canonical: the layer.
        foreign: the layer in the format; empty where it has the same name.
        joint: stands between the foreign layer and ``weight`` or ``bias``.
        options: as for :func:`rule`.
    """
    names = [(f"{canonical}.{part}", f"{foreign or canonical}{joint}{part}") for part in ("weight", "bias")]
    return rule(*names[0], **options), rule(*names[1], **options)


@dataclass(frozen=True)
class Drop:
    """Foreign tensors left out on purpose: a regular expression for whole names, and the reason."""

    pattern: str
    reason: str

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The compiled pattern, if it has no variables."""
        return re.compile(self.pattern)


@dataclass
class Reading:
    """The result of reading foreign tensors by a table.

    Attributes:
        tensors: canonical name -> tensor.
        origin: canonical name -> the foreign names it came from.
        carried: canonical names that the model does not use.
        dropped: foreign name -> reason.
        unknown: foreign names that no rule explains.
        shapes: foreign name -> shape, where the table would write another.
        names: foreign name that the table would write -> the one found, where they differ.
    """

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    carried: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


class Names:
    """Foreign names, found by template; each template is compared once, however many tables have it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._found: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @cached_property
    def _by_outline(self) -> dict[str, list[str]]:
        """Outlines rule most templates out without a regular expression."""
        groups: dict[str, list[str]] = {}
        for name in self._names:
            groups.setdefault(_outline(name), []).append(name)
        return groups

    def alike(self, template: str) -> list[str]:
        """Return those of a template and the few that only look like it, in order."""
        return self._by_outline.get(_outline(template), [])

    def matching(self, template: str) -> list[str]:
        """Return those of a template, in order."""
        if template not in self._found:
            alike = self.alike(template)
            self._found[template] = [name for name in alike if _compile(template).fullmatch(name)]
        return self._found[template]


class Table:
    """The rules of one dialect of a format, with its variables filled in."""

    def __init__(
        self, rules: Sequence[Rule], drops: Sequence[Drop] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        self._given, self._given_drops, self._values = rules, drops, variables or {}

    # Of most tables nothing but the name of the patch embedding is ever asked for, and of many others only names.
    @cached_property
    def _foreign(self) -> list[tuple[str, ...]]:
        """The foreign names of each rule."""
        return [_names(r, self._values) for r in self._given]

    @cached_property
    def _rules(self) -> list[Rule]:
        return [
            r
            if names == r.foreign and "$" not in r.unless
            else dataclasses.replace(r, foreign=names, unless=_substitute(r.unless, self._values))
            for r, names in zip(self._given, self._foreign, strict=True)
        ]

    @cached_property
    def _drops(self) -> list[tuple[re.Pattern[str], str]]:
        patterns = ((_substitute(drop.pattern, self._values, re.escape), drop) for drop in self._given_drops)
        return [
            (drop.regex if pattern == drop.pattern else re.compile(pattern), drop.reason) for pattern, drop in patterns
        ]

    @cached_property
    def _writers(self) -> dict[str, list[int]]:
        """Positions of the rules that may write a canonical name, by outline."""
        found: dict[str, list[int]] = {}
        for position, r in enumerate(self._rules):
            found.setdefault(_outline(r.canonical[0]), []).append(position)
        return found

    @cached_property
    def patch_kernel(self) -> str:
        """The foreign name of the patch embedding, which every encoder has."""
        return self.foreign_name("patch_embed.proj.weight")

    @cached_property
    def heads(self) -> frozenset[str]:
        """The foreign names of classifiers and their norms."""
        rules = zip(self._given, self._foreign, strict=True)
        return frozenset(name for r, names in rules if r.canonical[0].startswith(("head.", "head_")) for name in names)

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """The beginnings of the names of an encoder's parts, classifiers aside: unknown names there are parts of it."""
        parts = [name for name in self.foreign_names() if name not in self.heads]
        blocks = [name for name in parts if _layered(name)] or parts
        shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*blocks, self.patch_kernel, strict=False))
        root = _module("".join(letters[0] for letters in shared))
        others = [_module(name) for name in parts if not name.startswith(root)]
        return (root, *dict.fromkeys(_module(module[:-1]) or module for module in others if module))

    def foreign_name(self, canonical: str) -> str:
        """Return the foreign name of a canonical tensor that one rule maps to one name; empty if none does."""
        resolved = (_names(r, self._values) for r in self._given if r.canonical == (canonical,))
        return next((names[0] for names in resolved if len(names) == 1), "")

    def ruled(self, names: Names) -> set[str]:
        """Return those of the foreign names that rules explain."""
        return {name for template in self.foreign_names() for name in names.matching(template)}

    def drop_reason(self, name: str) -> str:
        """Return why a foreign name is left out on purpose; empty if it is not."""
        return next((reason for pattern, reason in self._drops if pattern.fullmatch(name)), "")

    def explain(self, names: Names) -> dict[str, str]:
        """Return what explains foreign names: ``"rule"`` or ``"drop"``, by name, of those that anything explains."""
        ruled = self.ruled(names)
        return {name: "rule" if name in ruled else "drop" for name in names if name in ruled or self.drop_reason(name)}

    def foreign_names(self) -> list[str]:
        """Return the templates of all foreign names."""
        return [name for names in self._foreign for name in names]

    def read(
        self, foreign: Mapping[str, LazyTensor], sizes: Mapping[str, int], wanted: Collection[str] = ()
    ) -> Reading:
        """Convert foreign tensors to canonical ones, lazily, from their headers.

        Args:
            foreign: foreign names and tensors.
            sizes: of layout axes that shapes alone do not show.
            wanted: canonical names whose rules are in force whatever they are disabled by.

        Raises:
            CheckpointError: a shape that does not fit its rule.
        """
        result, claimed = Reading(), set[str]()
        known = Names(foreign)
        for r in self._rules:
            if r.unless and r.unless in foreign and r.canonical[0] not in wanted:
                continue
            for name in known.alike(r.foreign[0]):
                indices = _match(r.foreign[0], name)
                if indices is None or name in claimed:
                    continue
                names = tuple(_format(part, indices) for part in r.foreign)
                if any(part not in foreign or part in claimed for part in names):
                    continue
                claimed.update(names)
                self._read_one(r, names, indices, foreign, sizes, result)
        for name in foreign:
            if name not in claimed:
                if reason := self.drop_reason(name):
                    result.dropped[name] = reason
                else:
                    result.unknown.append(name)
        return result

    @staticmethod
    def _read_one(
        r: Rule,
        names: tuple[str, ...],
        indices: Mapping[str, int],
        foreign: Mapping[str, LazyTensor],
        sizes: Mapping[str, int],
        result: Reading,
    ) -> None:
        shared = {index: value for index, value in indices.items() if f"{{{index}" in r.canonical[0]}
        for name, pattern in zip(names, r.foreign, strict=True):
            written = _format(pattern, shared)
            if written != name:
                result.names[written] = name
        try:
            layers = [unstack(foreign[name]) if r.stacked else [foreign[name]] for name in names]
            columns = list(zip(*layers, strict=True))
        except ValueError as error:
            raise CheckpointError(f"tensor {', '.join(names)}: {error}") from error
        for layer, parts in enumerate(columns):
            try:
                laid_out = [_apply_layouts(part, r.layouts, sizes) for part in parts]
                whole = concat([tensor for tensor, _ in laid_out])
                pieces = [copied(whole) for _ in r.canonical] if r.copies else _cut(whole, r, sizes)
            except ValueError as error:
                raise CheckpointError(f"tensor {', '.join(names)}: {error}") from error
            for name, (_, first) in zip(names, laid_out, strict=True):
                if not first:
                    result.shapes[name] = foreign[name].shape
            for canonical, piece in zip(r.canonical, pieces, strict=True):
                name = _format(canonical, {**indices, "i": layer} if r.stacked else indices)
                result.tensors[name] = piece
                result.origin[name] = names
                if r.carried or 0 in piece.shape:
                    result.carried.append(name)

    def write(
        self, tensors: Mapping[str, LazyTensor], sizes: Mapping[str, int]
    ) -> tuple[dict[str, LazyTensor], list[str]]:
        """Convert canonical tensors to foreign ones, lazily; also return the canonical names that no rule writes.

        A rule does not write tensors of shapes that its layout cannot hold. Foreign tensors have the order of the
        table, which is that of the project's own files: successive rules with a layer index are written layer by layer.
        """
        runs = _runs(self._rules)
        foreign: dict[str, LazyTensor] = {}
        order: dict[str, tuple[int, int, int]] = {}
        claimed = set[str]()
        for name in tensors:
            for position in self._writers.get(_outline(name), ()):
                r = self._rules[position]
                indices = _match(r.canonical[0], name)
                if indices is None or name in claimed:
                    continue
                layers = [indices]
                if r.stacked:
                    found = (_match(r.canonical[0], other) for other in tensors)
                    layers = sorted((item for item in found if item is not None), key=lambda item: item["i"])
                names = [[_format(part, layer) for part in r.canonical] for layer in layers]
                flat = [part for parts in names for part in parts]
                if any(part not in tensors or part in claimed for part in flat):
                    continue
                try:
                    pieces = _written(r, names, tensors, sizes)
                except ValueError:
                    continue
                claimed.update(flat)
                for target, piece in zip(r.foreign, pieces, strict=True):
                    written = _format(target, indices)
                    foreign[written] = piece
                    order[written] = (runs[position], indices.get("i", 0), position)
        ordered = {name: foreign[name] for name in sorted(foreign, key=lambda name: order[name])}
        return ordered, [name for name in tensors if name not in claimed]


def _written(
    r: Rule, layers: Sequence[Sequence[str]], tensors: Mapping[str, LazyTensor], sizes: Mapping[str, int]
) -> list[LazyTensor]:
    """Return the foreign tensors of a rule for the canonical names of each layer.

    Raises:
        ValueError: a shape does not fit.
    """
    columns = [
        [rearrange(piece, r.layouts[0], sizes, inverse=True) for piece in _shares(r, _joined(r, names, tensors), sizes)]
        for names in layers
    ]
    return [stack(column) if r.stacked else column[0] for column in zip(*columns, strict=True)]


def _joined(r: Rule, names: Sequence[str], tensors: Mapping[str, LazyTensor]) -> LazyTensor:
    """Return what the canonical tensors of a rule are together."""
    parts = [tensors[name] for name in names]
    if r.copies:
        return _equal(parts, names)
    return _with_first(concat([_with_first(part, r.axis) for part in parts]), r.axis)


def _cut(tensor: LazyTensor, r: Rule, sizes: Mapping[str, int]) -> list[LazyTensor]:
    """Return the canonical tensors of a rule, cut out of what they are together.

    Raises:
        ValueError: the axis cannot be cut so.
    """
    weights = [weight if isinstance(weight, int) else _known(weight, sizes) for weight in r.weights]
    return [_with_first(part, r.axis) for part in split(_with_first(tensor, r.axis), weights)]


def _known(weight: str, sizes: Mapping[str, int]) -> int:
    factor, axis = weight[:-1] or 1, weight[-1]
    if not sizes.get(axis):
        raise ValueError(f"the size of axis {axis} is not known")
    return int(factor) * sizes[axis]


def _with_first(tensor: LazyTensor, axis: int) -> LazyTensor:
    """Return a tensor with an axis and the first one in each other's place."""
    if not axis:
        return tensor
    order = list(range(len(tensor.shape)))
    if axis >= len(order):
        raise ValueError(f"shape {tensor.shape} has no axis {axis}")
    order[0], order[axis] = axis, 0
    return tensor.permute(order)


def _shares(r: Rule, whole: LazyTensor, sizes: Mapping[str, int]) -> list[LazyTensor]:
    """Return what each foreign tensor of a rule has of a canonical one."""
    count = len(r.foreign)
    if not r.first:
        return split(whole, (1,) * count)
    first = sizes[r.first]
    return split(whole, (first, *((whole.shape[0] - first) // (count - 1) for _ in range(count - 1))))


def _equal(parts: Sequence[LazyTensor], names: Sequence[str]) -> LazyTensor:
    """Return the one tensor that all parts are; reading it raises UnsupportedByFormatError if they differ."""
    first = parts[0]

    def read() -> Array:
        values = first.read()
        if any(part.dtype != first.dtype or part.read().tobytes() != values.tobytes() for part in parts[1:]):
            raise UnsupportedByFormatError(f"the format has one tensor for {' and '.join(names)}, which differ")
        return values

    return LazyTensor(first.dtype, first.shape, read)


def _runs(rules: Sequence[Rule]) -> list[int]:
    """Return for each rule the first position of its run: successive rules with a layer index are one run."""
    starts: list[int] = []
    for position, r in enumerate(rules):
        layered = position > 0 and _LAYER in r.canonical[0] and _LAYER in rules[position - 1].canonical[0]
        starts.append(starts[-1] if layered else position)
    return starts


def _layered(name: str) -> bool:
    """Return whether a template has the index of the layer."""
    return any(match.group(2) == "i" for match in _INDEX.finditer(name))


def _module(name: str) -> str:
    """Return a name without its last part."""
    return re.sub(r"[^./]*$", "", name)


@cache
def _outline(name: str) -> str:
    """Return a name or template without its numbers and indices."""
    return _DIGITS.sub("", _INDEX.sub("0", name))


def _names(r: Rule, values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the foreign names of a rule with its variables filled in."""
    if "$" not in "".join(r.foreign):
        return r.foreign
    return tuple(part for name in r.foreign for part in _expand(name, values))


def _substitute(text: str, values: Mapping[str, str], escape: Callable[[str], str] = str) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: escape(values[match.group(1)]), text)


def _expand(name: str, values: Mapping[str, str]) -> list[str]:
    """Return the foreign names of a template: several, if a variable has several values."""
    several = next((key for key, value in values.items() if "+" in value and f"${{{key}}}" in name), None)
    if several is None:
        return [_substitute(name, values)]
    return [part for value in values[several].split("+") for part in _expand(name, {**values, several: value})]


@cache
def _compile(name: str) -> re.Pattern[str]:
    literals = _INDEX.sub("\0", name).split("\0")
    groups = [
        rf"(?:_(?P<{match.group(2)}>[1-9]\d*))?" if match.group(1) else rf"(?P<{match.group(2)}>\d+)"
        for match in _INDEX.finditer(name)
    ]
    return re.compile("".join(re.escape(text) + group for text, group in zip(literals, [*groups, ""], strict=True)))


def _match(template: str, name: str) -> dict[str, int] | None:
    """Return the indices in a name, counted from zero; None if it does not match."""
    match = _compile(template).fullmatch(name)
    if match is None:
        return None
    first = {item.group(2): 1 if item.group(3) else 0 for item in _INDEX.finditer(template)}
    return {index: int(value or 0) - first[index] for index, value in match.groupdict().items()}


def _format(template: str, indices: Mapping[str, int]) -> str:
    """Return a name with its indices; an unknown one (a chunk number) gets its first value."""

    def text(item: re.Match[str]) -> str:
        number = indices.get(item.group(2), 0) + (1 if item.group(3) else 0)
        return (f"_{number}" if number else "") if item.group(1) else str(number)

    return _INDEX.sub(text, template)


def _apply_layouts(tensor: LazyTensor, layouts: Sequence[str], sizes: Mapping[str, int]) -> tuple[LazyTensor, bool]:
    """Return the tensor in the first layout that fits, and whether that is the default one."""
    for index, layout in enumerate(layouts):
        try:
            return rearrange(tensor, layout, sizes), index == 0
        except ValueError:
            if index == len(layouts) - 1:
                raise
    raise ValueError("no layout")
