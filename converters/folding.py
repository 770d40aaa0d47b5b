"""Folds: rewriting a model as another with the same outputs, for formats that cannot express it as it is.

Nothing is folded when a checkpoint is read: a class row of a position table stays a row. When one is written and the
format has a problem with a field, the folds of that field are tried, and the report lists those applied. Computed
values are kept in float32 (or float64), so that outputs agree up to its rounding for weights of any dtype.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vit_hub.converters.casting import cast, floats
from vit_hub.converters.tensors import DTYPES, Array, LazyTensor, concat, from_array, split, zeros
from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import tensor_shapes

__all__ = ["FOLDS", "Fold"]

Tensors = Mapping[str, LazyTensor]
Folded = tuple[ViTConfig, dict[str, LazyTensor]]


@dataclass(frozen=True)
class Fold:
    """One way to rewrite a model.

    Attributes:
        fields: the config fields with which a format may have a problem.
        text: a description for the report.
        apply: rewrites a model; returns None where it cannot do so exactly.
        cost: of several possible formats, the one whose folds cost least is written.
        exact: the outputs stay the same; otherwise the text says what is lost.
    """

    fields: tuple[str, ...]
    text: str
    apply: Callable[[ViTConfig, Tensors], Folded | None]
    cost: int = 1
    exact: bool = True


def _computed(like: LazyTensor, shape: tuple[int, ...], values: Callable[[], Array]) -> LazyTensor:
    dtype = "F64" if like.dtype == "F64" else "F32"
    return LazyTensor(dtype, shape, lambda: values().astype(DTYPES[dtype].carrier))


def _is_zero(tensor: LazyTensor) -> bool:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return not floats(tensor).any()


def _biases(config: ViTConfig, tensors: Tensors, block: int) -> list[LazyTensor] | None:
    """Return the biases of queries, keys and values of a block; None if a mask of them has values but 0 and 1."""
    name, widths = f"blocks.{block}.attn", (config.embed_dim, config.kv_dim(block), config.kv_dim(block))
    nothing = [zeros(tensors[f"{name}.qkv.weight"].dtype, (width,)) for width in widths]
    if config.qkv_bias == "qv":
        return [tensors[f"{name}.q_bias"], nothing[1], tensors[f"{name}.v_bias"]]
    if not config.qkv_bias:
        return nothing
    bias = tensors[f"{name}.qkv.bias"]
    if config.qkv_bias == "masked":
        mask = floats(tensors[f"{name}.qkv.bias_mask"])
        if not np.isin(mask, (0, 1)).all():
            return None
        bias = from_array(np.where(mask == 1, bias.read(), 0).astype(DTYPES[bias.dtype].carrier), bias.dtype)
    return split(bias, widths)


def _to_qkv_bias(target: bool | str, *, without_keys: bool = False) -> Callable[[ViTConfig, Tensors], Folded | None]:
    """Return the fold that stores the biases of queries, keys and values as another ``qkv_bias`` does.

    The bias of keys adds the same to all logits of a query and cancels in the softmax, unless keys are normed or
    rotated after it is added. ``without_keys`` leaves it out where it cancels.
    """

    def apply(config: ViTConfig, tensors: Tensors) -> Folded | None:
        if config.qkv_bias == target or config.branches > 1 or (target == "masked" and config.kv_heads):
            return None
        changed = dict(tensors)
        cancels = without_keys and config.rope is None and not config.qk_norm
        for index in range(config.depth):
            name = f"blocks.{index}.attn"
            parts = _biases(config, tensors, index)
            if parts is None or not (target is True or cancels or _is_zero(parts[1])):
                return None
            for old in ("qkv.bias", "qkv.bias_mask", "q_bias", "v_bias"):
                changed.pop(f"{name}.{old}", None)
            if target == "qv":
                changed |= {f"{name}.q_bias": parts[0], f"{name}.v_bias": parts[2]}
            else:
                changed[f"{name}.qkv.bias"] = concat(parts)
            if target == "masked":
                ones = np.ones((3, config.embed_dim), np.float32)
                ones[1] = 0
                changed[f"{name}.qkv.bias_mask"] = cast(from_array(ones.reshape(-1)), parts[0].dtype)
        if config.pool == "attn" and not config.qkv_bias:  # its keys and values have biases as those of the blocks
            changed["attn_pool.kv.bias"] = zeros(tensors["attn_pool.kv.weight"].dtype, (2 * config.embed_dim,))
        return config.replace(qkv_bias=target), changed

    return apply


def _patch_bias(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Add a bias of zeros to the patch embedding, or remove it."""
    name, changed = "patch_embed.proj.bias", dict(tensors)
    if not config.patch_bias:
        changed[name] = zeros(tensors["patch_embed.proj.weight"].dtype, (config.embed_dim,))
    elif not _is_zero(changed.pop(name)):
        return None
    return config.replace(patch_bias=not config.patch_bias), changed


def _computed_table(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Store a sine-cosine table as a learned one."""
    if not config.pos_embed.startswith("sincos2d"):
        return None
    shape = (1, config.num_patches, config.embed_dim)
    grid, width, reached = config.grid_size, config.embed_dim, config.pos_embed == "sincos2d"

    def values() -> Array:
        from vit_hub.model.positions import sincos2d

        return np.asarray(sincos2d(grid, width, reached=reached).reshape(shape))

    table = _computed(tensors["patch_embed.proj.weight"], shape, values)
    changed = config.replace(pos_embed="learned", pos_embed_prefix=False, pos_embed_registers=False)
    return changed, {**tensors, "pos_embed": table}


def _add_rows(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Add rows of zeros to the position table for tokens that have none."""
    tokens = int(config.class_token) + int(config.distilled)
    if config.pos_embed != "learned" or config.num_prefix_rows or not tokens:
        return None
    table = tensors["pos_embed"]
    rows = concat([zeros(table.dtype, (tokens, config.embed_dim)), table.reshape(table.shape[1:])])
    return config.replace(pos_embed_prefix=True), {**tensors, "pos_embed": rows.reshape((1, *rows.shape))}


def _merge_rows(config: ViTConfig, tensors: Tensors, kept: int) -> dict[str, LazyTensor]:
    """Add the prefix rows of the position table after the first ``kept`` to their tokens."""
    table, changed, row = tensors["pos_embed"], dict(tensors), 0
    for name in ("cls_token", "dist_token", "reg_token"):
        count = tensors[name].shape[1] if name in tensors else 0
        if count and kept <= row < config.num_prefix_rows:
            changed[name] = _added(tensors[name], table, slice(row, row + count))
        row += count
    merged = slice(kept, config.num_prefix_rows)
    shape = (1, kept + config.num_patches, config.embed_dim)
    changed["pos_embed"] = LazyTensor(table.dtype, shape, lambda: np.delete(table.read(), merged, axis=1))
    return changed


def _added(token: LazyTensor, table: LazyTensor, rows: slice) -> LazyTensor:
    return _computed(token, token.shape, lambda: np.asarray(floats(token) + floats(table)[:, rows]))


def _merge_register_rows(config: ViTConfig, tensors: Tensors) -> Folded | None:
    if not config.pos_embed_registers or config.num_detection_tokens:
        return None
    kept = int(config.class_token) + int(config.distilled)
    return config.replace(pos_embed_registers=False), _merge_rows(config, tensors, kept)


def _merge_all_rows(config: ViTConfig, tensors: Tensors) -> Folded | None:
    if not config.num_prefix_rows or config.num_detection_tokens:
        return None
    changed = config.replace(pos_embed_prefix=False, pos_embed_registers=False)
    return changed, _merge_rows(config, tensors, 0)


_SCALES = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
# Layer scale -> the branches that have it.
_SCALED: dict[bool | str, tuple[str, ...]] = {True: ("ls1", "ls2"), "attn": ("ls1",), False: ()}


def _to_layer_scale(target: bool | str) -> Callable[[ViTConfig, Tensors], Folded | None]:
    """Return the fold that multiplies layer scale, a diagonal matrix, into the layers before it, or adds ones."""

    def apply(config: ViTConfig, tensors: Tensors) -> Folded | None:
        side_by_side = config.parallel != "none" or config.branches > 1
        if config.layer_scale == target or config.norm_position == "post" or side_by_side:
            return None
        changed = dict(tensors)
        for index in range(config.depth):
            for scale, layer in _SCALES.items():
                gamma, name = f"blocks.{index}.{scale}.gamma", f"blocks.{index}.{layer}"
                if gamma in changed and scale not in _SCALED[target]:
                    factor = changed.pop(gamma)
                    keys = (key for key in (f"{name}.weight", f"{name}.bias") if key in tensors)
                    changed |= {key: _scaled(tensors[key], factor) for key in keys}
                elif gamma not in changed and scale in _SCALED[target]:
                    ones = from_array(np.ones(config.embed_dim, np.float32))
                    changed[gamma] = cast(ones, tensors[f"{name}.weight"].dtype)
        return config.replace(layer_scale=target), changed

    return apply


def _block_biases(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Add biases of zeros where linear layers of the blocks have none."""
    changed = config.replace(proj_bias=True, mlp_bias=True)
    missing = {name: shape for name, shape in tensor_shapes(changed).items() if name not in tensors}
    dtype = tensors["patch_embed.proj.weight"].dtype
    return (changed, {**tensors, **{name: zeros(dtype, shape) for name, shape in missing.items()}}) if missing else None


def _scaled(tensor: LazyTensor, factor: LazyTensor) -> LazyTensor:
    rows = (-1, *(1 for _ in tensor.shape[1:]))
    return _computed(tensor, tensor.shape, lambda: np.asarray(floats(tensor) * floats(factor).reshape(rows)))


def _projection(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Turn a projection into a head with a bias of zeros, or such a head into a projection."""
    changed = dict(tensors)
    if config.projection_dim and not config.num_classes:
        weight = changed["head.weight"] = changed.pop("projection.weight")
        changed["head.bias"] = zeros(weight.dtype, (config.projection_dim,))
        return config.replace(projection_dim=0, num_classes=config.projection_dim), changed
    plain = config.pool != "cls_dist" and config.head_input == "pooled" and config.head_layers == 1
    if not config.num_classes or not plain or config.head_norm or config.representation_dim or config.projection_dim:
        return None
    if not _is_zero(changed.pop("head.bias")):
        return None
    changed["projection.weight"] = changed.pop("head.weight")
    return config.replace(projection_dim=config.num_classes, num_classes=0), changed


def _rope_periods(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Remove stored periods of the rotary embedding that equal the computed ones, or store these."""
    rope, name = config.rope, "rope_embed.periods"
    if rope is None or rope.mixed or rope.coordinates != "centered":
        return None
    changed, quarter = dict(tensors), config.head_dim // 4
    periods = rope.theta ** (np.arange(quarter) / quarter)
    if not rope.stored_periods:
        changed[name] = from_array(periods.astype(np.float32))
    elif not np.allclose(floats(changed.pop(name)), periods, rtol=1e-6, atol=0):
        return None
    return config.replace(rope=dataclasses.replace(rope, stored_periods=not rope.stored_periods)), changed


def _other_pool(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Pool a model without a head otherwise: its tokens are what files of such a model are for."""
    layers = config.num_classes or config.projection_dim or config.representation_dim
    if layers or config.pool_renorm or config.pool_tokens:
        return None
    others = {"cls": "avg", "avg": "cls"} if config.class_token and config.final_norm != "after" else {}
    if config.distilled:
        others = {"cls": "cls_dist", "cls_dist": "cls"}
    return (config.replace(pool=others[config.pool]), dict(tensors)) if config.pool in others else None


def _norm_before(config: ViTConfig, tensors: Tensors) -> Folded | None:
    """Norm all tokens before the class token is read, rather than it alone: implementations of CLIP differ in it."""
    if not config.pre_norm or config.pool != "cls" or config.final_norm != "after":
        return None
    changed = {re.sub(r"^fc_norm\.", "norm.", name): tensor for name, tensor in tensors.items()}
    return config.replace(final_norm="before"), changed


_WITHOUT_KEYS = _to_qkv_bias("qv", without_keys=True)
_ROWS = ("pos_embed_prefix", "pos_embed_registers")
FOLDS = (
    Fold(("qkv_bias",), "attention biases are kept with a mask over those of keys", _to_qkv_bias("masked")),
    Fold(("qkv_bias",), "attention biases are kept for queries and values, those of keys are zero", _to_qkv_bias("qv")),
    Fold(("qkv_bias",), "attention biases are kept for queries, keys and values", _to_qkv_bias(True)),
    Fold(("qkv_bias",), "attention biases of keys, which have no effect, are left out", _WITHOUT_KEYS, cost=10),
    Fold(("patch_bias",), "a patch bias of zeros is added or left out", _patch_bias),
    Fold(("pos_embed",), "the computed position table is stored", _computed_table),
    Fold(_ROWS, "the position table gets rows of zeros for tokens that have none", _add_rows),
    Fold(_ROWS, "rows of the position table are added to the registers", _merge_register_rows),
    Fold(_ROWS, "rows of the position table are added to the tokens before the patches", _merge_all_rows),
    Fold(("layer_scale",), "layer scale is multiplied into the layers before it", _to_layer_scale(False)),
    Fold(("layer_scale",), "layer scale is added as ones", _to_layer_scale(True)),
    Fold(("layer_scale",), "layer scale of the feed-forward layers is multiplied into them", _to_layer_scale("attn")),
    Fold(("proj_bias", "mlp_bias"), "biases of zeros are added to linear layers", _block_biases),
    Fold(("final_norm",), "all tokens are normed, not only the one that is read", _norm_before, cost=5),
    Fold(("projection_dim",), "a projection is a head with a bias of zeros, or such a head a projection", _projection),
    Fold(("rope",), "periods of the rotary embedding are computed, or stored as they are computed", _rope_periods),
    Fold(
        ("pool",),
        "the pooling of a model without a head, which the format leaves to its reader: the tokens are the same",
        _other_pool,
        cost=100,
        exact=False,
    ),
)
