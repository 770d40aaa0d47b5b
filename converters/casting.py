"""Dtype changes of lazy tensors, and their exchange with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vit_hub.converters.containers.pieces import fill, is_own
from vit_hub.converters.tensors import DTYPES, TORCH_DTYPES, Array, LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.untrusted import quoted

if TYPE_CHECKING:
    import torch

__all__ = ["cast", "floats", "from_tensor", "to_torch", "torch_dtype"]

_FLOATING = {name: dtype.torch for name, dtype in DTYPES.items() if dtype.floating}


def floats(tensor: LazyTensor) -> npt.NDArray[Any]:
    """Read a tensor as numbers: float64 where it is stored so, else float32."""
    if tensor.dtype.startswith("F8"):
        return to_torch(tensor).float().numpy()
    values = tensor.read()
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values if tensor.dtype == "F64" else values.astype(np.float32, copy=False)


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of safetensors' or torch's own name (``BF16``, ``bfloat16``).

    Raises:
        ConfigError: unknown name.
    """
    import torch

    found = getattr(torch, DTYPES[name].torch if name in DTYPES else str(name), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"dtype {quoted(name)} is unknown", hint=f"known: {', '.join(_FLOATING.values())}")
    return found


def to_torch(tensor: LazyTensor, *, own: bool = False) -> torch.Tensor:
    """Read a tensor; it shares the file's memory where it is contiguous there, unless it is to have its own."""
    import torch

    dtype = DTYPES[tensor.dtype]
    if tensor.parts:
        found, start = _empty(tensor), 0
        for part in tensor.parts:
            fill(found.numpy()[start : start + part.shape[0]], part.read())
            start += part.shape[0]
    else:
        values = tensor.read()
        if values.flags.c_contiguous and values.flags.aligned:
            found = torch.from_numpy(values)
            if own and not is_own(values):
                found = found.clone()
        else:
            found = _empty(tensor)
            fill(found.numpy(), values)
    return found if dtype.torch == dtype.carrier.name else found.view(getattr(torch, dtype.torch))


def _empty(tensor: LazyTensor) -> torch.Tensor:
    """Return memory of torch's for the values, in their carrier dtype.

    numpy would ask for huge pages, which a virtual machine may get from its host one by one.
    """
    import torch

    return torch.empty(tensor.shape, dtype=getattr(torch, DTYPES[tensor.dtype].carrier.name))


def cast(tensor: LazyTensor, dtype: str) -> LazyTensor:
    """Cast to another floating-point dtype, rounding to nearest even when read; other dtypes stay.

    Raises:
        ConfigError: ``dtype`` is not a floating-point dtype.
    """
    target = TORCH_DTYPES.get(dtype, dtype)
    if target not in _FLOATING:
        known = ", ".join((*_FLOATING, *_FLOATING.values()))
        raise ConfigError(f"dtype {dtype!r} is not a floating-point dtype", hint=f"known: {known}")
    if tensor.dtype == target or not DTYPES[tensor.dtype].floating:
        return tensor

    def read() -> Array:
        import torch

        values = to_torch(tensor).to(torch_dtype(target))
        return (values.view(torch.uint16) if target == "BF16" else values).numpy()

    return LazyTensor(target, tensor.shape, read)


def from_tensor(tensor: torch.Tensor) -> LazyTensor:
    """Return a lazy tensor over a torch tensor, which may stay on any device until it is read."""
    import torch

    name = TORCH_DTYPES[str(tensor.dtype).removeprefix("torch.")]
    carrier = DTYPES[name].carrier.name

    def read() -> Array:
        values: Array = tensor.detach().cpu().contiguous().view(getattr(torch, carrier)).numpy()
        return values

    return LazyTensor(name, tuple(tensor.shape), read)
