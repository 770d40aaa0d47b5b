"""Image towers of Hugging Face transformers' Qwen2-VL, Qwen2.5-VL and Qwen3-VL, with their patch mergers.

Omni models and some of other projects have the same towers, the former under names of their own.

An image is a video of two frames that stands still; frames do not see one another. The mergers of Qwen3-VL that feed
deeper layers of the language model are carried along.
Source: transformers/models/{qwen2_vl,qwen2_5_vl,qwen2_5_omni,qwen3_vl,qwen3_5,qwen3_omni_moe,qwen4_exp,
cohere_compass,exaone4_5}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import ANY, Dialect, Format, Requirement, Sidecars, Stated, rotary
from vit_hub.converters.rules.table import Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import Merger, Rope, Video, ViTConfig, Windows

_DEFAULTS: dict[str, Any] = {"num_heads": 16, "patch_size": 14, "spatial_merge_size": 2}
_QWEN2 = (
    hf.ModelType(
        "qwen2_vl_vision",
        "Qwen2VisionTransformerPretrained",
        {**_DEFAULTS, "hidden_act": "quick_gelu"},
        whole="qwen2_vl",
    ),
)
_QWEN2_5_DEFAULTS = {
    **_DEFAULTS,
    "hidden_act": "silu",
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN2_5 = (
    hf.ModelType("qwen2_5_vl_vision", "Qwen2_5_VisionTransformerPretrained", _QWEN2_5_DEFAULTS, whole="qwen2_5_vl"),
    hf.ModelType("exaone4_5_vision", "Exaone4_5_Vision", _QWEN2_5_DEFAULTS, whole="exaone4_5"),
    hf.ModelType("qwen2_5_omni_vision_encoder", "Qwen2_5OmniVision", _QWEN2_5_DEFAULTS),
)
_QWEN3_DEFAULTS = {**_DEFAULTS, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh"}
_QWEN3 = (
    hf.ModelType("qwen3_vl_vision", "Qwen3VLVision", _QWEN3_DEFAULTS, whole="qwen3_vl"),
    hf.ModelType("qwen3_vl_moe_vision", "Qwen3VLMoeVision", _QWEN3_DEFAULTS, whole="qwen3_vl_moe"),
    hf.ModelType("qwen3_5_vision", "Qwen3_5Vision", _QWEN3_DEFAULTS, whole="qwen3_5"),
    hf.ModelType("qwen3_5_moe_vision", "Qwen3_5MoeVision", _QWEN3_DEFAULTS, whole="qwen3_5_moe"),
    hf.ModelType("qwen4_exp_vision", "Qwen4ExpVision", _QWEN3_DEFAULTS, whole="qwen4_exp"),
    hf.ModelType("cohere_compass_vision", "CohereCompassVision", _QWEN3_DEFAULTS, whole="cohere_compass"),
    hf.ModelType("qwen3_omni_moe_vision_encoder", "Qwen3OmniMoeVision", _QWEN3_DEFAULTS),
)
# Their classes are called encoders.
_ENCODERS = ("qwen2_5_omni_vision_encoder", "qwen3_omni_moe_vision_encoder")


def _rules(mlp: Mapping[str, str], merger: Mapping[str, str]) -> tuple[Rule, ...]:
    layers = ("norm1", "attn.proj", "norm2")
    return (
        *weight_and_bias("patch_embed.proj"),
        *weight_and_bias("blocks.{i}.attn.qkv", "blocks.{i}.attn.${qkv}"),
        *(one for layer in layers for one in weight_and_bias(f"blocks.{{i}}.{layer}")),
        *(
            one
            for ours, theirs in mlp.items()
            for one in weight_and_bias(f"blocks.{{i}}.mlp.{ours}", f"blocks.{{i}}.mlp.{theirs}")
        ),
        *(one for ours, theirs in merger.items() for one in weight_and_bias(f"merger.{ours}", f"merger.{theirs}")),
    )


_MERGER = {"norm": "ln_q", "fc1": "mlp.0", "fc2": "mlp.2"}
_MERGER3 = {"norm": "${norm}", "fc1": "${fc1}", "fc2": "${fc2}"}
# Names of queries, keys and values, and of the layers of Qwen3-VL's mergers, in its own models and in omni ones.
_NAMES = {
    "": {"qkv": "qkv", "norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2", "deep": "deepstack_merger_list"},
    "omni": {"qkv": "q+k+v"},
    "omni3": {"qkv": "qkv", **_MERGER, "deep": "merger_list"},
}
_QWEN2_RULES = _rules({"fc1": "fc1", "fc2": "fc2"}, _MERGER)
_QWEN2_5_RULES = _rules({"fc1_g": "gate_proj", "fc1_x": "up_proj", "fc2": "down_proj"}, _MERGER)
_QWEN3_RULES = (
    *_rules({"fc1": "linear_fc1", "fc2": "linear_fc2"}, _MERGER3),
    rule("pos_embed", "pos_embed.weight", "n d -> 1 n d"),
    *(
        one
        for ours, theirs in _MERGER3.items()
        for one in weight_and_bias(f"deepstack.{{k}}.{ours}", f"${{deep}}.{{k}}.{theirs}", carried=True)
    ),
)
# A size at which towers without a table are measured and compared: about that of most image models.
_SIDE = 224


def _state(
    types: tuple[hf.ModelType, ...], raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect
) -> Stated:
    """Read config.json.

    Raises:
        ConfigError: windows are none.
    """
    values, stated = hf.read_config(raw, types)
    kernel = tensors["patch_embed.proj.weight"].shape
    tubelet, patch = (kernel[2], kernel[4]) if len(kernel) == 5 else (1, 1)
    side = values.get("spatial_merge_size", 2)
    fields: dict[str, Any] = {
        **stated.fields,
        "video": {"frames": tubelet, "tubelet": tubelet, "joint": False},
        "rope": Rope(theta=_theta(values), pairs="half"),
    }
    if "num_heads" in values:
        fields["num_heads"] = values["num_heads"]
    if "pos_embed.weight" not in tensors:
        unit = patch * side
        fields["image_size"] = max(_SIDE // unit, 1) * unit
    if types is _QWEN2_5:
        fields["windows"] = _windows(values, patch, side)
    return replace(stated, fields=fields)


def _theta(values: Mapping[str, Any]) -> float:
    parameters = values.get("rope_parameters")
    theta = parameters.get("rope_theta") if isinstance(parameters, Mapping) else None
    return float(theta) if isinstance(theta, (int, float)) else Rope().theta


def _windows(values: Mapping[str, Any], patch: int, merge: int) -> dict[str, Any]:
    """Return windows of whole squares of patches that are merged, as its class cuts them from so many pixels."""
    pixels, full = values.get("window_size", 112), values.get("fullatt_block_indexes", [7, 15, 23, 31])
    side = pixels // merge // patch * merge if isinstance(pixels, int) else 0
    if side < 1 or not isinstance(full, (list, tuple)):
        raise ConfigError(f"windows: window_size={pixels!r}, fullatt_block_indexes={full!r} give no windows of patches")
    return {"size": (side, side), "full": tuple(full), "pad": False}


def _sidecars(types: tuple[hf.ModelType, ...], config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return config.json of the tower alone, as its class writes it."""
    kind = (hf.stated_type(passport.sidecars, types) if passport else None) or types[0]
    merger, rope = config.merger or Merger(dim=1), config.rope or Rope()
    extra: dict[str, Any] = {
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "layer_norm_eps", "image_size", "num_channels")),
        "depth": config.depth,
        "num_heads": config.num_heads,
        "in_channels": config.in_chans,
        "spatial_merge_size": merger.size,
        "temporal_patch_size": config.video.tubelet if config.video else 1,
        "rope_parameters": {"rope_type": "axial", "rope_theta": rope.theta},
    }
    if types is _QWEN2:
        ratio = config.mlp_dim // config.embed_dim
        extra |= {"embed_dim": config.embed_dim, "hidden_size": merger.dim, "mlp_ratio": ratio}
        extra["intermediate_size"] = None
    else:
        extra["out_hidden_size"] = merger.dim
    if types is _QWEN2_5:
        windows = config.windows or Windows(size=(merger.size, merger.size), full=tuple(range(config.depth)))
        pixels = windows.size[0] * config.patch_size[0]
        extra |= {"window_size": pixels, "fullatt_block_indexes": list(windows.full)}
    if types is _QWEN3:
        earlier = hf.tower_values(passport.sidecars) if passport else {}
        extra |= {
            "num_position_embeddings": config.num_patches,
            "deepstack_visual_indexes": earlier.get("deepstack_visual_indexes", []),
        }
    head = "Encoder" if kind.name in _ENCODERS else ""
    return hf.write_config(kind, config, passport, extra=extra, types=types, head=head)


_REQUIRES = (
    hf.SQUARE,
    Requirement("merger", lambda c: c.merger is not None, "it ends in a merger"),
    Requirement(
        "video",
        lambda c: c.video == Video(frames=c.video.tubelet, tubelet=c.video.tubelet, joint=False) if c.video else False,
        "its patches span the frames of a patch only",
    ),
    rotary({"pairs": "half"}, "its rotations are those of row and column, in halves"),
)


def _format(
    types: tuple[hf.ModelType, ...],
    rules: tuple[Rule, ...],
    *requires: Requirement,
    resize: str,
    other: str = "",
    **limits: object,
) -> Format:
    return hf.transformers_format(
        types,
        rules=rules,
        dialects=tuple(Dialect("", {"family": types[0].name, **_NAMES[names]}) for names in dict.fromkeys(("", other))),
        conventions={"act": hf.ACTIVATIONS[types[0].defaults["hidden_act"]], "norm_eps": 1e-6, "resize": resize},
        limits={
            "norm_eps": 1e-6,
            "qkv_bias": True,
            "class_token": False,
            "num_registers": 0,
            "final_norm": "none",
            "pool": "none",
            "num_classes": 0,
            "merger": ANY,
            "video": ANY,
            **limits,
        },
        requires=(*_REQUIRES, *requires),
        state=partial(_state, types),
        sidecars=partial(_sidecars, types),
    )


FORMATS = (
    _format(
        _QWEN2,
        _QWEN2_RULES,
        Requirement("mlp_dim", lambda c: c.mlp_dim % c.embed_dim == 0, "its MLP is a whole multiple of its width"),
        resize="bicubic",
        pos_embed="none",
        patch_bias=False,
    ),
    _format(
        _QWEN2_5,
        _QWEN2_5_RULES,
        Requirement(
            "windows",
            lambda c: (
                c.windows is None
                or (
                    not c.windows.pad
                    and len(set(c.windows.size)) == 1
                    and (c.merger is None or c.windows.size[0] % c.merger.size == 0)
                )
            ),
            "its windows are whole squares of patches that are merged, not filled at the edges",
        ),
        resize="bicubic",
        other="omni",
        pos_embed="none",
        patch_bias=False,
        norm="rms",
        ffn="swiglu",
        windows=ANY,
    ),
    _format(_QWEN3, _QWEN3_RULES, resize="bilinear-align-corners", other="omni3", pos_embed="learned", patch_bias=True),
)
