from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import vit_hub

Run = Callable[..., Result]
NAME = "vit-nano-digits"
DIGITS = Path(vit_hub.__file__).parent / "data" / "digits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten digits in their folders, a seven among the ones."""
    for image in DIGITS.glob("*.png"):
        (tmp_path / "val" / image.stem).mkdir(parents=True)
        shutil.copy(image, tmp_path / "val" / image.stem)
    shutil.copy(DIGITS / "7.png", tmp_path / "val" / "1" / "seven.png")
    return tmp_path / "val"


def test_accuracy(run: Run, answer: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    data = answer("eval", NAME, folder)
    assert (data["images"], data["errors"]) == (11, 0)
    assert data["top1"] == pytest.approx(10 / 11)
    assert 10 / 11 <= data["top5"] <= 1
    low, high = data["interval"]
    assert low < data["top1"] < high
    assert data["published"] == 0.9944
    assert data["within"] is False or low <= 0.9944 <= high
    one = data["classes"][1]
    assert one == {"label": "1", "index": 1, "name": "1", "images": 2, "top1": 0.5}
    result = run("eval", NAME, folder, "--per-class", "--confusion", tmp_path / "confusion.csv")
    assert result.exit_code == 0
    assert "top-1      90.91% (95 % interval 62.26% to 98.38%)" in result.stdout
    assert "published  99.44%, outside the interval (accuracy on held-out digits" in result.stdout
    assert ["1", "1", "1", "2", "50.00%"] in [line.split() for line in result.stdout.splitlines()]
    header, *rows = csv.reader((tmp_path / "confusion.csv").read_text().splitlines())
    assert header == ["label", *map(str, range(10))]
    assert rows[1] == ["1", "0", "1", "0", "0", "0", "0", "0", "1", "0", "0"]
    assert run("eval", NAME, folder, "-q").stdout == "0.9091\n"


def test_errors(run: Run, folder: Path) -> None:
    (folder / "3" / "broken.png").write_bytes(b"")
    result = run("eval", NAME, folder)
    assert result.exit_code == 1
    assert "1 images could not be read" in result.stdout
    assert run("eval", NAME, folder, "--skip-errors").exit_code == 0
    (folder / "3").rename(folder / "three")
    result = run("eval", NAME, folder)
    assert result.exit_code == 1
    assert "1 of 10 labels are no class of the model, such as 'three'" in result.stderr
    assert "--mapping" in result.stderr
