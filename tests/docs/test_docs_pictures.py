"""docs/pictures.md explains every kind of picture, and its recipe works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vit_hub.pictures import KINDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "pictures.md").read_text(encoding="utf-8")


def test_every_kind_is_explained_with_its_papers() -> None:
    sections = dict(re.findall(r"^### `(\w+)`: (.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(KINDS)
    for name, kind in KINDS.items():
        for _, address in kind.papers[:1]:
            assert address in sections[name] or name == "relative"


def test_pictures_are_there_and_small() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert all(link.startswith("https://") or (DOCS / link).exists() for link in links)
    files = list((DOCS / "pictures").rglob("*.png"))
    assert {file.parent.name for file in files} == {"cifar10", "digits", "dinov2"}
    assert {file.stem for file in files} <= set(KINDS)
    assert sum(file.stat().st_size for file in files) < 2_500_000


def test_the_recipe_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vit_hub").symlink_to(DOCS.parent / "vit_hub", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    exec(compile(code, "pictures.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "(16, 1, 4, 4) 0.192"
    assert (tmp_path / "digits.html").exists()
