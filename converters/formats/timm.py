"""timm's VisionTransformer: state dicts, and hub folders with timm's ``config.json``.

Canonical names are timm's, so the table is a list of names. Source: timm/models/vision_transformer.py, deit.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _timm
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import ANY, Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig
from vit_hub.preprocessing.labels import names_of, stated_descriptions
from vit_hub.preprocessing.project_files import timm_data_config
from vit_hub.preprocessing.spec import Preprocessing

_PARTS = ("weight", "bias")
_ATTENTION = ("attn.qkv", "attn.q_norm", "attn.k_norm", "attn.norm", "attn.proj")
_BLOCK_LAYERS = ("norm1", *_ATTENTION, "norm2", "mlp.fc1", "mlp.norm", "mlp.fc2")
# Of differential attention.
LAMBDAS = (*(f"lambda_{part}" for part in ("q1", "k1", "q2", "k2")), "sub_norm.weight")
# Several attention layers side by side, then as many feed-forward layers.
_BRANCH_LAYERS = (
    "attns.{j}.norm",
    *(f"attns.{{j}}.{layer}" for layer in _ATTENTION),
    "ffns.{j}.norm",
    *(f"ffns.{{j}}.{layer}" for layer in ("mlp.fc1", "mlp.norm", "mlp.fc2")),
)
# Gates and values of models whose feed-forward layer is timm's SwiGLU.
_GATES = ("mlp.fc1_g", "mlp.fc1_x")
_MAP_LAYERS = ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
NAMES = (
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "attn_pool.latent",
    *(
        f"{layer}.{part}"
        for layer in (
            "patch_embed.proj",
            "patch_embed.norm",
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

_LAYER_SCALE = ("blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma")
_DIFFERENTIAL = tuple(f"blocks.{{i}}.attn.{name}" for name in LAMBDAS)
_BRANCHES = (
    *(f"blocks.{{i}}.{layer}.{part}" for layer in _BRANCH_LAYERS for part in ("weight", "bias")),
    *(f"blocks.{{i}}.attns.{{j}}.attn.{name}" for name in LAMBDAS),
    *(f"blocks.{{i}}.{layers}.{{j}}.ls.gamma" for layers in ("attns", "ffns")),
)
# The ResNet of the hybrids; a root without stages has no prefix.
_STEM_LAYERS = (
    ("stem.conv", "stem.norm"),
    *((f"stages.{{s}}.blocks.{{u}}.conv{n}", f"stages.{{s}}.blocks.{{u}}.norm{n}") for n in (1, 2, 3)),
    ("stages.{s}.blocks.{u}.downsample.conv", "stages.{s}.blocks.{u}.downsample.norm"),
)
_STEM = tuple(
    rule(f"patch_embed.backbone.{name}", f"patch_embed.backbone.{name.replace('stem.', '${root}')}")
    for conv, norm in _STEM_LAYERS
    for name in (f"{conv}.weight", f"{norm}.weight", f"{norm}.bias")
)

_WRAPPERS = ("state_dict_ema/", "model_ema/", "state_dict/", "model/")
PREFIXES = tuple(wrapper + module for wrapper in ("", *_WRAPPERS) for module in ("", "module."))


# timm standardises the hybrids' kernels by sqrt(var + 1e-8) and norms their groups with 1e-5.
_HYBRID = {"stem_standardize": "var", "stem_norm_eps": 1e-5}


# The only tensors of a block and before them in those of timm's architectures that norm after their layers.
_POST_NORM_BLOCK = {
    "attn.qkv.weight",
    *(f"{layer}.{part}" for layer in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for part in _PARTS),
}
_POST_NORM_TOKENS = {"pos_embed", *(f"patch_embed.proj.{part}" for part in _PARTS)}
POST_NORM_GUESS = {
    "norm_position": "norm_position=post is a guess: norms before and after the layers have the same names, and "
    "those of timm's architectures with these tensors come after; "
    'overrides={"norm_position": "pre"}, on the command line --set norm_position=pre, sets it otherwise'
}


def post_norm_guess(tensors: Mapping[str, LazyTensor]) -> Mapping[str, str]:
    """Return the warning that a bare file is taken for a model with norms after its layers; empty if it is not."""
    layers = {name.removeprefix("blocks.0.") for name in tensors if name.startswith("blocks.0.")}
    others = {name for name in tensors if not name.startswith(("blocks.", "fc_norm.", "head."))}
    same = layers == _POST_NORM_BLOCK and others == _POST_NORM_TOKENS and not _timm.gated(tensors)
    return POST_NORM_GUESS if same else {}


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read timm's config.json: architecture, model_args, pooling."""
    shown = _HYBRID if any(name.startswith("patch_embed.backbone.") for name in tensors) else {}
    shown = {**shown, **({"pool": "cls_dist"} if "dist_token" in tensors else {})}
    if _timm.is_named(raw):
        stated = _timm.state(raw, tensors)
        return dataclasses.replace(stated, fields={**stated.fields, **shown})
    clip, beit3, aimv2 = "norm_pre.weight", "blocks.0.attn.norm.weight", "patch_embed.norm.weight"
    if any(name in tensors for name in (clip, beit3, aimv2)):
        shown["norm_eps"] = 1e-5
    guesses = post_norm_guess(tensors)
    if guesses:
        shown["norm_position"] = "post"
    return Stated(shown, "what timm's architectures with these tensors do", guesses=guesses)


def evidence(raw: RawCheckpoint, *classes: str) -> int:
    """Return 1 if config.json names an architecture of one of timm's classes, -1 if of another, 0 if it names none."""
    named = _timm.timm_class(raw)
    return (1 if named in classes else -1) if named else 0


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence of the architecture; gates of two tensors are else Eva's, but for AIMv2's."""
    eva = f"{prefix}blocks.0.mlp.fc1_g.weight" in raw.tensors and f"{prefix}patch_embed.norm.weight" not in raw.tensors
    return evidence(raw, "VisionTransformer", "VisionTransformerDistilled") or -eva


# The hybrids' ResNets, by units a stage.
_RESNETS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
# timm's functions fix what model_args cannot state: the class, the epsilon of norms, a packed SwiGLU.
_ARCHITECTURES: tuple[tuple[Callable[[ViTConfig], bool], str], ...] = (
    (lambda c: c.pool == "cls_dist", "deit_base_distilled_patch16_224"),
    (lambda c: c.patch_norm, "aimv2_large_patch14_224"),
    (lambda c: c.ffn == "swiglu_packed", "vit_giant_patch14_dinov2"),
    (lambda c: c.norm_eps == 1e-5, "vit_base_patch16_clip_224"),
    (lambda c: c.norm_position == "post", "vit_base_patch16_rpn_224"),
    (lambda c: c.branches > 1, "vit_base_patch16_18x2_224"),
    (lambda c: c.parallel == "joint", "vit_dpwee_patch16_reg1_gap_256"),
    (lambda c: c.parallel == "separate", "vit_pwee_patch16_reg1_gap_256"),
    (lambda c: True, "vit_base_patch16_224"),
)


def mlp_ratio(dim: int, hidden: int) -> float:
    """Return a ratio for which timm's ``int(dim * ratio)`` is exactly the hidden width."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def shared_args(config: ViTConfig) -> dict[str, Any]:
    """Return the arguments that have the same names in all of timm's Vision Transformer classes."""
    pools = {pool: name for name, pool in _timm.POOLS.items()} | {"cls_dist": "token"}
    return {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "in_chans": config.in_chans,
        "global_pool": pools.get(config.pool, ""),
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "init_values": 1e-5 if config.layer_scale else None,
    }


def sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return timm's hub config.json, from which create_model("local-dir:FOLDER") builds the model."""
    architecture = next(name for holds, name in _ARCHITECTURES if holds(config))
    if config.stem == "resnet":
        architecture = _RESNETS.get(config.stem_stages, architecture)
    args: dict[str, Any] = {
        **shared_args(config),
        "mlp_ratio": mlp_ratio(config.embed_dim, config.mlp_dim * (2 if config.ffn == "swiglu_packed" else 1)),
        "qkv_bias": config.qkv_bias,
        "qk_norm": bool(config.qk_norm),
        "scale_attn_norm": config.attn_norm,
        "scale_mlp_norm": config.mlp_norm,
        "class_token": config.class_token,
        "no_embed_class": not config.pos_embed_prefix,
        "reg_tokens": config.num_registers,
        "pos_embed": "learn" if config.pos_embed == "learned" else "none",
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm != "none",
        "fc_norm": config.final_norm == "after",
        "act_layer": config.act,
        "proj_bias": config.proj_bias,
    }
    if config.norm == "rms" and not config.patch_norm:
        args["norm_layer"] = "rmsnorm"
    if config.pool_prefix:
        args["pool_include_prefix"] = True
    if config.differential and config.parallel == "none":
        args["attn_layer"] = "diff"
    if config.pool == "cls_dist":  # fixed by timm's distilled class
        for name in ("class_token", "no_embed_class", "reg_tokens", "global_pool", "fc_norm", "final_norm"):
            del args[name]
    return {"config.json": hub_config(architecture, args, config, passport)}


def hub_config(
    architecture: str, args: Mapping[str, Any], config: ViTConfig, passport: Passport | None
) -> dict[str, Any]:
    """Return timm's config.json with the arguments of a model."""
    size = [config.in_chans, *config.image_size]
    pretrained = {"input_size": size, "fixed_input_size": True, "num_classes": config.num_classes, "pool_size": None}
    if passport and passport.preprocess:
        pretrained |= timm_data_config(Preprocessing.from_dict(passport.preprocess))
    return {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": args.get("global_pool", "token"),
        **(_labels(config, passport) if passport else {}),
        "model_args": dict(args),
        "pretrained_cfg": {**pretrained, "first_conv": "patch_embed.proj", "classifier": "head"},
    }


def _labels(config: ViTConfig, passport: Passport) -> dict[str, Any]:
    """Return the keys of config.json about class names; descriptions of an earlier one stay with their names."""
    names = names_of(passport.labels, config.num_classes)
    if not names:
        return {}
    described = stated_descriptions(passport.sidecars)
    return {"label_names": list(names), **({"label_descriptions": described} if {*names} <= {*described} else {})}


def _distilled(field: str, has: Callable[[ViTConfig], bool], text: str) -> Requirement:
    return Requirement(field, lambda c: c.pool != "cls_dist" or has(c), f"its distilled class {text}")


_DISTILLED = (
    _distilled("num_registers", lambda c: not c.num_registers, "has no registers"),
    _distilled("final_norm", lambda c: c.final_norm == "before", "norms all tokens"),
    _distilled("pos_embed", lambda c: c.pos_embed == "learned", "has a position table"),
    _distilled("pos_embed_prefix", lambda c: c.pos_embed_prefix, "has a position table with rows for both tokens"),
)

# The classes of BEiT and EVA.
NO_EXTRAS = {"pos_embed": ("learned", "none"), "representation_dim": 0, "stem": "patch"}
PATCH_BIAS = Requirement(
    "patch_bias", lambda c: c.patch_bias != c.pre_norm, "a pre-norm model has no patch bias, others do"
)
QK_NORM = Requirement(
    "qk_norm",
    lambda c: c.qk_norm in (False, "rms" if c.norm == "rms" else True) and c.qk_norm_eps is None,
    "its norms of queries and keys are as its others, over each head",
)
REGISTER_ROWS = Requirement(
    "pos_embed_registers",
    lambda c: not c.num_registers or c.pos_embed_prefix == c.pos_embed_registers,
    "its position table has rows for all prefix tokens or for none",
)

FORMATS = (
    Format(
        name="timm",
        project="timm",
        rules=(
            *(rule(name, name) for name in (*NAMES, *_LAYER_SCALE, *_DIFFERENTIAL, *_BRANCHES)),
            *(one for layer in _GATES for one in weight_and_bias(f"blocks.{{i}}.{layer}")),
            *_STEM,
        ),
        dialects=(Dialect("", {"root": "stem."}), Dialect("", {"root": ""})),
        prefixes=PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-antialias"},
        limits={
            "branches": (1, 2),
            "qkv_bias": (True, False),
            "ffn": ("mlp", "swiglu_packed", "swiglu"),
            "norm": ("layer", "rms"),
            "qk_norm": ANY,
            "proj_bias": (True, False),
            "mlp_bias": (True, False),
            "pos_embed": ("learned", "none"),
            "representation_dim": 0,
            "pool": ("cls", "cls_dist", "avg", "map", "none"),
        },
        requires=(
            Requirement(
                "stem",
                lambda c: (
                    c.stem == "patch" or (c.stem == "resnet" and c.stem_stages in _RESNETS and c.stem_width == 64)
                ),
                "its hybrids have one of four ResNets",
            ),
            PATCH_BIAS,
            Requirement(
                "distilled",
                lambda c: c.distilled == (c.pool == "cls_dist"),
                "a model with a distillation token reads it for its output",
            ),
            *_DISTILLED,
            Requirement(
                "ffn",
                lambda c: c.pool != "map" or c.ffn == "mlp" or c.pool_mlp_dim == 2 * c.mlp_dim,
                "it pools with an MLP as wide as the first layer of its blocks'",
            ),
            Requirement(
                "pool_mlp_dim",
                lambda c: c.ffn != "mlp" or c.pool_mlp_dim in (0, c.mlp_dim),
                "it pools with an MLP as wide as its blocks'",
            ),
            REGISTER_ROWS,
            QK_NORM,
            Requirement(
                "proj_bias", lambda c: c.proj_bias == c.mlp_bias, "one setting is for the biases of all linear layers"
            ),
            Requirement("ffn", lambda c: c.ffn != "swiglu" or c.patch_norm, "only its AIMv2 has gates of two tensors"),
            Requirement(
                "patch_norm",
                lambda c: not c.patch_norm or (c.ffn == "swiglu" and c.norm == "rms"),
                "only its AIMv2, with RMSNorm and gates of two tensors, norms patch embeddings",
            ),
        ),
        evidence=_evidence,
        refuses=_timm.refusal,
        state=_state,
        sidecars=sidecars,
        dialect_for=lambda config, dialects: dialects[config.stem == "resnet" and not config.stem_stages],
    ),
)
