"""timm's Beit class, and microsoft/unilm's own files, which have its names: BEiT and BEiT v2.

Files of pre-training have a mask token, which is carried along, and a head that predicts visual tokens.
Source: timm/models/beit.py; unilm/beit/modeling_pretrain.py, unilm/beit2/modeling_pretrain.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _timm, timm
from vit_hub.converters.formats.timm_eva import COMMON
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, Rule, rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_NAMES = (
    "blocks.{i}.attn.qkv.weight",
    "blocks.{i}.attn.q_bias",
    "blocks.{i}.attn.v_bias",
    "blocks.{i}.attn.relative_position_bias_table",
    "rel_pos_bias.relative_position_bias_table",
)


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Without a relative position table it is another of timm's classes with these names, if none is named."""
    named = timm.evidence(raw, "Beit")
    return named or (1 if any(name.endswith("relative_position_bias_table") for name in raw.tensors) else -1)


def _pretraining_state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Tell how learned positions are resized, which EVA's files have instead of relative ones."""
    relative = any(name.endswith("relative_position_bias_table") for name in tensors)
    return Stated() if relative else Stated({"resize": "bicubic"}, "EVA's own code")


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return timm's hub config.json, from which create_model("local-dir:FOLDER") builds the model."""
    args: dict[str, Any] = {
        **timm.shared_args(config),
        "qkv_bias": config.qkv_bias == "qv",
        "mlp_ratio": timm.mlp_ratio(config.embed_dim, config.mlp_dim),
        "swiglu_mlp": config.ffn != "mlp",
        "scale_mlp": config.mlp_norm,
        "use_abs_pos_emb": config.pos_embed == "learned",
        "use_rel_pos_bias": config.rel_pos == "block",
        "use_shared_rel_pos_bias": config.rel_pos == "shared",
        "use_fc_norm": config.final_norm == "after",
    }
    return {"config.json": timm.hub_config("beit_base_patch16_224", args, config, passport)}


def _format(
    name: str, dialect: str, rules: tuple[Rule, ...] = (), drops: tuple[Drop, ...] = (), **options: Any
) -> Format:
    return Format(
        name=name,
        rules=(*COMMON, *(rule(name, name) for name in _NAMES), *rules),
        drops=(
            Drop(r".*relative_position_index", "relative_position_index: a buffer that follows from the grid"),
            *drops,
        ),
        dialects=(Dialect(dialect),),
        prefixes=timm.PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "relpos-geometric"},
        limits={
            **timm.NO_EXTRAS,
            "rel_pos": ("block", "shared"),
            "qkv_bias": ("qv", False),
            "class_token": True,
            "pool": ("cls", "avg", "none"),
            "final_norm": ("before", "after"),
            "patch_bias": True,
            "pre_norm": False,
            "ffn": ("mlp", "swiglu"),
            "rope": None,
        },
        requires=(
            Requirement("act", lambda c: c.act == ("gelu" if c.ffn == "mlp" else "silu"), "its activations are fixed"),
            Requirement(
                "pos_embed_prefix",
                lambda c: c.pos_embed == "none" or c.pos_embed_prefix,
                "its position table has a class row",
            ),
        ),
        **options,
    )


FORMATS = (
    _format(
        "timm",
        "beit",
        project="timm",
        evidence=_evidence,
        state=lambda raw, tensors, dialect: _timm.state(raw, tensors),
        sidecars=_sidecars,
    ),
    _format(
        "unilm",
        "beit",
        (rule("mask_token", "mask_token", "1 1 d -> 1 d", carried=True),),
        (
            Drop(r"(cls_pt_)?lm_head\..*", "head of the pre-training, which predicts visual tokens"),
            Drop(
                r"cls_pt_(layers|norm)\..*",
                "blocks of the pre-training over the tokens of an early layer",
            ),
        ),
        project="microsoft/unilm",
        evidence=lambda raw, prefix: 0 if f"{prefix}mask_token" in raw.tensors else -1,
        state=_pretraining_state,
        returned_only=True,
        container="torch",
        filename="model.pth",
    ),
)
