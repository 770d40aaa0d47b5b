"""Image encoders of Hugging Face's models for detection and pose estimation that no other model has: YOLOS and ViTPose.

They are read, and written back under the names of their models.
Source: transformers/models/{yolos,vitpose_backbone}/modeling_*.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from vit_hub.converters.casting import floats
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Sidecars, Stated
from vit_hub.converters.rules.table import Reading, rule, weight_and_bias
from vit_hub.converters.tensors import Array, LazyTensor
from vit_hub.model.config import ViTConfig

_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 12}
_YOLOS = (hf.ModelType("yolos", "Yolos", _DEFAULTS),)
_POSE = (hf.ModelType("vitpose_backbone", "VitPoseBackbone", _DEFAULTS, whole="vitpose"),)
_CONVENTIONS = {"act": "gelu", "norm_eps": 1e-12, "resize": "bicubic"}
_TABLE = "sized.position_table"
_PADDING = 2  # fixed by the class

_YOLOS_RULES = (
    rule("cls_token", "${root}embeddings.cls_token"),
    rule("det_token", "${root}embeddings.detection_tokens"),
    *hf.VIT_PATCHES,
    rule("mid_pos_embed", "${root}encoder.mid_position_embeddings"),
    *hf.VIT_BLOCK,
    hf.QKV_BIAS,
    *weight_and_bias("norm", "${root}layernorm"),
    *weight_and_bias("pre_logits.fc", "${root}pooler.dense"),
)
_POSE_RULES = (
    *hf.VIT_PATCHES,
    rule(_TABLE, "${root}embeddings.position_embeddings", carried=True),
    *hf.VIT_BLOCK,
    hf.QKV_BIAS,
    *weight_and_bias("norm", "${root}layernorm"),
)


def _yolos_state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; without a pooler the model gives its tokens."""
    _, stated = hf.read_config(raw, _YOLOS)
    pooled = f"{dialect.variables['root']}pooler.dense.weight" in tensors
    return dataclasses.replace(stated, fields={**stated.fields, "pool": "cls" if pooled else "none"})


def _yolos_sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    extra = {
        "qkv_bias": config.qkv_bias,
        "num_detection_tokens": config.num_detection_tokens,
        "use_mid_position_embeddings": config.mid_pos_embed,
    }
    return hf.write_config(_YOLOS[0], config, passport, extra=extra, types=_YOLOS)


def _pose_state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json, and add what the class fixes."""
    _, stated = hf.read_config(raw, _POSE)
    fixed = {"pool": "none", "patch_padding": _PADDING, "pos_embed_prefix": False}
    return dataclasses.replace(stated, fields={**stated.fields, **fixed})


def _pose_refusal(raw: RawCheckpoint) -> str:
    """Refuse ViTPose+, whose feed-forward layers have parts for each dataset."""
    values = hf.tower_values(raw.sidecars)
    if values.get("model_type") in ("vitpose_backbone", "vitpose") and (values.get("num_experts") or 1) > 1:
        return f"config.json: num_experts={values['num_experts']} (one for each dataset, ViTPose+) is not supported"
    return ""


def _add_first_row(raw: RawCheckpoint, reading: Reading) -> None:
    """Add the first row of the position table to all others, as the class does; the table is kept to be written."""
    table = reading.tensors["pos_embed"]

    def read() -> Array:
        values = floats(table)
        return np.asarray(values[:, 1:] + values[:, :1])

    reading.tensors[_TABLE], reading.origin[_TABLE] = table, reading.origin["pos_embed"]
    reading.carried.append(_TABLE)
    dtype = "F64" if table.dtype == "F64" else "F32"
    reading.tensors["pos_embed"] = LazyTensor(dtype, (1, table.shape[1] - 1, table.shape[2]), read)


def _pose_sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    return hf.write_config(_POSE[0], config, passport, extra={"qkv_bias": config.qkv_bias}, types=_POSE)


def _pose_dialect(root: str) -> Dialect:
    names = {**hf.VIT_SPELLINGS[""], "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    return Dialect("", {"family": "vitpose", "root": root, "layer": root + names["layers"], **names})


FORMATS = (
    hf.transformers_format(
        _YOLOS,
        rules=_YOLOS_RULES,
        dialects=tuple(hf.vit_dialect("", "yolos", root, root) for root in ("vit.", "")),
        conventions=_CONVENTIONS,
        limits={**hf.VIT_LIMITS, "num_classes": 0},
        state=_yolos_state,
        sidecars=_yolos_sidecars,
        returned_only=True,
    ),
    hf.transformers_format(
        _POSE,
        rules=_POSE_RULES,
        dialects=tuple(_pose_dialect(root) for root in ("backbone.", "")),
        conventions={**_CONVENTIONS, "patch_padding": _PADDING},
        limits={**hf.VIT_LIMITS, "num_classes": 0, "class_token": False, "patch_padding": _PADDING},
        refuses=_pose_refusal,
        adjust=_add_first_row,
        state=_pose_state,
        sidecars=_pose_sidecars,
        returned_only=True,
    ),
)
