"""The recipes of docs/resolution.md work as shown, and resizing keeps a real model working."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import digits_resolution
import pytest
import torch

import vit_hub
from vit_hub.cli import main
from vit_hub.model.config import RESIZE_METHODS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "resolution.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vit_hub").symlink_to(ROOT / "vit_hub", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HUB_OFFLINE", "1")
    return tmp_path


def test_python_blocks(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, "resolution.md", "exec"), scope)
    assert capsys.readouterr().out.splitlines() == [
        "(1, 1, 32, 32) 7",
        "(1, 1, 48, 48) 7",
        "(1, 1, 40, 64) 7",
        "(2, 10)",
        "(45, 45) (48, 48)",
        "image_size=(45, 45) is not a whole number of patches of (4, 4) pixels "
        "(nearest sizes that are: (44, 44) and (48, 48); or pad=True in vit_hub.load)",
        "(28, 36) (1, 10)",
    ]


def test_commands(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in "".join(blocks("sh")).splitlines():
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(line)[1:])
        assert stopped.value.code == 0, capsys.readouterr().err
    assert vit_hub.load(clone / "digits48").config.grid_size == (12, 12)


def test_every_method_is_explained_and_every_link_leads_somewhere() -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", TEXT, re.MULTILINE) == list(RESIZE_METHODS)
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize(("size", "least"), [(24, 0.94), (48, 0.96)])
def test_a_trained_model_still_reads_digits_at_other_sizes(size: int, least: float) -> None:
    images, classes = digits_resolution.held_out()

    def accuracy(model: vit_hub.VisionTransformer) -> float:
        with torch.inference_mode():
            return float((model(vit_hub.preprocess(model)(images)).argmax(dim=1).numpy() == classes).mean())

    cells = re.search(rf"^\| {size} \| .*$", TEXT, re.MULTILINE)
    assert cells is not None
    documented = [float(cell) for cell in cells[0].split("|")[3:-1]]
    for method, percent in [*zip(digits_resolution.METHODS, documented, strict=False)][::3]:
        found = accuracy(vit_hub.load(digits_resolution.NAME, image_size=size, resize=method))
        assert found >= least, method
        # Another processor may round an image to the other side.
        assert 100 * found == pytest.approx(percent, abs=0.6), method
    assert accuracy(digits_resolution.shuffled(vit_hub.load(digits_resolution.NAME, image_size=size))) < 0.5


def test_the_picture_shows_each_patch_nearest_to_itself_and_says_how_many_neighbours_follow() -> None:
    model = vit_hub.load(digits_resolution.NAME)
    (picture,) = vit_hub.pictures.show(model, what="resize").pictures
    for share, size in re.findall(r"(\d+)% at (\d+)x\2", picture.title):
        (table,) = vit_hub.pictures.resized_tables(model, [(int(size) // 4, int(size) // 4)])
        rows, columns = table.similarity.shape[:2]
        nearest = 0
        for row in range(rows):
            for column in range(columns):
                small = table.similarity[row, column].copy()
                assert small[row, column] == small.max() == pytest.approx(1)
                small[row, column] = -1
                y, x = divmod(int(small.argmax()), columns)
                nearest += max(abs(y - row), abs(x - column)) == 1
        assert f"{nearest / (rows * columns):.0%}" == f"{share}%"
    assert [int(size) for size in re.findall(r"at (\d+)x", picture.title)] == [24, 32, 48]
    assert picture.title in " ".join(TEXT.split())
