"""Evaluation preprocessing and class names that belong to a checkpoint."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vit_hub.errors import ConfigError
from vit_hub.model.config import size_pair
from vit_hub.preprocessing.labels import names_of
from vit_hub.preprocessing.project_files import CONVENTIONS, stated_preprocessing
from vit_hub.preprocessing.spec import Preprocessing

if TYPE_CHECKING:
    import torch

    from vit_hub.model.vit import VisionTransformer
    from vit_hub.preprocessing.images import ImageLike

__all__ = [
    "ImageTransform",
    "Provenance",
    "class_names",
    "create_transform",
    "preprocess",
    "preprocessing_of",
    "settled",
]


class Provenance(Protocol):
    """Fields of a :class:`vit_hub.converters.passport.Passport` about preprocessing and class names."""

    @property
    def format(self) -> str: ...  # noqa: D102
    @property
    def preprocess(self) -> dict[str, Any] | None: ...  # noqa: D102
    @property
    def labels(self) -> str | list[str] | None: ...  # noqa: D102
    @property
    def sidecars(self) -> dict[str, dict[str, Any]]: ...  # noqa: D102
    @property
    def resized_from(self) -> dict[str, list[int]]: ...  # noqa: D102


def preprocess(model: VisionTransformer) -> Preprocessing:
    """Return the checkpoint's own evaluation preprocessing, at the model's image size.

    A model whose table is the largest of a range (RADIO) has the size that is recorded, if it was not given another.
    It comes from the registry's record, else the config files beside the weights, else, with a warning, the convention
    of the source format.

    Args:
        model: a model returned by :func:`vit_hub.load`.

    Returns:
        A callable: an image (path, bytes, file object, PIL image, array, tensor) or a list of them -> float32
        [N, C, h, w].
    """
    passport: Provenance | None = model.passport
    size = model.input_size
    if passport is not None and passport.preprocess and model.config.resize_square and not passport.resized_from:
        size = size_pair("image_size", passport.preprocess["image_size"])
    return preprocessing_of(passport, size, model.config.in_chans)


@dataclass(frozen=True)
class ImageTransform:
    """Evaluation preprocessing of one image, as data sets apply it: ``ImageFolder(folder, transform=...)``.

    Attributes:
        preprocessing: what is done.
    """

    preprocessing: Preprocessing

    def __call__(self, image: ImageLike) -> torch.Tensor:
        """Return the model's input for one image, float32 [C, h, w].

        Args:
            image: a path, the bytes of a file, a file object, a PIL image, an array [H, W, C] or a tensor [C, H, W].

        Raises:
            VitHubError: it cannot be read, or is so narrow that its resized form would not fit into memory.
        """
        import torch

        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "image"
        prepared = self.preprocessing.prepared(self.preprocessing.read(image, name), name)
        return torch.from_numpy(prepared).contiguous()


def create_transform(model: VisionTransformer) -> ImageTransform:
    """Return the checkpoint's own evaluation preprocessing for one image at a time.

    It computes what :func:`preprocess` does, and can be sent to worker processes.

    Args:
        model: a model returned by :func:`vit_hub.load`.

    Returns:
        A callable: an image -> float32 [C, h, w].
    """
    return ImageTransform(preprocessing_of(model.passport, model.input_size, model.config.in_chans))


def preprocessing_of(passport: Provenance | None, image_size: tuple[int, int], in_chans: int = 3) -> Preprocessing:
    """Do as :func:`preprocess`, from a passport alone."""
    found, _, said = settled(passport, image_size, in_chans)
    for message in said:
        warnings.warn(message, stacklevel=3)
    return found


def settled(
    passport: Provenance | None, image_size: tuple[int, int], in_chans: int = 3
) -> tuple[Preprocessing, bool, list[str]]:
    """Return a checkpoint's preprocessing, whether it is recorded (else conventional), and warnings.

    Raises:
        ConfigError: images have one or three channels, and the model takes others.
    """
    found, said = None, list[str]()
    if passport is not None and passport.preprocess:
        found = Preprocessing.from_dict(passport.preprocess)
    elif passport is not None:
        found, said = stated_preprocessing(passport.sidecars, passport.format)
    recorded = found is not None
    if found is None:
        family = _family(passport)
        found = CONVENTIONS[family]
        said.append(
            f"no preprocessing is recorded for these weights: mean {found.mean}, std {found.std} "
            f"is the convention of {family}"
        )
    if in_chans not in (1, 3):
        raise ConfigError(f"images have 1 or 3 channels, the model takes {in_chans}", hint="prepare its input yourself")
    found = found.with_image_size(image_size)
    if len(found.mean) != in_chans:
        # With another number of channels than the checkpoint's, the average stands for each.
        mean, std = (sum(values) / len(values) for values in (found.mean, found.std))
        found = Preprocessing.from_dict({**found.to_dict(), "mean": (mean,) * in_chans, "std": (std,) * in_chans})
    return found, recorded, said


# Models of transformers whose weights were not trained with the statistics that its ViT classes default to.
_HF_FAMILIES = {
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "deit", "vit_mae", "vit_msn", "ijepa"), "facebook"),
    "dinov3_vit": "dinov3",
    **dict.fromkeys(("sam", "sam_hq", "sam_vision_model", "sam_hq_vision_model"), "sam"),
    **dict.fromkeys(("vjepa2", "vitdet"), "facebook"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_vl_vision", "qwen2_5_vl_vision"), "openai_clip"),
    **dict.fromkeys(("moonvit", "kimi_vl", "kimi_k25", "kimi_k25_vision"), "siglip"),
    **dict.fromkeys(("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"), "siglip"),
    **dict.fromkeys(("clip", "clip_vision_model"), "openai_clip"),
    "radio": "radio",
}


def _family(passport: Provenance | None) -> str:
    """Choose the convention for weights without a record: by model type, dialect, format, else timm's."""
    if passport is None:
        return "timm"
    model_type = str(passport.sidecars.get("config.json", {}).get("model_type", ""))
    family, _, dialect = passport.format.partition("-")
    names = (_HF_FAMILIES.get(model_type, ""), dialect, dialect.rpartition("-")[2], family)
    return next((name for name in names if name in CONVENTIONS), "timm")


def class_names(model: VisionTransformer) -> tuple[str, ...] | None:
    """Return the names of the head's classes in order, or None if they are not known."""
    passport: Provenance | None = model.passport
    return names_of(passport.labels, model.config.num_classes) if passport else None
