"""Patches that span frames: VideoMAE and V-JEPA 2 of transformers, videos and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import examples, randomise, relative_error
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.model.config import Rope, Video

EXACT, SINGLE = 1e-10, 1e-6


def made(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    model = model.to(dtype).eval()
    randomise(model)
    return model


def videos(config: vit_hub.ViTConfig, frames: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, frames, config.in_chans, *config.image_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@st.composite
def common(draw: st.DrawFn) -> dict[str, Any]:
    heads, patch = draw(st.sampled_from((1, 2, 3))), draw(st.integers(1, 3))
    return {
        "hidden_size": draw(st.sampled_from((2, 4, 6, 8, 12))) * heads,
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 2)),
        "patch_size": patch,
        "size": patch * draw(st.integers(1, 3)),
        "chans": draw(st.sampled_from((1, 3))),
        "tubelet_size": draw(st.integers(1, 3)),
        "clips": draw(st.integers(1, 3)),
        "hidden_act": draw(st.sampled_from(("gelu", "gelu_new", "silu"))),
        "layer_norm_eps": draw(st.sampled_from((1e-12, 1e-6, 1e-5, 1e-3))),
    }


@st.composite
def videomae_models(draw: st.DrawFn) -> Any:
    found = draw(common())
    size, chans, clips = (found.pop(name) for name in ("size", "chans", "clips"))
    config = transformers.VideoMAEConfig(
        **found,
        image_size=size,
        num_channels=chans,
        num_frames=clips * found["tubelet_size"],
        intermediate_size=draw(st.integers(1, 20)),
        qv_bias=draw(st.booleans()),
        use_mean_pooling=draw(st.booleans()),
        num_labels=4,
        decoder_num_hidden_layers=1,
    )
    kind = draw(st.sampled_from(("VideoMAEModel", "VideoMAEForVideoClassification")))
    return made(getattr(transformers, kind)(config))


@examples(50)
@given(theirs=videomae_models())
def test_videomae_gives_the_same_numbers_and_goes_back(theirs: Any) -> None:
    ours = vit_hub.from_module(theirs)
    # Its table is in float32, whatever the model is in.
    images = videos(ours.config, theirs.config.num_frames)
    with torch.inference_mode():
        if ours.config.num_classes:
            assert relative_error(ours(images), theirs(images).logits) <= SINGLE
        tokens = getattr(theirs, "videomae", theirs)(images).last_hidden_state
        assert relative_error(ours.forward_features(images), tokens) <= SINGLE
    found, wanted = vit_hub.to_transformers(ours).state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@st.composite
def vjepa2_models(draw: st.DrawFn) -> Any:
    found = draw(common())
    size, chans, clips = (found.pop(name) for name in ("size", "chans", "clips"))
    config = transformers.VJEPA2Config(
        **found,
        crop_size=size,
        in_chans=chans,
        frames_per_clip=clips * found["tubelet_size"],
        mlp_ratio=draw(st.sampled_from((1.0, 1.5, 4.0))),
        qkv_bias=draw(st.booleans()),
        num_pooler_layers=draw(st.integers(0, 2)),
        num_labels=4,
        pred_hidden_size=6,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
        pred_num_mask_tokens=1,
    )
    kind = draw(st.sampled_from(("VJEPA2Model", "VJEPA2ForVideoClassification")))
    return made(getattr(transformers, kind)(config))


@examples(50)
@given(theirs=vjepa2_models(), clips=st.integers(1, 4))
def test_vjepa2_gives_the_same_numbers_for_any_number_of_frames(theirs: Any, clips: int) -> None:
    ours = vit_hub.from_module(theirs)
    images = videos(ours.config, clips * theirs.config.tubelet_size)
    inner = getattr(theirs, "vjepa2", theirs)
    with torch.inference_mode():
        assert (
            relative_error(ours.forward_features(images), inner(images, skip_predictor=True).last_hidden_state) <= EXACT
        )
        if ours.config.num_classes:
            assert relative_error(ours(images), theirs(images).logits) <= EXACT
            pooled = theirs.pooler(inner(images, skip_predictor=True).last_hidden_state)
            assert relative_error(ours.embed(images), pooled) <= EXACT


def tiny(kind: str, **changes: Any) -> Any:
    common = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 4, "num_labels": 3}
    if kind.startswith("VideoMAE"):
        own = {
            "image_size": 16, "num_frames": 4, "intermediate_size": 48, "decoder_hidden_size": 8,
            "decoder_num_attention_heads": 1, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 8,
        }  # fmt: skip
        config: Any = transformers.VideoMAEConfig(**common, **{**own, **changes})
    else:
        own = {
            "crop_size": 16, "frames_per_clip": 4, "mlp_ratio": 2, "num_pooler_layers": 1, "pred_hidden_size": 12,
            "pred_num_attention_heads": 1, "pred_num_hidden_layers": 1, "pred_num_mask_tokens": 1,
        }  # fmt: skip
        config = transformers.VJEPA2Config(**common, **{**own, **changes})
    return made(getattr(transformers, kind)(config), torch.float32)


KINDS = {
    "VideoMAEModel": (),
    "VideoMAEForVideoClassification": (),
    "VideoMAEForPreTraining": ("decoder.", "encoder_to_decoder.", "mask_token"),
    "VJEPA2Model": ("predictor.",),
    "VJEPA2ForVideoClassification": ("vjepa2.predictor.",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_comes_back_byte_for_byte_without_what_is_of_the_pre_training(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path / "hf")
    ckpt = vit_hub.open_checkpoint(tmp_path / "hf")
    assert ckpt.warnings == ()
    assert all(name.startswith(KINDS[kind]) for name in ckpt.dropped)
    assert bool(ckpt.dropped) == bool(KINDS[kind])
    vit_hub.convert(ckpt, tmp_path / "canonical.safetensors")
    report = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to="hf")
    assert not [text for text in report.warnings if "predictor" not in text and "no preprocessing" not in text]
    before = load_file(tmp_path / "hf" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert after.keys() == before.keys() - ckpt.dropped.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    old, new = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "back"))
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    assert changed <= {"architectures", "transformers_version", "dtype", "id2label", "label2id"}


@pytest.mark.parametrize("kind", ["VideoMAEForVideoClassification", "VJEPA2ForVideoClassification"])
def test_an_image_is_a_video_that_stands_still(kind: str) -> None:
    ours = vit_hub.from_module(tiny(kind))
    image = videos(ours.config, 1, torch.float32)
    # VideoMAE's table is one of all its frames; V-JEPA 2 takes as many as a patch has.
    frames = 4 if kind.startswith("VideoMAE") else 2
    still = image.expand(-1, frames, -1, -1, -1)
    with torch.inference_mode():
        for given in (image[:, 0], image):
            assert torch.equal(ours(given), ours(still))
            assert torch.equal(ours.forward_features(given), ours.forward_features(still))


def test_maps_of_blocks_have_an_axis_of_frames() -> None:
    ours = vit_hub.from_module(tiny("VJEPA2Model"))
    [last] = ours.forward_intermediates(videos(ours.config, 6, torch.float32), 1)
    assert last.shape == (2, 24, 3, 4, 4)
    [tokens] = ours.forward_intermediates(videos(ours.config, 6, torch.float32), 1, reshape=False)
    assert torch.equal(last.flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("shape", [(2, 3, 3, 16, 16), (2, 4, 1, 16, 16), (3, 16, 16), (2, 4, 4, 3, 16, 16)])
def test_videos_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    ours = vit_hub.from_module(tiny("VJEPA2Model"))
    with pytest.raises(ConfigError, match=r"or \[batch, frames in multiples of 2, 3, 16, 16\]"):
        ours(torch.zeros(shape))


def test_a_model_of_images_takes_no_videos() -> None:
    model = vit_hub.VisionTransformer(vit_hub.ViTConfig(image_size=16, embed_dim=12, num_heads=3, depth=1))
    with pytest.raises(ConfigError, match="the model takes"):
        model(torch.zeros(1, 2, 3, 16, 16))


@pytest.mark.parametrize("kind", ["VideoMAEModel", "VJEPA2Model"])
@pytest.mark.parametrize("to", ["timm", "vit_jax", "big_vision", "facebook", "open_clip", "torchvision", "mmpretrain"])
def test_formats_of_images_refuse_videos(kind: str, to: str, tmp_path: Path) -> None:
    if (kind, to) == ("VJEPA2Model", "facebook"):
        pytest.skip("it has a format for them")
    tiny(kind).save_pretrained(tmp_path / "hf")
    with pytest.raises(UnsupportedByFormatError, match=r"video: Video\(.*\) is not supported"):
        vit_hub.convert(tmp_path / "hf", tmp_path / "out", to=to)


def test_a_config_states_video_and_rotations(tmp_path: Path) -> None:
    tiny("VJEPA2Model").save_pretrained(tmp_path / "hf")
    config = vit_hub.open_checkpoint(tmp_path / "hf").config
    assert config.video == Video(frames=4, tubelet=2)
    assert config.rope == Rope(frames=True, pairs="tiled")
    with pytest.raises(ConfigError, match="rope"):
        config.replace(rope=Rope())
    with pytest.raises(ConfigError, match=r"video\.frames=3 is no multiple"):
        config.replace(video={"frames": 3, "tubelet": 2})


def test_another_number_of_channels_and_another_patch_size(tmp_path: Path) -> None:
    tiny("VJEPA2Model").save_pretrained(tmp_path / "hf")
    grey = vit_hub.load(tmp_path / "hf", in_chans=1)
    assert grey.patch_embed.proj.weight.shape == (24, 1, 2, 4, 4)
    small = vit_hub.load(tmp_path / "hf", patch_size=2)
    assert small.config.image_size == (8, 8)
    assert small(torch.zeros(1, 2, 3, 8, 8)).shape == (1, 16, 24)


@pytest.mark.parametrize(
    ("kind", "file", "processor", "expected"),
    [
        (
            "VideoMAEModel",
            "preprocessor_config.json",
            transformers.VideoMAEImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
            (16 / 18, (0.5, 0.5, 0.5)),
        ),
        (
            "VJEPA2Model",
            "video_preprocessor_config.json",
            transformers.VJEPA2VideoProcessor(crop_size=16),
            (16 / 18, (0.485, 0.456, 0.406)),
        ),
    ],
    ids=["image processor", "video processor"],
)
def test_the_preprocessing_of_frames_is_read(
    kind: str, file: str, processor: Any, expected: tuple[float, Any], tmp_path: Path
) -> None:
    tiny(kind).save_pretrained(tmp_path)
    (tmp_path / file).write_text(processor.to_json_string())
    found = vit_hub.preprocess(vit_hub.load(tmp_path))
    assert (found.image_size, found.crop_mode, found.interpolation) == ((16, 16), "center", "bilinear")
    assert found.resize_to == (18, 18)
    assert found.crop_pct == pytest.approx(expected[0])
    assert found.mean == pytest.approx(expected[1])
    before = json.loads((tmp_path / file).read_text())
    vit_hub.convert(tmp_path, tmp_path / "middle.safetensors")
    report = vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "back", to="hf")
    assert not [text for text in report.metadata_lost if "preprocessing" in text]
    assert json.loads((tmp_path / "back" / file).read_text()) == before
    vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "large", to="hf", image_size=32)
    large = vit_hub.preprocess(vit_hub.load(tmp_path / "large"))
    assert (large.image_size, large.resize_to) == ((32, 32), (36, 36))
