"""Adapters by peft on every layer of every kind of model: they change the output, learn, and are merged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from kinds import KINDS
from small_models import random_images, random_model, relative_error
from torch import nn

import vit_hub

peft = pytest.importorskip("peft", reason="pip install 'vit-hub[test]'")


def adapted(model: vit_hub.VisionTransformer, **options: object) -> nn.Module:
    """The model with an adapter of random values on each linear layer and the patch embedding."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "attn_pool" not in name]
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=[*layers, "patch_embed.proj"], **options)
    found = peft.get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_take_part_and_are_merged(kind: str, tmp_path: Path) -> None:
    model = random_model(KINDS[kind], dtype=torch.float64)
    images = random_images(model.config, torch.float64)
    found = adapted(model).double()
    found(images).square().sum().backward()
    adapters = {name: value for name, value in found.named_parameters() if "lora_" in name}
    assert len(adapters) >= 2 * (1 + 4 * model.config.depth)
    without = [name for name, value in adapters.items() if value.grad is None or not value.grad.any()]
    assert not without
    with torch.no_grad():
        wanted = found(images)
        assert relative_error(wanted, model(images)) > 1e-3
        for name in {name.rsplit(".lora_", 1)[0] for name in adapters}:
            layer = found.get_submodule(name)
            weight = layer.lora_B["default"].weight
            kept = weight.clone()
            weight.zero_()
            assert not torch.equal(found(images), wanted), name
            weight.copy_(kept)
        merged = found.merge_and_unload()
        assert relative_error(merged(images), wanted) <= 1e-10
        again = vit_hub.load(merged.save(tmp_path / "m.safetensors"), dtype="auto")
        assert relative_error(again(images), wanted) <= 1e-10


@pytest.mark.parametrize("kind", ["plain", "qv", "masked", "rope"])
def test_dora_takes_part_and_is_merged(kind: str) -> None:
    model, images = random_model(KINDS[kind]), random_images(KINDS[kind])
    if kind == "masked":  # DoRA takes the bias that is stored for the one that is added: the docs say what to do
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.bias.mul_(block.attn.qkv.bias_mask)
                block.attn.qkv.bias_mask.fill_(1)
    found = adapted(model, use_dora=True)
    with torch.no_grad():
        wanted = found(images)
        assert relative_error(wanted, model(images)) > 1e-3
        assert relative_error(found.merge_and_unload()(images), wanted) <= 1e-4


def test_a_model_with_adapters_is_not_saved_as_something_else(tmp_path: Path) -> None:
    found = adapted(random_model(KINDS["plain"]))
    with pytest.raises(vit_hub.ConfigError, match="merge"):
        found.base_model.model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
