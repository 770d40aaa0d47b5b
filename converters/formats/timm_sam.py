"""timm's VisionTransformerSAM: Segment Anything's image encoders, with a classifier or without.

Source: timm/models/vision_transformer_sam.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _sam, _timm, timm
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_BLOCK = "blocks.{i}"
_LAYERS = {"norm1": "norm1", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_RULES = (
    *_sam.rules("", _BLOCK, _LAYERS),
    *weight_and_bias("norm_pre"),
    *(one for layer in ("q_norm", "k_norm") for one in weight_and_bias(f"blocks.{{i}}.attn.{layer}")),
    *(rule(f"blocks.{{i}}.{name}.gamma", f"blocks.{{i}}.{name}.gamma") for name in ("ls1", "ls2")),
    *weight_and_bias("neck"),
    *weight_and_bias("head", "head.fc"),
)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read timm's config.json; of a bare file shapes tell the windows."""
    shown, guesses = _sam.fields_of_shapes(tensors, "", _BLOCK)
    if not _timm.is_named(raw):
        return Stated(shown, "shapes of the position tables", guesses)
    stated, (args, given) = _timm.state(raw, tensors), _timm.arguments(raw)
    fields: dict[str, Any] = {**shown, **stated.fields}
    if "window_size" in args:
        fields["windows"] = _sam.windows_of(args["window_size"], args.get("global_attn_indexes"))
        guesses = ()
    if "norm_layer" in given and given["norm_layer"] is None:
        fields["norm_eps"] = 1e-6
    return Stated(fields, stated.by, (*stated.warnings, *guesses))


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return timm's hub config.json, from which create_model("local-dir:FOLDER") builds the model."""
    window, full = _sam.stated_windows(config)
    args: dict[str, Any] = {
        **timm.shared_args(config),
        "mlp_ratio": timm.mlp_ratio(config.embed_dim, config.mlp_dim),
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "pre_norm": config.pre_norm,
        "use_abs_pos": config.pos_embed == "learned",
        "use_rel_pos": config.rel_pos == "decomposed",
        "window_size": window,
        "global_attn_indexes": full,
        "neck_chans": (config.neck.chans if config.neck else 0) or None,
    }
    if config.norm_eps == 1e-6:
        args["norm_layer"] = None  # its class has another one by default than without any
    found = timm.hub_config("samvit_base_patch16", args, config, passport)
    return {"config.json": {**found, "num_features": config.pooled_dim}}


FORMATS = (
    Format(
        name="timm",
        project="timm",
        rules=_RULES,
        dialects=(Dialect("sam"),),
        prefixes=timm.PREFIXES,
        conventions={**_sam.CONVENTIONS, "norm_eps": 1e-5, "resize": "bicubic-antialias"},
        limits={
            **{name: value for name, value in _sam.LIMITS.items() if name != "num_classes"},
            "qk_norm": (True, False),
            "pre_norm": (True, False),
            "patch_bias": (True, False),
            "layer_scale": (True, False),
            "pool": ("avg", "none"),
            "norm_eps": (1e-5, 1e-6),
            "act": "gelu",
        },
        requires=(
            *_sam.REQUIRES[1:],
            Requirement("neck", lambda c: c.neck is not None, "it has a neck"),
            timm.PATCH_BIAS,
        ),
        evidence=lambda raw, prefix: timm.evidence(raw, "VisionTransformerSAM"),
        state=_state,
        sidecars=_sidecars,
    ),
)
