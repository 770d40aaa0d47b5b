"""Evaluation preprocessing as data: what a checkpoint's own project does to an image before the model sees it.

Projects that mean the same ("resize to 224, normalise") differ in the resampling filter, in antialiasing, in where
pixels are rounded and where an odd crop starts. A :class:`Preprocessing` names all of it and computes the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_hub.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from vit_hub.images import ImageLike

__all__ = ["CONVENTIONS", "INTERPOLATIONS", "Preprocessing", "native_size"]

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_PILLOW_NUMBERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_CHOICES = {
    "interpolation": INTERPOLATIONS,
    "crop_mode": ("center", "squash", "border"),
    "crop_offset": ("round", "floor"),
    "quantize": ("round", "floor", "none"),
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From any image to the model's input: resize, centre crop, scale to 0..1, normalise.

    Attributes:
        image_size: (height, width) in pixels of the model's input.
        mean: subtracted per channel after scaling to 0..1; three values for RGB, one for greyscale models.
        std: divides per channel after ``mean`` is subtracted.
        interpolation: resampling filter, one of :data:`INTERPOLATIONS` (Pillow's filters).
        crop_pct: the image is resized to ``floor(image_size / crop_pct)`` and then cropped to ``image_size``.
        crop_mode: ``center``: the shorter side is resized, the longer one follows; ``squash``: both sides are resized,
            the aspect ratio is lost; ``border``: the longer side is resized and the rest filled with ``mean``.
        crop_offset: where a crop starts when an odd number of pixels is cut: ``round`` (half to even: torchvision and
            timm) or ``floor`` (transformers).
        antialias: whether the filter widens when shrinking (Pillow) or reads only the nearest pixels, as
            ``tf.image.resize`` does by default; without it the interpolation is ``bilinear``.
        quantize: what becomes of resized pixels before scaling: ``round`` to whole values 0..255 (Pillow), ``floor``
            to them (big_vision casts back to uint8), or ``none``: they stay fractions (vit_jax, and transformers'
            DINOv3).
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float = 1.0
    crop_mode: str = "center"
    crop_offset: str = "round"
    antialias: bool = True
    quantize: str = "round"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _size("image_size", self.image_size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _channels(name, getattr(self, name)))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if len(self.std) != len(self.mean):
            raise ConfigError(f"std has {len(self.std)} values and mean has {len(self.mean)}")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be greater than 0, not {self.std}")
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must be greater than 0 and at most 1, not {self.crop_pct!r}")
        if not isinstance(self.antialias, bool):
            raise ConfigError(f"antialias must be true or false, not {self.antialias!r}")
        if not self.antialias and self.interpolation != "bilinear":
            raise ConfigError(f"antialias=False needs interpolation='bilinear', not {self.interpolation!r}")

    def with_image_size(self, size: int | tuple[int, int]) -> Preprocessing:
        """The same preprocessing for another input size, one number or (height, width) in pixels.

        Raises:
            ConfigError: ``size`` is neither.
        """
        return dataclasses.replace(self, image_size=_size("image_size", size))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`.

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

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """Reads a timm ``pretrained_cfg``; what it leaves out takes timm's defaults (``timm/data/config.py``).

        Raises:
            ConfigError: an entry has no meaning here, or ``mean`` and ``input_size`` disagree about the channels.
        """
        given = {key: value for key, value in cfg.items() if value is not None}
        input_size = given.get("input_size", (3, 224, 224))
        if not isinstance(input_size, (list, tuple)) or len(input_size) != 3 or input_size[0] not in (1, 3):
            raise ConfigError(f"input_size must be (1 or 3 channels, height, width), not {input_size!r}")
        stats: dict[str, tuple[float, ...]] = {}
        for name, default in _IMAGENET.items():
            values = _channels(name, given.get(name, default))
            stats[name] = values * input_size[0] if len(values) == 1 else values
            if len(stats[name]) != input_size[0]:
                raise ConfigError(f"{name} has {len(values)} values and input_size {input_size[0]} channels")
        return cls(
            image_size=(input_size[1], input_size[2]),
            mean=stats["mean"],
            std=stats["std"],
            interpolation=given.get("interpolation", "bicubic"),
            crop_pct=given.get("crop_pct", 0.875),
            crop_mode=given.get("crop_mode", "center"),
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Reads a ``preprocessor_config.json`` of a transformers image processor that gives images of one fixed size.

        The numbers are those of the processor's Pillow implementation (once called "slow"); its torchvision one
        rounds some pixels to a neighbouring 8-bit value. What the file leaves out takes the default of the processor
        class that it names.

        Raises:
            ConfigError: an entry is missing without a known default, or has no meaning here: no resizing, a size that
                follows the image's aspect ratio, a crop larger than the resized image.
        """
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
            kind = kind.removesuffix(suffix)
        given = {key: value for key, value in config.items() if value is not None}
        merged = {**_HF_COMMON, **_HF_DEFAULTS.get(kind, {}), **given}
        missing = sorted({"size", "resample", "image_mean", "image_std"} - set(merged))
        if missing:
            raise ConfigError(f"the image processor's config lacks {', '.join(missing)}")
        if not merged["do_resize"]:
            raise ConfigError("do_resize is false, so the image processor gives images of any size")
        crop_mode, image_size, crop_pct = _hf_geometry(merged)
        # The processor computes (x * factor - mean) / std for x in 0..255; ours starts from x / 255.
        factor = merged["rescale_factor"] if merged["do_rescale"] else 1.0
        if not _is_number(factor) or factor <= 0:
            raise ConfigError(f"rescale_factor must be greater than 0, not {factor!r}")
        mean, std = (merged["image_mean"], merged["image_std"]) if merged["do_normalize"] else (0.0, 1.0)
        if merged["resample"] not in [*_PILLOW_NUMBERS]:
            raise ConfigError(f"resample must be a Pillow filter number, not {merged['resample']!r}")
        return cls(
            image_size=image_size,
            mean=tuple(
                value / (255 * factor) for value in _channels("image_mean", [mean] * 3 if _is_number(mean) else mean)
            ),
            std=tuple(
                value / (255 * factor) for value in _channels("image_std", [std] * 3 if _is_number(std) else std)
            ),
            interpolation=_PILLOW_NUMBERS[merged["resample"]],
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            crop_offset="floor",
            quantize="none" if kind in _HF_FLOAT else "round",
        )

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> torch.Tensor:
        """The model's input for one image or several.

        Args:
            images: what :func:`vit_hub.images.read_image` takes (a path, a Pillow image, a uint8 array), or a list
                or tuple of these, or a uint8 array ``[N, H, W, C]``.

        Returns:
            float32 ``[N, C, height, width]`` on the CPU; N is 1 for a single image.

        Raises:
            VitHubError: an image cannot be read, or is so narrow that its resized form would not fit into memory; the
                message names it.
        """
        import torch

        from vit_hub.images import read_image
        from vit_hub.pixels import fitted

        several = isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
        sources: Sequence[Any] = images if several else [images]  # type: ignore[assignment]
        mode = "L" if len(self.mean) == 1 else "RGB"
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        batch = np.empty((len(sources), len(self.mean), *self.image_size), np.float32)
        for index, source in enumerate(sources):
            name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"image {index}"
            pixels = fitted(self, read_image(source, mode=mode, name=name), name)
            batch[index] = np.moveaxis((pixels.astype(np.float32) / np.float32(255) - mean) / std, -1, 0)
        return torch.from_numpy(batch)


def native_size(size: tuple[int, int], patch_size: int | tuple[int, int], max_patches: int) -> tuple[int, int]:
    """The largest input that keeps an image's aspect ratio, is whole patches, and has at most ``max_patches`` of them.

    For models that take images of any shape (NaFlex, SigLIP 2), loaded with ``dynamic=True``. Each side is rounded up
    to whole patches. The scale is searched in the same steps as in big_vision and in transformers'
    ``Siglip2ImageProcessor``, so that no image gets another size than there.

    Args:
        size: (height, width) of the image in pixels.
        patch_size: (height, width) of a patch, or one number for both.
        max_patches: how many patches there may be.

    Returns:
        (height, width) in pixels, for :meth:`Preprocessing.with_image_size`.

    Raises:
        ConfigError: a size is not one or two whole numbers, or ``max_patches`` is less than 1.
    """
    sides, patch = _size("size", size), _size("patch_size", patch_size)
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _channels(name: str, values: Any) -> tuple[float, ...]:
    """Per-channel numbers: three for RGB, one for greyscale."""
    items = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if len(items) not in (1, 3) or not all(map(_is_number, items)):
        raise ConfigError(f"{name} must hold one number or three, not {values!r}")
    return tuple(map(float, items))


def _size(name: str, value: Any) -> tuple[int, int]:
    """A whole number or (height, width), as a pair."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise ConfigError(f"{name} must be one whole number >= 1 or (height, width), not {value!r}")
    return pair[0], pair[1]


def _hf_geometry(config: Mapping[str, Any]) -> tuple[str, tuple[int, int], float]:
    """Crop mode, input size and crop_pct that an image processor's ``size`` and ``crop_size`` come to."""
    size, crop = config["size"], config["do_center_crop"]
    if _is_number(size) and crop and "default_to_square" not in config:
        raise ConfigError(f"size {size} may mean the shorter side or both, and the config names no known processor")
    if _is_number(size) and not config.get("default_to_square", True):
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"} and crop:
        crop_mode, resized = "center", _size("size", size["shortest_edge"])
    elif isinstance(size, Mapping) and set(size) == {"height", "width"}:
        crop_mode, resized = "squash", _size("size", (size["height"], size["width"]))
    elif isinstance(size, Mapping):
        raise ConfigError(f"size {dict(size)} gives images of any size", hint="state height and width")
    else:
        crop_mode, resized = "squash", _size("size", size)
    if not crop:
        return crop_mode, resized, 1.0
    wanted = config.get("crop_size", resized)
    if isinstance(wanted, Mapping):
        wanted = (wanted.get("height"), wanted.get("width"))
    image_size = _size("crop_size", wanted)
    ratio = image_size[0] / resized[0]
    if ratio > 1 or image_size[1] * resized[0] != image_size[0] * resized[1]:
        raise ConfigError(f"crop_size {image_size} is larger than, or of another shape than, size {resized}")
    # floor(image_size / crop_pct) has to give the size back, whatever the division rounded to.
    while math.floor(image_size[0] / ratio) < resized[0] or math.floor(image_size[1] / ratio) < resized[1]:
        ratio = math.nextafter(ratio, 0)
    return crop_mode, image_size, ratio


_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

# What an image processor does where its config is silent, and the class defaults of the processors of ViT checkpoints.
_HF_COMMON = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_HF_SQUARE = {"size": 224, "default_to_square": True, "image_mean": _HALF["mean"], "image_std": _HALF["std"]}
_HF_SHORTER = {"size": 224, "default_to_square": False, "image_mean": _CLIP["mean"], "image_std": _CLIP["std"]}
_HF_CROP = {"do_center_crop": True, "crop_size": 224}
_HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {**_HF_SQUARE, "resample": 2},
    "DeiT": {**_HF_SQUARE, **_HF_CROP, "resample": 3, "size": 256},
    "Beit": {**_HF_SQUARE, "resample": 3},
    "Siglip": {**_HF_SQUARE, "resample": 3},
    # Its processor knows no size but a number of patches, 256 of 16 pixels by default: see native_size.
    "Siglip2": {**_HF_SQUARE, "resample": 2, "size": 256},
    "CLIP": {**_HF_SHORTER, **_HF_CROP, "resample": 3},
    "Bit": {**_HF_SHORTER, **_HF_CROP, "resample": 3},
    "DINOv3ViT": {**_HF_SQUARE, "resample": 2, "image_mean": _IMAGENET["mean"], "image_std": _IMAGENET["std"]},
}
# Processors that resize after scaling to 0..1, where nothing is rounded.
_HF_FLOAT = {"DINOv3ViT"}

# tf.image.resize straight to the input size, as both of Google's repositories use it.
_TF = {"interpolation": "bilinear", "crop_mode": "squash", "antialias": False}
_CONVENTIONS: dict[str, dict[str, Any]] = {
    "vit_jax": {**_HALF, **_TF, "quantize": "none"},
    "big_vision": {**_HALF, **_TF, "quantize": "floor"},
    "timm": {**_HALF, "interpolation": "bicubic", "crop_pct": 0.9},
    "hf": {**_HALF, "interpolation": "bilinear", "crop_mode": "squash", "crop_offset": "floor"},
    "siglip": {**_HALF, "interpolation": "bicubic", "crop_mode": "squash", "crop_offset": "floor"},
    "torchvision": {**_IMAGENET, "interpolation": "bilinear", "crop_pct": 0.875},
    "facebook": {**_IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
    "deit3": {**_IMAGENET, "interpolation": "bicubic"},
    "mocov3": {**_IMAGENET, "interpolation": "bilinear", "crop_pct": 0.875},
    "dinov3": {**_IMAGENET, "interpolation": "bilinear", "crop_mode": "squash"},
    "openai_clip": {**_CLIP, "interpolation": "bicubic"},
    "open_clip": {**_CLIP, "interpolation": "bicubic"},
}
CONVENTIONS: Mapping[str, Preprocessing] = {
    name: Preprocessing(image_size=(224, 224), **fields) for name, fields in _CONVENTIONS.items()
}
"""What a project does at 224 pixels when its checkpoint says nothing, by format or family.

Sources: vit_jax ``input_pipeline.py``; big_vision ``pp/ops_image.py``; timm ``vision_transformer.py``; transformers'
class defaults for ViT and SigLIP; torchvision ``ViT_B_16_Weights``; the evaluation transforms of DeiT, MAE, DINO and
DINOv2 (``facebook``), DeiT III, MoCo v3, DINOv3, OpenAI CLIP and open_clip.
"""
