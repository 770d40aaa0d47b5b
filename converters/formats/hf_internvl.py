"""InternViT: Hugging Face transformers' InternVLVision, and the modules of OpenGVLab's own repositories.

Source: transformers/models/{internvl,qianfan_ocr}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_LAYER = "${layers}.{i}"
# Its norms of queries and keys have this epsilon, whatever that of the others is.
_QK_NORM_EPS = 1e-6

RULES = (
    rule("cls_token", "embeddings.cls_token"),
    rule("mask_token", "embeddings.mask_token", "1 1 d -> 1 d", carried=True),
    rule("pos_embed", "embeddings.position_embeddings"),
    *weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.layernorm_before"),
    *(
        rule(f"blocks.{{i}}.attn.qkv.{end}", tuple(f"{_LAYER}.attention.{part}_proj.{end}" for part in "qkv"))
        for end in ("weight", "bias")
    ),
    rule("blocks.{i}.attn.q_norm.weight", f"{_LAYER}.attention.q_norm.weight"),
    rule("blocks.{i}.attn.k_norm.weight", f"{_LAYER}.attention.k_norm.weight"),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.attention.projection_layer"),
    rule("blocks.{i}.ls1.gamma", f"{_LAYER}.lambda_1"),
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.layernorm_after"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.fc2"),
    rule("blocks.{i}.ls2.gamma", f"{_LAYER}.lambda_2"),
    *weight_and_bias("norm", "layernorm"),
)

_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 16, "image_size": [448, 448]}
TYPES = (
    hf.ModelType("internvl_vision", "InternVLVision", _DEFAULTS, square=True),
    hf.ModelType("qianfan_ocr_vision", "QianfanOCRVision", _DEFAULTS, whole="qianfan_ocr", square=True),
)

# OpenGVLab's own modules, which transformers loads only as remote code.
_OWN_LAYER = "encoder.layers.{i}"
_OWN_RULES = (
    rule("cls_token", "embeddings.class_embedding"),
    rule("pos_embed", "embeddings.position_embedding"),
    *weight_and_bias("patch_embed.proj", "embeddings.patch_embedding"),
    *(
        one
        for layer in ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
        for one in weight_and_bias(f"blocks.{{i}}.{layer}", f"{_OWN_LAYER}.{layer}")
    ),
    *(rule(f"blocks.{{i}}.attn.{part}_norm.weight", f"{_OWN_LAYER}.attn.{part}_norm.weight") for part in "qk"),
    *(rule(f"blocks.{{i}}.{scale}.gamma", f"{_OWN_LAYER}.{scale}") for scale in ("ls1", "ls2")),
)
_OWN_TYPES = (
    hf.ModelType(
        "intern_vit_6b",
        "InternVision",
        {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 25, "image_size": 224},
        whole="internvl_chat",
    ),
    hf.ModelType(
        "qianfan_ocr_vision",
        "QianfanOCRVision",
        {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 16, "image_size": 448},
    ),
)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; a model that is not normed at the end is for the mean of its patches."""
    _, stated = hf.read_config(raw, TYPES)
    fields = {**stated.fields, "pool": "cls" if "layernorm.weight" in tensors else "avg"}
    if f"{dialect.variables['layers']}.0.attention.q_norm.weight" in tensors:
        fields |= {"qk_norm": "rms_width", "qk_norm_eps": _QK_NORM_EPS}
    return replace(stated, fields=fields)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    extra: dict[str, Any] = {
        "image_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "attention_bias": bool(config.qkv_bias),
        "use_qk_norm": bool(config.qk_norm),
        "norm_type": "layer_norm" if config.norm == "layer" else "rms_norm",
        "use_mask_token": passport is not None and "mask_token" in passport.carried,
        "use_absolute_position_embeddings": config.pos_embed == "learned",
        "use_mean_pooling": config.final_norm == "none",
    }
    kind = (hf.stated_type(passport.sidecars, TYPES) if passport else None) or TYPES[0]
    return hf.write_config(kind, config, passport, extra=extra, types=TYPES, head="Model")


def _own_state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; the output is the class token, not normed."""
    _, stated = hf.read_config(raw, _OWN_TYPES)
    normed = f"{_OWN_LAYER.replace('{i}', '0')}.attn.q_norm.weight" in tensors
    fields = {**stated.fields, "pool": "cls", **({"qk_norm": "rms_width"} if normed else {})}
    return replace(stated, fields=fields)


def _own_sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    extra: dict[str, Any] = {
        "qkv_bias": bool(config.qkv_bias),
        "qk_normalization": bool(config.qk_norm),
        "norm_type": "layer_norm" if config.norm == "layer" else "rms_norm",
    }
    return hf.write_config(_OWN_TYPES[0], config, passport, extra=extra, head="Model")


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        dialects=tuple(Dialect("", {"family": "internvl", "layers": layers}) for layers in ("encoder.layer", "layers")),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"},
        limits={
            **hf.VIT_LIMITS,
            "norm": ("layer", "rms", "rms_blocks"),
            "qk_norm": (False, "rms_width", "rms"),
            "class_token": True,
            "pos_embed": ("learned", "none"),
            "layer_scale": True,
            "rope": None,
            "rel_pos": "none",
            "pool": ("cls", "avg"),
            "final_norm": ("before", "none"),
            "num_classes": 0,
        },
        requires=(
            hf.SQUARE,
            Requirement(
                "pool",
                lambda c: (c.pool == "avg") == (c.final_norm == "none"),
                "it pools the patches, not normed, or it reads the class token, normed",
            ),
            Requirement(
                "norm",
                lambda c: c.norm != "rms" or c.final_norm == "none",
                "its norm after the blocks is LayerNorm",
            ),
            Requirement(
                "qk_norm",
                lambda c: c.qk_norm != "rms" or c.num_heads == 1,
                "it norms the queries and keys of all heads together",
            ),
            Requirement(
                "pos_embed_prefix",
                lambda c: c.pos_embed == "none" or c.pos_embed_prefix,
                "its position table has a row for the class token",
            ),
        ),
        state=_state,
        sidecars=_sidecars,
    ),
    hf.transformers_format(
        _OWN_TYPES,
        rules=_OWN_RULES,
        dialects=(Dialect("", {"family": "intern_vit"}),),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"},
        limits={"norm": ("layer", "rms"), "qk_norm": (False, "rms_width", "rms"), "num_classes": 0},
        state=_own_state,
        sidecars=_own_sidecars,
        returned_only=True,
    ),
)
