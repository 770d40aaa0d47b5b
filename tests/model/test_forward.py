"""Shortcuts of the forward pass that save time must not be seen from outside."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from small_models import configs, examples, grid_configs, random_images, random_model, relative_error
from torch import Tensor, nn

import vit_hub
from vit_hub.model.config import ACTIVATIONS

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_classes": 5,
}
FEED_FORWARD = ("mlp", "swiglu", "swiglu_packed")


@examples(100)
@given(config=configs() | grid_configs())
def test_what_inference_overwrites_changes_nothing(config: vit_hub.ViTConfig) -> None:
    """Without gradients hidden activations are overwritten; with gradients nothing is.

    The outputs may differ by rounding: PyTorch chooses other kernels when it records gradients.
    """
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    kept = images.clone()
    with_gradients = model(images)
    with torch.no_grad():
        assert relative_error(model(images), with_gradients) <= 1e-12
    with torch.inference_mode():
        assert relative_error(model(images), with_gradients) <= 1e-12
    assert torch.equal(images, kept)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_a_hook_keeps_what_it_saw(ffn: str, act: str) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL, ffn=ffn, act=act))
    mlp = model.blocks[0].mlp
    seen: list[tuple[Tensor, Tensor]] = []
    layer = mlp.fc1_g if ffn == "swiglu" else mlp.fc1
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].clone(), output)))
    with torch.inference_mode():
        model(random_images(model.config))
        inputs, output = seen[0]
        layer._forward_hooks.clear()
        assert torch.equal(output, layer(inputs))


class Adapted(nn.Module):
    """A linear layer with a low-rank correction, as LoRA puts in its place (arXiv 2106.09685, section 4.1)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype))

    @property
    def merged(self) -> Tensor:
        return self.base.weight + self.up @ self.down

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_an_adapter_takes_part_in_every_block(qkv_bias: bool) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL, qkv_bias=qkv_bias), dtype=torch.float64)
    merged = random_model(vit_hub.ViTConfig(**SMALL, qkv_bias=qkv_bias), dtype=torch.float64)
    merged.load_state_dict(model.state_dict())
    for block, other in zip(model.blocks, merged.blocks, strict=True):
        for holder, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            adapted = Adapted(getattr(holder, name))
            setattr(holder, name, adapted)
            target = getattr(other.attn if name in ("qkv", "proj") else other.mlp, name)
            target.weight = nn.Parameter(adapted.merged.detach())
    images = random_images(model.config, torch.float64)
    torch.testing.assert_close(model(images), merged(images), rtol=1e-10, atol=1e-12)
    model(images).sum().backward()
    grown = [parameter for name, parameter in model.named_parameters() if name.endswith((".up", ".down"))]
    assert len(grown) == 16
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in grown)
