"""google-research/vision_transformer: the original JAX checkpoints, ``.npz`` with flax parameter names.

Two spellings: the public files keep the names of the pre-linen code, files saved by today's code have linen's.
Source: vit_jax/models_vit.py and vit_jax/checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import Source
from vit_hub.converters.format import Dialect, Format, Requirement, Stated
from vit_hub.converters.rules import rule
from vit_hub.converters.tensors import LazyTensor

_BLOCK = "Transformer/encoderblock_{i}"
_QKV = tuple(f"{_BLOCK}/${{attn}}/{part}" for part in ("query", "key", "value"))

RULES = (
    rule("cls_token", "cls"),
    rule("pos_embed", "Transformer/posembed_input/pos_embedding"),
    rule("patch_embed.proj.weight", "embedding/kernel", "p q c d -> d c p q"),
    rule("patch_embed.proj.bias", "embedding/bias"),
    rule("blocks.{i}.norm1.weight", f"{_BLOCK}/LayerNorm_0/scale"),
    rule("blocks.{i}.norm1.bias", f"{_BLOCK}/LayerNorm_0/bias"),
    rule("blocks.{i}.attn.qkv.weight", tuple(f"{name}/kernel" for name in _QKV), "d h e -> (h e) d"),
    rule("blocks.{i}.attn.qkv.bias", tuple(f"{name}/bias" for name in _QKV), "h e -> (h e)"),
    rule("blocks.{i}.attn.proj.weight", f"{_BLOCK}/${{attn}}/out/kernel", "h e d -> d (h e)"),
    rule("blocks.{i}.attn.proj.bias", f"{_BLOCK}/${{attn}}/out/bias"),
    rule("blocks.{i}.norm2.weight", f"{_BLOCK}/${{norm2}}/scale"),
    rule("blocks.{i}.norm2.bias", f"{_BLOCK}/${{norm2}}/bias"),
    rule("blocks.{i}.mlp.fc1.weight", f"{_BLOCK}/${{mlp}}/Dense_0/kernel", "i o -> o i"),
    rule("blocks.{i}.mlp.fc1.bias", f"{_BLOCK}/${{mlp}}/Dense_0/bias"),
    rule("blocks.{i}.mlp.fc2.weight", f"{_BLOCK}/${{mlp}}/Dense_1/kernel", "i o -> o i"),
    rule("blocks.{i}.mlp.fc2.bias", f"{_BLOCK}/${{mlp}}/Dense_1/bias"),
    rule("norm.weight", "Transformer/encoder_norm/scale"),
    rule("norm.bias", "Transformer/encoder_norm/bias"),
    rule("pre_logits.fc.weight", "pre_logits/kernel", "i o -> o i"),
    rule("pre_logits.fc.bias", "pre_logits/bias"),
    rule("head.weight", "head/kernel", "i o -> o i"),
    rule("head.bias", "head/bias"),
)


def _state(source: Source, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """The attention kernels [D, heads, D/heads] say how many heads there are."""
    query = tensors.get(f"Transformer/encoderblock_0/{dialect.variables['attn']}/query/kernel")
    if query is None or len(query.shape) != 3:
        return Stated()
    return Stated({"num_heads": query.shape[1]}, "shape of the query kernel")


FORMATS = (
    Format(
        name="vit_jax",
        project="google-research/vision_transformer",
        rules=RULES,
        dialects=(
            Dialect(
                "prelinen", {"attn": "MultiHeadDotProductAttention_1", "norm2": "LayerNorm_2", "mlp": "MlpBlock_3"}
            ),
            Dialect("linen", {"attn": "MultiHeadDotProductAttention_0", "norm2": "LayerNorm_1", "mlp": "MlpBlock_0"}),
        ),
        prefixes=("", "params/", "opt/target/", "optimizer/target/"),
        conventions={"act": "gelu_tanh", "norm_eps": 1e-6, "resize": "bilinear-align-corners"},
        requires=(
            Requirement("qkv_bias", lambda c: c.qkv_bias is True, "its attention layers always have all biases"),
            Requirement("patch_bias", lambda c: c.patch_bias, "its patch embedding always has a bias"),
            Requirement("pos_embed", lambda c: c.pos_embed == "learned", "it has a learned position table only"),
            Requirement(
                "pos_embed_prefix",
                lambda c: c.pos_embed_prefix == c.class_token,
                "its position table has a row for the class token",
            ),
            Requirement("final_norm", lambda c: c.final_norm == "before", "it always norms all tokens before pooling"),
        ),
        state=_state,
        container="npz",
        filename="model.npz",
    ),
)
