"""Hugging Face transformers' VitDet: ViTDet's backbone, whose output are the tokens after its last block.

Source: transformers/models/vitdet/modeling_vitdet.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _sam, _vitdet
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Reading
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig, check_fields, size_pair

_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 12,
    "image_size": 224,
    "window_size": 0,
    "window_block_indices": [],
}
TYPES = (hf.ModelType("vitdet", "VitDet", _DEFAULTS),)
_TABLE = "sized.position_table"
_POSITIONS = "${root}embeddings.position_embeddings"
_PATCH = "${root}embeddings.projection"


def _refusal(raw: RawCheckpoint) -> str:
    """Refuse residual blocks of convolutions."""
    values = hf.tower_values(raw.sidecars)
    if values.get("model_type") == "vitdet" and values.get("residual_block_indices"):
        return f"config.json: residual_block_indices={values['residual_block_indices']} (convolutions) is not supported"
    return ""


def _fit(raw: RawCheckpoint, reading: Reading) -> None:
    size = hf.tower_values(raw.sidecars).get("image_size")
    _vitdet.fit_positions(reading, _TABLE, None if size is None else size_pair("image_size", size))


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Read config.json; what it does not state shapes tell.

    Raises:
        ConfigError: blocks with windows are no numbers.
    """
    values, stated = hf.read_config(raw, TYPES)
    root = dialect.variables["root"]
    shown, guesses = _sam.fields_of_shapes(tensors, root, "encoder.layer.{i}", "embeddings.projection", "attention")
    if "window_size" in values:
        guesses, within = (), values["window_block_indices"]
        if not isinstance(within, (list, tuple)) or not all(isinstance(block, int) for block in within):
            raise ConfigError(f"{raw.path}: window_block_indices={within!r} are no numbers of blocks")
        depth = values.get("num_hidden_layers", 12)
        check_fields({"depth": depth})
        full = [block for block in range(depth) if block not in within]
        shown["windows"] = _sam.windows_of(values["window_size"], full)
    fields = {**shown, **stated.fields, "pool": "none"}
    patch = tensors[f"{root}embeddings.projection.weight"].shape[-1]
    said = _vitdet.remark(tensors, f"{root}embeddings.position_embeddings", fields, patch)
    return replace(stated, fields=fields, warnings=(*stated.warnings, *guesses, *said))


def _axes(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    found = (name for name in tensors if name.endswith("embeddings.position_embeddings"))
    return next((_vitdet.row_counts(tensors, name) for name in found), {})


def _sidecars(config: ViTConfig, passport: Passport | None) -> Sidecars:
    window, full = _sam.stated_windows(config)
    earlier = hf.tower_values(passport.sidecars) if passport else {}
    kept = passport is not None and _TABLE in passport.carried and not passport.resized_from
    extra = {
        "intermediate_size": None,
        "mlp_ratio": config.mlp_dim // config.embed_dim,
        "qkv_bias": config.qkv_bias,
        "use_absolute_position_embeddings": config.pos_embed == "learned",
        "use_relative_position_embeddings": config.rel_pos == "decomposed",
        "pretrain_image_size": earlier.get("pretrain_image_size") if kept else config.image_size[0],
        "window_size": window,
        "window_block_indices": [block for block in range(config.depth) if window and block not in full],
        "residual_block_indices": [],
    }
    return hf.write_config(TYPES[0], config, passport, extra=extra)


FORMATS = (
    hf.transformers_format(
        TYPES,
        rules=_vitdet.rules(_POSITIONS, _PATCH, "${root}encoder.layer.{i}", "attention", _TABLE),
        dialects=tuple(Dialect("", {"family": "vitdet", "root": root}) for root in ("", "vitdet.", "backbone.")),
        conventions=_sam.CONVENTIONS,
        limits=_sam.TRUNK,
        requires=(
            *_sam.WINDOWS,
            hf.SQUARE,
            Requirement("mlp_dim", lambda c: c.mlp_dim % c.embed_dim == 0, "its MLP is a whole multiple of its width"),
        ),
        axes=_axes,
        refuses=_refusal,
        adjust=_fit,
        state=_state,
        sidecars=_sidecars,
    ),
)
