"""The examples of docs/scale.md run as shown, one after the other, without a network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vit_hub.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vit_hub").symlink_to(ROOT / "vit_hub", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    printed = []
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(code, "docs/scale.md", "exec"), {})
        else:
            for line in code.splitlines():
                with pytest.raises(SystemExit) as stopped:
                    main(shlex.split(line)[1:])
                assert stopped.value.code == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    assert "written  10 rows" in printed[0]
    assert printed[1] == "['id', 'path', 'label', 'width', 'height', 'embedding'] 10\n"
    assert printed[2].endswith("48\n")
