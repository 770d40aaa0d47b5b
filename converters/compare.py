"""Comparison of two checkpoints of any formats, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_hub.converters.read import Checkpoint
from vit_hub.converters.tensors import DTYPES, LazyTensor
from vit_hub.model.config import RESIZING, ViTConfig
from vit_hub.shown import ShortRepr

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "TOLERANCE",
    "Agreement",
    "Comparison",
    "TensorComparison",
    "agreement",
    "compare_checkpoints",
    "config_differences",
    "output_difference",
]

# Two float32 runs of one model agree to this; a wrong activation or epsilon shows far above it.
TOLERANCE = 2e-5
# Narrower dtypes that values were perhaps rounded to, whatever they are stored in.
_NARROW = ("F16", "BF16")


@dataclass(frozen=True)
class Agreement:
    """Agreement of the values of two arrays of one shape.

    Attributes:
        difference: largest absolute difference.
        relative: norm of the difference, relative to the larger norm of the two.
        cosine: of the angle between the two, as vectors.
    """

    difference: float = 0.0
    relative: float = 0.0
    cosine: float = 1.0


@dataclass(frozen=True)
class TensorComparison:
    """One canonical tensor of two checkpoints.

    Attributes:
        status: ``equal``, ``dtype`` (equal values in another dtype), ``different``, ``shape``, ``only in first`` or
            ``only in second``.
        max_difference: largest absolute difference, where both have it in one shape; likewise the others.
        relative: norm of the difference, relative to the larger norm of the two.
        cosine: of the angle between the two.
        rounded_to: torch's name of the dtype, after rounding to which different values are equal; None: there is none.
    """

    name: str
    status: str
    max_difference: float | None = None
    relative: float | None = None
    cosine: float | None = None
    rounded_to: str | None = None


@dataclass(frozen=True, repr=False)
class Comparison(ShortRepr):
    """Agreement of two checkpoints in weights and outputs.

    Attributes:
        same_weights: every tensor that the models compute with is equal, or within the tolerance if one is given; None
            where one of the two is an exported program, whose weights are rearranged.
        same_numbers: outputs on random images agree to ``tolerance``.
        tensors: one row per canonical tensor.
        config: field -> the two values, where they differ.
        output_difference: largest absolute difference of the outputs; None where they have different shapes.
        output_relative: norm of the difference of the outputs, relative to the larger norm; likewise None.
        output_cosine: of the angle between the outputs; likewise None.
        tolerance: largest ``output_relative`` that is the same if one was given, else largest ``output_difference``:
            2e-5, and for programs that of their dtype (:func:`vit_hub.export`) times the largest output.
    """

    same_weights: bool | None
    same_numbers: bool
    tensors: tuple[TensorComparison, ...]
    config: dict[str, tuple[Any, Any]]
    output_difference: float | None
    output_relative: float | None = None
    output_cosine: float | None = None
    tolerance: float = TOLERANCE

    def _facts(self) -> dict[str, object]:
        return {
            "same_weights": self.same_weights,
            "same_numbers": self.same_numbers,
            "tensors": dict(Counter(row.status for row in self.tensors)),
            "config": self.config,
            "output_difference": self.output_difference,
        }


def compare_checkpoints(a: Checkpoint, b: Checkpoint, *, tolerance: float | None = None) -> Comparison:
    """Compare two opened checkpoints; where weights or configs differ, both models are run.

    Args:
        a: the first.
        b: the second.
        tolerance: largest relative difference of tensors and of outputs that counts as the same; None: tensors must be
            equal, and outputs agree to 2e-5.
    """
    rows = tuple(_compare(name, a.tensors.get(name), b.tensors.get(name)) for name in {**a.tensors, **b.tensors})
    carried = {*a.passport.carried, *b.passport.carried}
    computed = [row for row in rows if row.name not in carried]
    equal = all(row.status in ("equal", "dtype") for row in computed)
    config = config_differences(a.config, b.config)
    outputs = Agreement() if equal and not set(config) - {*RESIZING} else _outputs(a, b)
    if tolerance is None:
        same_numbers = outputs is not None and outputs.difference <= TOLERANCE
    else:
        equal = all(row.relative is not None and row.relative <= tolerance for row in computed)
        same_numbers = outputs is not None and outputs.relative <= tolerance
    return Comparison(
        same_weights=equal,
        same_numbers=same_numbers,
        tensors=rows,
        config=config,
        output_difference=outputs.difference if outputs else None,
        output_relative=outputs.relative if outputs else None,
        output_cosine=outputs.cosine if outputs else None,
        tolerance=TOLERANCE if tolerance is None else tolerance,
    )


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
        return TensorComparison(name, "equal", 0.0, 0.0, 1.0)
    from vit_hub.converters.casting import to_torch

    # In float64 the difference of two narrower values is exact.
    x, y = to_torch(a).double(), to_torch(b).double()
    found = agreement(x, y)
    if found.difference == 0.0:
        return TensorComparison(name, "equal" if a.dtype == b.dtype else "dtype", 0.0, 0.0, 1.0)
    rounded = next((dtype for dtype in _candidates(a, b) if _equal_rounded(x, y, dtype)), None)
    return TensorComparison(name, "different", found.difference, found.relative, found.cosine, rounded)


def agreement(x: Tensor, y: Tensor) -> Agreement:
    """Measure how two tensors of one shape agree."""
    if not x.numel():
        return Agreement()
    x, y = x.double().flatten(), y.double().flatten()
    gap, norms = float((x - y).norm()), (float(x.norm()), float(y.norm()))
    cosine = float(x @ y) / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])
    # Without a norm that is larger than 0 the difference is 0, or not a number.
    return Agreement(float((x - y).abs().max()), gap / max(norms) if max(norms) > 0 else gap, cosine)


def _candidates(a: LazyTensor, b: LazyTensor) -> list[str]:
    """Return torch's names of the dtypes that one of two tensors may have been rounded to: its own, or narrower."""
    stored = [item.dtype for item in (a, b)] if a.dtype != b.dtype else []
    return [DTYPES[name].torch for name in dict.fromkeys([*stored, *_NARROW]) if DTYPES[name].floating]


def _equal_rounded(x: Tensor, y: Tensor, dtype: str) -> bool:
    """Return whether one of two tensors is the other one rounded to a dtype."""
    import torch

    narrow = getattr(torch, dtype)
    return bool((x.to(narrow).double() == y).all() or (y.to(narrow).double() == x).all())


def output_difference(a: Checkpoint, b: Checkpoint) -> float | None:
    """Return the largest difference of outputs or embeddings on a seeded random image; None if shapes differ."""
    found = _outputs(a, b)
    return found.difference if found else None


def _outputs(a: Checkpoint, b: Checkpoint) -> Agreement | None:
    """Return how outputs or embeddings on a seeded random image agree; None if shapes differ."""
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
    found = [agreement(x, y) for x, y in zip(*outputs, strict=True) if x.shape == y.shape]
    # The outputs come first, unless they differ by rounding only.
    apart = (item for item in found if item.difference > TOLERANCE)
    return next(apart, max(found, key=lambda item: item.difference, default=None))
