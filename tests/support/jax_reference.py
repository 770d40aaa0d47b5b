"""The models of big_vision and vit_jax once more, in numpy and from their formulas alone, over a dict of parameters.

Names are those of big_vision's plain layout (``Transformer/encoderblock_0/...``, ``pos_embedding``, ``MAPHead_0/...``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]

__all__ = ["block_shapes", "forward", "map_shapes", "pool", "resnet", "resnet_shapes", "sincos2d", "tokens"]


def below(p: Parameters, prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: value for name, value in p.items() if name.startswith(prefix)}


def layer_norm(x: Array, p: Parameters) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x: Array) -> Array:
    """flax's nn.gelu: the tanh approximation."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(query: Array, other: Array, p: Parameters) -> Array:
    q, k, v = (
        np.einsum("btd,dhe->bhte", x, p[f"{name}/kernel"]) + p[f"{name}/bias"][:, None]
        for x, name in ((query, "query"), (other, "key"), (other, "value"))
    )
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return np.einsum("bhte,hed->btd", mixed, p["out/kernel"]) + p["out/bias"]


def mlp(x: Array, p: Parameters) -> Array:
    return gelu(x @ p["Dense_0/kernel"] + p["Dense_0/bias"]) @ p["Dense_1/kernel"] + p["Dense_1/bias"]


def map_head(x: Array, p: Parameters) -> Array:
    """The probe attends to all tokens; the residual is what it read, not the probe."""
    probe = np.broadcast_to(p["probe"], (len(x), 1, x.shape[-1]))
    y = attention(probe, x, below(p, "MultiHeadDotProductAttention_0/"))
    return (y + mlp(layer_norm(y, below(p, "LayerNorm_0/")), below(p, "MlpBlock_0/")))[:, 0]


def sincos2d(height: int, width: int, dim: int) -> Array:
    """sin x, cos x, sin y, cos y; the last frequency is 1/10000; x varies fastest."""
    table = np.zeros((height, width, dim))
    quarter = dim // 4
    for y in range(height):
        for x in range(width):
            for k in range(quarter):
                omega = 1 / 10_000 ** (k / (quarter - 1))
                values = (np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega))
                for part, value in enumerate(values):
                    table[y, x, part * quarter + k] = value
    return table.reshape(1, height * width, dim)


def tokens(p: Parameters, images: Array) -> Array:
    """Patches of images [B, h, w, C], row by row: [B, N, D]."""
    kernel = p["embedding/kernel"]
    height, width = kernel.shape[:2]
    rows, columns = images.shape[1] // height, images.shape[2] // width
    patches = images.reshape(len(images), rows, height, columns, width, -1)
    embedded = np.einsum("brhcwi,hwio->brco", patches, kernel) + p["embedding/bias"]
    return embedded.reshape(len(images), rows * columns, -1)


def forward(p: Parameters, x: Array, depth: int) -> Array:
    """The encoder over tokens, with its last norm: [B, T, D]."""
    for index in range(depth):
        block = below(p, f"Transformer/encoderblock_{index}/")
        y = layer_norm(x, below(block, "LayerNorm_0/"))
        x = x + attention(y, y, below(block, "MultiHeadDotProductAttention_0/"))
        x = x + mlp(layer_norm(x, below(block, "LayerNorm_1/")), below(block, "MlpBlock_0/"))
    return layer_norm(x, below(p, "Transformer/encoder_norm/"))


def pool(p: Parameters, x: Array, kind: str) -> Array:
    """``map``, ``gap``, ``tok`` or ``0``; then the representation layer and the head, if there are any."""
    if kind == "map":
        x = map_head(x, below(p, "MAPHead_0/"))
    elif kind == "gap":
        x = x.mean(axis=1)
    else:
        x = x[:, 0]
    if "pre_logits/kernel" in p:
        x = np.tanh(x @ p["pre_logits/kernel"] + p["pre_logits/bias"])
    return x @ p["head/kernel"] + p["head/bias"] if "head/kernel" in p else x


def same(x: Array, kernel: int, stride: int, value: float = 0.0) -> Array:
    """TensorFlow's SAME: as many positions as strides fit; what is odd is padded below and to the right."""
    pads = []
    for size in x.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def windows(x: Array, kernel: int, stride: int) -> Array:
    """[B, rows, columns, C, kernel, kernel]."""
    found = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))
    return found[:, ::stride, ::stride]


def std_conv(x: Array, kernel: Array, stride: int) -> Array:
    kernel = kernel - kernel.mean(axis=(0, 1, 2))
    kernel = kernel / (kernel.std(axis=(0, 1, 2)) + 1e-5)
    size = kernel.shape[0]
    return np.einsum("brcihw,hwio->brco", windows(same(x, size, stride), size, stride), kernel)


def group_norm(x: Array, p: Parameters) -> Array:
    grouped = x.reshape(*x.shape[:3], 32, -1)
    centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=(1, 2, 4), keepdims=True) + 1e-6)
    return normed.reshape(x.shape) * p["scale"].reshape(-1) + p["bias"].reshape(-1)


def unit(x: Array, p: Parameters, stride: int) -> Array:
    residual = x
    if "conv_proj/kernel" in p:
        residual = group_norm(std_conv(x, p["conv_proj/kernel"], stride), below(p, "gn_proj/"))
    for index, step in ((1, 1), (2, stride), (3, 1)):
        x = group_norm(std_conv(x, p[f"conv{index}/kernel"], step), below(p, f"gn{index}/"))
        x = np.maximum(x, 0) if index < 3 else x
    return np.maximum(residual + x, 0)


def resnet(p: Parameters, images: Array, units: tuple[int, ...]) -> Array:
    """The ResNet of the hybrids, [B, h, w, C] -> [B, h', w', C']."""
    x = np.maximum(group_norm(std_conv(images, p["conv_root/kernel"], 2), below(p, "gn_root/")), 0)
    x = windows(same(x, 3, 2, -np.inf), 3, 2).max(axis=(-1, -2))
    for stage, count in enumerate(units):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            x = unit(x, below(p, f"block{stage + 1}/unit{index + 1}/"), stride)
    return x


def dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def attention_shapes(name: str, width: int, heads: int) -> dict[str, tuple[int, ...]]:
    head = (heads, width // heads)
    inner = {f"{name}/{part}/kernel": (width, *head) for part in ("query", "key", "value")}
    inner |= {f"{name}/{part}/bias": head for part in ("query", "key", "value")}
    return {**inner, f"{name}/out/kernel": (*head, width), f"{name}/out/bias": (width,)}


def block_shapes(width: int, heads: int, hidden: int, depth: int) -> dict[str, tuple[int, ...]]:
    """The encoder's parameters."""
    shapes = norm("Transformer/encoder_norm", width)
    for index in range(depth):
        block = f"Transformer/encoderblock_{index}"
        shapes |= norm(f"{block}/LayerNorm_0", width) | norm(f"{block}/LayerNorm_1", width)
        shapes |= attention_shapes(f"{block}/MultiHeadDotProductAttention_0", width, heads)
        shapes |= dense(f"{block}/MlpBlock_0/Dense_0", width, hidden)
        shapes |= dense(f"{block}/MlpBlock_0/Dense_1", hidden, width)
    return shapes


def map_shapes(width: int, heads: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The MAP head's parameters."""
    shapes = {"MAPHead_0/probe": (1, 1, width)} | norm("MAPHead_0/LayerNorm_0", width)
    shapes |= attention_shapes("MAPHead_0/MultiHeadDotProductAttention_0", width, heads)
    shapes |= dense("MAPHead_0/MlpBlock_0/Dense_0", width, hidden)
    return shapes | dense("MAPHead_0/MlpBlock_0/Dense_1", hidden, width)


def resnet_shapes(width: int, units: tuple[int, ...], chans: int = 3) -> dict[str, tuple[int, ...]]:
    """The ResNet's parameters; group norms as the public files keep them."""
    shapes = resnet_layer("conv_root", "gn_root", 7, chans, width)
    inputs = width
    for stage, count in enumerate(units):
        middle = width * 2**stage
        for index in range(count):
            name = f"block{stage + 1}/unit{index + 1}"
            shapes |= resnet_layer(f"{name}/conv1", f"{name}/gn1", 1, inputs, middle)
            shapes |= resnet_layer(f"{name}/conv2", f"{name}/gn2", 3, middle, middle)
            shapes |= resnet_layer(f"{name}/conv3", f"{name}/gn3", 1, middle, 4 * middle)
            if index == 0:
                shapes |= resnet_layer(f"{name}/conv_proj", f"{name}/gn_proj", 1, inputs, 4 * middle)
            inputs = 4 * middle
    return shapes


def resnet_layer(conv: str, group: str, kernel: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    parts = {f"{group}/{part}": (1, 1, 1, outputs) for part in ("scale", "bias")}
    return {f"{conv}/kernel": (kernel, kernel, inputs, outputs), **parts}
