"""timm's Eva class: EVA, EVA-02, DINOv3, Perception Encoder and the RoPE-ViTs.

Names are those of timm's VisionTransformer except for layer scale and attention biases; queries, keys and values are
fused or split. Bare files do not state their rotary embedding, so that it is taken from published models with the same
tensors. Source: timm/models/eva.py, timm/layers/pos_embed_sincos.py.

EVA's own files have the same names, and those before fine-tuning what predicts masked patches besides (baaivision/EVA,
EVA-01/eva/modeling_finetune.py and modeling_pretrain.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _timm, timm
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import ANY, Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, Rule, rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import Rope, ViTConfig

_QKV = ("blocks.{i}.attn.q_proj", "blocks.{i}.attn.k_proj", "blocks.{i}.attn.v_proj")
_MORE = ("blocks.{i}.mlp.fc1_g", "blocks.{i}.mlp.fc1_x")
COMMON = (
    *(rule(name, name) for name in timm.NAMES if ".attn.qkv." not in name),
    *(rule(f"{layer}.{part}", f"{layer}.{part}") for layer in _MORE for part in ("weight", "bias")),
    rule("blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
    rule("blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
    rule("rope.freqs", "rope.freqs"),
)
_FUSED = tuple(
    rule(f"blocks.{{i}}.attn.{name}", f"blocks.{{i}}.attn.{name}")
    for name in ("qkv.weight", "qkv.bias", "q_bias", "v_bias")
)
_SPLIT = (
    rule("blocks.{i}.attn.qkv.weight", tuple(f"{name}.weight" for name in _QKV), first="D"),
    rule("blocks.{i}.attn.qkv.bias", tuple(f"{name}.bias" for name in _QKV), first="D"),
    rule("blocks.{i}.attn.q_bias", f"{_QKV[0]}.bias"),
    rule("blocks.{i}.attn.v_bias", f"{_QKV[2]}.bias"),
)

MASKED_PATCHES = Drop(r"(mask_token|lm_head\..*|cls_pt_.*)", "prediction of masked patches in the pre-training")

_DINOV3 = Rope(theta=100.0, coordinates="centered", pairs="half")
_EVA02 = Rope(reference_grid=(16, 16))
_ROPE_VIT = Rope(theta=100.0, order="xy")
_MIXED = Rope(theta=10.0, order="xy", mixed=True)
# Width of EVA-02 enormous, whose blocks norm after their layers (arXiv 2303.11331, table 2); no other file shows that.
_ENORMOUS = 1792
# Side of the training grid of Perception Encoder core models by width (arXiv 2504.13181, table 17); that of language
# and spatial models is 32.
_PE_CORE_GRIDS = {192: 24, 384: 24, 768: 14, 1024: 24, 1536: 32}


def _perception_encoder(tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Return a rotary grid that is scaled to the training grid, and counted from one if there is a class token."""
    core, width = "attn_pool.latent" in tensors, tensors["norm_pre.weight"].shape[0]
    side = _PE_CORE_GRIDS.get(width, 14) if core else 32
    offset = 1.0 if "cls_token" in tensors else 0.0
    found: dict[str, Any] = {"rope": Rope(reference_grid=(side, side), offset=offset, order="xy"), "norm_eps": 1e-5}
    # All published models pool with eight heads; narrower models have as many as leave an even width.
    return {**found, **({"pool_heads": math.gcd(8, width // 2)} if core else {"pool": "avg"})}


def _is_perception_encoder(names: Mapping[str, object] | set[str]) -> bool:
    pooled_or_bare = "attn_pool.latent" in names or not {"norm.weight", "fc_norm.weight"} & set(names)
    return "norm_pre.weight" in names and pooled_or_bare


def _facts(tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Return the fields of published models with these tensors."""
    found: dict[str, Any] = {"pool_prefix": True} if _pools_prefix(tensors) else {}
    if _is_perception_encoder(tensors):
        return {**found, **_perception_encoder(tensors)}
    if "rope.freqs" in tensors:
        found["rope"] = _MIXED
    elif "pos_embed" not in tensors:
        if "reg_token" not in tensors:
            found["rope"] = _ROPE_VIT
        elif "cls_token" in tensors:
            found |= {"rope": _DINOV3, "norm_eps": 1e-5, "pool": "avg"}
        else:
            found["rope"] = _EVA02
    elif "blocks.0.attn.qkv.bias" in tensors:
        found["rope"] = _ROPE_VIT
    elif _timm.gated(tensors):
        found["rope"] = _EVA02
    elif tensors["patch_embed.proj.weight"].shape[:1] == (_ENORMOUS,):
        found["norm_position"] = "post"
    return found


def _pools_prefix(tensors: Mapping[str, LazyTensor]) -> bool:
    """Eva's attention pooling reads all tokens, that of VisionTransformer only the patches."""
    return "attn_pool.latent" in tensors and ("cls_token" in tensors or "reg_token" in tensors)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return the fields of published models, overridden by timm's config.json.

    Raises:
        ConfigError: gated blocks under attention pooling.
    """
    if "attn_pool.latent" in tensors and _timm.gated(tensors):
        raise ConfigError(
            f"{raw.path}: act: timm's Eva pools with GELU, and its blocks have gates with SiLU: not supported"
        )
    stated = _timm.state(raw, tensors)
    if _timm.timm_class(raw):
        return stated
    fields, post = _facts(tensors), timm.post_norm_guess(tensors)
    if post:  # tensors that timm's VisionTransformer has, too
        fields["norm_position"] = "post"
    by = stated.by or "what timm's architectures with these tensors do"
    return Stated({**fields, **stated.fields}, by, (*stated.warnings, *_guesses(tensors)), post)


def _guesses(tensors: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """Warn of what is taken from published models where none has this width."""
    if not _is_perception_encoder(tensors) or "attn_pool.latent" not in tensors:
        return ()
    width = tensors["norm_pre.weight"].shape[0]
    if width in _PE_CORE_GRIDS:
        return ()
    return (
        f"pool_heads and rope.reference_grid are guesses: no published Perception Encoder is {width} channels wide; "
        'overrides={"pool_heads": N, "rope": {...}}, on the command line --set, gives them',
    )


def _rope_args(rope: Rope | None) -> dict[str, Any]:
    if rope is None:
        return {"use_rot_pos_emb": False}
    return {
        "use_rot_pos_emb": True,
        "rope_type": "mixed" if rope.mixed else "dinov3" if rope.coordinates == "centered" else "cat",
        "rope_temperature": rope.theta,
        "rope_grid_offset": rope.offset,
        "rope_grid_indexing": "xy" if rope.order == "xy" else "ij",
        "rope_rotate_half": rope.pairs == "half",
        "ref_feat_shape": list(rope.reference_grid) if rope.reference_grid else None,
    }


def _sidecars(config: ViTConfig, passport: Passport | None, fused: bool) -> Sidecars:
    """Return timm's hub config.json, from which create_model("local-dir:FOLDER") builds the model."""
    # The architecture fixes only what model_args cannot state: the epsilon of norms.
    architecture = "vit_small_patch16_dinov3" if config.norm_eps == 1e-5 else "eva02_tiny_patch14_224"
    if config.norm == "rms":
        architecture = "vit_base_patch16_sapiens2"
    split_gate = config.ffn == "swiglu"
    args: dict[str, Any] = {
        **timm.shared_args(config),
        "qkv_bias": config.qkv_bias is not False,
        "qkv_fused": fused,
        "qk_norm": bool(config.qk_norm),
        "num_kv_heads": list(config.kv_heads) or None,
        "attn_only_layer_scale": config.layer_scale == "attn",
        "mlp_ratio": timm.mlp_ratio(config.embed_dim, config.mlp_dim),
        "swiglu_mlp": config.ffn != "mlp",
        "swiglu_align_to": 1 if split_gate and not config.mlp_norm else 0,
        "scale_mlp": config.mlp_norm,
        "scale_attn_inner": config.attn_norm,
        "attn_type": "rope" if config.qkv_bias is True else "eva",
        "class_token": config.class_token,
        "num_reg_tokens": config.num_registers,
        "no_embed_class": not config.pos_embed_prefix,
        "use_abs_pos_emb": config.pos_embed == "learned",
        **_rope_args(config.rope),
        "use_pre_transformer_norm": config.pre_norm,
        "use_post_norm": config.norm_position == "post",
        "use_post_transformer_norm": config.final_norm == "before",
        "use_fc_norm": config.final_norm == "after",
        "attn_pool_num_heads": config.pool_heads or config.num_heads,
        "attn_pool_mlp_ratio": timm.mlp_ratio(config.embed_dim, config.pool_mlp_dim or config.mlp_dim),
        "dynamic_img_size": False,
    }
    return {"config.json": timm.hub_config(architecture, args, config, passport)}


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence of the architecture, or of a Perception Encoder, whose names VisionTransformer has, too."""
    named = timm.evidence(raw, "Eva")
    names = {name[len(prefix) :] for name in raw.tensors if name.startswith(prefix)}
    return named or int(not _timm.is_named(raw) and _is_perception_encoder(names))


_LIMITS = {
    **timm.NO_EXTRAS,
    "qkv_bias": (True, False, "qv"),
    "ffn": ("mlp", "swiglu", "swiglu_packed"),
    "pool": ("cls", "avg", "map", "none"),
    "distilled": False,
    "norm": ("layer", "rms"),
    "qk_norm": ANY,
    "layer_scale": ANY,
}
_REQUIRES = (
    timm.PATCH_BIAS,
    Requirement(
        "act",
        lambda c: c.act == ("gelu" if c.ffn == "mlp" or c.pool == "map" else "silu"),
        "its activations are fixed: GELU in plain MLPs and for pooling, SiLU in gates",
    ),
    Requirement(
        "ffn",
        lambda c: c.ffn != "swiglu_packed" or not c.mlp_norm,
        "it norms gates of two tensors only",
    ),
    Requirement(
        "pool_prefix",
        lambda c: c.pool != "map" or c.pool_prefix == (c.num_prefix_tokens > 0),
        "its attention pooling reads all tokens",
    ),
    Requirement(
        "rope",
        lambda c: c.rope is None or not c.rope.mixed or (c.rope.pairs == "interleaved" and not c.rope.offset),
        "its mixed rotations are interleaved",
    ),
    Requirement(
        "qk_norm",
        lambda c: c.norm_position == "pre" or not c.qk_norm,
        "its blocks with norms after the layers have no norms of queries and keys",
    ),
    Requirement(
        "ffn",
        lambda c: c.norm_position == "pre" or c.ffn != "swiglu" or c.mlp_norm,
        "its blocks with norms after the layers have gates of two tensors only where these are normed",
    ),
    timm.REGISTER_ROWS,
    timm.QK_NORM,
)


def _format(dialect: str, qkv: tuple[Rule, ...], fused: bool) -> Format:
    return Format(
        name="timm",
        project="timm",
        rules=(*COMMON, *qkv),
        drops=(MASKED_PATCHES,) if fused else (),
        dialects=(Dialect(dialect),),
        prefixes=timm.PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-antialias"},
        limits=_LIMITS if fused else {**_LIMITS, "kv_heads": ANY},
        requires=_REQUIRES,
        evidence=_evidence,
        state=_state,
        sidecars=partial(_sidecars, fused=fused),
    )


FORMATS = (_format("eva", _FUSED, True), _format("eva-split", _SPLIT, False))
