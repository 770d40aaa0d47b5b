"""Image encoders inside of Hugging Face's larger models with own names: OWL-ViT, AltCLIP, GIT, BLIP, Janus, TIPSv2.

They are read, and written back under the names of their models.
Source: transformers/models/{owlvit,altclip,git,blip,blip_2,janus,tipsv2}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.formats import facebook_dinov2
from vit_hub.converters.formats.hf_clip import CLIP_DEFAULTS
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Sidecars, Stated
from vit_hub.converters.rules.table import Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_BLIP = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 16}
_OWL = (
    hf.ModelType("owlvit_vision_model", "OwlViTVision", CLIP_DEFAULTS, whole="owlvit"),
    hf.ModelType("owlv2_vision_model", "Owlv2Vision", CLIP_DEFAULTS, whole="owlv2"),
)
_ALT = (hf.ModelType("altclip_vision_model", "AltCLIPVision", CLIP_DEFAULTS, whole="altclip"),)
_GIT = (hf.ModelType("git_vision_model", "GitVision", CLIP_DEFAULTS, whole="git"),)
_BLIPS = (
    hf.ModelType("blip_vision_model", "BlipVision", {**_BLIP, "layer_norm_eps": 1e-5, "num_attention_heads": 12}),
    hf.ModelType("blip_2_vision_model", "Blip2Vision", _BLIP),
    hf.ModelType("instructblip_vision_model", "InstructBlipVision", _BLIP),
    hf.ModelType("instructblipvideo_vision_model", "InstructBlipVideoVision", _BLIP),
)
_JANUS = (hf.ModelType("janus_vision_model", "JanusVision", _BLIP, whole="janus"),)
_TIPS = (
    hf.ModelType(
        "tipsv2_vision_model",
        "Tipsv2Vision",
        {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 12},
        whole="tipsv2",
    ),
)
_CLIP = {"act": "quick_gelu", "norm_eps": 1e-5, "resize": "bicubic"}
# Fields that the classes fix; a model without a pooled output gives its tokens.
_AFTER = {"pool": "cls"}
_TOKENS = {"pool": "none"}
_RENORMED = {"pool": "cls", "pool_renorm": True}
_FIRST_RENORMED = {"pool": "first", "pool_renorm": True}


def _clip_rules(pre_norm: str, layer: str, norm: str) -> tuple[Rule, ...]:
    """Return CLIP's rules with other names of the norm before the blocks, of a block and of the final norm."""
    block = tuple(
        replace(one, foreign=tuple(name.replace("encoder.layers.{i}", layer) for name in one.foreign))
        for one in hf.CLIP_BLOCK
    )
    return (
        rule("cls_token", "${root}embeddings.class_embedding", "d -> 1 1 d"),
        rule("patch_embed.proj.weight", "${root}embeddings.patch_embedding.weight"),
        rule("pos_embed", "${root}embeddings.position_embedding.weight", "n d -> 1 n d"),
        *weight_and_bias("norm_pre", f"${{root}}{pre_norm}"),
        *block,
        *weight_and_bias(norm, "${root}post_layernorm"),
        rule("projection.weight", "visual_projection.weight"),
    )


_LAYER = "${root}encoder.layers.{i}"
_JANUS_RULES = (
    *weight_and_bias("patch_embed.proj", "${root}embeddings.patch_embedding"),
    rule("pos_embed", "${root}embeddings.position_embedding.weight", "n d -> 1 n d"),
    *(
        replace(one, foreign=tuple(name.replace("out_proj", "projection_layer") for name in one.foreign))
        for one in hf.CLIP_BLOCK
    ),
    *weight_and_bias("norm", "${root}post_layernorm"),
)
_BLIP_RULES = (
    rule("cls_token", "${root}embeddings.class_embedding"),
    *weight_and_bias("patch_embed.proj", "${root}embeddings.patch_embedding"),
    rule("pos_embed", "${root}embeddings.position_embedding"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.layer_norm1"),
    *weight_and_bias("blocks.{i}.attn.qkv", f"{_LAYER}.self_attn.qkv"),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.self_attn.projection"),
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.layer_norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.fc2"),
    *weight_and_bias("norm", "${root}post_layernorm"),
)


def _state(
    types: tuple[hf.ModelType, ...],
    fixed: Mapping[str, Any],
    raw: RawCheckpoint,
    tensors: Mapping[str, LazyTensor],
    dialect: Dialect,
) -> Stated:
    """Read config.json, and add what the classes fix."""
    _, stated = hf.read_config(raw, types)
    gated = {"act": "silu"} if dialect.variables.get("ffn") == "swiglu_packed" else {}
    return replace(stated, fields={**stated.fields, **fixed, **gated})


def _sidecars(types: tuple[hf.ModelType, ...], config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return config.json of the image encoder alone, as its class writes it."""
    kind = (hf.stated_type(passport.sidecars, types) if passport else None) or types[0]
    extra: dict[str, Any] = {"qkv_bias": config.qkv_bias} if types is _BLIPS else {}
    return hf.write_config(kind, config, passport, extra=extra, types=types)


def _format(
    types: tuple[hf.ModelType, ...],
    rules: tuple[Rule, ...],
    dialects: tuple[Dialect, ...],
    conventions: Mapping[str, Any],
    fixed: Mapping[str, Any],
    **options: Any,
) -> Format:
    return hf.transformers_format(
        types,
        rules=rules,
        dialects=dialects,
        drops=(hf.POSITION_IDS,),
        conventions={**conventions, **{name: value for name, value in fixed.items() if name != "pool"}},
        limits={"num_classes": 0, "ffn": ("mlp", "swiglu_packed")},
        state=partial(_state, types, fixed),
        sidecars=partial(_sidecars, types),
        returned_only=True,
        **options,
    )


def _roots(family: str, **names: str) -> tuple[Dialect, ...]:
    return tuple(Dialect("", {"family": family, "root": root, **names}) for root in ("vision_model.", ""))


_FEED_FORWARD = {"mlp": ("c_fc", "c_proj"), "swiglu_packed": ("w12", "w3")}
_TIPS_DIALECTS = tuple(
    Dialect("", {"family": "tipsv2", "block": "blocks.{i}", "ffn": ffn, "fc1": first, "fc2": second})
    for ffn, (first, second) in _FEED_FORWARD.items()
)

FORMATS = (
    _format(_OWL, _clip_rules("pre_layernorm", "encoder.layers.{i}", "fc_norm"), _roots("owlvit"), _CLIP, _AFTER),
    _format(_ALT, _clip_rules("pre_layrnorm", "encoder.layer.{i}", "fc_norm"), _roots("altclip"), _CLIP, _AFTER),
    _format(_GIT, _clip_rules("pre_layrnorm", "encoder.layers.{i}", "norm"), _roots("git"), _CLIP, _TOKENS),
    _format(_BLIPS, _BLIP_RULES, _roots("blip"), {"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"}, _RENORMED),
    _format(
        _JANUS,
        _JANUS_RULES,
        _roots("janus"),
        {"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"},
        _FIRST_RENORMED,
    ),
    _format(
        _TIPS,
        facebook_dinov2.RULES,
        _TIPS_DIALECTS,
        {"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-antialias"},
        _AFTER,
    ),
)
