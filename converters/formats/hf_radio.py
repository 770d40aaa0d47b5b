"""NVIDIA's RADIO: Hugging Face transformers' Radio, the repositories with code of their own, and releases for torch.

The model normalises its images itself: pixels from 0 to 1 go in. That is folded into the patch embedding here, and
taken out again when a file is written. Source: transformers/models/radio/modeling_radio.py; NVlabs/RADIO,
radio/{radio_model,vit_patch_generator,hf_model}.py (arXiv 2312.06709).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_hub.converters.casting import cast, floats
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.formats.timm import mlp_ratio
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import (
    ANY,
    SQUARE_IMAGES,
    SQUARE_PATCHES,
    Dialect,
    Format,
    Requirement,
    Sidecars,
    Stated,
)
from vit_hub.converters.rules.table import Drop, Reading, Rule, rule, weight_and_bias
from vit_hub.converters.tensors import Array, LazyTensor, concat, from_array, split
from vit_hub.errors import CheckpointError
from vit_hub.model.config import ViTConfig

_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 16}
TYPES = (hf.ModelType("radio", "Radio", _DEFAULTS),)

_KERNEL, _BIAS, _TABLE = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"
# What the file has in place of these: one tensor of all tokens before the patches, and a kernel for normed pixels.
_TOKENS, _STORED_KERNEL = "prefix_tokens", "conditioner.kernel"
_MEAN, _STD, _SUMMARY = "conditioner.mean", "conditioner.std", "summary_idxs"
_STORED_TABLE = "${root}patch_generator.pos_embed"
_LAYER = "${root}blocks.{i}"
RULES: tuple[Rule, ...] = (
    rule(_MEAN, "input_conditioner.norm_mean", carried=True),
    rule(_STD, "input_conditioner.norm_std", carried=True),
    rule(_SUMMARY, "summary_idxs", carried=True),
    rule(_KERNEL, "${root}patch_generator.embedder.weight", "d (c p q) -> d c p q"),
    rule(_TABLE, _STORED_TABLE),
    rule(_TOKENS, "${root}patch_generator.cls_token.token"),
    *weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.norm1"),
    *weight_and_bias("blocks.{i}.attn.qkv", f"{_LAYER}.attn.qkv"),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.attn.proj"),
    rule("blocks.{i}.ls1.gamma", f"{_LAYER}.${{scale1}}"),
    *weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.norm2"),
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *weight_and_bias("blocks.{i}.mlp.fc1_g", f"{_LAYER}.mlp.gate_proj"),
    *weight_and_bias("blocks.{i}.mlp.fc1_x", f"{_LAYER}.mlp.up_proj"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.${{fc2}}"),
    rule("blocks.{i}.ls2.gamma", f"{_LAYER}.${{scale2}}"),
    *weight_and_bias("norm", "${root}norm"),
)
_DROPS = (
    Drop(r"${root}patch_generator\.video_embedder\..*", "patch embedding of videos: that of images is read"),
    Drop(r"adaptors\..*", "adaptor to a teacher, not part of the image encoder"),
    Drop(r"(inter_)?feature_normalizer\..*", "normalisation of features after the image encoder"),
)
_NATIVE = (("layer_scale1.lambda1", "layer_scale2.lambda1"),)
# NVIDIA's own code has timm's names; Hugging Face once renamed what is called gamma.
_OWN = (("ls1.gamma", "ls2.gamma"), ("ls1.grandma", "ls2.grandma"))
# A model in RADIO's own class, one that is trained, and the Vision Transformer alone.
_ROOTS = ("model.", "base_model.", "")
# Widths whose heads are another number than those of other models of their shape (timm's vit_giant_patch16_radio_v3).
_HEADS = {1536: 24}
# Releases whose own code resizes the position table as transformers' class does; that of the others aligns corners.
_ALIGNED_BY_CENTRES = ("c-radio_v3-l", "c-radio_v3-g", "c-radio_v4")

Values = npt.NDArray[np.float64]


def _wide(tensor: LazyTensor) -> str:
    return "F64" if tensor.dtype == "F64" else "F32"


def _channels(tensor: LazyTensor) -> Values:
    """Return mean or deviation of each channel, [C, 1, 1]."""
    return floats(tensor).astype(np.float64).reshape(-1, 1, 1)


def _of_channels(weight: Values, channels: LazyTensor) -> Values:
    """Return what a kernel makes of an image of one colour, [D]."""
    return np.asarray((weight * _channels(channels)).sum(axis=(1, 2, 3)))


def _folded(kernel: LazyTensor, mean: LazyTensor, std: LazyTensor) -> tuple[LazyTensor, LazyTensor]:
    """Return kernel and bias that do to pixels what a kernel does to normed ones."""

    def weight() -> Values:
        return floats(kernel).astype(np.float64) / _channels(std)

    def bias() -> Values:
        return -_of_channels(weight(), mean)

    dtype = _wide(kernel)
    return _computed(dtype, kernel.shape, weight), _computed(dtype, kernel.shape[:1], bias)


def _computed(dtype: str, shape: tuple[int, ...], values: Any) -> LazyTensor:
    wide = LazyTensor("F64", shape, lambda: np.asarray(values()))
    return cast(wide, dtype)


def _adjust(raw: RawCheckpoint, reading: Reading) -> None:
    """Fold the normalisation into the patch embedding, and cut the tokens; what was folded is kept to be written."""
    tensors, origin = reading.tensors, reading.origin
    if _TOKENS in tensors:
        tokens, names = tensors.pop(_TOKENS), origin.pop(_TOKENS)
        count = tokens.shape[0]
        parts = split(tokens, (1, count - 1)) if count > 1 else [tokens]
        for name, part in zip(("cls_token", "reg_token"), parts, strict=False):
            tensors[name], origin[name] = part.reshape((1, *part.shape)), names
    if _KERNEL in tensors and _MEAN in tensors and _STD in tensors:
        kernel = tensors[_STORED_KERNEL] = tensors[_KERNEL]
        for name in (_MEAN, _STD):
            if math.prod(tensors[name].shape) != kernel.shape[1]:
                raise CheckpointError(f"tensor {', '.join(origin[name])} has not one value for each channel")
        reading.carried.append(_STORED_KERNEL)
        tensors[_KERNEL], tensors[_BIAS] = _folded(kernel, tensors[_MEAN], tensors[_STD])
        origin[_STORED_KERNEL] = origin[_BIAS] = origin[_KERNEL]


def _restore(tensors: Mapping[str, LazyTensor], config: ViTConfig) -> dict[str, LazyTensor]:
    """Undo ``_adjust``; a patch bias that is not that of the normalisation is added to all positions.

    A model that was read otherwise gets a normalisation that does nothing.
    """
    found = dict(tensors)
    # One of these that the model has not may be carried.
    has = {"cls_token": config.class_token, "reg_token": config.num_registers}
    tokens = [found.pop(name) for name, count in has.items() if count and name in found]
    if tokens:
        dtype = tokens[0].dtype if len({token.dtype for token in tokens}) == 1 else "F32"
        found[_TOKENS] = concat([cast(token.reshape(token.shape[1:]), dtype) for token in tokens])
    kernel, bias, stored = found[_KERNEL], found.pop(_BIAS, None), found.pop(_STORED_KERNEL, None)
    if bias is None and stored is None:
        return found  # it needs one, and gets it
    chans = np.zeros((kernel.shape[1], 1, 1), np.float32)
    mean = found.setdefault(_MEAN, from_array(chans))
    std = found.setdefault(_STD, from_array(chans + 1))
    summary = np.array(config.pool_tokens or (0,))
    if _SUMMARY not in found or not np.array_equal(found[_SUMMARY].read(), summary):
        found[_SUMMARY] = from_array(summary)

    def as_read() -> bool:
        """Return True while the model has the values that were read."""
        if stored is None or stored.shape != kernel.shape:
            return False
        pairs = zip(_folded(stored, mean, std), (kernel, bias), strict=True)
        return all(now is not None and np.array_equal(old.read(), now.read()) for old, now in pairs)

    def weight() -> Values:
        return floats(kernel).astype(np.float64) * _channels(std)

    def positions() -> Values:
        offset = _of_channels(floats(kernel).astype(np.float64), mean)
        return np.asarray(floats(table).astype(np.float64) + (offset if bias is None else offset + floats(bias)))

    def chosen(own: LazyTensor | None, dtype: str, shape: tuple[int, ...], values: Any) -> LazyTensor:
        """A tensor as it was read, or computed where the model has changed since."""

        def read() -> Array:
            return own.read() if own is not None and as_read() else _computed(dtype, shape, values).read()

        return LazyTensor(dtype, shape, read)

    found[_KERNEL] = chosen(stored, stored.dtype if stored else _wide(kernel), kernel.shape, weight)
    if _TABLE in found:
        table = found[_TABLE]
        found[_TABLE] = chosen(table, table.dtype if stored else _wide(table), table.shape, positions)
    return found


def _axes(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    """Return the sizes of a patch, which is square."""
    shape = next((t.shape for name, t in tensors.items() if name.endswith("patch_generator.embedder.weight")), ())
    values = hf.tower_values(raw.sidecars)
    chans = values.get("num_channels", 3)
    if len(shape) != 2 or not isinstance(chans, int) or chans < 1:
        return {}
    side = math.isqrt(shape[1] // chans)
    return {"p": side, "q": side}


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; the native size of images is that of the position table, and the summary is the output."""
    values, stated = hf.read_config(raw, TYPES)
    native = hf.stated_type(raw.sidecars, TYPES) is not None
    fields = {name: value for name, value in stated.fields.items() if name != "image_size"}
    fields |= {"pool": "cls", "pos_embed_prefix": False, "resize_square": True, "resize": "bilinear"}
    guesses = {}
    if any(name.endswith("mlp.gate_proj.weight") for name in tensors):
        fields["act"] = "silu"
    if not native:
        width = tensors[dialect.variables["root"] + "patch_generator.embedder.weight"].shape[0]
        if "num_heads" not in fields and width in _HEADS:
            fields["num_heads"] = _HEADS[width]
            guesses["num_heads"] = f"num_heads={_HEADS[width]} is a guess, from the width of {width}"
        if not str(values.get("version", "")).startswith(_ALIGNED_BY_CENTRES):
            fields["resize"] = "bilinear-align-corners"
            guesses["resize"] = (
                "the position table is resized as RADIO's code did up to C-RADIOv3 (bilinear-align-corners): nothing "
                "in the file tells; transformers' class does it otherwise (resize=bilinear, --resize bilinear)"
            )
    summary = tensors["summary_idxs"].read().tolist() if "summary_idxs" in tensors else values.get("summary_idxs")
    if isinstance(summary, list):
        fields["pool_tokens"] = tuple(summary)
    else:
        guesses["pool_tokens"] = "which tokens RADIO's summary has is not stored: the first alone is read"
    return Stated(fields, stated.by, stated.warnings, guesses)


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return config.json of transformers' class."""
    earlier = hf.tower_values(passport.sidecars) if passport else {}
    first = max(config.pool_tokens, default=0) + 1
    classes = earlier.get("num_cls_tokens", first)
    if not isinstance(classes, int) or not first <= classes <= config.num_prefix_tokens:
        classes = first
    # Its gates have two thirds of the stated width.
    width = config.mlp_dim if config.ffn == "mlp" else config.mlp_dim * 3 // 2
    extra: dict[str, Any] = {
        "intermediate_size": None,
        "image_size": earlier.get("image_size", config.image_size[0]),
        "max_img_size": config.image_size[0],
        "mlp_ratio": mlp_ratio(config.embed_dim, width),
        "qkv_bias": config.qkv_bias,
        "use_swiglu_ffn": config.ffn == "swiglu",
        "num_cls_tokens": classes,
        "num_registers": config.num_prefix_tokens - classes,
        "summary_idxs": list(config.pool_tokens or (0,)),
        "norm_mean": earlier.get("norm_mean"),  # the tensors decide
        "norm_std": earlier.get("norm_std"),
        "patch_dim": config.in_chans * config.patch_size[0] * config.patch_size[1],
    }
    return hf.write_config(TYPES[0], config, passport, extra=extra, types=TYPES)


def _own_sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    """Return the config files of a repository with code of its own, which stay as they are."""
    return {**passport.sidecars} if passport else {}


def _dialects(name: str, scales: tuple[tuple[str, str], ...]) -> tuple[Dialect, ...]:
    return tuple(
        Dialect(name, {"family": "radio", "root": root, "scale1": first, "scale2": second, "fc2": fc2})
        for fc2 in ("fc2", "down_proj")
        for root in _ROOTS
        for first, second in scales
    )


def _format(dialects: tuple[Dialect, ...], **options: Any) -> Format:
    return hf.transformers_format(
        TYPES,
        rules=RULES,
        drops=_DROPS,
        dialects=dialects,
        dialect_for=lambda config, dialects: next(
            d for d in dialects if (d.variables["fc2"] == "fc2") == (config.ffn == "mlp")
        ),
        prefixes=("radio_model.", ""),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bilinear", "resize_square": True},
        limits={
            "class_token": True,
            "distilled": False,
            "ffn": ("mlp", "swiglu"),
            "final_norm": "none",
            "num_classes": 0,
            "patch_bias": True,
            "pool": "cls",
            "pool_tokens": ANY,
            "pos_embed": "learned",
            "pos_embed_prefix": False,
            "qkv_bias": (True, False),
        },
        requires=(
            SQUARE_IMAGES,
            SQUARE_PATCHES,
            Requirement("act", lambda c: c.ffn == "mlp" or c.act == "silu", "its gates use SiLU"),
            Requirement(
                "mlp_dim", lambda c: c.ffn == "mlp" or c.mlp_dim % 8 == 0, "the width of its gates is a multiple of 8"
            ),
        ),
        axes=_axes,
        state=_state,
        adjust=_adjust,
        restore=_restore,
        **options,
    )


FORMATS = (
    _format(_dialects("radio", _NATIVE), sidecars=_sidecars),
    _format(_dialects("nvidia-radio", _OWN), sidecars=_own_sidecars, returned_only=True),
)
