"""Hugging Face transformers' I-JEPA: ViT's names without a class token; patches are averaged for the classifier.

Source: transformers/models/ijepa/modeling_ijepa.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vit_hub.converters.containers import Source
from vit_hub.converters.formats._transformers import (
    QKV_BIAS,
    VIT_BLOCK,
    VIT_LIMITS,
    VIT_SPELLINGS,
    ModelType,
    both,
    names_model_type,
    read_config,
    write_config,
)
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Sidecars, Stated
from vit_hub.converters.rules.table import rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

TYPES = (ModelType("ijepa", "IJepa", {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 12}),)
_ROOTS = ("ijepa.", "")


def _dialect(spelling: str, root: str) -> Dialect:
    names = VIT_SPELLINGS[spelling]
    return Dialect(spelling, {"family": "ijepa", "root": root, "layer": root + names["layers"], **names})


def _evidence(source: Source, prefix: str) -> int:
    stated = names_model_type(source, TYPES)
    return stated or int(not any(name.endswith("cls_token") for name in source.tensors))


def _state(source: Source, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    return read_config(source, TYPES)[1]


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    head = "ForImageClassification" if config.num_classes else "Model"
    return write_config(TYPES[0], TYPES, config, passport, head=head, extra={"qkv_bias": config.qkv_bias})


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    """Models with a head have a root; bare models have none."""
    return next(d for d in dialects if bool(d.variables["root"]) == bool(config.num_classes))


FORMATS = (
    Format(
        name="hf",
        project=TYPES[0].project,
        rules=(
            rule("mask_token", "${root}embeddings.mask_token", "1 1 d -> 1 d", carried=True),
            rule("pos_embed", "${root}embeddings.position_embeddings"),
            *both("patch_embed.proj", "${root}embeddings.patch_embeddings.projection"),
            *VIT_BLOCK,
            QKV_BIAS,
            *both("norm", "${root}layernorm"),
            *both("pooler.dense", "${root}pooler.dense", carried=True),
            *both("head", "classifier"),
        ),
        dialects=tuple(_dialect(spelling, root) for spelling in VIT_SPELLINGS for root in _ROOTS),
        conventions={"act": "gelu", "norm_eps": 1e-12, "resize": "bicubic"},
        limits={**VIT_LIMITS, "pool": "avg"},
        evidence=_evidence,
        state=_state,
        sidecars=_sidecars,
        dialect_for=_dialect_for,
    ),
)
