"""Exchange with timm and transformers in memory, without files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_hub.converters.casting import to_torch
from vit_hub.converters.checkpoint import read_source
from vit_hub.converters.containers import Source
from vit_hub.converters.conversion import foreign_tensors
from vit_hub.errors import UnknownFormatError, UnsupportedByFormatError
from vit_hub.loading import build
from vit_hub.model import VisionTransformer
from vit_hub.saving import from_tensor, snapshot

__all__ = ["from_module", "to_timm", "to_transformers"]


def to_timm(model: VisionTransformer) -> dict[str, Tensor]:
    """A state dict for timm's model of the same architecture; tensors that need no change are shared.

    Raises:
        UnsupportedByFormatError: timm has no such architecture.
    """
    tensors, _ = foreign_tensors(_fresh(model), "timm")
    return {name: to_torch(tensor) for name, tensor in tensors.items()}


def to_transformers(model: VisionTransformer) -> nn.Module:
    """A transformers model with the same weights, in evaluation mode.

    Raises:
        UnsupportedByFormatError: transformers has no class that computes the same.
    """
    import transformers

    for spelling in ("hf-v5", "hf"):
        tensors, sidecars = foreign_tensors(_fresh(model), spelling)
        config = dict(sidecars["config.json"])
        architecture = config["architectures"][0]
        with torch.device("meta"):
            made: nn.Module = getattr(transformers, architecture)(
                transformers.AutoConfig.for_model(config.pop("model_type"), **config)
            )
        if set(made.state_dict()) == set(tensors):
            made.load_state_dict({name: to_torch(tensor) for name, tensor in tensors.items()}, assign=True)
            return made.eval()
    raise UnsupportedByFormatError(
        f"transformers {transformers.__version__}: {architecture} has other tensors than expected",
        hint="convert to a folder instead: model.save(file), then vit_hub.convert(file, folder, to='hf')",
    )


def _fresh(model: VisionTransformer) -> Any:
    """A snapshot that forgets the dialect of its source, which matters to files only."""
    found = snapshot(model)
    sidecars = found.passport.sidecars
    return dataclasses.replace(
        found, passport=dataclasses.replace(found.passport, format="canonical", prefix="", sidecars=sidecars)
    )


def from_module(module: nn.Module) -> VisionTransformer:
    """The canonical model of a timm or transformers model, sharing its tensors where no change is needed.

    Args:
        module: a timm VisionTransformer or a transformers ViT, with or without a head.

    Raises:
        UnknownFormatError: neither.
        CheckpointError, ConfigError: an architecture that the canonical model does not cover.
    """
    if isinstance(module, VisionTransformer):
        return module
    sidecars: dict[str, dict[str, Any]] = {}
    hints: dict[str, Any] = {}
    name = type(module).__name__
    if type(module).__module__.startswith("transformers."):
        label = "hf"
        sidecars["config.json"] = {**module.config.to_dict(), "architectures": [name]}  # type: ignore[operator, union-attr]
    elif hasattr(module, "global_pool") and hasattr(module, "patch_embed") and hasattr(module, "blocks"):
        label, hints = "timm", _timm_facts(module)
    else:
        raise UnknownFormatError(f"{name} is neither a timm Vision Transformer nor a transformers model")
    tensors = {key: from_tensor(value) for key, value in module.state_dict().items()}
    source = Source(Path(name), "safetensors", tensors, {}, sidecars, ())
    state = dict(module.state_dict())
    dtype = next(iter(state.values())).dtype
    made = build(read_source(source, format=label, hints=hints), dtype=dtype)
    return made.to(next(iter(state.values())).device)


_TIMM_ACTIVATIONS = {"QuickGELU": "quick_gelu", "QuickGELUTanh": "quick_gelu", "SiLU": "silu", "ReLU": "relu"}


def _timm_facts(module: Any) -> dict[str, Any]:
    """What timm's modules say that a state dict cannot."""
    block = module.blocks[0]
    name = type(block.mlp.act).__name__
    tanh = name == "GELUTanh" or getattr(block.mlp.act, "approximate", "none") == "tanh"
    facts = {
        "num_heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "act": "gelu_tanh" if tanh else _TIMM_ACTIVATIONS.get(name, "gelu"),
        "image_size": tuple(module.patch_embed.img_size),
        "pool": {"token": "cls", "": "none"}.get(module.global_pool, module.global_pool),
    }
    if getattr(module, "dist_token", None) is not None:
        facts["pool"] = "cls_dist"
    return facts
