"""Golden cases that come with the package: small random models with the outputs of their authors' own code.

Each folder of ``vit_hub/data/golden`` is a native checkpoint, ``input.npy``, one file per recorded output, and
``meta.json``: which project and version made it and how, its format, and what the checkpoint does not tell.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_hub.converters.read import open_checkpoint
from vit_hub.exporting.export import relative_difference
from vit_hub.loading import load
from vit_hub.model.vit import VisionTransformer

__all__ = ["FOLDER", "OUTPUTS", "GoldenCase", "golden_cases", "golden_error"]

FOLDER = Path(__file__).parents[1] / "data" / "golden"

# Recorded output -> how this library computes it.
OUTPUTS: dict[str, Callable[[VisionTransformer, Tensor], Tensor]] = {
    "logits": lambda model, images: model(images),
    "image_embed": lambda model, images: model(images),
    "image_embeds": lambda model, images: model(images),
    "image_embed_normalized": lambda model, images: torch.nn.functional.normalize(model(images), dim=1),
    "pooler_output": lambda model, images: model.pre_logits(model.embed(images)),
    "pre_logits": lambda model, images: model.pre_logits(model.embed(images)),
    "pooled": lambda model, images: model.embed(images),
    "tokens_final_norm": lambda model, images: model.forward_features(images),
    "tokens_final": lambda model, images: model.forward_features(images),
    "summary": lambda model, images: model(images),
    "tokens_prenorm": lambda model, images: model.forward_features(images),
    "tokens_last_hidden": lambda model, images: model.forward_features(images),
    "feature_map": lambda model, images: (model if model.config.pool == "none" else model.forward_features)(images),
    "patch_tokens": lambda model, images: model.forward_features(images)[:, model.config.num_prefix_tokens :],
    "cls_logits": lambda model, images: model.head(model.forward_features(images)[:, 0]),
    "distillation_logits": lambda model, images: model.get_submodule("head_dist")(model.forward_features(images)[:, 1]),
}


@dataclass(frozen=True)
class GoldenCase:
    """One folder: a checkpoint, its input and outputs.

    Attributes:
        folder: where it is.
        meta: what ``meta.json`` says.
    """

    folder: Path
    meta: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The file or folder to load."""
        return self.folder / str(self.meta["checkpoint"])

    def array(self, file: str) -> Tensor:
        """Return a recorded array."""
        return torch.from_numpy(np.load(self.folder / file))


def golden_cases(kind: str | None) -> Iterator[GoldenCase]:
    """Yield the cases of a format, named without its dialect, or all of them, that can be read here.

    HDF5 files of Keras and TensorFlow need h5py, which is an extra.
    """
    for file in sorted(FOLDER.glob("*/meta.json")):
        meta = json.loads(file.read_text(encoding="utf-8"))
        readable = find_spec("h5py") is not None or not any(file.parent.rglob("*.h5"))
        if kind in (None, meta["format"]) and readable:
            yield GoldenCase(file.parent, meta)


def golden_error(case: GoldenCase, device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest error of the recorded outputs, relative to the largest value of each.

    Args:
        case: to load and compute.
        device: to compute on.
        dtype: to compute in.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ckpt = open_checkpoint(case.checkpoint, overrides=case.meta["overrides"])
        model = load(ckpt, device=device, dtype=dtype)
    images = case.array(case.meta["input"]["file"]).to(device, dtype)
    with torch.inference_mode():
        return max(
            relative_difference(OUTPUTS[name](model, images).cpu().double(), case.array(described["file"]).double())
            for name, described in case.meta["outputs"].items()
        )
