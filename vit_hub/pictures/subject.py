"""A model that pictures are made of, with the images that it sees and what one pass over each of them leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vit_hub.model.config import ViTConfig
from vit_hub.model.resize import resized_config
from vit_hub.model.vit import VisionTransformer
from vit_hub.pictures.attention import joined, mean_distance, patch_distances, rollout_step
from vit_hub.pictures.drawing import Array
from vit_hub.preprocessing.spec import Preprocessing

__all__ = ["Observation", "Subject", "View", "array"]


def array(tensor: Tensor) -> Array:
    """Return a tensor's values in host memory; 16-bit ones as float32."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).cpu().numpy()


@dataclass(frozen=True)
class View:
    """An image as the model sees it.

    Attributes:
        name: what to call it.
        input: [1, C, h, w], preprocessed.
        pixels: what was cropped of it, [h, w, C], 8 bits.
    """

    name: str
    input: Tensor
    pixels: Array

    @property
    def aspect(self) -> float:
        """The height of the image, in widths."""
        return float(self.pixels.shape[0] / self.pixels.shape[1])

    @classmethod
    def of(cls, name: str, prepared: Tensor, spec: Preprocessing) -> View:
        """Return the view of an input [C, h, w], whose normalisation is undone for its pixels."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
        pixels = np.rint((array(prepared) * std + mean) * 255).clip(0, 255).astype(np.uint8)
        return cls(name, prepared.unsqueeze(0), np.moveaxis(pixels, 0, -1))


@dataclass(frozen=True)
class Observation:
    """The tokens and attention of one pass over an image: L blocks, H heads, T tokens, N patches, D channels.

    Patches of a video that stands still are in the order of frames, rows, columns: N is a multiple of the grid's.

    Attributes:
        grid: (rows, columns) of patches.
        distances: mean attention distance in patches, [L, H]; None where weights may be negative.
        rollout: attention rollout over all blocks, [T, T]; None where weights may be negative.
        reader: attention to the patches of the class token in the last block, or of the pooling's query, [H, N]; None
            where neither is there.
        norms: lengths of the tokens after each block, [L, T].
        tokens: patches after each block, [L, N, D].
        features: patches after the last block and the norm of all tokens, [N, D].
    """

    grid: tuple[int, int]
    distances: Array | None
    rollout: Array | None
    reader: Array | None
    norms: Array
    tokens: Array
    features: Array

    def on_grid(self, values: Array) -> Array:
        """Return values of the patches [..., N] as [..., rows, columns], those of several frames averaged."""
        return values.reshape(*values.shape[:-1], -1, *self.grid).mean(axis=-3)  # type: ignore[no-any-return]


class Subject:
    """A model and its images.

    Attributes:
        name: what to call the model.
        model: in evaluation mode.
        views: the images.
        other: a model to compare with, or None.
    """

    def __init__(
        self, name: str, model: VisionTransformer, views: Sequence[View] = (), other: Subject | None = None
    ) -> None:
        self.name, self.model, self.views, self.other = name, model, list(views), other

    @property
    def config(self) -> ViTConfig:
        """The model's."""
        return self.model.config

    @property
    def patches(self) -> int:
        """How many patches all images have together."""
        return sum(math.prod(grid_of(self.model, view.input)) for view in self.views)

    @cached_property
    def observations(self) -> list[Observation]:
        """One for each image, computed when the first picture asks for them."""
        return [observe(self.model, view.input) for view in self.views]


@torch.inference_mode()
def observe(model: VisionTransformer, image: Tensor) -> Observation:
    """Pass one image [1, C, h, w] through a model, one block's attention in memory at a time.

    Raises:
        ConfigError: it is not of the model's size.
    """
    config, weight = model.config, model.patch_embed.proj.weight
    image = image.to(weight.device, weight.dtype)
    grid = grid_of(model, image)
    distances, norms, patches = list[Tensor](), list[Tensor](), list[Tensor]()
    rolled: Tensor | None = None
    reader: Tensor | None = None
    z = image
    for z, maps in model.each_block(image):
        inner = slice(config.num_prefix_tokens, z.shape[1] - config.num_detection_tokens)
        norms.append(z[0].float().norm(dim=-1))
        patches.append(z[0, inner].float())
        weights = joined(maps)
        reader = weights[:, 0, inner].clone() if config.class_token else None
        if not config.differential:
            count = inner.stop - inner.start
            apart = patch_distances(grid, count // (grid[0] * grid[1]), weights.device)
            distances.append(mean_distance(weights[:, inner, inner], apart))
            rolled = rollout_step(rolled, weights)
        maps.clear()
        del weights  # before the next block computes its own
    prefix = config.num_prefix_tokens
    normed = model.norm(z)
    if model.cls_norm is not None:
        normed = torch.cat((model.cls_norm(z[:, :prefix]), normed[:, prefix:]), dim=1)
    inner = slice(prefix, z.shape[1] - config.num_detection_tokens)
    if reader is None and model.attn_pool is not None:
        read = model.attn_pool.weights(normed if config.pool_prefix else normed[:, prefix:])[0].float()
        reader = read[:, inner] if config.pool_prefix else read
    return Observation(
        grid,
        array(torch.stack(distances)) if distances else None,
        None if rolled is None else array(rolled),
        None if reader is None else array(reader),
        array(torch.stack(norms)),
        array(torch.stack(patches)),
        array(normed[0, inner]),
    )


def grid_of(model: VisionTransformer, image: Tensor) -> tuple[int, int]:
    """Return (rows, columns) of the patches that a model makes of an image."""
    size = (image.shape[-2], image.shape[-1])
    native = size == model.input_size
    return model.config.grid_size if native else resized_config(model.config, size, pad=model.pad).grid_size
