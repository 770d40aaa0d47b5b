"""Dropout and stochastic depth: in training as in timm, draw by draw; in evaluation and in files not at all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from small_models import configs, examples, grid_configs, random_images, random_model, randomise, raw
from timm.layers import DropPath
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

import vit_hub
from vit_hub.model.config import ViTConfig

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32, "num_classes": 5,
}  # fmt: skip
TIMM: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 5,
}  # fmt: skip
RATES = {"drop_rate": 0.2, "attn_drop_rate": 0.3, "drop_path_rate": 0.4}
EVA = {"use_abs_pos_emb": True, "qkv_fused": True, "use_rot_pos_emb": True, "dynamic_img_size": False}
PEERS: dict[str, Any] = {
    "plain": (TimmVisionTransformer, {}),
    "registers and scale": (TimmVisionTransformer, {"reg_tokens": 2, "init_values": 0.1, "pre_norm": True}),
    "pooled by attention": (TimmVisionTransformer, {"global_pool": "map"}),
    "gated, relative to nothing": (Eva, {**EVA, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}),
    "one tensor of gates": (Eva, {**EVA, "swiglu_mlp": False, "init_values": 0.1}),
}


def pair(name: str, **rates: float) -> tuple[vit_hub.VisionTransformer, nn.Module]:
    """A model of this library and timm's with the same weights and rates, both in training."""
    cls, arguments = PEERS[name]
    drop = rates.get("drop_rate", 0.0)
    theirs = cls(
        **TIMM | arguments,
        pos_drop_rate=drop,
        proj_drop_rate=drop,
        attn_drop_rate=rates.get("attn_drop_rate", 0.0),
        drop_path_rate=rates.get("drop_path_rate", 0.0),
    )
    randomise(theirs)
    plain = vit_hub.from_module(theirs.eval())
    ours = vit_hub.VisionTransformer(plain.config, **rates)
    ours.load_state_dict(plain.state_dict())
    return ours.train(), theirs.train()


@pytest.mark.parametrize("rates", [{name: rate} for name, rate in RATES.items()] + [RATES], ids=[*RATES, "all"])
@pytest.mark.parametrize("name", PEERS)
def test_training_draws_what_timm_draws(name: str, rates: dict[str, float]) -> None:
    ours, theirs = pair(name, **rates)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    evaluated = copy.deepcopy(ours).eval().forward_features(images)
    for seed in range(3):
        torch.manual_seed(seed)
        wanted = theirs.forward_features(images)
        torch.manual_seed(seed)
        found = ours.forward_features(images)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, evaluated, rtol=1e-2, atol=1e-2)


def test_stochastic_depth_alone_draws_as_timm_where_less_is_computed() -> None:
    ours, theirs = pair("plain", drop_path_rate=0.5)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    wanted = theirs(images)
    torch.manual_seed(1)
    torch.testing.assert_close(ours(images), wanted, rtol=1e-4, atol=1e-5)


def test_the_rates_stand_where_timm_has_them() -> None:
    ours, theirs = pair("plain", **RATES)
    for name, layer in theirs.named_modules():
        if isinstance(layer, nn.Dropout) and layer.p:
            assert ours.get_submodule(name).p == layer.p, name
        elif isinstance(layer, DropPath):
            assert ours.get_submodule(name).rate == pytest.approx(layer.drop_prob), name
    assert ours.blocks[0].drop_path1 is None


@examples(50)
@given(config=configs() | grid_configs())
def test_rates_change_neither_evaluation_nor_tensors(config: ViTConfig) -> None:
    plain, images = random_model(config), random_images(config)
    model = vit_hub.VisionTransformer(config, **RATES).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))
    assert model.config == config


@pytest.mark.parametrize("rate", [{"drop_rate": 0.3}, {"attn_drop_rate": 0.6}, {"drop_path_rate": 0.5}])
def test_the_mean_over_draws_is_the_undropped_output(rate: dict[str, float]) -> None:
    """To the first order: one block of small weights, so that what follows the dropped parts is nearly linear."""
    config = ViTConfig(**SMALL | {"depth": 2, "num_classes": 0, "final_norm": "none", "pool": "cls"})
    plain = random_model(config)
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight")) and name.startswith("blocks"):
                value.mul_(0.05)
    model = vit_hub.VisionTransformer(config, **rate)
    model.load_state_dict(plain.state_dict())
    if "drop_rate" in rate:
        model.pos_drop = None  # what it drops is seen through two norms
    images = random_images(config, batch=1)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = plain(images)
        draws = model.train()(images.expand(4000, -1, -1, -1))
    deviation = draws.std(0) / len(draws) ** 0.5
    assert draws.std(0).max() > 0.001
    assert ((draws.mean(0) - expected[0]).abs() <= 5 * deviation + 0.02).all()


def test_load_takes_rates_and_files_do_not_keep_them(tmp_path: Path) -> None:
    file = random_model(ViTConfig(**SMALL)).save(tmp_path / "m.safetensors")
    model, images = vit_hub.load(file, **RATES), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), vit_hub.load(file)(images))
        model.train()
        assert not torch.equal(model(images), model(images))
    again = vit_hub.load(model.save(tmp_path / "n.safetensors")).train()
    assert again.config == model.config
    assert raw(tmp_path / "n.safetensors") == raw(file)
    assert torch.equal(again(images), again(images))


def test_checkpointing_draws_the_same_again() -> None:
    model = vit_hub.VisionTransformer(ViTConfig(**SMALL), **RATES).double().train()
    randomise(model)
    images, gradients = torch.randn(4, 3, 16, 16, dtype=torch.float64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(images).square().sum().backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("rate", [-0.1, 1.0, 2, float("nan")])
def test_a_rate_that_is_none_is_refused(name: str, rate: float) -> None:
    with pytest.raises(vit_hub.ConfigError, match=name):
        vit_hub.VisionTransformer(ViTConfig(**SMALL), **{name: rate})
