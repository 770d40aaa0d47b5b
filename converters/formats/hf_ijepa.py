"""Hugging Face transformers' I-JEPA: ViT's names without a class token; patches are averaged for the classifier.

Source: transformers/models/ijepa/modeling_ijepa.py.
"""

from __future__ import annotations

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Sidecars
from vit_hub.converters.rules.table import weight_and_bias
from vit_hub.model.config import ViTConfig

TYPES = (hf.ModelType("ijepa", "IJepa", {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 12}),)


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    stated = hf.names_model_type(raw, TYPES)
    return stated or int(not any(name.endswith("cls_token") for name in raw.tensors))


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    return hf.write_config(TYPES[0], config, passport, extra={"qkv_bias": config.qkv_bias})


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=(
            hf.MASK_TOKEN,
            *hf.VIT_PATCHES,
            *hf.VIT_BLOCK,
            hf.QKV_BIAS,
            *weight_and_bias("norm", "${root}layernorm"),
            *weight_and_bias("pooler.dense", "${root}pooler.dense", carried=True),
            *weight_and_bias("head", "classifier"),
        ),
        dialects=tuple(
            hf.vit_dialect(spelling, "ijepa", root, root) for spelling in hf.VIT_SPELLINGS for root in ("ijepa.", "")
        ),
        conventions={"act": "gelu", "norm_eps": 1e-12, "resize": "bicubic"},
        limits={**hf.VIT_LIMITS, "pool": "avg"},
        evidence=_evidence,
        sidecars=_sidecars,
        dialect_for=hf.rooted,
    ),
)
