"""MoonViT, the image encoder of Kimi-VL and Kimi K2.5: moonshotai's own files, and transformers' class of the latter.

Its rotations turn by column and row, frequency by frequency. It is read as a model of images, not of videos. Its class
joins squares of patches before the language model, which takes no weights.
Source: moonshotai/MoonViT-SO-400M/modeling_moonvit.py (arXiv 2504.07491);
transformers/models/kimi_k25/modeling_kimi_k25.py, conversion_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import Rope, ViTConfig

_DEFAULTS: dict[str, Any] = {"num_attention_heads": 16, "patch_size": 14}
_OWN = (
    hf.ModelType("moonvit", "MoonVit", _DEFAULTS, whole="kimi_vl"),
    # Kimi K2.5's own files name the whole model only, and its fields with a prefix.
    hf.ModelType("kimi_k25", "MoonVit3d", {"patch_size": 14}),
)
_K25 = (hf.ModelType("kimi_k25_vision", "Kimi_K25Vision", {**_DEFAULTS, "hidden_act": "gelu_pytorch_tanh"}),)
_PREFIXED = "vt_num_attention_heads"

_GRID = "y x d -> 1 (y x) d"
_OWN_LAYER = "encoder.blocks.{i}"
_OWN_RULES = (
    rule("pos_embed", "patch_embed.pos_emb.weight", _GRID),
    *weight_and_bias("patch_embed.proj"),
    *weight_and_bias("blocks.{i}.norm1", f"{_OWN_LAYER}.norm0"),
    *weight_and_bias("blocks.{i}.attn.qkv", f"{_OWN_LAYER}.wqkv"),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_OWN_LAYER}.wo"),
    *weight_and_bias("blocks.{i}.norm2", f"{_OWN_LAYER}.norm1"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_OWN_LAYER}.mlp.fc0"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_OWN_LAYER}.mlp.fc1"),
    *weight_and_bias("norm", "encoder.final_layernorm"),
)
_LAYER = "layers.{i}"
_QKV = tuple(f"{_LAYER}.attn.{part}_proj" for part in "qkv")
_K25_RULES = (
    rule("pos_embed", "patch_embed.pos_emb.position_embeddings", _GRID),
    *weight_and_bias("patch_embed.proj"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.norm1"),
    *(rule(f"blocks.{{i}}.attn.qkv.{end}", tuple(f"{name}.{end}" for name in _QKV)) for end in ("weight", "bias")),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.attn.proj"),
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.fc2"),
    *weight_and_bias("norm", "final_layernorm"),
)
_ROPE: dict[str, Any] = {"order": "xy", "axes": "turns"}
_K25_ROPE: dict[str, Any] = {**_ROPE, "pairs": "half"}


def _sizes(tensors: Mapping[str, LazyTensor], table: str) -> dict[str, Any]:
    """Return the image size that the grid of the position table is for."""
    shape, kernel = tensors[table].shape, tensors["patch_embed.proj.weight"].shape
    if len(shape) != 3 or len(kernel) != 4:
        return {}
    return {"image_size": (shape[0] * kernel[2], shape[1] * kernel[3])}


def _own_state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; activation and epsilon are fixed in the code."""
    values, stated = hf.read_config(raw, _OWN)
    rope = {**_ROPE, "theta": hf.rope_theta(values, Rope().theta)}
    fields = {**stated.fields, **_sizes(tensors, "patch_embed.pos_emb.weight"), "rope": rope, "pool": "avg"}
    if _PREFIXED in values:
        fields["num_heads"] = values[_PREFIXED]
    return replace(stated, fields=fields)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; the epsilon is fixed in the code."""
    values, stated = hf.read_config(raw, _K25)
    rope = {**_K25_ROPE, "theta": hf.rope_theta(values, Rope().theta)}
    table = _sizes(tensors, "patch_embed.pos_emb.position_embeddings")
    return replace(stated, fields={**stated.fields, **table, "rope": rope, "pool": "avg"})


def _own_sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return the config.json of the tower alone, or the one that was there."""
    extra = {
        **dict.fromkeys(("hidden_act", "layer_norm_eps", "image_size", "num_channels")),
        "init_pos_emb_height": config.grid_size[0],
        "init_pos_emb_width": config.grid_size[1],
    }
    return hf.write_config(_OWN[0], config, passport, extra=extra, head="PretrainedModel")


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    extra = {
        **dict.fromkeys(("layer_norm_eps", "image_size", "num_channels")),
        "pos_emb_height": config.grid_size[0],
        "pos_emb_width": config.grid_size[1],
        "rope_parameters": {"rope_type": "axial", "rope_theta": config.rope.theta if config.rope else Rope().theta},
    }
    return hf.write_config(_K25[0], config, passport, extra=extra)


_CONVENTIONS = {"act": "gelu_tanh", "norm_eps": 1e-5, "resize": "bicubic"}
FORMATS = (
    hf.transformers_format(
        _OWN,
        rules=_OWN_RULES,
        dialects=(Dialect("", {"family": "moonvit"}),),
        conventions=_CONVENTIONS,
        state=_own_state,
        sidecars=_own_sidecars,
        returned_only=True,
    ),
    hf.transformers_format(
        _K25,
        rules=_K25_RULES,
        dialects=(Dialect("", {"family": "kimi_k25"}),),
        conventions=_CONVENTIONS,
        limits={
            "norm_eps": 1e-5,
            "qkv_bias": True,
            "patch_bias": True,
            "qk_norm": False,
            "pre_norm": False,
            "layer_scale": False,
            "class_token": False,
            "num_registers": 0,
            "pos_embed": "learned",
            "pool": "avg",
            "final_norm": "before",
            "num_classes": 0,
            "in_chans": 3,
        },
        requires=(
            hf.SQUARE,
            Requirement(
                "rope",
                lambda c: c.rope is not None and c.rope == Rope(**{**_K25_ROPE, "theta": c.rope.theta}),
                "it has rotary positions, by column and row in turns, rotating the halves of a head",
            ),
        ),
        state=_state,
        sidecars=_sidecars,
    ),
)
