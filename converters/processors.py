"""The evaluation preprocessing of a checkpoint in the words of other projects' config files.

Input is the data of :class:`vit_hub.preprocessing.Preprocessing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["hf_processor", "timm_data_config"]

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
