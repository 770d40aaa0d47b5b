"""The same numbers as torchvision's own code, in float64, over random small models; and files that it loads."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import configs, examples, random_images, random_model, randomise, relative_error
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import ConvStemConfig

import vit_hub
from vit_hub.errors import UnsupportedByFormatError

EXACT = 1e-10
SMALL: dict[str, Any] = {"class_token": True, "distilled": False, "num_registers": 0, "pool": "cls", "depth": 2}
EXPRESSIBLE: dict[str, Any] = {
    **SMALL,
    "stem": "patch",
    "attn_norm": False,
    "mlp_norm": False,
    "norm": "layer",
    "proj_bias": True,
    "mlp_bias": True,
    "kv_heads": (),
    "patch_norm": False,
    "norm_position": "pre",
    "differential": False,
    "parallel": "none",
    "branches": 1,
    "resize_square": False,
    "rope": None,
    "rel_pos": "none",
    "prefix_norm": False,
    "head_input": "pooled",
    "head_norm": False,
    "projection_dim": 0,
    "in_chans": 3,
    "patch_size": st.integers(1, 4).map(lambda side: (side, side)),
    "image_size": (12, 12),
    "ffn": "mlp",
    "act": "gelu",
    "norm_eps": 1e-6,
    "qkv_bias": True,
    "patch_bias": True,
    "qk_norm": False,
    "pre_norm": False,
    "layer_scale": False,
    "pos_embed": "learned",
    "pos_embed_prefix": True,
    "final_norm": "before",
    "num_classes": st.integers(1, 5),
}


@st.composite
def torchvision_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of torchvision's class, all that change what it computes."""
    heads = draw(st.sampled_from((1, 2, 3)))
    stem = draw(st.lists(st.tuples(st.integers(1, 6), st.sampled_from((1, 3, 5)), st.just(2)), max_size=3))
    patch = 2 ** len(stem) if stem else draw(st.integers(1, 5))
    return {
        "image_size": patch * draw(st.integers(1, 3)),
        "patch_size": patch,
        "num_layers": draw(st.integers(1, 3)),
        "num_heads": heads,
        "hidden_dim": 8 * heads,
        "mlp_dim": draw(st.integers(1, 20)),
        "num_classes": draw(st.integers(1, 5)),
        "representation_size": draw(st.sampled_from((None, 3, 8))),
        "norm_layer": functools.partial(nn.LayerNorm, eps=draw(st.sampled_from((1e-6, 1e-3)))),
        "conv_stem_configs": [ConvStemConfig(*layer) for layer in stem] or None,
    }


def randomised(model: nn.Module) -> nn.Module:
    randomise(model)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.abs_().add_(0.1)
    return model.double().eval()


def as_published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The older spelling, in which torchvision's published files are."""
    return {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): value for name, value in state.items()
    }


@examples(25)
@given(arguments=torchvision_arguments(), legacy=st.booleans())
def test_same_numbers_and_the_same_file_again(tmp_path: Path, arguments: dict[str, Any], legacy: bool) -> None:
    theirs = randomised(VisionTransformer(**arguments))
    state = as_published(theirs.state_dict()) if legacy else theirs.state_dict()
    torch.save(state, tmp_path / "model.pth")
    options = {"num_heads": arguments["num_heads"], "norm_eps": arguments["norm_layer"].keywords["eps"]}
    ckpt = vit_hub.open_checkpoint(tmp_path / "model.pth", overrides=options)
    assert ckpt.format == ("torchvision-legacy" if legacy else "torchvision")
    assert ckpt.config.resize == "bicubic-align-corners"
    assert not ckpt.dropped

    ours = vit_hub.load(tmp_path / "model.pth", dtype="float64", overrides=options)
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), theirs(images)) <= EXACT

    vit_hub.convert(tmp_path / "model.pth", tmp_path / "canonical.safetensors", overrides=options)
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "again.pth", to=ckpt.format)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in state.items())
    VisionTransformer(**arguments).double().load_state_dict(again, strict=True)


@examples(15)
@given(config=configs(**EXPRESSIBLE))
def test_other_models_load_into_torchvision(tmp_path: Path, config: vit_hub.ViTConfig) -> None:
    ours = random_model(config, dtype=torch.float64)
    ours.save(tmp_path / "ours.safetensors")
    report = vit_hub.convert(tmp_path / "ours.safetensors", tmp_path / "model.pth", to="torchvision")
    theirs = VisionTransformer(
        image_size=config.image_size[0],
        patch_size=config.patch_size[0],
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.embed_dim,
        mlp_dim=config.mlp_dim,
        num_classes=config.num_classes,
        representation_size=config.representation_dim or None,
    )
    theirs.double().eval().load_state_dict(torch.load(report.path, weights_only=True), strict=True)
    images = random_images(config, torch.float64)
    with torch.inference_mode():
        assert relative_error(theirs(images), ours(images)) <= EXACT


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_classes", {"num_classes": 0}),
        ("act", {"act": "gelu_tanh"}),
        ("norm_eps", {"norm_eps": 1e-12}),
        ("num_registers", {"num_registers": 4}),
        ("class_token", {"pool": "avg"}),
        ("image_size", {"image_size": (8, 12)}),
    ],
)
def test_what_torchvision_cannot_do_is_named(tmp_path: Path, field: str, changes: dict[str, Any]) -> None:
    known = {"embed_dim": 8, "num_heads": 2, "mlp_dim": 8, "depth": 1, "num_classes": 3}
    config = vit_hub.ViTConfig(**{**known, "image_size": (8, 8), "patch_size": (4, 4), **changes})
    random_model(config).save(tmp_path / "ours.safetensors")
    with pytest.raises(UnsupportedByFormatError, match=field):
        vit_hub.convert(tmp_path / "ours.safetensors", tmp_path / "model.pth", to="torchvision")
    assert not (tmp_path / "model.pth").exists()
