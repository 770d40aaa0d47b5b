"""The recipe of docs/finetuning.md works as shown, without a network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import vit_hub

pytest.importorskip("peft", reason="pip install 'vit-hub[test]'")

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")


def test_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vit_hub").symlink_to(ROOT / "vit_hub", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HUB_OFFLINE", "1")
    scope: dict[str, object] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(code, "finetuning.md", "exec"), scope)
    assert capsys.readouterr().out.splitlines() == ["10 of 10", "vit_jax []", "True"]
    source, written = (vit_hub.open_checkpoint(name) for name in ("vit-nano-digits", tmp_path / "odd.npz"))
    assert written.format == source.format
    assert written.config == source.config.replace(num_classes=2)
    values = {name: (tensor.read(), source.tensors[name].read()) for name, tensor in written.tensors.items()}
    changed = {name for name, (after, before) in values.items() if not np.array_equal(after, before)}
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight"} <= changed
    assert not changed & {"cls_token", "pos_embed", "blocks.0.norm1.weight"}


def test_links_and_files_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
    for file in re.findall(r"`((?:tests|docs|vit_hub)/[\w./]*)`", TEXT):
        assert (ROOT / file).exists(), file
