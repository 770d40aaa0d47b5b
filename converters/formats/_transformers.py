"""Shared by the formats of Hugging Face transformers: ``config.json`` in both directions, and names of ViT's blocks.

Source: transformers/configuration_utils.py and models/*/configuration_*.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated, rotary
from vit_hub.converters.rules.table import Drop, rule, weight_and_bias
from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig
from vit_hub.preprocessing.differences import differences
from vit_hub.preprocessing.labels import names_of, placeholders
from vit_hub.preprocessing.project_files import hf_processor, stated_preprocessing
from vit_hub.preprocessing.spec import Preprocessing

_FILE = "config.json"
# The first one that is there is about images, or about the frames of videos as about images.
_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")

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
# Keys of config.json for what tensors do not show, or only in part.
_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "depth",
    "layer_norm_eps": "norm_eps",
}


@dataclass(frozen=True)
class ModelType:
    """One model type of transformers.

    Attributes:
        name: its ``model_type`` in config.json.
        classes: the prefix of the names of its classes.
        defaults: class defaults of keys that a config.json may leave out and tensors do not show.
        whole: the model type of both towers, whose config.json holds that of this one as ``vision_config``.
        square: its class treats every position table as that of a square image.
    """

    name: str
    classes: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    whole: str = ""
    square: bool = False

    @property
    def project(self) -> str:
        """The project whose conventions its files follow."""
        return f"Hugging Face transformers' {self.classes}"


# save_pretrained writes the names of transformers 4; the modules of transformers 5 have others.
VIT_SPELLINGS: dict[str, dict[str, str]] = {
    "": {
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


def vit_dialect(spelling: str, family: str, root: str, layer_root: str) -> Dialect:
    """Return a dialect of ViT's names; the layers may have another root than the embeddings."""
    names = VIT_SPELLINGS[spelling]
    return Dialect(spelling, {"family": family, "root": root, "layer": layer_root + names["layers"], **names})


_QKV = tuple(f"${{layer}}.${{{part}}}" for part in "qkv")
ATTENTION = (
    rule("blocks.{i}.attn.qkv.weight", tuple(f"{name}.weight" for name in _QKV)),
    *weight_and_bias("blocks.{i}.attn.proj", "${layer}.${o}"),
)
VIT_BLOCK = (
    *weight_and_bias("blocks.{i}.norm1", "${layer}.layernorm_before"),
    *ATTENTION,
    *weight_and_bias("blocks.{i}.norm2", "${layer}.layernorm_after"),
    *weight_and_bias("blocks.{i}.mlp.fc1", "${layer}.${fc1}"),
    *weight_and_bias("blocks.{i}.mlp.fc2", "${layer}.${fc2}"),
)
QKV_BIAS = rule("blocks.{i}.attn.qkv.bias", tuple(f"{name}.bias" for name in _QKV))
QV_BIAS = (
    rule("blocks.{i}.attn.q_bias", f"{_QKV[0]}.bias"),
    rule("blocks.{i}.attn.v_bias", f"{_QKV[2]}.bias"),
)
_CLIP_LAYER = "${root}encoder.layers.{i}"
# CLIP, SigLIP and SigLIP 2.
CLIP_BLOCK = (
    *weight_and_bias("blocks.{i}.norm1", f"{_CLIP_LAYER}.layer_norm1"),
    *(
        rule(f"blocks.{{i}}.attn.qkv.{end}", tuple(f"{_CLIP_LAYER}.self_attn.{part}_proj.{end}" for part in "qkv"))
        for end in ("weight", "bias")
    ),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_CLIP_LAYER}.self_attn.out_proj"),
    *weight_and_bias("blocks.{i}.norm2", f"{_CLIP_LAYER}.layer_norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_CLIP_LAYER}.mlp.fc1"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_CLIP_LAYER}.mlp.fc2"),
)
MASK_TOKEN = rule("mask_token", "${root}embeddings.mask_token", "1 1 d -> 1 d", carried=True)
VIT_PATCHES = (
    rule("pos_embed", "${root}embeddings.position_embeddings"),
    *weight_and_bias("patch_embed.proj", "${root}embeddings.patch_embeddings.projection"),
)
POSITION_IDS = Drop(r"(.*\.)?position_ids", "position_ids: a counter, not a weight")

VIT_LIMITS = {"qkv_bias": (True, False), "patch_bias": True, "pos_embed": "learned", "final_norm": "before"}
# Coordinates are counted in turns between the borders of the image (arXiv 2508.10104, section 3.2).
DINO_ROPE: dict[str, Any] = {"theta": 100.0, "coordinates": "centered", "pairs": "half"}
DINO_ROTARY = rotary(DINO_ROPE, "it has rotary positions, centred, rotating the halves of a head")
SQUARE = Requirement(
    "image_size",
    lambda c: c.image_size[0] == c.image_size[1] and c.patch_size[0] == c.patch_size[1],
    "its images and patches are square",
)


def _parts(sidecars: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json, and the part of it for the image tower."""
    whole = dict(sidecars.get(_FILE, {}))
    return whole, dict(_tower(whole))


# Where the config of a larger model has that of its image encoder.
_TOWERS = ("vision_config", "backbone_config", "encoder", "vlm_config", "thinker_config", "image_config")


# Every image encoder's config has one of these keys.
_OF_IMAGES = ("patch_size", "image_size", "crop_size", "spatial_patch_size")


def _tower(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = next((config[key] for key in _TOWERS if isinstance(config.get(key), Mapping)), None)
    return config if inner is None else _tower(inner)


def tower_values(sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the part of config.json for the image tower."""
    return _parts(sidecars)[1]


def model_types(sidecars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the model types that config.json names, of the whole model and of its image tower."""
    return list(dict.fromkeys(str(part["model_type"]) for part in _parts(sidecars) if part.get("model_type")))


def stated_type(sidecars: Mapping[str, Mapping[str, Any]], types: Sequence[ModelType]) -> ModelType | None:
    """Return the model type that a config.json names for the whole model or its image tower."""
    whole, tower = _parts(sidecars)
    names = (tower.get("model_type"), whole.get("model_type"))
    return next((kind for kind in types for name in names if name in (kind.name, kind.whole or kind.name)), None)


# Model types whose tensors have the names of others', all or most of them, though they compute other outputs.
_OTHERS = {
    "paddleocr_vl_vision": "it has SigLIP's tensors, and rotary positions beside the table",
    "phi4_multimodal_vision": "it has SigLIP's tensors, and computes other outputs",
    "pixio": "it has several class tokens, whose mean is its output",
    "rf_detr_dinov2": "it has DINOv2's tensors, and windows of tokens",
    "sam3_vit_model": "it has rotary positions of its own in windows and in blocks without",
    "timesformer": "its attention is divided over time and space",
    "video_llama_3_vision": "it has SigLIP's tensors, and rotary positions",
    "vivit": "it has a learned table of positions in time and space",
    "xclip_vision_model": "its frames exchange messages",
}


def refusal(raw: RawCheckpoint) -> str:
    """Return why the model type in config.json is not read, though its tensors have known names; empty if it is."""
    whole, tower = _parts(raw.sidecars)
    named = (str(part.get("model_type")) for part in (tower, whole))
    found = next((name for name in named if name in _OTHERS), "")
    return f"{_FILE}: the model type {found!r} is not supported: {_OTHERS[found]}" if found else ""


def names_model_type(raw: RawCheckpoint, types: Sequence[ModelType]) -> int:
    """Return 1 if config.json names one of the model types, -1 if it names another, 0 if it names none."""
    if not raw.sidecars.get(_FILE, {}).get("model_type"):
        return 0
    return 1 if stated_type(raw.sidecars, types) else -1


def transformers_format(types: Sequence[ModelType], **options: Any) -> Format:
    """Return the format of some model types, of which the first is its project.

    Args:
        types: the model types; by default config.json is read for them, and is evidence of them.
        options: as for :class:`Format`.
    """
    common = {
        "evidence": lambda raw, prefix: names_model_type(raw, types),
        "state": lambda raw, tensors, dialect: read_config(raw, types)[1],
        "refuses": refusal,
    }
    return Format(name="hf", project=types[0].project, **{**common, **options})


def rooted(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    """Return the first dialect with a root for a model with a classifier, the first without one for a bare model."""
    return next(d for d in dialects if bool(d.variables["root"]) == bool(config.num_classes))


def tower_dialects(family: str) -> tuple[Dialect, ...]:
    """Return the dialects of image towers that may stand beside a text tower."""
    roots = (("", "vision_model."), ("v5", ""), ("v5", "vision_model."))
    return tuple(Dialect(name, {"family": family, "root": root}) for name, root in roots)


def tower_dialect(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    """Return the dialect of a tower: transformers 5 leaves the root out where nothing stands beside it."""
    alone = not (config.projection_dim or config.num_classes)
    return next((d for d in dialects if d.name and bool(d.variables["root"]) != alone), dialects[0])


def check_qkv_bias(raw: RawCheckpoint, values: Mapping[str, Any], *, key: bool) -> None:
    """Check that there are biases of queries, keys and values in a combination that models have.

    Args:
        raw: the source.
        values: the values of its config.json.
        key: the class default of ``key_bias``; those of the others are True.

    Raises:
        ConfigError: they have biases in another combination.
    """
    query, keys, value = (values.get(f"{part}_bias", key or part != "key") for part in ("query", "key", "value"))
    if query != value or (keys and not query):
        raise ConfigError(
            f"{raw.path}: qkv_bias: config.json says query_bias={query}, key_bias={keys}, value_bias={value}: "
            f"models have biases on all three, on queries and values, or on none"
        )


def rope_theta(values: Mapping[str, Any], default: float) -> float:
    """Return the base of rotary frequencies in a config.json, of transformers 4 or 5."""
    parameters = values.get("rope_parameters")
    found = (parameters if isinstance(parameters, Mapping) else values).get("rope_theta")
    return float(found) if isinstance(found, (int, float)) else default


def read_config(raw: RawCheckpoint, types: Sequence[ModelType]) -> tuple[dict[str, Any], Stated]:
    """Return the values of config.json for the image tower, and the config fields that they state.

    Missing keys get the default of their class, as in transformers, with a warning.

    Raises:
        ConfigError: unsupported activation.
    """
    whole, values = _parts(raw.sidecars)
    kind, warnings = stated_type(raw.sidecars, types), []
    if kind is None and values.get("model_type") and not any(key in values for key in _OF_IMAGES):
        warnings.append(
            f"{_FILE} names the model type {values['model_type']!r} and has no part for its image encoder: read as "
            f"{types[0].classes}, whose tensors have the same names, with what that has by default"
        )
        values = {}
    elif kind is None and values.get("model_type"):
        warnings.append(
            f"{_FILE} names the model type {values['model_type']!r}, which is not known here: read as "
            f"{types[0].classes}, whose tensors have the same names, though it may compute other outputs"
        )
    if kind:
        missing = {key: default for key, default in kind.defaults.items() if values.get(key) is None}
        warnings = [f"{_FILE} has no {key}: {kind.classes}'s default {value} is used" for key, value in missing.items()]
        values |= missing
    fields = {name: values[key] for key, name in _FIELDS.items() if values.get(key) is not None}
    if isinstance(fields.get("norm_eps"), int):
        fields["norm_eps"] = float(fields["norm_eps"])
    act = str(values.get("hidden_act"))
    if act in ACTIVATIONS:
        fields["act"] = ACTIVATIONS[act]
    elif "hidden_act" in values:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"{raw.path}: {_FILE}: hidden_act {act!r} is not supported", hint=f"supported: {known}")
    size = fields.get("image_size")
    if kind and kind.square and isinstance(size, (list, tuple)) and len(set(size)) > 1:
        warnings.append(
            f"{_FILE}: image_size {list(size)} is not square: transformers' {kind.classes} treats every position table "
            f"as that of a square image, and so computes other outputs"
        )
    return values, Stated(fields, _FILE if whole else "transformers' classes", tuple(warnings))


def write_config(
    kind: ModelType,
    config: ViTConfig,
    passport: Passport | None,
    *,
    extra: Mapping[str, Any],
    types: Sequence[ModelType] = (),
    head: str = "",
) -> Sidecars:
    """Return config.json with every key that transformers writes; keys of an earlier one beyond the config are kept.

    Keys that change nothing in evaluation have the defaults of their class, unless an earlier file states them.
    A model with a classifier whose type is one of two towers has its config nested in that of both.

    Args:
        kind: the model type to write.
        config: the model.
        passport: holds the earlier config files.
        extra: keys beyond those of all model types; None leaves one out.
        types: the model types with the same keys, whose earlier config.json is kept; only ``kind`` if empty.
        head: the end of the class name, ``ForImageClassification`` or ``Model`` if empty.
    """
    nested = bool(config.num_classes) and kind.whole in _all_defaults()
    head = head or ("ForImageClassification" if config.num_classes else "Model")
    sidecars = passport.sidecars if passport else {}
    earlier, tower = _parts(sidecars) if stated_type(sidecars, types or (kind,)) else ({}, {})
    (height, width), (p, q) = config.image_size, config.patch_size
    if tower.get("num_hidden_layers") != config.depth:
        tower = {key: value for key, value in tower.items() if key not in _stages(config.depth)}
    act = next(name for name, meaning in ACTIVATIONS.items() if meaning == config.act)
    earlier_act = str(tower.get("hidden_act"))
    file: dict[str, Any] = {
        **_defaults(kind.name, config),
        **tower,
        "model_type": kind.name,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": earlier_act if ACTIVATIONS.get(earlier_act) == config.act else act,
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": p if p == q else [p, q],
        "num_channels": config.in_chans,
        **extra,
    }
    file = {key: value for key, value in file.items() if value is not None or key not in extra}
    if nested:
        whole = {**_defaults(kind.whole, config), **(earlier if "vision_config" in earlier else {})}
        file = {**whole, "model_type": kind.whole, "vision_config": file}
    file["architectures"] = [kind.classes.removesuffix("Vision" * nested) + head]
    if config.num_classes:
        names = names_of(passport.labels if passport else None, config.num_classes)
        file |= _labels(file, names or placeholders(config.num_classes))
    found: Sidecars = {_FILE: file}
    preprocess = Preprocessing.from_dict(passport.preprocess) if passport and passport.preprocess else None
    processors = {name: dict(sidecars[name]) for name in _PROCESSORS if name in sidecars}
    if processors and (preprocess is None or _agrees(*next(iter(processors.items())), preprocess)):
        found |= processors
    elif preprocess:
        found[_PROCESSORS[0]] = hf_processor(preprocess)
    return found


def _agrees(name: str, processor: Mapping[str, Any], preprocess: Preprocessing) -> bool:
    """Return whether an image processor's config says this preprocessing, or says what has no words here."""
    stated, _ = stated_preprocessing({name: processor})
    return stated is None or not differences(preprocess, stated.with_image_size(preprocess.image_size))


def _labels(file: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the keys of config.json about class names; those of an earlier one if it has the same names."""
    numbered = {str(index): name for index, name in enumerate(names)}
    count = {"num_labels": len(names)} if "num_labels" in file else {}
    kept = {key: file[key] for key in ("id2label", "label2id") if isinstance(file.get(key), Mapping)}
    if len(kept) == 2 and {str(number): name for number, name in kept["id2label"].items()} == numbered:
        return {**kept, **count}
    return {"id2label": numbered, "label2id": {name: index for index, name in enumerate(names)}, **count}


def _defaults(name: str, config: ViTConfig) -> dict[str, Any]:
    """Return the keys of a model type with the defaults of its class at the size of a model."""
    found = dict(_all_defaults().get(name, {}))
    if "pooler_output_size" in found:
        found["pooler_output_size"] = config.embed_dim
    return {**found, **_stages(config.depth)} if "stage_names" in found else found


def _stages(depth: int) -> dict[str, Any]:
    """Return the keys with which a class tells what it gives as a backbone: the tokens after its last block."""
    names = ["stem", *(f"stage{block}" for block in range(1, depth + 1))]
    return {"stage_names": names, "out_features": names[-1:], "out_indices": [depth]}


@cache
def _all_defaults() -> dict[str, dict[str, Any]]:
    """Return model type -> key -> value, as tools/transformers_defaults.py wrote them."""
    content = Path(__file__).with_name("_transformers_defaults.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(content)["model_types"]
    return found
