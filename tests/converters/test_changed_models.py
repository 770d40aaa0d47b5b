"""Models whose layers were replaced are saved as they are, or refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import configs, examples, random_images, random_model, relative_error
from torch import nn
from torch.nn.utils import parametrize

import vit_hub

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 64,
    "depth": 3,
    "num_heads": 1,
    "mlp_dim": 24,
    "num_classes": 5,
}


def new_head(model: nn.Module) -> None:
    model.head = nn.Linear(64, 3)


def no_head(model: nn.Module) -> None:
    model.head = nn.Identity()


def fewer_blocks(model: nn.Module) -> None:
    model.blocks = model.blocks[:2]


def head_and_blocks(model: nn.Module) -> None:
    new_head(model)
    fewer_blocks(model)


@pytest.mark.parametrize("change", [new_head, no_head, fewer_blocks, head_and_blocks])
@pytest.mark.parametrize("fields", [{}, {"head_norm": True}, {"head_input": "cls_avg"}], ids=["plain", "norm", "wide"])
def test_it_is_saved_as_it_is(fields: dict[str, object], change: Callable[[nn.Module], None], tmp_path: Path) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL, **fields))
    if change in (new_head, head_and_blocks) and "head_input" in fields:
        change(model)
        model.head = nn.Linear(128, 3)
    elif change is no_head and fields:  # what feeds the head stays, and gives something else than an embedding
        change(model)
        with pytest.raises(vit_hub.ConfigError, match=next(iter(fields))):
            model.save(tmp_path / "changed.safetensors")
        return
    else:
        change(model)
    images = random_images(model.config)
    again = vit_hub.load(model.save(tmp_path / "changed.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images), rtol=1e-5, atol=1e-6)
    assert again.config.depth == len(model.blocks)
    assert vit_hub.class_names(again) is None


def test_a_new_head_goes_to_other_projects(tmp_path: Path) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL))
    new_head(model)
    images = random_images(model.config)
    expected = model(images).detach()
    assert vit_hub.to_timm(model)["head.weight"].shape == (3, 64)
    found = vit_hub.to_transformers(model)(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_old_class_names_do_not_stay_with_a_new_head(tmp_path: Path) -> None:
    model = vit_hub.load("vit-nano-digits")
    assert vit_hub.class_names(model)
    model.head = nn.Linear(48, 3)
    again = vit_hub.load(model.save(tmp_path / "tuned.safetensors"))
    assert again.config.num_classes == 3
    assert vit_hub.class_names(again) is None
    report = vit_hub.convert(tmp_path / "tuned.safetensors", tmp_path / "hf", to="hf")
    assert vit_hub.class_names(vit_hub.load(report.path)) != vit_hub.class_names(model)


class Wrapped(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x)


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def parametrized(model: nn.Module) -> None:
    parametrize.register_parametrization(model.blocks[0].attn.qkv, "weight", nn.Identity())


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a head without a bias": (lambda m: setattr(m, "head", nn.Linear(64, 3, bias=False)), "head.bias is missing"),
    "a head of two layers": (lambda m: setattr(m, "head", nn.Sequential(nn.Dropout(), nn.Linear(64, 3))), "head.1"),
    "a wrapped head": (lambda m: setattr(m, "head", Wrapped(m.head)), "head is a Wrapped"),
    "a head that computes otherwise": (lambda m: setattr(m, "head", Scaled(64, 3)), "head is a Scaled"),
    "a head of another width": (lambda m: setattr(m, "head", nn.Linear(32, 3)), "head.weight has shape (3, 32)"),
    "another patch kernel": (lambda m: setattr(m.patch_embed, "proj", nn.Conv2d(3, 64, 8, 8)), "patch_embed.proj"),
    "other channels": (lambda m: setattr(m.patch_embed, "proj", nn.Conv2d(1, 64, 4, 4)), "patch_embed.proj"),
    "a larger table": (lambda m: setattr(m, "pos_embed", nn.Parameter(torch.zeros(1, 26, 64))), "pos_embed has shape"),
    "an adapter": (lambda m: setattr(m.blocks[0].attn, "qkv", Wrapped(m.blocks[0].attn.qkv)), "attn.qkv"),
    "a parametrization": (parametrized, "attn.qkv"),
    "a layer more": (lambda m: setattr(m, "neck", nn.Linear(64, 64)), "neck.weight is new"),
    "no norm": (lambda m: setattr(m, "norm", nn.Identity()), "norm.weight is missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    change, part = CHANGES[name]
    model = random_model(vit_hub.ViTConfig(**SMALL))
    change(model)
    with pytest.raises(vit_hub.ConfigError) as caught:
        model.save(tmp_path / "changed.safetensors")
    assert part in caught.value.message
    assert not list(tmp_path.iterdir())


class Unlike(nn.Module):
    """A layer that computes otherwise, with the tensors of the one in whose place it stands."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        for name, value in base.named_parameters(recurse=False):
            self.register_parameter(name, value)
        self.base = [base]

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return 2 * self.base[0](*args)


@st.composite
def changes(draw: st.DrawFn, model: vit_hub.VisionTransformer) -> str:
    """Change a model as its users do, and return what was done."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Conv2d))]
    kinds = ["other", "other", "head", "no head", "blocks", "bias"]
    kind = draw(st.sampled_from(kinds))
    if kind == "head" and isinstance(model.head, nn.Linear):
        model.head = nn.Linear(model.head.in_features, draw(st.integers(1, 7)))
    elif kind == "no head":
        model.head = nn.Identity()
    elif kind == "blocks":
        model.blocks = model.blocks[: draw(st.integers(1, len(model.blocks)))]
    else:
        name = draw(st.sampled_from(layers))
        parent, _, attribute = name.rpartition(".")
        layer = model.get_submodule(name)
        if kind == "bias" and layer.bias is not None:
            layer.bias = None
        else:
            setattr(model.get_submodule(parent), attribute, draw(st.sampled_from((Unlike, Wrapped)))(layer))
    return kind


@examples(120)
@given(config=configs(), data=st.data())
def test_any_change_is_saved_as_it_is_or_refused(
    tmp_path_factory: pytest.TempPathFactory, config: vit_hub.ViTConfig, data: st.DataObject
) -> None:
    folder, model = tmp_path_factory.mktemp("any"), random_model(config)
    data.draw(changes(model))
    try:
        path = model.save(folder / "changed.safetensors")
    except vit_hub.ConfigError:
        assert not list(folder.iterdir())
        return
    images = random_images(config)
    with torch.no_grad():
        assert relative_error(vit_hub.load(path)(images), model(images)) <= 1e-5
