"""Hugging Face transformers' Dinov2 and Dinov2WithRegisters.

Source: transformers/models/{dinov2,dinov2_with_registers}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import SQUARE_IMAGES, Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

RULES = (
    rule("cls_token", "${root}embeddings.cls_token"),
    rule("mask_token", "${root}embeddings.mask_token", carried=True),
    *hf.VIT_PATCHES,
    *weight_and_bias("blocks.{i}.norm1", "${layer}.norm1"),
    *hf.ATTENTION,
    hf.QKV_BIAS,
    rule("blocks.{i}.ls1.gamma", "${layer}.layer_scale1.lambda1"),
    *weight_and_bias("blocks.{i}.norm2", "${layer}.norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", "${layer}.${fc1}"),
    *weight_and_bias("blocks.{i}.mlp.fc2", "${layer}.${fc2}"),
    rule("blocks.{i}.ls2.gamma", "${layer}.layer_scale2.lambda1"),
    *weight_and_bias("norm", "${root}layernorm"),
    *weight_and_bias("head", "classifier"),
)

_DINOV2 = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 12}
_PLAIN = hf.ModelType("dinov2", "Dinov2", _DINOV2, square=True)
_REGISTERS = hf.ModelType("dinov2_with_registers", "Dinov2WithRegisters", _DINOV2, square=True)
TYPES = (_PLAIN, _REGISTERS)

# The feed-forward layers' names; transformers 5 cuts the packed gate and value in two.
_FEED_FORWARD = {
    ("", "mlp"): {"fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    ("", "swiglu_packed"): {"fc1": "mlp.weights_in", "fc2": "mlp.weights_out"},
    ("v5", "mlp"): {"fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    ("v5", "swiglu_packed"): {"fc1": "mlp.gate_proj+mlp.up_proj", "fc2": "mlp.down_proj"},
}


def _dialect(kind: hf.ModelType, spelling: str, ffn: str, root: str) -> Dialect:
    attention = {part: hf.VIT_SPELLINGS[spelling][part] for part in "qkvo"}
    layer = f"{root}encoder.layer.{{i}}"
    names = {**attention, **_FEED_FORWARD[spelling, ffn]}
    return Dialect(spelling, {"family": kind.name, "ffn": ffn, "root": root, "layer": layer, **names})


def _state(kind: hf.ModelType, raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; the gated feed-forward layer has SiLU whatever it states."""
    _, stated = hf.read_config(raw, (kind,))
    fields = dict(stated.fields)
    if dialect.variables["ffn"] == "swiglu_packed":
        fields["act"] = "silu"
    return replace(stated, fields=fields)


def _mlp_ratio(config: ViTConfig) -> int | None:
    """Return the integer ratio from which transformers computes the hidden width, if there is one."""
    dim = config.embed_dim
    for ratio in range(1, 3 * config.mlp_dim // dim + 3):
        hidden = dim * ratio
        if config.ffn == "swiglu_packed":
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        if hidden == config.mlp_dim:
            return ratio
    return None


def _sidecars(kind: hf.ModelType, config: ViTConfig, passport: Passport | None) -> Sidecars:
    gated = config.ffn == "swiglu_packed"
    extra: dict[str, Any] = {
        "mlp_ratio": _mlp_ratio(config),
        "use_swiglu_ffn": gated,
        "qkv_bias": config.qkv_bias,
        "intermediate_size": None,
    }
    if gated:
        extra["hidden_act"] = "gelu"
    if kind is _PLAIN:
        extra["use_mask_token"] = passport is not None and "mask_token" in passport.carried
    else:
        extra["num_register_tokens"] = config.num_registers
    return hf.write_config(kind, config, passport, extra=extra)


def _zeros(config: ViTConfig, dialect: Dialect) -> dict[str, tuple[int, ...]]:
    """Return the mask token and, for a model without registers, empty register tokens."""
    name = f"{dialect.variables['root']}embeddings"
    empty = {} if config.num_registers else {f"{name}.register_tokens": (1, 0, config.embed_dim)}
    return {f"{name}.mask_token": (1, config.embed_dim), **empty}


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    """Return the dialect with the names of the model's feed-forward layers."""
    return hf.rooted(config, [d for d in dialects if d.variables["ffn"] == config.ffn] or dialects)


_LIMITS = {
    **hf.VIT_LIMITS,
    "class_token": True,
    "layer_scale": True,
    "ffn": ("mlp", "swiglu_packed"),
    "pos_embed_prefix": True,
    "pos_embed_registers": False,
    "pool": "cls",
    "head_input": ("pooled", "cls_avg"),
}
_REQUIRES = (
    SQUARE_IMAGES,
    Requirement("act", lambda c: c.ffn == "mlp" or c.act == "silu", "its gates use SiLU"),
    Requirement("mlp_dim", lambda c: _mlp_ratio(c) is not None, "its hidden width follows from an integer mlp_ratio"),
    Requirement(
        "head_input",
        lambda c: not c.num_classes or c.head_input == "cls_avg",
        "its classifier reads the class token and the mean of the patches side by side",
    ),
)


def _format(kind: hf.ModelType, **options: Any) -> Format:
    return hf.transformers_format(
        (kind,),
        limits=_LIMITS,
        dialects=tuple(_dialect(kind, *names, root) for names, root in product(_FEED_FORWARD, ("", f"{kind.name}."))),
        state=partial(_state, kind),
        sidecars=partial(_sidecars, kind),
        dialect_for=_dialect_for,
        **options,
    )


_CONVENTIONS = {"act": "gelu", "norm_eps": 1e-6}
FORMATS = (
    _format(_PLAIN, rules=RULES, requires=_REQUIRES, conventions={**_CONVENTIONS, "resize": "bicubic"}),
    _format(
        _REGISTERS,
        rules=(*RULES, rule("reg_token", "${root}embeddings.register_tokens")),
        requires=(*_REQUIRES, Requirement("num_registers", lambda c: c.num_registers > 0, "it has registers")),
        conventions={**_CONVENTIONS, "resize": "bicubic-antialias"},
        zeros=_zeros,
    ),
)
