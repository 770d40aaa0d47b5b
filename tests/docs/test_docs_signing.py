"""The commands of docs/signing.md work as shown, one after the other, without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "signing.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("bash")), reason="the document uses both")
def test_commands(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, module in {"vit-hub": "vit_hub", "model_signing": "model_signing"}.items():
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        command.chmod(0o755)
    variables = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "VIT_HUB_CACHE": str(tmp_path / "cache"),
        "VIT_HUB_OFFLINE": "1",
    }
    work = tmp_path / "work"
    work.mkdir()
    script = "".join(blocks("sh"))
    done = subprocess.run(["bash", "-ec", script], cwd=work, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CN=Alice" in done.stdout
    [code] = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("('config.json', 'model.safetensors') ()\n")


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
