"""Checks of an opened checkpoint before it is used: its values, and further copies of the model.

Nothing here needs torch or reads more than necessary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vit_hub.converters.casting import floats
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.tensors import LazyTensor

__all__ = ["ZERO_HEAD", "Values", "head_is_zero", "other_copies", "survey"]

HEADS = ("head.weight", "head_dist.weight")
ZERO_HEAD = (
    "the classification head is all zeros: it was never trained, or was removed (as in many ImageNet-21k files); "
    "use the embeddings, the logits are meaningless"
)
# A copy may lack a head or a mask token, which training adds to one of them only.
_MOST = 0.8


@dataclass(frozen=True)
class Values:
    """Findings of reading all values.

    Attributes:
        not_finite: tensor -> number of its values that are NaN or infinite, if any.
        equal: groups of tensors with the same values in the same shape, except constant ones (zeros, ones).
    """

    not_finite: dict[str, int]
    equal: list[list[str]]


def head_is_zero(tensors: Mapping[str, LazyTensor]) -> bool:
    """Return whether there is a classification head of zeros only; reading stops at the first other value."""
    heads = [tensors[name] for name in HEADS if name in tensors]
    with np.errstate(invalid="ignore"):
        return bool(heads) and not any(row.any() for head in heads for row in floats(head))


def survey(tensors: Mapping[str, LazyTensor], advance: Callable[[int], None]) -> Values:
    """Read all tensors one at a time, and call ``advance`` with the bytes of each."""
    bad: dict[str, int] = {}
    found: dict[tuple[str, tuple[int, ...], bytes], list[str]] = {}
    for name, tensor in tensors.items():
        count = int(np.count_nonzero(~np.isfinite(floats(tensor))))
        if count:
            bad[name] = count
        values = np.ascontiguousarray(tensor.read()).reshape(-1)
        with np.errstate(invalid="ignore"):  # signalling NaN
            constant = math.prod(tensor.shape) < 2 or not (values != values[0]).any()
        if not constant:
            key = (tensor.dtype, tensor.shape, hashlib.blake2b(values.view(np.uint8).data).digest())
            found.setdefault(key, []).append(name)
        advance(tensor.nbytes)
    return Values(bad, [names for names in found.values() if len(names) > 1])


def other_copies(ckpt: Checkpoint) -> dict[str, str]:
    """Return the prefixes of further copies of the model (student, momentum, average), each with why it is not read.

    A copy is recognised by the names that it shares with the model read.
    """
    read = {name.removeprefix(ckpt.passport.prefix) for names in ckpt.origin.values() for name in names}
    if not read:
        return {}
    probe = next(iter(sorted(read, key=len, reverse=True)))
    prefixes = {name.removesuffix(probe): reason for name, reason in ckpt.dropped.items() if name.endswith(probe)}
    shared = {prefix: sum(prefix + name in ckpt.dropped for name in read) for prefix in prefixes}
    return {prefix: reason for prefix, reason in prefixes.items() if shared[prefix] >= _MOST * len(read)}
