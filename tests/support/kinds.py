"""One small model of every kind: each has parameters that others have not, or uses them in another way."""

from __future__ import annotations

from typing import Any

import vit_hub
from vit_hub.model.config import RelPosMlp, Rope

__all__ = ["KINDS"]

_SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "num_classes": 5,
}  # fmt: skip
_NO_TABLE: dict[str, Any] = {"pos_embed": "none", "pos_embed_prefix": False}
_FIELDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"num_registers": 2, "layer_scale": True, "pre_norm": True},
    "distilled": {"distilled": True, "pool": "cls_dist"},
    "qv": {"qkv_bias": "qv", "attn_norm": True, "mlp_norm": True},
    "masked": {"qkv_bias": "masked", "qk_norm": True},
    "swiglu": {"ffn": "swiglu", "act": "silu"},
    "swiglu packed": {"ffn": "swiglu_packed", "act": "silu"},
    "map": {"pool": "map", "class_token": False},
    "average": {"pool": "avg", "final_norm": "after", "representation_dim": 16},
    "hybrid": {"stem": "resnet", "stem_stages": (1, 1), "stem_width": 32, "patch_size": 1},
    "conv": {"stem": "conv", "stem_convs": ((8, 3, 2),), "patch_size": 4},
    "rope": {**_NO_TABLE, "rope": Rope()},
    "stored periods": {**_NO_TABLE, "rope": Rope(coordinates="centered", stored_periods=True)},
    "learned rotations": {**_NO_TABLE, "rope": Rope(mixed=True)},
    "relative": {**_NO_TABLE, "rel_pos": "block", "qkv_bias": "qv"},
    "relative shared": {**_NO_TABLE, "rel_pos": "shared"},
    "sincos": {"pos_embed": "sincos2d", "pos_embed_prefix": False},
    "relative by a network": {**_NO_TABLE, "pool": "avg", "rel_pos": "block", "rel_pos_mlp": RelPosMlp(hidden_dim=24)},
    "relative shared, without class token": {
        **_NO_TABLE,
        "class_token": False,
        "pool": "avg",
        "rel_pos": "shared",
        "rel_pos_mlp": RelPosMlp(hidden_dim=24),
    },
    "detections": {"num_detection_tokens": 2, "mid_pos_embed": True},
    "padded patches": {"patch_padding": 1},
    "norms after the layers": {"norm_position": "post", "pool": "avg"},
    "differential": {"differential": True, "layer_scale": True},
    "parallel": {"parallel": "separate", "layer_scale": True},
    "parallel differential": {"parallel": "joint", "differential": True, "qkv_bias": False},
    "branches": {"branches": 2, "layer_scale": True},
    "windows": {
        "class_token": False,
        "pool": "avg",
        "final_norm": "none",
        "rel_pos": "decomposed",
        "neck": {"chans": 12},
        "windows": {"size": (3, 3), "full": (1,)},
    },
    "video": {
        **_NO_TABLE,
        "class_token": False,
        "pool": "attentive",
        "pool_depth": 1,
        "video": {"frames": 4},
        "rope": Rope(frames=True, pairs="tiled"),
    },
    "video table": {
        "pos_embed": "sincos1d",
        "pos_embed_prefix": False,
        "class_token": False,
        "pool": "avg",
        "final_norm": "after",
        "final_norm_eps": 1e-5,
        "video": {"frames": 4},
        "qkv_bias": "qv",
    },
}
KINDS = {name: vit_hub.ViTConfig(**_SMALL | fields) for name, fields in _FIELDS.items()}
