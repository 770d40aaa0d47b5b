"""Bounded JSON, types of its values, and records of the cache that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as some

from vit_hub.untrusted import JSON_DEPTH, JSON_DIGITS, Between, Matching, conform, gate, parse_json, read_json

VALUES = some.recursive(
    some.none() | some.booleans() | some.integers(-(10**90), 10**90) | some.floats(allow_nan=False) | some.text(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
)


@given(VALUES.filter(lambda value: "Infinity" not in json.dumps(value)))
def test_json_within_the_limits_is_read_as_pythons_module_does(value: Any) -> None:
    written = json.dumps(value)
    assert parse_json(written) == parse_json(written.encode()) == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * (JSON_DEPTH.most + 1) + b"]" * (JSON_DEPTH.most + 1), "levels"),
        (b"[" * 200_000, "levels"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "levels"),
        (b"9" * (JSON_DIGITS.most + 1), "characters"),
        (b"0." + b"1" * JSON_DIGITS.most, "characters"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (b"[1e999]", "too large"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b'["\\ud800"]', "surrogates"),
        (b'["\xed\xa0\x80"]', "utf-8"),
        (b"[" + b"0," * 1_000_000 + b"0]", "values"),
        (b" " * 101, "bytes"),
        (b"", "Expecting value"),
    ],
)
def test_json_beyond_a_limit(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(content, most=100 if words == "bytes" else 1 << 25)


def test_json_of_others_may_have_numbers_that_are_none() -> None:
    found = parse_json(b"[1e999, NaN, -Infinity]", finite=False)
    assert str(found) == "[inf, nan, -inf]"


def test_characters_of_two_escapes_and_a_byte_order_mark() -> None:
    assert parse_json(b'\xef\xbb\xbf"\\ud83d\\ude00"') == "\U0001f600"


def test_of_a_long_file_no_more_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)  # takes no room
    with pytest.raises(ValueError, match="bytes"):
        read_json(tmp_path / "x", most=1000)


class Pin(TypedDict):
    """Some fields."""

    name: Annotated[str, Matching("[a-z]+", "small letters")]
    size: Annotated[int, Between(0, 10)]


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ({"a": [1, 2]}, dict[str, list[int]], ""),
        ({"a": [1, True]}, dict[str, list[int]], r"x\.a\[1\]: a whole number is expected, not True"),
        ({"a": 1}, dict[str, list[int]], r"x\.a: a list is expected"),
        (["a"], str | list[str] | None, ""),
        (None, str | list[str] | None, ""),
        ([1], str | list[str] | None, "x: text is expected"),
        (1, float, ""),
        ("b", Literal["a", "b"], ""),
        ("c", Literal["a", "b"], "one of"),
        ({"name": "a", "size": 3, "later": []}, Pin, ""),
        ({"name": "a"}, Pin, "no 'size'"),
        ({"name": "a\n", "size": 3}, Pin, r"x\.name: small letters is expected"),
        ({"name": "a", "size": 11}, Pin, r"x\.size: a number from 0 to 10"),
        (3, Pin, "an object is expected"),
    ],
)
def test_types(value: Any, hint: Any, words: str) -> None:
    if not words:
        return conform(value, hint, "x")
    with pytest.raises(ValueError, match=words):
        conform(value, hint, "x")
    return None


@pytest.mark.parametrize("error", [OSError("disk"), UserWarning("told")])
def test_the_gate_keeps_errors_of_the_system_and_warnings(error: Exception) -> None:
    with pytest.raises(type(error)), gate("x", "damaged", "fetch it again"):
        raise error
