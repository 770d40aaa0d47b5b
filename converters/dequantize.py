"""Quantized weights as floating-point numbers, where the arithmetic is public: bitsandbytes, 8-bit floats, scaled int8.

All of it is computed in float32 and cast once, to the dtype that the model computes in.
Source: bitsandbytes/functional.py (QuantState, dequantize_4bit, int8_vectorwise_dequant),
transformers/integrations/finegrained_fp8.py, compressed_tensors/quantization/lifecycle/forward.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_hub.converters.casting import cast, floats
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.tensors import DTYPES, TORCH_DTYPES, LazyTensor
from vit_hub.errors import CheckpointError
from vit_hub.untrusted import parse_json

__all__ = ["dequantized"]

Floats = npt.NDArray[np.floating[Any]]

_STATE = ".quant_state.bitsandbytes__"
# What a 4-bit weight has beside it, and what others have that says nothing of the weight.
_OF_FOUR_BITS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_ROWS = "SCB"
_UNUSED = ("weight_format", "input_scale", "output_scale", "weight_shape", "weight_g_idx", "activation_scale")
_SCALES = ("weight_scale", "weight_scale_inv", "scale_weight")
_BLOCK = 128
# bitsandbytes' constant for 1 / 127.
_SEVENTH_BIT = np.float32(7.874015718698502e-3)
_CONFIG = "config.json"


def dequantized(raw: RawCheckpoint) -> RawCheckpoint:
    """Return the contents with quantized weights as floating-point ones, computed when they are read.

    Raises:
        CheckpointError: what describes the quantization does not fit the weights.
    """
    tensors = dict(raw.tensors)
    try:
        for name, tensor in raw.tensors.items():
            made = _weight(raw, name, tensor)
            if made is None:
                continue
            tensors[name] = made
            layer = name.removesuffix("weight")
            beside = [f"{layer}{part}" for part in (_ROWS, *_UNUSED, *_SCALES)]
            beside += [f"{name}.{part}" for part in _OF_FOUR_BITS]
            beside += (
                [other for other in raw.tensors if other.startswith(f"{name}{_STATE}")] if _is_4bit(raw, name) else []
            )
            for other in beside:
                tensors.pop(other, None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{raw.path}: its quantization is not as bitsandbytes or 8-bit floats describe it: {error}",
            hint="give the file that was quantized, or dequantize it where it was made",
        ) from error
    sidecars = dict(raw.sidecars)
    if _CONFIG in sidecars:
        sidecars[_CONFIG] = {key: value for key, value in sidecars[_CONFIG].items() if key != "quantization_config"}
    return dataclasses.replace(raw, tensors=tensors, sidecars=sidecars)


def _is_4bit(raw: RawCheckpoint, name: str) -> bool:
    return f"{name}.absmax" in raw.tensors


def _weight(raw: RawCheckpoint, name: str, tensor: LazyTensor) -> LazyTensor | None:
    """Return the weight of a quantized one; None if it is none."""
    if _is_4bit(raw, name):
        return _four_bits(raw, name, tensor)
    layer = name.removesuffix("weight")
    rows = raw.tensors.get(f"{layer}{_ROWS}")
    scale = next((raw.tensors[layer + part] for part in _SCALES if layer + part in raw.tensors), None)
    if layer != name and rows is not None and tensor.dtype == "I8":
        if rows.shape != tensor.shape[:1]:
            raise ValueError(f"{name} has {tensor.shape[:1]} rows and scales of {rows.shape}")
        return _lazy(raw, tensor.shape, lambda: floats(tensor) * floats(rows)[:, None] * _SEVENTH_BIT)
    if layer == name or scale is None or tensor.dtype not in ("I8", "F8_E4M3", "F8_E5M2"):
        return _scaled(raw, tensor, None) if tensor.dtype.startswith("F8") else None
    if f"{layer}weight_zero_point" in raw.tensors:
        raise ValueError(f"{name} has a zero point")
    return _scaled(raw, tensor, scale)


def _lazy(raw: RawCheckpoint, shape: tuple[int, ...], read: Callable[[], Floats], dtype: str = "") -> LazyTensor:
    return cast(LazyTensor("F32", shape, lambda: read().astype(np.float32, copy=False)), dtype or _compute_dtype(raw))


def _compute_dtype(raw: RawCheckpoint) -> str:
    """Return the dtype that config.json names, or that most tensors have that are not quantized."""
    config = raw.sidecars.get(_CONFIG, {})
    named = str(config.get("dtype") or config.get("torch_dtype"))
    if DTYPES.get(TORCH_DTYPES.get(named, ""), DTYPES["U8"]).floating:
        return TORCH_DTYPES[named]
    plain = Counter(
        tensor.dtype
        for name, tensor in raw.tensors.items()
        if DTYPES[tensor.dtype].floating and name.rpartition(".")[2] in ("weight", "bias")
    )
    return plain.most_common(1)[0][0] if plain else "F32"


# bitsandbytes, 4 bits


def _four_bits(raw: RawCheckpoint, name: str, packed: LazyTensor) -> LazyTensor:
    """Return a weight of two codes a byte, the first in the upper half, with a scale for each block of values."""
    state = next((other for other in raw.tensors if other.startswith(f"{name}{_STATE}")), None)
    if state is None:
        raise ValueError(f"{name} has no {_STATE.strip('.')}")
    about = parse_json(bytes(raw.tensors[state].read().astype(np.uint8)))
    shape, block = tuple(about["shape"]), about["blocksize"]
    if any(type(size) is not int or size < 0 for size in (*shape, block)) or not block or 0 in shape:
        raise ValueError(f"{name} has shape {shape} and blocks of {block}")
    count = math.prod(shape)
    table = raw.tensors[f"{name}.quant_map"]
    if packed.dtype != "U8" or math.prod(packed.shape) != -(-count // 2) or table.shape != (16,):
        raise ValueError(f"{name} has {packed.shape} {packed.dtype} for {count} values")
    scales = _block_scales(raw, name, about, -(-count // block))

    def read() -> Floats:
        pairs = packed.read().reshape(-1).astype(np.uint8, copy=False)
        values = np.empty(2 * pairs.size, np.float32)
        numbers = floats(table)
        values[0::2], values[1::2] = numbers[pairs >> 4], numbers[pairs & 15]
        values = values[:count]
        factors = scales()
        whole = count - count % block
        blocks = values[:whole].reshape(-1, block)
        blocks *= factors[: whole // block, None]
        if whole < count:
            values[whole:] *= factors[-1]
        return values.reshape(shape)

    return _lazy(raw, shape, read, TORCH_DTYPES.get(about.get("dtype", ""), ""))


def _block_scales(raw: RawCheckpoint, name: str, about: Mapping[str, Any], count: int) -> Callable[[], Floats]:
    """Return what reads the scales of the blocks, which may be quantized to 8 bits themselves."""
    scales = raw.tensors[f"{name}.absmax"]
    if math.prod(scales.shape) != count:
        raise ValueError(f"{name} has scales of shape {scales.shape} for {count} blocks")
    if DTYPES[scales.dtype].floating:
        return lambda: floats(scales).reshape(-1)
    table, outer = raw.tensors[f"{name}.nested_quant_map"], raw.tensors[f"{name}.nested_absmax"]
    block, offset = about["nested_blocksize"], np.float32(about["nested_offset"])
    if type(block) is not int or block < 1 or scales.dtype != "U8" or table.shape != (256,):
        raise ValueError(f"{name} has scales of {scales.dtype} in blocks of {block}")
    if outer.shape != (-(-count // block),):
        raise ValueError(f"{name} has scales of shape {outer.shape} for those of {count} blocks")

    def read() -> Floats:
        found = floats(table)[scales.read().reshape(-1)]
        found *= np.repeat(floats(outer), min(block, count))[:count] if block < count else floats(outer)[0]
        shifted: Floats = found + offset
        return shifted

    return read


# Numbers of 8 bits times scales


def _scaled(raw: RawCheckpoint, weight: LazyTensor, scale: LazyTensor | None) -> LazyTensor:
    """Return a weight times one scale, one for each row, or one for each block."""
    if scale is None:
        return _lazy(raw, weight.shape, lambda: floats(weight))
    shape = scale.shape
    if math.prod(shape) == 1:
        return _lazy(raw, weight.shape, lambda: floats(weight) * floats(scale).reshape(-1)[0])
    rows = weight.shape[:1]
    if math.prod(shape) == rows[0] and shape[:1] == rows:
        column = (-1, *(1,) * (len(weight.shape) - 1))
        return _lazy(raw, weight.shape, lambda: floats(weight) * floats(scale).reshape(column))
    config = raw.sidecars.get(_CONFIG, {}).get("quantization_config") or {}
    block = config.get("weight_block_size") or (_BLOCK, _BLOCK)
    height, width = (int(size) for size in block)
    if len(weight.shape) != 2 or min(height, width) < 1:
        raise ValueError(f"scales of shape {shape} for a weight of shape {weight.shape}")
    blocks = (-(-weight.shape[0] // height), -(-weight.shape[1] // width))
    if shape != blocks:
        raise ValueError(f"scales of shape {shape} for {blocks} blocks of {height}x{width}")

    def read() -> Floats:
        factors = np.repeat(np.repeat(floats(scale), height, 0), width, 1)
        found: Floats = floats(weight) * factors[: weight.shape[0], : weight.shape[1]]
        return found

    return _lazy(raw, weight.shape, read)
