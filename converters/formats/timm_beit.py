"""timm's Beit class: BEiT and BEiT v2, with relative position tables. Source: timm/models/beit.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_hub.converters.containers import Source
from vit_hub.converters.formats.timm import OUTSIDE, PREFIXES, hub_config, mlp_ratio, shared_args, stated_everywhere
from vit_hub.converters.formats.timm_eva import COMMON
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_NAMES = (
    "blocks.{i}.attn.qkv.weight",
    "blocks.{i}.attn.q_bias",
    "blocks.{i}.attn.v_bias",
    "blocks.{i}.attn.relative_position_bias_table",
    "rel_pos_bias.relative_position_bias_table",
)


def _evidence(source: Source, prefix: str) -> int:
    """Without a relative position table it is another of timm's models with these names."""
    return 1 if any(name.endswith("relative_position_bias_table") for name in source.tensors) else -1


def _state(source: Source, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Reads timm's config.json; without one, a norm after pooling means the mean of the patches."""
    file = source.sidecars.get("config.json", {})
    if "architecture" not in file:
        return Stated()
    return Stated(stated_everywhere(file, tensors), "config.json")


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """timm's hub config.json; create_model("local-dir:FOLDER") builds the model from it."""
    args: dict[str, Any] = {
        **shared_args(config),
        "qkv_bias": config.qkv_bias == "qv",
        "mlp_ratio": mlp_ratio(config.embed_dim, config.mlp_dim),
        "swiglu_mlp": config.ffn != "mlp",
        "scale_mlp": config.mlp_norm,
        "use_abs_pos_emb": config.pos_embed == "learned",
        "use_rel_pos_bias": config.rel_pos == "block",
        "use_shared_rel_pos_bias": config.rel_pos == "shared",
        "use_fc_norm": config.final_norm == "after",
    }
    return {"config.json": hub_config("beit_base_patch16_224", args, config, passport)}


FORMATS = (
    Format(
        name="timm",
        project="timm",
        rules=(*COMMON, *(rule(name, name) for name in _NAMES)),
        drops=(Drop(r".*relative_position_index", "relative_position_index: a buffer that follows from the grid"),),
        outside=OUTSIDE,
        dialects=(Dialect("beit"),),
        prefixes=PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "relpos-geometric"},
        requires=(
            Requirement("rel_pos", lambda c: c.rel_pos != "none", "timm's Beit has a relative position bias"),
            Requirement("qkv_bias", lambda c: c.qkv_bias in ("qv", False), "its keys have no bias"),
            Requirement("class_token", lambda c: c.class_token, "it always has a class token"),
            Requirement("pool", lambda c: c.pool in ("cls", "avg", "none"), "it does not pool so"),
            Requirement("final_norm", lambda c: c.final_norm != "none", "it always has a final norm"),
            Requirement("patch_bias", lambda c: c.patch_bias and not c.pre_norm, "it has a patch bias and no pre-norm"),
            Requirement("ffn", lambda c: c.ffn != "swiglu_packed", "it has a plain MLP, or gate and value apart"),
            Requirement("act", lambda c: c.act == ("gelu" if c.ffn == "mlp" else "silu"), "its activations are fixed"),
            Requirement("pos_embed", lambda c: c.pos_embed != "sincos2d", "it stores its position table"),
            Requirement(
                "pos_embed_prefix",
                lambda c: c.pos_embed == "none" or c.pos_embed_prefix,
                "its position table has a class row",
            ),
            Requirement("representation_dim", lambda c: not c.representation_dim, "it has no layer before the head"),
            Requirement("stem", lambda c: c.stem == "patch", "it has no stem"),
            Requirement("rope", lambda c: c.rope is None, "it has no rotary embedding"),
        ),
        evidence=_evidence,
        state=_state,
        sidecars=_sidecars,
    ),
)
