"""The evaluation preprocessing of a checkpoint in the words of other projects' config files.

Input is the data of :class:`vit_hub.preprocessing.Preprocessing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["hf_processor", "resized_sidecars", "timm_data_config"]

# PIL's numbers, which transformers stores.
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def hf_processor(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers ``preprocessor_config.json``: squashing, or shorter side and centre crop.

    transformers always resizes with antialiasing; a source that does not (vit_jax) keeps its interpolation's name only.
    """
    height, width = preprocess["image_size"]
    common = {
        "do_resize": True,
        "resample": _RESAMPLE[preprocess["interpolation"]],
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
    """The fields of timm's ``pretrained_cfg`` that its transforms read."""
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {name: preprocess[name] for name in names if name in preprocess}


def resized_sidecars(
    sidecars: Mapping[str, Mapping[str, Any]], image_size: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """Config files beside the weights, with what they say of preprocessing changed for another input size.

    An image processor that crops goes on to crop the same share; one that takes any size is left as it is.
    """
    found = {name: dict(content) for name, content in sidecars.items()}
    if "preprocessor_config.json" in found:
        found["preprocessor_config.json"] |= _resized_processor(found["preprocessor_config.json"], image_size)
    if "size" in found.get("open_clip_config.json", {}).get("preprocess_cfg", {}):
        preprocess = {**found["open_clip_config.json"]["preprocess_cfg"], "size": list(image_size)}
        found["open_clip_config.json"]["preprocess_cfg"] = preprocess
    return found


def _resized_processor(processor: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """The sizes of an image processor for another input size."""
    size, crop = _sides(processor.get("size")), _sides(processor.get("crop_size"))
    crops = crop is not None and processor.get("do_center_crop", True)
    target = {"height": image_size[0], "width": image_size[1]}
    found: dict[str, Any] = {"crop_size": target} if crops else {}
    if size is None:
        return found
    old = crop if crops and crop else size
    height, width = (side * new // before for side, new, before in zip(size, image_size, old, strict=True))
    if isinstance(processor["size"], int) and height == width:
        return {**found, "size": height}
    shorter = "shortest_edge" in processor["size"] if isinstance(processor["size"], Mapping) else False
    return {**found, "size": {"shortest_edge": min(height, width)} if shorter else {"height": height, "width": width}}


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width of a size as image processors write it; None where it is something else."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    else:
        size = (size, size)
    return size if all(isinstance(side, int) for side in size) else None
