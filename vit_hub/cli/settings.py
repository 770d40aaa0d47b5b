"""``--set field=value``: config fields that a file does not determine, given on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import click

from vit_hub.model.config import ViTConfig
from vit_hub.untrusted import parse_json

__all__ = ["parse_size", "set_option", "setting_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _boolean(text: str) -> bool:
    return _WORDS[text.lower()]


def _boolean_or_word(text: str) -> bool | str:
    return _WORDS.get(text.lower(), text)


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``224x160``, ``224,160`` or ``224`` as (height, width).

    Raises:
        ValueError: it is none of these.
    """
    sides = [int(side) for side in text.lower().replace(",", "x").split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0], sides[-1]


def _whole_numbers(text: str) -> tuple[int, ...]:
    return () if text.lower() == "none" else tuple(int(part) for part in text.lower().split("x"))


def _triples(text: str) -> tuple[tuple[int, int, int], ...]:
    found = []
    for part in () if text.lower() == "none" else text.split(","):
        channels, kernel, stride = _whole_numbers(part)
        found.append((channels, kernel, stride))
    return tuple(found)


def _none_or_number(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _none_or_fields(text: str) -> dict[str, Any] | None:
    fields = None if text.lower() == "none" else parse_json(text)
    if fields is not None and not isinstance(fields, dict):
        raise ValueError(text)
    return fields


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


class _Kind(NamedTuple):
    """Parser of a value, which raises KeyError or ValueError, with a name for it and an example."""

    parse: Callable[[str], Any]
    name: str
    example: str


_KINDS: dict[Any, _Kind] = {
    int: _Kind(int, "a whole number", "12"),
    float: _Kind(float, "a number", "1e-6"),
    float | None: _Kind(_number_or_none, "none or a number", "1e-6"),
    bool: _Kind(_boolean, "true or false", "true"),
    str: _Kind(str, "a word", "NAME"),
    tuple[int, int]: _Kind(parse_size, "HEIGHTxWIDTH or one number for both", "224x224"),
    tuple[int, ...]: _Kind(_whole_numbers, "none or whole numbers joined by x", "3x4x9"),
    tuple[tuple[int, int, int], ...]: _Kind(
        _triples, "none or CHANNELSxKERNELxSTRIDE, several joined by commas", "64x3x2,128x3x2"
    ),
}


def _kind(annotation: Any) -> _Kind:
    """Choose the kind of a field by its type. Which words a field accepts is for the config to check."""
    if annotation in _KINDS:
        return _KINDS[annotation]
    members = get_args(annotation) or (annotation,)
    if {*members} == {float, type(None)}:
        return _Kind(_none_or_number, "none or a number", "1e-6")
    if all(isinstance(member, str) for member in members):
        return _Kind(str, "a word", members[0])
    if bool in members or True in members:
        return _Kind(_boolean_or_word, "true, false or a word", "true")
    [table] = (member for member in members if dataclasses.is_dataclass(member))
    first = next(item for item in dataclasses.fields(table) if item.default is not dataclasses.MISSING)
    return _Kind(_none_or_fields, "none or a JSON object", json.dumps({first.name: first.default}))


_HINTS = get_type_hints(ViTConfig)
_FIELDS = {field.name: _kind(_HINTS[field.name]) for field in dataclasses.fields(ViTConfig)}


def _parsed(ctx: click.Context, param: click.Parameter, settings: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        try:
            name, value = _parse(setting)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        if found.setdefault(name, value) != value:
            raise click.BadParameter(f"{name} is set twice, to {found[name]!r} and {value!r}.", ctx, param)
    return found


def _parse(setting: str) -> tuple[str, Any]:
    """Return a field and its value.

    Raises:
        ValueError: there is no such field, or the value does not fit its type.
    """
    name, equals, text = (part.strip() for part in setting.partition("="))
    if name not in _FIELDS:
        near = difflib.get_close_matches(name, _FIELDS, n=2)
        meant = f", did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(f"the config has no field {name!r}{meant} Fields: {', '.join(_FIELDS)}.")
    parse, kind, example = _FIELDS[name]
    if not equals:
        raise ValueError(f"{setting!r} has no '='; write {name}={example}.")
    try:
        return name, parse(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name} takes {kind}, as in {name}={example}, not {text!r}.") from None


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [f"{name}=" for name in _FIELDS if name.startswith(incomplete)]


def setting_option(name: str, argument: str, help: str) -> Callable[[_Command], _Command]:
    """Make a repeatable option that takes config fields; the command gets them as the dict ``argument``."""
    return click.option(
        name,
        argument,
        metavar="FIELD=VALUE",
        multiple=True,
        callback=_parsed,
        shell_complete=_complete,
        help=help,
    )


set_option = setting_option(
    "--set",
    "overrides",
    "Set a config field that the file does not determine or gets wrong, such as num_heads=3, image_size=224x160, "
    "act=gelu_tanh or qkv_bias=false. Repeatable.",
)
"""Option ``--set``; the command gets ``overrides``, a dict as :func:`vit_hub.load` takes it."""
