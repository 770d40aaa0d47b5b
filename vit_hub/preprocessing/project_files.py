"""Config files of other projects about evaluation preprocessing, read and written, and the projects' conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_hub.errors import ConfigError
from vit_hub.model.config import size_pair
from vit_hub.preprocessing.spec import INTERPOLATIONS, CropMode, Preprocessing, channel_values, is_number

__all__ = [
    "CONVENTIONS",
    "from_hf",
    "from_timm",
    "hf_processor",
    "open_clip_preprocess",
    "resized_sidecars",
    "timm_data_config",
]

_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

# Behaviour of an image processor with an empty config, and the class defaults of the processors of ViT checkpoints.
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
"""Preprocessing of each project at 224 pixels if the checkpoint has no record, by format or family.

Sources: vit_jax ``input_pipeline.py``; big_vision ``pp/ops_image.py``; timm ``vision_transformer.py``; transformers'
class defaults for ViT and SigLIP; torchvision ``ViT_B_16_Weights``; the evaluation transforms of DeiT, MAE, DINO and
DINOv2 (``facebook``), DeiT III, MoCo v3, DINOv3, OpenAI CLIP and open_clip.
"""


def from_timm(cfg: Mapping[str, Any]) -> Preprocessing:
    """Read a timm ``pretrained_cfg``; missing entries take timm's defaults (``timm/data/config.py``).

    Raises:
        ConfigError: an entry has no meaning here, or ``mean`` and ``input_size`` disagree about the channels.
    """
    given = {key: value for key, value in cfg.items() if value is not None}
    input_size = given.get("input_size", (3, 224, 224))
    if not isinstance(input_size, (list, tuple)) or len(input_size) != 3 or input_size[0] not in (1, 3):
        raise ConfigError(f"input_size must be (1 or 3 channels, height, width), not {input_size!r}")
    stats: dict[str, tuple[float, ...]] = {}
    for name, default in _IMAGENET.items():
        values = channel_values(name, given.get(name, default))
        stats[name] = values * input_size[0] if len(values) == 1 else values
        if len(stats[name]) != input_size[0]:
            raise ConfigError(f"{name} has {len(values)} values and input_size {input_size[0]} channels")
    return Preprocessing(
        image_size=(input_size[1], input_size[2]),
        mean=stats["mean"],
        std=stats["std"],
        interpolation=given.get("interpolation", "bicubic"),
        crop_pct=given.get("crop_pct", 0.875),
        crop_mode=given.get("crop_mode", "center"),
    )


def from_hf(config: Mapping[str, Any]) -> Preprocessing:
    """Read a ``preprocessor_config.json`` of a transformers image processor that returns images of one fixed size.

    The numbers are those of the processor's Pillow implementation (once called "slow"); its torchvision one
    rounds some pixels to a neighbouring 8-bit value. Missing entries take the default of the processor
    class that the file names.

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
    # The processor computes (x * factor - mean) / std for x in 0..255; Preprocessing starts from x / 255.
    factor = merged["rescale_factor"] if merged["do_rescale"] else 1.0
    if not is_number(factor) or factor <= 0:
        raise ConfigError(f"rescale_factor must be greater than 0, not {factor!r}")
    mean, std = (merged["image_mean"], merged["image_std"]) if merged["do_normalize"] else (0.0, 1.0)
    filters = {number: name for name, number in INTERPOLATIONS.items()}
    if merged["resample"] not in [*filters]:
        raise ConfigError(f"resample must be a Pillow filter number, not {merged['resample']!r}")
    return Preprocessing(
        image_size=image_size,
        mean=tuple(
            value / (255 * factor) for value in channel_values("image_mean", [mean] * 3 if is_number(mean) else mean)
        ),
        std=tuple(
            value / (255 * factor) for value in channel_values("image_std", [std] * 3 if is_number(std) else std)
        ),
        interpolation=filters[merged["resample"]],
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        crop_offset="floor",
        quantize="none" if kind in _HF_FLOAT else "round",
    )


def _hf_geometry(config: Mapping[str, Any]) -> tuple[CropMode, tuple[int, int], float]:
    """Return crop mode, input size and crop_pct equivalent to an image processor's ``size`` and ``crop_size``."""
    crop_mode: CropMode = "squash"
    size, crop = config["size"], config["do_center_crop"]
    if is_number(size) and crop and "default_to_square" not in config:
        raise ConfigError(f"size {size} may mean the shorter side or both, and the config names no known processor")
    if is_number(size) and not config.get("default_to_square", True):
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"} and crop:
        crop_mode, resized = "center", size_pair("size", size["shortest_edge"])
    elif isinstance(size, Mapping) and set(size) == {"height", "width"}:
        resized = size_pair("size", (size["height"], size["width"]))
    elif isinstance(size, Mapping):
        raise ConfigError(f"size {dict(size)} gives images of any size", hint="state height and width")
    else:
        resized = size_pair("size", size)
    if not crop:
        return crop_mode, resized, 1.0
    wanted = config.get("crop_size", resized)
    if isinstance(wanted, Mapping):
        wanted = (wanted.get("height"), wanted.get("width"))
    image_size = size_pair("crop_size", wanted)
    ratio = image_size[0] / resized[0]
    if ratio > 1 or image_size[1] * resized[0] != image_size[0] * resized[1]:
        raise ConfigError(f"crop_size {image_size} is larger than, or of another shape than, size {resized}")
    # floor(image_size / crop_pct) has to give the size back, whatever the division rounded to.
    while math.floor(image_size[0] / ratio) < resized[0] or math.floor(image_size[1] / ratio) < resized[1]:
        ratio = math.nextafter(ratio, 0)
    return crop_mode, image_size, ratio


def hf_processor(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Make a transformers ``preprocessor_config.json``: squashing, or shorter side and centre crop.

    transformers always resizes with antialiasing; a source that does not (vit_jax) keeps its interpolation's name only.
    """
    height, width = preprocess["image_size"]
    common = {
        "do_resize": True,
        "resample": INTERPOLATIONS[preprocess["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }
    size = {"height": height, "width": width}
    if preprocess.get("crop_mode", "center") == "squash":
        return {"image_processor_type": "ViTImageProcessor", "size": size, **common}
    edge = int(min(height, width) / preprocess.get("crop_pct", 1.0))
    crop = {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": size}
    return {"image_processor_type": "CLIPImageProcessor", **crop, **common}


def timm_data_config(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Make the fields of timm's ``pretrained_cfg`` that its transforms read."""
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {name: preprocess[name] for name in names if name in preprocess}


def open_clip_preprocess(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Make the fields of open_clip's PreprocessCfg."""
    squash = preprocess.get("crop_mode", "center") == "squash"
    found = {name: preprocess[name] for name in ("mean", "std", "interpolation") if name in preprocess}
    return {"size": preprocess["image_size"], **found, "resize_mode": "squash" if squash else "shortest"}


def resized_sidecars(
    sidecars: Mapping[str, Mapping[str, Any]], image_size: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """Return config files beside the weights with their preprocessing changed for another input size.

    An image processor that crops crops the same share as before; one that takes any size is left as it is.
    """
    found = {name: dict(content) for name, content in sidecars.items()}
    if "preprocessor_config.json" in found:
        found["preprocessor_config.json"] |= _resized_processor(found["preprocessor_config.json"], image_size)
    if "size" in found.get("open_clip_config.json", {}).get("preprocess_cfg", {}):
        preprocess = {**found["open_clip_config.json"]["preprocess_cfg"], "size": list(image_size)}
        found["open_clip_config.json"]["preprocess_cfg"] = preprocess
    return found


def _resized_processor(processor: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the sizes of an image processor for another input size."""
    size, crop = _sides(processor.get("size")), _sides(processor.get("crop_size"))
    if not processor.get("do_center_crop", True):
        crop = None
    found: dict[str, Any] = {"crop_size": {"height": image_size[0], "width": image_size[1]}} if crop else {}
    if size is None:
        return found
    height, width = (side * new // before for side, new, before in zip(size, image_size, crop or size, strict=True))
    if isinstance(processor["size"], int) and height == width:
        return {**found, "size": height}
    shorter = "shortest_edge" in processor["size"] if isinstance(processor["size"], Mapping) else False
    return {**found, "size": {"shortest_edge": min(height, width)} if shorter else {"height": height, "width": width}}


def _sides(size: Any) -> tuple[int, int] | None:
    """Return height and width of a size as image processors write it; None if it is something else."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    else:
        size = (size, size)
    return size if all(isinstance(side, int) for side in size) else None
