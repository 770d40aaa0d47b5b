"""Hugging Face transformers' ViT and the models that share its names: ViT, DeiT, ViTMAE, ViTMSN.

Two spellings: what ``save_pretrained`` writes (v4) and the module names of transformers 5 (v5).
Source: transformers/models/{vit,deit,vit_mae,vit_msn}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_hub.config import ViTConfig
from vit_hub.converters.containers import Source
from vit_hub.converters.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.passport import Passport
from vit_hub.converters.processors import hf_processor
from vit_hub.converters.rules import Drop, rule
from vit_hub.converters.tensors import LazyTensor

_QKV = tuple(f"${{layer}}.${{{part}}}" for part in "qkv")


def _both(canonical: str, foreign: str, **options: Any) -> tuple[Any, ...]:
    return tuple(rule(f"{canonical}.{part}", f"{foreign}.{part}", **options) for part in ("weight", "bias"))


RULES = (
    rule("cls_token", "${root}embeddings.cls_token"),
    rule("dist_token", "${root}embeddings.distillation_token"),
    rule("mask_token", "${root}embeddings.mask_token", carried=True),
    rule("pos_embed", "${root}embeddings.position_embeddings"),
    *_both("patch_embed.proj", "${root}embeddings.patch_embeddings.projection"),
    *_both("blocks.{i}.norm1", "${layer}.layernorm_before"),
    rule("blocks.{i}.attn.qkv.weight", tuple(f"{name}.weight" for name in _QKV)),
    rule("blocks.{i}.attn.qkv.bias", tuple(f"{name}.bias" for name in _QKV)),
    *_both("blocks.{i}.attn.proj", "${layer}.${o}"),
    *_both("blocks.{i}.norm2", "${layer}.layernorm_after"),
    *_both("blocks.{i}.mlp.fc1", "${layer}.${fc1}"),
    *_both("blocks.{i}.mlp.fc2", "${layer}.${fc2}"),
    *_both("norm", "${root}layernorm"),
    # A classifier reads the class token past the pooler, which is then no part of what the model computes.
    *_both("pre_logits.fc", "${root}pooler.dense", unless="classifier.weight"),
    *_both("pooler.dense", "${root}pooler.dense", carried=True),
    rule(("head.weight", "head_dist.weight"), ("cls_classifier.weight", "distillation_classifier.weight")),
    rule(("head.bias", "head_dist.bias"), ("cls_classifier.bias", "distillation_classifier.bias")),
    *_both("head", "classifier"),
)

_SPELLINGS: dict[str, dict[str, str]] = {
    "v4": {
        "layers": "encoder.layer.{i}",
        "q": "attention.attention.query",
        "k": "attention.attention.key",
        "v": "attention.attention.value",
        "o": "attention.output.dense",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    },
    "v5": {
        "layers": "layers.{i}",
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
}
# (root of the embeddings, root of the layers): transformers 5 writes ViTMSNForImageClassification's layers rootless.
_ROOTS = (("vit.", "vit."), ("deit.", "deit."), ("", ""), ("vit.", ""))


def _dialect(spelling: str, root: str, layer_root: str) -> Dialect:
    names = {key: value for key, value in _SPELLINGS[spelling].items() if key != "layers"}
    layer = layer_root + _SPELLINGS[spelling]["layers"]
    return Dialect(spelling, {"root": root, "layer": layer, **names})


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
# Class defaults of layer_norm_eps, which a config.json may leave out.
_EPS = {"vit": 1e-12, "deit": 1e-12, "vit_mae": 1e-12, "vit_msn": 1e-6}
_CLASSES = {"vit": "ViT", "deit": "DeiT", "vit_mae": "ViTMAE", "vit_msn": "ViTMSN"}


def _state(source: Source, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Reads config.json; a missing layer_norm_eps takes the default of its class, and that is said."""
    file = source.sidecars.get("config.json", {})
    model_type = file.get("model_type")
    fields: dict[str, Any] = {}
    warnings = []
    names = (("image_size", "image_size"), ("patch_size", "patch_size"), ("num_attention_heads", "num_heads"))
    for key, field in names:
        if key in file:
            fields[field] = file[key]
    if file.get("hidden_act") in ACTIVATIONS:
        fields["act"] = ACTIVATIONS[file["hidden_act"]]
    elif "hidden_act" in file:
        warnings.append(f"config.json: hidden_act {file['hidden_act']!r} is not known")
    if "layer_norm_eps" in file:
        fields["norm_eps"] = float(file["layer_norm_eps"])
    elif model_type in _EPS:
        fields["norm_eps"] = _EPS[model_type]
        warnings.append(
            f"config.json has no layer_norm_eps: {_CLASSES[model_type]}'s default {_EPS[model_type]} is used"
        )
    if file.get("pooler_act", "tanh") != "tanh":
        warnings.append(f"config.json: pooler_act {file['pooler_act']!r} is not tanh")
    return Stated(fields, "config.json", tuple(warnings))


def _model_type(config: ViTConfig, passport: Passport | None) -> str:
    stated = str(passport.sidecars.get("config.json", {}).get("model_type", "")) if passport else ""
    if config.distilled:
        return "deit"
    if stated in _CLASSES and not (stated == "vit_mae" and config.num_classes):
        return stated
    return "vit"


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """config.json as transformers writes it; what an earlier one said beyond the config is kept."""
    model_type = _model_type(config, passport)
    kept = (
        dict(passport.sidecars.get("config.json", {}))
        if passport and "model_type" in passport.sidecars.get("config.json", {})
        else {}
    )
    head = "ForImageClassification" + ("WithTeacher" if config.pool == "cls_dist" else "")
    activations = {act: name for name, act in reversed(ACTIVATIONS.items())}
    height, width = config.image_size
    file: dict[str, Any] = {
        **kept,
        "architectures": [_CLASSES[model_type] + (head if config.num_classes else "Model")],
        "model_type": model_type,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": activations[config.act],
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size[0] if config.patch_size[0] == config.patch_size[1] else list(config.patch_size),
        "num_channels": config.in_chans,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if config.representation_dim:
        file |= {"pooler_output_size": config.representation_dim, "pooler_act": "tanh"}
    if config.num_classes and len(kept.get("id2label", {})) != config.num_classes:
        names = passport.labels if passport and isinstance(passport.labels, list) else []
        labels = names if len(names) == config.num_classes else [f"LABEL_{i}" for i in range(config.num_classes)]
        file["id2label"] = {str(index): label for index, label in enumerate(labels)}
        file["label2id"] = {label: index for index, label in enumerate(labels)}
    found: Sidecars = {"config.json": file}
    if passport and "preprocessor_config.json" in passport.sidecars:
        found["preprocessor_config.json"] = passport.sidecars["preprocessor_config.json"]
    elif passport and passport.preprocess:
        found["preprocessor_config.json"] = hf_processor(passport.preprocess)
    return found


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    """Models with a head have a root; bare models have none."""
    root = ("deit." if config.distilled else "vit.") if config.num_classes else ""
    return next(d for d in dialects if d.variables["root"] == root and d.variables["layer"].startswith(root))


FORMATS = (
    Format(
        name="hf",
        project="Hugging Face transformers",
        rules=RULES,
        drops=(
            Drop(r"decoder\..*", "decoder of the masked-image pre-training"),
            Drop(r".*\.position_ids", "position_ids: a counter, not a weight"),
        ),
        dialects=tuple(_dialect(spelling, *roots) for spelling in _SPELLINGS for roots in _ROOTS),
        conventions={"act": "gelu", "norm_eps": 1e-12, "resize": "bicubic"},
        requires=(
            Requirement("class_token", lambda c: c.class_token, "its ViT always has a class token"),
            Requirement("pool", lambda c: c.pool in ("cls", "cls_dist"), "its classifier reads the class token"),
            Requirement("qkv_bias", lambda c: c.qkv_bias != "qv", "it has all attention biases or none"),
            Requirement("patch_bias", lambda c: c.patch_bias, "its patch embedding always has a bias"),
            Requirement("ffn", lambda c: c.ffn == "mlp", "it has a plain MLP"),
            Requirement("pos_embed", lambda c: c.pos_embed == "learned", "it has a learned position table only"),
            Requirement("pos_embed_prefix", lambda c: c.pos_embed_prefix, "its position table has a class row"),
            Requirement("final_norm", lambda c: c.final_norm == "before", "it norms all tokens before pooling"),
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
