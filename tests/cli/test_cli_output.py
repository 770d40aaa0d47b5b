from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_hub.cli.output import Output, amount, count_of, plain

WORDS = st.text("abcdefgh", min_size=1, max_size=30)
TABLES = st.integers(1, 5).flatmap(
    lambda columns: st.lists(st.lists(WORDS, min_size=columns, max_size=columns), min_size=1, max_size=6)
)


def lines(table: list[str]) -> list[str]:
    return [click.unstyle(line) for line in table]


@given(TABLES)
def test_a_piped_table_is_whole_and_aligned(table: list[list[str]]) -> None:
    header, *rows = table
    printed = lines(Output().table(header, rows))
    assert [line.split() for line in printed] == table
    start = 0
    for column in zip(*table, strict=True):
        assert all(line[start:].startswith(cell) for line, cell in zip(printed, column, strict=True))
        start += max(map(len, column)) + 2


@given(TABLES, st.integers(12, 100))
def test_a_table_on_a_terminal_fits(table: list[list[str]], width: int) -> None:
    header, *rows = table
    with mock.patch.object(Output, "width", width):
        printed = lines(Output().table(header, rows))
    assert max(map(len, printed)) <= width
    # The column that names the rows is the last to be cut.
    if max(len(row[0]) for row in table) <= width:
        assert [line.split()[0] for line in printed] == [row[0] for row in table]


def test_long_values_continue_below_themselves_on_a_terminal_only() -> None:
    pairs = [("names", " ".join(["name"] * 20)), ("x", "1")]
    assert len(Output().fields(pairs)) == 2
    with mock.patch.object(Output, "width", 40):
        printed = Output().fields(pairs)
    assert len(printed) > 2
    assert max(map(len, printed)) <= 40
    assert printed[1].startswith(" " * 9 + "name")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (86_567_656, "86.6M"), (999_499, "999k"), (9_995_000, "10.0M")],
)
def test_amounts_have_three_digits(number: int, text: str) -> None:
    assert amount(number) == text


@given(st.integers(0, 10**15))
def test_amounts_are_near(number: int) -> None:
    text = amount(number)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    value = float(text.rstrip("kMGT")) * scale.get(text[-1], 1)
    assert value == pytest.approx(number, rel=0.006)


def test_units_and_counts() -> None:
    assert amount(35_127_656_448, "FLOP") == "35.1 GFLOP"
    assert (count_of(1, "tensor"), count_of(2000, "tensor")) == ("1 tensor", "2,000 tensors")


def test_documents_are_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Record:
        path: Path
        numbers: tuple[float, ...]

    Output().document({"record": Record(Path("a"), (1.0, float("nan"), float("inf"))), "odd": "\udcff"})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["record"] == {"path": "a", "numbers": [1.0, None, None]}
    assert plain(None) is None


def test_a_closed_stdout_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert Output().width is None
    Output().lines(["nobody reads it"])


def test_quiet_and_json_have_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with mock.patch.object(Output, "width", 80):
        Output(quiet=True).note("a")
        Output(json=True).note("b")
        Output().note("c")
    Output().note("d")
    assert stderr.getvalue() == "c\n"
