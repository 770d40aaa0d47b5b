"""The examples of docs/scale.md run as shown, one after the other, without a network."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from vit_hub.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vit_hub").symlink_to(ROOT / "vit_hub", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("clone")
def test_commands_and_how_to_read_what_they_write(capsys: pytest.CaptureFixture[str]) -> None:
    for line in "".join(blocks("sh")).splitlines():
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(line)[1:])
        assert stopped.value.code == 0, capsys.readouterr().err
    assert "written  10 rows" in capsys.readouterr().out
    exec(compile(blocks("python")[0], "docs/scale.md", "exec"), {})
    assert capsys.readouterr().out == "['id', 'path', 'label', 'width', 'height', 'embedding'] 10\n"


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("library", ["datasets", "daft", "pyspark"])
def test_other_engines(library: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    (code,) = [block for block in blocks("python") if f"import {library}" in block]
    exec(compile(code, "docs/scale.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.endswith("48\n")
