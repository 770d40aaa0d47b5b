"""The pixels of a preprocessing: resizing and cropping exactly as the checkpoint's own project does."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from vit_hub.errors import VitHubError
from vit_hub.preprocessing import Preprocessing

__all__ = ["Pixels", "fitted"]

Pixels: TypeAlias = "npt.NDArray[np.uint8] | npt.NDArray[np.float32]"

_MAX_PIXELS = 10**8


def fitted(spec: Preprocessing, image: Image.Image, name: str) -> Pixels:
    """An image resized and cropped as a preprocessing says, not yet normalised.

    Args:
        spec: sizes, filter, crop, rounding.
        image: 8-bit RGB or greyscale.
        name: of the image, for errors.

    Returns:
        ``[*image_size, C]``, values 0..255.

    Raises:
        VitHubError: the image is so narrow that its resized form would not fit into memory.
    """
    resized = _resized_size(spec, image.height, image.width)
    if math.prod(resized) > _MAX_PIXELS:
        raise VitHubError(
            f"{name}: {image.height}x{image.width} pixels would become {resized[0]}x{resized[1]} before the crop",
            hint="cut the image to a less extreme aspect ratio first",
        )
    pixels = _resize(spec, image, resized)
    fill = [round(255 * value) for value in spec.mean] if spec.crop_mode == "border" else 0
    canvas = np.full((*spec.image_size, pixels.shape[2]), fill, pixels.dtype)
    source, target = [], []
    for size, wanted in zip(pixels.shape, spec.image_size, strict=False):
        cut = size - wanted
        start = round(cut / 2) if spec.crop_offset == "round" else cut // 2
        margin = -cut // 2
        source.append(slice(start, start + wanted) if cut > 0 else slice(None))
        target.append(slice(margin, margin + size) if cut < 0 else slice(None))
    canvas[tuple(target)] = pixels[tuple(source)]
    return canvas


def _resized_size(spec: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """The (height, width) before cropping, rounded as torchvision's and timm's transforms round it."""
    wanted = tuple(math.floor(side / spec.crop_pct) for side in spec.image_size)
    if spec.crop_mode == "squash":
        return wanted[0], wanted[1]
    if spec.crop_mode == "center" and wanted[0] == wanted[1]:
        shorter = min(height, width)
        return wanted[0] * height // shorter, wanted[0] * width // shorter
    ratios = height / wanted[0], width / wanted[1]
    ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _resize(spec: Preprocessing, image: Image.Image, size: tuple[int, int]) -> Pixels:
    """``image`` as ``[*size, C]``: uint8 where Pillow rounds, else float32 after ``quantize``."""
    extent, resampling = (size[1], size[0]), Image.Resampling[spec.interpolation.upper()]
    if spec.antialias and spec.quantize == "round":
        return np.atleast_3d(np.asarray(image.resize(extent, resampling)))
    if spec.antialias:
        bands = [np.asarray(band.convert("F").resize(extent, resampling)) for band in image.split()]
        pixels = np.stack(bands, axis=-1)
    else:
        pixels = _bilinear(np.atleast_3d(np.asarray(image, np.float32)), size)
    if spec.quantize == "none":
        return pixels
    whole: npt.NDArray[np.float32] = np.rint(pixels) if spec.quantize == "round" else np.floor(pixels)
    return whole.clip(0, 255)


def _bilinear(pixels: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """``pixels`` ``[H, W, C]`` at another size as by ``tf.image.resize``: half-pixel centres, clamped, no antialias."""
    for axis, wanted in enumerate(size):
        last = pixels.shape[axis] - 1
        position = np.clip((np.arange(wanted) + 0.5) * (pixels.shape[axis] / wanted) - 0.5, 0, last)
        low = np.floor(position).astype(np.intp)
        weight = np.expand_dims((position - low).astype(np.float32), tuple(i for i in range(3) if i != axis))
        first, second = pixels.take(low, axis), pixels.take(np.minimum(low + 1, last), axis)
        pixels = first + (second - first) * weight
    return pixels
