"""Hugging Face transformers' CLIP image towers: alone, with projection, with classifier, or of full models.

Source: transformers/models/clip/modeling_clip.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_HEAD = "classifier.weight"

RULES = (
    rule("cls_token", "${root}embeddings.class_embedding", "d -> 1 1 d"),
    rule("patch_embed.proj.weight", "${root}embeddings.patch_embedding.weight"),
    rule("pos_embed", "${root}embeddings.position_embedding.weight", "n d -> 1 n d"),
    *weight_and_bias("norm_pre", "${root}pre_layrnorm"),
    *hf.CLIP_BLOCK,
    # A classifier reads the mean of the patches as they leave the last block.
    *weight_and_bias("fc_norm", "${root}post_layernorm", unless=_HEAD),
    *weight_and_bias("unused.post_layernorm", "${root}post_layernorm", carried=True),
    rule("projection.weight", "visual_projection.weight"),
    *weight_and_bias("head", "classifier"),
)

CLIP_DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 12}
_TYPE = hf.ModelType("clip_vision_model", "CLIPVision", CLIP_DEFAULTS, whole="clip")
# Image towers of larger models with the same modules, which are read as CLIP's.
_SAME = (
    ("chinese_clip_vision_model", "ChineseCLIPVision", CLIP_DEFAULTS),
    ("clipseg_vision_model", "CLIPSegVision", CLIP_DEFAULTS),
    ("idefics_vision", "IdeficsVision", {**CLIP_DEFAULTS, "hidden_act": "gelu", "num_attention_heads": 16}),
    ("kosmos_2_vision_model", "Kosmos2Vision", {**CLIP_DEFAULTS, "num_attention_heads": 16}),
    ("metaclip_2_vision_model", "MetaClip2Vision", CLIP_DEFAULTS),
)
TYPES = (_TYPE, *(hf.ModelType(*kind) for kind in _SAME))


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; a classifier pools the patches."""
    _, stated = hf.read_config(raw, TYPES)
    pooling = {"pool": "avg", "final_norm": "none"} if _HEAD in tensors else {"pool": "cls"}
    return replace(stated, fields={**stated.fields, **pooling})


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    head = "ModelWithProjection" if config.projection_dim and not config.num_classes else ""
    extra = {"projection_dim": config.projection_dim} if config.projection_dim else {}
    return hf.write_config(_TYPE, config, passport, extra=extra, head=head)


def _zeros(config: ViTConfig, dialect: Dialect) -> dict[str, tuple[int, ...]]:
    """Return the norm that a model with a classifier has but does not use."""
    name = f"{dialect.variables['root']}post_layernorm"
    return {f"{name}.{part}": (config.embed_dim,) for part in ("weight", "bias") if config.num_classes}


_OUTPUTS = {("cls", "after", False), ("avg", "none", True)}

FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        drops=(hf.POSITION_IDS,),
        dialects=hf.tower_dialects("clip"),
        conventions={"act": "quick_gelu", "norm_eps": 1e-5, "resize": "bicubic"},
        limits={
            "class_token": True,
            "pre_norm": True,
            "patch_bias": False,
            "qkv_bias": True,
            "pos_embed": "learned",
            "pos_embed_prefix": True,
        },
        requires=(
            hf.SQUARE,
            Requirement(
                "pool",
                lambda c: (c.pool, c.final_norm, c.num_classes > 0) in _OUTPUTS,
                "it reads the class token and norms it; with a classifier it reads the mean of the patches, not normed",
            ),
            Requirement(
                "projection_dim",
                lambda c: not (c.projection_dim and c.num_classes),
                "it has a projection or a classifier",
            ),
        ),
        state=_state,
        zeros=_zeros,
        sidecars=_sidecars,
        dialect_for=hf.tower_dialect,
    ),
)
