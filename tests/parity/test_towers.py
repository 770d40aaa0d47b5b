"""Image encoders inside of larger models of transformers: found by config and prefix, run as their own classes run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import randomise

import vit_hub
from vit_hub.errors import CheckpointError

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
# Class of the encoder, what stands before its names in the larger model, where its config is, further settings.
TOWERS = {
    "llava": ("CLIPVisionModel", "vision_tower.", "vision_config", {}),
    "llava of transformers 4": ("CLIPVisionModel", "vision_tower.vision_model.", "vision_config", {}),
    "video_llava": ("CLIPVisionModel", "image_tower.", "vision_config", {}),
    "clipseg": ("CLIPSegVisionModel", "clip.", "vision_config", {}),
    "chinese_clip": ("ChineseCLIPVisionModel", "vision_model.", "vision_config", {}),
    "owlv2": ("Owlv2VisionModel", "owlv2.", "vision_config", {}),
    "instructblip": ("InstructBlipVisionModel", "vision_model.", "vision_config", {}),
    "paligemma": ("SiglipVisionModel", "vision_tower.", "vision_config", {"vision_use_head": False}),
    "cohere2_vision": ("SiglipVisionModel", "model.vision_tower.", "vision_config", {"vision_use_head": False}),
    "shieldgemma2": ("SiglipVisionModel", "model.model.vision_tower.", "vision_config", {"vision_use_head": False}),
    "trocr": ("ViTModel", "encoder.", "encoder", {}),
    "dpt": ("ViTModel", "dpt.", "", {}),
    "prompt_depth_anything": ("Dinov2Model", "backbone.", "backbone_config", {"mlp_ratio": 2}),
}


def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def written(name: str, folder: Path) -> Any:
    """Write an encoder as it stands in a larger model, with other modules beside it, and return it."""
    kind, prefix, where, options = TOWERS[name]
    architecture = getattr(transformers, kind)
    model = randomise_of(architecture(architecture.config_class(**SIZES, **options)))
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    wanted = prefix.removesuffix("vision_model.") if name == "clipseg" else prefix
    if wanted.endswith("vision_model."):
        tensors = {key.removeprefix("vision_model."): value for key, value in tensors.items()}
    tensors = {wanted + key: value for key, value in tensors.items()}
    extra = {
        "language_model.model.norm.weight": torch.ones(4),
        "multi_modal_projector.linear_1.weight": torch.ones(4, 4),
    }
    save_file({**tensors, **extra}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("architectures", None)
    whole = {"model_type": name.split()[0], where: config, "text_config": {"model_type": "llama", "hidden_size": 4}}
    (folder / "config.json").write_text(json.dumps(whole if where else {**config, "model_type": name}))
    return model


def randomise_of(model: Any) -> Any:
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("name", TOWERS)
def test_the_encoder_of_a_larger_model_is_found_and_gives_its_own_outputs(name: str, tmp_path: Path) -> None:
    theirs = written(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = vit_hub.load(tmp_path)
    with torch.no_grad():
        wanted, found = theirs(pixel_values=images()), ours(images())
        tokens = ours.forward_features(images())
    pooled = getattr(wanted, "pooler_output", None)
    if ours.config.pool == "none" or pooled is None:
        assert torch.allclose(tokens, wanted.last_hidden_state, atol=1e-5)
    else:
        assert torch.allclose(found, pooled, atol=1e-5)
    report = vit_hub.convert(tmp_path, tmp_path / "c.safetensors")
    assert report.dropped.keys() == {"language_model.model.norm.weight", "multi_modal_projector.linear_1.weight"}


def test_a_model_type_that_is_not_known_is_said(tmp_path: Path) -> None:
    written("llava", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["model_type"] = "some_vision_model"
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = vit_hub.open_checkpoint(tmp_path)
    assert any("some_vision_model" in text for text in opened.warnings)


@pytest.mark.parametrize("name", ["idefics2", "idefics3", "smolvlm"])
def test_the_type_of_the_whole_model_is_that_of_its_encoder_in_older_files(name: str, tmp_path: Path) -> None:
    written("paligemma", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] |= {"model_type": name}
    del config["vision_config"]["layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": name}))
    [warning] = vit_hub.open_checkpoint(tmp_path).warnings
    assert "has no layer_norm_eps: " in warning
    assert warning.endswith("default 1e-06 is used")


def test_a_config_of_the_language_model_alone_says_nothing_of_the_encoder(tmp_path: Path) -> None:
    theirs = written("llava", tmp_path)
    language = {"model_type": "phi3_v", "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 32}
    (tmp_path / "config.json").write_text(json.dumps({**language, "hidden_act": "silu", "rms_norm_eps": 1e-5}))
    ckpt = vit_hub.open_checkpoint(tmp_path, overrides={"num_heads": 3})
    assert "has no part for its image encoder" in " ".join(ckpt.warnings)
    with torch.no_grad():
        assert torch.allclose(vit_hub.load(ckpt)(images()), theirs(images()).pooler_output, atol=1e-5)


def test_a_tower_written_as_a_folder_loads_in_transformers(tmp_path: Path) -> None:
    theirs = written("prompt_depth_anything", tmp_path)
    report = vit_hub.convert(tmp_path, tmp_path / "out", to="hf")
    again, missing = transformers.AutoModel.from_pretrained(report.path, output_loading_info=True)
    assert not missing["missing_keys"]
    with torch.no_grad():
        assert torch.allclose(again.eval()(images()).last_hidden_state, theirs(images()).last_hidden_state, atol=1e-6)
    back = vit_hub.convert(tmp_path, tmp_path / "back.safetensors", to="hf")
    assert set(load_file(back.path)) == {key for key in load_file(tmp_path / "model.safetensors") if "backbone" in key}


def in_shards(folder: Path) -> tuple[list[str], list[str]]:
    """Divide a folder's file into shards with and without tensors of the encoder, and return the names of both."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    others = sorted(name for name in tensors if name.startswith(("language_model.", "multi_modal_projector.")))
    others += [name for name in BEYOND if name not in tensors]
    tensors |= {name: torch.ones(2) for name in others if name not in tensors}
    names = [name for name in tensors if name not in others]
    groups = [group[start : start + 3] for group in (others, names) for start in range(0, len(group), 3)]
    shards = {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}
    for file, group in shards.items():
        save_file({name: tensors[name] for name in group}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, group in shards.items() for name in group}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [f for f, group in shards.items() if group[0] in names], [
        f for f, group in shards.items() if group[0] in others
    ]


BEYOND = (
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.layers.0.mlp.gate_proj.weight",
    "language_model.model.layers.1.input_layernorm.weight",
    "language_model.lm_head.weight",
)


@pytest.mark.parametrize("name", TOWERS)
def test_only_the_shards_with_the_encoder_are_opened(name: str, tmp_path: Path) -> None:
    written(name, tmp_path)
    whole = vit_hub.open_checkpoint(tmp_path)
    needed, others = in_shards(tmp_path)
    kept = vit_hub.convert(tmp_path, tmp_path / "kept" / "all.safetensors", keep_rest=True)
    rest = load_file(tmp_path / "kept" / "all.safetensors.rest.safetensors")
    assert rest.keys() == kept.dropped.keys() >= {*BEYOND, *whole.dropped}
    for file in others:
        (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match="missing, and the tensors to keep are in it"):
        vit_hub.convert(tmp_path, tmp_path / "lost.safetensors", keep_rest=True)
    assert not (tmp_path / "lost.safetensors").exists()
    opened = vit_hub.open_checkpoint(tmp_path)
    assert (opened.config, opened.format) == (whole.config, whole.format)
    assert {file.name for file in opened.source.files} == set(needed)
    assert opened.dropped == kept.dropped
    (tmp_path / needed[0]).unlink()
    with pytest.raises(CheckpointError, match=f"{needed[0]} that it names is missing"):
        vit_hub.open_checkpoint(tmp_path)
