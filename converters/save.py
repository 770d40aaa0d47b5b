"""Saving models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vit_hub.converters.casting import from_tensor
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.containers.destination import canonical_file
from vit_hub.converters.passport import Passport
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.write import write_canonical
from vit_hub.errors import ConfigError
from vit_hub.model.shapes import tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from vit_hub.model.config import ViTConfig
    from vit_hub.model.vit import VisionTransformer

__all__ = ["current_config", "save", "snapshot"]

_SHOWN = 3


def snapshot(model: VisionTransformer) -> Checkpoint:
    """Return a model as an opened checkpoint, from which files are written, with passport and carried tensors.

    Tensors that are sharded over processes are gathered, so all of these have to call it.

    Raises:
        ConfigError: layers were replaced by others that no config describes, or values are not there.
    """
    config, state = current_config(model), model.state_dict()
    tensors = {name: from_tensor(_gathered(name, state[name])) for name in tensor_shapes(config)}
    tensors |= {name: from_tensor(tensor) for name, tensor in model.carried.items()}
    passport = model.passport or Passport(format="canonical")
    passport = dataclasses.replace(passport, carried=sorted(model.carried))
    if config.num_classes != model.config.num_classes:
        passport = passport.without_labels()
    path = Path("model")
    return Checkpoint(
        path=path,
        format="canonical",
        config=config,
        tensors=tensors,
        passport=passport,
        source=RawCheckpoint(path, "safetensors", tensors, {}, {}, ()),
        origin={name: (name,) for name in tensors},
    )


def _is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a ``DTensor``, without the import of them, which takes long."""
    return hasattr(tensor, "full_tensor")


def _gathered(name: str, tensor: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over processes; one that is not, as it is."""
    if tensor.is_meta:
        raise ConfigError(
            f"{name} has no values: it is offloaded, or on the meta device",
            hint="if accelerate offloaded it: accelerate.hooks.remove_hook_from_submodules(model)",
        )
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def current_config(model: VisionTransformer) -> ViTConfig:
    """Return the config of a model as it is now: the number of classes follows a new head, the depth the blocks.

    Raises:
        ConfigError: layers were replaced by others that no config describes; the message names the tensors.
    """
    from torch import nn

    config, head = model.config, model.head
    if isinstance(head, nn.Linear):
        config = config.replace(num_classes=head.out_features)
    elif config.num_classes and isinstance(head, nn.Identity):
        config = config.replace(num_classes=0)
    config = config.replace(depth=len(model.blocks))
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = tensor_shapes(config)
    wrong = [
        f"{name} is missing" if name not in found else f"{name} has shape {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if found.get(name) != shape
    ] + [f"{name} is new" for name in found if name not in wanted]
    others = [
        f"{name} is a {type(layer).__name__}"
        for name, layer in model.named_modules()
        if f"{name}.weight" in wanted and type(layer).__module__.partition(".")[0] not in ("torch", "vit_hub")
    ]
    if wrong or others:
        shown = "; ".join([*others, *wrong][:_SHOWN]) + "; ..." * (len(others) + len(wrong) > _SHOWN)
        raise ConfigError(
            f"the model's layers were changed to some that its config cannot describe: {shown}",
            hint="a Linear head of any number of classes, Identity in its place and fewer blocks can be saved; merge "
            "adapters first; load(..., in_chans=) and set_image_size change kernels and tables",
        )
    return config


def save(model: VisionTransformer, path: str | Path) -> Path:
    """Write a canonical safetensors file with config and passport, and return its path.

    A model that is sharded over processes (FSDP2, tensor parallelism) has to be saved by all of them: its tensors are
    gathered, and the process of rank 0 writes.

    Args:
        model: any model of this library, fine-tuned or not.
        path: the file, or a folder (no suffix, or ``/`` at its end) in which to write ``model.safetensors``.

    Raises:
        ConfigError: layers were replaced by others that no config describes, or values are not there.
        UnsupportedByFormatError: the path has another suffix than ``.safetensors``.
        VitHubError: the file cannot be written.
    """
    file = canonical_file(path)
    sharded = any(map(_is_sharded, model.parameters()))
    ckpt = snapshot(model)
    if not sharded:
        write_canonical(file, ckpt)
        return file
    from torch import distributed

    try:
        if distributed.get_rank() == 0:
            write_canonical(file, ckpt)
    finally:
        distributed.barrier()
    return file
