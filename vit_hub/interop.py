"""Exchange with timm and transformers in memory, without files."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from vit_hub.converters.build import build
from vit_hub.converters.casting import from_tensor, to_torch
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats._timm import BLOCKS, POOLS
from vit_hub.converters.formats.timm_naflex import check_square
from vit_hub.converters.read import read_raw
from vit_hub.converters.save import snapshot
from vit_hub.converters.write import foreign_tensors
from vit_hub.errors import ConfigError, UnknownFormatError, UnsupportedByFormatError
from vit_hub.model.vit import VisionTransformer

__all__ = ["from_module", "timm_facts", "timm_format", "timm_model", "to_timm", "to_transformers"]


_LABEL_KEYS = ("label_names", "label_descriptions")
# What a timm model knows of its preprocessing and classes.
_FACTS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", *_LABEL_KEYS)


def to_timm(model: VisionTransformer) -> dict[str, Tensor]:
    """Return a state dict for timm's model of the same architecture; tensors that need no change are shared.

    A model that came from timm goes back to the class that it came from.

    Raises:
        UnsupportedByFormatError: timm has no such architecture.
    """
    source = model.passport.format if model.passport else ""
    return _foreign(model, source if source.partition("-")[0] == "timm" else "timm", source)[0]


def timm_model(model: VisionTransformer) -> nn.Module:
    """Return timm's model with the same weights, in evaluation mode.

    Raises:
        UnsupportedByFormatError: timm has no such architecture.
    """
    from timm.models import model_entrypoint

    state, sidecars = _foreign(model, "timm", "canonical")
    config = sidecars["config.json"]
    options = {**config["model_args"], "num_classes": config["num_classes"]}
    # Preprocessing and class names, which timm reads from there.
    facts = {**config["pretrained_cfg"], **{key: config[key] for key in _LABEL_KEYS if key in config}}
    # Not by timm.create_model, for which None means that an argument is not given.
    build_timm = model_entrypoint(config["architecture"])
    made: nn.Module = build_timm(pretrained=False, pretrained_cfg_overlay=facts, **options)
    made = made.to(next(iter(state.values())).dtype)
    made.load_state_dict(state)
    return made.eval()


def to_transformers(model: VisionTransformer) -> nn.Module:
    """Return a transformers model with the same weights, in evaluation mode.

    Raises:
        UnsupportedByFormatError: transformers has no class that computes the same.
    """
    import transformers

    state, sidecars = _foreign(model, "hf", "canonical")
    config = dict(sidecars["config.json"])
    architecture = config["architectures"][0]
    chosen = "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"
    known = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    # ViTModel makes up a pooler if there is none, unless add_pooling_layer=False.
    for options in ({}, {"add_pooling_layer": False}):
        with _no_progress_bar():
            made, info = getattr(transformers, architecture).from_pretrained(
                None,
                config=known,
                state_dict=state,
                output_loading_info=True,
                **{chosen: next(iter(state.values())).dtype, **options},
            )
        if not any(name.startswith("pooler.") for name in info["missing_keys"]):
            break
    if any(info.values()):
        raise UnsupportedByFormatError(
            f"transformers {transformers.__version__}: {architecture} has other tensors than expected",
            hint="convert to a folder instead: model.save(file), then vit_hub.convert(file, folder, to='hf')",
        )
    return cast(nn.Module, made.eval())


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a progress bar for what takes no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _foreign(model: VisionTransformer, to: str, source: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return state dict and config files of the format ``to``, ignoring the names that the file of ``source`` had."""
    found = snapshot(model)
    passport = dataclasses.replace(found.passport, format=source, prefix="", names={}, shapes={}, channels_last=[])
    tensors, sidecars, folded = foreign_tensors(dataclasses.replace(found, passport=passport), to)
    for message in folded:
        warnings.warn(message, stacklevel=3)
    return {name: to_torch(tensor) for name, tensor in tensors.items()}, sidecars


def from_module(module: nn.Module) -> VisionTransformer:
    """Return the canonical model of a timm or transformers model, sharing tensors that need no change.

    Args:
        module: a timm VisionTransformer, VisionTransformerRelPos, VisionTransformerSAM, Eva or Beit, or a transformers
            model, with a head or without.

    Raises:
        UnknownFormatError: it is neither.
        CheckpointError, ConfigError: the canonical model does not cover its architecture.
    """
    if isinstance(module, VisionTransformer):
        return module
    sidecars: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    name = type(module).__name__
    if type(module).__module__.startswith("transformers."):
        label = "hf"
        sidecars["config.json"] = {**module.config.to_dict(), "architectures": [name]}  # type: ignore[operator, union-attr]
    elif label := timm_format(module):
        facts = timm_facts(module)
        known = getattr(module, "pretrained_cfg", None) or {}
        sidecars["config.json"] = {"pretrained_cfg": {key: known[key] for key in _FACTS if known.get(key) is not None}}
    else:
        raise UnknownFormatError(f"{name} is neither a timm Vision Transformer nor a transformers model")
    state = module.state_dict()
    tensors = {key: from_tensor(value) for key, value in state.items()}
    source = RawCheckpoint(Path(name), "safetensors", tensors, {}, sidecars, ())
    first = next(iter(state.values()))
    return build(read_raw(source, format=label, overrides=facts), dtype=first.dtype).to(first.device)


# timm's class -> the format of its state dicts.
_CLASSES = {
    "VisionTransformer": "timm",
    "VisionTransformerRelPos": "timm-relpos",
    "VisionTransformerSAM": "timm-sam",
    "NaFlexVit": "timm-naflex",
    "Eva": "timm-eva",
    "Beit": "timm-beit",
}
_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "ReLU": "relu"}


def timm_format(module: nn.Module) -> str:
    """Return the format of a module's state dict; empty if it is of no class that is read."""
    found = (cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("timm."))
    label = next((_CLASSES[name] for name in found if name in _CLASSES), "")
    block: Any = module.blocks[0] if label else None  # type: ignore[index]
    if label == "timm-eva":
        return label if block.attn.qkv is not None else f"{label}-split"
    if label == "timm" and hasattr(block, "in_proj"):
        return f"{label}-parallel" + "-fused" * (block.out_proj is not None)
    return label


def timm_facts(module: Any) -> dict[str, Any]:
    """Return the config fields that only the code of a module's forward pass decides.

    Raises:
        ConfigError: it computes something that the canonical model does not.
    """
    block = _block(module.blocks[0])
    embeddings = getattr(module, "patch_embed", None) or module.embeds
    first: Any = getattr(embeddings, "norm", None)
    if _has_weights(first) and _norm(first) != _norm(block.norm):
        raise ConfigError("patch_norm: patch embeddings with another norm than the blocks are not supported")
    facts = {
        "num_heads": block.attn.num_heads,
        "norm_eps": _norm(block.norm)[1],
        "act": _activation(block.act),
        **(_naflex_facts(embeddings) if hasattr(module, "embeds") else {"image_size": tuple(embeddings.img_size)}),
        "rope": _rope(getattr(module, "rope", None), getattr(block.attn, "rotate_half", False)),
        **block.fields,
    }
    stem = getattr(embeddings, "backbone", None)
    if stem is not None:
        first = getattr(stem, "stem", stem)
        if not hasattr(first, "norm"):
            raise ConfigError(f"stem: timm's {type(stem).__name__} is not supported, the ResNet of the hybrids is")
        facts |= {"stem_standardize": "var", "stem_norm_eps": first.norm.eps}
    if timm_format(module) == "timm-sam":
        return facts | _windows(module)
    return facts | _pooling(module, facts["act"])


class _Block(NamedTuple):
    """A block of timm's: its first norm, what has the heads, the activation, and the fields that its class fixes."""

    norm: nn.Module
    attn: Any
    act: nn.Module
    fields: dict[str, Any]


def _block(block: Any) -> _Block:
    name = type(block).__name__
    if name.lower() not in BLOCKS:
        raise ConfigError(f"blocks: timm's {name} is not supported")
    fields = {"norm_position": "pre", "parallel": "none", "branches": 1, **BLOCKS[name.lower()]}
    if hasattr(block, "in_proj"):
        parallel = "separate" if block.out_proj is None else "joint"
        return _Block(block.in_norm, block, block.mlp_act, {"differential": False, **fields, "parallel": parallel})
    if hasattr(block, "attns"):
        norm, attn, mlp = block.attns[0].norm, block.attns[0].attn, block.ffns[0].mlp
        fields["branches"] = len(block.attns)
    else:
        norm, attn, mlp = block.norm1, block.attn, block.mlp
    if type(mlp).__name__ not in ("Mlp", "SwiGLU", "GluMlp") or getattr(mlp, "gate_last", False):
        raise ConfigError(f"ffn: timm's {type(mlp).__name__} of this kind is not supported")
    return _Block(norm, attn, mlp.act, {**fields, "differential": type(attn).__name__ == "DiffAttention"})


def _windows(module: Any) -> dict[str, Any]:
    """The windows of VisionTransformerSAM, and whether its map is pooled."""
    if module.rope_global is not None:
        raise ConfigError("rope: timm's VisionTransformerSAM with rotary positions is not supported")
    sides = [block.window_size for block in module.blocks]
    full, size = [index for index, side in enumerate(sides) if not side], max(sides)
    windows = {"size": (size, size), "full": full} if size else None
    if module.global_pool not in POOLS:
        raise ConfigError(f"pool: timm's global_pool={module.global_pool!r} is not supported")
    return {"windows": windows, "pool": POOLS[module.global_pool]}


def _naflex_facts(embeddings: Any) -> dict[str, Any]:
    """Sizes and resizing of a NaFlexVit, whose native images fill its position table."""
    if not embeddings.channels_last and embeddings.is_linear:
        raise ConfigError("patch_size: timm's patches with channels first are supported in files only")
    patch, mode = embeddings.patch_size, embeddings.pos_embed_interp_mode
    ending = "-align-corners" if embeddings.pos_embed_align_corners else "-antialias" * embeddings.pos_embed_antialias
    if embeddings.pos_embed_type == "factorized":
        check_square(tuple(embeddings.pos_embed_grid_size), embeddings.pos_embed_ar_preserving)
    grid = embeddings.pos_embed_grid_size or (224 // patch[0], 224 // patch[1])
    return {
        "image_size": tuple(int(count * side) for count, side in zip(grid, patch, strict=True)),
        "patch_size": tuple(patch),
        "resize": "bilinear" if embeddings.pos_embed_type == "factorized" else mode + ending,
        "resize_square": bool(embeddings.pos_embed_ar_preserving),
    }


def _has_weights(layer: Any) -> bool:
    """Return whether a layer is there and has parameters."""
    return layer is not None and any(True for _ in layer.parameters())


def _norm(layer: nn.Module) -> tuple[str, float]:
    """Kind and epsilon of a norm."""
    name = type(layer).__name__
    kind = "layer" if isinstance(layer, nn.LayerNorm) else "rms" if name.startswith("RmsNorm") else ""
    if not kind or getattr(layer, "weight", None) is None:
        raise ConfigError(f"norm: timm's {name} of this kind is not supported, LayerNorm and RmsNorm are")
    return kind, float(layer.eps)  # type: ignore[arg-type]


def _activation(layer: nn.Module) -> str:
    name = type(layer).__name__
    if name not in _ACTIVATIONS:
        raise ConfigError(f"act: timm's {name} is not supported")
    return "gelu_tanh" if getattr(layer, "approximate", "none") == "tanh" else _ACTIVATIONS[name]


def _pooling(module: Any, act: str) -> dict[str, Any]:
    pool, prefix = module.global_pool, bool(getattr(module, "pool_include_prefix", False))
    if pool not in POOLS:
        raise ConfigError(f"pool: timm's global_pool={pool!r} is not supported")
    if getattr(module, "dist_token", None) is not None:
        return {"pool": "cls_dist"}
    tokens = module.num_prefix_tokens > 0
    if pool != "map":
        return {"pool": POOLS[pool], "pool_prefix": pool == "avg" and prefix and tokens}
    if _activation(module.attn_pool.mlp.act) != act:
        raise ConfigError("act: attention pooling with another activation than the blocks' is not supported")
    attends = prefix or not hasattr(module, "pool_include_prefix")
    return {"pool": "map", "pool_heads": module.attn_pool.num_heads, "pool_prefix": attends and tokens}


def _rope(rope: Any, rotate_half: bool) -> dict[str, Any] | None:
    """Fields of :class:`vit_hub.model.config.Rope`; None without one."""
    if rope is None:
        return None
    name, offset = type(rope).__name__, float(getattr(rope, "grid_offset", 0.0))
    found = {"theta": float(rope.temperature), "order": "xy" if rope.grid_indexing == "xy" else "yx"}
    found["pairs"] = "half" if rotate_half else "interleaved"
    if name == "RotaryEmbeddingMixed":
        return {**found, "mixed": True}
    if name == "RotaryEmbeddingCat" and not rope.in_pixels:
        reference = list(rope.ref_feat_shape) if rope.ref_feat_shape else None
        return {**found, "offset": offset, "reference_grid": reference}
    if name == "RotaryEmbeddingDinoV3" and rope.min_period is None:
        return {**found, "coordinates": "centered", "offset": offset, "normalize": rope.normalize_coords}
    raise ConfigError(f"rope: timm's {name} of this kind is not supported")
