"""google-research/vision_transformer: the original JAX checkpoints and hybrids, ``.npz`` with flax parameter names.

Two spellings: the public files keep the names of the pre-linen code, files saved by today's code have those of linen.
Source: vit_jax/models_vit.py, models_resnet.py and vit_jax/checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats._flax import CONVENTIONS, LIMITS, dense, encoder_block, norm
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import Rule, rule
from vit_hub.converters.tensors import LazyTensor

_CONV = "k l i o -> o i k l"
# The public files keep group-norm parameters as [1, 1, 1, C].
_GROUP_NORM = ("n -> n", "1 1 1 n -> n")
_STEM = "patch_embed.backbone"


def _conv_norm(canonical: tuple[str, str], foreign: tuple[str, str]) -> tuple[Rule, ...]:
    """Return the rules of a convolution of the ResNet stem and of its group norm."""
    return (
        rule(f"{_STEM}.{canonical[0]}.weight", f"{foreign[0]}/kernel", _CONV),
        rule(f"{_STEM}.{canonical[1]}.weight", f"{foreign[1]}/scale", *_GROUP_NORM),
        rule(f"{_STEM}.{canonical[1]}.bias", f"{foreign[1]}/bias", *_GROUP_NORM),
    )


_UNIT, _FOREIGN_UNIT = "stages.{s}.blocks.{u}", "block{s+1}/unit{u+1}"
STEM_RULES = (
    *_conv_norm(("stem.conv", "stem.norm"), ("conv_root", "gn_root")),
    *(
        one
        for n in (1, 2, 3)
        for one in _conv_norm(
            (f"{_UNIT}.conv{n}", f"{_UNIT}.norm{n}"), (f"{_FOREIGN_UNIT}/conv{n}", f"{_FOREIGN_UNIT}/gn{n}")
        )
    ),
    *_conv_norm(
        (f"{_UNIT}.downsample.conv", f"{_UNIT}.downsample.norm"),
        (f"{_FOREIGN_UNIT}/conv_proj", f"{_FOREIGN_UNIT}/gn_proj"),
    ),
)

RULES = (
    rule("cls_token", "cls"),
    rule("pos_embed", "Transformer/posembed_input/pos_embedding"),
    rule("patch_embed.proj.weight", "embedding/kernel", _CONV),
    rule("patch_embed.proj.bias", "embedding/bias"),
    *encoder_block("Transformer/encoderblock_{i}", attention="${attn}", norm2="${norm2}", mlp="${mlp}"),
    *norm("norm", "Transformer/encoder_norm"),
    *dense("pre_logits.fc", "pre_logits"),
    *dense("head", "head"),
)


def _axes(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    """Return the heads of the first block, which all blocks have."""
    names = (f"Transformer/encoderblock_0/MultiHeadDotProductAttention_{n}/query/kernel" for n in (0, 1))
    query = next((tensors[name] for name in names if name in tensors), None)
    return {} if query is None or len(query.shape) != 3 else {"h": query.shape[1]}


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Its files always store a table. Early big_vision files have it under the same name and compute the same."""
    return 1 if f"{prefix}Transformer/posembed_input/pos_embedding" in raw.tensors else -1


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return the heads by the attention kernels [D, heads, D/heads].

    Pre-linen names are only vit_jax's, whose table has a row for the class token; linen's may be big_vision's.
    """
    fields: dict[str, Any] = {"pos_embed_prefix": True} if "cls" in tensors and not dialect.name else {}
    query = tensors.get(f"Transformer/encoderblock_0/{dialect.variables['attn']}/query/kernel")
    if query is not None and len(query.shape) == 3:
        fields["num_heads"] = query.shape[1]
    return Stated(fields, "names and shapes of the original tensors")


FORMATS = (
    Format(
        name="vit_jax",
        project="google-research/vision_transformer",
        rules=(*RULES, *STEM_RULES),
        dialects=(
            Dialect("", {"attn": "MultiHeadDotProductAttention_1", "norm2": "LayerNorm_2", "mlp": "MlpBlock_3"}),
            Dialect("linen", {"attn": "MultiHeadDotProductAttention_0", "norm2": "LayerNorm_1", "mlp": "MlpBlock_0"}),
        ),
        prefixes=("", "params/", "opt/target/", "optimizer/target/"),
        conventions=CONVENTIONS,
        limits=LIMITS,
        requires=(
            Requirement(
                "pos_embed_prefix",
                lambda c: c.pos_embed_prefix == c.class_token,
                "its position table has a row for the class token",
            ),
        ),
        axes=_axes,
        evidence=_evidence,
        state=_state,
        container="npz",
        filename="model.npz",
    ),
)
