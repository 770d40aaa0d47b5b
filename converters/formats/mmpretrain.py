"""mmpretrain: VisionTransformer with its distilled form, DeiT3, BEiTViT, ViTEVA02, ViTSAM, with a head or without.

A checkpoint keeps its config as text under ``meta``; without one, activation and epsilon are those of the class.
Source: mmpretrain/models/backbones/vision_transformer.py, deit.py, deit3.py, beit.py, vit_eva02.py, vit_sam.py,
models/heads/vision_transformer_head.py, models/utils/attention.py, position_encoding.py, swiglu_ffn.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _sam
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Drop, Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import Rope, ViTConfig
from vit_hub.preprocessing.labels import names_of
from vit_hub.preprocessing.mmengine import META, from_mmengine, mmengine_preprocess, parse_config, stated_config
from vit_hub.preprocessing.spec import Preprocessing, nested

_HEADS = ("head.layers.head", "head.fc")
_PLAIN = {"fc1": "layers.0.0", "fc2": "layers.1"}
_GATED = {"fc1": "w12", "fc2": "w3"}
_BACKBONE = "${backbone}"
_LAYER = f"{_BACKBONE}layers.{{i}}"


def _backbone_rules(*layers: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(one for ours, theirs in layers for one in weight_and_bias(ours, theirs))


_PATCH = weight_and_bias("patch_embed.proj", f"{_BACKBONE}patch_embed.projection")
_TOKENS = (
    rule("cls_token", f"{_BACKBONE}cls_token"),
    rule("pos_embed", f"{_BACKBONE}pos_embed"),
    rule("dist_token", f"{_BACKBONE}dist_token"),
)
_ATTENTION = _backbone_rules(
    ("blocks.{i}.attn.qkv", f"{_LAYER}.attn.qkv"), ("blocks.{i}.attn.proj", f"{_LAYER}.attn.proj")
)
_NORM1, _NORM2 = (weight_and_bias(f"blocks.{{i}}.norm{n}", f"{_LAYER}.ln{n}") for n in (1, 2))
_MLP = _backbone_rules(
    ("blocks.{i}.mlp.fc1", f"{_LAYER}.ffn.${{fc1}}"), ("blocks.{i}.mlp.fc2", f"{_LAYER}.ffn.${{fc2}}")
)
_LAYER_SCALE = (
    rule("blocks.{i}.ls1.gamma", f"{_LAYER}.attn.gamma1.weight"),
    rule("blocks.{i}.ls2.gamma", f"{_LAYER}.ffn.gamma2.weight"),
)
_OUTPUT = (
    *_backbone_rules(("norm", f"{_BACKBONE}ln1"), ("fc_norm", f"{_BACKBONE}ln2")),
    # The batch norm before the classifier of a linear probe of MAE.
    *(rule(f"head_norm.{part}", f"neck.bn.{part}") for part in ("running_mean", "running_var", "num_batches_tracked")),
    *_backbone_rules(
        ("pre_logits.fc", "head.layers.pre_logits"), ("head", "${head}"), ("head_dist", "head.layers.head_dist")
    ),
)
_VIT = (
    *_TOKENS,
    *_PATCH,
    *weight_and_bias("norm_pre", f"{_BACKBONE}pre_norm"),
    *_NORM1,
    *_ATTENTION,
    *_NORM2,
    *_MLP,
    *_LAYER_SCALE,
    *_OUTPUT,
)
# Its blocks norm with ln1 before the feed-forward layer, too; ln2 is never read.
_DEIT3 = (
    *_TOKENS,
    *_PATCH,
    *(
        rule((f"blocks.{{i}}.norm1.{part}", f"blocks.{{i}}.norm2.{part}"), f"{_LAYER}.ln1.{part}", copies=True)
        for part in ("weight", "bias")
    ),
    *_ATTENTION,
    *weight_and_bias("blocks.{i}.unused_norm2", f"{_LAYER}.ln2", carried=True),
    *_MLP,
    *_LAYER_SCALE,
    *_OUTPUT,
)
_TABLE = "relative_position_bias_table"
_BEIT = (
    *_TOKENS,
    *_PATCH,
    rule(f"rel_pos_bias.{_TABLE}", f"{_BACKBONE}rel_pos_bias.{_TABLE}"),
    rule("blocks.{i}.ls1.gamma", f"{_LAYER}.gamma_1"),
    rule("blocks.{i}.ls2.gamma", f"{_LAYER}.gamma_2"),
    *_NORM1,
    *(rule(f"blocks.{{i}}.attn.{name}", f"{_LAYER}.attn.{name}") for name in ("q_bias", "v_bias", _TABLE)),
    *_ATTENTION,
    *_NORM2,
    *_MLP,
    *_OUTPUT,
)
_EVA02 = (
    *_TOKENS,
    *_PATCH,
    *weight_and_bias("norm_pre", f"{_BACKBONE}pre_norm"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.norm1"),
    *_ATTENTION,
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.norm2"),
    *_backbone_rules(
        ("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.w12"),
        ("blocks.{i}.mlp.norm", f"{_LAYER}.mlp.norm"),
        ("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.w3"),
    ),
    *_OUTPUT,
)
_SAM_LAYERS = {"norm1": "ln1", "norm2": "ln2", "fc1": "ffn.${fc1}", "fc2": "ffn.${fc2}"}
_SAM_BLOCK, _SAM_PATCH = "layers.{i}", "patch_embed.projection"
_SAM = (
    *_sam.rules(_BACKBONE, _SAM_BLOCK, _SAM_LAYERS, patch=_SAM_PATCH, necks="channel_reduction."),
    *weight_and_bias("head", "${head}"),
)
_DROPS = (
    Drop(f"{_BACKBONE}mask_token", "mask_token: stands for masked patches in the pre-training"),
    Drop(f"{_BACKBONE}.*relative_position_index", "relative_position_index: a buffer that follows from the grid"),
    Drop(rf"{_BACKBONE}(layers\.\d+\.attn\.)?rope\.freqs_(cos|sin)", "a buffer that follows from the grid"),
)

# Where models of several parts have their image encoder, in configs.
_PLACES = ("backbone", "vision_backbone", "vision_encoder", "visual_encoder", "vision_tower")
_WORDS = {"tiny": 3, "small": 6, "medium": 8, "base": 12, "large": 16, "huge": 16}
# Heads of the architectures that a config may name.
_ARCHITECTURES = {
    **_WORDS,
    **{name[0]: heads for name, heads in _WORDS.items()},
    **dict.fromkeys(("eva-g", "eva-giant"), 16),
    **dict.fromkeys(("ti", "deit-t", "deit-tiny"), 3),
    **dict.fromkeys(("deit-s", "deit-small", "dinov2-s", "dinov2-small"), 6),
    **dict.fromkeys(("deit-b", "deit-base"), 12),
    **dict.fromkeys(("dinov2-g", "dinov2-giant"), 24),
}
# mmpretrain's own "small" of these classes is no ViT-S: 768 channels and 8 heads.
_WIDE_SMALL = ("VisionTransformer", "DistilledVisionTransformer", "BEiTViT")
_ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "ReLU": "relu", "SiLU": "silu", "Swish": "silu"}
_POOLS = {"cls_token": "cls", "avg_featmap": "avg", "raw": "none", "featmap": "none"}
_RESIZE = {"bicubic": "bicubic", "bilinear": "bilinear"}
# Epsilon and output of a class whose config does not name them.
_DEFAULTS: dict[str, tuple[float, str]] = {
    "BEiTViT": (1e-6, "avg_featmap"),
    "ViTEVA02": (1e-5, "cls_token"),
    "ViTSAM": (1e-6, "raw"),
}
_VIT_DEFAULTS = (1e-6, "cls_token")
_CLASSES = ("VisionTransformer", "DistilledVisionTransformer", "DeiT3", "BEiTViT", "ViTEVA02", "ViTSAM")


def _backbone(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the image encoder of a config; empty if it names none."""
    model = nested(config, "model")
    found: Mapping[str, Any] = next((model[place] for place in _PLACES if isinstance(model.get(place), Mapping)), {})
    return found if isinstance(found.get("type"), str) else {}


def _class_of(backbone: Mapping[str, Any]) -> str:
    return str(backbone.get("type", "")).rpartition(".")[2]


def _activation(backbone: Mapping[str, Any]) -> str:
    """Return the activation of the MLPs.

    Raises:
        ConfigError: it is not known, or layers differ.
    """
    options = backbone.get("layer_cfgs") or {}
    layers = options if isinstance(options, list) else [options]
    chosen = [layer.get("act_cfg") or {"type": "GELU"} for layer in layers if isinstance(layer, Mapping)]
    if len({str(one) for one in chosen}) > 1 or len(chosen) < len(layers):
        raise ConfigError("act: layer_cfgs give the layers different options: not supported")
    name = str(chosen[0].get("type")).rpartition(".")[2] if isinstance(chosen[0], Mapping) else ""
    if name == "GELU" and chosen[0].get("approximate") == "tanh":
        return "gelu_tanh"
    if name not in _ACTIVATIONS:
        raise ConfigError(f"act: the activation {name or chosen[0]!r} of its config is not known")
    return _ACTIVATIONS[name]


def _from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a config states; empty if it has no backbone.

    Raises:
        ConfigError: an activation that is not known.
    """
    backbone = _backbone(config)
    if not backbone:
        return {}
    kind = _class_of(backbone)
    eps, output = _DEFAULTS.get(kind, _VIT_DEFAULTS)
    found: dict[str, Any] = {"act": _activation(backbone)}
    norm = backbone.get("norm_cfg")
    found["norm_eps"] = float(norm.get("eps", 1e-5)) if isinstance(norm, Mapping) else eps
    arch = backbone.get("arch", "tiny" if kind == "ViTEVA02" else "base")
    if isinstance(arch, Mapping):
        heads = arch.get("num_heads")
    else:
        wide = kind in _WIDE_SMALL and arch in ("s", "small")
        heads = 8 if wide else _ARCHITECTURES.get(str(arch).lower())
    if isinstance(heads, int):
        found["num_heads"] = heads
    size = backbone.get("img_size", 224)
    found["image_size"] = tuple(size) if isinstance(size, list) else size
    if backbone.get("interpolate_mode") in _RESIZE and kind != "BEiTViT":
        found["resize"] = _RESIZE[backbone["interpolate_mode"]]
    # Files of pre-training leave their output to what is trained on them.
    if kind in _CLASSES:
        found["pool"] = _POOLS.get(backbone.get("out_type", output), "none")
    return found


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read the config, else what shapes tell; without a config, what it would say is taken from the class.

    Raises:
        ConfigError: the model cannot be computed.
    """
    at = dialect.variables["backbone"]
    if f"{at}ln1.weight" in tensors and f"{at}ln2.weight" in tensors:
        raise ConfigError(
            f"{raw.path}: final_norm: it norms tokens before their mean and the mean again: not supported"
        )
    try:
        fields = _from_config(stated_config(raw.sidecars))
    except ConfigError as error:
        raise ConfigError(f"{raw.path}: {error.message}", hint=error.hint) from error
    by = "the config in the checkpoint" if fields else "names of the tensors"
    has = {name: f"{at}{name}" in tensors for name in ("cls_token", "dist_token", "ln2.weight")}
    warnings: tuple[str, ...] = ()
    if dialect.variables["fc1"] == _GATED["fc1"] and any(name.endswith(".w12.weight") for name in tensors):
        fields["act"] = "silu"
    if has["dist_token"]:
        fields["pool"] = "cls"
        if any("head_dist." in name for name in tensors):
            fields["head_input"] = "cls_dist"
    if not _backbone(stated_config(raw.sidecars)):
        if f"{at}pre_norm.weight" in tensors:
            warnings = (
                "norm_eps=1e-06 and act='gelu' are guesses: the file has no config, and models with a norm before the "
                "blocks differ in them; overrides= (--set) gives them",
            )
        if not has["cls_token"] and not has["ln2.weight"]:
            fields["pool"] = "none"
    return Stated(fields, by, warnings)


def _state_deit3(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read the config; without one, its position table is all that tells it from a VisionTransformer."""
    stated = _state(raw, tensors, dialect)
    if _backbone(stated_config(raw.sidecars)):
        return stated
    remark = (
        "read as a DeiT3, whose position table has no row for the class token and whose blocks norm twice with ln1; "
        "a VisionTransformer for images that are not square has the same names: format='mmpretrain-vit' (--format)"
    )
    return Stated(stated.fields, stated.by, (*stated.warnings, remark))


def _eva02_rope(heads: int, dim: int) -> Rope:
    """Return its rotary embedding, whose grid is scaled to half the width of a head."""
    side = dim // heads // 2
    return Rope(reference_grid=(side, side), pairs="tiled")


def _state_eva02(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read the config; the stored rotations tell the width of a head, too."""
    stated, at = _state(raw, tensors, dialect), dialect.variables["backbone"]
    dim, warnings = tensors[f"{at}patch_embed.projection.weight"].shape[0], stated.warnings
    rotations = tensors.get(f"{at}rope.freqs_cos") or tensors.get(f"{at}layers.0.attn.rope.freqs_cos")
    fields = dict(stated.fields)
    if rotations is not None and len(rotations.shape) == 2 and rotations.shape[1]:
        fields["num_heads"] = dim // rotations.shape[1]
    if "num_heads" not in fields:
        fields["num_heads"] = max(dim // 64, 1)
        warnings = (*warnings, f"num_heads={fields['num_heads']} is a guess, from the width of {dim}")
    heads = fields["num_heads"]
    if heads < 1 or dim // heads < 2:
        raise ConfigError(f"{raw.path}: num_heads: {heads} do not fit a width of {dim}")
    return Stated({"rope": _eva02_rope(heads, dim), **fields}, stated.by, warnings)


# Blocks without windows of the architectures that a config may name.
_SAM_FULL = {"b": (2, 5, 8, 11), "l": (5, 11, 17, 23), "h": (7, 15, 23, 31)}


def _state_sam(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read the config; without one shapes tell the windows."""
    stated, backbone = _state(raw, tensors, dialect), _backbone(stated_config(raw.sidecars))
    shown, guesses = _sam.fields_of_shapes(tensors, dialect.variables["backbone"], _SAM_BLOCK, _SAM_PATCH)
    if backbone:
        arch = backbone.get("arch", "base")
        full = arch.get("global_attn_indexes") if isinstance(arch, Mapping) else _SAM_FULL.get(str(arch).lower()[:1])
        shown["windows"], guesses = _sam.windows_of(backbone.get("window_size", 14), full), ()
    fields = {name: value for name, value in stated.fields.items() if backbone or name != "pool"}
    return Stated({**fields, **shown}, stated.by, (*stated.warnings, *guesses))


def _evidence(raw: RawCheckpoint, prefix: str, *, classes: Sequence[str]) -> int:
    """Return whether the config names one of these classes."""
    kind = _class_of(_backbone(stated_config(raw.sidecars)))
    return (3 if kind in classes else -1) if kind in _CLASSES else 0


def _evidence_deit3(raw: RawCheckpoint, prefix: str) -> int:
    """Return, without a config, whether the position table has the rows of a square grid, none for the class token."""
    at = next((at for at in (f"{prefix}backbone.", prefix) if f"{at}pos_embed" in raw.tensors), None)
    stated = _evidence(raw, prefix, classes=("DeiT3",))
    if stated or at is None or f"{at}cls_token" not in raw.tensors:
        return stated
    shape = raw.tensors[f"{at}pos_embed"].shape
    return 1 if len(shape) == 3 and math.isqrt(shape[1]) ** 2 == shape[1] else -1


def _evidence_beit(raw: RawCheckpoint, prefix: str) -> int:
    """Without a config and what only BEiT has it is a VisionTransformer."""
    own = any(name.endswith((".gamma_1", ".q_bias", f".{_TABLE}")) for name in raw.tensors)
    return _evidence(raw, prefix, classes=("BEiTViT",)) or (1 if own else -1)


def _head_of(config: ViTConfig, passport: Passport | None) -> str:
    """Return where the classifier stands: where it was, or where mmpretrain's models of this kind have it."""
    if passport and passport.format.startswith("mmpretrain") and passport.variables.get("head") in _HEADS:
        return passport.variables["head"]
    return _HEADS[config.pool == "avg" and not config.representation_dim]


def _dialect_for(config: ViTConfig, dialects: Sequence[Dialect]) -> Dialect:
    wanted = {"head": _head_of(config, None), **(_GATED if config.ffn == "swiglu_packed" else _PLAIN)}
    return next((dialect for dialect in dialects if wanted.items() <= dialect.variables.items()), dialects[0])


def _pair(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else size


def _sidecars(
    config: ViTConfig,
    passport: Passport | None,
    *,
    own: Callable[[ViTConfig], Mapping[str, Any]],
) -> Sidecars:
    """Return what the checkpoint keeps under ``meta``: the config, from which mmpretrain builds the model, and classes.

    The text of an earlier one is kept where it says the same.
    """
    outputs = {"cls": "cls_token", "avg": "avg_featmap"}
    hidden = config.mlp_dim * 3 // 2 if config.ffn == "swiglu_packed" else config.mlp_dim
    sizes = {"embed_dims": config.embed_dim, "num_layers": config.depth, "num_heads": config.num_heads}
    acts = {act: {"type": name} for name, act in reversed(_ACTIVATIONS.items())}
    backbone: dict[str, Any] = {
        "arch": {**sizes, "feedforward_channels": hidden},
        "img_size": _pair(config.image_size),
        "patch_size": _pair(config.patch_size),
        "in_channels": config.in_chans,
        "norm_cfg": {"type": "LN", "eps": config.norm_eps},
        "final_norm": config.final_norm == "before",
        "out_type": outputs.get(config.pool, "raw"),
        "patch_cfg": {"bias": config.patch_bias},
        "interpolate_mode": config.resize if config.resize in _RESIZE else "bicubic",
    }
    layer: dict[str, Any] = {}
    if config.act != "gelu" and config.ffn == "mlp":
        tanh = {"type": "GELU", "approximate": "tanh"}
        layer["act_cfg"] = tanh if config.act == "gelu_tanh" else acts[config.act]
    if config.ffn == "swiglu_packed":
        layer["ffn_type"] = "swiglu_fused"
    backbone |= {"layer_cfgs": layer} if layer else {}
    backbone = {key: value for key, value in {**backbone, **own(config)}.items() if value is not None}
    model: dict[str, Any] = {
        "type": "ImageClassifier",
        "backbone": backbone,
        "neck": None,
        "head": _head(config, passport),
    }
    if config.head_norm:
        model["neck"] = {"type": "ClsBatchNormNeck", "input_features": config.embed_dim}
    wanted = Preprocessing.from_dict(passport.preprocess) if passport and passport.preprocess else None
    written = {"model": model, **(mmengine_preprocess(wanted) if wanted else {})}
    meta = dict(passport.sidecars.get(META, {})) if passport else {}
    if not _says(stated_config({META: meta}), written, wanted):
        meta["cfg"] = "".join(f"{name} = {value!r}\n" for name, value in written.items())
    names = names_of(passport.labels, config.num_classes) if passport else None
    if names:
        meta["dataset_meta"] = {**meta.get("dataset_meta", {}), "classes": list(names)}
    return {META: meta}


def _head(config: ViTConfig, passport: Passport | None) -> dict[str, Any] | None:
    if not config.num_classes:
        return None
    head: dict[str, Any] = {"num_classes": config.num_classes, "in_channels": config.embed_dim}
    if config.representation_dim:
        head["hidden_dim"] = config.representation_dim
    kinds = {"head.layers.head": "VisionTransformerClsHead", "head.fc": "LinearClsHead"}
    kind = "DeiTClsHead" if config.head_input == "cls_dist" else kinds[_head_of(config, passport)]
    return {"type": kind, **head, "loss": {"type": "CrossEntropyLoss"}}


def _says(earlier: Mapping[str, Any], written: Mapping[str, Any], preprocess: Preprocessing | None) -> bool:
    """Return whether an earlier config describes the same model and, if it describes any, the same preprocessing."""
    try:
        described = from_mmengine(earlier)
        # As it would be read: numbers of the written one have passed through text.
        text = parse_config(f"model = {written['model']!r}")
        same = described is None or preprocess is None or described.with_image_size(preprocess.image_size) == preprocess
        return same and bool(earlier) and _described(earlier) == _described(text)
    except ConfigError:
        return False


def _described(config: Mapping[str, Any]) -> tuple[object, ...]:
    head = nested(config, "model").get("head")
    size = head.get("num_classes") if isinstance(head, Mapping) else None
    return _class_of(_backbone(config)), size, {"resize": "bicubic", **_from_config(config)}


def _vit_options(config: ViTConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "type": "DistilledVisionTransformer" if config.distilled else "VisionTransformer",
        "qkv_bias": config.qkv_bias,
        "layer_scale_init_value": 1e-5 if config.layer_scale else 0.0,
        "pre_norm": config.pre_norm,
    }
    return options if config.distilled else {**options, "with_cls_token": config.class_token}


def _deit3_options(config: ViTConfig) -> dict[str, Any]:
    return {
        "type": "DeiT3",
        "qkv_bias": config.qkv_bias,
        "use_layer_scale": config.layer_scale,
        "with_cls_token": config.class_token,
    }


def _beit_options(config: ViTConfig) -> dict[str, Any]:
    return {
        "type": "BEiTViT",
        "bias": "qv_bias" if config.qkv_bias == "qv" else config.qkv_bias,
        "layer_scale_init_value": 0.1 if config.layer_scale else 0.0,
        "use_abs_pos_emb": config.pos_embed == "learned",
        "use_rel_pos_bias": config.rel_pos == "block",
        "use_shared_rel_pos_bias": config.rel_pos == "shared",
        "with_cls_token": config.class_token,
    }


def _eva02_options(config: ViTConfig) -> dict[str, Any]:
    sizes = {"embed_dims": config.embed_dim, "num_layers": config.depth, "num_heads": config.num_heads}
    return {
        "type": "ViTEVA02",
        "arch": {**sizes, "feedforward_channels": config.mlp_dim},
        "layer_cfgs": {},
        "qkv_bias": config.qkv_bias,
        "sub_ln": config.mlp_norm,
        "pre_norm": config.pre_norm,
        "with_cls_token": config.class_token,
    }


def _sam_options(config: ViTConfig) -> dict[str, Any]:
    window, full = _sam.stated_windows(config)
    sizes = {"embed_dims": config.embed_dim, "num_layers": config.depth, "num_heads": config.num_heads}
    return {
        "type": "ViTSAM",
        "arch": {**sizes, "feedforward_channels": config.mlp_dim, "global_attn_indexes": full},
        "final_norm": None,
        "out_channels": config.neck.chans if config.neck else 0,
        "qkv_bias": config.qkv_bias,
        "use_abs_pos": config.pos_embed == "learned",
        "use_rel_pos": config.rel_pos == "decomposed",
        "window_size": window,
    }


def _rows_of_tokens(config: ViTConfig) -> bool:
    return config.pos_embed == "none" or config.num_prefix_rows == config.num_prefix_tokens


_LIMITS: dict[str, object] = {
    "qkv_bias": (True, False),
    "qk_norm": False,
    "pre_norm": (True, False),
    "num_registers": 0,
    "pos_embed": "learned",
    "rope": None,
    "rel_pos": "none",
    "attn_norm": False,
    "mlp_norm": False,
    "prefix_norm": False,
    "pool": ("cls", "avg", "none"),
    "pool_prefix": False,
    "projection_dim": 0,
    "head_input": ("pooled", "cls_dist"),
    "stem": "patch",
}
_REQUIRES = (
    Requirement(
        "final_norm",
        lambda c: (c.pool == "avg") == (c.final_norm == "after"),
        "it norms the mean of the patches after it is taken, and all tokens otherwise",
    ),
    Requirement(
        "distilled",
        lambda c: not c.num_classes or c.distilled == (c.head_input == "cls_dist"),
        "its distilled class has a head for either token",
    ),
    Requirement(
        "representation_dim",
        lambda c: not c.representation_dim or c.num_classes > 0,
        "its layer before the classifier is part of the head",
    ),
    Requirement("pos_embed_prefix", _rows_of_tokens, "its position table has a row for each token"),
)
_SWIGLU_ACT = Requirement("act", lambda c: c.ffn == "mlp" or c.act == "silu", "its gates have SiLU")
_CONVENTIONS: dict[str, Any] = {"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"}


def _format(
    name: str,
    rules: tuple[Rule, ...],
    own: Callable[[ViTConfig], Mapping[str, Any]],
    mlps: Sequence[Mapping[str, str]],
    **options: Any,
) -> Format:
    """Return the format of one class; ``own`` gives the options of its config, ``mlps`` the names in its MLPs."""
    return Format(
        name="mmpretrain",
        project="mmpretrain",
        rules=rules,
        drops=_DROPS,
        dialects=tuple(
            Dialect(name, {"backbone": backbone, "head": head, **mlp})
            for backbone, head, mlp in product(("backbone.", ""), _HEADS, mlps)
        ),
        prefixes=("state_dict/", ""),
        sidecars=partial(_sidecars, own=own),
        dialect_for=_dialect_for,
        container="torch",
        filename="model.pth",
        **{"conventions": _CONVENTIONS, "state": _state, **options},
    )


FORMATS = (
    _format(
        "vit",
        _VIT,
        _vit_options,
        (_PLAIN, _GATED),
        limits={**_LIMITS, "ffn": ("mlp", "swiglu_packed")},
        requires=(
            *_REQUIRES,
            _SWIGLU_ACT,
            Requirement(
                "mlp_dim", lambda c: c.ffn == "mlp" or c.mlp_dim % 8 == 0, "the width of its gates is a multiple of 8"
            ),
            Requirement(
                "pre_norm", lambda c: not (c.pre_norm and c.distilled), "its distilled class has no first norm"
            ),
        ),
        evidence=partial(_evidence, classes=("VisionTransformer", "DistilledVisionTransformer")),
    ),
    _format(
        "deit3",
        _DEIT3,
        _deit3_options,
        (_PLAIN,),
        limits={**_LIMITS, "pre_norm": False, "distilled": False, "pos_embed_prefix": False, "pool": ("cls", "none")},
        returned_only=True,
        state=_state_deit3,
        evidence=_evidence_deit3,
    ),
    _format(
        "beit",
        _BEIT,
        _beit_options,
        (_PLAIN,),
        conventions={**_CONVENTIONS, "resize": "relpos-geometric"},
        limits={
            **_LIMITS,
            "qkv_bias": ("qv", True, False),
            "pos_embed": ("learned", "none"),
            "rel_pos": ("block", "shared", "none"),
            "pre_norm": False,
            "distilled": False,
            "pool": ("cls", "avg", "none"),
        },
        requires=(
            *_REQUIRES,
            Requirement(
                "rel_pos", lambda c: c.rel_pos == "none" or c.class_token, "its tables have rows for a class token"
            ),
        ),
        evidence=_evidence_beit,
    ),
    _format(
        "eva02",
        _EVA02,
        _eva02_options,
        (_GATED,),
        conventions={**_CONVENTIONS, "norm_eps": 1e-5},
        limits={
            **{name: value for name, value in _LIMITS.items() if name != "rope"},
            "mlp_norm": (True, False),
            "ffn": "swiglu_packed",
            "act": "silu",
            "distilled": False,
            "pool": ("cls", "avg", "none"),
        },
        requires=(
            *_REQUIRES,
            Requirement(
                "rope",
                lambda c: c.rope == _eva02_rope(c.num_heads, c.embed_dim),
                "its rotations are those of mmpretrain's EVA-02",
            ),
        ),
        state=_state_eva02,
        evidence=partial(_evidence, classes=("ViTEVA02",)),
    ),
    _format(
        "sam",
        _SAM,
        _sam_options,
        (_PLAIN,),
        conventions=_sam.CONVENTIONS,
        limits={
            **{name: value for name, value in _sam.LIMITS.items() if name != "num_classes"},
            "pool": ("avg", "none"),
        },
        requires=_sam.REQUIRES,
        state=_state_sam,
        evidence=partial(_evidence, classes=("ViTSAM",)),
    ),
)
