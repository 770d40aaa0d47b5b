"""Reading images: any file Pillow decodes, a Pillow image or a numpy array becomes 8-bit RGB or greyscale."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vit_hub.errors import VitHubError

__all__ = ["ImageLike", "read_image"]

ImageLike: TypeAlias = "Image.Image | str | os.PathLike[str] | npt.NDArray[np.uint8]"

_ARRAY_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_image(source: ImageLike, *, mode: str = "RGB", name: str = "image") -> Image.Image:
    """Read one image, upright, in 8 bits per channel.

    The EXIF orientation is applied, transparency is laid over white, 16-bit greyscale keeps its high byte, and of an
    animation the first frame is taken. Pillow decides by content, not by suffix.

    Args:
        source: a path, a Pillow image, or a uint8 array ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]``.
        mode: ``"RGB"`` or ``"L"`` (greyscale).
        name: name of a source without a file name, for errors.

    Raises:
        VitHubError: the file is missing, damaged or no image; or the source is of another kind.
    """
    if isinstance(source, np.ndarray):
        return _to_mode(_from_array(source, name), mode)
    if isinstance(source, Image.Image):
        return _decode(source, mode, getattr(source, "filename", "") or name)
    if not isinstance(source, (str, os.PathLike)):
        raise VitHubError(
            f"{name} is of type {type(source).__name__}, which is not an image",
            hint="give a path, a PIL.Image or a uint8 array in height, width, channel order",
        )
    try:
        image = Image.open(source)
    except Exception as error:
        raise _unreadable(os.fspath(source), error) from error
    with image:
        return _decode(image, mode, os.fspath(source))


def _decode(image: Image.Image, mode: str, name: str) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    # A damaged file makes Pillow's plugins raise whatever their parsers trip over, so nothing narrower is enough.
    except Exception as error:
        raise _unreadable(name, error) from error
    if upright.mode == "F":
        raise VitHubError(f"{name} holds floating-point pixels of unknown range", hint="convert it to 8 bits first")
    return _to_mode(upright, mode)


def _unreadable(name: str, error: Exception) -> VitHubError:
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    return VitHubError(f"{name}: cannot read it as an image: {reason}", hint="is the file complete, and an image?")


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255, which turns nearly every such picture white.
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in _ARRAY_MODES or not array.size:
        raise VitHubError(
            f"{name} is an array of {array.dtype} with shape {array.shape}",
            hint="images are uint8 arrays [height, width] or [height, width, channels] with 1, 3 or 4 channels",
        )
    pixels = np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
    return Image.fromarray(pixels)
