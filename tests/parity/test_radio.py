"""RADIO of transformers: the same summary and tokens as its own code at any size, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import examples, randomise, relative_error

import vit_hub

pytestmark = pytest.mark.filterwarnings("ignore")
# transformers' class norms pixels and resizes the position table in float32, whatever it is cast to.
CLOSE = 1e-6


def radio(folder: Path, **options: Any) -> Any:
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "max_img_size": 64}
    config = transformers.RadioConfig(**{**common, **options})
    theirs = transformers.RadioModel(config)
    randomise(theirs)
    theirs.double().eval().save_pretrained(folder)
    return theirs


def pixels(height: int, width: int, chans: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, chans, height, width, dtype=torch.float64, generator=generator)


@examples(15)
@given(
    summary=st.sampled_from(([0], [0, 1], [2, 0])),
    registers=st.integers(0, 2),
    gated=st.booleans(),
    act=st.sampled_from(("gelu", "gelu_pytorch_tanh")),
    bias=st.booleans(),
)
def test_summary_and_tokens(
    tmp_path_factory: pytest.TempPathFactory, summary: list[int], registers: int, gated: bool, act: str, bias: bool
) -> None:
    folder = tmp_path_factory.mktemp("radio")
    theirs = radio(
        folder / "source",
        summary_idxs=summary,
        num_registers=registers,
        use_swiglu_ffn=gated,
        hidden_act=act,
        qkv_bias=bias,
        mlp_ratio=3.0,
    )
    ours = vit_hub.load(folder / "source", dtype="float64")
    for height, width in ((64, 64), (16, 32), (32, 16), (72, 40)):
        images = pixels(height, width)
        with torch.inference_mode():
            wanted = theirs(images)
            assert relative_error(ours(images), wanted.summary) <= CLOSE
            assert relative_error(ours.embed(images), wanted.summary) <= CLOSE
            assert relative_error(ours.forward_features(images), wanted.last_hidden_state) <= CLOSE
    vit_hub.convert(folder / "source", folder / "canonical.safetensors")
    back = vit_hub.convert(folder / "canonical.safetensors", folder / "back", to="hf").path
    before, after = (load_file(part / "model.safetensors") for part in (folder / "source", back))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with torch.inference_mode():
        again = transformers.RadioModel.from_pretrained(back, dtype=torch.float64).eval()(images)
    assert relative_error(again.summary, wanted.summary) <= CLOSE


def test_a_changed_model_is_written_with_its_values(tmp_path: Path) -> None:
    radio(tmp_path / "source")
    model = vit_hub.load(tmp_path / "source", dtype="float64", image_size=48)
    with torch.no_grad():
        for parameter in (model.patch_embed.proj.weight, model.patch_embed.proj.bias, model.pos_embed):
            parameter += 0.1 * torch.randn_like(parameter)
    written = vit_hub.convert(model.save(tmp_path / "tuned.safetensors"), tmp_path / "tuned", to="hf").path
    theirs = transformers.RadioModel.from_pretrained(written, dtype=torch.float64).eval()
    images = pixels(48, 48)
    with torch.inference_mode():
        assert relative_error(theirs(images).summary, model(images)) <= CLOSE


def test_timm_has_the_first_token_and_transformers_what_timm_has(tmp_path: Path) -> None:
    theirs = radio(tmp_path / "source", summary_idxs=[0, 1])
    with pytest.raises(vit_hub.UnsupportedByFormatError, match="pool_tokens"):
        vit_hub.convert(tmp_path / "source", tmp_path / "timm", to="timm")
    vit_hub.convert(tmp_path / "source", tmp_path / "timm", to="timm", overrides={"pool_tokens": ()})
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).double().eval()
    images = pixels(64, 64)
    with torch.inference_mode():
        wanted = theirs(images).last_hidden_state
        assert relative_error(model.forward_features(images), wanted) <= CLOSE
        assert relative_error(model(images), wanted[:, 0]) <= CLOSE
    back = vit_hub.convert(tmp_path / "timm", tmp_path / "hf", to="hf")
    again = transformers.RadioModel.from_pretrained(back.path, dtype=torch.float64).eval()
    with torch.inference_mode():
        assert relative_error(again(images).last_hidden_state, wanted) <= CLOSE


def test_images_keep_their_range(tmp_path: Path) -> None:
    radio(tmp_path / "source")
    with pytest.warns(UserWarning, match="convention of radio"):
        assert vit_hub.preprocess(vit_hub.load(tmp_path / "source")).mean == (0.0, 0.0, 0.0)
    processor = {"image_processor_type": "CLIPImageProcessor", "do_normalize": False, "do_center_crop": False}
    processor |= {"size": {"height": 32, "width": 48}, "resample": 3}
    (tmp_path / "source" / "preprocessor_config.json").write_text(json.dumps(processor))
    model = vit_hub.load(tmp_path / "source")
    images = vit_hub.preprocess(model)(Image.new("RGB", (100, 100), (255, 255, 255)))
    assert images.shape == (1, 3, 32, 48)  # not that of the position table
    assert torch.equal(images, torch.ones_like(images))
    assert model(images).shape == (1, 32)


def _release(folder: Path, scale: str, **others: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
    """The names of NVlabs/RADIO's checkpoints: with adaptors, and layer scale as timm calls it or not."""
    theirs = radio(folder)
    found = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for index in "12":
            name = name.replace(f"layer_scale{index}.lambda1", f"ls{index}.{scale}")
        found[name] = tensor
    return theirs, {**found, **others}


@pytest.mark.parametrize("scale", ["gamma", "grandma"])
def test_a_repository_with_code_of_its_own(tmp_path: Path, scale: str) -> None:
    others = {
        "radio_model.adaptors.clip.head_mlp.fc1.weight": torch.ones(2, 2),
        "radio_model.feature_normalizer.mean": torch.ones(2),
        "radio_model.model.patch_generator.video_embedder.weight": torch.ones(2, 2),
    }
    theirs, tensors = _release(tmp_path / "native", scale, **others)
    source = tmp_path / "source"
    source.mkdir()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    config = {"auto_map": {"AutoModel": "hf_model.RADIOModel"}, "model_type": "", "version": "c-radio_v4-h", "args": {}}
    (source / "config.json").write_text(json.dumps(config))
    ckpt = vit_hub.open_checkpoint(source, overrides={"num_heads": 2})
    assert set(ckpt.dropped) == set(others)
    images = pixels(32, 48)
    with torch.inference_mode():
        ours = vit_hub.load(ckpt, dtype="float64")(images)
        assert relative_error(ours, theirs(images).summary) <= CLOSE
    vit_hub.convert(source, tmp_path / "canonical.safetensors", overrides={"num_heads": 2})
    back = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to=ckpt.format).path
    after = load_file(back / "model.safetensors")
    assert after.keys() == tensors.keys() - others.keys()
    assert all(torch.equal(tensors[name], value) for name, value in after.items())
    assert json.loads((back / "config.json").read_text()) == config
    native = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "hf", to="hf").path
    again = transformers.RadioModel.from_pretrained(native, dtype=torch.float64).eval()
    with torch.inference_mode():
        assert relative_error(again(images).summary, theirs(images).summary) <= CLOSE


def test_the_release_for_torch(tmp_path: Path) -> None:
    theirs, tensors = _release(tmp_path / "native", "gamma")
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("radio_model.")
        if name != "summary_idxs":
            renamed[f"module.base_{name}" if name.startswith("model.") else f"module.{name}"] = tensor
    renamed["module._heads.0.weight"] = torch.ones(3, 16)
    torch.save({"state_dict": renamed, "epoch": 3}, tmp_path / "radio.pth.tar")
    ckpt = vit_hub.open_checkpoint(tmp_path / "radio.pth.tar", overrides={"num_heads": 2})
    warned = " ".join(ckpt.warnings)
    assert "which tokens RADIO's summary has is not stored" in warned
    assert "bilinear-align-corners" in warned
    assert [name for name in ckpt.dropped if "_heads" in name]
    images = pixels(64, 64)
    with torch.inference_mode():
        ours = vit_hub.load(ckpt, dtype="float64")
        assert relative_error(ours.forward_features(images), theirs(images).last_hidden_state) <= CLOSE
        assert ours(images).shape == (2, 16)
    back = vit_hub.convert(ckpt, tmp_path / "back.pth", to=ckpt.format).path
    after = torch.load(back)["state_dict"]
    assert all(torch.equal(after[name], value) for name, value in renamed.items() if "_heads" not in name)


def test_a_model_for_images_of_any_size_stays_one_in_timm(tmp_path: Path) -> None:
    theirs = radio(tmp_path / "source", summary_idxs=[0])
    report = vit_hub.convert(tmp_path / "source", tmp_path / "timm", to="timm")
    assert report.format == "timm-naflex"
    images = pixels(32, 48)
    with torch.inference_mode():
        ours = vit_hub.load(report.path, dtype="float64")(images)
        assert relative_error(ours, theirs(images).summary) <= CLOSE
