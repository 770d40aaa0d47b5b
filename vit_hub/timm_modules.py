"""What timm's modules say that their state dicts cannot, as config fields."""

from __future__ import annotations

from typing import Any

from torch import nn

from vit_hub.errors import ConfigError

__all__ = ["timm_facts", "timm_format"]

# timm's class -> the format of its state dicts, and the blocks that compute as the names of their layers suggest.
_CLASSES = {
    "VisionTransformer": ("timm", ("Block",)),
    "Eva": ("timm-eva", ("EvaBlock",)),
    "Beit": ("timm-beit", ("Block",)),
}
_ACTIVATIONS = {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "ReLU": "relu"}
_POOLS = {"token": "cls", "avg": "avg", "map": "map", "": "none"}


def timm_format(module: nn.Module) -> str:
    """The format of a module's state dict; empty if it is none of the three classes."""
    found = (cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("timm."))
    label = next((_CLASSES[name][0] for name in found if name in _CLASSES), "")
    return f"{label}-split" if label == "timm-eva" and module.blocks[0].attn.qkv is None else label  # type: ignore[index, union-attr]


def timm_facts(module: Any) -> dict[str, Any]:
    """Config fields of a module, those of its forward pass that nothing but its code decides.

    Raises:
        ConfigError: it computes something that the canonical model does not.
    """
    block, label = module.blocks[0], timm_format(module).removesuffix("-split")
    known = next(blocks for form, blocks in _CLASSES.values() if form == label)
    if type(block).__name__ not in known:
        raise ConfigError(f"blocks: timm's {type(block).__name__} is not supported, {' or '.join(known)} is")
    if not isinstance(block.norm1, nn.LayerNorm):
        raise ConfigError(f"norm_eps: timm's {type(block.norm1).__name__} is not supported, LayerNorm is")
    if type(block.mlp).__name__ not in ("Mlp", "SwiGLU", "GluMlp") or getattr(block.mlp, "gate_last", False):
        raise ConfigError(f"ffn: timm's {type(block.mlp).__name__} of this kind is not supported")
    facts = {
        "num_heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "act": _activation(block.mlp.act),
        "image_size": tuple(module.patch_embed.img_size),
        "rope": _rope(getattr(module, "rope", None), getattr(block.attn, "rotate_half", False)),
    }
    stem = getattr(module.patch_embed, "backbone", None)
    if stem is not None:
        first = getattr(stem, "stem", stem)
        if not hasattr(first, "norm"):
            raise ConfigError(f"stem: timm's {type(stem).__name__} is not supported, the ResNet of the hybrids is")
        facts |= {"stem_standardize": "var", "stem_norm_eps": first.norm.eps}
    return facts | _pooling(module, facts["act"])


def _activation(layer: nn.Module) -> str:
    name = type(layer).__name__
    if name == "GELU":
        return "gelu_tanh" if getattr(layer, "approximate", "none") == "tanh" else "gelu"
    if name not in _ACTIVATIONS:
        raise ConfigError(f"act: timm's {name} is not supported")
    return _ACTIVATIONS[name]


def _pooling(module: Any, act: str) -> dict[str, Any]:
    pool, prefix = module.global_pool, bool(getattr(module, "pool_include_prefix", False))
    if pool not in _POOLS or (prefix and pool == "avg"):
        raise ConfigError(f"pool: timm's global_pool={pool!r}{' with prefix tokens' * prefix} is not supported")
    if getattr(module, "dist_token", None) is not None:
        return {"pool": "cls_dist"}
    if pool != "map":
        return {"pool": _POOLS[pool]}
    if _activation(module.attn_pool.mlp.act) != act:
        raise ConfigError("act: attention pooling with another activation than the blocks' is not supported")
    attends = prefix or not hasattr(module, "pool_include_prefix")
    tokens = module.num_prefix_tokens > 0
    return {"pool": "map", "pool_heads": module.attn_pool.num_heads, "pool_prefix": attends and tokens}


def _rope(rope: Any, rotate_half: bool) -> dict[str, Any] | None:
    """Fields of :class:`vit_hub.config.Rope`; None without one."""
    if rope is None:
        return None
    name = type(rope).__name__
    found = {"theta": float(rope.temperature), "order": "xy" if rope.grid_indexing == "xy" else "yx"}
    found["pairs"] = "half" if rotate_half else "interleaved"
    if name == "RotaryEmbeddingMixed":
        return {**found, "mixed": True}
    if name == "RotaryEmbeddingCat" and not rope.in_pixels:
        reference = list(rope.ref_feat_shape) if rope.ref_feat_shape else None
        return {**found, "offset": float(rope.grid_offset), "reference_grid": reference}
    if name == "RotaryEmbeddingDinoV3" and rope.min_period is None:
        return {
            **found,
            "coordinates": "centered",
            "offset": float(rope.grid_offset),
            "normalize": rope.normalize_coords,
        }
    raise ConfigError(f"rope: timm's {name} of this kind is not supported")
