from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_hub import VisionTransformer, ViTConfig, get_config
from vit_hub.model.config import RelPosMlp, Rope
from vit_hub.model.flops import activation_values, forward_flops

BASE: dict[str, Any] = {
    "image_size": (32, 24),
    "patch_size": (8, 4),
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 40,
}
NO_TABLE: dict[str, Any] = {"pos_embed": "none", "pos_embed_prefix": False}
WINDOWS: dict[str, Any] = {
    "class_token": False,
    "pool": "none",
    "final_norm": "none",
    "windows": {"size": (3, 2), "full": [1]},
    "rel_pos": "decomposed",
}
NO_CLASS: dict[str, Any] = {"class_token": False, "pos_embed_prefix": False}


# Pools that read all tokens, so that the last block computes all of them.
@pytest.mark.parametrize(
    "fields",
    [
        {"pool": "none"},
        {"pool": "avg", "num_classes": 7, "num_registers": 3},
        {"pool": "map", "num_classes": 7, **NO_CLASS},
        {"pool": "avg", "ffn": "swiglu", "act": "silu", "final_norm": "after"},
        {"pool": "avg", "ffn": "swiglu_packed", "act": "silu", "layer_scale": True},
        {"pool": "avg", "representation_dim": 16, "num_classes": 5},
        {"pool": "avg", "projection_dim": 11, "pre_norm": True, "patch_bias": False},
        {"pool": "avg", "qkv_bias": "qv", "qk_norm": True, "in_chans": 1},
        {"pool": "avg", "rel_pos": "block", **NO_TABLE},
        {"pool": "avg", "rel_pos": "block", "rel_pos_mlp": RelPosMlp(hidden_dim=6), **NO_TABLE},
        {"pool": "avg", "rel_pos": "block", "rel_pos_mlp": RelPosMlp(scale="swin"), **NO_TABLE, **NO_CLASS},
        {"pool": "avg", "norm_position": "post"},
        {"pool": "avg", "differential": True},
        {"pool": "avg", "parallel": "joint", "differential": True},
        {"pool": "avg", "branches": 3},
        {"pool": "avg", "rope": Rope(mixed=True), "num_heads": 2, **NO_TABLE},
        {"pool": "avg", "stem": "resnet", "stem_stages": (2, 1, 2), "stem_width": 32, "patch_size": 1},
        {"pool": "avg", "stem": "resnet", "stem_width": 32, "patch_size": (4, 3)},
        {"pool": "avg", "stem": "conv", "stem_convs": ((8, 3, 2), (12, 3, 1), (16, 3, 2)), "patch_size": 2},
        {**WINDOWS, "pool": "avg", "neck": {"chans": 10}, "num_classes": 3},
        {**WINDOWS, "windows": {"size": (3, 2), "pad": False}, "rel_pos": "none", "neck": {"chans": 0}},
        {**WINDOWS, "merger": {"dim": 9}},
        {"video": {"frames": 6, "tubelet": 2}, "pool": "attentive", "pool_depth": 2, **NO_TABLE, **NO_CLASS},
    ],
    ids=str,
)
def test_as_torch_counts(fields: dict[str, Any]) -> None:
    config = ViTConfig(**{**BASE, **fields})
    with torch.device("meta"):
        model = VisionTransformer(config).eval()
        frames = (config.video.frames,) if config.video else ()
        images = torch.zeros(1, *frames, config.in_chans, *config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    assert forward_flops(config) == counter.get_total_flops()


def test_class_token_pools_count_the_whole_last_block() -> None:
    config = ViTConfig(**BASE, num_classes=9)
    head = 2 * 9 * config.embed_dim
    assert forward_flops(config) == forward_flops(config.replace(num_classes=0, pool="none")) + head
    two = config.replace(distilled=True, pool="cls_dist")
    assert forward_flops(two) == forward_flops(two.replace(num_classes=0, pool="none")) + 2 * head


def test_published_figures() -> None:
    """torchvision states billions of multiply-adds of the same architectures (``_ops`` of its weights)."""
    from torchvision.models import ViT_B_16_Weights, ViT_L_32_Weights

    for name, weights in (("vit-b16", ViT_B_16_Weights), ("vit-l32.sam-in1k-224", ViT_L_32_Weights)):
        stated = weights.IMAGENET1K_V1.meta["_ops"]
        assert forward_flops(get_config(name)) / 2e9 == pytest.approx(stated, abs=5e-4)


def held_at_once(config: ViTConfig) -> float:
    """Values of one image that a forward pass holds at its peak, counted by PyTorch's profiler."""
    model, batch = VisionTransformer(config).eval(), 4
    images = torch.zeros(batch, config.in_chans, *config.image_size)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        model(images)
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [
        event.nbytes() for event in sorted(events, key=lambda item: item.start_ns()) if event.name() == "[memory]"
    ]
    return max(itertools.accumulate(changes)) / 4 / batch


@pytest.mark.parametrize(
    "fields",
    [
        {"mlp_dim": 192},
        {"mlp_dim": 192, "act": "quick_gelu"},
        {"mlp_dim": 40},
        {"mlp_dim": 128, "ffn": "swiglu", "act": "silu"},
        {"mlp_dim": 128, "ffn": "swiglu_packed", "act": "silu"},
        {"mlp_dim": 192, "image_size": 112, "layer_scale": True, "num_registers": 4},
    ],
    ids=str,
)
def test_memory_as_torch_counts(fields: dict[str, Any]) -> None:
    base = {"image_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "pool": "avg"}
    config = ViTConfig(**{**base, **fields})
    assert activation_values(config) == pytest.approx(held_at_once(config), rel=0.05)


def test_memory_of_a_hybrid_is_not_estimated() -> None:
    assert activation_values(ViTConfig(**BASE, stem="resnet", stem_width=32)) is None
