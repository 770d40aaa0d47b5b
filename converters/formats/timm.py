"""timm's VisionTransformer: state dicts, and hub folders with timm's ``config.json``.

Canonical names are timm's, so the table is a list of names. Source: timm/models/vision_transformer.py, deit.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vit_hub.config import ViTConfig
from vit_hub.converters.containers import Source
from vit_hub.converters.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.passport import Passport
from vit_hub.converters.processors import timm_data_config
from vit_hub.converters.rules import Drop, rule
from vit_hub.converters.tensors import LazyTensor

_BLOCK_LAYERS = ("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_MAP_LAYERS = ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
_NAMES = (
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "blocks.{i}.ls1.gamma",
    "blocks.{i}.ls2.gamma",
    "attn_pool.latent",
    *(
        f"{layer}.{part}"
        for layer in (
            "patch_embed.proj",
            "norm_pre",
            *(f"blocks.{{i}}.{layer}" for layer in _BLOCK_LAYERS),
            "norm",
            *(f"attn_pool.{layer}" for layer in _MAP_LAYERS),
            "fc_norm",
            "pre_logits.fc",
            "head",
            "head_dist",
        )
        for part in ("weight", "bias")
    ),
)

_WRAPPERS = ("state_dict_ema/", "model_ema/", "state_dict/", "model/")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_POOLS = {"token": "cls", "avg": "avg", "map": "map", "": "none"}


def _architecture(name: str) -> dict[str, Any]:
    """What the architecture functions of timm fix that model_args may leave out."""
    found: dict[str, Any] = {}
    if "_clip_" in name:
        found["norm_eps"] = 1e-5
    if "_quickgelu_" in name:
        found["act"] = "quick_gelu"
    return found


def _state(source: Source, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Reads timm's config.json: architecture, model_args, pooling."""
    distilled = {"pool": "cls_dist"} if "dist_token" in tensors else {}
    file = source.sidecars.get("config.json", {})
    if "architecture" not in file:
        epsilon = {"norm_eps": 1e-5} if "norm_pre.weight" in tensors else {}
        return Stated({**distilled, **epsilon}, "what timm's architectures with these tensors do")
    args = {**file.get("model_args", {})}
    fields = _architecture(str(file["architecture"]))
    warnings = []
    if "act_layer" in args:
        act = _ACTIVATIONS.get(str(args["act_layer"]).lower())
        fields |= {"act": act} if act else {}
        warnings += [] if act else [f"config.json: act_layer {args['act_layer']!r} is not known"]
    pool = _POOLS.get(str(args.get("global_pool", file.get("global_pool"))))
    if pool and (pool != "cls" or "cls_token" in tensors):
        fields["pool"] = pool
    for key, field in (("num_heads", "num_heads"), ("img_size", "image_size"), ("patch_size", "patch_size")):
        if key in args:
            fields[field] = args[key]
    size = file.get("pretrained_cfg", {}).get("input_size")
    if "image_size" not in fields and isinstance(size, (list, tuple)) and len(size) == 3:
        fields["image_size"] = tuple(size[1:])
    return Stated({**fields, **distilled}, "config.json", tuple(warnings))


# timm's functions fix what model_args cannot say: the class, the norm's epsilon, a packed SwiGLU.
_ARCHITECTURES: tuple[tuple[Callable[[ViTConfig], bool], str], ...] = (
    (lambda c: c.pool == "cls_dist", "deit_base_distilled_patch16_224"),
    (lambda c: c.ffn == "swiglu_packed", "vit_giant_patch14_dinov2"),
    (lambda c: c.norm_eps == 1e-5, "vit_base_patch16_clip_224"),
    (lambda c: True, "vit_base_patch16_224"),
)


def _mlp_ratio(config: ViTConfig) -> float:
    """A ratio from which timm's ``int(dim * ratio)`` gives the hidden width back exactly."""
    hidden = config.mlp_dim * (2 if config.ffn == "swiglu_packed" else 1)
    ratio = hidden / config.embed_dim
    return ratio if int(config.embed_dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """timm's hub config.json; create_model("local-dir:FOLDER") builds the model from it."""
    architecture = next(name for holds, name in _ARCHITECTURES if holds(config))
    pools = {pool: name for name, pool in _POOLS.items()} | {"cls_dist": "token"}
    args: dict[str, Any] = {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "in_chans": config.in_chans,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": _mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": 1e-5 if config.layer_scale else None,
        "class_token": config.class_token,
        "no_embed_class": not config.pos_embed_prefix,
        "reg_tokens": config.num_registers,
        "pos_embed": "learn" if config.pos_embed == "learned" else "none",
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm != "none",
        "fc_norm": config.final_norm == "after",
        "act_layer": config.act,
        "global_pool": pools.get(config.pool, ""),
    }
    if config.pool == "cls_dist":  # fixed by timm's distilled class
        for name in ("class_token", "no_embed_class", "reg_tokens", "global_pool", "fc_norm", "final_norm"):
            del args[name]
    size = [config.in_chans, *config.image_size]
    pretrained = {"input_size": size, "fixed_input_size": True, "num_classes": config.num_classes, "pool_size": None}
    if passport and passport.preprocess:
        pretrained |= timm_data_config(passport.preprocess)
    return {
        "config.json": {
            "architecture": architecture,
            "num_classes": config.num_classes,
            "num_features": config.embed_dim,
            "global_pool": pools.get(config.pool, ""),
            "model_args": args,
            "pretrained_cfg": {**pretrained, "first_conv": "patch_embed.proj", "classifier": "head"},
        }
    }


FORMATS = (
    Format(
        name="timm",
        project="timm",
        rules=tuple(rule(name, name) for name in _NAMES),
        outside=(
            Drop(r"(state_dict|model)/.*", "student copy: the exponential moving average beside it is used"),
            Drop(r"optimizer/.*", "optimiser state"),
        ),
        prefixes=tuple(wrapper + module for wrapper in ("", *_WRAPPERS) for module in ("", "module.")),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-antialias"},
        requires=(
            Requirement(
                "patch_bias", lambda c: c.patch_bias != c.pre_norm, "a pre-norm model has no patch bias, others do"
            ),
            Requirement("qkv_bias", lambda c: c.qkv_bias != "qv", "its VisionTransformer has all biases or none"),
            Requirement("ffn", lambda c: c.ffn != "swiglu", "its VisionTransformer has a plain MLP or a packed SwiGLU"),
            Requirement("pos_embed", lambda c: c.pos_embed != "sincos2d", "it stores its position table"),
            Requirement(
                "representation_dim", lambda c: not c.representation_dim, "it has no layer before the head any more"
            ),
            Requirement("pool", lambda c: c.pool != "first", "it does not pool the first patch"),
            Requirement(
                "distilled",
                lambda c: c.distilled == (c.pool == "cls_dist"),
                "a model with a distillation token reads it for its output",
            ),
            Requirement(
                "pos_embed_registers",
                lambda c: not c.num_registers or c.pos_embed_prefix == c.pos_embed_registers,
                "its position table has rows for all prefix tokens or for none",
            ),
        ),
        state=_state,
        sidecars=_sidecars,
    ),
)
