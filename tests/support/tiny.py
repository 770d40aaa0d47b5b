"""Files of tiny random models, made once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from vit_hub.converters import convert_checkpoint, open_checkpoint
from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import tensor_shapes

CONFIG = ViTConfig(
    image_size=32, patch_size=16, embed_dim=12, depth=2, num_heads=3, mlp_dim=24, num_classes=5, act="gelu_tanh"
)


@functools.cache
def timm_file() -> bytes:
    """A bare safetensors file in timm's names; it cannot tell heads and activation."""
    rng = np.random.default_rng(0)
    return save({name: rng.standard_normal(shape).astype("f4") for name, shape in tensor_shapes(CONFIG).items()})


@functools.cache
def vit_jax_file() -> bytes:
    """The same weights as an npz in vit_jax's names."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.safetensors"), Path(folder, "model.npz")
        source.write_bytes(timm_file())
        options = {"num_heads": CONFIG.num_heads, "act": CONFIG.act}
        convert_checkpoint(open_checkpoint(source, overrides=options), target, to="vit_jax")
        return target.read_bytes()
