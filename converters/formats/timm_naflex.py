"""timm's NaFlexVit: models for images of any size, whose names differ from VisionTransformer's in the embeddings.

Its patch embedding is a linear layer over flattened patches, or a convolution. Source: timm/models/naflexvit.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _timm, timm
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import ANY, Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Rule, rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig, size_pair

_KERNEL = "embeds.proj.weight"
_TABLE = "embeds.pos_embed"
# Patches flattened row by row, channels last or first, or not flattened.
_LAYOUTS = {"linear": "d (p q c) -> d c p q", "channels_first": "d (c p q) -> d c p q", "conv": ""}
_RENAMED = {"cls_token": "embeds.cls_token", "reg_token": "embeds.reg_token", "patch_embed.": "embeds."}


def _rules(layout: str) -> tuple[Rule, ...]:
    def one(name: str) -> Rule:
        start = next((start for start in _RENAMED if name.startswith(start)), "")
        return rule(name, _RENAMED.get(start, start) + name[len(start) :])

    names = [name for name in timm.NAMES if name not in ("pos_embed", "patch_embed.proj.weight", "dist_token")]
    return (
        rule("patch_embed.proj.weight", _KERNEL, layout),
        rule("pos_embed", _TABLE, "1 y x d -> 1 (y x) d"),
        rule("pos_embed_y", "embeds.pos_embed_y"),
        rule("pos_embed_x", "embeds.pos_embed_x"),
        *(one(name) for name in names if not name.startswith(("head_dist", "pre_logits"))),
        *(rule(f"blocks.{{i}}.{scale}.gamma", f"blocks.{{i}}.{scale}.gamma") for scale in ("ls1", "ls2")),
    )


def _kind(raw: RawCheckpoint, kernel: LazyTensor) -> str:
    """Return how the patch embedding stores its kernel."""
    if len(kernel.shape) == 4:
        return "conv"
    return "linear" if _timm.arguments(raw)[0].get("patchify_channels_last", True) else "channels_first"


def _evidence(kind: str, raw: RawCheckpoint, prefix: str) -> int:
    kernel = raw.tensors[prefix + _KERNEL]
    return timm.evidence(raw, "NaFlexVit") + (2 if _kind(raw, kernel) == kind else -2)


def _patch(raw: RawCheckpoint, kernel: LazyTensor) -> tuple[int, int]:
    """Return height and width of a patch; without a config.json it is square, with three channels or one."""
    if len(kernel.shape) == 4:
        return kernel.shape[2], kernel.shape[3]
    args, _ = _timm.arguments(raw)
    p, q = size_pair("patch_size", args["patch_size"]) if "patch_size" in args else (0, 0)
    if p and kernel.shape[1] % (p * q) == 0:
        return p, q
    pixels = kernel.shape[1]
    chans = 3 if 3 * math.isqrt(pixels // 3) ** 2 == pixels > 0 else 1
    side = math.isqrt(pixels // chans)
    return side, side


def _axes(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    kernel = tensors.get(_KERNEL)
    if kernel is None or len(kernel.shape) not in (2, 4) or 0 in kernel.shape:
        return {}
    return dict(zip("pq", _patch(raw, kernel), strict=True))


def _grid(tensors: Mapping[str, LazyTensor]) -> tuple[int, int] | None:
    """Return rows and columns of the position table."""
    if _TABLE in tensors and len(tensors[_TABLE].shape) == 4:
        return tensors[_TABLE].shape[1], tensors[_TABLE].shape[2]
    return None


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read timm's config.json; the native size of images is that of the position table."""
    named = {_canonical(name): tensor for name, tensor in tensors.items()}
    stated = _timm.state(raw, named)
    fields: dict[str, Any] = {**stated.fields}
    by = stated.by or "what timm's architectures with these tensors do"
    kernel, grid = tensors[_KERNEL], _grid(tensors)
    if len(kernel.shape) in (2, 4) and grid:
        p, q = _patch(raw, kernel)
        fields["image_size"] = (grid[0] * p, grid[1] * q)
    elif "embeds.pos_embed_y" in tensors:
        fields.pop("image_size", None)
    args, _ = _timm.arguments(raw)
    if args:
        fields |= _resizing(args)
        if args["pos_embed"] == "factorized":
            check_square(tuple(tensors[f"embeds.pos_embed_{axis}"].shape[1] for axis in "yx"), fields["resize_square"])
    elif "attn_pool.latent" in tensors and "embeds.reg_token" not in tensors:  # SigLIP 2
        fields |= {"act": "gelu_tanh", "resize": "bilinear-antialias"}
    return dataclasses.replace(stated, fields=fields, by=by)


def _canonical(name: str) -> str:
    return next((ours + name[len(start) :] for ours, start in _RENAMED.items() if name.startswith(start)), name)


def _resizing(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a model resizes its table; factorized ones are always resized bilinearly."""
    mode, corners = args["pos_embed_interp_mode"], args["pos_embed_align_corners"]
    antialias = args["pos_embed_antialias"]
    if args["pos_embed"] == "factorized":
        mode, corners, antialias = "bilinear", False, False
    ending = "-align-corners" if corners else "-antialias" if antialias else ""
    return {"resize": f"{mode}{ending}", "resize_square": bool(args["pos_embed_ar_preserving"])}


def check_square(grid: tuple[int, ...], square: bool) -> None:
    """Check that separate tables for rows and columns are of one length, where images are resized to squares.

    Raises:
        ConfigError: they are not, so that timm resizes one of them even for images of the tables' own size.
    """
    if square and len(set(grid)) > 1:
        raise ConfigError(
            f"pos_embed_grid_size={list(grid)}: separate tables of rows and columns that keep the aspect ratio are "
            "supported with as many rows as columns only"
        )


def _sidecars(config: ViTConfig, passport: Passport | None, kind: str) -> Sidecars:
    """Return timm's hub config.json, from which create_model("local-dir:FOLDER") builds the model."""
    shared = timm.shared_args(config)
    del shared["img_size"]
    table = {"learned": "learned", "factorized": "factorized"}.get(config.pos_embed, "none")
    method, _, ending = config.resize.partition("-")
    args: dict[str, Any] = {
        **shared,
        "mlp_ratio": timm.mlp_ratio(config.embed_dim, config.mlp_dim),
        "qkv_bias": config.qkv_bias,
        "qk_norm": bool(config.qk_norm),
        "proj_bias": config.proj_bias,
        "scale_attn_inner_norm": config.attn_norm,
        "scale_mlp_norm": config.mlp_norm,
        "class_token": config.class_token,
        "reg_tokens": config.num_registers,
        "pos_embed": table,
        "pos_embed_grid_size": list(config.grid_size),
        "pos_embed_interp_mode": method if method in ("bilinear", "bicubic") else "bicubic",
        "pos_embed_antialias": ending == "antialias",
        "pos_embed_align_corners": ending == "align-corners",
        "pos_embed_ar_preserving": config.resize_square,
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm != "none",
        "fc_norm": config.final_norm == "after",
        "pool_include_prefix": config.pool_prefix,
        "attn_pool_num_heads": config.pool_heads or config.num_heads,
        "attn_pool_mlp_ratio": timm.mlp_ratio(config.embed_dim, config.pool_mlp_dim or config.mlp_dim),
        "embed_proj_type": "conv" if kind == "conv" else "linear",
        "patchify_channels_last": kind != "channels_first",
        "act_layer": config.act,
    }
    layer = "rmsnorm" if config.norm == "rms" else "layernorm"
    args |= {"norm_layer": layer, **({"embed_norm_layer": layer} if config.patch_norm else {})}
    return {"config.json": timm.hub_config("naflexvit_base_patch16_gap", args, config, passport)}


def _format(kind: str, **options: Any) -> Format:
    return Format(
        name="timm",
        project="timm",
        rules=_rules(_LAYOUTS[kind]),
        dialects=(Dialect("naflex", {"kernel": kind}),),
        prefixes=timm.PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-antialias"},
        limits={
            "qkv_bias": (True, False),
            "ffn": "mlp",
            "norm": ("layer", "rms"),
            "qk_norm": ANY,
            "proj_bias": (True, False),
            "mlp_bias": (True, False),
            "distilled": False,
            "pos_embed": ("learned", "factorized", "none"),
            "pos_embed_prefix": False,
            "representation_dim": 0,
            "rope": None,
            "stem": "patch",
            "pool": ("cls", "avg", "map", "none"),
        },
        requires=(
            timm.PATCH_BIAS,
            timm.QK_NORM,
            Requirement(
                "proj_bias", lambda c: c.proj_bias == c.mlp_bias, "one setting is for the biases of all linear layers"
            ),
        ),
        axes=_axes,
        evidence=partial(_evidence, kind),
        refuses=_timm.refusal,
        state=_state,
        sidecars=partial(_sidecars, kind=kind),
        **options,
    )


FORMATS = (_format("linear"), _format("channels_first", returned_only=True), _format("conv", returned_only=True))
