"""The config of a model from its canonical tensors and what is known beside them.

Every format comes through here: a format says only its conventions and what its config files and original shapes
tell. Precedence: the caller, then the config file, then the tensors, then the conventions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig, check_fields, size_pair
from vit_hub.model.shapes import fields_of

__all__ = ["conventional_heads", "infer_config"]

Shapes = Mapping[str, tuple[int, ...]]
_SET_HEADS = 'overrides={"num_heads": N}, on the command line --set num_heads=N'


def infer_config(
    shapes: Shapes,
    *,
    overrides: Mapping[str, Any],
    stated: Mapping[str, Any],
    stated_by: str,
    conventions: Mapping[str, Any],
    convention_of: str,
) -> tuple[ViTConfig, dict[str, str], tuple[str, ...]]:
    """Return a config, what each field that the caller did not give was taken from, and warnings of guesses.

    Args:
        shapes: canonical tensor names and shapes.
        overrides: fields the caller gave.
        stated: fields that the source itself states (config file, shapes of the original tensors), and
        stated_by: where.
        conventions: fields that files of the format never say, and
        convention_of: whose they are.

    Raises:
        ConfigError: a field can neither be inferred nor assumed, or the result is inconsistent.
    """
    known = {**stated, **overrides}
    check_fields(known)
    visible = _from_tensors(shapes)
    # Before anything is done for each block.
    depth = max(visible["depth"], known.get("depth", 0))
    if depth > len(shapes):
        raise ConfigError(f"depth={depth}, and the tensors are {len(shapes)} in all")
    fields = {**conventions, **visible, **known}
    inferred = dict.fromkeys(conventions, f"convention of {convention_of}")
    inferred |= dict.fromkeys(visible, "tensor names and shapes") | dict.fromkeys(stated, stated_by)
    warnings: tuple[str, ...] = ()

    if "num_heads" not in fields:
        width = 128 if fields.get("patch_norm") else 64
        fields["num_heads"] = conventional_heads(fields["embed_dim"], fields["depth"], fields.get("ffn", "mlp"), width)
        inferred["num_heads"] = "convention: 64 channels a head, but for published shapes with others"
        warnings = (
            f"num_heads={fields['num_heads']} is a guess, from the width of {fields['embed_dim']}: nothing in the "
            f"file tells it; if the model has another number, give it: {_SET_HEADS}",
        )
    if "kv_heads" not in fields and (shared := _kv_heads(shapes, fields)):
        fields["kv_heads"], inferred["kv_heads"] = shared, "tensor names and shapes"
    if "image_size" not in fields:
        fields["image_size"], inferred["image_size"] = _image_size(shapes, fields)
    rows = _prefix_rows(shapes, fields)
    for name, present in (("pos_embed_prefix", rows > 0), ("pos_embed_registers", rows > _class_tokens(fields))):
        if name not in fields:
            before = f"{rows} row{'s' * (rows != 1)} of pos_embed"
            fields[name], inferred[name] = present, f"{before} before those of the patches"
    config = ViTConfig.from_dict(fields)
    return config, {name: inferred[name] for name in sorted(inferred) if name not in overrides}, warnings


def _from_tensors(shapes: Shapes) -> dict[str, Any]:
    """Fields that names and shapes alone decide, and those that they decide in every published model."""
    if len(shapes.get("patch_embed.proj.weight", ())) not in (4, 5):
        raise ConfigError(
            "embed_dim cannot be inferred: there is no patch embedding [D, C, (t,) p, q] among the tensors"
        )
    found = fields_of(shapes)
    if found["ffn"] != "mlp":
        found["act"] = "silu"  # arXiv 2002.05202
    if "pos_embed" not in shapes:
        found["pos_embed_prefix"] = False
    return {**found, "pool": _pool(shapes)}


def _pool(shapes: Shapes) -> str:
    if "neck.weight" in shapes or "neck.1.weight" in shapes or "merger.norm.weight" in shapes:
        return "avg" if "head.weight" in shapes else "none"
    if "attn_pool.latent" in shapes:
        if "attn_pool.norm1.weight" in shapes:
            return "attentive"
        return "map" if "attn_pool.q.weight" in shapes else "attn"
    if "head_dist.weight" in shapes:
        return "cls_dist"
    return "avg" if "fc_norm.weight" in shapes or "cls_token" not in shapes else "cls"


# Published shapes (embed_dim, depth, ffn) whose heads are not 64 wide: ViT-H, ViT-g, ViT-G, So400m, SigLIP 2's giant,
# Perception Encoder G, EVA-02 enormous, DINOv3 7B and InternViT-6B (arXiv 2010.11929, 2106.04560, 2305.13035,
# 2502.14786, 2504.13181, 2303.11331, 2508.10104, 2312.14238).
_PUBLISHED_HEADS = {
    (1280, 32, "mlp"): 16,
    (1408, 40, "mlp"): 16,
    (1664, 48, "mlp"): 16,
    (1152, 27, "mlp"): 16,
    (1536, 40, "mlp"): 16,
    (1536, 50, "mlp"): 16,
    (1536, 47, "mlp"): 16,
    (1792, 64, "mlp"): 16,
    (4096, 40, "swiglu"): 32,
    (3200, 48, "mlp"): 25,
    (3200, 45, "mlp"): 25,
}


def _kv_heads(shapes: Shapes, fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Heads of keys and values in each block, by the rows of ``qkv``; empty if there are as many as of queries."""
    dim, heads = fields["embed_dim"], fields["num_heads"]
    rows = [shapes.get(f"blocks.{index}.attn.qkv.weight", (3 * dim,))[0] for index in range(fields["depth"])]
    if not isinstance(heads, int) or heads < 1 or all(count == 3 * dim for count in rows):
        return ()
    width = 2 * (dim // heads)  # rows of a head of keys and one of values
    found = tuple((count - dim) // width for count in rows)
    # What is no whole number of heads is damage, which is said of the tensor.
    return found if all(dim + n * width == count and n for n, count in zip(found, rows, strict=True)) else ()


def conventional_heads(dim: int, depth: int, ffn: str, width: int = 64) -> int:
    """Return the attention heads of the published models of a shape: 64 channels per head, but for a few.

    Args:
        dim: width of the model.
        depth: number of blocks.
        ffn: kind of the feed-forward layers.
        width: channels per head, where a kind of models has others (AIMv2: 128).

    Raises:
        ConfigError: the width of the model is not a multiple of that.
    """
    if width == 64 and (dim, depth, ffn) in _PUBLISHED_HEADS:
        return _PUBLISHED_HEADS[dim, depth, ffn]
    heads, rest = divmod(dim, width)
    if rest or not heads:
        raise ConfigError(
            f"num_heads cannot be inferred from the tensors, and embed_dim={dim} is not a multiple of {width}",
            hint=f"give it: {_SET_HEADS}",
        )
    return heads


def _class_tokens(fields: Mapping[str, Any]) -> int:
    return int(fields["class_token"]) + int(fields["distilled"])


def _image_size(shapes: Shapes, fields: Mapping[str, Any]) -> tuple[tuple[int, int], str]:
    """A square image from the rows of the position table, with or without prefix rows."""
    if "pos_embed_y" in shapes and "pos_embed_x" in shapes:
        grid, patch = (shapes["pos_embed_y"][1], shapes["pos_embed_x"][1]), _pixels_per_patch(fields)
        return (grid[0] * patch[0], grid[1] * patch[1]), "rows of pos_embed_y and pos_embed_x"
    if fields.get("pos_embed") != "learned":
        return _image_size_without_table(shapes, fields)
    rows, leading = shapes["pos_embed"][1] - fields.get("num_detection_tokens", 0), _class_tokens(fields)
    every = leading + fields["num_registers"]
    options = list(dict.fromkeys((leading, every, 0)))
    if "pos_embed_registers" in fields:
        options = [every if fields["pos_embed_registers"] else leading, 0]
    if "pos_embed_prefix" in fields:
        options = [extra for extra in options if bool(extra) == fields["pos_embed_prefix"]] or [0]
    patch = _pixels_per_patch(fields)
    for extra in options:
        side = math.isqrt(max(rows - extra, 0))
        if side and side * side == rows - extra:
            size = (side * patch[0], side * patch[1])
            return size, f"pos_embed has {rows} rows: a square grid of {side}x{side}" + f" + {extra}" * bool(extra)
    raise ConfigError(
        f"image_size cannot be inferred: the {rows} rows of pos_embed are not a square grid",
        hint='give it: overrides={"image_size": (height, width)}, on the command line --set image_size=HxW',
    )


def _image_size_without_table(shapes: Shapes, fields: Mapping[str, Any]) -> tuple[tuple[int, int], str]:
    """From the relative position table of a square grid, else what most models are published at."""
    patch = _pixels_per_patch(fields)
    names = ("blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table")
    for name in names:
        offsets = shapes[name][0] - 3 * int(fields["class_token"]) if name in shapes else 0
        side = math.isqrt(max(offsets, 0))
        if side % 2 and side * side == offsets:
            grid = (side + 1) // 2
            return (grid * patch[0], grid * patch[1]), f"rows of the relative position table: a grid of {grid}x{grid}"
    return (224, 224), "convention: no table tells the size"


def _prefix_rows(shapes: Shapes, fields: Mapping[str, Any]) -> int:
    if "pos_embed" not in shapes:
        return 0
    (height, width), (p, q) = size_pair("image_size", fields["image_size"]), _pixels_per_patch(fields)
    rows = shapes["pos_embed"][1] - int(fields.get("num_detection_tokens", 0))
    return max(rows - (height // p) * (width // q), 0)


def _pixels_per_patch(fields: Mapping[str, Any]) -> tuple[int, int]:
    """As ViTConfig.pixels_per_patch, before there is a config."""
    known = ("patch_size", "stem", "stem_stages", "stem_convs")
    blank = ViTConfig(**{name: fields[name] for name in known if name in fields}, image_size=(1 << 20, 1 << 20))
    return blank.pixels_per_patch
