"""Reading images: encoded files, Pillow images, arrays and tensors become 8-bit RGB or greyscale."""

from __future__ import annotations

import io
import os
import sys
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_hub.errors import VitHubError
from vit_hub.untrusted import IMAGE_PIXELS

if TYPE_CHECKING:
    import torch

__all__ = ["FORMATS", "ImageLike", "open_image", "read_image"]

FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "JXL", "JPEG2000", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA",
)  # fmt: skip
"""Pillow's names of the formats that are read: pixels alone, where others are programs (EPS) or contain other files."""

ImageLike: TypeAlias = (
    "Image.Image | str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]"
    " | npt.NDArray[Any] | torch.Tensor"
)

_CHANNELS = (1, 3, 4)
_LEAST_OF_16_BITS = 1 << 12  # a brightest pixel below it would come out nearly black
_ROUNDING = 0.13  # of a step of 1/255: what float16 makes of it


def read_image(source: ImageLike, *, mode: str = "RGB", name: str = "image") -> Image.Image:
    """Read one image, upright, in 8 bits per channel.

    The EXIF orientation is applied, transparency is laid over white, and of an animation the first frame is taken.
    Pillow decides by content, not by suffix; of its readers only those of :data:`FORMATS` are used.

    Whole numbers of more than 8 bits are taken by their range. Up to 65535 they are 16-bit values, which keep their
    high byte; 32 and 64 bits hold 8-bit values, too, if none is above 255. If even the largest value would come out
    nearly black, the real range is another one that nobody states, and the image is refused. Floating-point values are
    taken if they are those of an 8-bit image divided by 255.

    Args:
        source: a path; an encoded file as bytes or as a file object; a Pillow image; an array ``[H, W]`` or
            ``[H, W, C]``; a tensor ``[H, W]`` or ``[C, H, W]``. C is 1, 3 or 4.
        mode: ``"RGB"`` or ``"L"`` (greyscale).
        name: name of a source without a file name, for errors.

    Raises:
        VitHubError: the file is missing, damaged, cut short, too large or no image; the range of its values is not
            known; or the source is of another kind.
    """
    if _is_tensor(source):
        return _to_mode(_from_array(_channels_last(source, name), name), mode, name)
    if isinstance(source, np.ndarray):
        return _to_mode(_from_array(source, name), mode, name)
    if isinstance(source, Image.Image):
        return _decode(source, mode, getattr(source, "filename", "") or name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
    elif not hasattr(source, "read"):
        raise VitHubError(
            f"{name} is of type {type(source).__name__}, which is not an image",
            hint="give a path, the bytes of a file, a file object, a PIL.Image, an array [height, width, channels] "
            "or a tensor [channels, height, width]",
        )
    image = open_image(source, name)  # type: ignore[arg-type]
    if not isinstance(source, (str, os.PathLike)):
        return _decode(image, mode, name)  # whoever opened the file closes it
    with image:
        return _decode(image, mode, name)


def open_image(source: str | os.PathLike[str] | IO[bytes], name: str) -> Image.Image:
    """Open an encoded file without decoding its pixels.

    Raises:
        VitHubError: it is missing, damaged, too large, or of none of :data:`FORMATS`.
    """
    Image.init()  # Plugins add to the formats.
    try:
        image = Image.open(source, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except Exception as error:
        raise _unreadable(name, error) from error
    if said := IMAGE_PIXELS.exceeded(image.width * image.height):
        if isinstance(source, (str, os.PathLike)):
            image.close()
        raise VitHubError(f"{name}: the image of {image.width} x {image.height} {said}", hint="make it smaller")
    return image


def _decode(image: Image.Image, mode: str, name: str) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    # A damaged file makes Pillow's plugins raise whatever their parsers trip over, so nothing narrower is enough.
    except Exception as error:
        raise _unreadable(name, error) from error
    if upright.mode == "F":
        raise VitHubError(f"{name} holds floating-point pixels of unknown range", hint="convert it to 8 bits first")
    return _to_mode(upright, mode, name)


def _unreadable(name: str, error: Exception) -> VitHubError:
    reason: object = getattr(error, "strerror", None) or error or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # its text has the address of an object in memory
        reason = f"it is damaged, or of another kind than {', '.join(FORMATS)}"
    return VitHubError(f"{name}: cannot read it as an image: {reason}", hint="is the file complete, and an image?")


def _to_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image), name))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _is_tensor(source: object) -> bool:
    """Tell a tensor without importing torch: nobody has one who did not."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _channels_last(tensor: Any, name: str) -> npt.NDArray[Any]:
    if tensor.dim() == 3 and tensor.shape[0] not in _CHANNELS:
        raise VitHubError(
            f"{name} is a tensor of shape {tuple(tensor.shape)}",
            hint="images are tensors [height, width] or [channels, height, width] with 1, 3 or 4 channels",
        )
    if not tensor.dtype.is_floating_point:
        pixels = tensor.detach().cpu().numpy()
    else:
        pixels = tensor.detach().float().cpu().numpy()  # numpy has no bfloat16
    return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype.kind not in "uif" or array.ndim not in (2, 3) or channels not in _CHANNELS or not array.size:
        raise VitHubError(
            f"{name} is an array of {array.dtype} with shape {array.shape}",
            hint="images are arrays [height, width] or [height, width, channels] with 1, 3 or 4 channels, of 8 bits",
        )
    pixels = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    return Image.fromarray(np.ascontiguousarray(_eight_bits(pixels, name)))


def _eight_bits(pixels: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Return 8-bit values of an image, as its range says; see :func:`read_image`.

    Raises:
        VitHubError: the range is not known.
    """
    if pixels.dtype == np.uint8:
        return pixels
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f":
        steps = np.rint(pixels * 255)
        if low >= 0 and 0 < high <= 1 and np.abs(pixels * 255 - steps).max() <= _ROUNDING:
            return np.asarray(steps, np.uint8)
    elif low >= 0 and (high == 0 or (high <= 255 and pixels.dtype.itemsize > 2)):
        return np.asarray(pixels, np.uint8)
    elif low >= 0 and _LEAST_OF_16_BITS <= high <= 65535 and pixels.dtype != np.int16:
        return np.asarray(pixels >> 8, np.uint8)
    raise VitHubError(
        f"{name} holds {pixels.dtype} values from {low} to {high}, whose full range is not known",
        hint="scale it to 8 bits first: 0 is black, 255 is white",
    )
