"""Models of the benchmarks' sizes with random weights: speed does not depend on the values."""

from __future__ import annotations

import make_checkpoint
import torch

import vit_hub


def config(size: str, image: int = 224) -> vit_hub.ViTConfig:
    """The class-token model of a size of make_checkpoint.py, with 1000 classes."""
    width, depth, heads, hidden = make_checkpoint.SIZES[size]
    patch = make_checkpoint.usual_patch(size)
    return vit_hub.ViTConfig(
        image_size=image,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=hidden,
        num_classes=1000,
    )


def model(
    size: str, image: int = 224, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> vit_hub.VisionTransformer:
    """Make a model in evaluation mode; the same size and image give the same weights."""
    torch.manual_seed(0)
    return vit_hub.VisionTransformer(config(size, image)).to(device, dtype).eval()
