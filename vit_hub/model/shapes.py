"""Names and shapes of the canonical tensors, from a config alone: no torch, no model built.

The names are timm's wherever timm has one. :class:`vit_hub.model.vit.VisionTransformer` has exactly these parameters
(a test compares the two), so converters can plan and validate without importing torch.
"""

from __future__ import annotations

import math

from vit_hub.model.config import ViTConfig

__all__ = ["field_of", "num_parameters", "tensor_shapes"]

Shape = tuple[int, ...]

# Which config field a tensor hangs on: the longest prefix of its last-but-block name wins.
_FIELDS = {
    "cls_token": "class_token",
    "dist_token": "distilled",
    "reg_token": "num_registers",
    "pos_embed": "pos_embed",
    "patch_embed.proj.bias": "patch_bias",
    "norm_pre": "pre_norm",
    "blocks.*.attn.q_norm": "qk_norm",
    "blocks.*.attn.k_norm": "qk_norm",
    "blocks.*.attn.q_bias": "qkv_bias",
    "blocks.*.attn.v_bias": "qkv_bias",
    "blocks.*.attn.qkv.bias": "qkv_bias",
    "blocks.*.attn.qkv.bias_mask": "qkv_bias",
    "blocks.*.attn.relative_position_bias_table": "rel_pos",
    "blocks.*.attn.norm": "attn_norm",
    "blocks.*.mlp.norm": "mlp_norm",
    "rel_pos_bias": "rel_pos",
    "rope": "rope",
    "rope_embed": "rope",
    "cls_norm": "prefix_norm",
    "patch_embed.backbone": "stem",
    "blocks.*.ls1": "layer_scale",
    "blocks.*.ls2": "layer_scale",
    "blocks.*.mlp.fc1": "ffn",
    "norm": "final_norm",
    "fc_norm": "final_norm",
    "attn_pool": "pool",
    "pre_logits": "representation_dim",
    "projection": "projection_dim",
    "head_norm": "head_norm",
    "head": "num_classes",
    "head_dist": "pool",
}


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> dict[str, Shape]:
    weights: dict[str, Shape] = {f"{name}.weight": (outputs, inputs)}
    return {**weights, f"{name}.bias": (outputs,)} if bias else weights


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _statistics(name: str, width: int) -> dict[str, Shape]:
    """What a BatchNorm counts."""
    counted: dict[str, Shape] = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**counted, f"{name}.num_batches_tracked": ()}


def _block(config: ViTConfig, prefix: str) -> dict[str, Shape]:
    width, hidden = config.embed_dim, config.mlp_dim
    shapes = _norm(f"{prefix}.norm1", width)
    shapes |= _linear(f"{prefix}.attn.qkv", 3 * width, width, bias=config.qkv_bias in (True, "masked"))
    if config.qkv_bias == "masked":
        shapes[f"{prefix}.attn.qkv.bias_mask"] = (3 * width,)
    if config.qkv_bias == "qv":
        shapes |= {f"{prefix}.attn.q_bias": (width,), f"{prefix}.attn.v_bias": (width,)}
    if config.qk_norm:
        shapes |= _norm(f"{prefix}.attn.q_norm", config.head_dim) | _norm(f"{prefix}.attn.k_norm", config.head_dim)
    if config.rel_pos == "block":
        shapes[f"{prefix}.attn.relative_position_bias_table"] = _relative_table(config)
    if config.attn_norm:
        shapes |= _norm(f"{prefix}.attn.norm", width)
    shapes |= _linear(f"{prefix}.attn.proj", width, width)
    if config.layer_scale:
        shapes[f"{prefix}.ls1.gamma"] = (width,)
    shapes |= _norm(f"{prefix}.norm2", width)
    if config.ffn == "swiglu":
        shapes |= _linear(f"{prefix}.mlp.fc1_g", hidden, width) | _linear(f"{prefix}.mlp.fc1_x", hidden, width)
    else:
        shapes |= _linear(f"{prefix}.mlp.fc1", hidden * (2 if config.ffn == "swiglu_packed" else 1), width)
    if config.mlp_norm:
        shapes |= _norm(f"{prefix}.mlp.norm", hidden)
    shapes |= _linear(f"{prefix}.mlp.fc2", width, hidden)
    if config.layer_scale:
        shapes[f"{prefix}.ls2.gamma"] = (width,)
    return shapes


def _relative_table(config: ViTConfig) -> Shape:
    """One row for each offset of two patches, then class to patch, patch to class, class to class."""
    rows, columns = config.grid_size
    return ((2 * rows - 1) * (2 * columns - 1) + 3, config.num_heads)


def _resnet(config: ViTConfig) -> dict[str, Shape]:
    root, width = "patch_embed.backbone.stem", config.stem_width
    shapes: dict[str, Shape] = {f"{root}.conv.weight": (width, config.in_chans, 7, 7), **_norm(f"{root}.norm", width)}
    inputs = width
    for stage, units in enumerate(config.stem_stages):
        middle = config.stem_width * 2**stage
        for unit in range(units):
            name = f"patch_embed.backbone.stages.{stage}.blocks.{unit}"
            kernels = ((inputs, middle, 1), (middle, middle, 3), (middle, 4 * middle, 1))
            for index, (chans, outputs, kernel) in enumerate(kernels, 1):
                shapes[f"{name}.conv{index}.weight"] = (outputs, chans, kernel, kernel)
                shapes |= _norm(f"{name}.norm{index}", outputs)
            if unit == 0:
                shapes[f"{name}.downsample.conv.weight"] = (4 * middle, inputs, 1, 1)
                shapes |= _norm(f"{name}.downsample.norm", 4 * middle)
            inputs = 4 * middle
    return shapes


def _convs(config: ViTConfig) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    inputs = config.in_chans
    for index, (outputs, kernel, _) in enumerate(config.stem_convs):
        name = f"patch_embed.backbone.layers.{index}"
        shapes[f"{name}.conv.weight"] = (outputs, inputs, kernel, kernel)
        shapes |= _norm(f"{name}.norm", outputs)
        shapes |= _statistics(f"{name}.norm", outputs)
        inputs = outputs
    return shapes


def _map_head(config: ViTConfig) -> dict[str, Shape]:
    width, hidden = config.embed_dim, config.pool_mlp_dim or config.mlp_dim
    return (
        {"attn_pool.latent": (1, 1, width)}
        | _linear("attn_pool.q", width, width)
        | _linear("attn_pool.kv", 2 * width, width)
        | _linear("attn_pool.proj", width, width)
        | _norm("attn_pool.norm", width)
        | _linear("attn_pool.mlp.fc1", hidden, width)
        | _linear("attn_pool.mlp.fc2", width, hidden)
    )


def tensor_shapes(config: ViTConfig) -> dict[str, Shape]:
    """Every canonical tensor of a model, name -> shape, in the order in which files store them."""
    width = config.embed_dim
    shapes: dict[str, Shape] = {}
    if config.class_token:
        shapes["cls_token"] = (1, 1, width)
    if config.distilled:
        shapes["dist_token"] = (1, 1, width)
    if config.num_registers:
        shapes["reg_token"] = (1, config.num_registers, width)
    if config.pos_embed == "learned":
        shapes["pos_embed"] = (1, config.num_prefix_rows + config.num_patches, width)
    if config.stem != "patch":
        shapes |= _resnet(config) if config.stem == "resnet" else _convs(config)
    shapes["patch_embed.proj.weight"] = (width, config.patch_chans, *config.patch_size)
    if config.patch_bias:
        shapes["patch_embed.proj.bias"] = (width,)
    if config.pre_norm:
        shapes |= _norm("norm_pre", width)
    if config.rope and config.rope.stored_periods:
        shapes["rope_embed.periods"] = (config.head_dim // 4,)
    if config.rope and config.rope.mixed:
        shapes["rope.freqs"] = (2, config.depth, config.num_heads, config.head_dim // 2)
    if config.rel_pos == "shared":
        shapes["rel_pos_bias.relative_position_bias_table"] = _relative_table(config)
    for index in range(config.depth):
        shapes |= _block(config, f"blocks.{index}")
    if config.prefix_norm:
        shapes |= _norm("cls_norm", width)
    if config.final_norm != "none":
        shapes |= _norm("norm" if config.final_norm == "before" else "fc_norm", width)
    if config.pool == "map":
        shapes |= _map_head(config)
    features = width
    if config.representation_dim:
        features = config.representation_dim
        shapes |= _linear("pre_logits.fc", features, width)
    if config.projection_dim:
        shapes["projection.weight"] = (config.projection_dim, width)
        features = config.projection_dim
    if config.head_norm:
        shapes |= _statistics("head_norm", features)
    if config.num_classes:
        shapes |= _linear("head", config.num_classes, features * (2 if config.head_input == "cls_avg" else 1))
    if config.num_classes and config.pool == "cls_dist":
        shapes |= _linear("head_dist", config.num_classes, features)
    return shapes


def num_parameters(config: ViTConfig) -> int:
    """Number of parameters of the whole model, head included."""
    buffers = ("running_mean", "running_var", "num_batches_tracked", "bias_mask", "periods")
    return sum(math.prod(shape) for name, shape in tensor_shapes(config).items() if not name.endswith(buffers))


def field_of(tensor: str) -> str:
    """The config field that a canonical tensor's presence depends on, for error messages."""
    parts = tensor.split(".")
    if parts[0] == "blocks" and len(parts) > 1:
        parts[1] = "*"
    for end in range(len(parts), 0, -1):
        field = _FIELDS.get(".".join(parts[:end]))
        if field:
            return field
    return "depth"
