"""Differences between two evaluation preprocessings, in words."""

from __future__ import annotations

import math

from vit_hub.preprocessing.spec import Preprocessing
from vit_hub.shown import size_text

__all__ = ["differences", "shifts_some_crops"]

_CROPS = {
    "center": "the longer side is cut",
    "squash": "the aspect ratio is lost",
    "border": "the whole image is framed in the mean colour",
    "corner": "the whole image stands in the upper left corner, beside zeros",
}
_ROUNDING = {"round": "rounded to whole values", "floor": "cut down to whole values", "none": "left as fractions"}


def differences(wanted: Preprocessing, found: Preprocessing) -> list[str]:
    """Return what ``found`` does otherwise than ``wanted``, on every image that is resized; empty if nothing.

    Fields that say the same in other numbers are not different: crop shares that give the same sizes, or the place of a
    crop that cuts an even number of pixels.
    """
    said = []
    if wanted.image_size != found.image_size:
        said.append(f"images of {size_text(found.image_size)} instead of {size_text(wanted.image_size)} pixels")
    for name in ("mean", "std"):
        before, after = getattr(wanted, name), getattr(found, name)
        if len(before) != len(after) or not all(map(_close, before, after)):
            said.append(f"{name} {list(after)} instead of {list(before)}")
    if wanted.interpolation != found.interpolation:
        said.append(f"{found.interpolation} instead of {wanted.interpolation} interpolation")
    if wanted.antialias != found.antialias:
        said.append(f"images are shrunk with{'' if found.antialias else 'out'} antialiasing")
    if wanted.quantize != found.quantize:
        said.append(f"resized pixels are {_ROUNDING[found.quantize]} instead of {_ROUNDING[wanted.quantize]}")
    if wanted.crop_mode != found.crop_mode:
        said.append(
            f"crop_mode {found.crop_mode} ({_CROPS[found.crop_mode]}) instead of {wanted.crop_mode} "
            f"({_CROPS[wanted.crop_mode]})"
        )
    own, other = ((one.multiple_of, one.min_pixels, one.max_pixels) for one in (wanted, found))
    if own != other:
        said.append(f"{_sizes(found)} instead of {_sizes(wanted)}")
    if wanted.resize_to != found.resize_to:
        said.append(f"resized to {size_text(found.resize_to)} instead of {size_text(wanted.resize_to)} before the crop")
    elif wanted.crop_mode == found.crop_mode and wanted.image_size == found.image_size:
        cuts = [side - kept for side, kept in zip(wanted.resize_to, wanted.image_size, strict=True)]
        if any(wanted.crop_start(cut) != found.crop_start(cut) for cut in cuts):
            said.append(f"the crop starts a pixel {'later' if found.crop_offset == 'round' else 'earlier'}")
    return said


def shifts_some_crops(wanted: Preprocessing, found: Preprocessing) -> bool:
    """Return whether a crop starts at another pixel on some images: those that are cut by 3, 7, 11 ... pixels.

    How much of the longer side is cut depends on the image.
    """
    return wanted.crop_mode == found.crop_mode not in ("squash", "corner") and wanted.crop_offset != found.crop_offset


def _close(one: float, other: float) -> bool:
    # Processors that scale in another order state the same number with another rounding.
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _sizes(preprocess: Preprocessing) -> str:
    if not preprocess.multiple_of:
        return "one size for all images"
    bounds = f"{preprocess.min_pixels} to {preprocess.max_pixels}"
    return f"sizes in multiples of {preprocess.multiple_of}, of {bounds} pixels in all"
