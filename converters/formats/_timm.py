"""Shared by the formats of timm's classes: what timm's ``config.json`` says of a model.

It names an architecture, and ``model_args`` override some of its arguments. timm_architectures.json has the arguments
of every architecture; ``tools/timm_architectures.py`` writes it from timm itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats._transformers import tower_values
from vit_hub.converters.rules.format import Stated
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import Rope

__all__ = ["BLOCKS", "NO_EFFECT", "POOLS", "arguments", "gated", "is_named", "refusal", "state", "timm_class"]

Tensors = Mapping[str, LazyTensor]

_TABLE = Path(__file__).with_name("timm_architectures.json")
# Arguments that change no output: of training, of initialisation, and of images of other sizes.
NO_EFFECT = (
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),
    *("weight_init", "fix_init", "head_init_scale", "device", "dtype"),
    *("pretrained", "scriptable", "exportable", "no_jit"),
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size"),
)
POOLS = {"token": "cls", "avg": "avg", "map": "map", "": "none"}
_ACTIVATIONS = {
    None: "gelu",
    "": "gelu",
    "gelu": "gelu",
    "gelutanh": "gelu_tanh",
    "quickgelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
# What timm's blocks compute, by the names of :func:`_layer`, beside what their tensors show.
BLOCKS: dict[str, dict[str, Any]] = {
    "block": {},
    "relposblock": {},
    "evablock": {},
    "parallelthingsblock": {"branches": 2},
    "respostblock": {"norm_position": "post"},
    "respostrelposblock": {"norm_position": "post"},
    "evablockpostnorm": {"norm_position": "post"},
    "parallelscalingblock": {"parallel": "separate"},
    "diffparallelscalingblock": {"parallel": "joint", "differential": True},
}
# Norms -> their kind; those of the patch embeddings are of the same as the others.
_NORMS = {"layernorm": "layer", "layernormfp32": "layer", "rmsnorm": "rms", "rmsnormfp32": "rms"}
# Argument -> the values that can be computed; layers by the names of :func:`_layer`.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "block_fn": tuple(BLOCKS),
    "attn_layer": (None, "", "attn", "attention", "diff"),
    "attn_type": ("eva", "rope"),
    "norm_layer": (None, "", *_NORMS),
    "embed_norm_layer": (None, "", *_NORMS),
    "act_layer": tuple(_ACTIVATIONS),
    "mlp_layer": ("mlp", "swiglupacked", "swiglu"),
    "embed_layer": ("patchembed", "hybridembed(resnetv2)", "hybridembed(sequential)"),
    "global_pool": (*POOLS, None),
    "rope_type": ("cat", "mixed", "dinov3", None),
    "use_rope": (False, None),
    "head_hidden_size": (None,),
}
# What NaFlexVit, which can have the blocks of VisionTransformer and of Eva, is supported with.
_SUPPORTED_NAFLEX: dict[str, tuple[object, ...]] = {
    "block_fn": (None, "", "block"),
    "attn_type": ("standard",),
    "attn_gated": (False,),
    "attn_only_layer_scale": (False,),
    "num_kv_heads": (None,),
    "rope_type": (None, "", "none"),
    "swiglu_mlp": (False,),
    "mlp_layer": (None, "", "mlp"),
    "input_norm_layer": (None, ""),
    "pos_embed_interp_mode": ("bilinear", "bicubic"),
}


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class _Model:
    """The model that a config.json describes.

    Attributes:
        name: the architecture as the file names it.
        cls: timm's class; empty for an architecture that is not in the table.
        args: the arguments of the class; of an unknown architecture only those in the file.
        given: those in the file.
    """

    name: str
    cls: str
    args: Mapping[str, Any]
    given: Mapping[str, Any]


def _file(raw: RawCheckpoint) -> Mapping[str, Any]:
    """Return timm's config.json, or what that of a larger model of transformers says of a tower of timm's."""
    file = raw.sidecars.get("config.json", {})
    return file if "architecture" in file else tower_values(raw.sidecars)


def is_named(raw: RawCheckpoint) -> bool:
    """Return whether there is a config.json of timm's."""
    return isinstance(_file(raw).get("architecture"), str)


def _model(raw: RawCheckpoint) -> _Model | None:
    """Return what config.json describes; None without one of timm's.

    ``model_args`` override the arguments of the architecture, as in timm. So does the pooling beside them: timm writes
    there how the model was when it was saved.

    Raises:
        ConfigError: ``model_args`` is no object.
    """
    if not is_named(raw):
        return None
    file, table = _file(raw), _table()
    stated, given = str(file["architecture"]), file.get("model_args") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{raw.path}: config.json: model_args are not a JSON object")
    given = dict(given)
    if file.get("global_pool") is not None:
        given.setdefault("global_pool", file["global_pool"])
    name = stated.rpartition("/")[2].partition(".")[0]
    name = table["deprecated"].get(name, name)
    if given.get("use_naflex"):
        return _Model(stated, "NaFlexVit of another class", {}, given)
    for cls, architectures in table["architectures"].items():
        if name in architectures:
            args = {**table["defaults"][cls], **architectures[name]}
            # A norm layer given by its name has the usual epsilon.
            eps = (table["defaults"][cls] if "norm_layer" in given else args)["norm_eps"]
            args |= {key: value for key, value in given.items() if key in args}
            return _Model(stated, cls, {**args, "norm_eps": eps}, given)
    cls = next((cls for cls, names in table["other_classes"].items() if name in names), "")
    return _Model(stated, cls, given, given)


def timm_class(raw: RawCheckpoint) -> str:
    """Return timm's class of the architecture that config.json names; empty if there is none or it is not known."""
    model = _model(raw)
    return model.cls if model else ""


def arguments(raw: RawCheckpoint) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the arguments of the class that config.json names, and those that the file gives itself."""
    model = _model(raw)
    return (model.args, model.given) if model else ({}, {})


def refusal(raw: RawCheckpoint) -> str:
    """Return why the model that config.json describes cannot be computed; empty if it can or is not known."""
    model = _model(raw)
    if model is None:
        return ""
    if model.cls and model.cls not in _table()["defaults"]:
        return f"config.json: architecture {model.name}: timm's class {model.cls} is not supported"
    supported = {**_SUPPORTED, **(_SUPPORTED_NAFLEX if model.cls == "NaFlexVit" else {})}
    for name, value in model.args.items():
        layer = _layer(value)
        if name in supported and layer not in supported[name]:
            return f"config.json: architecture {model.name}: {name}={value} is not supported"
    embedding, others = (_layer(model.args.get(name)) for name in ("embed_norm_layer", "norm_layer"))
    both = ("embed_norm_layer" in model.given) == ("norm_layer" in model.given)
    if embedding and not (both and _NORMS[embedding] == _NORMS[others or "layernorm"]):
        return (
            f"config.json: architecture {model.name}: embed_norm_layer={model.args['embed_norm_layer']}, "
            "another norm than the other layers have, is not supported"
        )
    return ""


def _layer(value: Any) -> Any:
    """The name of a layer, however it is spelt: ``QuickGELU``, ``quick_gelu``, ``torch.nn.SiLU``."""
    return value.rpartition(".")[2].lower().replace("_", "") if isinstance(value, str) else value


def gated(tensors: Tensors) -> bool:
    """Return whether the feed-forward layers have gates."""
    if "blocks.0.mlp.fc1_g.weight" in tensors:
        return True
    fc1, fc2 = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    return fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[1]


def state(raw: RawCheckpoint, tensors: Tensors) -> Stated:
    """Return what config.json fixes of a model, but for what the tensors show."""
    model = _model(raw)
    if model is None:
        return Stated()
    args, warnings = model.args, _doubts(model, tensors)
    fields: dict[str, Any] = {name: args[name] for name in ("num_heads", "norm_eps") if args.get(name) is not None}
    fields |= _image_size(model, _file(raw), tensors)
    fields |= _block(args)
    for found, doubts in (_activation(model, tensors), _pooling(model, tensors)):
        fields |= found
        warnings += doubts
    if args.get("no_embed_class") is not None:
        rows = not args["no_embed_class"] or model.cls == "VisionTransformerDistilled"
        fields |= {"pos_embed_prefix": rows, "pos_embed_registers": rows}
    if "use_rot_pos_emb" in args:
        fields["rope"] = _rope(args) if args["use_rot_pos_emb"] else None
    return Stated(fields, "config.json", tuple(warnings))


def _doubts(model: _Model, tensors: Tensors) -> list[str]:
    """Warnings of what the table does not know, or what does not fit the tensors."""
    found, defaults = [], _table()["defaults"]
    if not model.cls:
        found.append(
            f"config.json: architecture {model.name} is not known: what its name fixes is taken from "
            "similar models of timm"
        )
    names = {name for cls in ([model.cls] if model.cls else defaults) for name in defaults[cls]} - {"norm_eps"}
    unknown = sorted(set(model.given) - names - {*NO_EFFECT, "use_naflex", "num_classes"})
    if unknown:
        found.append(
            f"config.json: model_args {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not known "
            "and ignored, whatever it changes in the outputs"
        )
    kernel, dim = tensors.get("patch_embed.proj.weight"), model.args.get("embed_dim")
    width = kernel.shape[0] if kernel and kernel.shape else dim
    if dim is not None and dim != width:
        found.append(
            f"config.json: architecture {model.name} is {dim} channels wide, the tensors are {width}: "
            f"num_heads={model.args.get('num_heads')} and what else it fixes may not be this model's; "
            'overrides={"num_heads": N}, on the command line --set num_heads=N, sets them'
        )
    return found


def _block(args: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the class of the blocks fixes."""
    if "use_post_norm" in args:
        return {"norm_position": "post" if args["use_post_norm"] else "pre"}
    if "block_fn" not in args:
        return {}
    fixed = BLOCKS[_layer(args["block_fn"]) or "block"]
    differential = _layer(args.get("attn_layer")) == "diff" and "parallel" not in fixed
    return {"norm_position": "pre", "parallel": "none", "branches": 1, "differential": differential, **fixed}


def _image_size(model: _Model, file: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The image size of the file; that of the architecture only where no table of positions tells it."""
    pretrained = file.get("pretrained_cfg") or file
    size = pretrained.get("input_size") if isinstance(pretrained, Mapping) else None
    if model.given.get("img_size"):
        return {"image_size": model.given["img_size"]}
    if isinstance(size, (list, tuple)) and len(size) == 3:
        return {"image_size": tuple(size[1:])}
    table = any(name.endswith(("pos_embed", "relative_position_bias_table")) for name in tensors)
    return {} if table or "img_size" not in model.args else {"image_size": model.args["img_size"]}


def _activation(model: _Model, tensors: Tensors) -> tuple[dict[str, Any], list[str]]:
    """The activation, unless gates are or are not in the tensors other than the architecture has it."""
    if "act_layer" not in model.args:
        return {}, []
    gates = _layer(model.args.get("mlp_layer")) in ("swiglupacked", "swiglu")
    if "act_layer" in model.given or gates == gated(tensors):
        return {"act": _ACTIVATIONS[_layer(model.args["act_layer"])]}, []
    act = "gelu" if gates else "silu"
    return {"act": act}, [
        f"config.json: architecture {model.name} has {'' if gates else 'no '}gates, the tensors have "
        f"{'none' if gates else 'them'}: act={act} is a guess; "
        'overrides={"act": NAME}, on the command line --set act=NAME, sets it'
    ]


def _pooling(model: _Model, tensors: Tensors) -> tuple[dict[str, Any], list[str]]:
    """The pooling, unless its tensors are missing."""
    name = model.args.get("global_pool")
    if model.cls == "VisionTransformerDistilled" or name is None:
        return {}, []
    needed = {"token": "cls_token", "map": "attn_pool.latent"}.get(name)
    if needed and needed not in tensors:
        return {}, [f"config.json: global_pool={name} needs the tensor {needed}, which is missing: the tensors decide"]
    pool = POOLS[name]
    fields: dict[str, Any] = {"pool": pool}
    prefix = "cls_token" in tensors or "reg_token" in tensors
    if model.cls == "Eva":  # whose attention pooling reads all tokens
        fields["pool_prefix"] = pool == "map" and prefix
    elif "pool_include_prefix" in model.args:
        fields["pool_prefix"] = bool(model.args["pool_include_prefix"]) and pool in ("map", "avg") and prefix
    if pool == "map" and "attn_pool_num_heads" in model.args:
        fields["pool_heads"] = model.args["attn_pool_num_heads"] or 0
    return fields, []


def _rope(args: Mapping[str, Any]) -> Rope:
    """Read the rope_* arguments of Eva.

    Raises:
        ConfigError: a number is none.
    """
    args = {**_table()["defaults"]["Eva"], **{key: value for key, value in args.items() if value is not None}}
    for name in ("rope_temperature", "rope_grid_offset"):
        if not isinstance(args[name], (int, float)):
            raise ConfigError(f"config.json: {name} must be a number, not {args[name]!r}")
    kind, reference = args["rope_type"], args["ref_feat_shape"]
    reference = (reference, reference) if isinstance(reference, int) else reference
    return Rope(
        theta=float(args["rope_temperature"]),
        coordinates="centered" if kind == "dinov3" else "index",
        offset=0.0 if kind == "mixed" else float(args["rope_grid_offset"]),
        reference_grid=reference if kind == "cat" else None,
        order="xy" if args["rope_grid_indexing"] == "xy" else "yx",
        pairs="half" if args["rope_rotate_half"] else "interleaved",
        mixed=kind == "mixed",
    )
