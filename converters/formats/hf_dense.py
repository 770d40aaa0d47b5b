"""Image encoders of Hugging Face's models for detection and pose estimation that no other model has: YOLOS and ViTPose.

They are read, and written back under the names of their models.
Source: transformers/models/{yolos,vitpose_backbone}/modeling_*.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from vit_hub.converters.casting import cast, floats
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, Reading, rule, weight_and_bias
from vit_hub.converters.tensors import Array, LazyTensor, concat, split
from vit_hub.errors import CheckpointError
from vit_hub.model.config import ViTConfig

_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 12}
_YOLOS = (hf.ModelType("yolos", "Yolos", _DEFAULTS),)
_POSE = (hf.ModelType("vitpose_backbone", "VitPoseBackbone", _DEFAULTS, whole="vitpose"),)
_CONVENTIONS = {"act": "gelu", "norm_eps": 1e-12, "resize": "bicubic"}
_TABLE = "sized.position_table"
_PARTS = ("weight", "bias")
_EXPERT = re.compile(r"blocks\.\d+\.mlp\.expert\.(weight|bias)")
_OTHER_EXPERT = "expert for another dataset: not part of the image encoder of the first, COCO"
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
    *hf.VIT_BLOCK,
    hf.QKV_BIAS,
    *weight_and_bias("norm", "${root}layernorm"),
    *(rule(f"blocks.{{i}}.mlp.expert.{part}", f"${{layer}}.mlp.experts.0.{part}", carried=True) for part in _PARTS),
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
    values, stated = hf.read_config(raw, _POSE)
    fixed = {"pool": "none", "patch_padding": _PADDING, "pos_embed_prefix": False}
    warnings = list(stated.warnings)
    if any(".mlp.experts." in name for name in tensors):
        warnings.append(
            f"ViTPose+ has a part of its feed-forward layers for each of {values.get('num_experts', 'many')} datasets: "
            "that of the first (dataset_index 0, COCO) is read; keep_rest=True (--keep-rest) keeps the others"
        )
    return dataclasses.replace(stated, fields={**stated.fields, **fixed}, warnings=tuple(warnings))


def _adjust_pose(raw: RawCheckpoint, reading: Reading) -> None:
    """Add the first row of the position table to all others, and an expert's rows to the second linear layers.

    That is what the class does; what it is made of is kept to be written.
    """
    table = reading.tensors["pos_embed"]
    reading.tensors[_TABLE], reading.origin[_TABLE] = table, reading.origin["pos_embed"]
    reading.carried.append(_TABLE)
    reading.tensors["pos_embed"] = _with_first_row(table)
    for name in [name for name in reading.tensors if _EXPERT.fullmatch(name)]:
        shared = name.replace("expert", "fc2")
        try:
            reading.tensors[shared] = concat([reading.tensors[shared], reading.tensors[name]])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"tensor {', '.join(reading.origin[name])} does not fit fc2: {error}") from error
        reading.origin[shared] += reading.origin[name]


def _with_first_row(table: LazyTensor) -> LazyTensor:
    """Return the rows of the patches, each with the first row added."""

    def read() -> Array:
        values = floats(table)
        return np.asarray(values[:, 1:] + values[:, :1])

    dtype = "F64" if table.dtype == "F64" else "F32"
    return LazyTensor(dtype, (1, table.shape[1] - 1, table.shape[2]), read)


def _restore_pose(tensors: Mapping[str, LazyTensor], config: ViTConfig) -> dict[str, LazyTensor]:
    """Undo ``_adjust_pose``; a position table that has changed since gets a first row of zeros."""
    found = dict(tensors)
    for name in [name for name in found if _EXPERT.fullmatch(name)]:
        shared, count = name.replace("expert", "fc2"), found[name].shape[0]
        found[shared], found[name] = split(found[shared], (found[shared].shape[0] - count, count))
    if "pos_embed" not in found:
        return found
    table, stored = found["pos_embed"], found.pop(_TABLE, None)
    shape = (1, table.shape[1] + 1, table.shape[2])
    dtype = stored.dtype if stored else table.dtype
    rows = cast(table, dtype)

    def read() -> Array:
        if stored is not None and np.array_equal(_with_first_row(stored).read(), table.read()):
            return stored.read()
        values = rows.read()
        return np.concatenate((np.zeros_like(values[:, :1]), values), axis=1)

    found["pos_embed"] = LazyTensor(dtype, shape, read)
    return found


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
        drops=(Drop(r"${root}encoder\.layer\.\d+\.mlp\.experts\..*", _OTHER_EXPERT),),
        adjust=_adjust_pose,
        restore=_restore_pose,
        state=_pose_state,
        sidecars=_pose_sidecars,
        returned_only=True,
    ),
)
