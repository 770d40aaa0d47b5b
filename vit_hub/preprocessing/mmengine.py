"""Facts that mmengine keeps in a checkpoint under ``meta``: its config, as the text of a Python file, and class names.

The text is parsed, never run: only literals and calls of ``dict`` mean something.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from vit_hub.errors import ConfigError
from vit_hub.model.config import size_pair
from vit_hub.preprocessing.spec import Preprocessing, channel_values, crop_share, nested

__all__ = ["META", "from_mmengine", "mmengine_preprocess", "parse_config", "stated_config"]

META = "meta"
# mmengine's key, and that of mmcv before it.
_KEYS = ("cfg", "config")
_MAX_TEXT = 1_000_000


def stated_config(sidecars: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the config that a checkpoint keeps, by the names that its text assigns; empty if it keeps none."""
    meta = sidecars.get(META, {})
    text = next((meta[key] for key in _KEYS if isinstance(meta.get(key), str)), "")
    return parse_config(text)


@lru_cache(maxsize=16)
def parse_config(text: str) -> Mapping[str, Any]:
    """Return what the text of a Python file assigns to names at its top; values that are not plain data are None."""
    found: dict[str, Any] = {}
    try:
        body = ast.parse(text if len(text) <= _MAX_TEXT else "").body
        for statement in body:
            if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
                found[target.id] = _value(statement.value)
    # What is nested too deep for the parser, or no Python.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return found


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, (str, int, float, bool)) else None
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(item) for key, item in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        return -value if isinstance(value, (int, float)) else None
    return None


def from_mmengine(config: Mapping[str, Any]) -> Preprocessing | None:
    """Read the preprocessing of a config: ``data_preprocessor`` and the test pipeline; None if it states none.

    Raises:
        ConfigError: a value or a transform has no meaning here.
    """
    normalize = nested(config, "model").get("data_preprocessor") or config.get("data_preprocessor")
    pipeline = config.get("test_pipeline") or nested(config, "test_dataloader", "dataset").get("pipeline")
    if not isinstance(normalize, Mapping) or not isinstance(pipeline, list) or "mean" not in normalize:
        return None
    steps = {str(step.get("type")): step for step in pipeline if isinstance(step, Mapping)}
    unknown = steps.keys() - {"LoadImageFromFile", "ResizeEdge", "Resize", "CenterCrop", "PackInputs"}
    if unknown:
        raise ConfigError(f"the transform {min(unknown)} of its pipeline is not known")
    resize = steps.get("ResizeEdge") or steps.get("Resize")
    if resize is None or resize.get("edge", "short") != "short" or "scale" not in resize:
        raise ConfigError("its pipeline does not resize to a size")
    resized = size_pair("scale", resize["scale"])
    crop = size_pair("crop_size", steps["CenterCrop"].get("crop_size")) if "CenterCrop" in steps else resized
    if "ResizeEdge" in steps and "CenterCrop" not in steps:
        raise ConfigError("its pipeline gives images of any size")
    pillow = resize.get("backend") == "pillow"
    return Preprocessing(
        image_size=crop,
        mean=tuple(value / 255 for value in channel_values("mean", normalize["mean"])),
        std=tuple(value / 255 for value in channel_values("std", normalize.get("std"))),
        interpolation=resize.get("interpolation", "bilinear"),
        crop_pct=crop_share(crop, resized),
        crop_mode="center" if "ResizeEdge" in steps else "squash",
        antialias=pillow,
    )


def mmengine_preprocess(preprocess: Preprocessing) -> dict[str, Any]:
    """Make ``data_preprocessor`` and ``test_pipeline`` of a config that does the same, or nearly.

    It has no borders, and keeps the aspect ratio of images for square inputs only.
    """
    (height, width), (rows, columns) = preprocess.image_size, preprocess.resize_to
    how = {
        "interpolation": preprocess.interpolation,
        "backend": "pillow" if preprocess.antialias or preprocess.interpolation != "bilinear" else "cv2",
    }
    center = preprocess.crop_mode != "squash" and height == width
    resize: dict[str, Any] = {"type": "Resize", "scale": (rows, columns)}
    if center:
        resize = {"type": "ResizeEdge", "scale": rows, "edge": "short"}
    crop = {"type": "CenterCrop", "crop_size": height if height == width else (height, width)}
    return {
        "data_preprocessor": {
            "mean": [255 * value for value in preprocess.mean],
            "std": [255 * value for value in preprocess.std],
            "to_rgb": True,
        },
        "test_pipeline": [
            {"type": "LoadImageFromFile"},
            {**resize, **how},
            *([crop] if center or (rows, columns) != (height, width) else []),
            {"type": "PackInputs"},
        ],
    }
