"""Content from others: limits of what is read, bounded JSON, typed values, and one gate around every reader.

``docs/security.md`` lists the limits.
"""

from __future__ import annotations

import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vit_hub.errors import CheckpointError, VitHubError, first_line

__all__ = [
    "AXES", "BLOCKS", "COMPARISONS", "HEADER_BYTES", "IMAGE_PIXELS", "INDEX_BYTES", "JSON_BYTES", "JSON_DEPTH",
    "JSON_DIGITS", "JSON_VALUES", "LIMITS", "NAME_LENGTH", "PICKLE_COPIES", "PICKLE_OPCODES", "REFERENCE",
    "SIGNATURE_BYTES", "SIZE", "SUGGESTIONS", "TENSORS", "TOKEN_VALUES", "Between", "Limit", "Matching", "conform",
    "gate", "parse_json", "quoted", "read_bytes", "read_json", "shorten", "usable_path",
]  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """The largest number of something that is read.

    Attributes:
        most: that number.
        unit: of what it counts.
        of: what has them.
    """

    most: int
    unit: str
    of: str

    def exceeded(self, count: int) -> str:
        """Return the predicate of a message about a larger number; empty if it is none."""
        return f"has more than {self.most:,} {self.unit}" if count > self.most else ""


# None of the published Vision Transformers comes near one of these.
JSON_BYTES = Limit(32 << 20, "bytes", "a JSON file or record")
INDEX_BYTES = Limit(64 << 20, "bytes", "the index of a mirror")
SIGNATURE_BYTES = Limit(8 << 20, "bytes", "a signature")
HEADER_BYTES = Limit(32 << 20, "bytes", "the header of a safetensors file, or OpenVINO's .xml")
REFERENCE = Limit(8000, "characters", "the name or address of a model")  # as long as servers take; signed ones are long
JSON_DEPTH = Limit(64, "levels", "nested JSON")
JSON_VALUES = Limit(1_000_000, "values", "a JSON document")
JSON_DIGITS = Limit(100, "characters", "a number in JSON")
TENSORS = Limit(20_000, "tensors", "a checkpoint")
NAME_LENGTH = Limit(1000, "characters", "the name of a tensor")
AXES = Limit(16, "axes", "a tensor")
BLOCKS = Limit(4096, "blocks", "a model")
SIZE = Limit((1 << 31) - 1, "units", "any number of a config")
TOKEN_VALUES = Limit(1 << 28, "values", "the patches of one image, all channels together")
PICKLE_OPCODES = Limit(4_000_000, "opcodes", "a pickle")
PICKLE_COPIES = Limit(2_000_000, "items", "all that a pickle copies from one container to another")
COMPARISONS = Limit(1_000_000, "comparisons", "names with formats, under everything that may stand before an encoder")
SUGGESTIONS = Limit(1000, "names", "an unknown file whose nearest format is looked for")
IMAGE_PIXELS = Limit(1 << 27, "pixels", "an image")
LIMITS = (
    JSON_BYTES, INDEX_BYTES, SIGNATURE_BYTES, HEADER_BYTES, REFERENCE, JSON_DEPTH, JSON_VALUES, JSON_DIGITS, TENSORS,
    NAME_LENGTH, AXES, BLOCKS, SIZE, TOKEN_VALUES, PICKLE_OPCODES, PICKLE_COPIES, COMPARISONS, SUGGESTIONS,
    IMAGE_PIXELS,
)  # fmt: skip
"""All limits, in the order of the document."""

# Half of a character beyond U+FFFF, as JSON escapes it: without the other half it is no text.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def gate(path: object, what: str, hint: str) -> Iterator[None]:
    """Turn whatever a reader of a damaged file raises into an error that names the file.

    Args:
        path: the file.
        what: is damaged; in a message.
        hint: the remedy.

    Raises:
        CheckpointError: something was raised that is no error of vit-hub's own, no warning, and not of the system.
    """
    try:
        yield
    except (VitHubError, OSError, Warning):
        raise
    # A damaged file makes parsers and formulas raise anything.
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path}: {what}: {reason}", hint=hint) from error


def parse_json(content: bytes | str, *, most: int = JSON_BYTES.most, finite: bool = True) -> Any:
    """Parse JSON within the limits.

    Args:
        content: the document; bytes are UTF-8.
        most: bytes that it may have.
        finite: refuse numbers that are infinite or none, which Python's writer puts into JSON.

    Raises:
        ValueError: it is no JSON, or beyond a limit; an object has a key twice; or a text in it cannot be encoded.
    """
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    text = content if isinstance(content, str) else content.decode().removeprefix("\ufeff")
    # Each value but the first of its list or object has a comma before it.
    if said := JSON_VALUES.exceeded(text.count(",") + text.count("[") + text.count("{")):
        raise ValueError(f"it {said}")
    try:
        found = _DECODERS[finite].decode(text)
    except RecursionError as error:
        raise ValueError(f"it has more than {JSON_DEPTH.most} levels") from error
    _check_depth(found)
    if _SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False).encode()  # raises a kind of ValueError
    return found


def _check_depth(value: Any) -> None:
    level: list[Iterable[Any]] = [[value]]
    depth = -1
    while level:
        depth += 1
        if said := JSON_DEPTH.exceeded(depth):
            raise ValueError(f"it {said}")
        inner = [item for items in level for item in items if type(item) in (dict, list)]
        level = [item.values() if type(item) is dict else item for item in inner]


def _whole(text: str) -> int:
    return int(_short(text))


def _real(text: str) -> float:
    return float(_short(text))


def _finite(text: str) -> float:
    number = _real(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


def _short(text: str) -> str:
    if said := JSON_DIGITS.exceeded(len(text)):
        raise ValueError(f"a number {said}")
    return text


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return members


_DECODERS = {
    True: json.JSONDecoder(object_pairs_hook=_once, parse_int=_whole, parse_float=_finite, parse_constant=_no_number),
    False: json.JSONDecoder(object_pairs_hook=_once, parse_int=_whole, parse_float=_real),
}


def read_json(path: Path, *, most: int = JSON_BYTES.most, finite: bool = True) -> Any:
    """Parse a JSON file within the limits; of a longer one no more is read.

    Raises:
        ValueError: as :func:`parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(read_bytes(path, most=most), most=most, finite=finite)


def read_bytes(path: Path, *, most: int = JSON_BYTES.most) -> bytes:
    """Return the contents of a file; of one that is longer than the limit one byte more, and no more is read.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(most + 1)


def usable_path(given: str | os.PathLike[str]) -> Path:
    """Return what a caller gives as a path, which need not exist.

    Raises:
        VitHubError: the system cannot have such a path: a null character, a text that cannot be encoded, a name that
            is too long, links in a circle.
    """
    path = Path(given)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        shown = quoted(os.fspath(given))
        reason = getattr(error, "strerror", None) or first_line(error)
        raise VitHubError(f"{shown} is not a path: {reason}", hint="choose another name") from error
    return path


def shorten(text: str) -> str:
    """Shorten a text, for a message."""
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Between:
    """The range of a number, in ``Annotated[int, Between(...)]``."""

    least: float
    most: float

    def check(self, value: Any) -> str:
        """Return what is expected of a value; empty if it is so."""
        return "" if self.least <= value <= self.most else f"a number from {self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class Matching:
    """The pattern of a whole text, in ``Annotated[str, Matching(...)]``, and its name in messages."""

    pattern: str
    name: str

    def check(self, value: Any) -> str:
        """Return what is expected of a value; empty if it is so."""
        return "" if re.fullmatch(self.pattern, value, re.DOTALL) else self.name


def conform(value: Any, hint: Any, name: str) -> None:
    """Compare JSON data with a type: of scalars, ``Literal``, lists, dicts, ``TypedDict``, ``Annotated``, unions.

    Keys that a ``TypedDict`` does not have are left for later versions.

    Args:
        value: the data.
        hint: the type.
        name: of the value, in the message.

    Raises:
        ValueError: it has another type or range; the message names the value inside.
    """
    if problem := _checker(hint)(value, name):
        raise ValueError(problem)


_Checker = Callable[[Any, str], str]
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@cache
def _checker(hint: Any) -> _Checker:
    """Return a function of a value and its name that returns what is wrong with it; empty if nothing is."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value, name: ""
    if typing.is_typeddict(hint):
        return _of_fields(typing.get_type_hints(hint, include_extras=True), hint.__required_keys__)
    if hasattr(hint, "__metadata__"):
        return _of_range(_checker(hint.__origin__), hint.__metadata__)
    if origin in (types.UnionType, typing.Union):
        return _of_union(tuple(map(_checker, parts)))
    if origin is Literal:
        return lambda value, name: "" if value in parts else f"{name}: one of {parts} is expected, not {quoted(value)}"
    if origin is dict:
        inner = _checker(parts[1])
        return lambda value, name: (
            _first(inner(item, f"{name}.{key}") for key, item in value.items())
            if isinstance(value, dict)
            else f"{name}: an object is expected, not {quoted(value)}"
        )
    if origin is list:
        of_item = _checker(parts[0])
        return lambda value, name: (
            _first(of_item(item, f"{name}[{index}]") for index, item in enumerate(value))
            if isinstance(value, list)
            else f"{name}: a list is expected, not {quoted(value)}"
        )
    kinds = (int, float) if hint is float else (hint,)
    return lambda value, name: (
        "" if type(value) in kinds else f"{name}: {_NAMES[hint]} is expected, not {quoted(value)}"
    )


def _of_fields(fields: Mapping[str, Any], required: frozenset[str]) -> _Checker:
    checkers = {key: _checker(hint) for key, hint in fields.items()}

    def check(value: Any, name: str) -> str:
        if not isinstance(value, dict):
            return f"{name}: an object is expected, not {quoted(value)}"
        lacking = [key for key in fields if key in required and key not in value]
        if lacking:
            return f"{name}: no {lacking[0]!r}"
        return _first(of(value[key], f"{name}.{key}") for key, of in checkers.items() if key in value)

    return check


def _of_range(inner: _Checker, bounds: Sequence[Any]) -> _Checker:
    def check(value: Any, name: str) -> str:
        if problem := inner(value, name):
            return problem
        wanted = _first(bound.check(value) for bound in bounds)
        return f"{name}: {wanted} is expected, not {quoted(value)}" if wanted else ""

    return check


def _of_union(checkers: Sequence[_Checker]) -> _Checker:
    def check(value: Any, name: str) -> str:
        problems = [check(value, name) for check in checkers]
        return "" if "" in problems else problems[0]

    return check


def _first(problems: Iterator[str]) -> str:
    return next(filter(None, problems), "")


def quoted(value: Any) -> str:
    """Return what somebody gave as it was written, shortened, for a message."""
    return shorten(repr(value))
