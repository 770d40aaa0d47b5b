"""Hugging Face transformers' ViT and the models that share its names: ViT, DeiT, ViTMAE, ViTMSN.

Two spellings: what ``save_pretrained`` writes (v4) and the module names of transformers 5 (v5).
Source: transformers/models/{vit,deit,vit_mae,vit_msn}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig

RULES = (
    rule("cls_token", "${root}embeddings.cls_token"),
    rule("dist_token", "${root}embeddings.distillation_token"),
    hf.MASK_TOKEN,
    *hf.VIT_PATCHES,
    *hf.VIT_BLOCK,
    hf.QKV_BIAS,
    *weight_and_bias("norm", "${root}layernorm"),
    # A classifier reads the class token itself; the pooler is then unused.
    *weight_and_bias("pre_logits.fc", "${root}pooler.dense", unless="classifier.weight"),
    *weight_and_bias("pooler.dense", "${root}pooler.dense", carried=True),
    rule(("head.weight", "head_dist.weight"), ("cls_classifier.weight", "distillation_classifier.weight")),
    rule(("head.bias", "head_dist.bias"), ("cls_classifier.bias", "distillation_classifier.bias")),
    *weight_and_bias("head", "classifier"),
)

# (root of the embeddings, root of the layers): transformers 5 writes ViTMSNForImageClassification's layers rootless.
_ROOTS = (("vit.", "vit."), ("deit.", "deit."), ("", ""), ("vit.", ""))


_VIT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 12}
TYPES = (
    hf.ModelType("vit", "ViT", _VIT),
    hf.ModelType("deit", "DeiT", _VIT),
    hf.ModelType("vit_mae", "ViTMAE", _VIT),
    hf.ModelType("vit_msn", "ViTMSN", {**_VIT, "layer_norm_eps": 1e-6}),
    hf.ModelType("flava_image_model", "FlavaImage", _VIT, whole="flava"),
    hf.ModelType("dpt", "DPT", _VIT),
)
# Image encoders of larger models with the same modules, which are written as ViT.
_READ = (
    *TYPES,
    hf.ModelType("dpt", "DPT", _VIT),
    hf.ModelType("flava_image_model", "FlavaImage", _VIT),
)


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json.

    Raises:
        ConfigError: the activation of the pooler is not that of the representation layer.
    """
    values, stated = hf.read_config(raw, _READ)
    pooler = tensors.get(f"{dialect.variables['root']}pooler.dense.weight")
    headless = "classifier.weight" not in tensors
    if pooler is not None and headless and values.get("pooler_act", "tanh") != "tanh":
        raise ConfigError(f"{raw.path}: config.json: pooler_act {values['pooler_act']!r} is not supported, only tanh")
    named = " ".join(map(str, values.get("architectures") or ()))
    if pooler is None or headless or "ForImageClassification" in named:
        return stated
    return replace(stated, warnings=(*stated.warnings, _both(pooler.shape[0])))


def _both(width: int) -> str:
    return (
        "the file holds a pooler and a classifier, and cannot say whether the classifier reads the pooler's output: "
        "it is taken to read the class token, as in transformers' classes; if it is not so, give "
        f'overrides={{"representation_dim": {width}}}, on the command line --set representation_dim={width}'
    )


def _model_type(config: ViTConfig, passport: Passport | None) -> hf.ModelType:
    stated = hf.stated_type(passport.sidecars, TYPES) if passport else None
    if config.distilled:
        return TYPES[1]
    return stated if stated and not (stated.name == "vit_mae" and config.num_classes) else TYPES[0]


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    extra: dict[str, Any] = {"qkv_bias": config.qkv_bias}
    if config.representation_dim:
        extra |= {"pooler_output_size": config.representation_dim, "pooler_act": "tanh"}
    head = "ForImageClassificationWithTeacher" if config.num_classes and config.pool == "cls_dist" else ""
    return hf.write_config(_model_type(config, passport), config, passport, extra=extra, types=TYPES, head=head)


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    """Return the first dialect with the root of the model's class; bare models have none."""
    root = ("deit." if config.distilled else "vit.") if config.num_classes else ""
    return next(d for d in dialects if d.variables["root"] == root and d.variables["layer"].startswith(root))


FORMATS = (
    hf.transformers_format(
        _READ,
        rules=RULES,
        drops=(hf.POSITION_IDS,),
        dialects=tuple(hf.vit_dialect(spelling, "vit", *roots) for spelling in hf.VIT_SPELLINGS for roots in _ROOTS),
        conventions={"act": "gelu", "norm_eps": 1e-12, "resize": "bicubic"},
        limits={**hf.VIT_LIMITS, "class_token": True, "pos_embed_prefix": True, "pool": ("cls", "cls_dist")},
        requires=(
            Requirement(
                "representation_dim",
                lambda c: not (c.representation_dim and c.num_classes),
                "a model with a classifier has no pooler layer before it",
            ),
        ),
        state=_state,
        sidecars=_sidecars,
        dialect_for=_dialect_for,
    ),
)
