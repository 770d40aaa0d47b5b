"""ViTDet's backbones against transformers' class, in float64, and detectron2's names of the same tensors."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import examples, random_images, randomise, relative_error
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError

EXACT = 1e-10


@st.composite
def models(draw: st.DrawFn, **fixed: Any) -> Any:
    depth, heads = draw(st.integers(1, 4)), draw(st.sampled_from((1, 2)))
    patch, grid = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    config = transformers.VitDetConfig(
        **{
            "hidden_size": 8 * heads,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "mlp_ratio": draw(st.integers(1, 3)),
            "hidden_act": draw(st.sampled_from(("gelu", "gelu_new", "relu"))),
            "layer_norm_eps": draw(st.sampled_from((1e-6, 1e-3))),
            "image_size": grid * patch,
            "pretrain_image_size": patch * draw(st.sampled_from((grid, 1, 3, 4))),
            "patch_size": patch,
            "qkv_bias": draw(st.booleans()),
            "window_size": draw(st.integers(0, 7)),
            "window_block_indices": draw(st.lists(st.integers(0, depth), max_size=3)),
            "use_relative_position_embeddings": draw(st.booleans()),
            **fixed,
        }
    )
    theirs = transformers.VitDetModel(config).double().eval()
    randomise(theirs)
    return theirs


def read(theirs: Any) -> vit_hub.VisionTransformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # positions of the pre-training are resized
        return vit_hub.from_module(theirs)


def tokens(theirs: Any, images: Tensor) -> Tensor:
    return theirs(images).last_hidden_state.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


@examples(60)
@given(theirs=models())
def test_transformers_class_gives_the_same_tokens_and_comes_back(theirs: Any) -> None:
    ours = read(theirs)
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), tokens(theirs, images)) <= EXACT
    back = vit_hub.to_transformers(ours)
    found, wanted = back.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with torch.inference_mode():
        assert relative_error(tokens(back, images), tokens(theirs, images)) <= EXACT


@examples(20)
@given(theirs=models(use_relative_position_embeddings=True), side=st.integers(1, 6))
def test_other_sizes(theirs: Any, side: int) -> None:
    """As the class does, where its positions are those of its images."""
    patch, config = theirs.config.patch_size, theirs.config
    if config.pretrain_image_size != config.image_size:
        return
    ours = read(theirs).set_image_size((side * patch, 4 * patch))
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), tokens(theirs, images)) <= 1e-6


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "pretrain_image_size": 12,
    "patch_size": 4,
    "window_size": 4,
    "window_block_indices": [0, 2],
    "use_relative_position_embeddings": True,
}


def saved(folder: Path, **fields: Any) -> Any:
    theirs = transformers.VitDetModel(transformers.VitDetConfig(**{**SMALL, **fields})).eval()
    randomise(theirs)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.filterwarnings("ignore")
def test_a_folder_comes_back_byte_by_byte(tmp_path: Path) -> None:
    saved(tmp_path / "hf")
    vit_hub.convert(tmp_path / "hf", tmp_path / "model.safetensors")
    vit_hub.convert(tmp_path / "model.safetensors", tmp_path / "back", to="hf")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.VitDetModel.from_pretrained(tmp_path / "back")
    assert again.config.pretrain_image_size == 12


def as_detectron2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = (
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.projection", "patch_embed.proj"),
        (r"encoder\.layer\.", "blocks."),
        (r"\.attention\.", ".attn."),
    )
    found = {}
    for name, value in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[f"backbone.net.{name}"] = value
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pretrained", [12, 24])
def test_detectron2(tmp_path: Path, pretrained: int) -> None:
    theirs = saved(tmp_path / "hf", pretrain_image_size=pretrained)
    state = as_detectron2(theirs.state_dict())
    others = {"backbone.simfp_2.0.weight": torch.ones(3), "proposal_generator.rpn_head.conv.weight": torch.ones(2)}
    torch.save({"model": {**state, **others}, "iteration": 7}, tmp_path / "vitdet.pth")
    options: dict[str, Any] = {"overrides": {"num_heads": 2}}
    ckpt = vit_hub.open_checkpoint(tmp_path / "vitdet.pth", **options)
    assert ckpt.format == "facebook-vitdet"
    assert ckpt.config.windows == vit_hub.open_checkpoint(tmp_path / "hf").config.windows
    assert {f"model/{name}" for name in others} <= ckpt.dropped.keys()
    images = torch.randn(2, 3, 24, 24)
    wanted = tokens(theirs, images)
    torch.testing.assert_close(vit_hub.load(ckpt)(images), wanted, atol=2e-5, rtol=1e-5)
    vit_hub.convert(tmp_path / "vitdet.pth", tmp_path / "canonical.safetensors", keep_rest=True, **options)
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back.pth", to="facebook-vitdet", keep_rest=True)
    back = torch.load(tmp_path / "back.pth")["model"]
    assert back.keys() == {*state, *others}
    assert all(torch.equal(back[name], state[name]) for name in state)
    vit_hub.convert(tmp_path / "vitdet.pth", tmp_path / "out", to="hf", **options)
    again = transformers.VitDetModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(tokens(again, images), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_larger_size_is_written_for_that_size(tmp_path: Path) -> None:
    saved(tmp_path / "hf")
    vit_hub.convert(tmp_path / "hf", tmp_path / "out", to="hf", image_size=32)
    theirs = transformers.VitDetModel.from_pretrained(tmp_path / "out").eval()
    images = torch.randn(1, 3, 32, 32)
    ours = vit_hub.load(tmp_path / "hf", image_size=32)
    torch.testing.assert_close(ours(images), tokens(theirs, images), atol=2e-5, rtol=1e-5)


def test_resized_positions_are_said(tmp_path: Path) -> None:
    saved(tmp_path / "hf")
    with pytest.warns(UserWarning, match="positions of 9 patches are resized to the grid"):
        vit_hub.load(tmp_path / "hf")


def test_convolutions_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "hf", residual_block_indices=[1])
    with pytest.raises(ConfigError, match="residual_block_indices"):
        vit_hub.open_checkpoint(tmp_path / "hf")


def test_a_neck_is_refused() -> None:
    config = vit_hub.ViTConfig(
        image_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=1, class_token=False, pool="none",
        final_norm="none", neck={"chans": 4}, mlp_dim=8,
    )  # fmt: skip
    with pytest.raises((UnsupportedByFormatError, ConfigError)):
        vit_hub.to_transformers(vit_hub.VisionTransformer(config.replace(windows={"size": [2, 3]})))
