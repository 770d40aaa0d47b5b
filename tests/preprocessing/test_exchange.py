"""Preprocessing in the words of other projects: the same pixels as their own code gives, or the difference is named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_data_config

from vit_hub.errors import ConfigError
from vit_hub.preprocessing.differences import differences, shifts_some_crops
from vit_hub.preprocessing.mmengine import from_mmengine, mmengine_preprocess
from vit_hub.preprocessing.project_files import (
    from_hf,
    from_open_clip,
    from_timm,
    hf_processor,
    open_clip_preprocess,
    stated_preprocessing,
    timm_data_config,
)
from vit_hub.preprocessing.spec import INTERPOLATIONS, Preprocessing

STATS = {"mean": (0.48, 0.45, 0.4), "std": (0.27, 0.26, 0.28)}
SIDES = st.integers(20, 90)
INPUTS = st.integers(8, 48).map(lambda side: (side, side)) | st.tuples(st.integers(8, 48), st.integers(8, 48))


def photo(height: int, width: int) -> Image.Image:
    """Smooth waves and noise, in which every pixel differs from its neighbours."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([127 + 90 * np.sin(x / 9 + y / 23), 127 + 90 * np.cos(y / 7 - x / 31), (x * y / 90) % 200], -1)
    noise = np.random.default_rng(height * 1000 + width).integers(0, 40, waves.shape)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def processed(config: dict[str, Any], image: Image.Image) -> torch.Tensor:
    """The pixels of transformers' own image processor, the one that computes with Pillow where there are two."""
    name = config["image_processor_type"]
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    found = kind.from_dict(json.loads(json.dumps(config)))(image, return_tensors="np")
    return torch.from_numpy(np.asarray(found["pixel_values"]))


def through_timm(cfg: dict[str, Any], image: Image.Image) -> torch.Tensor:
    return create_transform(**resolve_data_config(pretrained_cfg=json.loads(json.dumps(cfg))))(image)[None]


@st.composite
def any_preprocessing(draw: st.DrawFn, **fixed: Any) -> Preprocessing:
    antialias = draw(st.sampled_from((True, True, True, False)))
    fields = {
        "image_size": draw(INPUTS),
        "interpolation": draw(st.sampled_from(sorted(INTERPOLATIONS))) if antialias else "bilinear",
        "crop_pct": draw(st.floats(0.5, 1.0) | st.sampled_from((0.8, 0.875, 0.9, 0.95, 1.0))),
        "crop_mode": draw(st.sampled_from(("center", "squash", "border"))),
        "crop_offset": draw(st.sampled_from(("round", "floor"))),
        "antialias": antialias,
        "quantize": draw(st.sampled_from(("round", "round", "floor", "none"))),
    }
    return Preprocessing(**{**STATS, **fields, **fixed})


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).abs().max() < 1e-5)


class TestHuggingFace:
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(spec=any_preprocessing(), height=SIDES, width=SIDES)
    def test_the_same_pixels_or_a_difference(self, spec: Preprocessing, height: int, width: int) -> None:
        config = hf_processor(spec)
        read = from_hf(config)
        image = photo(height, width)
        theirs = processed(config, image)
        torch.testing.assert_close(read(image), theirs, rtol=0, atol=1e-5)
        if not differences(spec, read) and not shifts_some_crops(spec, read):
            assert same(theirs, spec(image))

    @pytest.mark.parametrize("interpolation", sorted(INTERPOLATIONS))
    @pytest.mark.parametrize("size", [(32, 32), (24, 40)])
    @pytest.mark.parametrize("crop_pct", [1.0, 0.8, 0.5])
    def test_squashing_with_a_crop_is_exact(self, interpolation: Any, size: tuple[int, int], crop_pct: float) -> None:
        cfg = {"input_size": (3, *size), "crop_mode": "squash", "crop_pct": crop_pct, "interpolation": interpolation}
        spec = from_timm({**STATS, **cfg})
        config = hf_processor(spec)
        assert not differences(spec, from_hf(config))
        image = photo(70, 90)
        torch.testing.assert_close(processed(config, image), through_timm({**STATS, **cfg}, image), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize(("crop_mode", "crop_pct"), [("squash", 1.0), ("squash", 0.8), ("center", 0.8)])
    def test_fractions_stay_fractions(self, interpolation: Any, crop_mode: Any, crop_pct: float) -> None:
        spec = Preprocessing(
            image_size=(32, 32), interpolation=interpolation, crop_mode=crop_mode, crop_pct=crop_pct, quantize="none",
            crop_offset="floor", **STATS,
        )  # fmt: skip
        config = hf_processor(spec)
        assert config["image_processor_type"] == "DINOv3ViTImageProcessor"
        assert from_hf(config) == spec
        image = photo(70, 90)
        torch.testing.assert_close(processed(config, image), spec(image), rtol=0, atol=5e-5)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"crop_mode": "border"}, "crop_mode center"),
            ({"crop_pct": 32 / 35}, "the crop starts a pixel earlier"),
            ({"crop_pct": 32 / 39, "crop_mode": "squash"}, "the crop starts a pixel earlier"),
            ({"antialias": False, "interpolation": "bilinear"}, "shrunk with antialiasing"),
            ({"quantize": "floor"}, "rounded to whole values instead of cut down"),
            ({"image_size": (24, 40)}, "crop_mode squash (the aspect ratio is lost)"),
        ],
    )
    def test_what_it_has_no_words_for_is_said(self, fields: dict[str, Any], words: str) -> None:
        spec = Preprocessing(**{"image_size": (32, 32), "interpolation": "bicubic", **STATS, **fields})
        assert words in "; ".join(differences(spec, from_hf(hf_processor(spec))))


class TestTimm:
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(spec=any_preprocessing(), height=SIDES, width=SIDES)
    def test_the_same_pixels_or_a_difference(self, spec: Preprocessing, height: int, width: int) -> None:
        cfg = {**timm_data_config(spec), "input_size": [3, *spec.image_size]}
        read = from_timm(json.loads(json.dumps(cfg)))
        image = photo(height, width)
        theirs = through_timm(cfg, image)
        assert torch.equal(read(image), theirs)
        if not differences(spec, read) and not shifts_some_crops(spec, read):
            assert same(theirs, spec(image))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(data=st.data(), size=INPUTS, margins=st.tuples(st.integers(0, 9), st.integers(0, 9)), squash=st.booleans())
    def test_sizes_of_image_processors(
        self, data: st.DataObject, size: tuple[int, int], margins: tuple[int, int], squash: bool
    ) -> None:
        if squash:
            resized = {"height": size[0] + margins[0], "width": size[1] + margins[1]}
        else:
            size = (size[0], size[0])
            resized = {"shortest_edge": size[0] + margins[0]}
        config = {
            "image_processor_type": "DeiTImageProcessor" if squash else "CLIPImageProcessor",
            "size": resized,
            "crop_size": {"height": size[0], "width": size[1]},
            "resample": data.draw(st.sampled_from((2, 3))),
            "do_center_crop": True,
        }
        image = photo(data.draw(SIDES), data.draw(SIDES))
        try:
            spec = from_hf(config)
        except ConfigError:
            assert squash  # no share of both sides gives these two sizes
            return
        torch.testing.assert_close(spec(image), processed(config, image), rtol=0, atol=1e-5)
        cfg = {**timm_data_config(spec), "input_size": [3, *spec.image_size]}
        if not differences(spec, from_timm(cfg)) and not shifts_some_crops(spec, from_timm(cfg)):
            torch.testing.assert_close(through_timm(cfg, image), processed(config, image), rtol=0, atol=1e-5)

    def test_a_crop_of_32_of_40_pixels_is_a_share_of_four_fifths(self) -> None:
        config = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32}
        assert timm_data_config(from_hf(config))["crop_pct"] == 0.8


class TestOpenClip:
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(
        size=INPUTS,
        mode=st.sampled_from(("shortest", "squash", "longest")),
        interpolation=st.sampled_from(("bicubic", "bilinear", "random")),
        grey=st.sampled_from((0.0, 0.5, 0.25)),
        height=SIDES,
        width=SIDES,
    )
    def test_same_pixels_as_open_clip(
        self, size: tuple[int, int], mode: str, interpolation: str, grey: float, height: int, width: int
    ) -> None:
        cfg = {"size": list(size), "resize_mode": mode, "interpolation": interpolation, "std": STATS["std"]}
        cfg |= {"mean": [grey] * 3, "fill_color": round(255 * grey)}
        image = photo(height, width)
        theirs = image_transform_v2(PreprocessCfg(**cfg), is_train=False)(image)[None]
        torch.testing.assert_close(from_open_clip(cfg)(image), theirs, rtol=0, atol=1e-6)

    def test_defaults_are_open_clips(self) -> None:
        image = photo(250, 280)
        theirs = image_transform_v2(PreprocessCfg(), is_train=False)(image)[None]
        torch.testing.assert_close(from_open_clip({})(image), theirs, rtol=0, atol=1e-6)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(spec=any_preprocessing(), height=SIDES, width=SIDES)
    def test_the_same_pixels_or_a_difference(self, spec: Preprocessing, height: int, width: int) -> None:
        cfg = open_clip_preprocess(spec)
        theirs = image_transform_v2(PreprocessCfg(**cfg), is_train=False)(photo(height, width))[None]
        read, unusable = stated_preprocessing({"open_clip_config.json": {"preprocess_cfg": cfg}}, "open_clip")
        if read is None:
            assert "fill_color" in unusable[0]
        elif not differences(spec, read) and not shifts_some_crops(spec, read):
            torch.testing.assert_close(spec(photo(height, width)), theirs, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        "cfg", [{"resize_mode": "longest"}, {"resize_mode": "any"}, {"size": "224"}, {"mean": "a"}]
    )
    def test_what_cannot_be_expressed_is_refused(self, cfg: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"fill_color|resize_mode|size|mean"):
            from_open_clip(cfg)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(spec=any_preprocessing(), height=SIDES, width=SIDES)
def test_no_difference_without_one(spec: Preprocessing, height: int, width: int) -> None:
    """A named difference changes pixels of an image whose sides both change."""
    assert not differences(spec, spec)
    image = photo(2 * max(*spec.resize_to, height), 2 * max(*spec.resize_to, width) + 31)
    for read in (
        from_hf(hf_processor(spec)),
        from_timm({**timm_data_config(spec), "input_size": [3, *spec.image_size]}),
    ):
        if differences(spec, read) and spec.interpolation != "nearest":
            assert not same(read(image), spec(image))


@settings(max_examples=200, deadline=None)
@given(wanted=any_preprocessing())
def test_what_is_written_for_mmengine_is_read_with_the_same_sizes(wanted: Preprocessing) -> None:
    found = from_mmengine(mmengine_preprocess(wanted))
    assert found is not None
    assert found.image_size == wanted.image_size
    assert found.resize_to == wanted.resize_to


@pytest.mark.parametrize("image_size", [(224, 160), (384, 288)])
def test_mmengine_crops_of_other_shapes_are_read_back(image_size: tuple[int, int]) -> None:
    wanted = Preprocessing(image_size=image_size, interpolation="bicubic", crop_pct=0.9, crop_mode="squash", **STATS)
    found = from_mmengine(mmengine_preprocess(wanted))
    assert found is not None
    assert (found.image_size, found.resize_to) == (image_size, wanted.resize_to)
