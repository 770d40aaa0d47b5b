"""openai/CLIP: the image tower of its state dicts and of its TorchScript archives.

Source: clip/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.rules.format import SQUARE_IMAGES, SQUARE_PATCHES, Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor

__all__ = ["LIMITS", "PROJECTION", "TOWERS", "attention", "clip_rules", "mlp", "norm1", "norm2"]

# Files of the image tower alone have its names without "visual.".
TOWERS: tuple[Mapping[str, str], ...] = ({"visual": "visual."}, {"visual": ""})
_LAYER = "${visual}transformer.resblocks.{i}"


attention = (
    *weight_and_bias("blocks.{i}.attn.qkv", f"{_LAYER}.attn", ".in_proj_"),
    *weight_and_bias("blocks.{i}.attn.proj", f"{_LAYER}.attn.out_proj"),
)
mlp = (
    *weight_and_bias("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.c_fc"),
    *weight_and_bias("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.c_proj"),
)
norm1, norm2 = (
    weight_and_bias("blocks.{i}.norm1", f"{_LAYER}.ln_1"),
    weight_and_bias("blocks.{i}.norm2", f"{_LAYER}.ln_2"),
)


def clip_rules(block: tuple[Rule, ...], last_norm: str) -> tuple[Rule, ...]:
    """Return the table of an image tower; ``block`` has the order in which the project declares the layers."""
    return (
        rule("cls_token", "${visual}class_embedding", "d -> 1 1 d"),
        rule("pos_embed", "${visual}positional_embedding", "n d -> 1 n d"),
        # Used as x @ proj, not as in a linear layer.
        rule("projection.weight", "${visual}proj", "d o -> o d"),
        rule("patch_embed.proj.weight", "${visual}conv1.weight"),
        *weight_and_bias("norm_pre", "${visual}ln_pre"),
        *block,
        *weight_and_bias(last_norm, "${visual}ln_post"),
    )


LIMITS = {
    "class_token": True,
    "in_chans": 3,
    "patch_bias": False,
    "qkv_bias": True,
    "pos_embed": "learned",
    "pos_embed_prefix": True,
}
PROJECTION = Requirement("projection_dim", lambda c: c.projection_dim > 0, "it always has a projection")


def _evidence(raw: RawCheckpoint, prefix: str) -> int:
    """Return the evidence of OpenAI's files; those of open_clip have the same names.

    OpenAI stores matrices in float16 and norms in float32, and declares the attention of a block before its first norm,
    which shows in files that keep the order of declaration (other projects' safetensors files are sorted by name).
    """
    if "open_clip_config.json" in raw.sidecars:
        return -1
    layer = f"{prefix}visual.transformer.resblocks.0"
    first, norm = f"{layer}.attn.in_proj_weight", f"{layer}.ln_1.weight"
    if first not in raw.tensors or norm not in raw.tensors:
        return 0
    names = list(raw.tensors)
    declared = names != sorted(names) and names.index(first) < names.index(norm)
    return 2 * (raw.tensors[first].dtype != raw.tensors[norm].dtype) + declared


def _state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return what OpenAI's code fixes: one head per 64 channels (build_model), pooling of the class token (forward)."""
    token = tensors.get(f"{dialect.variables['visual']}class_embedding")
    width = token.shape[-1] if token and token.shape else 0
    heads = {"num_heads": width // 64} if width and width % 64 == 0 else {}
    return Stated({"pool": "cls", **heads}, "OpenAI's build_model")


FORMATS = (
    Format(
        name="openai_clip",
        project="openai/CLIP",
        rules=clip_rules((*attention, *norm1, *mlp, *norm2), "fc_norm"),
        dialects=tuple(Dialect("", tower) for tower in TOWERS),
        conventions={"act": "quick_gelu", "norm_eps": 1e-5, "resize": "bicubic"},
        limits={**LIMITS, "pre_norm": True},
        requires=(
            PROJECTION,
            Requirement("mlp_dim", lambda c: c.mlp_dim == 4 * c.embed_dim, "its hidden layers are 4 times as wide"),
            SQUARE_PATCHES,
            SQUARE_IMAGES,
        ),
        evidence=_evidence,
        state=_state,
        lacks="only the image tower is written, without a text tower: vit_hub.load reads it, clip.load does not; into "
        "a model of OpenAI's with such a tower it goes by model.load_state_dict(torch.load(FILE), strict=False)",
        container="torch",
        filename="model.pt",
    ),
)
