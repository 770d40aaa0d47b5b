"""timm's VisionTransformerRelPos: relative positions by a network of log coordinates, or by tables.

Source: timm/models/vision_transformer_relpos.py, timm/layers/pos_embed_rel.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _timm, timm
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_LAYERS = ("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_NETWORKS = ("blocks.{i}.attn.rel_pos", "shared_rel_pos")
_TABLE = "relative_position_bias_table"
RULES = (
    rule("cls_token", "cls_token"),
    *weight_and_bias("patch_embed.proj"),
    rule(f"rel_pos_bias.{_TABLE}", f"shared_rel_pos.{_TABLE}"),
    *(part for layer in _LAYERS for part in weight_and_bias(f"blocks.{{i}}.{layer}")),
    rule(f"blocks.{{i}}.attn.{_TABLE}", f"blocks.{{i}}.attn.rel_pos.{_TABLE}"),
    *(rule(name, name) for name in ("blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma")),
    *(part for name in _NETWORKS for layer in ("fc1", "fc2") for part in weight_and_bias(f"{name}.mlp.{layer}")),
    *(part for layer in ("norm", "fc_norm", "head") for part in weight_and_bias(layer)),
)


def _is_relative(name: str) -> bool:
    return ".rel_pos." in name or "shared_rel_pos." in name


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Without relative positions it is another of timm's classes with these names, if none is named."""
    named = timm.evidence(raw, "VisionTransformerRelPos")
    return named or (1 if any(map(_is_relative, raw.tensors)) else -1)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read timm's config.json; without one, blocks without layer scale norm after their layers, as in timm's models."""
    stated = _timm.state(raw, tensors)
    if _timm.timm_class(raw):
        return stated
    post = "blocks.0.ls1.gamma" not in tensors
    fields = {"norm_position": "post" if post else "pre", **stated.fields}
    by = stated.by or "what timm's architectures with these tensors do"
    return Stated(fields, by, stated.warnings, timm.POST_NORM_GUESS if post else {})


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return timm's hub config.json, from which create_model("local-dir:FOLDER") builds the model."""
    network = config.rel_pos_mlp
    kind = "bias" if network is None else "mlp" if network.scale == "log" else "mlp_swin"
    args: dict[str, Any] = {
        **timm.shared_args(config),
        "mlp_ratio": timm.mlp_ratio(config.embed_dim, config.mlp_dim),
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "class_token": config.class_token,
        "fc_norm": config.final_norm == "after",
        "rel_pos_type": kind,
        "rel_pos_dim": network.hidden_dim if network else None,
        "shared_rel_pos": config.rel_pos == "shared",
    }
    architecture = f"vit_relpos_base_patch16_{'rpn_' if config.norm_position == 'post' else ''}224"
    return {"config.json": timm.hub_config(architecture, args, config, passport)}


FORMATS = (
    Format(
        name="timm",
        project="timm",
        rules=RULES,
        drops=(
            Drop(
                r".*\.(?:relative_position_index|rel_coords_log)",
                "relative_position_index, rel_coords_log: buffers that follow from the grid",
            ),
        ),
        dialects=(Dialect("relpos"),),
        prefixes=timm.PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "relpos-geometric"},
        limits={
            "act": "gelu",
            "qkv_bias": (True, False),
            "pos_embed": "none",
            "rel_pos": ("block", "shared"),
            "differential": False,
            "pool": ("cls", "avg", "none"),
            "pool_prefix": False,
            "final_norm": ("before", "after"),
            "patch_bias": True,
        },
        requires=(
            Requirement(
                "final_norm",
                lambda c: c.pool != "none" or c.final_norm == "before",
                "without pooling it norms all tokens",
            ),
        ),
        evidence=_evidence,
        state=_state,
        sidecars=_sidecars,
    ),
)
