"""Linear heads in files of their own, joined with their backbone, against the formulas of the projects' own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.small_models import configs, examples, random_images, random_model, relative_error
from torch import Tensor

import vit_hub
from vit_hub.cli import app
from vit_hub.errors import CheckpointError, ConfigError, UnsupportedByFormatError

D, K = 24, 7


def backbone(folder: Path, **fields: Any) -> Path:
    """A backbone as DINO publishes it, or with layer scale and mask token as DINOv2 does."""
    config = vit_hub.ViTConfig(
        **{"image_size": 16, "patch_size": 4, "embed_dim": D, "depth": 5, "num_heads": 3, "mlp_dim": 48, **fields}
    )
    random_model(config).save(folder / "canonical.safetensors")
    to = "facebook-dinov2" if config.layer_scale else "facebook-dino"
    vit_hub.convert(folder / "canonical.safetensors", folder / "backbone.pth", to=to)
    return folder / "backbone.pth"


def linear(width: int, seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(K, width, generator=generator),
        "bias": torch.randn(K, generator=generator),
    }


def dino_file(path: Path, state: dict[str, Tensor]) -> Path:
    """Return a file as eval_linear.py saves it."""
    named = {f"module.linear.{name}": value for name, value in state.items()}
    optimizer = torch.optim.SGD([torch.nn.Parameter(state["weight"].clone())], 0.1, momentum=0.9)
    torch.save({"epoch": 100, "state_dict": named, "optimizer": optimizer.state_dict(), "best_acc": 77.0}, path)
    return path


def last_tokens(path: Path, images: Tensor, count: int) -> list[Tensor]:
    model = vit_hub.load(path, overrides={"num_heads": 3})
    pairs = model.get_intermediate_layers(images, count, return_class_token=True)
    return [torch.cat((token[:, None], patches), dim=1) for patches, token in pairs]  # type: ignore[union-attr]


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def joined(source: Path, head: Path, **options: Any) -> vit_hub.VisionTransformer:
    options["overrides"] = {"num_heads": 3, **options.get("overrides", {})}
    return vit_hub.load(source, head=head, **options)


def test_dino_small_reads_four_blocks(tmp_path: Path) -> None:
    source, state = backbone(tmp_path), linear(4 * D)
    model = joined(source, dino_file(tmp_path / "linear.pth", state))
    wanted = torch.cat([tokens[:, 0] for tokens in last_tokens(source, IMAGES, 4)], dim=-1)
    torch.testing.assert_close(model(IMAGES), wanted @ state["weight"].T + state["bias"], atol=2e-5, rtol=1e-5)
    assert (model.config.head_layers, model.config.head_input, model.config.num_classes) == (4, "pooled", K)


def test_dino_base_has_channels_of_both_tokens_in_turns(tmp_path: Path) -> None:
    source, state = backbone(tmp_path), linear(2 * D)
    with pytest.warns(UserWarning, match="in turns"):
        model = joined(source, dino_file(tmp_path / "linear.pth", state))
    [tokens] = last_tokens(source, IMAGES, 1)
    both = torch.cat((tokens[:, 0].unsqueeze(-1), tokens[:, 1:].mean(dim=1).unsqueeze(-1)), dim=-1).reshape(2, -1)
    torch.testing.assert_close(model(IMAGES), both @ state["weight"].T + state["bias"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("layers", [1, 4])
def test_dinov2(tmp_path: Path, layers: int, registers: int) -> None:
    source, state = backbone(tmp_path, layer_scale=True, num_registers=registers), linear((1 + layers) * D)
    torch.save(state, tmp_path / "head.pth")
    model = joined(source, tmp_path / "head.pth")
    outputs = last_tokens(source, IMAGES, layers)
    wanted = torch.cat([*(tokens[:, 0] for tokens in outputs), outputs[-1][:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(model(IMAGES), wanted @ state["weight"].T + state["bias"], atol=2e-5, rtol=1e-5)
    listed = model(list(IMAGES))
    torch.testing.assert_close(listed, model(IMAGES), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("names", ["{}", "head.{}", "state_dict/fc.{}", "model/module.classifier.{}", "linear.{}"])
def test_probes_of_any_name(tmp_path: Path, names: str) -> None:
    source, state = backbone(tmp_path), linear(D)
    *outer, inner = names.split("/")
    content: dict[str, Any] = {inner.format(name): value for name, value in state.items()}
    for key in reversed(outer):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "probe.pt")
    model = joined(source, tmp_path / "probe.pt")
    [tokens] = last_tokens(source, IMAGES, 1)
    torch.testing.assert_close(model(IMAGES), tokens[:, 0] @ state["weight"].T + state["bias"], atol=2e-5, rtol=1e-5)


def test_a_head_without_a_bias_over_a_mean(tmp_path: Path) -> None:
    config = vit_hub.ViTConfig(
        image_size=16, patch_size=4, embed_dim=D, depth=2, num_heads=3, mlp_dim=48, class_token=False, pool="avg"
    )
    plain, state = random_model(config), linear(D)
    plain.save(tmp_path / "model.safetensors")
    save_file({"classifier.weight": state["weight"]}, tmp_path / "head.safetensors")
    model = vit_hub.load(tmp_path / "model.safetensors", head=tmp_path / "head.safetensors")
    torch.testing.assert_close(model(IMAGES), plain(IMAGES) @ state["weight"].T, atol=2e-5, rtol=1e-5)


def test_a_probe_of_mae_with_a_batch_norm(tmp_path: Path) -> None:
    source, state = backbone(tmp_path), linear(D)
    norm = torch.nn.BatchNorm1d(D, affine=False, eps=1e-6)
    norm(torch.randn(32, D, generator=torch.Generator().manual_seed(4)))
    named = {f"head.0.{name}": value for name, value in norm.state_dict().items()}
    torch.save({"model": {**named, **{f"head.1.{name}": value for name, value in state.items()}}}, tmp_path / "p.pth")
    model = joined(source, tmp_path / "p.pth")
    [tokens] = last_tokens(source, IMAGES, 1)
    wanted = norm.eval()(tokens[:, 0]) @ state["weight"].T + state["bias"]
    torch.testing.assert_close(model(IMAGES), wanted, atol=2e-5, rtol=1e-5)
    ckpt = vit_hub.open_checkpoint(source, head=tmp_path / "p.pth", overrides={"num_heads": 3})
    assert ckpt.origin["head_norm.running_var"] == ("p.pth:model/head.0.running_var",)


def test_to_transformers_and_back(tmp_path: Path) -> None:
    source, state = backbone(tmp_path, layer_scale=True), linear(2 * D)
    torch.save(state, tmp_path / "head.pth")
    options: dict[str, Any] = {"head": tmp_path / "head.pth", "overrides": {"num_heads": 3}}
    vit_hub.convert(source, tmp_path / "hf", to="hf", **options)
    theirs = transformers.Dinov2ForImageClassification.from_pretrained(tmp_path / "hf").eval()
    wanted = joined(source, tmp_path / "head.pth")(IMAGES)
    torch.testing.assert_close(theirs(IMAGES).logits, wanted, atol=2e-5, rtol=1e-5)
    with pytest.raises(UnsupportedByFormatError, match=r"no place for head\.weight"):
        vit_hub.convert(source, tmp_path / "back.pth", to="facebook-dinov2", **options)
    report = vit_hub.convert(source, tmp_path / "back.pth", to="facebook-dinov2", lossy=True, **options)
    before, after = torch.load(source), torch.load(tmp_path / "back.pth")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {"head.pth:weight", "head.pth:bias"} <= report.dropped.keys()


def test_the_canonical_file_names_both_files(tmp_path: Path) -> None:
    source, state = backbone(tmp_path), linear(4 * D)
    head = dino_file(tmp_path / "linear.pth", state)
    out = tmp_path / "joined.safetensors"
    result = CliRunner().invoke(
        app.main, ["convert", str(source), str(out), "--head", str(head), "--set", "num_heads=3", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["inferred"]["head_layers"] == "width of the head in linear.pth"
    ckpt = vit_hub.open_checkpoint(out)
    assert [item["file"] for item in ckpt.provenance["source"]] == ["backbone.pth", "linear.pth"]
    assert all(len(item["sha256"]) == 64 for item in ckpt.provenance["source"])
    assert torch.equal(load_file(out)["head.weight"], state["weight"])
    torch.testing.assert_close(vit_hub.load(out)(IMAGES), joined(source, head)(IMAGES))
    model = vit_hub.load(out, image_size=(24, 20))
    assert model(torch.randn(1, 3, 24, 20)).shape == (1, K)
    assert vit_hub.load(out, num_classes=3)(IMAGES).shape == (2, 3)
    assert vit_hub.load(out, num_classes=0)(IMAGES).shape == (2, D)


def test_a_head_that_is_there_is_replaced(tmp_path: Path) -> None:
    config = vit_hub.ViTConfig(
        image_size=16, patch_size=4, embed_dim=D, depth=2, num_heads=3, mlp_dim=48, num_classes=5, head_norm=True
    )
    random_model(config).save(tmp_path / "model.safetensors")
    torch.save(linear(D), tmp_path / "head.pth")
    ckpt = vit_hub.open_checkpoint(tmp_path / "model.safetensors", head=tmp_path / "head.pth")
    assert ckpt.config.num_classes == K
    assert not ckpt.config.head_norm
    assert any("for 5 classes is replaced by head.pth" in text for text in ckpt.warnings)
    assert ckpt.dropped["head.weight"] == "replaced by head.pth"


def test_what_the_width_does_not_tell(tmp_path: Path) -> None:
    source, state = backbone(tmp_path, layer_scale=True), linear(3 * D)
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=f"{3 * D} wide.*{D} wide") as raised:
        joined(source, tmp_path / "head.pth")
    assert "head_layers" in raised.value.hint
    model = joined(source, tmp_path / "head.pth", overrides={"head_layers": 3})
    wanted = torch.cat([tokens[:, 0] for tokens in last_tokens(source, IMAGES, 3)], dim=1)
    torch.testing.assert_close(model(IMAGES), wanted @ state["weight"].T + state["bias"], atol=2e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="several|call the model|of 3 blocks"):
        model.forward_head(model.forward_features(IMAGES))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(K, D + 1)}, f"{D + 1} wide.*{D} wide"),
        (
            {"a.weight": torch.ones(K, D), "b.weight": torch.ones(K, D)},
            r"not one linear layer, but a\.weight, b\.weight",
        ),
        ({"weight": torch.ones(K, D, 1, 1)}, "not one linear layer"),
        ({"weight": torch.ones(K, D), "bias": torch.ones(K + 1)}, "not one linear layer"),
        ({"weight": torch.ones(K, D), "running_mean": torch.ones(D)}, "not one linear layer"),
        ({"bias": torch.ones(K)}, "not one linear layer"),
        ({"weight": torch.ones(K, D, dtype=torch.int8)}, "not one linear layer"),
    ],
)
def test_files_that_are_no_head(tmp_path: Path, content: dict[str, Tensor], message: str) -> None:
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=message):
        joined(backbone(tmp_path), tmp_path / "head.pth")


def test_a_head_of_class_tokens_needs_one(tmp_path: Path) -> None:
    source = backbone(tmp_path, layer_scale=True)
    torch.save(linear(4 * D), tmp_path / "head.pth")
    with pytest.raises(ConfigError, match=r"96 wide.*cannot feed it.*pool='cls'"):
        joined(source, tmp_path / "head.pth", overrides={"pool": "avg"})


def test_a_head_is_given_when_a_checkpoint_is_opened(tmp_path: Path) -> None:
    ckpt = vit_hub.open_checkpoint(backbone(tmp_path), overrides={"num_heads": 3})
    with pytest.raises(ConfigError, match="head= is for opening"):
        vit_hub.load(ckpt, head=tmp_path / "head.pth")


@given(config=configs(pool="cls", class_token=True, final_norm="before", num_classes=3, depth=3), data=st.data())
@examples(25)
def test_heads_over_several_blocks_of_any_model(config: vit_hub.ViTConfig, data: st.DataObject) -> None:
    plain = {"representation_dim": 0, "projection_dim": 0, "head_norm": False}
    layers = data.draw(st.integers(1, 3))
    config = config.replace(**plain, head_layers=layers, head_input=data.draw(st.sampled_from(("pooled", "cls_avg"))))
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    outputs, _, _ = model._intermediates(images, layers, norm=True)
    read = [tokens[:, 0] for tokens in outputs]
    if config.head_input == "cls_avg":
        read.append(outputs[-1][:, config.num_prefix_tokens :].mean(dim=1))
    wanted = torch.nn.functional.linear(torch.cat(read, dim=1), model.head.weight, model.head.bias)  # type: ignore[arg-type]
    assert relative_error(model(images), wanted) < 1e-10
