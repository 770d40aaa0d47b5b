"""facebookresearch/dinov3: backbones with rotary positions, and the teachers of training checkpoints.

The files store the periods of the rotations (rounded to bfloat16 in the published ones) and a mask over the biases of
queries, keys and values; both are kept and used as stored.
Source: dinov3/models/vision_transformer.py, layers/{attention,ffn_layers,rope_position_encoding}.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats.facebook import facebook_format
from vit_hub.converters.rules.format import Dialect, Requirement, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import Rope

RULES = (
    rule("cls_token", "cls_token"),
    rule("reg_token", "storage_tokens"),
    rule("mask_token", "mask_token", carried=True),
    *weight_and_bias("patch_embed.proj"),
    rule("rope_embed.periods", "rope_embed.periods"),
    *weight_and_bias("blocks.{i}.norm1"),
    *weight_and_bias("blocks.{i}.attn.qkv"),
    rule("blocks.{i}.attn.qkv.bias_mask", "blocks.{i}.attn.qkv.bias_mask"),
    *weight_and_bias("blocks.{i}.attn.proj"),
    rule("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma"),
    *weight_and_bias("blocks.{i}.norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1"),
    *weight_and_bias("blocks.{i}.mlp.fc1_g", "blocks.{i}.mlp.w1"),
    *weight_and_bias("blocks.{i}.mlp.fc1_x", "blocks.{i}.mlp.w2"),
    *weight_and_bias("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.${fc2}"),
    rule("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma"),
    *weight_and_bias("norm"),
    *weight_and_bias("cls_norm"),
    # Norm of the class token of local crops: used in training only.
    *weight_and_bias("local_cls_norm", carried=True),
)

_ROPE = Rope(theta=100.0, coordinates="centered", pairs="half", stored_periods=True)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return the heads: there is a period for every four channels of a head."""
    periods, token = tensors.get("rope_embed.periods"), tensors.get("cls_token")
    if periods is None or token is None or not periods.shape or not periods.shape[0]:
        return Stated()
    heads, rest = divmod(token.shape[-1], 4 * periods.shape[0])
    return Stated({} if rest else {"num_heads": heads}, "shape of rope_embed.periods")


FORMATS = (
    facebook_format(
        "dinov3",
        rules=RULES,
        dialects=(Dialect("dinov3", {"fc2": "fc2"}), Dialect("dinov3", {"fc2": "w3"})),
        prefixes=("", "teacher/backbone."),
        conventions={"act": "gelu", "norm_eps": 1e-5, "resize": "bicubic", "rope": _ROPE},
        limits={
            "class_token": True,
            "patch_bias": True,
            "pos_embed": "none",
            "final_norm": "before",
            "ffn": ("mlp", "swiglu"),
        },
        requires=(
            Requirement(
                "rope", lambda c: c.rope is not None and c.rope.stored_periods, "it stores the periods of its RoPE"
            ),
        ),
        state=_state,
        zeros=lambda config, dialect: {"mask_token": (1, config.embed_dim)},
        dialect_for=lambda config, dialects: dialects[config.ffn == "swiglu"],
    ),
)
