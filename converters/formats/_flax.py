"""Rules and facts that Google's two projects share: flax parameter names and the layers of a ViT block.

Sources: vit_jax/models_vit.py, big_vision/models/vit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_hub.converters.rules.table import Rule, rule

__all__ = ["CONVENTIONS", "LIMITS", "dense", "encoder_block", "norm"]

CONVENTIONS: Mapping[str, Any] = {
    "act": "gelu_tanh",
    "norm_eps": 1e-6,
    "resize": "bilinear-align-corners",
    "resize_by_count": True,
}
LIMITS = {"qkv_bias": True, "patch_bias": True, "pos_embed": "learned", "final_norm": "before"}


def norm(canonical: str, foreign: str) -> tuple[Rule, Rule]:
    """Return the rules of a LayerNorm."""
    return rule(f"{canonical}.weight", f"{foreign}/scale"), rule(f"{canonical}.bias", f"{foreign}/bias")


def dense(canonical: str, foreign: str) -> tuple[Rule, Rule]:
    """Return the rules of a linear layer."""
    return rule(f"{canonical}.weight", f"{foreign}/kernel", "i o -> o i"), rule(f"{canonical}.bias", f"{foreign}/bias")


def encoder_block(block: str, *, attention: str, norm2: str, mlp: str) -> tuple[Rule, ...]:
    """Return the rules of a block from its name and those of its submodules."""
    qkv = tuple(f"{block}/{attention}/{part}" for part in ("query", "key", "value"))
    return (
        *norm("blocks.{i}.norm1", f"{block}/LayerNorm_0"),
        rule("blocks.{i}.attn.qkv.weight", tuple(f"{name}/kernel" for name in qkv), "d h e -> (h e) d"),
        rule("blocks.{i}.attn.qkv.bias", tuple(f"{name}/bias" for name in qkv), "h e -> (h e)"),
        rule("blocks.{i}.attn.proj.weight", f"{block}/{attention}/out/kernel", "h e d -> d (h e)"),
        rule("blocks.{i}.attn.proj.bias", f"{block}/{attention}/out/bias"),
        *norm("blocks.{i}.norm2", f"{block}/{norm2}"),
        *dense("blocks.{i}.mlp.fc1", f"{block}/{mlp}/Dense_0"),
        *dense("blocks.{i}.mlp.fc2", f"{block}/{mlp}/Dense_1"),
    )
