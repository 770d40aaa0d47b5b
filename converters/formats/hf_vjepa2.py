"""Hugging Face transformers' V-JEPA 2: patches of several frames, rotated by frame, row and column.

Source: transformers/models/vjepa2/modeling_vjepa2.py (arXiv 2506.09985).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.formats.timm import mlp_ratio
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import ANY, Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import Rope, Video, ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
}
TYPES = (hf.ModelType("vjepa2", "VJEPA2", _DEFAULTS),)
_ROPE = Rope(frames=True, pairs="tiled")

_LAYER = "${root}encoder.layer.{i}"
_POOLER = "pooler.self_attention_layers.{j}"
_CROSS = "pooler.cross_attention_layer"
_PARTS = ("weight", "bias")
RULES = (
    *weight_and_bias("patch_embed.proj", "${root}encoder.embeddings.patch_embeddings.proj"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.norm1"),
    *(
        rule(
            f"blocks.{{i}}.attn.qkv.{part}",
            tuple(f"{_LAYER}.attention.{name}.{part}" for name in ("query", "key", "value")),
        )
        for part in _PARTS
    ),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.attention.proj"),
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.fc2"),
    *weight_and_bias("norm", "${root}encoder.layernorm"),
    rule("attn_pool.latent", "pooler.query_tokens"),
    *weight_and_bias("attn_pool.blocks.{j}.norm1", f"{_POOLER}.layer_norm1"),
    *(
        rule(
            f"attn_pool.blocks.{{j}}.attn.qkv.{part}",
            tuple(f"{_POOLER}.self_attn.{name}_proj.{part}" for name in "qkv"),
        )
        for part in _PARTS
    ),
    *weight_and_bias("attn_pool.blocks.{j}.attn.proj", f"{_POOLER}.self_attn.out_proj"),
    *weight_and_bias("attn_pool.blocks.{j}.norm2", f"{_POOLER}.layer_norm2"),
    *weight_and_bias("attn_pool.blocks.{j}.mlp.fc1", f"{_POOLER}.mlp.fc1"),
    *weight_and_bias("attn_pool.blocks.{j}.mlp.fc2", f"{_POOLER}.mlp.fc2"),
    *weight_and_bias("attn_pool.norm1", f"{_CROSS}.layer_norm1"),
    *weight_and_bias("attn_pool.q", f"{_CROSS}.cross_attn.q_proj"),
    *(
        rule(f"attn_pool.kv.{part}", tuple(f"{_CROSS}.cross_attn.{name}_proj.{part}" for name in "kv"))
        for part in _PARTS
    ),
    *weight_and_bias("attn_pool.norm", f"{_CROSS}.layer_norm2"),
    *weight_and_bias("attn_pool.mlp.fc1", f"{_CROSS}.mlp.fc1"),
    *weight_and_bias("attn_pool.mlp.fc2", f"{_CROSS}.mlp.fc2"),
    *weight_and_bias("head", "classifier"),
)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json."""
    values, stated = hf.read_config(raw, TYPES)
    kernel = tensors[f"{dialect.variables['root']}encoder.embeddings.patch_embeddings.proj.weight"].shape
    tubelet, frames = (kernel[2] if len(kernel) == 5 else 1), values.get("frames_per_clip", 64)
    fields: dict[str, Any] = {
        **stated.fields,
        "image_size": values.get("crop_size", 256),
        # How many frames a clip has changes nothing but what is asked for by default.
        "video": {"frames": max(frames // tubelet, 1) * tubelet, "tubelet": tubelet},
        "rope": _ROPE,
        "pool": "attentive" if "pooler.query_tokens" in tensors else "none",
    }
    return replace(stated, fields=fields)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    video = config.video or Video()
    extra: dict[str, Any] = {
        **dict.fromkeys(("intermediate_size", "image_size", "num_channels")),
        "crop_size": config.image_size[0],
        "in_chans": config.in_chans,
        "mlp_ratio": mlp_ratio(config.embed_dim, config.mlp_dim),
        "frames_per_clip": video.frames,
        "tubelet_size": video.tubelet,
        "qkv_bias": config.qkv_bias,
        **({"num_pooler_layers": config.pool_depth} if config.pool == "attentive" else {}),
    }
    head = "ForVideoClassification" if config.pool == "attentive" else "Model"
    return hf.write_config(TYPES[0], config, passport, extra=extra, types=TYPES, head=head)


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=RULES,
        drops=(Drop(r"${root}predictor\..*", "predictor of the pre-training"),),
        dialects=tuple(Dialect("", {"family": "vjepa2", "root": root}) for root in ("vjepa2.", "")),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"},
        limits={
            "class_token": False,
            "qkv_bias": (True, False),
            "patch_bias": True,
            "pos_embed": "none",
            "video": ANY,
            "final_norm": "before",
            "final_norm_eps": None,
            "pool": ("attentive", "none"),
        },
        requires=(
            hf.SQUARE,
            Requirement("video", lambda c: c.video is not None and c.video.joint, "its patches span frames of a video"),
            Requirement(
                "num_classes", lambda c: c.pool == "none" or c.num_classes > 0, "a pooled model has a classifier"
            ),
            Requirement("rope", lambda c: c.rope == _ROPE, "its rotations are those of frame, row and column"),
            Requirement("pool_heads", lambda c: not c.pool_heads, "its pooling has as many heads as its blocks"),
            Requirement(
                "pool_mlp_dim",
                lambda c: c.pool == "none" or (c.pool_mlp_dim or c.mlp_dim) == 4 * c.embed_dim,
                "its pooling has an MLP four times as wide as its tokens",
            ),
        ),
        state=_state,
        sidecars=_sidecars,
        dialect_for=hf.rooted,
        lacks=(
            "transformers' VJEPA2 classes have a predictor, too, which the written files lack: skip_predictor=True "
            "leaves it out"
        ),
    ),
)
