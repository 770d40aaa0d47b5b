"""Files of CLIP's image tower alone, whose names lack ``visual.``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import CASES, native_tensors
from safetensors.torch import save_file

import vit_hub

WHOLE = next(case for case in CASES if case.name == "openclip_gelu")


@pytest.mark.filterwarnings("ignore:.*have the same tensor names")
def test_the_tower_alone_is_the_same_model_and_comes_back(tmp_path: Path) -> None:
    state = torch.load(WHOLE.checkpoint, weights_only=True)
    tower = {name.removeprefix("visual."): item for name, item in state.items() if name.startswith("visual.")}
    save_file(tower, tmp_path / "tower.safetensors")
    alone = vit_hub.open_checkpoint(tmp_path / "tower.safetensors", overrides=WHOLE.overrides)
    assert alone.format == vit_hub.open_checkpoint(WHOLE.checkpoint, overrides=WHOLE.overrides).format == "open_clip"
    assert any("openai_clip" in warning for warning in alone.warnings)
    one, other = (vit_hub.load(source, overrides=WHOLE.overrides) for source in (WHOLE.checkpoint, alone.path))
    with torch.inference_mode():
        assert torch.equal(one(WHOLE.images()), other(WHOLE.images()))
    other.save(tmp_path / "ours.safetensors")
    report = vit_hub.convert(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", to=alone.format)
    assert native_tensors(report.path) == native_tensors(alone.path)
