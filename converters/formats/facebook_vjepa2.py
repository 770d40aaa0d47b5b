"""facebookresearch/vjepa2: V-JEPA 2's own files, whose names are timm's and whose patches span frames.

A file holds the encoder, its moving average, which the project's evaluation reads, and a predictor. That of the first
V-JEPA has the same names, but a table of positions that is added, which is refused.
Source: vjepa2/src/models/vision_transformer.py, src/models/utils/modules.py, src/hub/backbones.py (arXiv 2506.09985).
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats.facebook import CONVENTIONS, facebook_format, is_original
from vit_hub.converters.rules.format import ANY, Dialect, Requirement, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import Rope

_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
RULES = (
    # Older files have a table that is not used.
    rule("unused_positions", "pos_embed", carried=True),
    *weight_and_bias("patch_embed.proj"),
    *(one for layer in _LAYERS for one in weight_and_bias(f"blocks.{{i}}.{layer}")),
    *weight_and_bias("norm"),
)
_ROPE = Rope(frames=True, pairs="tiled")
# The giant has heads of 64 channels, where other models of its width have wider ones.
_HEADS = {1408: 22}
# Rows of the table of the first V-JEPA: 8 pairs of frames of 14x14 or 24x24 patches.
_FIRST = (1568, 4608)


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence: kernels that span frames, and biases of keys."""
    kernel = raw.tensors.get(f"{prefix}patch_embed.proj.weight")
    return is_original(raw, 2) if kernel is not None and len(kernel.shape) == 5 else -1


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return what the project's models have in common.

    Raises:
        ConfigError: a model of the first V-JEPA.
    """
    kernel, table = tensors["patch_embed.proj.weight"].shape, tensors.get("pos_embed")
    if table is not None and table.shape[-2] in _FIRST:
        raise ConfigError(
            f"{raw.path}: pos_embed: its {table.shape[-2]} rows are those of the first V-JEPA, whose positions in time "
            "and space are not supported"
        )
    tubelet = kernel[2] if len(kernel) == 5 else 1
    fields = {
        "rope": _ROPE,
        "pos_embed": "none",
        "pool": "none",
        "image_size": 256,
        "video": {"frames": 32 * tubelet, "tubelet": tubelet},
        **({"num_heads": _HEADS[kernel[0]]} if kernel[0] in _HEADS else {}),
    }
    return Stated(fields, "what V-JEPA 2's models do")


FORMATS = (
    facebook_format(
        "vjepa2",
        rules=RULES,
        dialects=(Dialect("vjepa2"),),
        prefixes=(
            "target_encoder/module.backbone.",
            "encoder/module.backbone.",
            "target_encoder/backbone.",
            "encoder/backbone.",
            "target_encoder/",
            "encoder/",
            "",
        ),
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
)
