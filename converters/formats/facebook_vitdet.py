"""ViTDet's backbones in detectron2's files: the encoder under ``backbone.net``, beside the pyramid and the detector."""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _sam, _vitdet
from vit_hub.converters.rules.format import Dialect, Format, Stated
from vit_hub.converters.tensors import LazyTensor

_BLOCK = "blocks.{i}"
# Transformers' files keep theirs under another name: it need not be of the same size.
_TABLE = "sized.positions"


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    fields, warnings = _sam.fields_of_shapes(tensors, "", _BLOCK)
    said = _vitdet.remark(tensors, "pos_embed", fields, tensors["patch_embed.proj.weight"].shape[-1])
    return Stated({**fields, "pool": "none"}, "shapes of the position tables", (*warnings, *said))


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence: a table of rows, and relative positions by axis without a neck."""
    table = raw.tensors.get(f"{prefix}pos_embed")
    rows = table is not None and len(table.shape) == 3
    return 2 if rows and f"{prefix}blocks.0.attn.rel_pos_h" in raw.tensors else -1


FORMATS = (
    Format(
        name="facebook",
        project="facebookresearch/detectron2's ViTDet",
        rules=_vitdet.rules("pos_embed", "patch_embed.proj", _BLOCK, "attn", _TABLE),
        dialects=(Dialect("vitdet"),),
        prefixes=("model/backbone.net.", "backbone.net.", ""),
        conventions=_sam.CONVENTIONS,
        limits={**_sam.TRUNK, "norm_eps": 1e-6, "act": "gelu"},
        requires=_sam.WINDOWS,
        axes=lambda raw, tensors: _vitdet.row_counts(tensors, "pos_embed") if "pos_embed" in tensors else {},
        evidence=_evidence,
        adjust=lambda raw, reading: _vitdet.fit_positions(reading, _TABLE, None),
        state=_state,
        container="torch",
        filename="model.pth",
    ),
)
