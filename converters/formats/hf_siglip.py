"""Hugging Face transformers' SigLIP and SigLIP 2 image towers: alone, with classifier, or of full models.

SigLIP 2's patch embedding is a linear layer over patches flattened row by row, channels last; else the names are
SigLIP's. Source: transformers/models/{siglip,siglip2,janus}/modeling_*.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.formats.timm import mlp_ratio
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_HEAD = "classifier.weight"
_PATCH = "embeddings.patch_embedding.weight"


def _map_head(canonical: str, **options: Any) -> tuple[Rule, ...]:
    """Return the rules of attention pooling; queries, keys and values are one tensor."""
    parts = ("weight", "bias")
    return (
        rule(f"{canonical}.latent", "${root}head.probe", **options),
        *(
            rule(
                (f"{canonical}.q.{part}", f"{canonical}.kv.{part}"),
                f"${{root}}head.attention.in_proj_{part}",
                weights=(1, 2),
                **options,
            )
            for part in parts
        ),
        *weight_and_bias(f"{canonical}.proj", "${root}head.attention.out_proj", **options),
        *weight_and_bias(f"{canonical}.norm", "${root}head.layernorm", **options),
        *weight_and_bias(f"{canonical}.mlp.fc1", "${root}head.mlp.fc1", **options),
        *weight_and_bias(f"{canonical}.mlp.fc2", "${root}head.mlp.fc2", **options),
    )


def _rules(layout: str) -> tuple[Rule, ...]:
    return (
        rule("patch_embed.proj.weight", f"${{root}}{_PATCH}", layout),
        rule("patch_embed.proj.bias", "${root}embeddings.patch_embedding.bias"),
        rule("pos_embed", "${root}embeddings.position_embedding.weight", "n d -> 1 n d"),
        *hf.CLIP_BLOCK,
        *weight_and_bias("norm", "${root}post_layernorm"),
        # A classifier reads the mean of the tokens past the attention pooling.
        *_map_head("attn_pool", unless=_HEAD),
        *_map_head("unused.attn_pool", carried=True),
        *weight_and_bias("head", "classifier"),
    )


_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_attention_heads": 12}
_ONE = hf.ModelType("siglip_vision_model", "SiglipVision", _SIGLIP, whole="siglip")
_TWO = hf.ModelType(
    "siglip2_vision_model", "Siglip2Vision", {**_SIGLIP, "num_patches": 256, "patch_size": 16}, whole="siglip2"
)


# Image towers of larger models with the same modules, which are read as SigLIP's.
_SAME = (
    hf.ModelType("idefics2_vision", "Idefics2Vision", _SIGLIP, whole="idefics2"),
    hf.ModelType("idefics3_vision", "Idefics3Vision", {**_SIGLIP, "num_attention_heads": 16}, whole="idefics3"),
    hf.ModelType("smolvlm_vision", "SmolVLMVision", {**_SIGLIP, "num_attention_heads": 16}, whole="smolvlm"),
    hf.ModelType("minicpmv4_6_vision", "MiniCPMV4_6Vision", _SIGLIP),
    hf.ModelType("granite_docling_vision", "GraniteDoclingVision", _SIGLIP),
)


def _types(kind: hf.ModelType) -> tuple[hf.ModelType, ...]:
    return (kind, *_SAME) if kind is _ONE else (kind,)


def _evidence(kind: hf.ModelType, raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence of the model type and of the axes of the patch embedding."""
    axes = next((len(tensor.shape) for name, tensor in raw.tensors.items() if name.endswith(_PATCH)), 0)
    return hf.names_model_type(raw, _types(kind)) + 2 * (axes == (2 if kind is _TWO else 4))


def _whole_number(values: Mapping[str, Any], key: str) -> int:
    """Return a positive integer of config.json, or 0."""
    value = values.get(key)
    return value if isinstance(value, int) and value > 0 else 0


def _axes(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    """Return the axes of SigLIP 2's flattened square patches; without a config.json images have three channels."""
    values, _ = hf.read_config(raw, (_TWO,))
    chans = _whole_number(values, "num_channels") or 3
    for name, kernel in tensors.items():
        if name.endswith(_PATCH) and len(kernel.shape) == 2:
            side = math.isqrt(kernel.shape[1] // chans)
            return {"p": side, "q": side, "c": chans}
    return {}


def _state(kind: hf.ModelType, raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; a classifier pools the patches."""
    values, stated = hf.read_config(raw, _types(kind))
    fields = dict(stated.fields)
    if _HEAD in tensors:
        fields["pool"] = "avg"
    rows, patch = _whole_number(values, "num_patches"), _whole_number(values, "patch_size")
    if kind is _TWO and rows and patch:
        fields["image_size"] = math.isqrt(rows) * patch
    return replace(stated, fields=fields)


def _sidecars(kind: hf.ModelType, config: ViTConfig, passport: Passport | None) -> Sidecars:
    carried = passport.carried if passport else []
    extra: dict[str, Any] = {"vision_use_head": config.pool == "map" or "unused.attn_pool.latent" in carried}
    if kind is _TWO:
        extra |= {"image_size": None, "num_patches": config.num_patches}
    return hf.write_config(kind, config, passport, extra=extra)


_REQUIRES = (
    hf.SQUARE,
    Requirement(
        "pool",
        lambda c: c.pool == "avg" or (c.pool == "map" and not c.num_classes),
        "it pools by attention, and its classifier reads the mean of the tokens",
    ),
    Requirement(
        "pool_mlp_dim", lambda c: c.pool_mlp_dim in (0, c.mlp_dim), "its attention pooling is as wide as its blocks"
    ),
)


def _format(kind: hf.ModelType, layout: str, resize: str) -> Format:
    return hf.transformers_format(
        (kind,),
        rules=_rules(layout),
        drops=(hf.POSITION_IDS,),
        dialects=hf.tower_dialects(kind.name),
        conventions={"act": "gelu_tanh", "norm_eps": 1e-6, "resize": resize},
        limits={**hf.VIT_LIMITS, "qkv_bias": True},
        requires=_REQUIRES,
        axes=_axes,
        evidence=partial(_evidence, kind),
        state=partial(_state, kind),
        sidecars=partial(_sidecars, kind),
        dialect_for=hf.tower_dialect,
    )


# Janus' tower: SigLIP's without pooling, with another name for a layer.
_JANUS = (
    hf.ModelType("janus_vision_model", "JanusVision", {**_SIGLIP, "hidden_act": "gelu", "num_attention_heads": 16}),
)


def _janus_rules() -> tuple[Rule, ...]:
    return tuple(
        replace(
            one, foreign=tuple(name.replace("self_attn.out_proj", "self_attn.projection_layer") for name in one.foreign)
        )
        for one in _rules("")
        if one.canonical[0].startswith(("patch_embed.", "pos_embed", "blocks.", "norm."))
    )


def _janus_sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    ratio = mlp_ratio(config.embed_dim, config.mlp_dim)
    return hf.write_config(_JANUS[0], config, passport, extra={"intermediate_size": None, "mlp_ratio": ratio})


FORMATS = (
    _format(_ONE, "", "bicubic"),
    _format(_TWO, "d (p q c) -> d c p q", "bilinear-antialias"),
    hf.transformers_format(
        _JANUS,
        rules=_janus_rules(),
        drops=(hf.POSITION_IDS,),
        dialects=(Dialect("", {"family": "janus", "root": ""}),),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"},
        sidecars=_janus_sidecars,
        returned_only=True,
    ),
)
