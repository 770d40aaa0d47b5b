"""Files that are rare or damaged are read for what they are, or refused by what is wrong; nothing is lost silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import KINDS
from safetensors.torch import load_file, save_file
from small_models import random_images, random_model
from torch import nn

import vit_hub

SMALL = vit_hub.ViTConfig(
    image_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1, mlp_dim=48, num_classes=5, norm_eps=1e-6
)


def state(seed: int = 0, config: vit_hub.ViTConfig = SMALL) -> dict[str, torch.Tensor]:
    return dict(vit_hub.to_timm(random_model(config, seed)))


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["mlp_head", "output_layer", "last_linear", "logits", "probe", "net.lin"])
def test_a_lone_layer_beside_a_backbone_is_the_classifier(name: str, tmp_path: Path) -> None:
    model = random_model(SMALL)
    found = {
        name + key.removeprefix("head") if key.startswith("head.") else f"backbone.{key}": value
        for key, value in state().items()
    }
    path = saved(tmp_path / "m.pth", found)
    with pytest.warns(UserWarning, match=f"{name} is taken for the classifier"):
        loaded = vit_hub.load(path)
    images = random_images(SMALL)
    torch.testing.assert_close(loaded(images), model(images))
    back = vit_hub.convert(
        vit_hub.convert(path, tmp_path / "c.safetensors").path, tmp_path / "back.pth", to="timm"
    ).path
    again = torch.load(back)
    assert again.keys() == found.keys()
    assert all(torch.equal(again[name], value) for name, value in found.items())


def test_two_layers_beside_a_backbone_are_no_classifier(tmp_path: Path) -> None:
    found = {f"backbone.{name}": value for name, value in state().items() if not name.startswith("head")}
    for name in ("first", "second"):
        found |= {f"{name}.weight": torch.randn(5, 64), f"{name}.bias": torch.zeros(5)}
    ckpt = vit_hub.open_checkpoint(saved(tmp_path / "m.pth", found))
    assert ckpt.config.num_classes == 0
    assert {"first.weight", "second.weight"} <= ckpt.dropped.keys()


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_classifier_without_a_bias(prefix: str, tmp_path: Path) -> None:
    model = random_model(SMALL)
    nn.init.zeros_(model.head.bias)
    found = {prefix + name: value for name, value in state().items() if name != "head.bias"}
    path = saved(tmp_path / "m.pth", found)
    with pytest.warns(UserWarning, match="has no bias"):
        loaded = vit_hub.load(path)
    images = random_images(SMALL)
    torch.testing.assert_close(loaded(images), model(images))
    file = vit_hub.convert(path, tmp_path / "c.safetensors").path
    back = torch.load(vit_hub.convert(file, tmp_path / "back.pth", to="timm").path)
    assert back.keys() == found.keys()
    nn.init.ones_(loaded.head.bias)  # trained since
    tuned = vit_hub.convert(loaded.save(tmp_path / "tuned.safetensors"), tmp_path / "tuned.pth", to="timm").path
    assert torch.load(tuned)[f"{prefix}head.bias"].all()


def test_a_smaller_model_beside_the_larger_is_not_overlooked(tmp_path: Path) -> None:
    large, small = state(config=SMALL.replace(depth=12)), state(config=SMALL.replace(depth=3))
    both = {f"ema.{name}": value for name, value in large.items()}
    both |= {f"other.{name}": value for name, value in small.items()}
    path = saved(tmp_path / "two.pth", both)
    with pytest.raises(vit_hub.CheckpointError, match="holds several models"):
        vit_hub.open_checkpoint(path)
    assert vit_hub.open_checkpoint(path, prefix="other").config.depth == 3


def test_a_whole_name_as_prefix(tmp_path: Path) -> None:
    with pytest.raises(vit_hub.UnknownFormatError):
        vit_hub.open_checkpoint(saved(tmp_path / "m.pth", state()), prefix="patch_embed.proj.weight")


class TestRest:
    """Tensors that are kept in a file of their own."""

    def test_they_stay_out_of_other_formats(self, tmp_path: Path) -> None:
        found = {**state(), "decoder.weight": torch.ones(3)}
        file = vit_hub.convert(saved(tmp_path / "m.pth", found), tmp_path / "m.safetensors", keep_rest=True).path
        report = vit_hub.convert(file, tmp_path / "hf", to="hf", keep_rest=True)
        assert "decoder.weight" not in load_file(report.path / "model.safetensors")
        assert any("not written" in text for text in report.warnings)
        back = vit_hub.convert(file, tmp_path / "back.pth", to="timm", keep_rest=True).path
        assert torch.load(back).keys() == found.keys()

    def test_a_canonical_folder_has_them_beside_its_file(self, tmp_path: Path) -> None:
        found = {**state(), "decoder.weight": torch.ones(3)}
        vit_hub.convert(saved(tmp_path / "m.pth", found), tmp_path / "folder", keep_rest=True)
        for source in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
            back = vit_hub.convert(source, tmp_path / "back.pth", to="timm", keep_rest=True).path
            assert torch.load(back).keys() == found.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 16.0),
        ("image_size", "32"),
        ("embed_dim", "64"),
        ("depth", "2"),
        ("num_registers", "x"),
        ("class_token", "x"),
        ("distilled", None),
        ("stem_convs", 5),
        ("stem_convs", ((1, 2),)),
        ("stem_stages", 3),
        ("windows", {"size": 4, "full": 3}),
        ("rope", {"theta": "x"}),
        ("rope", {"theta": None}),
    ],
)
def test_an_override_of_another_type_is_named(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(vit_hub.ConfigError, match=name):
        vit_hub.open_checkpoint(saved(tmp_path / "m.pth", state()), overrides={name: value})


@pytest.mark.parametrize("depth", [10**6, "2", 2.0])
def test_a_depth_that_the_tensors_have_not(depth: Any, tmp_path: Path) -> None:
    model = random_model(SMALL)
    folder = vit_hub.convert(model.save(tmp_path / "m.safetensors"), tmp_path / "hf", to="hf").path
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": depth}))
    with pytest.raises(vit_hub.VitHubError, match="depth"):
        vit_hub.open_checkpoint(folder)
    tensors = {**state(), "blocks.9999999.norm1.weight": torch.ones(64)}
    with pytest.raises(vit_hub.VitHubError, match="depth"):
        vit_hub.open_checkpoint(saved(tmp_path / "m.pth", tensors))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("carried", ["zzz"]),
        ("carried", 5),
        ("sidecars", [1]),
        ("sidecars", {"config.json": 5}),
        ("preprocess", 5),
        ("format", 5),
        ("names", 3),
    ],
)
def test_a_damaged_passport_is_named(key: str, value: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = random_model(SMALL).save(tmp_path / "m.safetensors")
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    passport = {**json.loads(metadata["vit_hub.passport"]), key: value}
    save_file(load_file(path), path, {**metadata, "vit_hub.passport": json.dumps(passport)})
    with pytest.raises(vit_hub.CheckpointError, match=r"m\.safetensors"):
        vit_hub.open_checkpoint(path)


@pytest.mark.parametrize("kind", ["windows", "video", "plain"])
def test_kernels_of_mlx_have_their_channels_last(kind: str, tmp_path: Path) -> None:
    """Tables of four axes are no kernels; those of videos have five."""
    to = "hf" if kind == "video" else "timm"
    config = KINDS[kind].replace(pool_mlp_dim=4 * KINDS[kind].embed_dim)
    model = random_model(config)
    to = "hf" if kind == "video" else "timm"
    made = vit_hub.convert(model.save(tmp_path / "m.safetensors"), tmp_path / "plain", to=to).path
    (file,) = made.glob("*.safetensors")
    tensors = load_file(file)
    kernels = [name for name, value in tensors.items() if value.dim() > 3 and name.endswith("weight")]
    changed = {name: value.movedim(1, -1).contiguous() for name, value in tensors.items() if name in kernels}
    assert changed
    save_file({**tensors, **changed}, file, {"format": "mlx"})
    ckpt = vit_hub.open_checkpoint(made)
    assert sorted(ckpt.passport.channels_last) == sorted(kernels)
    images = random_images(model.config)
    with torch.inference_mode():
        torch.testing.assert_close(vit_hub.load(made)(images), model(images))
    canonical = vit_hub.convert(made, tmp_path / "c.safetensors").path
    back = vit_hub.convert(canonical, tmp_path / "back", to=ckpt.format).path
    (again,) = back.glob("*.safetensors")
    assert all(torch.equal(load_file(again)[name], value) for name, value in changed.items())


def test_a_file_of_mlx_goes_to_timm_in_memory(tmp_path: Path) -> None:
    tensors = state()
    kernel = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = kernel.movedim(1, -1).contiguous()
    save_file(tensors, tmp_path / "m.safetensors", {"format": "mlx"})
    model = vit_hub.load(tmp_path / "m.safetensors", format="timm")
    assert torch.equal(vit_hub.to_timm(model)["patch_embed.proj.weight"], kernel)
