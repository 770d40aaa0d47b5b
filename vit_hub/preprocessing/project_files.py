"""Config files of other projects about evaluation preprocessing, read and written, and the projects' conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vit_hub.errors import ConfigError
from vit_hub.model.config import size_pair
from vit_hub.preprocessing.mmengine import META, from_mmengine, stated_config
from vit_hub.preprocessing.spec import (
    INTERPOLATIONS,
    CropMode,
    Preprocessing,
    channel_values,
    crop_share,
    is_number,
    nested,
    per_channel,
)

__all__ = [
    "CONVENTIONS",
    "from_hf",
    "from_keras_hub",
    "from_open_clip",
    "from_timm",
    "hf_processor",
    "keras_converter",
    "open_clip_preprocess",
    "resized_sidecars",
    "stated_preprocessing",
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
_HF_HALF = {"image_mean": _HALF["mean"], "image_std": _HALF["std"]}
_HF_IMAGENET = {"image_mean": _IMAGENET["mean"], "image_std": _IMAGENET["std"]}
_HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {**_HF_SQUARE, "resample": 2},
    "DeiT": {**_HF_SQUARE, **_HF_CROP, "resample": 3, "size": 256},
    "Beit": {**_HF_SQUARE, "resample": 3},
    "Siglip": {**_HF_SQUARE, "resample": 3},
    # Its processor knows no size but a number of patches, 256 of 16 pixels by default: see native_size.
    "Siglip2": {**_HF_SQUARE, "resample": 2, "size": 256},
    "CLIP": {**_HF_SHORTER, **_HF_CROP, "resample": 3},
    "Bit": {**_HF_SHORTER, **_HF_CROP, "resample": 3},
    "VideoMAE": {**_HF_SHORTER, **_HF_CROP, **_HF_HALF, "resample": 2},
    "VJEPA2": {**_HF_SHORTER, **_HF_CROP, **_HF_IMAGENET, "resample": 2, "size": 292, "crop_size": 256},
    "Sam": {**_HF_IMAGENET, "resample": 2, "size": {"longest_edge": 1024}, "do_pad": True, "pad_size": 1024},
    "Qwen2VL": {
        "image_mean": _CLIP["mean"],
        "image_std": _CLIP["std"],
        "resample": 3,
        "patch_size": 14,
        "merge_size": 2,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    },
    "DINOv3ViT": {**_HF_SQUARE, "resample": 2, "image_mean": _IMAGENET["mean"], "image_std": _IMAGENET["std"]},
}
# Files of processors of images, and of videos.
_HF_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")
# Processors that resize after scaling to 0..1, where nothing is rounded.
_HF_FLOAT = {"DINOv3ViT"}

# tf.image.resize straight to the input size, as both of Google's repositories use it.
_TF = {"interpolation": "bilinear", "crop_mode": "squash", "antialias": False}
_CONVENTIONS: dict[str, dict[str, Any]] = {
    "vit_jax": {**_HALF, **_TF, "quantize": "none"},
    "big_vision": {**_HALF, **_TF, "quantize": "floor"},
    "timm": {**_HALF, "interpolation": "bicubic", "crop_pct": 0.9},
    "hf": {**_HALF, "interpolation": "bilinear", "crop_mode": "squash", "crop_offset": "floor"},
    "keras_hub": {**_HALF, "interpolation": "bilinear", "antialias": False, "quantize": "none"},
    "siglip": {**_HALF, "interpolation": "bicubic", "crop_mode": "squash", "crop_offset": "floor"},
    "torchvision": {**_IMAGENET, "interpolation": "bilinear", "crop_pct": 0.875},
    "facebook": {**_IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
    "deit3": {**_IMAGENET, "interpolation": "bicubic"},
    "mocov3": {**_IMAGENET, "interpolation": "bilinear", "crop_pct": 0.875},
    "dinov3": {**_IMAGENET, "interpolation": "bilinear", "crop_mode": "squash"},
    "sam": {**_IMAGENET, "interpolation": "bilinear", "crop_mode": "corner"},
    "beit3": {**_HALF, "interpolation": "bicubic", "crop_mode": "squash"},
    "beit3-imagenet": {**_IMAGENET, "interpolation": "bicubic"},
    "mmpretrain": {**_IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
    "openai_clip": {**_CLIP, "interpolation": "bicubic"},
    "open_clip": {**_CLIP, "interpolation": "bicubic"},
    # Its models normalise their images themselves.
    "radio": {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic"},
}
_CONVENTIONS |= {"hf_flax": _CONVENTIONS["hf"], "hf_tf": _CONVENTIONS["hf"]}
CONVENTIONS: Mapping[str, Preprocessing] = {
    name: Preprocessing(image_size=(224, 224), **fields) for name, fields in _CONVENTIONS.items()
}
"""Preprocessing of each project at 224 pixels if the checkpoint has no record, by format or family.

Sources: vit_jax ``input_pipeline.py``; big_vision ``pp/ops_image.py``; timm ``vision_transformer.py``; transformers'
class defaults for ViT and SigLIP; torchvision ``ViT_B_16_Weights``; the evaluation transforms of DeiT, MAE, DINO and
DINOv2 (``facebook``), DeiT III, MoCo v3, DINOv3, OpenAI CLIP, open_clip, BEiT-3 (``datasets.py``) and Segment Anything
(``utils/transforms.py``).
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
    """Read a ``preprocessor_config.json`` of a transformers image processor, mostly one of images of a fixed size.

    Of a processor of videos it is what is done to each frame, as to an image.

    The numbers are those of the processor's Pillow implementation (once called "slow"); its torchvision one
    rounds some pixels to a neighbouring 8-bit value. Missing entries take the default of the processor
    class that the file names.

    Raises:
        ConfigError: an entry is missing without a known default, or has no meaning here: no resizing, a size that
            follows the image's aspect ratio, a crop larger than the resized image.
    """
    named = ("image_processor_type", "video_processor_type", "feature_extractor_type")
    kind = next((str(config[name]) for name in named if config.get(name)), "")
    for suffix in ("Fast", "Pil", "ImageProcessor", "VideoProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(suffix)
    given = {key: value for key, value in config.items() if value is not None}
    merged = {**_HF_COMMON, **_HF_DEFAULTS.get(kind, {}), **given}
    missing = sorted({"size", "resample", "image_mean", "image_std"} - set(merged))
    if missing:
        raise ConfigError(f"the image processor's config lacks {', '.join(missing)}")
    if not merged["do_resize"]:
        raise ConfigError("do_resize is false, so the image processor gives images of any size")
    free: dict[str, Any] = {}
    crop_mode: CropMode
    if kind == "Sam":
        crop_mode, image_size, crop_pct = "corner", _sam_size(merged), 1.0
    elif kind == "Qwen2VL":
        free = _free_sizes(merged)
        crop_mode, image_size, crop_pct = "squash", (8 * free["multiple_of"],) * 2, 1.0
    else:
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
        mean=tuple(value / (255 * factor) for value in per_channel("image_mean", mean)),
        std=tuple(value / (255 * factor) for value in per_channel("image_std", std)),
        interpolation=filters[merged["resample"]],
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        crop_offset="floor",
        quantize="none" if kind in _HF_FLOAT else "round",
        **free,
    )


def _sam_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the size of the square that Segment Anything's processor pads images to.

    Raises:
        ConfigError: it pads them not, or not to the square of the longer side.
    """
    size, pad = config["size"], config["pad_size"]
    longest = size.get("longest_edge") if isinstance(size, Mapping) else None
    sides = (pad.get("height"), pad.get("width")) if isinstance(pad, Mapping) else pad
    if longest is None or not config["do_pad"] or size_pair("pad_size", sides) != size_pair("size", longest):
        raise ConfigError(f"size {size} and pad_size {pad} are no longer side and the square of it")
    return size_pair("size", longest)


def _free_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Return how Qwen2-VL's processor bounds the size of an image; earlier files have other keys for it."""
    size = config["size"] if isinstance(config["size"], Mapping) else {}
    least = config.get("min_pixels", size.get("shortest_edge", size.get("min_pixels")))
    most = config.get("max_pixels", size.get("longest_edge", size.get("max_pixels")))
    unit = config["patch_size"] * config["merge_size"]
    return {"multiple_of": unit, "min_pixels": least, "max_pixels": most}


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
    return crop_mode, image_size, crop_share(image_size, resized)


def from_open_clip(config: Mapping[str, Any]) -> Preprocessing:
    """Read open_clip's ``preprocess_cfg``; missing entries take the defaults of its ``PreprocessCfg``.

    Raises:
        ConfigError: an entry has no meaning here, as a border in another colour than the mean.
    """
    given = {key: value for key, value in config.items() if value is not None}
    size = size_pair("size", given.get("size", 224))
    stats = {name: per_channel(name, given.get(name, default)) for name, default in _CLIP.items()}
    mode = given.get("resize_mode", "shortest")
    if mode not in [*_OPEN_CLIP_MODES]:
        raise ConfigError(f"resize_mode must be one of {', '.join(_OPEN_CLIP_MODES)}, not {mode!r}")
    crop_mode = _OPEN_CLIP_MODES[mode]
    fill = given.get("fill_color", 0)
    if crop_mode == "border" and {round(255 * value) for value in stats["mean"]} != {fill}:
        raise ConfigError(f"fill_color {fill!r} is not the mean colour, which borders have here")
    # It ignores the interpolation where it keeps the aspect ratio of an image for an input that is not square, and
    # chooses bicubic for "random".
    ignored = crop_mode == "center" and size[0] != size[1]
    interpolation = given.get("interpolation", "bicubic")
    return Preprocessing(
        image_size=size,
        mean=stats["mean"],
        std=stats["std"],
        interpolation="bicubic" if ignored or interpolation == "random" else interpolation,
        crop_mode=crop_mode,
    )


_OPEN_CLIP_MODES: dict[str, CropMode] = {"shortest": "center", "longest": "border", "squash": "squash"}


def stated_preprocessing(
    sidecars: Mapping[str, Mapping[str, Any]], format: str = ""
) -> tuple[Preprocessing | None, list[str]]:
    """Return what the config files beside the weights state, and warnings about files that cannot be used.

    Args:
        sidecars: file name -> contents.
        format: that of the weights; where open_clip's files lie beside others, its weights take its own.
    """
    config, open_clip = sidecars.get("config.json", {}), sidecars.get("open_clip_config.json", {})
    found: dict[str, tuple[Callable[[Mapping[str, Any]], Preprocessing | None], Any]] = {}
    for name in _HF_FILES:
        if name in sidecars:
            found[name] = (from_hf, sidecars[name])
    if "architecture" in config or "pretrained_cfg" in config:
        # timm's files had everything at the top once.
        found["config.json"] = (from_timm, config.get("pretrained_cfg", config))
    keras = sidecars.get("image_converter.json") or nested(sidecars, "preprocessor.json", "config", "image_converter")
    if "config" in keras:
        found["image_converter.json"] = (from_keras_hub, keras["config"])
    if "preprocess_cfg" in open_clip:
        found["open_clip_config.json"] = (from_open_clip, open_clip["preprocess_cfg"])
    if META in sidecars:
        found[META] = (from_mmengine, stated_config(sidecars))
    warnings: list[str] = []
    for name in sorted(found, key=lambda name: name.startswith("open_clip") != format.startswith("open_clip")):
        read, content = found[name]
        try:
            if not isinstance(content, Mapping):
                raise ConfigError(f"{content!r} is no preprocessing")
            return read(content), warnings
        except ConfigError as error:
            warnings.append(f"the preprocessing in {name} is ignored: {error.message}")
    return None, warnings


def from_keras_hub(config: Mapping[str, Any]) -> Preprocessing:
    """Read the config of keras-hub's ImageConverter: pixels from 0 to 255 are multiplied by ``scale``, then shifted.

    Raises:
        ConfigError: an entry has no meaning here, as borders, which are black there, or images of any size.
    """
    given = {key: value for key, value in config.items() if value is not None}
    if "image_size" not in given:
        raise ConfigError("it names no image_size, so that images keep theirs")
    if given.get("pad_to_aspect_ratio"):
        raise ConfigError("pad_to_aspect_ratio fills borders with black, which has no equivalent here")
    scale, offset = per_channel("scale", given.get("scale", 1.0)), per_channel("offset", given.get("offset", 0.0))
    if len(scale) != len(offset) or min(scale) <= 0:
        raise ConfigError(f"scale {scale} and offset {offset} are no normalisation")
    return Preprocessing(
        image_size=size_pair("image_size", given["image_size"]),
        mean=tuple(round(-shift / factor / 255, 12) + 0.0 for factor, shift in zip(scale, offset, strict=True)),
        std=tuple(round(1 / factor / 255, 12) for factor in scale),
        interpolation=given.get("interpolation", "bilinear"),
        crop_mode="center" if given.get("crop_to_aspect_ratio", True) else "squash",
        antialias=given.get("antialias", False),
        quantize="none",
    )


def keras_converter(preprocess: Preprocessing) -> dict[str, Any]:
    """Make the config of keras-hub's ImageConverter that does the same, or nearly.

    It crops only what exceeds the aspect ratio, rounds no pixels, and has no borders but black ones.
    """
    known = preprocess.interpolation if preprocess.interpolation in ("nearest", "bilinear", "bicubic") else "bicubic"
    return {
        "image_size": list(preprocess.image_size),
        "scale": [1 / (255 * std) for std in preprocess.std],
        "offset": [-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)],
        "interpolation": known,
        "antialias": preprocess.antialias,
        "crop_to_aspect_ratio": preprocess.crop_mode != "squash",
        "pad_to_aspect_ratio": False,
        "bounding_box_format": "yxyx",
    }


def hf_processor(preprocess: Preprocessing) -> dict[str, Any]:
    """Make the ``preprocessor_config.json`` of a transformers image processor that does the same, or nearly.

    Exact are squashing, with a crop after it or without, and cutting the longer side of square images, if pixels are
    rounded as Pillow rounds them, or not at all. transformers always resizes with antialiasing, has no borders, and
    keeps the aspect ratio of images for square inputs only, or for those of any size.
    """
    height, width = preprocess.image_size
    size, resized = {"height": height, "width": width}, preprocess.resize_to
    crop = {"do_center_crop": True, "crop_size": size}
    geometry: dict[str, Any]
    if preprocess.multiple_of:
        merge = 2 - preprocess.multiple_of % 2
        bounds = {"shortest_edge": preprocess.min_pixels, "longest_edge": preprocess.max_pixels}
        geometry = {"size": bounds, "patch_size": preprocess.multiple_of // merge, "merge_size": merge}
        kind = "Qwen2VL"
    elif preprocess.crop_mode == "corner" and height == width:
        geometry, kind = {"size": {"longest_edge": height}, "do_pad": True, "pad_size": size}, "Sam"
    elif preprocess.crop_mode != "squash" and height == width:
        geometry = {"size": {"shortest_edge": resized[0]}, **crop}
        kind = "CLIP"
    elif resized != preprocess.image_size:
        geometry = {"size": {"height": resized[0], "width": resized[1]}, **crop}
        kind = "DeiT"
    else:
        geometry, kind = {"size": size}, "ViT"
    if preprocess.quantize == "none" and preprocess.antialias and preprocess.interpolation in _TORCH_FILTERS:
        kind = next(iter(_HF_FLOAT))
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        **geometry,
        "do_resize": True,
        "resample": INTERPOLATIONS[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


# Filters that torch resizes fractions with.
_TORCH_FILTERS = ("bilinear", "bicubic")


def timm_data_config(preprocess: Preprocessing) -> dict[str, Any]:
    """Make the fields of timm's ``pretrained_cfg`` that its transforms read."""
    return {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "crop_mode": "border" if preprocess.crop_mode == "corner" else preprocess.crop_mode,
    }


def open_clip_preprocess(preprocess: Preprocessing) -> dict[str, Any]:
    """Make the fields of open_clip's PreprocessCfg; it resizes by two filters and crops nothing that it need not."""
    modes = {**{crop_mode: mode for mode, crop_mode in _OPEN_CLIP_MODES.items()}, "corner": "longest"}
    return {
        "size": list(preprocess.image_size),
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation if preprocess.interpolation in _TORCH_FILTERS else "bicubic",
        "resize_mode": modes[preprocess.crop_mode],
        **({"fill_color": round(255 * preprocess.mean[0])} if preprocess.crop_mode in ("border", "corner") else {}),
    }


def resized_sidecars(
    sidecars: Mapping[str, Mapping[str, Any]], image_size: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """Return config files beside the weights with their preprocessing changed for another input size.

    An image processor that crops crops the same share as before; one that takes any size is left as it is.
    """
    found = {name: dict(content) for name, content in sidecars.items()}
    for name in _HF_FILES:
        if name in found:
            found[name] |= _resized_processor(found[name], image_size)
    if "size" in found.get("open_clip_config.json", {}).get("preprocess_cfg", {}):
        preprocess = {**found["open_clip_config.json"]["preprocess_cfg"], "size": list(image_size)}
        found["open_clip_config.json"]["preprocess_cfg"] = preprocess
    return found


def _resized_processor(processor: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the sizes of an image processor for another input size."""
    if isinstance(processor.get("size"), Mapping) and "longest_edge" in processor["size"]:
        padded = "pad_size" in processor or "Sam" in str(processor.get("image_processor_type"))
        if "shortest_edge" in processor["size"] or not padded:  # for images of any size
            return {}
        square = {"height": image_size[0], "width": image_size[1]}
        return {"size": {"longest_edge": max(image_size)}, **({"pad_size": square} if "pad_size" in processor else {})}
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
