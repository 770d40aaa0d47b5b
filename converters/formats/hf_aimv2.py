"""Hugging Face transformers' AIMv2 image towers: alone, with or without attention pooling, or of models of two towers.

Source: transformers/models/aimv2/modeling_aimv2.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_LAYER = "${root}encoder.layers.{i}"
_TABLE = "embeddings.position_embedding.weight"

RULES = (
    *weight_and_bias("patch_embed.proj", "${root}embeddings.${patch}"),
    rule("patch_embed.norm.weight", "${root}embeddings.rms_norm.weight"),
    rule("pos_embed", f"${{root}}{_TABLE}", "n d -> 1 n d"),
    rule("blocks.{i}.norm1.weight", f"{_LAYER}.rms_norm1.weight"),
    *(
        rule(f"blocks.{{i}}.attn.qkv.{end}", tuple(f"{_LAYER}.attention.{part}_proj.{end}" for part in "qkv"))
        for end in ("weight", "bias")
    ),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.attention.out_proj"),
    rule("blocks.{i}.norm2.weight", f"{_LAYER}.rms_norm2.weight"),
    *weight_and_bias("blocks.{i}.mlp.fc1_g", f"{_LAYER}.ffn.gate_proj"),
    *weight_and_bias("blocks.{i}.mlp.fc1_x", f"{_LAYER}.ffn.up_proj"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.ffn.down_proj"),
    rule("norm.weight", "${root}rms_norm.weight"),
    rule("attn_pool.latent", "${root}head.cls_token"),
    *(
        rule(f"attn_pool.kv.{end}", tuple(f"${{root}}head.{part}_proj.{end}" for part in "kv"))
        for end in ("weight", "bias")
    ),
    *weight_and_bias("attn_pool.proj", "${root}head.output_proj"),
    rule("projection.weight", "visual_projection.weight"),
)

_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_attention_heads": 8, "image_size": 224}
TYPES = (
    hf.ModelType("aimv2_vision_model", "Aimv2Vision", _DEFAULTS, whole="aimv2"),
    hf.ModelType("ovis2_vision", "Ovis2Vision", _DEFAULTS),  # read, and written as the former
)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; a model without a table computes its positions from the grid of the image."""
    values, stated = hf.read_config(raw, TYPES)
    fields = dict(stated.fields)
    if isinstance(values.get("rms_norm_eps"), (int, float)):
        fields["norm_eps"] = float(values["rms_norm_eps"])
    if f"{dialect.variables['root']}{_TABLE}" not in tensors:
        fields["pos_embed"] = "sincos2d_mae"
    return replace(stated, fields=fields)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    extra: dict[str, Any] = {
        "layer_norm_eps": None,
        "rms_norm_eps": config.norm_eps,
        "is_native": config.pos_embed == "sincos2d_mae",
        "use_head": config.pool == "attn",
        "qkv_bias": bool(config.qkv_bias),
        "mlp_bias": config.mlp_bias,
    }
    return hf.write_config(TYPES[0], config, passport, extra=extra)


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    return dialects[bool(config.projection_dim)]


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        drops=(hf.POSITION_IDS,),
        dialects=tuple(
            Dialect("", {"family": "aimv2", "root": root, "patch": patch})
            for root, patch in (
                ("", "patch_embed"),
                ("vision_model.", "patch_embed"),
                ("transformer.", "patch_embedding"),  # of Ovis 2
            )
        ),
        conventions={"act": "silu", "norm_eps": 1e-5, "resize": "bicubic-antialias"},
        limits={
            "norm": "rms",
            "patch_norm": True,
            "patch_bias": True,
            "ffn": "swiglu",
            "qkv_bias": (True, False),
            "qk_norm": False,
            "proj_bias": (True, False),
            "mlp_bias": (True, False),
            "layer_scale": False,
            "class_token": False,
            "pos_embed": ("learned", "sincos2d_mae"),
            "rope": None,
            "pool": ("attn", "avg"),
            "final_norm": "before",
            "projection_dim": 0,
            "num_classes": 0,
        },
        requires=(
            hf.SQUARE,
            Requirement(
                "proj_bias",
                lambda c: c.proj_bias == bool(c.qkv_bias),
                "one setting is for the biases of queries, keys, values and the projection",
            ),
            Requirement("pool_heads", lambda c: not c.pool_heads, "it pools with as many heads as its blocks have"),
        ),
        state=_state,
        sidecars=_sidecars,
        dialect_for=_dialect_for,
    ),
)
