"""timm's VisionTransformer with attention and feed-forward layer side by side (arXiv 2302.05442, section 2).

The first layers of both are one tensor, rows of the feed-forward layer first. The last ones are two, or one whose
columns are those of attention and then those of the feed-forward layer.
Source: timm/models/vision_transformer.py, ParallelScalingBlock and DiffParallelScalingBlock.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _timm, timm
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor

_BLOCK = "blocks.{i}"
_IN = ("f", "3d")  # rows of the feed-forward layer, of queries, keys and values
COMMON = (
    *(rule(name, name) for name in timm.NAMES if not name.startswith("blocks.")),
    *weight_and_bias(f"{_BLOCK}.norm1", f"{_BLOCK}.in_norm"),
    rule((f"{_BLOCK}.mlp.fc1.weight", f"{_BLOCK}.attn.qkv.weight"), f"{_BLOCK}.in_proj.weight", weights=_IN),
    rule((f"{_BLOCK}.mlp.fc1.bias", f"{_BLOCK}.attn.qkv.bias"), f"{_BLOCK}.in_proj.bias", weights=_IN),
    rule(f"{_BLOCK}.mlp.fc1.bias", f"{_BLOCK}.mlp_bias"),
    *weight_and_bias(f"{_BLOCK}.attn.q_norm", f"{_BLOCK}.q_norm"),
    *weight_and_bias(f"{_BLOCK}.attn.k_norm", f"{_BLOCK}.k_norm"),
    *(rule(f"{_BLOCK}.attn.{name}", f"{_BLOCK}.{name}") for name in timm.LAMBDAS),
    rule(f"{_BLOCK}.ls1.gamma", f"{_BLOCK}.ls.gamma"),
)
_SEPARATE = (
    *weight_and_bias(f"{_BLOCK}.attn.proj", f"{_BLOCK}.attn_out_proj"),
    *weight_and_bias(f"{_BLOCK}.mlp.fc2", f"{_BLOCK}.mlp_out_proj"),
)
_JOINT = (
    rule(
        (f"{_BLOCK}.attn.proj.weight", f"{_BLOCK}.mlp.fc2.weight"),
        f"{_BLOCK}.out_proj.weight",
        weights=("d", "f"),
        axis=1,
    ),
    rule(f"{_BLOCK}.mlp.fc2.bias", f"{_BLOCK}.out_proj.bias"),
)


def _widths(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> Mapping[str, int]:
    """The width of the tokens, and that of the feed-forward layer."""
    shape = tensors["blocks.0.in_proj.weight"].shape if "blocks.0.in_proj.weight" in tensors else ()
    return {"d": shape[1], "f": max(shape[0] - 3 * shape[1], 0)} if len(shape) == 2 else {}


def _format(dialect: str, kind: str, rules: tuple[Rule, ...], *, differential: bool) -> Format:
    def state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], spelling: Dialect) -> Stated:
        stated = _timm.state(raw, tensors)
        by = stated.by or "what timm's architectures with these tensors do"
        return Stated({"parallel": kind, **stated.fields}, by, stated.warnings)

    return Format(
        name="timm",
        project="timm",
        rules=(*COMMON, *rules),
        dialects=(Dialect(dialect),),
        prefixes=timm.PREFIXES,
        conventions={"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic-antialias"},
        limits={
            "parallel": kind,
            "differential": differential,
            "norm": ("layer", "rms"),
            "qk_norm": (True, False, "rms"),
            "norm_position": "pre",
            "qkv_bias": (True, False),
            "attn_norm": False,
            "mlp_norm": False,
            "distilled": False,
            "pos_embed": ("learned", "none"),
            "representation_dim": 0,
            "stem": "patch",
            "pool": ("cls", "avg", "map", "none"),
        },
        requires=(
            timm.PATCH_BIAS,
            timm.REGISTER_ROWS,
            Requirement(
                "pool_mlp_dim",
                lambda c: c.pool_mlp_dim in (0, c.mlp_dim),
                "it pools with an MLP as wide as its blocks'",
            ),
        ),
        axes=_widths,
        evidence=lambda raw, prefix: timm.evidence(raw, "VisionTransformer"),
        state=state,
        sidecars=timm.sidecars,
    )


FORMATS = (
    _format("parallel", "separate", _SEPARATE, differential=False),
    _format("parallel-fused", "joint", _JOINT, differential=True),
)
