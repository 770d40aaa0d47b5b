"""Arithmetic and memory of a model's forward pass, from its config alone."""

from __future__ import annotations

import math

from vit_hub.model.config import ATTENTION_POOLS, ViTConfig
from vit_hub.model.shapes import tensor_shapes

__all__ = ["activation_values", "forward_flops", "tokens_of"]

# Tensors of the feed-forward layer's hidden width that live at once: before its last matrix product, and in it.
_HIDDEN = {"mlp": (1, 1), "swiglu": (3, 1), "swiglu_packed": (3, 1)}


def tokens_of(config: ViTConfig) -> int:
    """Return the number of tokens in a block, T: class, distillation, registers and N patches (of all frames)."""
    return config.num_prefix_tokens + config.num_tubelets * config.num_patches + config.num_detection_tokens


def forward_flops(config: ViTConfig) -> int:
    """Return the floating-point operations of the forward pass for one image, a multiply-add counted as two.

    A weight matrix of I inputs and O outputs costs 2 I O for every row that it is applied to: the N patches for the
    patch embedding, all T tokens in the blocks and for the keys and values of MAP pooling, one pooled row after that.
    A convolution of a hybrid's stem costs that for every pixel that it puts out. Attention adds 4 T^2 D for each block
    of width D, half for the products of queries and keys and half for the weighted sums of values (arXiv 2010.11929,
    eq. 6-7), and MAP pooling 4 T D for its one query. So a plain block is 8 T D^2 + 4 T^2 D + 4 T D M with a hidden
    width M. Where a block has windows, T is the number of patches of one, for all of them, filled at the edges;
    relative positions by axis add 2 T D (r + c) for windows or a grid of r rows and c columns.

    Biases, norms, softmax, activations, rotations and residual sums are left out. Every block counts for all tokens,
    although the last one needs fewer where only the class token is used.
    """
    tokens = tokens_of(config)
    total = config.branches * sum(_attention(config, block) for block in range(config.depth))
    if config.pool in ATTENTION_POOLS:
        total += 4 * (tokens + config.pool_depth * tokens**2) * config.embed_dim
    for name, shape in tensor_shapes(config).items():
        if name.endswith(".weight") and len(shape) > 1:  # a matrix or a kernel
            total += 2 * math.prod(shape) * _rows(name, config)
    return total


def activation_values(config: ViTConfig) -> int | None:
    """Estimate how many values a forward pass without gradients holds at once for one image; None for hybrids.

    The widest moment of a block of T tokens and width D is either in attention, 7 T D (residual, normed input, queries,
    keys, values, and the output before and after its heads are joined) or in the feed-forward layer (residuals before
    and after attention, attention's output, normed input, the output, and what has the hidden width; QuickGELU, which
    is not one kernel, takes one more of the latter).
    Attention is fused: its T^2 weights are never held. What is left out: the bias of relative positions, which the
    images of a batch share, and a stem, which may take more than the blocks.
    """
    if config.stem != "patch":
        return None
    before, during = _HIDDEN[config.ffn]
    before = max(before, 2) if config.act == "quick_gelu" else before
    dim, hidden = config.embed_dim, config.mlp_dim
    return tokens_of(config) * max(7 * dim, 4 * dim + before * hidden, 5 * dim + during * hidden)


def _attention(config: ViTConfig, block: int) -> int:
    """Operations of the attention of one block, without its linear layers."""
    window = config.window(block)
    rows, columns = window or config.grid_size
    tokens, seen = (_filled(config, window), rows * columns) if window else (tokens_of(config),) * 2
    offsets = rows + columns if config.rel_pos == "decomposed" else 0
    # Both softmaxes of differential attention weigh all channels of the values.
    products = 6 if config.differential else 4
    return (products * seen + 2 * offsets) * tokens * config.embed_dim


def _filled(config: ViTConfig, window: tuple[int, int]) -> int:
    """Patches of all windows, with those beyond the grid."""
    return math.prod(-(-side // step) * step for side, step in zip(config.grid_size, window, strict=True))


def _rows(weight: str, config: ViTConfig) -> int:
    if weight.startswith("patch_embed.backbone."):
        return _pixels(weight, config)
    if weight.startswith("patch_embed."):
        return config.num_tubelets * config.num_patches
    if weight.startswith("neck."):
        return config.num_patches
    if "rel_pos." in weight:
        return config.num_relative_offsets
    if weight.startswith("merger.") and config.merger:
        return config.num_patches // config.merger.size**2
    if weight.endswith(".attn.qkv.weight") and config.windows:
        window = config.window(int(weight.split(".")[1]))
        return _filled(config, window) if window else tokens_of(config)
    return tokens_of(config) if weight.startswith(("blocks.", "attn_pool.kv.", "attn_pool.blocks.")) else 1


def _pixels(kernel: str, config: ViTConfig) -> int:
    """Output pixels of a convolution of the stem."""
    _, _, part, index, *rest = kernel.split(".")
    if config.stem == "conv":
        layers = int(index) + 1
    elif part == "stem":
        layers = 1
    else:
        # A stage shrinks the map in the second convolution of its first unit.
        layers = 2 + int(index) - int(int(index) > 0 and rest[1:3] == ["0", "conv1"])
    height, width = config.image_size
    for stride in config.stem_strides[:layers]:
        height, width = -(-height // stride), -(-width // stride)
    return height * width
