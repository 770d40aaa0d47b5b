"""google-research/big_vision: ViT, SigLIP and SigLIP 2, FlexiViT, NaFlex and LiT image towers, ``.npz``.

Spellings: blocks one by one or stacked along a leading axis (``scan``), the position table in today's place or in two
older ones, the MAP head under its name or inlined. Source: big_vision/models/vit.py, proj/image_text/naflex_vit.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats._flax import CONVENTIONS, LIMITS, dense, encoder_block, norm
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_ATTENTION = "MultiHeadDotProductAttention_0"
_MAP = f"${{map}}{_ATTENTION}"

RULES = (
    rule("cls_token", "cls"),
    rule("pos_embed", "${pos}", "1 n d -> 1 n d", "g k d -> 1 (g k) d"),
    rule("patch_embed.proj.weight", "embedding/kernel", "k l i o -> o i k l", "(p q c) o -> o c p q"),
    rule("patch_embed.proj.bias", "embedding/bias"),
    *encoder_block("${block}", attention=_ATTENTION, norm2="LayerNorm_1", mlp="MlpBlock_0"),
    *norm("norm", "Transformer/encoder_norm"),
    rule("attn_pool.latent", "${map}probe"),
    rule("attn_pool.q.weight", f"{_MAP}/query/kernel", "d m e -> (m e) d"),
    rule("attn_pool.q.bias", f"{_MAP}/query/bias", "m e -> (m e)"),
    rule("attn_pool.kv.weight", (f"{_MAP}/key/kernel", f"{_MAP}/value/kernel"), "d m e -> (m e) d"),
    rule("attn_pool.kv.bias", (f"{_MAP}/key/bias", f"{_MAP}/value/bias"), "m e -> (m e)"),
    rule("attn_pool.proj.weight", f"{_MAP}/out/kernel", "m e d -> d (m e)"),
    rule("attn_pool.proj.bias", f"{_MAP}/out/bias"),
    *norm("attn_pool.norm", "${map}LayerNorm_0"),
    *dense("attn_pool.mlp.fc1", "${map}MlpBlock_0/Dense_0"),
    *dense("attn_pool.mlp.fc2", "${map}MlpBlock_0/Dense_1"),
    *dense("pre_logits.fc", "pre_logits"),
    *dense("head", "head"),
)

_BLOCKS = {"": "Transformer/encoderblock_{i}", "scan": "Transformer/encoderblock"}
_TABLES = {"": "pos_embedding", "pos2": "Transformer/pos_embedding", "pos1": "Transformer/posembed_input/pos_embedding"}
_MAPS = {"": "MAPHead_0/", "inline": ""}


def _dialect(*names: str) -> Dialect:
    block, table, pooling = names
    variables = {"block": _BLOCKS[block], "pos": _TABLES[table], "map": _MAPS[pooling]}
    return Dialect("-".join(filter(None, names)), variables)


def _axes(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    """Return the axes of NaFlex' flattened patch kernel [p * p * 3, D], of square patches and three channels."""
    kernel = tensors.get("embedding/kernel")
    if kernel is None or len(kernel.shape) != 2:
        return {}
    side = math.isqrt(kernel.shape[0] // 3)
    return {"p": side, "q": side, "c": 3}


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return the heads by the attention kernels; a model without a stored table computes one."""
    fields: dict[str, Any] = {}
    block = dialect.variables["block"].replace("{i}", "0")
    query = tensors.get(f"{block}/{_ATTENTION}/query/kernel")
    if query is not None and len(query.shape) >= 3:
        fields["num_heads"] = query.shape[-2]
    if dialect.variables["pos"] not in tensors:
        fields["pos_embed"] = "sincos2d"
    kernel = tensors.get("embedding/kernel")
    if kernel is not None and len(kernel.shape) == 2:
        fields |= {"resize": "bilinear-antialias", "resize_by_count": False}
    return Stated(fields, "shapes of the original tensors")


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    """Return the dialect; big_vision reads tables with a class row only under the name that vit_jax has for them."""
    table = _TABLES["pos1" if config.num_prefix_rows else ""]
    return next((dialect for dialect in dialects if dialect.variables["pos"] == table), dialects[0])


FORMATS = (
    Format(
        name="big_vision",
        project="google-research/big_vision",
        rules=RULES,
        dialects=tuple(_dialect(*names) for names in product(_BLOCKS, _TABLES, _MAPS)),
        prefixes=("", "params/", "opt/target/", "params/img/", "opt/target/img/", "img/"),
        conventions=CONVENTIONS,
        limits={**LIMITS, "pos_embed": ("learned", "sincos2d")},
        requires=(
            Requirement(
                "class_token",
                lambda c: c.class_token == (c.pool == "cls"),
                "it has a class token if and only if it pools it",
            ),
        ),
        axes=_axes,
        state=_state,
        dialect_for=_dialect_for,
        container="npz",
        filename="model.npz",
    ),
)
