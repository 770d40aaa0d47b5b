from __future__ import annotations

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
def out(tmp_path: Path) -> Path:
    """Embeddings of each digit twice."""
    for image in DIGITS.glob("*.png"):
        for name in "ab":
            (tmp_path / "images" / image.stem).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, tmp_path / "images" / image.stem / f"{name}.png")
    vit_hub.embed(NAME, tmp_path / "images", tmp_path / "out")
    return tmp_path / "out"


def test_search(run: Run, answer: Callable[..., Any], out: Path) -> None:
    data = answer("search", out, DIGITS / "7.png", "--k", 3)
    assert [each["path"] for each in data["neighbours"][:2]] == ["7/a.png", "7/b.png"]
    assert data["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(data["neighbours"]) == 3
    lines = run("search", out, DIGITS / "7.png", "--k", 2).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["similarity", "path", "label"], ["1.0000", "7/a.png", "7"], ["1.0000", "7/b.png", "7"]
    ]  # fmt: skip
    assert run("search", out, DIGITS / "7.png", "-q", "--k", 1).stdout == "7/a.png\t1.0000\n"


def test_accuracy_of_embeddings(run: Run, answer: Callable[..., Any], out: Path) -> None:
    data = answer("knn", out, "--k", 1)
    assert (data["top1"], data["images"], data["k"], data["test"]) == (1.0, 20, 1, None)
    result = run("knn", out, "--k", 1)
    assert "images  20, by 20 others of 10 labels" in result.stdout
    assert "top-1   100.00% (95 % interval 83.89% to 100.00%)" in result.stdout
    assert answer("probe", out, "--test", out)["top1"] == 1.0
    assert run("probe", out, "--test", out, "-q").stdout == "1.0000\n"
    assert run("knn", out, "--k", 99).exit_code == 1
