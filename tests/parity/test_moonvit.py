"""MoonViT against transformers' class of Kimi K2.5, whose own conversion tells how the original files are meant."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import examples, random_images, randomise, relative_error
from torch import Tensor
from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel

import vit_hub
from vit_hub.errors import ConfigError

SINGLE = 1e-6  # transformers computes rotations in float32


@st.composite
def models(draw: st.DrawFn) -> Any:
    heads, grid = draw(st.sampled_from((1, 2, 3))), draw(st.integers(1, 3))
    config = Kimi_K25VisionConfig(
        hidden_size=heads * draw(st.sampled_from((4, 8, 12))),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 20)),
        hidden_act=draw(st.sampled_from(("gelu_pytorch_tanh", "gelu"))),
        patch_size=draw(st.integers(1, 3)),
        pos_emb_height=2 * grid,
        pos_emb_width=2 * grid,
        rope_parameters={"rope_type": "axial", "rope_theta": draw(st.sampled_from((10_000.0, 100.0)))},
    )
    theirs = Kimi_K25VisionModel(config).double().eval()
    randomise(theirs)
    return theirs


def tokens(theirs: Any, images: Tensor) -> Tensor:
    """Normed tokens [B, N, D], row-major."""
    batch, chans, height, width = images.shape
    p = theirs.config.patch_size
    grid = (height // p, width // p)
    patches = images.reshape(batch, chans, grid[0], p, grid[1], p).permute(0, 2, 4, 1, 3, 5).reshape(-1, chans, p, p)
    with torch.inference_mode():
        found = theirs(patches, torch.tensor([[1, *grid]] * batch)).last_hidden_state
    return found.reshape(batch, grid[0] * grid[1], -1)  # type: ignore[no-any-return]


@examples(30)
@given(theirs=models(), sides=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_transformers_class_at_any_size(theirs: Any, sides: tuple[int, int]) -> None:
    ours = vit_hub.from_module(theirs)
    images = random_images(ours.config, torch.float64)
    assert relative_error(ours.forward_features(images), tokens(theirs, images)) <= SINGLE
    back = vit_hub.to_transformers(ours)
    found, wanted = back.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ours.set_image_size(tuple(2 * side * theirs.config.patch_size for side in sides))
    images = random_images(ours.config, torch.float64)
    assert relative_error(ours.forward_features(images), tokens(theirs, images)) <= SINGLE


_NAMES = (
    (r"^layers\.", "encoder.blocks."),
    (r"\.norm1\.", ".norm0."),
    (r"\.norm2\.", ".norm1."),
    (r"\.mlp\.fc1\.", ".mlp.fc0."),
    (r"\.mlp\.fc2\.", ".mlp.fc1."),
    (r"\.attn\.proj\.", ".wo."),
    (r"^final_layernorm", "encoder.final_layernorm"),
    (r"pos_emb\.position_embeddings", "pos_emb.weight"),
)


def original(theirs: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors under moonshotai's names: queries and keys have the two of a pair side by side."""
    heads, found = theirs.config.num_attention_heads, {}
    state = dict(theirs.state_dict())
    for index in range(theirs.config.num_hidden_layers):
        for end in ("weight", "bias"):
            parts = [state.pop(f"layers.{index}.attn.{part}_proj.{end}") for part in "qkv"]
            turned = [part.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) for part in parts[:2]]
            found[f"{prefix}encoder.blocks.{index}.wqkv.{end}"] = torch.cat((*turned, parts[2])).contiguous()
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        found[prefix + name] = value
    return found


TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "patch_size": 4,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
}


def tiny() -> Any:
    theirs = Kimi_K25VisionModel(Kimi_K25VisionConfig(**TINY)).eval()
    randomise(theirs)
    return theirs


OWN = {
    "model_type": "moonvit",
    "architectures": ["MoonVitPretrainedModel"],
    "init_pos_emb_height": 4,
    "init_pos_emb_width": 4,
    **TINY,
}
K25 = {f"vt_{name}": value for name, value in TINY.items() if name[:3] in ("hid", "num", "int")}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "moonvit": ("", OWN),
    "kimi_vl": ("vision_tower.", {"model_type": "kimi_vl", "vision_config": OWN}),
    "kimi_k25": ("vision_tower.", {"model_type": "kimi_k25", "vision_config": {**K25, "patch_size": 4}}),
    "kimi_k25 of transformers": (
        "vision_tower.",
        {"model_type": "kimi_k25", "vision_config": {"model_type": "kimi_k25_vision", **TINY}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_moonshotais_own_files(tmp_path: Path, case: str) -> None:
    prefix, config = CASES[case]
    theirs, folder = tiny(), tmp_path / "model"
    folder.mkdir()
    state = original(theirs, prefix)
    others = {"multi_modal_projector.pre_norm.weight": torch.ones(3), "language_model.model.norm.weight": torch.ones(2)}
    others = others if prefix else {}
    save_file({**state, **others}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    ours = vit_hub.load(folder)
    assert ours.config.num_heads == 3
    images = random_images(ours.config)
    torch.testing.assert_close(ours.forward_features(images), tokens(theirs, images), atol=2e-5, rtol=1e-5)
    report = vit_hub.convert(folder, tmp_path / "middle.safetensors", keep_rest=True)
    assert report.dropped.keys() == others.keys()
    vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "back", to="hf", keep_rest=True)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == {*state, *others}
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


def test_a_folder_of_transformers_class_comes_back(tmp_path: Path) -> None:
    theirs = tiny()
    theirs.save_pretrained(tmp_path / "hf")
    ours = vit_hub.load(tmp_path / "hf")
    ours.passport, ours.carried = None, {}
    vit_hub.convert(ours.save(tmp_path / "bare.safetensors"), tmp_path / "back", to="hf")
    again = Kimi_K25VisionModel.from_pretrained(tmp_path / "back").eval()
    images = random_images(ours.config)
    torch.testing.assert_close(tokens(again, images), tokens(theirs, images))


def test_turns_need_pairs_of_one_angle() -> None:
    with pytest.raises(ConfigError, match="turns"):
        vit_hub.ViTConfig(rope={"axes": "turns", "pairs": "tiled"})
