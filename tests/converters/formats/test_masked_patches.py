"""BEiT's, BEiT v2's and EVA's own files before fine-tuning: the encoder, and what predicts masked patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import random_images, random_model

import vit_hub

SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_dim": 48, "qkv_bias": "qv",
    "norm_eps": 1e-6,
}  # fmt: skip
BEIT: dict[str, Any] = {
    "pos_embed": "none", "pos_embed_prefix": False, "rel_pos": "shared", "layer_scale": True,
    "resize": "relpos-geometric",
}  # fmt: skip
EVA: dict[str, Any] = {"resize": "bicubic-antialias"}


@pytest.mark.parametrize(
    ("to", "config", "blocks", "own_head"),
    [
        ("timm-beit", BEIT, 0, False),
        ("timm-beit", BEIT, 2, False),
        ("timm-beit", BEIT, 2, True),
        ("timm-eva", EVA, 0, False),
    ],
    ids=["BEiT", "BEiT v2", "BEiT v2 with a head of its own", "EVA"],
)
def test_what_predicts_masked_patches_is_left_out(
    to: str, config: dict[str, Any], blocks: int, own_head: bool, tmp_path: Path
) -> None:
    """With the names of modeling_pretrain.py in beit and beit2 of microsoft/unilm, and EVA-01/eva of baaivision/EVA."""
    model = random_model(vit_hub.ViTConfig(**SMALL, **config))
    model.save(tmp_path / "model.safetensors")
    vit_hub.convert(tmp_path / "model.safetensors", tmp_path / "timm.pth", to=to)
    state = torch.load(tmp_path / "timm.pth", weights_only=True)
    width, words = SMALL["embed_dim"], 11
    rest = {
        "mask_token": torch.ones(1, 1, width),
        "lm_head.weight": torch.ones(words, width),
        "lm_head.bias": torch.ones(words),
    }
    for name, value in state.items():
        number, _, inner = name.removeprefix("blocks.").partition(".")
        if name.startswith("blocks.") and int(number) < blocks:
            rest[f"cls_pt_layers.{number}.{inner}"] = value + 1
    if own_head:
        rest |= {f"cls_pt_norm.{kind}": torch.ones(width) for kind in ("weight", "bias")}
        rest |= {f"cls_pt_{name}": value for name, value in rest.items() if name.startswith("lm_head.")}
    torch.save({"model": {**rest, **state}}, tmp_path / "pretrained.pth")
    opened = vit_hub.open_checkpoint(tmp_path / "pretrained.pth")
    assert opened.format == "unilm-beit"
    assert opened.config.replace(resize=model.config.resize) == model.config
    assert set(opened.dropped) == {f"model/{name}" for name in rest if name != "mask_token"}  # which is carried along
    images = random_images(model.config)
    assert torch.equal(vit_hub.load(opened)(images), model(images))
