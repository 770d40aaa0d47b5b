"""Hugging Face transformers' Sapiens 2, whose files have the names of Meta's own; and the names of its modules.

Source: transformers/models/sapiens2/modeling_sapiens2.py, transformers/conversion_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import ANY, Dialect, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_QKV = tuple(f"${{layer}}.${{{part}}}" for part in "qkv")

RULES = (
    rule("cls_token", "${embeddings}cls_token"),
    rule("mask_token", "${mask}", "1 1 d -> 1 d", carried=True),
    rule("reg_token", "${registers}"),
    *weight_and_bias("patch_embed.proj", "${patches}"),
    rule("blocks.{i}.norm1.weight", "${layer}.${norm1}.weight"),
    rule("blocks.{i}.attn.qkv.weight", tuple(f"{name}.weight" for name in _QKV), first="D"),
    rule("blocks.{i}.attn.qkv.bias", tuple(f"{name}.bias" for name in _QKV), first="D"),
    *hf.QV_BIAS,
    rule("blocks.{i}.attn.q_norm.weight", "${layer}.${attention}.q_norm.weight"),
    rule("blocks.{i}.attn.k_norm.weight", "${layer}.${attention}.k_norm.weight"),
    *weight_and_bias("blocks.{i}.attn.proj", "${layer}.${o}"),
    rule("blocks.{i}.ls1.gamma", "${layer}.${scale}"),
    rule("blocks.{i}.norm2.weight", "${layer}.${norm2}.weight"),
    rule("blocks.{i}.mlp.fc1.weight", "${layer}.${fc1}.weight"),
    rule("blocks.{i}.mlp.fc1.bias", "${layer}.${fc1}.bias"),
    *weight_and_bias("blocks.{i}.mlp.fc2", "${layer}.${fc2}"),
    rule("norm.weight", "${norm}.weight"),
)

_META = {
    "mask": "embeddings.mask_token",
    "embeddings": "",
    "registers": "storage_tokens",
    "patches": "patch_embed.projection",
    "layer": "blocks.{i}",
    "norm1": "ln1",
    "attention": "attn",
    "q": "attn.wq",
    "k": "attn.wk",
    "v": "attn.wv",
    "o": "attn.proj",
    "scale": "attn.gamma.weight",
    "norm2": "ln2",
    "norm": "ln1",
}
_MODULES = {
    "mask": "embeddings.mask_token",
    "embeddings": "embeddings.",
    "registers": "embeddings.register_tokens",
    "patches": "embeddings.patch_embeddings",
    "layer": "model.layer.{i}",
    "norm1": "norm1",
    "attention": "attention",
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.o_proj",
    "scale": "layer_scale1.lambda1",
    "norm2": "norm2",
    "norm": "norm",
}
# The feed-forward layers: their files can only hold those with gates.
_FEED_FORWARD = (
    ("", _META, "swiglu_packed", "ffn.w12", "ffn.w3"),
    ("", {**_META, "mask": "mask_token"}, "swiglu_packed", "ffn.w12", "ffn.w3"),
    ("v5", _MODULES, "swiglu_packed", "mlp.gate_proj+mlp.up_proj", "mlp.down_proj"),
    ("v5", _MODULES, "mlp", "mlp.up_proj", "mlp.down_proj"),
)
_DIALECTS = tuple(
    Dialect(name, {**names, "family": "sapiens2", "ffn": ffn, "fc1": first, "fc2": second})
    for name, names, ffn, first, second in _FEED_FORWARD
)

_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 16,
    "image_size": 224,
    "rope_theta": 100.0,
}
TYPES = (hf.ModelType("sapiens2", "Sapiens2", _DEFAULTS),)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json.

    Raises:
        ConfigError: unsupported combination of biases.
    """
    values, stated = hf.read_config(raw, TYPES)
    hf.check_qkv_bias(raw, values, key=True)
    fields = {**stated.fields}
    if isinstance(values.get("rms_norm_eps"), (int, float)):
        fields["norm_eps"] = float(values["rms_norm_eps"])
    if isinstance(values.get("rope_theta"), (int, float)):
        fields["rope"] = {**hf.DINO_ROPE, "theta": float(values["rope_theta"])}
    return replace(stated, fields=fields)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    heads = list(config.kv_heads) or [config.num_heads] * config.depth
    extra: dict[str, Any] = {
        "layer_norm_eps": None,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta if config.rope else None,
        "num_register_tokens": config.num_registers,
        "num_key_value_heads_per_layer": heads,
        "use_gated_mlp": config.ffn != "mlp",
        "use_qk_norm": bool(config.qk_norm),
        "use_mask_token": passport is not None and "mask_token" in passport.carried,
        "query_bias": bool(config.qkv_bias),
        "key_bias": config.qkv_bias is True,
        "value_bias": bool(config.qkv_bias),
        "proj_bias": config.proj_bias,
        "mlp_bias": config.mlp_bias,
    }
    return hf.write_config(TYPES[0], config, passport, extra=extra, head="Model")


def _zeros(config: ViTConfig, dialect: Dialect) -> dict[str, tuple[int, ...]]:
    """Return empty register tokens for a model without any."""
    return {} if config.num_registers else {dialect.variables["registers"]: (1, 0, config.embed_dim)}


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    return next((d for d in dialects if d.variables["ffn"] == config.ffn), dialects[0])


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        drops=(Drop(r"rope_embed\.periods", "periods of the rotary embedding, which are computed"),),
        dialects=_DIALECTS,
        # No file stores a position table, so that the resize method is never used.
        conventions={"act": "silu", "norm_eps": 1e-6, "rope": hf.DINO_ROPE, "resize": "bicubic-antialias"},
        limits={
            "norm": "rms",
            "qk_norm": (False, "rms"),
            "qk_norm_eps": None,
            "kv_heads": ANY,
            "class_token": True,
            "pos_embed": "none",
            "layer_scale": "attn",
            "qkv_bias": (True, False, "qv"),
            "proj_bias": (True, False),
            "mlp_bias": (True, False),
            "patch_bias": True,
            "ffn": ("mlp", "swiglu_packed"),
            "pool": "cls",
            "final_norm": "before",
            "num_classes": 0,
        },
        requires=(hf.DINO_ROTARY,),
        state=_state,
        zeros=_zeros,
        sidecars=_sidecars,
        dialect_for=_dialect_for,
    ),
)
