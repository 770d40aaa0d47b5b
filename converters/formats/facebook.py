"""Facebook's first Vision Transformers, with timm's names: DINO, DeiT and DeiT III, MAE, I-JEPA, MSN, MoCo v3.

They differ in the dicts around the names, in what the file holds beside the backbone, and in a few tensors.
Source: dino/vision_transformer.py, main_dino.py; deit/models.py, models_v2.py; mae/models_mae.py, models_vit.py,
main_linprobe.py; ijepa/src/models/vision_transformer.py, src/helper.py; msn/src/deit.py, msn_train.py; moco-v3/vits.py,
moco/builder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Stated
from vit_hub.converters.rules.table import Drop, Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor

__all__ = ["CLASS_ROW", "CONVENTIONS", "PLAIN", "facebook_format", "is_original"]


def _same(*layers: str) -> tuple[Rule, ...]:
    """Return the rules of layers that have timm's names."""
    return tuple(one for layer in layers for one in weight_and_bias(layer))


_BLOCK = tuple(f"blocks.{{i}}.{layer}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"))
_CLASS_TOKEN = rule("cls_token", "cls_token")
_BODY = (rule("pos_embed", "pos_embed"), *_same("patch_embed.proj", *_BLOCK))
_NORM, _HEAD = weight_and_bias("norm"), weight_and_bias("head")

# nn.GELU() and partial(nn.LayerNorm, eps=1e-6) everywhere.
CONVENTIONS = {"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"}

PLAIN = {"qkv_bias": True, "patch_bias": True, "pos_embed": "learned", "final_norm": "before"}
CLASS_ROW = {**PLAIN, "class_token": True, "pos_embed_prefix": True}
_HAS_HEAD = Requirement("num_classes", lambda c: c.num_classes > 0, "its models always have a classifier")


def is_original(raw: RawCheckpoint, marks: int = 0) -> int:
    """Return the evidence of Facebook's own files: PyTorch pickles without timm's config.json, plus given marks.

    timm's state dicts have the same names, but timm publishes safetensors files and hub folders.
    """
    foreign = raw.container != "torch" or "architecture" in raw.sidecars.get("config.json", {})
    return -1 if foreign else 1 + marks


def facebook_format(project: str, **options: Any) -> Format:
    """Return the format of one of Facebook's projects, with what most of them have in common.

    Their names are timm's: under a prefix that the project does not use, they are rather timm's.
    """
    own = options.get("prefixes", ("",))
    evidence = options.pop("evidence", lambda raw, prefix: is_original(raw))
    return Format(
        name="facebook",
        project=f"facebookresearch/{project}",
        container="torch",
        filename="model.pth",
        evidence=lambda raw, prefix: evidence(raw, prefix) if prefix in own else -1,
        **{"conventions": CONVENTIONS, **options},
    )


def _wrapped(raw: RawCheckpoint, prefix: str, marks: int = 0) -> int:
    """Return the evidence of files that always wrap their tensors: bare ones with these names are rather timm's."""
    return is_original(raw, marks) if prefix else -1


_CONV_STEM = tuple(
    one
    for index in range(4)
    for one in (
        rule(f"patch_embed.backbone.layers.{index}.conv.weight", f"patch_embed.proj.{3 * index}.weight"),
        *(
            rule(f"patch_embed.backbone.layers.{index}.norm.{part}", f"patch_embed.proj.{3 * index + 1}.{part}")
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
    )
)
_MOCO_BODY = (
    rule("pos_embed", "pos_embed"),
    *_CONV_STEM,
    *weight_and_bias("patch_embed.proj", "${patch}"),
    *_same(*_BLOCK),
)


def _moco_heads(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
    """Return the heads of moco-v3's ViT-S: 12 of 32 channels (vits.py); its other models have heads of 64."""
    if "cls_token" in tensors and tensors["cls_token"].shape[-1] == 384:
        return Stated({"num_heads": 12}, "moco-v3's models of this width")
    return Stated()


FORMATS = (
    facebook_format(
        "dino",
        rules=(_CLASS_TOKEN, *_BODY, *_NORM),
        dialects=(Dialect("dino"),),
        prefixes=("", "teacher/backbone.", "teacher/module.backbone."),
        conventions={**CONVENTIONS, "resize": "bicubic-offset"},
        limits=CLASS_ROW,
    ),
    facebook_format(
        "deit",
        rules=(
            _CLASS_TOKEN,
            rule("dist_token", "dist_token"),
            *_BODY,
            rule("blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
            rule("blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
            *_NORM,
            *_HEAD,
            *weight_and_bias("head_dist"),
        ),
        dialects=(Dialect("deit"),),
        prefixes=("model/", "model/module.", ""),
        limits={**PLAIN, "class_token": True},
        requires=(
            _HAS_HEAD,
            Requirement(
                "layer_scale",
                lambda c: not c.layer_scale or not c.pos_embed_prefix,
                "its models with layer scale (DeiT III) have no class row in the position table",
            ),
            Requirement(
                "distilled",
                lambda c: c.distilled == (c.pool == "cls_dist"),
                "a model with a distillation token reads it for its output",
            ),
        ),
        evidence=lambda raw, prefix: _wrapped(raw, prefix, 1 if f"{prefix}head.weight" in raw.tensors else -1),
    ),
    facebook_format(
        "mae",
        rules=(
            _CLASS_TOKEN,
            *_BODY,
            *_NORM,
            *weight_and_bias("fc_norm"),
            *(
                rule(f"head_norm.{part}", f"head.0.{part}")
                for part in ("running_mean", "running_var", "num_batches_tracked")
            ),
            *weight_and_bias("head", "${head}"),
        ),
        drops=(
            Drop(r"decoder_.*", "decoder of the masked-image pre-training"),
            Drop(r"mask_token", "mask token of the decoder of the pre-training"),
        ),
        dialects=(Dialect("mae", {"head": "head"}), Dialect("mae", {"head": "head.1"})),
        prefixes=("model/", "model/module.", ""),
        limits={**CLASS_ROW, "final_norm": ("before", "after")},
        requires=(
            Requirement(
                "final_norm",
                lambda c: (c.pool, c.final_norm) in (("cls", "before"), ("avg", "after")),
                "it norms all tokens and takes the class token, or norms the mean of the patches",
            ),
        ),
        evidence=lambda raw, prefix: _wrapped(raw, prefix),
        dialect_for=lambda config, dialects: dialects[config.head_norm],
    ),
    facebook_format(
        "ijepa",
        rules=(*_BODY, *_NORM),
        dialects=(Dialect("ijepa"),),
        prefixes=("target_encoder/module.", "target_encoder/", "encoder/module.", "encoder/"),
        limits=PLAIN,
        evidence=lambda raw, prefix: is_original(raw, -(f"{prefix}cls_token" in raw.tensors)),
    ),
    facebook_format(
        "msn",
        rules=(_CLASS_TOKEN, *_BODY, *_NORM),
        dialects=(Dialect("msn"),),
        prefixes=("target_encoder/module.", "target_encoder/", "encoder/module.", "encoder/"),
        limits=CLASS_ROW,
        evidence=lambda raw, prefix: is_original(raw, -(f"{prefix}cls_token" not in raw.tensors)),
    ),
    facebook_format(
        "moco-v3",
        rules=(_CLASS_TOKEN, *_MOCO_BODY, *_NORM, *_HEAD),
        dialects=(
            Dialect("mocov3", {"patch": "patch_embed.proj"}),
            Dialect("mocov3", {"patch": "patch_embed.proj.12"}),
        ),
        prefixes=("state_dict/module.", "state_dict/module.base_encoder.", "state_dict/base_encoder."),
        limits=CLASS_ROW,
        requires=(_HAS_HEAD,),
        state=_moco_heads,
        dialect_for=lambda config, dialects: dialects[config.stem == "conv"],
    ),
)
