"""Towers of Qwen's language models: patches of two frames, windows of several sizes, and a patch merger."""

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
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.model.config import Merger, Windows

# transformers computes rotations in float32.
SINGLE = 1e-6


def made(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    model = model.to(dtype).eval()
    randomise(model)
    return model


def run(theirs: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens before the merger, row-major but for windows, and merged ones, of images or videos [B, T, C, h, w]."""
    config = theirs.config
    p, t, m = config.patch_size, config.temporal_patch_size, config.spatial_merge_size
    videos = images if images.dim() == 5 else images.unsqueeze(1).expand(-1, t, -1, -1, -1)
    batch, frames, chans, height, width = videos.shape
    grid = (frames // t, height // p, width // p)
    boxes = videos.reshape(batch, grid[0], t, chans, grid[1] // m, m, p, grid[2] // m, m, p)
    flat = boxes.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(-1, chans * t * p * p)
    with torch.inference_mode():
        found = theirs(flat, torch.tensor([grid] * batch))
    tokens = found.last_hidden_state.reshape(batch, grid[0], grid[1] // m, grid[2] // m, m, m, -1)
    rows = tokens.transpose(3, 4).reshape(batch, grid[0] * grid[1] * grid[2], -1)
    return rows, found.pooler_output.reshape(batch, -1, found.pooler_output.shape[-1])


@st.composite
def towers(draw: st.DrawFn) -> Any:
    heads, patch, merge = draw(st.sampled_from((1, 2, 3))), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width = 8 * heads
    common = {
        "depth": draw(st.integers(1, 3)),
        "num_heads": heads,
        "in_channels": draw(st.sampled_from((1, 3))),
        "patch_size": patch,
        "spatial_merge_size": merge,
        "temporal_patch_size": draw(st.integers(1, 3)),
        "rope_parameters": {"rope_type": "axial", "rope_theta": draw(st.sampled_from((100.0, 10_000.0)))},
    }
    act = st.sampled_from(("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu"))
    kind = draw(st.sampled_from(("2", "2.5", "3")))
    if kind == "2":
        config: Any = transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLVisionConfig(
            **common, embed_dim=width, hidden_size=draw(st.integers(1, 9)), mlp_ratio=2, hidden_act=draw(act)
        )
        return made(Qwen2VisionTransformerPretrainedModel(config))
    sizes = {
        "hidden_size": width,
        "intermediate_size": draw(st.integers(1, 20)),
        "out_hidden_size": draw(st.integers(1, 9)),
        "hidden_act": draw(act),
    }
    if kind == "2.5":
        config = transformers.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(
            **common,
            **sizes,
            window_size=draw(st.integers(1, 3)) * merge * patch + draw(st.integers(0, patch - 1)),
            fullatt_block_indexes=draw(st.lists(st.integers(0, 3), max_size=2)),
        )
        return made(Qwen2_5_VisionTransformerPretrainedModel(config))
    config = transformers.models.qwen3_vl.configuration_qwen3_vl.Qwen3VLVisionConfig(
        **common,
        **sizes,
        num_position_embeddings=draw(st.integers(1, 5)) ** 2,
        deepstack_visual_indexes=draw(st.sampled_from(([], [0], [0, 1]))),
    )
    return made(Qwen3VLVisionModel(config))


@examples(80)
@given(theirs=towers(), squares=st.tuples(st.integers(1, 4), st.integers(1, 4)), frames=st.integers(0, 3))
def test_a_tower_gives_the_same_tokens_for_images_and_videos_of_any_size(
    theirs: Any, squares: tuple[int, int], frames: int
) -> None:
    ours = vit_hub.from_module(theirs)
    config = theirs.config
    height, width = (count * config.spatial_merge_size * config.patch_size for count in squares)
    video = (frames * config.temporal_patch_size,) if frames else ()
    images = torch.randn(
        2, *video, config.in_channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    rows, merged = run(theirs, images)
    with torch.inference_mode():
        assert relative_error(ours(images), merged) <= SINGLE
        if ours.config.windows is None and type(theirs).__name__[:7] != "Qwen2_5":
            assert relative_error(ours.forward_features(images), rows) <= SINGLE


SMALL: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "in_channels": 3}
TEXT: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 10,
    "intermediate_size": 8, "max_position_embeddings": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}  # fmt: skip
WHOLE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2": (
        transformers.Qwen2VLForConditionalGeneration,
        transformers.Qwen2VLConfig,
        {**SMALL, "embed_dim": 16, "hidden_size": 8, "mlp_ratio": 2},
    ),
    "qwen2.5": (
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLConfig,
        {
            **SMALL, "hidden_size": 16, "out_hidden_size": 8, "intermediate_size": 20, "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3": (
        transformers.Qwen3VLForConditionalGeneration,
        transformers.Qwen3VLConfig,
        {
            **SMALL, "hidden_size": 16, "out_hidden_size": 8, "intermediate_size": 20, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}  # fmt: skip


def whole(kind: str, folder: Path) -> Any:
    """Write a whole model, and return its tower."""
    cls, config, vision = WHOLE[kind]
    model = made(cls(config(vision_config=vision, text_config=TEXT)), torch.float32)
    model.save_pretrained(folder)
    return model.model.visual


def images(size: tuple[int, int] = (16, 24)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", WHOLE)
def test_the_tower_of_a_whole_model_is_read_and_written_back(kind: str, tmp_path: Path) -> None:
    theirs = whole(kind, tmp_path / "hf")
    ckpt = vit_hub.open_checkpoint(tmp_path / "hf")
    assert ckpt.warnings == ()
    assert not any("visual" in name for name in ckpt.dropped)
    rows, merged = run(theirs, images())
    ours = vit_hub.load(ckpt)
    with torch.inference_mode():
        assert relative_error(ours(images()), merged) <= 1e-5
        if kind != "qwen2.5":
            assert relative_error(ours.forward_features(images()), rows) <= 1e-5
    vit_hub.convert(ckpt, tmp_path / "canonical.safetensors")
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to="hf")
    before = load_file(tmp_path / "hf" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    ends = {name: next(full for full in before if full.endswith(name)) for name in after}
    assert {*ends.values()} == before.keys() - ckpt.dropped.keys()
    assert all(torch.equal(after[name], before[full]) for name, full in ends.items())


@pytest.mark.parametrize("kind", WHOLE)
def test_a_tower_alone_is_a_folder_that_its_class_loads(kind: str, tmp_path: Path) -> None:
    theirs = whole(kind, tmp_path / "hf")
    vit_hub.convert(tmp_path / "hf", tmp_path / "tower", to="hf")
    again, info = type(theirs).from_pretrained(tmp_path / "tower", output_loading_info=True)
    assert not any(info.values())
    _, wanted = run(theirs, images())
    assert relative_error(run(again.eval(), images())[1], wanted) <= 1e-6
    with torch.inference_mode():
        assert relative_error(vit_hub.load(tmp_path / "tower")(images()), wanted) <= 1e-5
    with pytest.raises(UnsupportedByFormatError, match="merger"):
        vit_hub.convert(tmp_path / "hf", tmp_path / "timm", to="timm")


def test_a_config_of_transformers_4_is_read(tmp_path: Path) -> None:
    """With the model type of the whole model, and without rotary parameters."""
    whole("qwen2.5", tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"] |= {"model_type": "qwen2_5_vl", "in_chans": 3}
    del config["vision_config"]["rope_parameters"]
    file.write_text(json.dumps(config))
    found = vit_hub.open_checkpoint(tmp_path).config
    assert found.windows == Windows(size=(4, 4), full=(1,), pad=False)
    assert (found.norm, found.merger) == ("rms", Merger(dim=8))
    assert found.rope is not None
    assert found.rope.theta == 10_000


def test_images_without_whole_squares_are_refused(tmp_path: Path) -> None:
    whole("qwen2", tmp_path)
    model = vit_hub.load(tmp_path)
    for size in ((12, 16), (16, 18)):
        with pytest.raises(ConfigError, match="whole"):
            model(images(size))
    model.pad = True
    assert model(images((13, 15))).shape == (2, 4, 8)


def test_maps_of_a_video_have_an_axis_of_frames(tmp_path: Path) -> None:
    whole("qwen2", tmp_path)
    model = vit_hub.load(tmp_path)
    video = torch.stack([images((16, 16))] * 4, dim=1)
    [last] = model.forward_intermediates(video, 1)
    assert last.shape == (2, 16, 2, 4, 4)
    assert torch.allclose(last[:, :, 0], last[:, :, 1], atol=1e-6)
    [still] = model.forward_intermediates(images((16, 16)), 1)
    assert torch.allclose(last[:, :, 0], still, atol=1e-5)
