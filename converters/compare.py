"""Comparison of two checkpoints of any formats, tensor by tensor."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_hub.converters.read import Checkpoint
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import RESIZING, ViTConfig

__all__ = [
    "TOLERANCE",
    "Comparison",
    "TensorComparison",
    "compare_checkpoints",
    "config_differences",
    "output_difference",
]

# Two float32 runs of one model agree to this; a wrong activation or epsilon shows far above it.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class TensorComparison:
    """One canonical tensor of two checkpoints.

    Attributes:
        status: ``equal``, ``dtype`` (equal values in another dtype), ``different``, ``shape``, ``only in first`` or
            ``only in second``.
        max_difference: largest absolute difference, where both have it in one shape.
    """

    name: str
    status: str
    max_difference: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Agreement of two checkpoints in weights and outputs.

    Attributes:
        same_weights: every tensor that the models compute with is equal; None where one of the two is an exported
            program, whose weights are rearranged.
        same_numbers: outputs on random images agree to ``tolerance``.
        tensors: one row per canonical tensor.
        config: field -> the two values, where they differ.
        output_difference: largest absolute difference of the outputs; None where they have different shapes.
        tolerance: largest one with which they are the same: 2e-5; for programs relative to the largest output, as for
            :func:`vit_hub.export`.
    """

    same_weights: bool | None
    same_numbers: bool
    tensors: tuple[TensorComparison, ...]
    config: dict[str, tuple[Any, Any]]
    output_difference: float | None
    tolerance: float = TOLERANCE


def compare_checkpoints(a: Checkpoint, b: Checkpoint) -> Comparison:
    """Compare two opened checkpoints; where weights or configs differ, both models are run."""
    rows = tuple(_compare(name, a.tensors.get(name), b.tensors.get(name)) for name in {**a.tensors, **b.tensors})
    carried = {*a.passport.carried, *b.passport.carried}
    same_weights = all(row.status in ("equal", "dtype") for row in rows if row.name not in carried)
    config = config_differences(a.config, b.config)
    identical = same_weights and not set(config) - {*RESIZING}
    difference = 0.0 if identical else output_difference(a, b)
    return Comparison(same_weights, difference is not None and difference <= TOLERANCE, rows, config, difference)


def config_differences(a: ViTConfig, b: ViTConfig) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two configs differ, with both values."""
    names = [item.name for item in dataclasses.fields(ViTConfig)]
    return {name: (getattr(a, name), getattr(b, name)) for name in names if getattr(a, name) != getattr(b, name)}


def _compare(name: str, a: LazyTensor | None, b: LazyTensor | None) -> TensorComparison:
    if a is None or b is None:
        return TensorComparison(name, "only in second" if a is None else "only in first")
    if a.shape != b.shape:
        return TensorComparison(name, "shape")
    if a.dtype == b.dtype and np.ascontiguousarray(a.read()).tobytes() == np.ascontiguousarray(b.read()).tobytes():
        return TensorComparison(name, "equal", 0.0)
    from vit_hub.converters.casting import to_torch

    # In float64 the difference of two narrower values is exact.
    x, y = to_torch(a).double(), to_torch(b).double()
    difference = float((x - y).abs().max()) if x.numel() else 0.0
    if difference == 0.0:
        return TensorComparison(name, "equal" if a.dtype == b.dtype else "dtype", 0.0)
    return TensorComparison(name, "different", difference)


def output_difference(a: Checkpoint, b: Checkpoint) -> float | None:
    """Return the largest difference of outputs or embeddings on a seeded random image; None if shapes differ."""
    import torch

    from vit_hub.converters.build import build

    models = [build(item) for item in (a, b)]
    if models[0].config.image_size != models[1].config.image_size or (
        models[0].config.in_chans != models[1].config.in_chans
    ):
        return None
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, models[0].config.in_chans, *models[0].config.image_size, generator=generator)
    poolless = any(model.config.pool == "none" for model in models)
    with torch.inference_mode():
        # Embeddings, too: heads may differ in width or be all zeros.
        outputs = [
            (model(images), model.forward_features(images) if poolless else model.embed(images)) for model in models
        ]
    differences = [float((x - y).abs().max()) for x, y in zip(*outputs, strict=True) if x.shape == y.shape]
    # The outputs come first, unless they differ by rounding only.
    return next((found for found in differences if found > TOLERANCE), max(differences, default=None))
