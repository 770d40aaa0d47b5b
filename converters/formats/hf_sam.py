"""Hugging Face transformers' SamVisionModel, and the image encoder in its models of Segment Anything.

Source: transformers/models/{sam,sam_hq,got_ocr2,slanext,deepseek_ocr2}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _sam
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Sidecars, Stated
from vit_hub.converters.rules.table import Drop
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 12,
    "image_size": 1024,
    "window_size": 14,
    "global_attn_indexes": [2, 5, 8, 11],
}
TYPES = (
    hf.ModelType("sam_vision_model", "SamVision", _DEFAULTS, whole="sam"),
    hf.ModelType("sam_hq_vision_model", "SamHQVision", _DEFAULTS, whole="sam_hq"),
    hf.ModelType("got_ocr2_vision", "GotOcr2Vision", _DEFAULTS, whole="got_ocr2"),
    hf.ModelType("slanext_vision", "SLANeXtVision", _DEFAULTS, whole="slanext"),
    hf.ModelType("deepseek_ocr2_sam_vision_model", "DeepseekOcr2SamVision", _DEFAULTS),
    hf.ModelType("unlimited_ocr_sam_vision_model", "UnlimitedOcrSamVision", _DEFAULTS),
)
# Image encoders of larger models with the same modules, which are written as SamVision.
_READ = (
    *TYPES,
    hf.ModelType("pp_chart2table_vision", "PPChart2TableVision", _DEFAULTS),
    hf.ModelType("pp_formulanet_vision", "PPFormulaNetVision", _DEFAULTS),
)
# Those that have a model around the encoder.
_MODELS = ("sam_vision_model", "sam_hq_vision_model")
_LAYERS = {"norm1": "layer_norm1", "norm2": "layer_norm2", "fc1": "mlp.lin1", "fc2": "mlp.lin2"}
_NECK = ("conv1", "layer_norm1", "conv2", "layer_norm2")
_BLOCK = "layers.{i}"


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; what it does not state shapes tell."""
    values, stated = hf.read_config(raw, _READ)
    shown, guesses = _sam.fields_of_shapes(tensors, dialect.variables["root"], _BLOCK, "patch_embed.projection")
    if "window_size" in values:
        guesses = ()
        shown["windows"] = _sam.windows_of(values["window_size"], values.get("global_attn_indexes"))
    return replace(stated, fields={**shown, **stated.fields}, warnings=(*stated.warnings, *guesses))


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    kind = (hf.stated_type(passport.sidecars, TYPES) if passport else None) or TYPES[0]
    window, full = _sam.stated_windows(config)
    extra = {
        "intermediate_size": None,
        "mlp_dim": config.mlp_dim,
        "mlp_ratio": config.mlp_dim / config.embed_dim,
        "output_channels": config.neck.chans if config.neck else 0,
        "num_pos_feats": (config.neck.chans if config.neck else 0) // 2,
        "qkv_bias": config.qkv_bias,
        "use_abs_pos": config.pos_embed == "learned",
        "use_rel_pos": config.rel_pos == "decomposed",
        "window_size": window,
        "global_attn_indexes": full,
    }
    head = "Model" if kind.name in _MODELS else "Encoder"
    return hf.write_config(kind, config, passport, extra=extra, types=TYPES, head=head)


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=_sam.rules("${root}", _BLOCK, _LAYERS, _NECK, "patch_embed.projection"),
        dialects=tuple(Dialect("", {"family": "sam", "root": root}) for root in ("vision_encoder.", "")),
        drops=(Drop(r"${root}proj\.conv\d\..*", "convolutions before a language model, not part of the encoder"),),
        conventions=_sam.CONVENTIONS,
        limits=_sam.LIMITS,
        requires=(*_sam.REQUIRES, hf.SQUARE),
        state=_state,
        sidecars=_sidecars,
    ),
)
