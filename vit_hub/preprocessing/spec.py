"""Evaluation preprocessing as data: how a checkpoint's own project turns an image into the model's input.

Projects that mean the same ("resize to 224, normalise") differ in the resampling filter, in antialiasing, in where
pixels are rounded and where an odd crop starts. A :class:`Preprocessing` names all of it and computes the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from vit_hub.errors import ConfigError, VitHubError
from vit_hub.model.config import check_choices, size_pair

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from PIL import Image

    from vit_hub.preprocessing.images import ImageLike

__all__ = ["INTERPOLATIONS", "Preprocessing", "channel_values", "is_number", "native_size"]

# Pillow's filters in the order of their numbers (PIL.Image.Resampling), which transformers stores.
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
INTERPOLATIONS: dict[Interpolation, int] = {name: number for number, name in enumerate(get_args(Interpolation))}
CropMode = Literal["center", "squash", "border", "corner"]
Pixels: TypeAlias = "npt.NDArray[np.uint8] | npt.NDArray[np.float32]"

_MAX_PIXELS = 10**8


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Transform of any image into the model's input: resize, centre crop, scale to 0..1, normalise.

    Attributes:
        image_size: (height, width) in pixels of the model's input.
        mean: subtracted per channel after scaling to 0..1; three values for RGB, one for greyscale models.
        std: divides per channel after ``mean`` is subtracted.
        interpolation: resampling filter, one of :data:`INTERPOLATIONS` (Pillow's filters).
        crop_pct: the image is resized to ``floor(image_size / crop_pct)`` and then cropped to ``image_size``.
        crop_mode: ``center``: the shorter side is resized, the longer one follows; ``squash``: both sides are resized,
            the aspect ratio is lost; ``border``: the longer side is resized and the rest filled with ``mean``;
            ``corner``: the longer side is resized, the image stands in the upper left corner, and the rest of the
            model's input is zero (Segment Anything).
        crop_offset: where a crop starts when an odd number of pixels is cut: ``round`` (half to even: torchvision and
            timm) or ``floor`` (transformers).
        antialias: the filter widens when shrinking (Pillow); False: it reads only the nearest pixels, as
            ``tf.image.resize`` does by default; without it the interpolation is ``bilinear``.
        quantize: rounding of resized pixels before scaling: ``round`` to whole values 0..255 (Pillow), ``floor``
            to them (big_vision casts back to uint8), or ``none``: they stay fractions (vit_jax, and transformers'
            DINOv3).
        multiple_of: models that take images of any size have their sides rounded to whole multiples of so many pixels
            (Qwen2-VL, arXiv 2409.12191); 0: all images get ``image_size``. See :meth:`size_for` and :meth:`each`; a
            batch of one size is squashed.
        min_pixels: fewest pixels of such an image.
        max_pixels: most pixels of such an image.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    crop_pct: float = 1.0
    crop_mode: CropMode = "center"
    crop_offset: Literal["round", "floor"] = "round"
    antialias: bool = True
    quantize: Literal["round", "floor", "none"] = "round"
    multiple_of: int = 0
    min_pixels: int = 0
    max_pixels: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", size_pair("image_size", self.image_size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, channel_values(name, getattr(self, name)))
        check_choices(self)
        if len(self.std) != len(self.mean):
            raise ConfigError(f"std has {len(self.std)} values and mean has {len(self.mean)}")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be greater than 0, not {self.std}")
        if not is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must be greater than 0 and at most 1, not {self.crop_pct!r}")
        if not self.antialias and self.interpolation != "bilinear":
            raise ConfigError(f"antialias=False needs interpolation='bilinear', not {self.interpolation!r}")
        if self.crop_mode == "corner" and self.crop_pct != 1:
            raise ConfigError(f"crop_mode='corner' cuts nothing: crop_pct must be 1, not {self.crop_pct!r}")
        free = (self.multiple_of, self.min_pixels, self.max_pixels)
        if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in free):
            raise ConfigError(f"multiple_of, min_pixels and max_pixels must be whole numbers >= 0, not {free}")
        if any(free) and (not all(free) or self.min_pixels > self.max_pixels or self.crop_mode != "squash"):
            raise ConfigError(
                f"multiple_of={free[0]} needs crop_mode='squash', and min_pixels <= max_pixels above 0, not {free[1:]}"
            )

    @property
    def resize_to(self) -> tuple[int, int]:
        """(height, width) in pixels before the crop: of the whole image, or of what it covers or fits into."""
        height, width = (math.floor(side / self.crop_pct) for side in self.image_size)
        return height, width

    def crop_start(self, cut: int) -> int:
        """Return the first row or column of a crop that leaves out ``cut`` of them."""
        return round(cut / 2) if self.crop_offset == "round" else cut // 2

    def with_image_size(self, size: int | tuple[int, int]) -> Preprocessing:
        """Return the same preprocessing for another input size, one number or (height, width) in pixels.

        Raises:
            ConfigError: ``size`` is neither.
        """
        return dataclasses.replace(self, image_size=size_pair("image_size", size))

    def size_for(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) in pixels of the input that a model of images of any size gets for one.

        Args:
            size: (height, width) of the image in pixels.

        Returns:
            Its own sides in whole multiples, scaled so that the area is between the bounds; ``image_size`` where all
            images get the same.
        """
        if not self.multiple_of:
            return self.image_size
        unit, area = self.multiple_of, math.prod(size)
        found = [round(side / unit) * unit for side in size]
        if math.prod(found) > self.max_pixels:
            scale = math.sqrt(area / self.max_pixels)
            found = [max(unit, math.floor(side / scale / unit) * unit) for side in size]
        elif math.prod(found) < self.min_pixels:
            scale = math.sqrt(self.min_pixels / area)
            found = [math.ceil(side * scale / unit) * unit for side in size]
        return found[0], found[1]

    def each(self, images: Sequence[ImageLike]) -> list[torch.Tensor]:
        """Return every image [C, h, w] at the size that :meth:`size_for` gives it, for a model of images of any size.

        Args:
            images: as for :meth:`__call__`.

        Raises:
            VitHubError: an image cannot be read; the message names it.
        """
        found = []
        for index, source in enumerate(images):
            image = self.read(source, _name(source, index))
            found.append(self.with_image_size(self.size_for((image.height, image.width)))(image)[0])
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Invert :meth:`to_dict`.

        Raises:
            ConfigError: a field is unknown, missing or invalid.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(fields))
        if unknown:
            raise ConfigError(f"unknown preprocessing field {', '.join(unknown)}", hint=f"known: {', '.join(fields)}")
        missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in data]
        if missing:
            raise ConfigError(f"preprocessing lacks {', '.join(missing)}")
        return cls(**data)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> torch.Tensor:
        """Return the model's input for one image or several.

        Args:
            images: input of :func:`vit_hub.preprocessing.images.read_image` (a path, the bytes of a file, a file
                object, a Pillow image, an array ``[H, W, C]``, a tensor ``[C, H, W]``), or a list or tuple of these, or
                an array ``[N, H, W, C]``, or a tensor ``[N, C, H, W]``.

        Returns:
            float32 ``[N, C, height, width]`` on the CPU; N is 1 for a single image.

        Raises:
            VitHubError: an image cannot be read, or is so narrow that its resized form would not fit into memory; the
                message names it.
        """
        import torch

        several = isinstance(images, (list, tuple)) or (
            isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
        )
        sources: Sequence[Any] = images if several else [images]  # type: ignore[assignment]
        batch = np.empty((len(sources), len(self.mean), *self.image_size), np.float32)
        for index, source in enumerate(sources):
            name = _name(source, index)
            batch[index] = self.prepared(self.read(source, name), name)
        return torch.from_numpy(batch)

    def read(self, image: ImageLike, name: str = "image") -> Image.Image:
        """Return an image in 8 bits, in the model's number of channels.

        Raises:
            VitHubError: it cannot be read; the message has ``name``.
        """
        from vit_hub.preprocessing.images import read_image

        return read_image(image, mode="L" if len(self.mean) == 1 else "RGB", name=name)

    def prepared(self, image: Image.Image, name: str = "image") -> npt.NDArray[np.float32]:
        """Return the model's input for an image of :meth:`read`: ``[C, height, width]``.

        Raises:
            VitHubError: it is so narrow that its resized form would not fit into memory; the message has ``name``.
        """
        pixels = fitted(self, image, name)
        found = np.empty((len(self.mean), *self.image_size), np.float32)
        if pixels.dtype == np.uint8:
            # Looking 256 results up takes a quarter of the time of computing each.
            results = _lookup(self.mean, self.std)
            for channel in range(len(self.mean)):
                row: npt.NDArray[np.float32] = found[channel]
                np.take(results[channel], pixels[..., channel].astype(np.intp), out=row, mode="clip")
        else:
            found[:] = np.moveaxis(_normalized(pixels.astype(np.float32), self.mean, self.std), -1, 0)
        if self.crop_mode == "corner":
            rows, columns = _resized_size(self, image.height, image.width)
            found[:, rows:], found[:, :, columns:] = 0, 0
        return found


def native_size(size: tuple[int, int], patch_size: int | tuple[int, int], max_patches: int) -> tuple[int, int]:
    """Return the largest input size in whole patches, at most ``max_patches``, that keeps an image's aspect ratio.

    For models that take images of any shape (NaFlex, SigLIP 2), loaded with ``dynamic=True``. Each side is rounded up
    to whole patches. The scale is searched in the same steps as in big_vision and in transformers'
    ``Siglip2ImageProcessor``, so that every image gets the same size as there.

    Args:
        size: (height, width) of the image in pixels.
        patch_size: (height, width) of a patch, or one number for both.
        max_patches: largest number of patches.

    Returns:
        (height, width) in pixels, for :meth:`Preprocessing.with_image_size`.

    Raises:
        ConfigError: a size is not one or two whole numbers, or ``max_patches`` is less than 1.
    """
    sides, patch = size_pair("size", size), size_pair("patch_size", patch_size)
    if max_patches < 1:
        raise ConfigError(f"max_patches must be a whole number >= 1, not {max_patches!r}")

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / step)) for side, step in zip(sides, patch, strict=True))
        return rows, columns

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= max_patches else (low, middle)
    rows, columns = grid(low)
    return rows * patch[0], columns * patch[1]


def _name(source: Any, index: int) -> str:
    """Return the name of an image in errors: its path, or its number."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"image {index}"


def is_number(value: Any) -> bool:
    """Return True for finite numbers that are not booleans."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def channel_values(name: str, values: Any) -> tuple[float, ...]:
    """Per-channel numbers: three for RGB, one for greyscale."""
    items = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if len(items) not in (1, 3) or not all(map(is_number, items)):
        raise ConfigError(f"{name} must hold one number or three, not {values!r}")
    return tuple(map(float, items))


def per_channel(name: str, value: Any) -> tuple[float, ...]:
    """Return numbers for the channels, or one number for all three of them.

    Raises:
        ConfigError: there are none.
    """
    return channel_values(name, [value] * 3 if is_number(value) else value)


def crop_share(image_size: tuple[int, int], resized: tuple[int, int]) -> float:
    """Return the ``crop_pct`` with which a size before the crop is resized to.

    Raises:
        ConfigError: the crop is larger, or of another shape.
    """
    sides = list(zip(image_size, resized, strict=True))
    # floor(image_size / crop_pct) has to give the size back for both sides, whatever the divisions round to.
    ratio = min(1.0, *(side / whole for side, whole in sides))
    while any(math.floor(side / ratio) < whole for side, whole in sides):
        ratio = math.nextafter(ratio, 0)
    if any(math.floor(side / ratio) != whole for side, whole in sides):
        raise ConfigError(f"crop_size {image_size} is larger than, or of another shape than, size {resized}")
    return ratio


def nested(content: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return an object inside of nested ones; empty if there is none."""
    found: Any = content
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _normalized(
    pixels: npt.NDArray[np.float32], mean: tuple[float, ...], std: tuple[float, ...]
) -> npt.NDArray[np.float32]:
    """Scale values 0..255 to 0..1, and normalise them: [..., C]."""
    found: npt.NDArray[np.float32] = (pixels / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return found


@functools.cache
def _lookup(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Results of :func:`_normalized` for the values of 8 bits, [C, 256]."""
    values = np.repeat(np.arange(256, dtype=np.float32)[:, None], len(mean), axis=1)
    return np.ascontiguousarray(_normalized(values, mean, std).T)


def fitted(spec: Preprocessing, image: Image.Image, name: str) -> Pixels:
    """Resize and crop an image, without normalising it.

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
        start = spec.crop_start(cut)
        margin = 0 if spec.crop_mode == "corner" else -cut // 2
        source.append(slice(start, start + wanted) if cut > 0 else slice(None))
        target.append(slice(margin, margin + size) if cut < 0 else slice(None))
    canvas[tuple(target)] = pixels[tuple(source)]
    return canvas


def _resized_size(spec: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """The (height, width) before cropping, rounded as torchvision's and timm's transforms round it."""
    wanted = spec.resize_to
    if spec.crop_mode == "squash":
        return wanted
    if spec.crop_mode == "center" and wanted[0] == wanted[1]:
        shorter = min(height, width)
        return wanted[0] * height // shorter, wanted[0] * width // shorter
    if spec.crop_mode == "corner":  # half up, as Segment Anything rounds
        scale = min(wanted[0] / height, wanted[1] / width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    ratios = height / wanted[0], width / wanted[1]
    ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _resize(spec: Preprocessing, image: Image.Image, size: tuple[int, int]) -> Pixels:
    """``image`` as ``[*size, C]``: uint8 where Pillow rounds, else float32 after ``quantize``."""
    extent, resampling = (size[1], size[0]), INTERPOLATIONS[spec.interpolation]
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
