"""Saving models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vit_hub.converters.casting import from_tensor
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.passport import Passport
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.write import write_canonical
from vit_hub.model.shapes import tensor_shapes

if TYPE_CHECKING:
    from vit_hub.model.vit import VisionTransformer

__all__ = ["save", "snapshot"]


def snapshot(model: VisionTransformer) -> Checkpoint:
    """Return a model as an opened checkpoint, from which files are written; with its passport and carried tensors."""
    state = model.state_dict()
    tensors = {name: from_tensor(state[name]) for name in tensor_shapes(model.config)}
    tensors |= {name: from_tensor(tensor) for name, tensor in model.carried.items()}
    passport = model.passport or Passport(format="canonical")
    path = Path("model")
    return Checkpoint(
        path=path,
        format="canonical",
        config=model.config,
        tensors=tensors,
        passport=dataclasses.replace(passport, carried=sorted(model.carried)),
        source=RawCheckpoint(path, "safetensors", tensors, {}, {}, ()),
        origin={name: (name,) for name in tensors},
    )


def save(model: VisionTransformer, path: str | Path) -> Path:
    """Write a canonical safetensors file with config and passport, and return its path.

    Args:
        model: any model of this library, fine-tuned or not.
        path: the file, or a folder (no suffix) in which to write ``model.safetensors``.

    Raises:
        VitHubError: the file cannot be written.
    """
    target = Path(path)
    file = target if target.suffix == ".safetensors" else target / "model.safetensors"
    write_canonical(file, snapshot(model))
    return file
