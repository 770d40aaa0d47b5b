"""BEiT-3's own files against timm's classes, which read them by a filter of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

import vit_hub

D, LAYERS, PATCHES = 24, 2, 16
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def beit3(*heads: tuple[str, tuple[int, ...]], norm: bool = False) -> dict[str, Tensor]:
    """The tensors of a model of images (A) and text (B) as torchscale names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_embed.weight": (50, D),
        "vision_embed.mask_token": (1, 1, D),
        "vision_embed.cls_token": (1, 1, D),
        "vision_embed.proj.weight": (D, 3, 8, 8),
        "vision_embed.proj.bias": (D,),
        "encoder.embed_positions.A.weight": (PATCHES + 3, D),
        "encoder.embed_positions.B.weight": (30, D),
    }
    widths = {
        **{f"self_attn.{part}_proj": (D, D) for part in "kvq"},
        "self_attn.out_proj": (D, D),
        "self_attn.inner_attn_ln": (D,),
        "self_attn_layer_norm": (D,),
        "final_layer_norm": (D,),
    }
    layer = {f"{name}.{expert}": shape for name, shape in widths.items() for expert in "AB"}
    inner = {"fc1": (2 * D, D), "fc2": (D, 2 * D), "ffn_layernorm": (2 * D,)}
    layer |= {f"ffn.{expert}.{name}": shape for name, shape in inner.items() for expert in "AB"}
    for index in range(LAYERS):
        for name, shape in layer.items():
            shapes |= {f"encoder.layers.{index}.{name}.weight": shape, f"encoder.layers.{index}.{name}.bias": shape[:1]}
    if norm:
        shapes |= {f"encoder.layer_norm.{expert}.{end}": (D,) for expert in "AB" for end in ("weight", "bias")}
    generator = torch.Generator().manual_seed(1)
    named = {f"beit3.{name}": shape for name, shape in shapes.items()} | dict(heads)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in named.items()}


CLASSIFIER = (("fc_norm.weight", (D,)), ("fc_norm.bias", (D,)), ("head.weight", (5, D)), ("head.bias", (5,)))
RETRIEVAL = (("language_head.weight", (D, D)), ("vision_head.weight", (D, D)), ("logit_scale", ()))


def as_timm(state: dict[str, Tensor]) -> torch.nn.Module:
    model = timm.create_model(
        "beit3_base_patch16_224", img_size=32, patch_size=8, embed_dim=D, depth=LAYERS, num_heads=3, mlp_ratio=2,
        num_classes=5,
    ).eval()  # fmt: skip
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    return model


def test_a_classifier_as_timm_reads_it(tmp_path: Path) -> None:
    state = beit3(*CLASSIFIER)
    torch.save({"model": state}, tmp_path / "beit3.pth")
    ours = vit_hub.load(tmp_path / "beit3.pth", dtype="float64", overrides={"num_heads": 3})
    theirs = as_timm(state).double()
    torch.testing.assert_close(ours(IMAGES.double()), theirs(IMAGES.double()), atol=1e-10, rtol=1e-10)
    with pytest.warns(UserWarning, match=r"0\.485"):
        assert vit_hub.preprocess(ours).crop_pct == 1.0


def test_the_text_expert_is_listed_kept_and_given_back(tmp_path: Path) -> None:
    state = beit3(*RETRIEVAL, norm=True)
    torch.save({"model": state}, tmp_path / "beit3.pth")
    report = vit_hub.convert(
        tmp_path / "beit3.pth", tmp_path / "model.safetensors", keep_rest=True, overrides={"num_heads": 3}
    )
    text = [name for name in state if ".B." in name or name.startswith(("beit3.text", "language"))]
    assert len(text) > 20
    for name in text:
        assert report.dropped[f"model/{name}"] == "text expert, not part of the image encoder"
    label = vit_hub.open_checkpoint(tmp_path / "model.safetensors").provenance["format"]
    vit_hub.convert(tmp_path / "model.safetensors", tmp_path / "back.pth", to=label, keep_rest=True)
    back = torch.load(tmp_path / "back.pth")["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_retrieval_projects_the_normed_class_token(tmp_path: Path) -> None:
    state = beit3(*RETRIEVAL, norm=True)
    torch.save(state, tmp_path / "beit3.pth")
    ours = vit_hub.load(tmp_path / "beit3.pth", overrides={"num_heads": 3})
    trunk = as_timm(beit3(*CLASSIFIER))
    trunk.load_state_dict(
        {**trunk.state_dict(), **checkpoint_filter_fn({k: v for k, v in state.items() if k[:6] == "beit3."}, trunk)},
        strict=False,
    )
    norm = (state[f"beit3.encoder.layer_norm.A.{end}"] for end in ("weight", "bias"))
    token = torch.nn.functional.layer_norm(trunk.forward_features(IMAGES)[:, 0], (D,), *norm, eps=1e-5)
    torch.testing.assert_close(ours(IMAGES), token @ state["vision_head.weight"].T, atol=2e-5, rtol=1e-5)
    assert ours.config.projection_dim == D


@pytest.mark.parametrize("heads", [(), CLASSIFIER], ids=["backbone", "classifier"])
def test_to_timm(tmp_path: Path, heads: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    torch.save({"model": beit3(*heads, norm=not heads)}, tmp_path / "beit3.pth")
    options = {"overrides": {"num_heads": 3}}
    vit_hub.convert(tmp_path / "beit3.pth", tmp_path / "timm", to="timm", **options)
    wanted = vit_hub.load(tmp_path / "beit3.pth", **options)(IMAGES)
    torch.testing.assert_close(vit_hub.load(tmp_path / "timm")(IMAGES), wanted)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(IMAGES), wanted, atol=2e-5, rtol=1e-5)


def test_another_size(tmp_path: Path) -> None:
    state = beit3(*CLASSIFIER)
    torch.save(state, tmp_path / "beit3.pth")
    report = vit_hub.convert(
        tmp_path / "beit3.pth", tmp_path / "model.safetensors", image_size=(48, 40), overrides={"num_heads": 3}
    )
    assert report.config.image_size == (48, 40)
    label = vit_hub.open_checkpoint(tmp_path / "model.safetensors").provenance["format"]
    vit_hub.convert(tmp_path / "model.safetensors", tmp_path / "back.pth", to=label)
    assert torch.load(tmp_path / "back.pth")["beit3.encoder.embed_positions.A.weight"].shape == (6 * 5 + 3, D)
