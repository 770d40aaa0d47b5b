"""Lazy tensors: described by a header, read on demand.

A :class:`LazyTensor` knows its dtype and shape from the header of a file; its values are read only on demand. The array
operations here return new lazy tensors, so that a conversion is planned from headers alone and then runs one tensor at
a time. All of them permute bytes and compute nothing, so that bfloat16 can be carried as uint16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vit_hub.shown import ShortRepr

__all__ = [
    "CARRIERS",
    "DTYPES",
    "DTYPES_HINT",
    "TORCH_DTYPES",
    "Array",
    "Dtype",
    "LazyTensor",
    "concat",
    "copied",
    "from_array",
    "split",
    "stack",
    "unstack",
    "zeros",
]

Array = npt.NDArray[np.generic]


class Dtype(NamedTuple):
    """One dtype of tensors.

    Attributes:
        carrier: the numpy dtype of the same bytes, little-endian on every supported machine.
        torch: torch's name.
        storage: the class that stands for its values in torch's files.
        floating: a floating-point dtype.
    """

    carrier: np.dtype[np.generic]
    torch: str
    storage: str
    floating: bool = False


# By safetensors' names.
DTYPES = {
    "F64": Dtype(np.dtype("<f8"), "float64", "DoubleStorage", floating=True),
    "F32": Dtype(np.dtype("<f4"), "float32", "FloatStorage", floating=True),
    "F16": Dtype(np.dtype("<f2"), "float16", "HalfStorage", floating=True),
    "BF16": Dtype(np.dtype("<u2"), "bfloat16", "BFloat16Storage", floating=True),
    # Quantized weights, which are no weights until they are multiplied by their scales.
    "F8_E4M3": Dtype(np.dtype("u1"), "float8_e4m3fn", "UntypedStorage"),
    "F8_E5M2": Dtype(np.dtype("u1"), "float8_e5m2", "UntypedStorage"),
    "I64": Dtype(np.dtype("<i8"), "int64", "LongStorage"),
    "I32": Dtype(np.dtype("<i4"), "int32", "IntStorage"),
    "I16": Dtype(np.dtype("<i2"), "int16", "ShortStorage"),
    "I8": Dtype(np.dtype("i1"), "int8", "CharStorage"),
    "U8": Dtype(np.dtype("u1"), "uint8", "ByteStorage"),
    "BOOL": Dtype(np.dtype("?"), "bool", "BoolStorage"),
}
DTYPES_HINT = f"supported dtypes: {', '.join(DTYPES)}"
TORCH_DTYPES = {dtype.torch: name for name, dtype in DTYPES.items()}
# numpy has no bfloat16 and no 8-bit floats: their carriers name nothing.
CARRIERS = {dtype.carrier: name for name, dtype in DTYPES.items() if dtype.torch == dtype.carrier.name}


@dataclass(frozen=True, repr=False)
class LazyTensor(ShortRepr):
    """One tensor of a file: header known, values read on demand.

    Attributes:
        dtype: safetensors' name, a key of :data:`DTYPES`.
        shape: sizes of the axes.
        read: returns the values as an array of ``shape`` in the carrier dtype, possibly a view of a memory-mapped file.
        parts: the tensors that it joins along the first axis, if it is joined: written one after another, they need
            not be in memory together.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]
    parts: tuple[LazyTensor, ...] = ()

    def _facts(self) -> dict[str, object]:
        return {"dtype": self.dtype, "shape": self.shape}

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * DTYPES[self.dtype].carrier.itemsize

    def permute(self, axes: Sequence[int]) -> LazyTensor:
        """Permute the axes as ``numpy.transpose`` does."""
        order = tuple(axes)
        if order == tuple(range(len(self.shape))):
            return self
        return LazyTensor(self.dtype, tuple(self.shape[axis] for axis in order), lambda: self.read().transpose(order))

    def reshape(self, shape: Sequence[int]) -> LazyTensor:
        """Reshape to a shape of equal size in row-major order.

        Raises:
            ValueError: the sizes differ.
        """
        target = tuple(shape)
        if target == self.shape:
            return self
        if math.prod(target) != math.prod(self.shape):
            raise ValueError(f"cannot reshape {self.shape} to {target}")
        return LazyTensor(self.dtype, target, lambda: self.read().reshape(target))


def from_array(array: Array, dtype: str | None = None) -> LazyTensor:
    """Return a lazy tensor over values in memory; ``dtype`` names what the carrier holds (needed for BF16)."""
    return LazyTensor(dtype or CARRIERS[array.dtype], array.shape, lambda: array)


def zeros(dtype: str, shape: tuple[int, ...]) -> LazyTensor:
    """Return a lazy tensor of zeros."""
    return LazyTensor(dtype, shape, lambda: np.zeros(shape, DTYPES[dtype].carrier))


def copied(tensor: LazyTensor) -> LazyTensor:
    """Return a tensor whose values are a copy, so that nothing done to them in place changes another's."""
    return LazyTensor(tensor.dtype, tensor.shape, lambda: tensor.read().copy())


def concat(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Join along the first axis.

    Raises:
        ValueError: dtypes or trailing shapes differ.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.dtype != first.dtype or part.shape[1:] != first.shape[1:] for part in parts):
        raise ValueError(f"cannot join {[(part.dtype, part.shape) for part in parts]}")
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return LazyTensor(first.dtype, shape, lambda: np.concatenate([part.read() for part in parts]), tuple(parts))


def split(tensor: LazyTensor, weights: Sequence[int]) -> list[LazyTensor]:
    """Cut along the first axis in proportion to ``weights``.

    Raises:
        ValueError: the axis cannot be cut in this proportion.
    """
    if len(weights) == 1:
        return [tensor]
    unit, rest = divmod(tensor.shape[0] if tensor.shape else 0, sum(weights))
    if rest or not unit:
        raise ValueError(f"cannot cut {tensor.shape} in the proportion {tuple(weights)}")
    parts, start = [], 0
    for weight in weights:
        parts.append(_slice(tensor, start, start + weight * unit))
        start += weight * unit
    return parts


def _slice(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    return LazyTensor(tensor.dtype, (stop - start, *tensor.shape[1:]), lambda: tensor.read()[start:stop])


def stack(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Join along a new first axis.

    Raises:
        ValueError: dtypes or shapes differ.
    """
    return concat([part.reshape((1, *part.shape)) for part in parts]).reshape((len(parts), *parts[0].shape))


def unstack(tensor: LazyTensor) -> list[LazyTensor]:
    """Return one tensor per index of the first axis: the inverse of :func:`stack`."""
    if not tensor.shape:
        raise ValueError("shape () cannot be cut into layers")
    return [_slice(tensor, i, i + 1).reshape(tensor.shape[1:]) for i in range(tensor.shape[0])]
