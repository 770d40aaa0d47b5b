"""What belongs to a model beside its weights: evaluation preprocessing and class names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vit_hub.labels import label_names
from vit_hub.preprocessing import CONVENTIONS, Preprocessing

if TYPE_CHECKING:
    from vit_hub.converters.passport import Passport
    from vit_hub.model import VisionTransformer

__all__ = ["class_names", "preprocess", "preprocessing_of"]


def preprocess(model: VisionTransformer) -> Preprocessing:
    """The checkpoint's own evaluation preprocessing, at the model's image size.

    Taken from the registry's record, else the config files beside the weights, else the convention of the source
    format, which is warned about.

    Args:
        model: a model that :func:`vit_hub.load` gave.

    Returns:
        A callable: PIL image, path, array or a list of them -> float32 [N, C, h, w].
    """
    return preprocessing_of(model.passport, model.config.image_size, model.config.in_chans)


def preprocessing_of(passport: Passport | None, image_size: tuple[int, int], in_chans: int = 3) -> Preprocessing:
    """As :func:`preprocess`, from a passport alone."""
    stated = _stated(passport.preprocess, passport.sidecars) if passport else None
    if stated is None:
        family = passport.format.split("-")[0] if passport else ""
        stated = CONVENTIONS.get(family, CONVENTIONS["timm"])
        warnings.warn(
            f"no preprocessing is recorded for these weights: mean {stated.mean}, std {stated.std} "
            f"is the convention of {family or 'timm'}",
            stacklevel=3,
        )
    stated = stated.with_image_size(image_size)
    if len(stated.mean) != in_chans and len(set(zip(stated.mean, stated.std, strict=True))) == 1:
        data = {**stated.to_dict(), "mean": stated.mean[:1] * in_chans, "std": stated.std[:1] * in_chans}
        stated = Preprocessing.from_dict(data)
    return stated


def _stated(record: Mapping[str, Any] | None, sidecars: Mapping[str, Mapping[str, Any]]) -> Preprocessing | None:
    if record:
        return Preprocessing.from_dict(record)
    if "preprocessor_config.json" in sidecars:
        return Preprocessing.from_hf(sidecars["preprocessor_config.json"])
    pretrained = sidecars.get("config.json", {}).get("pretrained_cfg", {})
    return Preprocessing.from_timm(pretrained) if "mean" in pretrained else None


def class_names(model: VisionTransformer) -> tuple[str, ...] | None:
    """Names of the head's classes in order, or None where they are not known."""
    passport, count = model.passport, model.config.num_classes
    if passport is None or not count:
        return None
    if isinstance(passport.labels, str):
        names: tuple[str, ...] = label_names(passport.labels)
    elif passport.labels:
        names = tuple(passport.labels)
    else:
        config = passport.sidecars.get("config.json", {})
        mapping = config.get("id2label") or {}
        names = tuple(mapping[key] for key in sorted(mapping, key=int)) or tuple(config.get("label_names") or ())
    return names if len(names) == count else None
