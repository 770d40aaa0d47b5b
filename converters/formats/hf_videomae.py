"""Hugging Face transformers' VideoMAE: patches of several frames, and a table of positions that is computed.

A classifier reads the norm of the mean of all patches, or the first patch of normed ones.
Source: transformers/models/videomae/modeling_videomae.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import ANY, Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import Video, ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 12,
    "image_size": 224,
    "num_frames": 16,
}
TYPES = (hf.ModelType("videomae", "VideoMAE", _DEFAULTS),)
# The norm before the classifier has torch's epsilon, whatever the config says.
_NORM_EPS = 1e-5

RULES = (
    *weight_and_bias("patch_embed.proj", "${root}embeddings.patch_embeddings.projection"),
    *hf.VIT_BLOCK,
    rule("blocks.{i}.attn.q_bias", "${layer}.${q_bias}"),
    rule("blocks.{i}.attn.v_bias", "${layer}.${v_bias}"),
    *weight_and_bias("norm", "${root}layernorm"),
    *weight_and_bias("fc_norm", "fc_norm"),
    *weight_and_bias("head", "classifier"),
)
# Names of the biases in files, and in the modules of transformers 5.
_BIASES = {
    "": {"q_bias": "attention.attention.q_bias", "v_bias": "attention.attention.v_bias"},
    "v5": {"q_bias": "attention.attention.query.bias", "v_bias": "attention.attention.value.bias"},
}


def _dialect(name: str, root: str) -> Dialect:
    names = hf.vit_dialect("", "videomae", root, root).variables
    return Dialect(name, {**names, **_BIASES[name]})


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; the norms tell how the output is pooled."""
    values, stated = hf.read_config(raw, TYPES)
    kernel = tensors[f"{dialect.variables['root']}embeddings.patch_embeddings.projection.weight"].shape
    tubelet = kernel[2] if len(kernel) == 5 else 1
    warnings = stated.warnings
    if "num_frames" not in values:
        warnings = (*warnings, "video.frames=16 is a guess: without a config.json nothing in the file tells it")
    fields: dict[str, Any] = {
        **stated.fields,
        "video": {"frames": values.get("num_frames", 16), "tubelet": tubelet},
        "pos_embed": "sincos1d",
        "pool": "none",
    }
    if "fc_norm.weight" in tensors:
        fields |= {"pool": "avg", "final_norm_eps": _NORM_EPS}
    elif "classifier.weight" in tensors:
        fields["pool"] = "first"
    return replace(stated, fields=fields, warnings=warnings)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    video = config.video or Video()
    extra = {
        "num_frames": video.frames,
        "tubelet_size": video.tubelet,
        "qv_bias": config.qkv_bias == "qv",
        "use_mean_pooling": config.final_norm != "before",
    }
    head = "ForVideoClassification" if config.pool != "none" else "Model"
    return hf.write_config(TYPES[0], config, passport, extra=extra, types=TYPES, head=head)


_POOLING = {("avg", "after"), ("first", "before"), ("none", "before"), ("none", "none")}

FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        dialects=tuple(_dialect(name, root) for name in _BIASES for root in ("videomae.", "")),
        conventions={"act": "gelu", "norm_eps": 1e-12, "resize": "bicubic"},
        limits={
            "class_token": False,
            "qkv_bias": ("qv", False),
            "patch_bias": True,
            "pos_embed": "sincos1d",
            "video": ANY,
        },
        requires=(
            hf.SQUARE,
            Requirement("video", lambda c: c.video is not None and c.video.joint, "its patches span frames of a video"),
            Requirement(
                "pool",
                lambda c: (c.pool, c.final_norm) in _POOLING and (c.pool != "first" or c.num_classes > 0),
                "it norms the mean of the patches, or all of them and then reads the first",
            ),
            Requirement(
                "final_norm_eps",
                lambda c: (
                    c.final_norm_eps is None
                    if c.final_norm != "after"
                    else (c.final_norm_eps or c.norm_eps) == _NORM_EPS
                ),
                f"the norm before its classifier has the epsilon {_NORM_EPS}, another one that of the blocks",
            ),
        ),
        state=_state,
        sidecars=_sidecars,
        dialect_for=lambda config, dialects: next(
            d for d in dialects if bool(d.variables["root"]) == (config.pool != "none")
        ),
    ),
)
