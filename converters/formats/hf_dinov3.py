"""Hugging Face transformers' DINOv3ViT.

Source: transformers/models/dinov3_vit/modeling_dinov3_vit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_GATE = "${first}.mlp.gate_proj.weight"

RULES = (
    rule("cls_token", "embeddings.cls_token"),
    rule("mask_token", "embeddings.mask_token", "1 1 d -> 1 d", carried=True),
    rule("reg_token", "embeddings.register_tokens"),
    *weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings"),
    *weight_and_bias("blocks.{i}.norm1", "${layer}.norm1"),
    *hf.ATTENTION,
    hf.QKV_BIAS,
    *hf.QV_BIAS,
    rule("blocks.{i}.ls1.gamma", "${layer}.layer_scale1.lambda1"),
    *weight_and_bias("blocks.{i}.norm2", "${layer}.norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1_g", "${layer}.mlp.gate_proj"),
    *weight_and_bias("blocks.{i}.mlp.fc1", "${layer}.mlp.up_proj", unless=_GATE),
    *weight_and_bias("blocks.{i}.mlp.fc1_x", "${layer}.mlp.up_proj"),
    *weight_and_bias("blocks.{i}.mlp.fc2", "${layer}.mlp.down_proj"),
    rule("blocks.{i}.ls2.gamma", "${layer}.layer_scale2.lambda1"),
    *weight_and_bias("norm", "norm"),
)


def _dialect(name: str, layers: str) -> Dialect:
    parts = {part: f"attention.{part}_proj" for part in "qkvo"}
    return Dialect(name, {"layer": f"{layers}.{{i}}", "first": f"{layers}.0", **parts})


_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 6,
    "image_size": 224,
    "rope_theta": 100.0,
}
TYPES = (hf.ModelType("dinov3_vit", "DINOv3ViT", _DEFAULTS),)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json.

    Raises:
        ConfigError: unsupported combination of biases.
    """
    values, stated = hf.read_config(raw, TYPES)
    hf.check_qkv_bias(raw, values, key=False)
    fields = dict(stated.fields)
    if isinstance(values.get("rope_theta"), (int, float)):
        fields["rope"] = {**hf.DINO_ROPE, "theta": float(values["rope_theta"])}
    return replace(stated, fields=fields)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    extra: dict[str, Any] = {
        "rope_theta": config.rope.theta if config.rope else None,
        "num_register_tokens": config.num_registers,
        "use_gated_mlp": config.ffn == "swiglu",
        "query_bias": bool(config.qkv_bias),
        "key_bias": config.qkv_bias is True,
        "value_bias": bool(config.qkv_bias),
        "proj_bias": config.proj_bias,
        "mlp_bias": config.mlp_bias,
    }
    return hf.write_config(TYPES[0], config, passport, extra=extra, head="Model")


def _zeros(config: ViTConfig, dialect: Dialect) -> dict[str, tuple[int, ...]]:
    """Return the mask token and, for a model without registers, empty register tokens."""
    empty = {} if config.num_registers else {"embeddings.register_tokens": (1, 0, config.embed_dim)}
    return {"embeddings.mask_token": (1, 1, config.embed_dim), **empty}


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        dialects=(_dialect("", "layer"), _dialect("v5", "model.layer")),
        # No file stores a position table, so that the resize method is never used.
        conventions={"act": "gelu", "norm_eps": 1e-5, "rope": hf.DINO_ROPE, "resize": "bicubic-antialias"},
        limits={
            "class_token": True,
            "pos_embed": "none",
            "layer_scale": True,
            "qkv_bias": (True, False, "qv"),
            "proj_bias": (True, False),
            "mlp_bias": (True, False),
            "patch_bias": True,
            "ffn": ("mlp", "swiglu"),
            "pool": "cls",
            "final_norm": "before",
            "num_classes": 0,
        },
        requires=(hf.DINO_ROTARY,),
        state=_state,
        zeros=_zeros,
        sidecars=_sidecars,
    ),
)
