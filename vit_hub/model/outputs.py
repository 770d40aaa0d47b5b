"""Outputs of a model by name: embedding, logits, projection, tokens, the output of a block."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vit_hub.errors import ConfigError
from vit_hub.model.vit import VisionTransformer

__all__ = ["WHAT", "check_classes", "output_function", "output_name"]

WHAT = ("embedding", "logits", "projection", "tokens", "block:N")
_BLOCK = re.compile(r"block:(-?\d+)")


def output_function(model: VisionTransformer, what: str) -> Callable[[Any], Any]:
    """Return a function of preprocessed images [B, C, h, w]; or of a list of images [C, h, w], to a list.

    Args:
        model: in evaluation mode.
        what: ``embedding`` (pooled, [D]), ``logits`` ([classes]), ``projection`` (CLIP's, [D]), ``tokens`` (all, before
            pooling, [T, D]), ``block:N`` (all as they leave block N, [T, D]), or ``output``: what the model returns.

    Raises:
        ConfigError: the model has no such output.
    """
    block = _BLOCK.fullmatch(what)
    if block:
        index, depth = int(block[1]), model.config.depth
        if not -depth <= index < depth:
            raise ConfigError(f"{what}: the model has blocks 0 to {depth - 1}")
        return lambda images: _of_block(model, images, index)
    if what == "output":
        return model
    if what == "tokens":
        return model.forward_features
    if what == "embedding":
        if model.config.pool == "none":
            raise ConfigError("the model has no pooled embedding", hint="take its tokens: what='tokens', --what tokens")
        return model.embed
    if what == "logits":
        check_classes(model, "the model")
        return model
    if what == "projection":
        if not model.config.projection_dim or model.config.num_classes:
            raise ConfigError("the model has no projection", hint="use embedding")
        return model
    raise ConfigError(f"there is no {what!r} to compute", hint=f"one of {', '.join(WHAT)}")


def output_name(model: VisionTransformer) -> str:
    """Return the name of what a model returns; ``output`` where none of the other names stands for it."""
    config = model.config
    if config.num_classes:
        return "logits" if _is_trained(model) else "output"
    if config.projection_dim:
        return "projection"
    if config.merger is not None or config.neck is not None or config.representation_dim or config.pool == "cls_dist":
        return "output"
    return "tokens" if config.pool == "none" else "embedding"


def check_classes(model: VisionTransformer, source: str) -> None:
    """Refuse a model that cannot classify.

    Raises:
        ConfigError: it has no head, or one that was never trained.
    """
    hint = "get embeddings instead: vit_hub.load(...).embed(images)"
    if not model.config.num_classes:
        raise ConfigError(f"{source} has no classification head", hint=hint)
    if not _is_trained(model):
        raise ConfigError(f"the classification head of {source} is all zeros: it was never trained", hint=hint)


def _is_trained(model: VisionTransformer) -> bool:
    """Return whether the head has other values than zero; as it seems, where its values are elsewhere."""
    heads = [weights for name, weights in model.named_parameters() if name in ("head.weight", "head_dist.weight")]
    return any(weights.is_meta or bool(weights.any()) for weights in heads)


def _of_block(model: VisionTransformer, images: Any, index: int) -> Any:
    if not isinstance(images, Tensor):
        return [_of_block(model, image.unsqueeze(0), index)[0] for image in images]
    found = model.forward_intermediates(
        images, [index], reshape=False, return_prefix_tokens=bool(model.config.num_prefix_tokens), stop_early=True
    )[0]
    return found if isinstance(found, Tensor) else torch.cat((found[1], found[0]), dim=1)
