"""Hugging Face transformers' MLCD image towers: CLIP's names, with rotary positions, of the class token, too.

Source: transformers/models/mlcd/modeling_mlcd.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Sidecars, Stated, rotary
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

RULES = (
    rule("cls_token", "${root}embeddings.class_embedding", "d -> 1 1 d"),
    rule("patch_embed.proj.weight", "${root}embeddings.patch_embedding.weight"),
    rule("rope.class_angles", "${root}class_pos_emb"),
    *weight_and_bias("norm_pre", "${root}pre_layrnorm"),
    *hf.CLIP_BLOCK,
    *weight_and_bias("fc_norm", "${root}post_layernorm"),
)

_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 16, "image_size": 336}
TYPES = (hf.ModelType("mlcd_vision_model", "MLCDVision", _DEFAULTS, whole="mlcd"),)
_ROPE: dict[str, Any] = {"theta": 10_000.0, "pairs": "half", "class_angles": True}


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; the class token is read, and normed alone."""
    values, stated = hf.read_config(raw, TYPES)
    rope = {**_ROPE, "theta": hf.rope_theta(values, 10_000.0)}
    return replace(stated, fields={**stated.fields, "pool": "cls", "rope": rope})


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    theta = config.rope.theta if config.rope else 10_000.0
    extra: dict[str, Any] = {"rope_parameters": {"rope_theta": theta, "rope_type": "axial"}, "num_key_value_groups": 1}
    return hf.write_config(TYPES[0], config, passport, extra=extra, head="Model")


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        drops=(hf.POSITION_IDS,),
        dialects=hf.tower_dialects("mlcd"),
        # No file stores a position table, so that the resize method is never used.
        conventions={"act": "gelu", "norm_eps": 1e-5, "resize": "bicubic"},
        limits={
            "class_token": True,
            "pre_norm": True,
            "patch_bias": False,
            "qkv_bias": True,
            "pos_embed": "none",
            "pool": "cls",
            "final_norm": "after",
            "num_classes": 0,
        },
        requires=(
            hf.SQUARE,
            rotary(
                _ROPE, "it has rotary positions, rotating the halves of a head, with learned angles of the class token"
            ),
        ),
        state=_state,
        sidecars=_sidecars,
        dialect_for=hf.tower_dialect,
    ),
)
