"""torchvision's VisionTransformer: state dicts with or without a convolutional stem or a representation layer.

The published files call the feed-forward layers ``linear_1`` and ``linear_2``; today's class reads both spellings.
Source: torchvision/models/vision_transformer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from vit_hub.converters.rules.format import SQUARE_IMAGES, SQUARE_PATCHES, Dialect, Format, Requirement
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.model.config import ViTConfig

_LAYER = "encoder.layers.encoder_layer_{i}"
_STEM, _FOREIGN_STEM = "patch_embed.backbone.layers.{l}", "conv_proj.conv_bn_relu_{l}"


RULES = (
    rule("cls_token", "class_token"),
    rule(f"{_STEM}.conv.weight", f"{_FOREIGN_STEM}.0.weight"),
    *(
        rule(f"{_STEM}.norm.{part}", f"{_FOREIGN_STEM}.1.{part}")
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ),
    *weight_and_bias("patch_embed.proj", "${patch}"),
    rule("pos_embed", "encoder.pos_embedding"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.ln_1"),
    *weight_and_bias("blocks.{i}.attn.qkv", f"{_LAYER}.self_attention", ".in_proj_"),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.self_attention.out_proj"),
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.ln_2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.${{fc1}}"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.${{fc2}}"),
    *weight_and_bias("norm", "encoder.ln"),
    *weight_and_bias("pre_logits.fc", "heads.pre_logits"),
    *weight_and_bias("head", "heads.head"),
)

_MLPS = {"": {"fc1": "0", "fc2": "3"}, "legacy": {"fc1": "linear_1", "fc2": "linear_2"}}
_PATCHES = {"patch": "conv_proj", "conv": "conv_proj.conv_last"}


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    patch = _PATCHES.get(config.stem)
    return next((dialect for dialect in dialects if dialect.variables["patch"] == patch), dialects[0])


FORMATS = (
    Format(
        name="torchvision",
        project="torchvision",
        rules=RULES,
        dialects=tuple(
            Dialect(name, {**_MLPS[name], "patch": patch}) for name, patch in product(_MLPS, _PATCHES.values())
        ),
        prefixes=("", "module.", "model/", "model/module.", "state_dict/", "state_dict/module."),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-align-corners"},
        limits={
            "in_chans": 3,
            "qkv_bias": True,
            "patch_bias": True,
            "pos_embed": "learned",
            "pos_embed_prefix": True,
            "final_norm": "before",
        },
        requires=(
            Requirement("class_token", lambda c: c.class_token and c.pool == "cls", "it always reads a class token"),
            SQUARE_PATCHES,
            SQUARE_IMAGES,
            Requirement("num_classes", lambda c: c.num_classes > 0, "it always has a classifier"),
        ),
        dialect_for=_dialect_for,
        container="torch",
        filename="model.pth",
    ),
)
