"""keras-hub: ViT, DeiT, DINOv2, DINOv3, and the image towers of CLIP and SigLIP; presets and files of weights.

A preset is a folder with ``config.json``, the backbone's weights, and for a classifier ``task.json`` and a file of its
own layers. Keras numbers layers and variables in the order in which they are made.
Source: keras-hub 0.32, keras_hub/src/models/{vit,deit,dinov2,dinov3,clip,siglip}.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from vit_hub.converters.casting import floats
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats._transformers import DINO_ROPE, DINO_ROTARY
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import (
    SQUARE_IMAGES,
    SQUARE_PATCHES,
    Dialect,
    Format,
    Requirement,
    Sidecars,
    Stated,
)
from vit_hub.converters.rules.table import Reading, Rule, rule
from vit_hub.converters.tensors import Array, LazyTensor, from_array
from vit_hub.errors import CheckpointError, ConfigError
from vit_hub.model.config import ViTConfig
from vit_hub.model.resample import axis_matrix, narrow_cubic_matrix
from vit_hub.preprocessing.project_files import keras_converter
from vit_hub.preprocessing.spec import Preprocessing

_CONFIG, _TASK, _PREPROCESSOR, _CONVERTER = "config.json", "task.json", "preprocessor.json", "image_converter.json"
_MODEL_FILE, _TASK_FILE = "model.weights.h5:", "task.weights.h5:"
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_approximate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_EPSILON = 1e-6
_DTYPE = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}


def _snake(name: str) -> str:
    """Return Keras' name of a class in files."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


@dataclass(frozen=True)
class _Kind:
    """A backbone of keras-hub, or an image tower.

    Attributes:
        family: the folder of its module, and ``title`` the beginning of its classes' names.
        name: its class.
        whole: the class of both towers, whose config.json holds that of this one as ``vision_encoder``.
        keys: the entries of its config for a model, those of every backbone aside.
        pools: it has a class of classifiers.
    """

    family: str
    title: str
    name: str
    keys: Callable[[ViTConfig, Mapping[str, Any]], Mapping[str, Any]]
    whole: str = ""
    pools: bool = False

    def entry(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a class with its config as Keras serialises them."""
        module = f"keras_hub.src.models.{self.family}.{self.family}_{_snake(name.removeprefix(self.title))}"
        common = {"name": _snake(name), "trainable": True, "dtype": _DTYPE}
        registered = f"keras_hub>{name}"
        return {"module": module, "class_name": name, "config": {**common, **config}, "registered_name": registered}


def _stated(sidecars: Mapping[str, Any], kind: _Kind) -> Mapping[str, Any]:
    """Return the config of a backbone or tower; empty if config.json is missing or another class's."""
    file = sidecars.get(_CONFIG, {})
    config = file.get("config", {})
    if kind.whole and file.get("class_name") == kind.whole:
        config = config.get("vision_encoder", {}).get("config", {})
    elif file.get("class_name") != kind.name:
        return {}
    return config if isinstance(config, Mapping) else {}


def _evidence(kind: _Kind, raw: RawCheckpoint, prefix: str) -> int:
    named = raw.sidecars.get(_CONFIG, {}).get("class_name")
    return 0 if named is None else 1 if named in (kind.name, kind.whole) else -1


def _fields(kind: _Kind, raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Return what config.json and the shapes of attention kernels state.

    Raises:
        ConfigError: unsupported activation.
    """
    values = _stated(raw.sidecars, kind)
    names = {"patch_size": "patch_size", "num_heads": "num_heads", "layer_norm_epsilon": "norm_eps"}
    names |= {"layer_norm_eps": "norm_eps"}
    fields = {ours: values[key] for key, ours in names.items() if key in values}
    shape = values.get("image_shape")
    if isinstance(shape, (list, tuple)) and len(shape) == 3:
        fields["image_size"] = tuple(shape[:2])
    act = values.get("intermediate_activation", values.get("hidden_activation"))
    if act is not None:
        if act not in _ACTIVATIONS:
            raise ConfigError(f"{raw.path}: {_CONFIG}: activation {act!r} is not supported")
        fields["act"] = _ACTIVATIONS[act]
    query = next((t for name, t in tensors.items() if name.endswith("query_dense/vars/0")), None)
    if query is not None and len(query.shape) == 3:
        fields["num_heads"] = query.shape[1]
    return fields


def _state(kind: _Kind, raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json."""
    return Stated(_fields(kind, raw, tensors), f"{_CONFIG} and shapes of the original tensors")


def _siglip_state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json.

    Raises:
        ConfigError: an epsilon of the blocks that the norm after them, which has its own, does not share.
    """
    epsilon = _stated(raw.sidecars, _SIGLIP).get("layer_norm_epsilon", _EPSILON)
    if epsilon != _EPSILON:
        raise ConfigError(
            f"{raw.path}: {_CONFIG}: layer_norm_epsilon {epsilon} is not supported: the last norm of keras-hub's class "
            f"has {_EPSILON} whatever it says"
        )
    return _state(_SIGLIP, raw, tensors, dialect)


def _classifier_state(kind: _Kind, raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json, and task.json for a classifier."""
    fields, warnings = _fields(kind, raw, tensors), []
    embedding = "vi_t_patching_and_embedding" if kind.family == "vit" else "dei_t_embeddings"
    class_token = f"{dialect.variables['model']}layers/{embedding}/vars/0" in tensors
    fields["pool"] = "cls" if class_token else "avg"
    task = raw.sidecars.get(_TASK, {}).get("config", {})
    if f"{dialect.variables['head']}/vars/0" in tensors and task:
        pooling = task.get("pooling", "token")
        if pooling == "gap":
            fields |= {"pool": "avg", "pool_prefix": class_token}
        elif pooling == "token":
            fields["pool"] = "cls" if class_token else "first"
        else:
            raise ConfigError(
                f"{raw.path}: {_TASK}: pooling {pooling!r} is not supported", hint="supported: token, gap"
            )
        if task.get("activation") not in (None, "linear"):
            warnings.append(
                f"{_TASK}: keras-hub's classifier returns {task['activation']} of its logits, this one the logits"
            )
    return Stated(fields, f"{_CONFIG}, {_TASK} and shapes of the original tensors", tuple(warnings))


def _sidecars(kind: _Kind, config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return the config files of a preset; keys of earlier ones that change nothing in evaluation are kept."""
    earlier = passport.sidecars if passport else {}
    known = _stated(earlier, kind)
    file = kind.entry(kind.name, {**known, **kind.keys(config, known)})
    if earlier.get(_CONFIG, {}).get("class_name") == kind.whole and kind.whole:
        both = dict(earlier[_CONFIG]["config"])
        file = kind.entry(kind.whole, {**both, "vision_encoder": {**both["vision_encoder"], "config": file["config"]}})
    found: Sidecars = {_CONFIG: file}
    preprocess = Preprocessing.from_dict(passport.preprocess) if passport and passport.preprocess else None
    converter = earlier.get(_CONVERTER)
    if converter is None and preprocess is not None and not kind.whole:
        converter = kind.entry(f"{kind.title}ImageConverter", keras_converter(preprocess))
    if converter is not None:
        found[_CONVERTER] = converter
    if kind.pools and config.num_classes:
        found |= _task(kind, config, earlier, file, converter)
    return found


def _task(
    kind: _Kind, config: ViTConfig, earlier: Mapping[str, Any], backbone: Mapping[str, Any], converter: Any
) -> Sidecars:
    """Return the config files of a classifier."""
    name = f"{kind.title}ImageClassifier"
    found: Sidecars = {}
    preprocessor = earlier.get(_PREPROCESSOR)
    if preprocessor is None and converter is not None:
        about = {"image_converter": converter, "config_file": _PREPROCESSOR}
        preprocessor = kind.entry(f"{name}Preprocessor", about)
    if preprocessor is not None:
        found[_PREPROCESSOR] = preprocessor
    known = earlier.get(_TASK, {}).get("config", {}) if earlier.get(_TASK, {}).get("class_name") == name else {}
    values: dict[str, Any] = {
        "activation": None,
        "dropout": 0.0,
        **known,
        "backbone": backbone,
        "preprocessor": preprocessor,
        "name": _snake(name),
        "num_classes": config.num_classes,
        "pooling": "gap" if config.pool == "avg" else "token",
    }
    if kind.family == "vit":
        values["intermediate_dim"] = config.representation_dim or None
    task = kind.entry(name, values)
    for key in ("trainable", "dtype"):
        if key not in known:
            del task["config"][key]
    return {**found, _TASK: task}


def _norm(canonical: str, path: str) -> tuple[Rule, ...]:
    return rule(f"{canonical}.weight", f"{path}/vars/0"), rule(f"{canonical}.bias", f"{path}/vars/1")


def _dense(canonical: str, path: str) -> tuple[Rule, ...]:
    return rule(f"{canonical}.weight", f"{path}/vars/0", "i o -> o i"), rule(f"{canonical}.bias", f"{path}/vars/1")


def _patches(path: str) -> tuple[Rule, ...]:
    return (
        rule("patch_embed.proj.weight", f"{path}/vars/0", "p q c d -> d c p q"),
        rule("patch_embed.proj.bias", f"{path}/vars/1"),
    )


def _attention(path: str) -> tuple[Rule, ...]:
    parts = tuple(f"{path}/{part}_dense/vars" for part in ("query", "key", "value"))
    return (
        rule("blocks.{i}.attn.qkv.weight", tuple(f"{part}/0" for part in parts), "d h e -> (h e) d"),
        rule("blocks.{i}.attn.qkv.bias", tuple(f"{part}/1" for part in parts), "h e -> (h e)"),
        rule("blocks.{i}.attn.proj.weight", f"{path}/output_dense/vars/0", "h e d -> d (h e)"),
        rule("blocks.{i}.attn.proj.bias", f"{path}/output_dense/vars/1"),
    )


def _block(path: str, norm1: str, attention: str, norm2: str, fc1: str, fc2: str) -> tuple[Rule, ...]:
    return (
        *_norm("blocks.{i}.norm1", f"{path}/{norm1}"),
        *_attention(f"{path}/{attention}"),
        *_norm("blocks.{i}.norm2", f"{path}/{norm2}"),
        *_dense("blocks.{i}.mlp.fc1", f"{path}/{fc1}"),
        *_dense("blocks.{i}.mlp.fc2", f"{path}/{fc2}"),
    )


_LAYER_SCALE = tuple(rule(f"blocks.{{i}}.ls{n}.gamma", f"${{layer}}{{_i}}/layer_scale{n}/vars/0") for n in (1, 2))
_TABLE = "n d -> 1 n d"
_HEAD = (*_dense("pre_logits.fc", "${pre}"), *_dense("head", "${head}"))
_VIT_EMBEDDING, _VIT_ENCODER = "${model}layers/vi_t_patching_and_embedding", "${model}layers/vi_t_encoder"
_VIT_RULES = (
    rule("cls_token", f"{_VIT_EMBEDDING}/vars/0"),
    *_patches(f"{_VIT_EMBEDDING}/patch_embedding"),
    rule("pos_embed", f"{_VIT_EMBEDDING}/position_embedding/vars/0", _TABLE),
    *_block(
        f"{_VIT_ENCODER}/encoder_layers/vi_t_encoder_block{{_i}}",
        "layer_norm_1",
        "mha",
        "layer_norm_2",
        "mlp/dense_1",
        "mlp/dense_2",
    ),
    *_norm("norm", f"{_VIT_ENCODER}/layer_norm"),
    *_HEAD,
)
_DEIT_EMBEDDING, _DEIT_ENCODER = "${model}layers/dei_t_embeddings", "${model}layers/dei_t_encoder"
_DEIT_RULES = (
    rule("cls_token", f"{_DEIT_EMBEDDING}/vars/0"),
    rule("dist_token", f"{_DEIT_EMBEDDING}/vars/1"),
    rule("pos_embed", f"{_DEIT_EMBEDDING}/vars/2"),
    *_patches(f"{_DEIT_EMBEDDING}/patch_embedding"),
    *_block(
        f"{_DEIT_ENCODER}/encoder_layers/dei_t_encoder_block{{_i}}",
        "layer_norm_1",
        "mha",
        "layer_norm_2",
        "mlp/dense",
        "output_layer/dense",
    ),
    *_norm("norm", f"{_DEIT_ENCODER}/layer_norm"),
    *_HEAD,
)
_TOWER = "${model}layers"


def _numbered_table(path: str) -> tuple[Rule, ...]:
    """Return the rules of a table whose rows are read by stored numbers: it is kept where these are no mere count."""
    return rule("pos_embed", path, _TABLE), rule("sized.position_table", path, carried=True)


def _keep_table(reading: Reading, table: LazyTensor) -> None:
    """Keep the stored position table to be written back, where the model computes with another."""
    reading.tensors["sized.position_table"] = table
    reading.carried.append("sized.position_table")
    reading.origin["sized.position_table"] = reading.origin["pos_embed"]


def _apply_numbers(raw: RawCheckpoint, reading: Reading) -> None:
    """Take the rows of the position table in the order of the stored numbers, which the model computes with."""
    table, stored = reading.tensors.get("pos_embed"), reading.tensors.get("sized.position_ids")
    if table is None or stored is None or math.prod(stored.shape) != table.shape[1]:
        return
    numbers = stored.read().reshape(-1)
    if np.array_equal(numbers, np.arange(table.shape[1])):
        return
    if numbers.dtype.kind != "i" or numbers.min() < -table.shape[1] or numbers.max() >= table.shape[1]:
        raise CheckpointError(f"the stored numbers of positions are not rows of the table of {table.shape[1]}")
    _keep_table(reading, table.reshape(table.shape[1:]))
    reading.tensors["pos_embed"] = LazyTensor(table.dtype, table.shape, lambda: table.read()[:, numbers])


_CLIP_RULES = (
    rule("cls_token", f"{_TOWER}/clip_vision_embedding/vars/0", "d -> 1 1 d"),
    rule("sized.position_ids", f"{_TOWER}/clip_vision_embedding/vars/1", carried=True),
    *_patches(f"{_TOWER}/clip_vision_embedding/patch_embedding")[:1],
    *_numbered_table(f"{_TOWER}/clip_vision_embedding/position_embedding/vars/0"),
    *_norm("norm_pre", f"{_TOWER}/layer_normalization"),
    *_block(f"{_TOWER}/clip_encoder_layer{{_i}}", "layer_norm_1", "attention", "layer_norm_2", "dense_1", "dense_2"),
    *_norm("norm", f"{_TOWER}/layer_normalization_1"),
    rule("projection.weight", "layers/dense/vars/0", "i o -> o i"),
)
_POOLING = f"{_TOWER}/sig_lip_multi_head_attention_pooling"
_QUERY, _KEY, _VALUE = (f"{_POOLING}/attention/{part}_dense/vars" for part in ("query", "key", "value"))
_SIGLIP_RULES = (
    rule("sized.position_ids", f"{_TOWER}/sig_lip_vision_embedding/vars/0", carried=True),
    *_patches(f"{_TOWER}/sig_lip_vision_embedding/patch_embedding"),
    *_numbered_table(f"{_TOWER}/sig_lip_vision_embedding/position_embedding/vars/0"),
    *_block(f"{_TOWER}/sig_lip_encoder_layer{{_i}}", "layer_norm1", "self_attn", "layer_norm2", "mlp/fc1", "mlp/fc2"),
    *_norm("norm", f"{_TOWER}/layer_normalization"),
    rule("attn_pool.latent", f"{_POOLING}/vars/0"),
    rule("attn_pool.q.weight", f"{_QUERY}/0", "d m e -> (m e) d"),
    rule("attn_pool.q.bias", f"{_QUERY}/1", "m e -> (m e)"),
    rule("attn_pool.kv.weight", (f"{_KEY}/0", f"{_VALUE}/0"), "d m e -> (m e) d"),
    rule("attn_pool.kv.bias", (f"{_KEY}/1", f"{_VALUE}/1"), "m e -> (m e)"),
    rule("attn_pool.proj.weight", f"{_POOLING}/attention/output_dense/vars/0", "m e d -> d (m e)"),
    rule("attn_pool.proj.bias", f"{_POOLING}/attention/output_dense/vars/1"),
    *_norm("attn_pool.norm", f"{_POOLING}/layer_norm"),
    *_dense("attn_pool.mlp.fc1", f"{_POOLING}/mlp/fc1"),
    *_dense("attn_pool.mlp.fc2", f"{_POOLING}/mlp/fc2"),
)


def _dino_rules(family: str, variables: Sequence[str], block: tuple[Rule, ...], mask: str = "") -> tuple[Rule, ...]:
    """Return the rules of DINOv2 or DINOv3, whose embedding has these variables in this order."""
    embedding = f"layers/{family}_embedding"
    rules = {
        "cls": rule("cls_token", "{}"),
        "mask": rule("mask_token", "{}", mask, carried=True),
        "registers": rule("reg_token", "{}"),
        # Computed from the table when a file is loaded.
        "interpolated": rule("sized.interpolated", "{}", carried=True),
        "table": rule("pos_embed", "{}"),
        "original": rule("sized.position_table", "{}", carried=True),
    }
    places = {name: f"{embedding}/vars/{n}" for n, name in enumerate(variables)}
    if "table" in places:
        places["original"] = places["table"]
    return (
        *(dataclasses.replace(rules[name], foreign=(place,)) for name, place in places.items()),
        *_patches(f"{embedding}/patch_embeddings/projection"),
        *block,
        *_LAYER_SCALE,
        *_norm("norm", "layers/layer_normalization"),
    )


_DINOV2_BLOCK = _block("${layer}{_i}", "norm1", "attention/attention", "norm2", "mlp/${fc1}", "mlp/${fc2}")
_DINOV3_QKV = tuple(f"${{layer}}{{_i}}/attention/{part}_dense/vars" for part in ("query", "key", "value"))
_GATE = "${layer}/mlp/gate_proj/vars/0"
_DINOV3_BLOCK = (
    *_norm("blocks.{i}.norm1", "${layer}{_i}/norm1"),
    rule("blocks.{i}.attn.qkv.weight", tuple(f"{part}/0" for part in _DINOV3_QKV), "i o -> o i"),
    rule("blocks.{i}.attn.qkv.bias", tuple(f"{part}/1" for part in _DINOV3_QKV)),
    rule("blocks.{i}.attn.q_bias", f"{_DINOV3_QKV[0]}/1"),
    rule("blocks.{i}.attn.v_bias", f"{_DINOV3_QKV[2]}/1"),
    *_dense("blocks.{i}.attn.proj", "${layer}{_i}/attention/output_dense"),
    *_norm("blocks.{i}.norm2", "${layer}{_i}/norm2"),
    *_dense("blocks.{i}.mlp.fc1_g", "${layer}{_i}/mlp/gate_proj"),
    rule("blocks.{i}.mlp.fc1.weight", "${layer}{_i}/mlp/up_proj/vars/0", "i o -> o i", unless=_GATE),
    rule("blocks.{i}.mlp.fc1.bias", "${layer}{_i}/mlp/up_proj/vars/1", unless=_GATE),
    *_dense("blocks.{i}.mlp.fc1_x", "${layer}{_i}/mlp/up_proj"),
    *_dense("blocks.{i}.mlp.fc2", "${layer}{_i}/mlp/down_proj"),
)


def _image_shape(config: ViTConfig) -> list[int]:
    return [*config.image_size, config.in_chans]


def _activation(config: ViTConfig) -> str:
    return next(name for name, act in _ACTIVATIONS.items() if act == config.act)


def _common_keys(config: ViTConfig) -> dict[str, Any]:
    return {
        "patch_size": config.patch_size[0],
        "hidden_dim": config.embed_dim,
        "num_layers": config.depth,
        "num_heads": config.num_heads,
        "intermediate_dim": config.mlp_dim,
        "image_shape": _image_shape(config),
    }


def _vit_keys(config: ViTConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    common = _common_keys(config)
    return {
        **{key: common[key] for key in ("image_shape", "num_layers", "num_heads", "hidden_dim")},
        "patch_size": list(config.patch_size),
        "mlp_dim": config.mlp_dim,
        "dropout_rate": known.get("dropout_rate", 0.0),
        "attention_dropout": known.get("attention_dropout", 0.0),
        "layer_norm_epsilon": config.norm_eps,
        "use_mha_bias": True,
        "use_mlp_bias": True,
        "use_class_token": config.class_token,
        "use_patch_bias": config.patch_bias,
    }


def _deit_keys(config: ViTConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_common_keys(config),
        "patch_size": list(config.patch_size),
        "dropout_rate": known.get("dropout_rate", 0.0),
        "attention_dropout": known.get("attention_dropout", 0.0),
        "layer_norm_epsilon": config.norm_eps,
        "use_mha_bias": True,
    }


def _intermediate_dim(config: ViTConfig) -> int | None:
    """Return the width from which DINOv2's gated layer computes its own: two thirds of it, in steps of 8."""
    wide = config.mlp_dim
    choices = (*range(config.embed_dim, 2 * wide + config.embed_dim, config.embed_dim), *range(wide, 2 * wide + 1))
    return next((value for value in choices if (int(value * 2 / 3) + 7) // 8 * 8 == wide), None)


def _dinov2_keys(config: ViTConfig, known: Mapping[str, Any], *, mask: bool) -> dict[str, Any]:
    same = known.get("image_shape") == _image_shape(config)
    gated = config.ffn == "swiglu_packed"
    return {
        **_common_keys(config),
        "intermediate_dim": _intermediate_dim(config) if gated else config.mlp_dim,
        "layer_scale_init_value": known.get("layer_scale_init_value", 1.0),
        "num_register_tokens": config.num_registers,
        "use_mask_token": mask,
        "use_swiglu_ffn": gated,
        "dropout_rate": known.get("dropout_rate", 0.0),
        "drop_path_rate": known.get("drop_path_rate", 0.0),
        "position_embedding_shape": known["position_embedding_shape"] if same else _image_shape(config),
        "antialias_in_interpolation": known.get("antialias_in_interpolation", False),
        "apply_layernorm": known.get("apply_layernorm", False),
    }


def _dinov3_keys(config: ViTConfig, known: Mapping[str, Any], *, mask: bool) -> dict[str, Any]:
    return {
        **_common_keys(config),
        "num_register_tokens": config.num_registers,
        "use_mask_token": mask,
        "layer_scale_init_value": known.get("layer_scale_init_value", 1.0),
        "hidden_activation": _activation(config),
        "use_gated_mlp": config.ffn == "swiglu",
        "use_query_bias": bool(config.qkv_bias),
        "use_key_bias": config.qkv_bias is True,
        "use_value_bias": bool(config.qkv_bias),
        "use_proj_bias": True,
        "use_mlp_bias": True,
        "attention_dropout": known.get("attention_dropout", 0.0),
        "drop_path_rate": known.get("drop_path_rate", 0.0),
        "layer_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta if config.rope else None,
        "apply_layernorm": known.get("apply_layernorm", False),
    }


def _clip_keys(config: ViTConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    index = known.get("intermediate_output_index")
    return {
        **_common_keys(config),
        "intermediate_activation": _activation(config),
        "intermediate_output_index": index,
    }


def _siglip_keys(config: ViTConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    activation = _activation(config)
    return {**_common_keys(config), "intermediate_activation": activation, "layer_norm_epsilon": config.norm_eps}


def _classifier_dialects(group: str) -> tuple[Dialect, ...]:
    """Return the dialects of a backbone alone, of a preset with a classifier, and of a classifier's own file.

    Each of the latter two may have a layer before the last one.
    """
    absent = f"{_TASK_FILE}layers/none"
    plain = {"family": group, "model": "", "head": f"{_TASK_FILE}layers/dense", "pre": absent}
    places = (({"model": _MODEL_FILE}, _TASK_FILE), ({"model": f"layers/{group}/"}, ""))
    heads = ({"head": "layers/dense", "pre": "layers/none"}, {"head": "layers/dense_1", "pre": "layers/dense"})
    return (
        Dialect("", plain),
        *(
            Dialect("", {**plain, **model, **{key: file + value for key, value in names.items()}})
            for (model, file), names in product(places, heads)
        ),
    )


def _classifier_dialect(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    return dialects[(2 if config.representation_dim else 1) if config.num_classes else 0]


def _stored(group: str, name: str, container: str, sidecars: Sidecars) -> str:
    """Return where a tensor of a classifier stands: in two files of a folder, or in one file."""
    inner = f"layers/{group}/"
    if not sidecars:
        return name.replace(_MODEL_FILE, inner).removeprefix(_TASK_FILE)
    if name.startswith(inner):
        return _MODEL_FILE + name.removeprefix(inner)
    return _TASK_FILE + name if name.startswith("layers/dense") else name


def _format(kind: _Kind, rules: tuple[Rule, ...], **options: Any) -> Format:
    common: dict[str, Any] = {
        "conventions": {"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-antialias"},
        "evidence": partial(_evidence, kind),
        "state": partial(_state, kind),
        "sidecars": partial(_sidecars, kind),
        "container": "hdf5",
        "filename": "model.weights.h5",
        "metadata": {},
    }
    return Format(name="keras_hub", project=f"keras-hub's {kind.name}", rules=rules, **{**common, **options})


def _pools(config: ViTConfig) -> bool:
    """Return whether keras-hub's classifier reads what the model's does: the first token, or the mean of all."""
    first = "cls" if config.class_token else "first"
    mean = config.pool == "avg" and config.pool_prefix == (config.num_prefix_tokens > 0)
    return not config.num_classes or config.pool == first or mean


def _position_ids(name: str, config: ViTConfig, dialect: Dialect) -> dict[str, LazyTensor]:
    """Return the numbers of the rows of the position table, which the file has, too."""
    rows = np.arange(config.num_patches + config.num_prefix_rows, dtype=np.int32)
    return {f"{dialect.variables['model']}layers/{name}": from_array(rows[None])}


def _dino_variables(mask: bool, registers: bool, tables: tuple[str, ...]) -> tuple[str, ...]:
    """Return the variables of an embedding in the order in which they are made."""
    return ("cls", *("mask",) * mask, *("registers",) * registers, *tables)


def _dino_evidence(kind: _Kind, variables: tuple[str, ...], raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence of the variables of an embedding: config.json names them, else their shapes tell."""
    start = f"{prefix}layers/{kind.family}_embedding/vars/"
    shapes = [raw.tensors[f"{start}{n}"].shape for n in range(9) if f"{start}{n}" in raw.tensors]
    tables = _TABLES if "table" in variables else ()
    values = _stated(raw.sidecars, kind)
    if values:
        mask, registers = bool(values.get("use_mask_token", True)), bool(values.get("num_register_tokens"))
    else:
        mask = len(shapes) > 1 + len(tables) and shapes[1][:-1] == ((1,) if tables else (1, 1))
        registers = len(shapes) == 2 + mask + len(tables)
    found = _dino_variables(mask, registers, tables)
    return _evidence(kind, raw, prefix) + (1 if found == variables else -2)


_TABLES = ("interpolated", "table")


def _interpolate(kind: _Kind, raw: RawCheckpoint, reading: Reading) -> None:
    """Interpolate the position table to the size of the images, as DINOv2's class does when it is loaded."""
    table, other = reading.tensors.get("pos_embed"), reading.tensors.get("sized.interpolated")
    if table is None or other is None or table.shape == other.shape:
        return
    values, patch = _stated(raw.sidecars, kind), reading.tensors["patch_embed.proj.weight"].shape[-1]
    shape = values.get("image_shape")
    side = math.isqrt(max(other.shape[1] - 1, 0))
    grid = (shape[0] // patch, shape[1] // patch) if isinstance(shape, list) and len(shape) == 3 else (side, side)
    old = math.isqrt(max(table.shape[1] - 1, 0))
    if old * old != table.shape[1] - 1 or grid[0] * grid[1] != other.shape[1] - 1:
        raise CheckpointError(f"a position table of {table.shape[1]} rows does not fit one of {other.shape[1]}")
    antialias = values.get("antialias_in_interpolation", False)
    rows, columns = (
        axis_matrix("bicubic-antialias", old, n) if antialias else narrow_cubic_matrix(old, n) for n in grid
    )

    def read() -> Array:
        prefix, patches = np.split(floats(table), [1], axis=1)
        resized = np.einsum("yh,xw,hwd->yxd", rows, columns, patches.reshape(old, old, -1).astype(np.float64))
        return np.concatenate([prefix, resized.reshape(1, -1, table.shape[2])], axis=1).astype(np.float32)

    _keep_table(reading, table)
    reading.tensors["pos_embed"] = LazyTensor("F32", (1, other.shape[1], table.shape[2]), read)


def _dino_zeros(
    family: str, variables: tuple[str, ...], config: ViTConfig, dialect: Dialect
) -> dict[str, tuple[int, ...]]:
    mask = (1, config.embed_dim) if "table" in variables else (1, 1, config.embed_dim)
    shapes = {"mask": mask, "interpolated": (1, config.num_patches + 1, config.embed_dim)}
    return {f"layers/{family}_embedding/vars/{n}": shapes[name] for n, name in enumerate(variables) if name in shapes}


_WHOLE_PATCHES = Requirement(
    "image_size",
    lambda c: not (c.image_size[0] % c.patch_size[0] or c.image_size[1] % c.patch_size[1]),
    "its images are whole numbers of patches",
)
_SQUARE = (SQUARE_IMAGES, SQUARE_PATCHES, _WHOLE_PATCHES)
_POOL = Requirement("pool", _pools, "its classifier reads the first token or the mean of all tokens")
_HEADED = Requirement(
    "representation_dim",
    lambda c: bool(c.num_classes) or not c.representation_dim,
    "only a classifier has such a layer",
)
_LIMITS = {"act": "gelu", "qkv_bias": True, "pos_embed": "learned", "final_norm": "before", "projection_dim": 0}
_TOWER_LIMITS = {**_LIMITS, "num_classes": 0, "pos_embed_prefix": True}

_VIT = _Kind("vit", "ViT", "ViTBackbone", _vit_keys, pools=True)
_DEIT = _Kind("deit", "DeiT", "DeiTBackbone", _deit_keys, pools=True)
_CLIP = _Kind("clip", "CLIP", "CLIPVisionEncoder", _clip_keys, whole="CLIPBackbone")
_SIGLIP = _Kind("siglip", "SigLIP", "SigLIPVisionEncoder", _siglip_keys, whole="SigLIPBackbone")


def _classifier(kind: _Kind, rules: tuple[Rule, ...], limits: Mapping[str, object], *requires: Requirement) -> Format:
    group = _snake(kind.name)
    return _format(
        kind,
        rules,
        dialects=_classifier_dialects(group),
        state=partial(_classifier_state, kind),
        limits={**_LIMITS, **limits},
        requires=(_WHOLE_PATCHES, _POOL, *requires),
        dialect_for=_classifier_dialect,
        stored=partial(_stored, group),
    )


def _tower(kind: _Kind, rules: tuple[Rule, ...], group: str, ids: str, **options: Any) -> tuple[Format, ...]:
    """Return the formats of an image tower, alone and in the backbone of both towers."""
    common = {"requires": _SQUARE, "zeros": partial(_position_ids, ids), "adjust": _apply_numbers, **options}
    alone, inside = (Dialect("", {"family": group, "model": model}) for model in ("", f"layers/{group}/"))
    lacks = (
        f"only the image tower is written, without a text tower: vit_hub.load reads it, keras-hub's {kind.whole} does "
        "not; keep_rest=True (--keep-rest), where the source is read and where it is written back, keeps the rest"
    )
    return (
        _format(kind, rules, dialects=(alone,), **common),
        _format(kind, rules, dialects=(inside,), returned_only=True, lacks=lacks, **common),
    )


def _dinov2(mask: bool, registers: bool) -> Format:
    variables = _dino_variables(mask, registers, _TABLES)
    kind = _Kind("dinov2", "DINOV2", "DINOV2Backbone", partial(_dinov2_keys, mask=mask))
    layer = {"family": "-".join(("dinov2", *variables)), "layer": "layers/dinov2_encoder/layers/dinov2_layer"}
    names = {"mlp": {"fc1": "fc1", "fc2": "fc2"}, "swiglu_packed": {"fc1": "weights_in", "fc2": "weights_out"}}
    return _format(
        kind,
        _dino_rules("dinov2", variables, _DINOV2_BLOCK),
        dialects=tuple(Dialect("", {**layer, "ffn": ffn, **parts}) for ffn, parts in names.items()),
        dialect_for=lambda config, dialects: dialects[int(config.ffn == "swiglu_packed")],
        evidence=partial(_dino_evidence, kind, variables),
        adjust=partial(_interpolate, kind),
        zeros=partial(_dino_zeros, "dinov2", variables),
        limits={
            **_TOWER_LIMITS,
            "act": ("gelu", "silu"),
            "ffn": ("mlp", "swiglu_packed"),
            "class_token": True,
            "pos_embed_registers": False,
            "layer_scale": True,
            "pool": "cls",
            "norm_eps": _EPSILON,
        },
        requires=(
            *_SQUARE,
            Requirement("act", lambda c: (c.ffn == "mlp") == (c.act == "gelu"), "it has GELU, and SiLU at its gates"),
            Requirement(
                "mlp_dim",
                lambda c: c.ffn == "mlp" or _intermediate_dim(c) is not None,
                "the width of its gated layer is two thirds of a whole number, in steps of 8",
            ),
            Requirement("num_registers", lambda c: bool(c.num_registers) == registers, "it has registers, or none"),
        ),
    )


def _dinov3_state(kind: _Kind, raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json."""
    fields, theta = _fields(kind, raw, tensors), _stated(raw.sidecars, kind).get("rope_theta")
    if isinstance(theta, (int, float)):
        fields["rope"] = {**DINO_ROPE, "theta": float(theta)}
    return Stated(fields, f"{_CONFIG} and shapes of the original tensors")


# As in transformers' DINOv3ViT.
def _dinov3(mask: bool, registers: bool) -> Format:
    variables = _dino_variables(mask, registers, ())
    kind = _Kind("dinov3", "DINOV3", "DINOV3Backbone", partial(_dinov3_keys, mask=mask))
    layer = "layers/dinov3_encoder/layers/dinov3_layer"
    return _format(
        kind,
        _dino_rules("dinov3", variables, _DINOV3_BLOCK, "1 1 d -> 1 d"),
        dialects=(Dialect("", {"family": "-".join(("dinov3", *variables)), "layer": layer}),),
        conventions={"act": "gelu", "norm_eps": 1e-5, "rope": DINO_ROPE, "resize": "bicubic-antialias"},
        evidence=partial(_dino_evidence, kind, variables),
        state=partial(_dinov3_state, kind),
        zeros=partial(_dino_zeros, "dinov3", variables),
        limits={
            "class_token": True,
            "pos_embed": "none",
            "layer_scale": True,
            "qkv_bias": (True, False, "qv"),
            "patch_bias": True,
            "ffn": ("mlp", "swiglu"),
            "pool": "cls",
            "final_norm": "before",
            "num_classes": 0,
            "projection_dim": 0,
        },
        requires=(
            SQUARE_PATCHES,
            _WHOLE_PATCHES,
            DINO_ROTARY,
            Requirement("num_registers", lambda c: bool(c.num_registers) == registers, "it has registers, or none"),
        ),
    )


FORMATS = (
    _classifier(
        _VIT,
        _VIT_RULES,
        {"distilled": False},
        _HEADED,
        Requirement(
            "pos_embed_prefix", lambda c: c.pos_embed_prefix == c.class_token, "its table has a row for the class token"
        ),
    ),
    _classifier(
        _DEIT,
        _DEIT_RULES,
        {"distilled": True, "pos_embed_prefix": True, "patch_bias": True, "representation_dim": 0},
    ),
    *(_dinov2(mask, registers) for mask, registers in product((True, False), repeat=2)),
    *(_dinov3(mask, registers) for mask, registers in product((True, False), repeat=2)),
    *_tower(
        _CLIP,
        _CLIP_RULES,
        "clip_vision_encoder",
        "clip_vision_embedding/vars/1",
        conventions={"act": "quick_gelu", "norm_eps": 1e-5, "resize": "bicubic-antialias"},
        limits={
            **_TOWER_LIMITS,
            "act": ("quick_gelu", "gelu", "silu", "relu"),
            "class_token": True,
            "pre_norm": True,
            "patch_bias": False,
            "pool": "cls",
            "norm_eps": 1e-5,
        },
    ),
    *_tower(
        _SIGLIP,
        _SIGLIP_RULES,
        "sig_lip_vision_encoder",
        "sig_lip_vision_embedding/vars/0",
        conventions={"act": "gelu_tanh", "norm_eps": _EPSILON, "resize": "bicubic-antialias"},
        state=_siglip_state,
        limits={
            **_TOWER_LIMITS,
            "act": ("gelu_tanh", "gelu", "silu", "relu"),
            "class_token": False,
            "pos_embed_prefix": False,
            "patch_bias": True,
            "pool": "map",
            "norm_eps": _EPSILON,
            "pool_heads": 0,
            "pool_mlp_dim": 0,
        },
    ),
)
