"""A config.json for transformers has every key that transformers itself writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
import transformers_defaults
from small_models import randomise

import vit_hub

NAMES = ["tabby cat", "dog, puppy", "émigré", "zèbre/zebra", "cup"]
HF_SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip

# Classes of transformers whose files are written, with the fields of a small model of each.
_TOWER = {**HF_SMALL, "num_channels": 3}
_RATIO = {key: value for key, value in HF_SMALL.items() if key != "intermediate_size"}
WRITTEN: dict[str, dict[str, Any]] = {
    "ViTModel": HF_SMALL,
    "ViTForImageClassification": HF_SMALL,
    "DeiTModel": HF_SMALL,
    "DeiTForImageClassification": HF_SMALL,
    "DeiTForImageClassificationWithTeacher": HF_SMALL,
    "ViTMAEModel": HF_SMALL,
    "ViTMSNModel": HF_SMALL,
    "ViTMSNForImageClassification": HF_SMALL,
    "IJepaModel": HF_SMALL,
    "IJepaForImageClassification": HF_SMALL,
    "Dinov2Model": _RATIO,
    "Dinov2ForImageClassification": _RATIO,
    "Dinov2WithRegistersModel": _RATIO,
    "Dinov2WithRegistersForImageClassification": _RATIO,
    "DINOv3ViTModel": HF_SMALL,
    "BeitModel": HF_SMALL,
    "BeitForImageClassification": {**HF_SMALL, "use_relative_position_bias": True},
    "BeitBackbone": HF_SMALL,
    "Data2VecVisionModel": HF_SMALL,
    "Data2VecVisionForImageClassification": HF_SMALL,
    "CLIPVisionModel": HF_SMALL,
    "CLIPVisionModelWithProjection": {**HF_SMALL, "projection_dim": 8},
    "CLIPForImageClassification": {"vision_config": _TOWER, "num_labels": 5},
    "SiglipVisionModel": HF_SMALL,
    "SiglipForImageClassification": {"vision_config": _TOWER, "num_labels": 5},
    "Siglip2VisionModel": {**{key: value for key, value in HF_SMALL.items() if key != "image_size"}, "num_patches": 4},
}
_IGNORED = {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}


def all_keys(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key of a config, nested ones joined by dots."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            found |= all_keys(value, f"{prefix}{key}.")
        elif key not in _IGNORED:
            found[prefix + key] = value
    return found


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_key_that_save_pretrained_writes(kind: str, tmp_path: Path) -> None:
    cls = getattr(transformers, kind)
    fields = WRITTEN[kind]
    if "ForImage" in kind:
        fields = {**fields, "id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    model = cls(cls.config_class(**fields))
    randomise(model)
    model.save_pretrained(tmp_path / "source")
    file = vit_hub.convert(tmp_path / "source", tmp_path / "canonical.safetensors").path
    # Written anew, without the source's own config.json.
    loaded = vit_hub.load(file)
    loaded.passport = None
    bare = loaded.save(tmp_path / "bare.safetensors")
    for source in (file, bare):
        report = vit_hub.convert(source, tmp_path / f"{source.stem}_hf", to="hf")
        ours = json.loads((report.path / "config.json").read_text())
        written = getattr(transformers, ours["architectures"][0])
        written.from_pretrained(report.path).save_pretrained(tmp_path / f"{source.stem}_again")
        theirs = json.loads((tmp_path / f"{source.stem}_again" / "config.json").read_text())
        found, wanted = all_keys(ours), all_keys(theirs)
        assert {key: found.get(key, "missing") for key in wanted} == wanted


def test_fewer_blocks_have_fewer_stages(tmp_path: Path) -> None:
    model = transformers.Dinov2Model(transformers.Dinov2Config(**_RATIO))
    model.save_pretrained(tmp_path / "source")
    ours = vit_hub.load(tmp_path / "source")
    ours.blocks = ours.blocks[:1]
    path = vit_hub.convert(ours.save(tmp_path / "cut.safetensors"), tmp_path / "hf", to="hf").path
    config = json.loads((path / "config.json").read_text())
    assert (config["stage_names"], config["out_features"], config["out_indices"]) == (
        ["stem", "stage1"],
        ["stage1"],
        [1],
    )
    assert transformers.Dinov2Model.from_pretrained(path).config.num_hidden_layers == 1


def test_the_defaults_are_those_of_the_installed_transformers() -> None:
    recorded = json.loads(transformers_defaults.FILE.read_text())
    if recorded["transformers"] != transformers.__version__:
        pytest.skip(f"they are of transformers {recorded['transformers']}")
    assert transformers_defaults.FILE.read_text() == transformers_defaults.text()
