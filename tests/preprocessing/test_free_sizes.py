"""Segment Anything's and Qwen2-VL's image processors, pixel by pixel: padded squares, and images of their own size."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_models import examples
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

import vit_hub
from vit_hub.errors import ConfigError
from vit_hub.preprocessing.project_files import from_hf, hf_processor
from vit_hub.preprocessing.spec import Preprocessing


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    height, width = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@examples(60)
@given(size=SIZES, side=st.integers(8, 70))
def test_segment_anything(size: tuple[int, int], side: int) -> None:
    theirs = SamImageProcessorPil(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    ours = from_hf(json.loads(theirs.to_json_string()))
    assert (ours.image_size, ours.crop_mode) == ((side, side), "corner")
    try:
        wanted = theirs(picture(size), return_tensors="pt").pixel_values
    except ValueError:  # a side of no pixels
        return
    torch.testing.assert_close(ours(picture(size)), wanted, atol=1e-6, rtol=1e-6)
    # What is beside the image is zero, not nearly so.
    assert torch.equal(ours(picture(size)) == 0, wanted == 0)


def unpatched(patches: torch.Tensor, grid: list[int], p: int, merge: int) -> torch.Tensor:
    """[C, h, w] of Qwen's flat patches of two equal frames."""
    _, rows, columns = grid
    boxes = patches.reshape(rows // merge, columns // merge, merge, merge, 3, 2, p, p)[:, :, :, :, :, 0]
    return boxes.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * p, columns * p)


@examples(60)
@given(
    size=SIZES, patch=st.integers(1, 7), merge=st.integers(1, 3), least=st.integers(1, 3000), most=st.integers(1, 3000)
)
def test_qwen(size: tuple[int, int], patch: int, merge: int, least: int, most: int) -> None:
    unit = patch * merge
    bounds = {"shortest_edge": min(least, most), "longest_edge": max(least, most, unit * unit)}
    theirs = Qwen2VLImageProcessorPil(size=bounds, patch_size=patch, merge_size=merge)
    ours = from_hf({**json.loads(theirs.to_json_string()), "image_processor_type": "Qwen2VLImageProcessor"})
    [found] = ours.each([picture(size)])
    try:
        wanted = theirs(picture(size), return_tensors="pt")
    except ValueError:  # two hundred times as wide as high, or a side of no patch
        return
    grid = wanted.image_grid_thw[0].tolist()
    assert tuple(found.shape) == (3, grid[1] * patch, grid[2] * patch)
    torch.testing.assert_close(found, unpatched(wanted.pixel_values, grid, patch, merge), atol=1e-6, rtol=1e-6)


@examples(30)
@given(size=st.tuples(st.integers(17, 90), st.integers(17, 90)), shorter=st.integers(16, 40))
def test_frames_of_videos(size: tuple[int, int], shorter: int) -> None:
    frames = [picture(size, seed) for seed in range(2)]
    crop = {"height": 16, "width": 16}
    theirs = VideoMAEImageProcessorPil(size={"shortest_edge": shorter}, crop_size=crop)
    ours = from_hf(json.loads(theirs.to_json_string()))
    assert torch.equal(ours(frames), theirs(frames, return_tensors="pt").pixel_values[0])
    # That of V-JEPA 2 resizes with torchvision, which rounds some pixels to a neighbouring 8-bit value.
    other = transformers.VJEPA2VideoProcessor(crop_size=16)
    video = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in frames])
    wanted = other(video, return_tensors="pt").pixel_values_videos[0]
    found = from_hf(json.loads(other.to_json_string()))(frames)
    assert float((found - wanted).abs().max()) <= 1.01 / 255 / 0.224


def test_earlier_files_of_qwen_have_other_keys() -> None:
    own = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 100, "max_pixels": 4000, "patch_size": 2}
    found = from_hf({**own, "merge_size": 2, "size": {"max_pixels": 1, "min_pixels": 1}})
    assert (found.multiple_of, found.min_pixels, found.max_pixels) == (4, 100, 4000)


@pytest.mark.parametrize("kind", ["Sam", "Qwen2VL"])
def test_written_and_read_back(kind: str) -> None:
    spec = from_hf({"image_processor_type": f"{kind}ImageProcessor"}).with_image_size((56, 56))
    again = from_hf(hf_processor(spec))
    assert again.with_image_size((56, 56)) == spec
    assert getattr(transformers, f"{kind}ImageProcessor")(**hf_processor(spec)) is not None


def sam(folder: Path) -> None:
    config = transformers.SamVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=4, window_size=0,
        output_channels=4, mlp_dim=8,
    )  # fmt: skip
    transformers.SamVisionModel(config).save_pretrained(folder)
    processor = SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    content = {**json.loads(processor.to_json_string()), "image_processor_type": "SamImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def test_a_folder_of_sam(tmp_path: Path) -> None:
    sam(tmp_path / "hf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = vit_hub.preprocess(vit_hub.load(tmp_path / "hf"))
    assert (found.crop_mode, found.image_size) == ("corner", (32, 32))
    report = vit_hub.convert(tmp_path / "hf", tmp_path / "middle.safetensors")
    report = vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "back", to="hf")
    assert report.metadata_lost == []
    before, after = (json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("hf", "back"))
    assert before == after
    vit_hub.convert(tmp_path / "hf", tmp_path / "large", to="hf", image_size=48)
    large = json.loads((tmp_path / "large" / "preprocessor_config.json").read_text())
    assert (large["size"], large["pad_size"]) == ({"longest_edge": 48}, {"height": 48, "width": 48})
    lost = vit_hub.convert(tmp_path / "hf", tmp_path / "timm", to="timm").metadata_lost
    assert any("corner" in text for text in lost)


def test_a_tower_of_qwen_takes_images_of_their_own_size(tmp_path: Path) -> None:
    config = transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLVisionConfig(
        depth=1, embed_dim=16, hidden_size=8, num_heads=2, mlp_ratio=2, patch_size=4, spatial_merge_size=2
    )
    transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config).save_pretrained(
        tmp_path
    )
    content = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 2000},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    model = vit_hub.load(tmp_path)
    found = vit_hub.preprocess(model)
    images = found.each([picture((30, 50)), picture((90, 20))])
    assert [tuple(image.shape[1:]) for image in images] == [(32, 48), (88, 16)]
    assert all(math.prod(image.shape[1:]) <= 2000 for image in images)
    assert [model(image[None]).shape[1] for image in images] == [4 * 6, 11 * 2]
    assert found([picture((30, 50))] * 2).shape == (2, 3, *model.input_size)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_mode": "corner", "crop_pct": 0.9},
        {"multiple_of": 4},
        {"multiple_of": 4, "min_pixels": 9, "max_pixels": 8, "crop_mode": "squash"},
        {"multiple_of": 4, "min_pixels": 1, "max_pixels": 8, "crop_mode": "center"},
        {"multiple_of": -1},
        {"multiple_of": True, "min_pixels": 1, "max_pixels": 8, "crop_mode": "squash"},
    ],
)
def test_fields_that_contradict_one_another(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Preprocessing(**{"image_size": 8, "mean": (0.5,), "std": (0.5,), "interpolation": "bilinear", **fields})


@pytest.mark.parametrize("change", [{"do_pad": False}, {"pad_size": {"height": 9, "width": 8}}, {"size": 7}])
def test_other_ways_to_pad_are_refused(change: dict[str, Any]) -> None:
    own = {"image_processor_type": "SamImageProcessor", "size": {"longest_edge": 8}}
    with pytest.raises(ConfigError):
        from_hf({**own, "pad_size": {"height": 8, "width": 8}, **change})
