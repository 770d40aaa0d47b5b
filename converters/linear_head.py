"""Linear heads published as files of their own, joined with their backbone: DINO's, DINOv2's and DINOv3's, and probes.

What such a head reads, only its width tells: tokens side by side, each as wide as the model.
Source: dino/eval_linear.py; dinov2/hub/classifiers.py, dinov2/eval/linear.py; dinov3/hub/classifiers.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import open_raw
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.rules.extras import no_weight
from vit_hub.converters.tensors import DTYPES, LazyTensor, zeros
from vit_hub.errors import CheckpointError, ConfigError
from vit_hub.model.shapes import tensor_shapes

__all__ = ["HEAD_FIELDS", "with_head"]

HEAD_FIELDS = ("head_layers", "head_input")
"""Config fields that say what a head reads; of a backbone alone they mean nothing."""

# Width of the head in widths of the model -> the blocks whose class tokens it reads, and whether the mean of the
# patches follows.
_INPUTS: dict[int, tuple[int, str]] = {1: (1, "pooled"), 2: (1, "cls_avg"), 4: (4, "pooled"), 5: (4, "cls_avg")}
# DINO stores the channels of class token and mean of the patches in turns, under these names.
_IN_TURNS = re.compile(r"(.*/)?(module\.)?linear\.weight")
_SHOWN = 4
_TENSORS = {"weight": 2, "bias": 1}
# Those of a batch norm without parameters before the layer, as MAE's linear probes have.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def with_head(ckpt: Checkpoint, path: Path, overrides: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return a backbone with the linear head of another file.

    Args:
        ckpt: the backbone; a head that it has is replaced, with a warning.
        path: the file of the head.
        overrides: :data:`HEAD_FIELDS` that the width of the head does not tell.

    Raises:
        CheckpointError: the file is not one linear layer, or not as wide as tokens of the backbone side by side.
        ConfigError: the backbone has no tokens that such a head reads.
    """
    raw = open_raw(path)
    names = _linear_layer(path, raw.tensors)
    weight = raw.tensors[names["weight"]]
    given = {name: (overrides or {})[name] for name in HEAD_FIELDS if name in (overrides or {})}
    normed = "running_mean" in names
    fields = {**_input_of(ckpt, path, weight.shape[1]), **given, "num_classes": weight.shape[0], "head_norm": normed}
    try:
        config = ckpt.config.replace(**fields)
    except ConfigError as error:
        message = f"{path}: the head is {weight.shape[1]} wide, and {ckpt.path} cannot feed it: {error.message}"
        raise ConfigError(message, hint=error.hint) from error
    if config.head_width != weight.shape[1]:
        raise _wrong_width(ckpt, path, weight.shape[1])
    in_turns = config.head_width == 2 * config.feature_dim and _IN_TURNS.fullmatch(names["weight"]) is not None
    head = {
        "head.weight": _sorted_channels(weight) if in_turns else weight,
        "head.bias": raw.tensors[names["bias"]] if "bias" in names else zeros(weight.dtype, weight.shape[:1]),
        **{f"head_norm.{part}": raw.tensors[names[part]] for part in _STATISTICS if normed},
    }
    stored = {f"{path.name}:{name}": raw.tensors[name] for name in names.values()}
    replaced = [name for name in ckpt.tensors if name.startswith(("head.", "head_dist.", "head_norm."))]
    tensors = {**ckpt.tensors, **head}
    passport = ckpt.passport.without_labels() if replaced else ckpt.passport
    passport, unusable = passport.with_stated(config.num_classes)
    passport = dataclasses.replace(
        passport, source=[*passport.source, *({"file": file.name, "size": raw.size_of(file)} for file in raw.files)]
    )
    warnings = [*ckpt.warnings, *unusable]
    if replaced:
        warnings.append(f"the classifier for {ckpt.config.num_classes} classes is replaced by {path.name}")
    if in_turns:
        warnings.append(
            f"{path.name}: the head is taken for one of DINO's eval_linear.py, by the names of its tensors: it reads "
            "the channels of class token and mean of the patches in turns"
        )
    reason = f"width of the head in {path.name}"
    origin = {name: found for name, found in ckpt.origin.items() if name not in replaced}
    return dataclasses.replace(
        ckpt,
        config=config,
        tensors={name: tensors[name] for name in (*tensor_shapes(config), *passport.carried)},
        passport=passport,
        dropped={
            **ckpt.dropped,
            **{full: f"replaced by {path.name}" for name in replaced for full in ckpt.origin.get(name, (name,))},
            **{f"{path.name}:{name}": "beside the head" for name in raw.tensors if name not in names.values()},
        },
        inferred={**ckpt.inferred, **dict.fromkeys({"num_classes", *HEAD_FIELDS} - given.keys(), reason)},
        warnings=tuple(warnings),
        source=dataclasses.replace(
            ckpt.source,
            tensors={**ckpt.source.tensors, **stored},
            files=(*ckpt.source.files, *raw.files),
            held={**ckpt.source.held, **raw.held},
            documents={**ckpt.source.documents, **raw.documents},
        ),
        origin={
            **origin,
            **{
                f"{'head_norm' if part in _STATISTICS else 'head'}.{part}": (f"{path.name}:{name}",)
                for part, name in names.items()
            },
        },
    )


def _linear_layer(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Return the names of weight and bias of the only linear layer of a file, and of statistics of a norm before it.

    Raises:
        CheckpointError: there is another number of layers, or another kind.
    """
    weights = {name: tensor for name, tensor in tensors.items() if not no_weight(name, tensor)}
    layers: dict[str, dict[str, str]] = {}
    for name in weights:
        start, end = re.fullmatch(r"(.*?)([^./]*)", name).groups()  # type: ignore[union-attr]
        layers.setdefault(start, {})[end] = name
    norm = next((parts for parts in layers.values() if parts.keys() == {*_STATISTICS}), {})
    found = next((parts for parts in layers.values() if parts is not norm), {})
    fits = {"weight"} <= found.keys() <= _TENSORS.keys()
    fits = fits and all(len(weights[name].shape) == _TENSORS[part] for part, name in found.items())
    fits = fits and all(DTYPES[weights[name].dtype].floating for name in found.values())
    widths = {weights[found["weight"]].shape[1]} if fits else set[int]()
    widths |= {math.prod(weights[norm[part]].shape) for part in _STATISTICS[:2] if norm}
    rows = {weights[name].shape[0] for name in found.values()} if fits else set[int]()
    if len(layers) != 1 + bool(norm) or not fits or len(rows) > 1 or len(widths) > 1:
        shown = ", ".join(list(weights)[:_SHOWN]) + (f" and {len(weights) - _SHOWN} more" * (len(weights) > _SHOWN))
        raise CheckpointError(
            f"{path}: not one linear layer, but {shown or 'no weights'}",
            hint="head= (--head) takes the file of a linear head; a whole model is a source of its own",
        )
    return {**found, **norm}


def _input_of(ckpt: Checkpoint, path: Path, width: int) -> dict[str, Any]:
    """Return what a head of a width reads.

    Raises:
        CheckpointError: the width is none of published heads over this backbone.
    """
    times, rest = divmod(width, ckpt.config.feature_dim)
    if rest:
        raise _wrong_width(ckpt, path, width)
    return dict(zip(HEAD_FIELDS, _INPUTS.get(times, (1, "pooled")), strict=True))


def _wrong_width(ckpt: Checkpoint, path: Path, width: int) -> CheckpointError:
    dim = ckpt.config.feature_dim
    known = ", ".join(str(times * dim) for times in _INPUTS)
    return CheckpointError(
        f"{path}: the head is {width} wide, and tokens of {ckpt.path} are {dim} wide: heads over it are {known} wide",
        hint="give the head of this backbone; of how many blocks it reads class tokens, and whether the mean of the "
        'patches, overrides={"head_layers": N, "head_input": "pooled" or "cls_avg"} (--set) tells',
    )


def _sorted_channels(weight: LazyTensor) -> LazyTensor:
    """Return the weights for class token and mean side by side of those for both channel by channel, [K, 2 D]."""
    classes, width = weight.shape
    return weight.reshape((classes, width // 2, 2)).permute((0, 2, 1)).reshape(weight.shape)
