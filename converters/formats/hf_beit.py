"""Hugging Face transformers' BEiT and Data2VecVision: relative positions, keys without a bias, mean pooling then norm.

Source: transformers/models/{beit,data2vec}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

RULES = (
    rule("cls_token", "${root}embeddings.cls_token"),
    hf.MASK_TOKEN,
    *hf.VIT_PATCHES,
    rule("rel_pos_bias.relative_position_bias_table", "${shared}.relative_position_bias_table"),
    *hf.VIT_BLOCK,
    *hf.QV_BIAS,
    rule("blocks.{i}.attn.relative_position_bias_table", "${layer}.${table}.relative_position_bias_table"),
    rule("blocks.{i}.ls1.gamma", "${layer}.lambda_1"),
    rule("blocks.{i}.ls2.gamma", "${layer}.lambda_2"),
    *weight_and_bias("norm", "${norm}"),
    *weight_and_bias("fc_norm", "${root}pooler.layernorm"),
    *weight_and_bias("head", "classifier"),
)

_RELATIVE = {
    "": {"shared": "encoder.relative_position_bias", "table": "attention.attention.relative_position_bias"},
    "v5": {"shared": "shared_position_bias", "table": "relative_position_bias"},
}


def _dialects(family: str, spelling: str) -> tuple[Dialect, ...]:
    """Return dialects with the root before all names, none, all but the final norm, only final norm and shared table.

    Masked-image modelling has the pre-trained model's final norm beside the root. The last is how transformers 5 writes
    BeitBackbone.
    """
    names = {**hf.VIT_SPELLINGS[spelling], **_RELATIVE[spelling], "family": family}
    root = f"{family}."
    places = ((root, root, root), ("", "", ""), (root, "", root), ("", root, root))
    return tuple(
        Dialect(
            spelling,
            {
                **names,
                "root": start,
                "layer": start + names["layers"],
                "norm": f"{norm}layernorm",
                "shared": shared + names["shared"],
            },
        )
        for start, norm, shared in places
    )


_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 12, "image_size": 224}
_BEIT = hf.ModelType("beit", "Beit", _DEFAULTS, square=True)
_DATA2VEC = hf.ModelType("data2vec-vision", "Data2VecVision", _DEFAULTS, square=True)
TYPES = (_BEIT, _DATA2VEC)


def _evidence(kind: hf.ModelType, raw: RawCheckpoint, prefix: str) -> int:
    """Without relative positions and layer scale, only the biases distinguish a model from ViT."""
    biased = any(name.endswith(("query.bias", "q_proj.bias")) for name in raw.tensors)
    return hf.names_model_type(raw, (kind,)) or biased - 1


def _state(kind: hf.ModelType, raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; a backbone without a final norm returns tokens."""
    _, stated = hf.read_config(raw, (kind,))
    relative = any(name.endswith("relative_position_bias_table") for name in tensors)
    norms = (f"{dialect.variables['norm']}.weight", f"{dialect.variables['root']}pooler.layernorm.weight")
    fields = {**stated.fields, "resize": "relpos-bilinear" if relative else "bicubic"}
    if not any(name in tensors for name in norms):
        fields["pool"] = "none"
    return replace(stated, fields=fields)


def _sidecars(kind: hf.ModelType, config: ViTConfig, passport: Passport | None) -> Sidecars:
    backbone = kind is _BEIT and config.final_norm == "none" and not config.num_classes
    carried = passport.carried if passport else []
    extra: dict[str, Any] = {
        "use_mask_token": "mask_token" in carried,
        "use_absolute_position_embeddings": config.pos_embed == "learned",
        "use_relative_position_bias": config.rel_pos == "block",
        "use_shared_relative_position_bias": config.rel_pos == "shared",
        "use_mean_pooling": config.final_norm != "before",
    }
    if not config.layer_scale:
        extra["layer_scale_init_value"] = 0.0
    return hf.write_config(kind, config, passport, extra=extra, head="Backbone" if backbone else "")


def _format(kind: hf.ModelType, dialects: tuple[Dialect, ...], pooling: set[tuple[str, str, bool]]) -> Format:
    return hf.transformers_format(
        (kind,),
        rules=RULES,
        drops=(Drop(r".*\.relative_position_index", "relative_position_index: a buffer that its class computes"),),
        dialects=dialects,
        conventions={"act": "gelu", "norm_eps": 1e-12, "resize": "relpos-bilinear"},
        limits={"class_token": True, "qkv_bias": "qv", "patch_bias": True, "pos_embed": ("learned", "none")},
        requires=(
            hf.SQUARE,
            Requirement(
                "pos_embed_prefix",
                lambda c: c.pos_embed != "learned" or c.pos_embed_prefix,
                "its position table has a class row",
            ),
            Requirement(
                "pool",
                lambda c: (c.pool, c.final_norm, c.num_classes > 0) in pooling,
                "it norms the mean of the patches, or all tokens and then reads the class token",
            ),
        ),
        evidence=partial(_evidence, kind),
        state=partial(_state, kind),
        sidecars=partial(_sidecars, kind),
        dialect_for=hf.rooted,
    )


# (pooling, final norm, classifier): without a classifier, only BEiT's class pools the patches.
_POOLING = {("cls", "before", False), ("cls", "before", True), ("avg", "after", True), ("none", "none", False)}

FORMATS = (
    _format(_BEIT, _dialects("beit", "") + _dialects("beit", "v5"), {*_POOLING, ("avg", "after", False)}),
    # transformers 5 spells Data2VecVision's modules as its files.
    _format(_DATA2VEC, _dialects("data2vec_vision", ""), _POOLING),
)
