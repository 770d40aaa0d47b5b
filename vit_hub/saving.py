"""From a model back to files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vit_hub.converters.checkpoint import Checkpoint
from vit_hub.converters.containers import Source
from vit_hub.converters.conversion import write_canonical
from vit_hub.converters.passport import Passport
from vit_hub.converters.tensors import LazyTensor
from vit_hub.layout import tensor_shapes

if TYPE_CHECKING:
    import torch

    from vit_hub.model import VisionTransformer

__all__ = ["from_tensor", "save", "snapshot"]


def from_tensor(tensor: torch.Tensor) -> LazyTensor:
    """A lazy tensor over a torch tensor, which may live on any device until it is read."""
    import torch

    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }

    def read() -> object:
        values = tensor.detach().cpu().contiguous()
        return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()

    return LazyTensor(names[tensor.dtype], tuple(tensor.shape), read)  # type: ignore[arg-type]


def snapshot(model: VisionTransformer) -> Checkpoint:
    """A model as an opened checkpoint: what files are written from, passport and carried tensors included."""
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
        source=Source(path, "safetensors", tensors, {}, {}, ()),
        origin={name: (name,) for name in tensors},
    )


def save(model: VisionTransformer, path: str | Path) -> Path:
    """Writes a canonical safetensors file with config and passport.

    Args:
        model: any model of this library, fine-tuned or not.
        path: the file, or a folder (no suffix) for a ``model.safetensors`` in it.

    Returns:
        The file written.

    Raises:
        VitHubError: the file cannot be written.
    """
    target = Path(path)
    file = target if target.suffix == ".safetensors" else target / "model.safetensors"
    write_canonical(file, snapshot(model))
    return file
