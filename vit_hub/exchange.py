"""Exchange with timm and transformers in memory, without files."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vit_hub.converters.casting import to_torch
from vit_hub.converters.checkpoint import read_source
from vit_hub.converters.containers import Source
from vit_hub.converters.conversion import foreign_tensors
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import UnknownFormatError, UnsupportedByFormatError
from vit_hub.loading import build
from vit_hub.model import VisionTransformer
from vit_hub.saving import from_tensor, snapshot
from vit_hub.timm_modules import timm_facts, timm_format

__all__ = ["from_module", "timm_model", "to_timm", "to_transformers"]


def to_timm(model: VisionTransformer) -> dict[str, Tensor]:
    """A state dict for timm's model of the same architecture; tensors that need no change are shared.

    What came from timm goes back to the class that it came from.

    Raises:
        UnsupportedByFormatError: timm has no such architecture.
    """
    source = model.passport.format if model.passport else ""
    tensors, _ = _foreign(model, source if source.partition("-")[0] == "timm" else "timm", source)
    return {name: to_torch(tensor) for name, tensor in tensors.items()}


def timm_model(model: VisionTransformer) -> nn.Module:
    """timm's model with the same weights, in evaluation mode.

    Raises:
        UnsupportedByFormatError: timm has no such architecture.
    """
    import timm

    tensors, sidecars = _foreign(model, "timm", "canonical")
    config = sidecars["config.json"]
    options = {**config["model_args"], "num_classes": config["num_classes"]}
    made: nn.Module = timm.create_model(config["architecture"], pretrained=False, **options)
    state = {name: to_torch(tensor) for name, tensor in tensors.items()}
    made.load_state_dict(state)
    return made.to(next(iter(state.values())).dtype).eval()


def to_transformers(model: VisionTransformer) -> nn.Module:
    """A transformers model with the same weights, in evaluation mode.

    Raises:
        UnsupportedByFormatError: transformers has no class that computes the same.
    """
    import transformers

    tensors, sidecars = _foreign(model, "hf", "canonical")
    config = dict(sidecars["config.json"])
    architecture = config["architectures"][0]
    state = {name: to_torch(tensor) for name, tensor in tensors.items()}
    chosen = "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"
    told = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    # ViTModel makes up a pooler where there is none, unless it is told not to.
    for options in ({}, {"add_pooling_layer": False}):
        with _no_progress_bar():
            made, info = getattr(transformers, architecture).from_pretrained(
                None,
                config=told,
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
    """Keeps transformers from drawing one for what takes no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _foreign(model: VisionTransformer, to: str, source: str) -> tuple[dict[str, LazyTensor], dict[str, dict[str, Any]]]:
    """Tensors and config files of a format for a model from a source in some format, be it a file of whatever names."""
    found = snapshot(model)
    passport = dataclasses.replace(found.passport, format=source, prefix="", names={}, shapes={})
    tensors, sidecars, folded = foreign_tensors(dataclasses.replace(found, passport=passport), to)
    for message in folded:
        warnings.warn(message, stacklevel=3)
    return tensors, sidecars


def from_module(module: nn.Module) -> VisionTransformer:
    """The canonical model of a timm or transformers model, sharing its tensors where no change is needed.

    Args:
        module: a timm VisionTransformer, Eva or Beit, or a transformers model, with or without a head.

    Raises:
        UnknownFormatError: neither.
        CheckpointError, ConfigError: an architecture that the canonical model does not cover.
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
    else:
        raise UnknownFormatError(f"{name} is neither a timm Vision Transformer nor a transformers model")
    tensors = {key: from_tensor(value) for key, value in module.state_dict().items()}
    source = Source(Path(name), "safetensors", tensors, {}, sidecars, ())
    state = dict(module.state_dict())
    dtype = next(iter(state.values())).dtype
    made = build(read_source(source, format=label, overrides=facts), dtype=dtype)
    return made.to(next(iter(state.values())).device)
