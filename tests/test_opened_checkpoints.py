"""load, convert and compare take what open_checkpoint opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vit_hub


@pytest.fixture
def opened() -> Any:
    return vit_hub.open_checkpoint("vit-nano-digits")


def test_it_is_given_back_as_it_is(opened: Any) -> None:
    assert vit_hub.open_checkpoint(opened) is opened


def test_it_loads_as_its_name_does(opened: Any) -> None:
    images = torch.rand(2, 1, 48, 48)
    model, named = (vit_hub.load(source, image_size=48) for source in (opened, "vit-nano-digits"))
    assert model.config == named.config
    with torch.inference_mode():
        assert torch.equal(model(images), named(images))
    assert vit_hub.class_names(model) == vit_hub.class_names(named)


def test_it_converts_as_its_name_does(opened: Any, tmp_path: Path) -> None:
    reports = [
        vit_hub.convert(source, tmp_path / str(number), to="hf")
        for number, source in enumerate((opened, "vit-nano-digits"))
    ]
    files = [{file.name: file.read_bytes() for file in sorted(report.path.iterdir())} for report in reports]
    assert files[0] == files[1]
    assert not any(report.lossy for report in reports)


def test_it_compares_with_anything(opened: Any, tmp_path: Path) -> None:
    written = vit_hub.convert(opened, tmp_path / "digits.safetensors").path
    found = vit_hub.compare(opened, written)
    assert found.same_weights
    assert found.same_numbers
    assert vit_hub.compare(written, opened).same_weights


@pytest.mark.parametrize("late", [{"format": "vit_jax"}, {"overrides": {"num_heads": 2}}, {"revision": "main"}])
def test_what_opening_decides_comes_too_late(opened: Any, late: dict[str, Any]) -> None:
    for call in (vit_hub.load, vit_hub.open_checkpoint):
        with pytest.raises(vit_hub.ConfigError, match=f"{next(iter(late))}= is for opening"):
            call(opened, **late)


def test_a_lossy_conversion_says_so_in_the_report(tmp_path: Path) -> None:
    config = vit_hub.ViTConfig(
        image_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1, mlp_dim=64, num_classes=2, num_registers=2
    )
    source = vit_hub.VisionTransformer(config).save(tmp_path / "registers.safetensors")
    with pytest.raises(vit_hub.UnsupportedByFormatError):
        vit_hub.convert(source, tmp_path / "out.npz", to="vit_jax")
    report = vit_hub.convert(source, tmp_path / "out.npz", to="vit_jax", lossy=True)
    assert report.lossy
    assert report.dropped["reg_token"] == "vit_jax has no place for it"
    assert any("outputs on a random image differ" in message for message in report.warnings)
