"""Segment Anything's own files, such as sam_vit_b_01ec64.pth, and those of models tuned from them, such as MedSAM.

A file holds the whole model, the image encoder under ``image_encoder``; nothing beside it states the config.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _sam
from vit_hub.converters.rules.format import Dialect, Format, Stated
from vit_hub.converters.rules.table import Drop
from vit_hub.converters.tensors import LazyTensor

_BLOCK = "blocks.{i}"
_LAYERS = {"norm1": "norm1", "norm2": "norm2", "fc1": "mlp.lin1", "fc2": "mlp.lin2"}


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    fields, warnings = _sam.fields_of_shapes(tensors, "", _BLOCK)
    return Stated(fields, "shapes of the position tables", warnings)


FORMATS = (
    Format(
        name="facebook",
        project="Segment Anything",
        rules=_sam.rules("", _BLOCK, _LAYERS),
        drops=(Drop(r"net_[23]\..*", "convolutions before a language model, not part of the encoder"),),
        dialects=(Dialect("sam"),),
        prefixes=("image_encoder.",),
        conventions=_sam.CONVENTIONS,
        limits={**_sam.LIMITS, "norm_eps": 1e-6, "act": "gelu", "qkv_bias": True},
        requires=_sam.REQUIRES,
        state=_state,
        lacks=(
            "the file has the image encoder alone, and Segment Anything's own files the whole model: load it into "
            "Sam.image_encoder, without the prefix image_encoder."
        ),
        container="torch",
        filename="model.pth",
    ),
)
