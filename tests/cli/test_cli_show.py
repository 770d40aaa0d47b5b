"""``vit-hub show`` as users meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

import vit_hub
from vit_hub.cli import cmd_show
from vit_hub.pictures import KINDS

Run = Callable[..., Result]
SEVEN = Path(vit_hub.__file__).parent / "data" / "digits" / "7.png"
NAME = "vit-nano-digits"


def test_all_kinds_are_offered() -> None:
    assert list(cmd_show.KINDS) == list(KINDS)
    lines = cmd_show._EPILOG.partition("Examples")[0]
    assert [line.split()[0] for line in lines.splitlines()[2:] if line.startswith("  ")] == list(KINDS)


def test_one_page_of_all_pictures(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "digits.html"
    result = run("show", NAME, SEVEN, "-o", out)
    assert result.exit_code == 0, result.output
    assert "Most probable: 7 (91%)" in result.stdout
    assert "left out: rope: the model has no rotary positions" in result.stderr
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_chosen_pictures_in_a_folder(answer: Callable[..., Any], tmp_path: Path) -> None:
    found = answer("show", NAME, "-o", tmp_path / "out", "--what", "filters,rope", "--what", "positions")
    assert [item["kind"] for item in found["pictures"]] == ["filters", "positions"]
    assert [Path(item["path"]) for item in found["pictures"]] == [
        tmp_path / "out" / "filters.png",
        tmp_path / "out" / "positions.png",
    ]
    assert found["left_out"] == {"rope": "the model has no rotary positions"}
    assert Image.open(tmp_path / "out" / "filters.png").width == 1200


def test_what_is_there_is_not_replaced_without_being_told(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    out.write_text("mine")
    result = run("show", NAME, "-o", out, "--what", "filters")
    assert (result.exit_code, out.read_text()) == (1, "mine")
    assert "--force" in result.stderr
    assert run("show", NAME, "-o", out, "--what", "filters", "--force", "-q").stdout.strip() == str(out)
    assert Image.open(out).format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-o", "a.png", "--what", "rolout"), 2, "there is no picture 'rolout'"),
        (("-o", "a.pdf"), 1, "end it with .png or .html"),
        (("-o", "a.png", "--what", "rope"), 1, "the model has no rotary positions"),
        (("-o", "a.png", "--what", "rollout"), 1, "no image is given"),
        (("-o", "a.png", "missing.png"), 1, "missing.png"),
    ],
)
def test_errors_say_what_to_do(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("show", NAME, *arguments)
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
