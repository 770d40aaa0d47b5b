"""Hugging Face transformers' Pixtral image encoder, alone or inside of LLaVA and Mistral 3.

Source: transformers/models/pixtral/modeling_pixtral.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Sidecars, Stated, rotary
from vit_hub.converters.rules.table import rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_LAYER = "transformer.layers.{i}"

RULES = (
    rule("patch_embed.proj.weight", "patch_conv.weight"),
    rule("norm_pre.weight", "ln_pre.weight"),
    rule("blocks.{i}.norm1.weight", f"{_LAYER}.attention_norm.weight"),
    rule("blocks.{i}.attn.qkv.weight", tuple(f"{_LAYER}.attention.{part}_proj.weight" for part in "qkv")),
    rule("blocks.{i}.attn.proj.weight", f"{_LAYER}.attention.o_proj.weight"),
    rule("blocks.{i}.norm2.weight", f"{_LAYER}.ffn_norm.weight"),
    rule("blocks.{i}.mlp.fc1_g.weight", f"{_LAYER}.feed_forward.gate_proj.weight"),
    rule("blocks.{i}.mlp.fc1_x.weight", f"{_LAYER}.feed_forward.up_proj.weight"),
    rule("blocks.{i}.mlp.fc2.weight", f"{_LAYER}.feed_forward.down_proj.weight"),
)

_DEFAULTS = {"hidden_act": "gelu", "num_attention_heads": 16, "image_size": 1024}
TYPES = (hf.ModelType("pixtral", "PixtralVision", _DEFAULTS),)
_ROPE: dict[str, Any] = {"theta": 10_000.0, "frequencies": "alternate", "pairs": "half"}


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; the epsilon of the norms is fixed in the code."""
    values, stated = hf.read_config(raw, TYPES)
    fields = {**stated.fields, "norm_eps": 1e-5, "rope": {**_ROPE, "theta": hf.rope_theta(values, 10_000.0)}}
    return replace(stated, fields=fields)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    theta = config.rope.theta if config.rope else 10_000.0
    extra: dict[str, Any] = {
        "layer_norm_eps": None,
        "head_dim": config.head_dim,
        "rope_parameters": {"rope_theta": theta, "rope_type": "axial"},
    }
    return hf.write_config(TYPES[0], config, passport, extra=extra, head="Model")


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        dialects=(Dialect("", {"family": "pixtral"}),),
        # No file stores a position table, so that the resize method is never used.
        conventions={"act": "silu", "norm_eps": 1e-5, "resize": "bicubic-antialias"},
        limits={
            "norm": "rms",
            "norm_eps": 1e-5,
            "pre_norm": True,
            "patch_bias": False,
            "ffn": "swiglu",
            "qkv_bias": False,
            "qk_norm": False,
            "proj_bias": False,
            "mlp_bias": False,
            "layer_scale": False,
            "class_token": False,
            "pos_embed": "none",
            "pool": "avg",
            "final_norm": "none",
            "num_classes": 0,
        },
        requires=(
            hf.SQUARE,
            rotary(_ROPE, "it has rotary positions, whose frequencies alternate between rows and columns"),
        ),
        state=_state,
        sidecars=_sidecars,
    ),
)
