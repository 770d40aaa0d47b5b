"""BEiT-3's own files, with torchscale's names: the image expert of a model of images and text, and what is above it.

Every layer of the model is there twice: A for images, B for text. The first two rows of each position table are unused.
Source: unilm/beit3/{modeling_utils,modeling_finetune,datasets}.py; torchscale/model/BEiT3.py,
torchscale/architecture/encoder.py, torchscale/component/embedding.py (arXiv 2208.10442).
"""

from __future__ import annotations

from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.rules.format import Dialect, Format
from vit_hub.converters.rules.table import Drop, Reading, rule, weight_and_bias

_POSITIONS = "beit3.encoder.embed_positions.A.weight"
_LAYER = "beit3.encoder.layers.{i}"
_UNUSED = "unused_positions"
_QKV = tuple(f"{_LAYER}.self_attn.{part}_proj.A" for part in "qkv")

RULES = (
    rule("mask_token", "beit3.vision_embed.mask_token", "1 1 d -> 1 d", carried=True),
    rule("cls_token", "beit3.vision_embed.cls_token"),
    rule((_UNUSED, "pos_embed"), _POSITIONS, "n d -> 1 n d", weights=(2, "w"), axis=1),
    *weight_and_bias("patch_embed.proj", "beit3.vision_embed.proj"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.self_attn_layer_norm.A"),
    *(rule(f"blocks.{{i}}.attn.qkv.{end}", tuple(f"{name}.{end}" for name in _QKV)) for end in ("weight", "bias")),
    *weight_and_bias("blocks.{i}.attn.norm", f"{_LAYER}.self_attn.inner_attn_ln.A"),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.self_attn.out_proj.A"),
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.final_layer_norm.A"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.ffn.A.fc1"),
    *weight_and_bias("blocks.{i}.mlp.norm", f"{_LAYER}.ffn.A.ffn_layernorm"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.ffn.A.fc2"),
    *weight_and_bias("norm", "beit3.encoder.layer_norm.A"),
)
_TEXT = "text expert, not part of the image encoder"
DROPS = (
    Drop(r"beit3\.encoder\..*\.B\..*", _TEXT),
    Drop(r"beit3\.text_embed\..*|language_head\..*", _TEXT),
    Drop(r"mlm_head\..*", "head that predicts words"),
)


def _keep_unused(raw: RawCheckpoint, reading: Reading) -> None:
    """Mark the unused rows of the position table as such."""
    reading.carried.extend(name for name in (_UNUSED,) if name in reading.tensors)


def _format(dialect: str, *heads: Any) -> Format:
    return Format(
        name="unilm",
        project="microsoft/unilm's BEiT-3",
        rules=(*RULES, *heads),
        drops=DROPS,
        dialects=(Dialect(dialect),),
        prefixes=("model/", ""),
        conventions={"act": "gelu", "norm_eps": 1e-5, "resize": "bicubic"},
        axes=lambda raw, tensors: {"w": tensors[_POSITIONS].shape[0] - 2} if _POSITIONS in tensors else {},
        adjust=_keep_unused,
        returned_only=True,
        container="torch",
        filename="model.pth",
    )


FORMATS = (
    _format("beit3", rule("projection.weight", "vision_head.weight")),
    # Classifiers of ImageNet have a norm of the mean of the patches instead of the final one.
    _format("beit3-imagenet", *weight_and_bias("fc_norm"), *weight_and_bias("head")),
)
