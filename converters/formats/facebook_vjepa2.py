"""facebookresearch/vjepa2: V-JEPA 2's own files, whose names are timm's and whose patches span frames.

A file holds the encoder, its moving average, which the project's evaluation reads, and a predictor. That of the first
V-JEPA has the same names, but a table of positions that is added, which is refused. V-JEPA 2.1 rotates other pairs, by
coordinates that do not depend on the size of the grid, and adds a vector to the patches of videos, and another to those
of single images, which it cuts otherwise.
Source: vjepa2/src/models/vision_transformer.py, src/models/utils/modules.py, src/hub/backbones.py,
app/vjepa_2_1/models/vision_transformer.py, app/vjepa_2_1/models/utils/modules.py (arXiv 2506.09985).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_hub.converters.casting import floats
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats.facebook import CONVENTIONS, facebook_format, is_original
from vit_hub.converters.rules.format import ANY, Dialect, Requirement, Stated
from vit_hub.converters.rules.table import Reading, rule, weight_and_bias
from vit_hub.converters.tensors import Array, LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import Rope

_VIDEO = "video_mod_embed"
_COMMON = tuple(
    one
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for one in weight_and_bias(f"blocks.{{i}}.{layer}")
)
RULES = (
    # Older files have a table that is not used.
    rule("unused_positions", "pos_embed", carried=True),
    *weight_and_bias("patch_embed.proj"),
    *_COMMON,
    *weight_and_bias("norm"),
)
_STORED_BIAS = "stored.patch_embed.bias"
# The norms before the last one are for outputs of earlier blocks.
_LAST = 3
RULES_2_1 = (
    rule("patch_embed.proj.weight", "patch_embed.proj.weight"),
    rule("patch_embed.proj.bias", "patch_embed.proj.bias"),
    rule(_STORED_BIAS, "patch_embed.proj.bias", carried=True),
    *weight_and_bias("unused.patch_embed_img.proj", "patch_embed_img.proj", carried=True),
    *(rule(f"unused.{name}", name, carried=True) for name in ("img_mod_embed", _VIDEO)),
    *_COMMON,
    *(one for k in range(_LAST) for one in weight_and_bias(f"unused.norms.{k}", f"norms_block.{k}", carried=True)),
    *weight_and_bias("norm", f"norms_block.{_LAST}"),
)
_ROPE = Rope(frames=True, pairs="tiled")
_ROPE_2_1 = Rope(frames=True, reference_grid=(16, 16), reference_ends=True)
# The largest have heads of 64 channels, where other models of their width have wider ones.
_HEADS = {1408: 22, 1664: 26}
# Rows of the table of the first V-JEPA: 8 pairs of frames of 14x14 or 24x24 patches.
_FIRST = (1568, 4608)


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence: kernels that span frames, and biases of keys."""
    kernel = raw.tensors.get(f"{prefix}patch_embed.proj.weight")
    return is_original(raw, 2) if kernel is not None and len(kernel.shape) == 5 else -1


def _common(tensors: Mapping[str, LazyTensor], rope: Rope, size: int) -> dict[str, Any]:
    kernel = tensors["patch_embed.proj.weight"].shape
    tubelet = kernel[2] if len(kernel) == 5 else 1
    return {
        "rope": rope,
        "pos_embed": "none",
        "pool": "none",
        "image_size": size,
        "video": {"frames": 32 * tubelet, "tubelet": tubelet},
        **({"num_heads": _HEADS[kernel[0]]} if kernel[0] in _HEADS else {}),
    }


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return what the project's models have in common.

    Raises:
        ConfigError: a model of the first V-JEPA.
    """
    table = tensors.get("pos_embed")
    if table is not None and table.shape[-2] in _FIRST:
        raise ConfigError(
            f"{raw.path}: pos_embed: its {table.shape[-2]} rows are those of the first V-JEPA, whose positions in time "
            "and space are not supported"
        )
    return Stated(_common(tensors, _ROPE, 256), "what V-JEPA 2's models do")


def _state_2_1(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return what the models of V-JEPA 2.1 have in common; warn of single images."""
    images = (
        "a single image is taken as a video that stands still: V-JEPA 2.1 cuts it into patches of one frame with a "
        "kernel of its own (patch_embed_img), which is carried along"
    )
    return Stated(_common(tensors, _ROPE_2_1, 384), "what V-JEPA 2.1's models do", (images,))


def _add_modality(raw: RawCheckpoint, reading: Reading) -> None:
    """Add the vector of videos to the bias of the patch embedding; the stored bias is kept to be written."""
    bias, vector = reading.tensors["patch_embed.proj.bias"], reading.tensors[f"unused.{_VIDEO}"]
    reading.tensors[_STORED_BIAS], reading.origin[_STORED_BIAS] = bias, reading.origin["patch_embed.proj.bias"]
    reading.carried.append(_STORED_BIAS)

    def read() -> Array:
        return np.asarray(floats(bias) + floats(vector).reshape(-1))

    dtype = "F64" if bias.dtype == "F64" else "F32"
    reading.tensors["patch_embed.proj.bias"] = LazyTensor(dtype, bias.shape, read)


def _prefixes(*keys: str) -> tuple[str, ...]:
    """Return what may stand before the names: a key of the file, and wrappers; or nothing."""
    return (*(f"{key}/{wrappers}" for wrappers in ("module.backbone.", "backbone.", "") for key in keys), "")


FORMATS = (
    facebook_format(
        "vjepa2",
        rules=RULES,
        dialects=(Dialect("vjepa2"),),
        prefixes=_prefixes("target_encoder", "encoder"),
        conventions=CONVENTIONS,
        limits={
            "class_token": False,
            "qkv_bias": True,
            "patch_bias": True,
            "pos_embed": "none",
            "video": ANY,
            "final_norm": "before",
            "final_norm_eps": None,
            "pool": "none",
        },
        requires=(
            Requirement("video", lambda c: c.video is not None and c.video.joint, "its patches span frames of a video"),
            Requirement("rope", lambda c: c.rope == _ROPE, "its rotations are those of frame, row and column"),
        ),
        evidence=_evidence,
        state=_state,
    ),
    facebook_format(
        "vjepa2's V-JEPA 2.1",
        rules=RULES_2_1,
        dialects=(Dialect("vjepa2_1"),),
        prefixes=_prefixes("ema_encoder", "target_encoder", "encoder"),
        conventions=CONVENTIONS,
        evidence=_evidence,
        adjust=_add_modality,
        state=_state_2_1,
        returned_only=True,
    ),
)
