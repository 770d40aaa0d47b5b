"""facebookresearch/dinov2: backbones with or without registers, and the teachers of training checkpoints.

Training with FSDP numbers blocks by chunk and by their place in the whole model.
Source: dinov2/models/vision_transformer.py, layers/swiglu_ffn.py, hub/backbones.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats.facebook import CLASS_ROW, CONVENTIONS, facebook_format, is_original
from vit_hub.converters.rules.format import Dialect, Requirement, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

RULES = (
    rule("cls_token", "cls_token"),
    rule("pos_embed", "pos_embed"),
    rule("reg_token", "register_tokens"),
    rule("mask_token", "mask_token", carried=True),
    *weight_and_bias("patch_embed.proj"),
    *weight_and_bias("blocks.{i}.norm1", "${block}.norm1"),
    *weight_and_bias("blocks.{i}.attn.qkv", "${block}.attn.qkv"),
    *weight_and_bias("blocks.{i}.attn.proj", "${block}.attn.proj"),
    rule("blocks.{i}.ls1.gamma", "${block}.ls1.gamma"),
    *weight_and_bias("blocks.{i}.norm2", "${block}.norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", "${block}.mlp.${fc1}"),
    *weight_and_bias("blocks.{i}.mlp.fc2", "${block}.mlp.${fc2}"),
    rule("blocks.{i}.ls2.gamma", "${block}.ls2.gamma"),
    *weight_and_bias("norm"),
)

_BLOCKS = {"dinov2": "blocks.{i}", "dinov2-chunked": "blocks.{c}.{i}"}
_MLPS = {"mlp": ("fc1", "fc2"), "swiglu_packed": ("w12", "w3")}


def _resize(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return the resize method: hub/backbones.py sets interpolate_antialias=True for models with registers."""
    if "register_tokens" not in tensors:
        return Stated()
    return Stated({"resize": "bicubic-antialias"}, "what DINOv2's models with registers do")


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    fc1, _ = _MLPS.get(config.ffn, _MLPS["mlp"])
    return next(dialect for dialect in dialects if dialect.variables["fc1"] == fc1)


FORMATS = (
    facebook_format(
        "dinov2",
        rules=RULES,
        dialects=tuple(
            Dialect(name, {"block": _BLOCKS[name], "fc1": fc1, "fc2": fc2})
            for name, (fc1, fc2) in product(_BLOCKS, _MLPS.values())
        ),
        prefixes=("", "teacher/backbone."),
        conventions={**CONVENTIONS, "resize": "bicubic-offset"},
        limits={**CLASS_ROW, "layer_scale": True, "ffn": ("mlp", "swiglu_packed")},
        requires=(
            Requirement(
                "mlp_dim",
                lambda c: c.ffn != "swiglu_packed" or c.mlp_dim % 8 == 0,
                "the width of its SwiGLU is a multiple of 8",
            ),
        ),
        # Without its mask token a file is as likely timm's, or DINO's if it has no layer scale either.
        evidence=lambda raw, prefix: is_original(raw) if f"{prefix}mask_token" in raw.tensors else -1,
        state=_resize,
        zeros=lambda config, dialect: {"mask_token": (1, config.embed_dim)},
        dialect_for=_dialect_for,
    ),
)
