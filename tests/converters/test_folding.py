"""Folding: another model with the same outputs, for formats that cannot express the one there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from golden_cases import CASES, Case
from hypothesis import given
from hypothesis import strategies as st
from small_models import configs, examples, random_images, random_model, relative_error

import vit_hub
from vit_hub.converters.build import build
from vit_hub.converters.folding import FOLDS, Fold
from vit_hub.converters.save import snapshot
from vit_hub.errors import UnsupportedByFormatError
from vit_hub.model.config import Rope
from vit_hub.model.shapes import tensor_shapes

SMALL = vit_hub.ViTConfig(
    image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, num_classes=3, norm_eps=1e-6
)
# Sums and products are rounded to float32 once.
SINGLE = 1e-6
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def outputs(model: vit_hub.VisionTransformer, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(images), model.forward_features(images)]


def foldable(model: vit_hub.VisionTransformer) -> None:
    """Biases that have to be zero for some folds are, and stored periods and masks are the usual ones."""
    fresh = vit_hub.VisionTransformer(model.config).state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in ("head.bias", "patch_embed.proj.bias") or name.endswith(("bias_mask", "periods")):
                value.copy_(fresh[name])


@pytest.mark.parametrize("fold", [fold for fold in FOLDS if fold.exact], ids=lambda fold: fold.text)
@examples(40)
@given(config=configs(), dtype=st.sampled_from(sorted(DTYPES)), usual=st.booleans())
def test_a_fold_keeps_the_outputs_or_does_not_apply(
    fold: Fold, config: vit_hub.ViTConfig, dtype: str, usual: bool
) -> None:
    model = random_model(config)
    if usual:
        foldable(model)
    model = model.to(DTYPES[dtype])
    ckpt = snapshot(model)
    folded = fold.apply(ckpt.config, ckpt.tensors)
    if folded is None:
        return
    changed, tensors = folded
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(changed)
    assert all(tensor.read().shape == tensor.shape for tensor in tensors.values())
    assert changed != config
    again = build(dataclasses.replace(ckpt, config=changed, tensors=tensors), dtype="float64")
    first = build(ckpt, dtype="float64")
    images = random_images(config, torch.float64)
    pairs = list(zip(outputs(again, images), outputs(first, images), strict=True))
    # Where the norm moves before the pooling, only what is pooled stays the same.
    for found, wanted in pairs[:1] if fold.fields == ("final_norm",) else pairs:
        assert relative_error(found, wanted) <= SINGLE


ROPE = Rope(theta=100.0, coordinates="centered", pairs="half")
DINOV3: dict[str, Any] = {"rope": ROPE, "pos_embed": "none", "pos_embed_prefix": False, "num_registers": 2}
DINOV3 |= {"layer_scale": True, "num_classes": 0, "norm_eps": 1e-5}
CLIP = {"pre_norm": True, "patch_bias": False, "final_norm": "after", "norm_eps": 1e-5, "num_classes": 0}


@pytest.mark.parametrize(
    ("changes", "to", "expected"),
    [
        # a mask over the biases
        ({**DINOV3, "qkv_bias": "masked"}, "hf", {"qkv_bias": "qv"}),
        ({**DINOV3, "qkv_bias": "masked"}, "timm", {"qkv_bias": "qv"}),
        ({**DINOV3, "qkv_bias": "qv"}, "facebook", {"qkv_bias": "masked"}),
        ({"qkv_bias": "qv"}, "torchvision", {"qkv_bias": True}),
        ({"qkv_bias": False}, "torchvision", {"qkv_bias": True}),
        # a patch bias
        ({"patch_bias": False}, "torchvision", {"patch_bias": True}),
        # position tables
        ({"pos_embed": "sincos2d", "pos_embed_prefix": False}, "torchvision", {"pos_embed": "learned"}),
        ({"pos_embed_prefix": False}, "hf", {"pos_embed_prefix": True}),
        ({"num_registers": 2}, "timm", {"pos_embed_prefix": False}),
        ({"num_registers": 2, "pos_embed_registers": True, "layer_scale": True, "num_classes": 0}, "hf", {}),
        # layer scale
        ({"layer_scale": True}, "torchvision", {"layer_scale": False}),
        ({"num_registers": 2, "num_classes": 0}, "hf", {"layer_scale": True}),
        # projections
        ({**CLIP, "projection_dim": 6}, "timm", {"num_classes": 6, "projection_dim": 0}),
        # periods
        ({**DINOV3, "qkv_bias": "qv"}, "facebook", {"rope": dataclasses.replace(ROPE, stored_periods=True)}),
        ({**DINOV3, "rope": dataclasses.replace(ROPE, stored_periods=True)}, "hf", {"rope": ROPE}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_what_only_the_target_needs_is_folded_and_reported(
    changes: dict[str, Any], to: str, expected: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    model = random_model(SMALL.replace(**changes))
    foldable(model)
    source = model.to(DTYPES[dtype]).save(tmp_path / "source.safetensors")
    report = vit_hub.convert(source, tmp_path / "out", to=to)
    assert any(message.startswith("irreversible: ") for message in report.warnings)
    assert {name: getattr(report.config, name) for name in expected} == expected
    options = {"num_heads": 2, "image_size": (8, 8)}
    written = vit_hub.load(report.path, overrides=options, format=report.format, dtype="float64")
    images = random_images(model.config, torch.float64)
    wanted = outputs(vit_hub.load(source, dtype="float64"), images)
    for found, want in zip(outputs(written, images), wanted, strict=True):
        assert relative_error(found, want) <= SINGLE


@pytest.mark.parametrize(
    ("changes", "to", "field"),
    [
        ({**CLIP, "patch_bias": True, "projection_dim": 6}, "openai_clip", "patch_bias"),
        ({**DINOV3, "rope": dataclasses.replace(ROPE, stored_periods=True), "qkv_bias": "qv"}, "hf", "rope"),
        ({**CLIP, "num_classes": 6}, "openai_clip", "projection_dim"),
    ],
)
def test_what_cannot_be_folded_exactly_is_refused(changes: dict[str, Any], to: str, field: str, tmp_path: Path) -> None:
    """A bias that is not zero, periods rounded to bfloat16."""
    model = random_model(SMALL.replace(**changes))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("periods"):
                value.copy_((100.0 ** (torch.arange(2) / 2 + 1e-3)).to(value))
    source = model.save(tmp_path / "source.safetensors")
    with pytest.raises(UnsupportedByFormatError, match=rf"\b{field}: "):
        vit_hub.convert(source, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_a_mask_that_lets_keys_through_stays_one_bias(tmp_path: Path) -> None:
    """Only where the biases of keys are zero are those of queries and values enough."""
    model = random_model(SMALL.replace(**{**DINOV3, "qkv_bias": "masked"}))
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.bias_mask.fill_(1)
    report = vit_hub.convert(model.save(tmp_path / "source.safetensors"), tmp_path / "out", to="hf")
    assert report.config.qkv_bias is True


def test_nothing_is_folded_without_need(tmp_path: Path) -> None:
    """A model that a format can express is written as it is, also where another of its classes could have it folded."""
    model = random_model(SMALL.replace(layer_scale=True, num_registers=2, num_classes=0))
    report = vit_hub.convert(model.save(tmp_path / "source.safetensors"), tmp_path / "out", to="hf")
    assert report.config.layer_scale
    assert not any("irreversible" in message for message in report.warnings)


def test_a_live_model_is_folded_with_a_warning() -> None:
    model = random_model(SMALL.replace(pos_embed_prefix=False))
    with pytest.warns(UserWarning, match="irreversible: the position table gets rows of zeros"):
        theirs = vit_hub.to_transformers(model)
    images = random_images(model.config)
    with torch.inference_mode():
        assert relative_error(theirs(images).logits, model(images)) <= 1e-5


CASE = {case.name: case for case in CASES}


def converted(case: Case, folder: Path, to: str) -> Path:
    report = vit_hub.convert(case.checkpoint, folder / to, to=to, overrides=case.overrides)
    assert any(message.startswith("irreversible: ") for message in report.warnings)
    return report.path


def hugging_face(path: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(path)
    cls = getattr(transformers, config.architectures[0])
    model, info = cls.from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    return model.eval()


@pytest.mark.parametrize(
    ("name", "to", "output", "run"),
    [
        ("bv_tok_sincos2d", "hf", "logits", lambda path, x: hugging_face(path)(x).logits),
        ("fb_deit3_LS", "hf", "logits", lambda path, x: hugging_face(path)(x).logits),
        ("fb_dinov3_vits_style", "hf", "pooled", lambda path, x: hugging_face(path)(x).pooler_output),
        ("fb_dinov2_reg4", "timm", "pooled", lambda path, x: timm_model(path)(x)),
        ("fb_dinov3_vits_style", "timm", "pooled", lambda path, x: timm_model(path)(x)),
        ("openai_clip_visual", "timm", "image_embed", lambda path, x: timm_model(path)(x)),
        ("fb_deit3_LS", "torchvision", "logits", lambda path, x: torchvision_model(path)(x)),
    ],
)
def test_the_other_projects_own_code_gives_the_recorded_outputs(
    name: str, to: str, output: str, run: Any, tmp_path: Path
) -> None:
    case = CASE[name]
    path = converted(case, tmp_path, to)
    with torch.inference_mode():
        found = run(path, case.images())
    assert float((found - case.outputs()[output]).abs().max()) <= 2e-5


def timm_model(path: Path) -> Any:
    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()


def torchvision_model(path: Path) -> Any:
    state = torch.load(path / "model.pth", weights_only=True)
    width, classes = state["class_token"].shape[-1], len(state["heads.head.weight"])
    depth = len([key for key in state if key.endswith("ln_1.weight")])
    model = torchvision.models.VisionTransformer(
        16, 4, depth, 2, width, len(state["encoder.layers.encoder_layer_0.mlp.0.bias"]), num_classes=classes
    )
    model.load_state_dict(state, strict=True)
    return model.eval()


def test_computed_values_are_kept_in_float32(tmp_path: Path) -> None:
    """A sum rounded to bfloat16 would change the outputs."""
    model = random_model(SMALL.replace(num_registers=2)).to(torch.bfloat16)
    report = vit_hub.convert(model.save(tmp_path / "source.safetensors"), tmp_path / "out", to="timm")
    written = vit_hub.open_checkpoint(report.path)
    dtypes = {name: tensor.dtype for name, tensor in written.tensors.items()}
    assert dtypes["cls_token"] == "F32"
    assert dtypes["pos_embed"] == dtypes["reg_token"] == dtypes["head.weight"] == "BF16"
    assert np.isfinite(written.tensors["cls_token"].read()).all()


def test_biases_of_keys_are_left_out_only_where_nothing_else_helps(tmp_path: Path) -> None:
    """transformers has one class that norms the mean of the patches, BEiT, whose keys have no bias."""
    case = CASE["fb_mae_finetune_globalpool"]
    path = converted(case, tmp_path, "hf")
    model = hugging_face(path)
    assert type(model).__name__ == "BeitForImageClassification"
    with torch.inference_mode():
        assert float((model(case.images()).logits - case.outputs()["logits"]).abs().max()) <= 2e-5
    path = converted(CASE["timm_deit3"], tmp_path / "deit3", "hf")
    assert type(hugging_face(path)).__name__ == "ViTForImageClassification"


@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"rope": ROPE}], ids=str)
def test_biases_of_keys_stay_where_they_have_an_effect(changes: dict[str, Any]) -> None:
    (fold,) = [fold for fold in FOLDS if fold.fields == ("qkv_bias",) and fold.cost > 1]
    for fields, applies in (({}, True), (changes, False)):
        ckpt = snapshot(random_model(SMALL.replace(**fields)))
        assert (fold.apply(ckpt.config, ckpt.tensors) is not None) is applies
