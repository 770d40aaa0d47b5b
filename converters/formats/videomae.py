"""MCG-NJU/VideoMAE's own files, of pre-training and of classifiers, and those of VideoMAE V2, which have their names.

Source: VideoMAE/modeling_pretrain.py, modeling_finetune.py (arXiv 2203.12602, 2303.16727).
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.rules.format import ANY, Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor

_LAYERS = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_BIASES = ("attn.qkv.weight", "attn.q_bias", "attn.v_bias")
RULES = (
    *weight_and_bias("patch_embed.proj"),
    *(one for layer in _LAYERS for one in weight_and_bias(f"blocks.{{i}}.{layer}")),
    *(rule(f"blocks.{{i}}.{name}", f"blocks.{{i}}.{name}") for name in _BIASES),
    rule("blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
    rule("blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
    *weight_and_bias("norm"),
    *weight_and_bias("fc_norm"),
    *weight_and_bias("head"),
)
_POOLING = {("avg", "after"), ("first", "before"), ("none", "before")}
_FRAMES = 16


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence: kernels that span frames."""
    kernel = raw.tensors.get(f"{prefix}patch_embed.proj.weight")
    return 4 if kernel is not None and len(kernel.shape) == 5 else -1


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Tell the video by the kernel, and the pooling by the norms."""
    kernel = tensors["patch_embed.proj.weight"].shape
    tubelet = kernel[2] if len(kernel) == 5 else 1
    pool = "avg" if "fc_norm.weight" in tensors else "first" if "head.weight" in tensors else "none"
    fields = {"video": {"frames": _FRAMES, "tubelet": tubelet}, "pos_embed": "sincos1d", "pool": pool}
    guess = f"video.frames={_FRAMES} is a guess, that of all published models: nothing in the file tells it"
    return Stated(fields, "what VideoMAE's models do", guesses={"video": guess})


FORMATS = (
    Format(
        name="videomae",
        project="MCG-NJU/VideoMAE",
        rules=RULES,
        prefixes=("module/", "model/", "model/encoder.", "module/encoder.", ""),
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"},
        limits={
            "class_token": False,
            "qkv_bias": ("qv", False),
            "patch_bias": True,
            "pos_embed": "sincos1d",
            "video": ANY,
            "norm_eps": 1e-6,
            "final_norm_eps": None,
            "act": "gelu",
        },
        requires=(
            Requirement("video", lambda c: c.video is not None and c.video.joint, "its patches span frames of a video"),
            Requirement(
                "pool",
                lambda c: (c.pool, c.final_norm) in _POOLING,
                "it norms the mean of the patches, or all of them and then reads the first",
            ),
        ),
        evidence=_evidence,
        state=_state,
        container="torch",
        filename="model.pth",
    ),
)
