from __future__ import annotations

import io
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_data_config

import vit_hub
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.preprocessing.images import read_image
from vit_hub.preprocessing.project_files import CONVENTIONS, from_hf, from_timm
from vit_hub.preprocessing.spec import INTERPOLATIONS, Preprocessing

SIDES = st.integers(9, 80)
INPUTS = st.integers(8, 48)
SEEDS = st.integers(0, 2**16)
PLAIN = Preprocessing(image_size=(4, 6), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_mode="squash")


def noise(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode=mode)


def constant(preprocessing: Preprocessing, image: Image.Image) -> list[float]:
    """The 0..255 value of each channel of an evenly coloured image, after the whole preprocessing."""
    pixels = preprocessing(image)[0]
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    assert torch.equal(pixels.amin((1, 2)), pixels.amax((1, 2)))
    return ((pixels[:, 0, 0] * std + mean) * 255).tolist()


class TestTimm:
    @staticmethod
    def expected(cfg: dict[str, Any], image: Image.Image) -> torch.Tensor:
        return create_transform(**resolve_data_config(pretrained_cfg=cfg))(image)[None]

    @settings(max_examples=150, deadline=None)
    @given(
        height=SIDES,
        width=SIDES,
        seed=SEEDS,
        target=st.tuples(INPUTS, INPUTS) | INPUTS.map(lambda side: (side, side)),
        crop_pct=st.sampled_from([0.875, 0.9, 0.95, 0.96, 1.0]),
        crop_mode=st.sampled_from(["center", "squash", "border"]),
        interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    )
    def test_same_pixels_as_timm(
        self,
        height: int,
        width: int,
        seed: int,
        target: tuple[int, int],
        crop_pct: float,
        crop_mode: str,
        interpolation: str,
    ) -> None:
        cfg = {
            "input_size": (3, *target),
            "mean": (0.48, 0.45, 0.4),
            "std": (0.27, 0.26, 0.28),
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
        }
        image = noise(height, width, seed)
        assert torch.equal(from_timm(cfg)(image), self.expected(cfg, image))

    @pytest.mark.parametrize(
        "name",
        [
            "vit_base_patch16_224.augreg2_in21k_ft_in1k",
            "vit_tiny_patch16_384.augreg_in21k_ft_in1k",
            "deit3_small_patch16_224.fb_in22k_ft_in1k",
            "vit_base_patch16_clip_224.openai",
            "vit_base_patch14_dinov2.lvd142m",
            "vit_base_patch16_siglip_256.webli",
            "vit_huge_patch14_gap_224.in1k_ijepa",
        ],
    )
    def test_released_models(self, name: str) -> None:
        cfg = timm.get_pretrained_cfg(name).to_dict()
        image = noise(300, 431)
        assert torch.equal(from_timm(cfg)(image), self.expected(cfg, image))

    def test_defaults_are_timms(self) -> None:
        image = noise(250, 240)
        assert torch.equal(from_timm({})(image), self.expected({"mean": None}, image))

    def test_convention_is_the_default_of_timms_vit(self) -> None:
        cfg = timm.get_pretrained_cfg("vit_base_patch16_224.orig_in21k").to_dict()
        assert from_timm(cfg) == CONVENTIONS["timm"]

    def test_one_mean_serves_all_channels_and_one_channel_is_greyscale(self) -> None:
        assert from_timm({"mean": [0.5], "std": [0.5]}).mean == (0.5, 0.5, 0.5)
        grey = from_timm({"input_size": [1, 28, 28], "mean": [0.13], "std": [0.3]})
        assert grey(noise(28, 28)).shape == (1, 1, 28, 28)

    def test_channels_that_disagree_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="mean has 3 values and input_size 1"):
            from_timm({"input_size": [1, 28, 28]})
        with pytest.raises(ConfigError, match="input_size"):
            from_timm({"input_size": 224})


def stored_config(image_processor: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(image_processor.to_json_string())
    return data


def hf_processor(kind: str, **settings: Any) -> Any:
    """The Pillow image processor of a kind: suffix ``Pil`` since transformers 5, no suffix before."""
    name = f"{kind}ImageProcessor"
    return (getattr(transformers, f"{name}Pil", None) or getattr(transformers, name))(**settings)


class TestHuggingFace:
    @settings(max_examples=80, deadline=None)
    @given(height=SIDES, width=SIDES, seed=SEEDS, target=st.tuples(INPUTS, INPUTS), data=st.data())
    def test_squashing_processors(
        self, height: int, width: int, seed: int, target: tuple[int, int], data: st.DataObject
    ) -> None:
        kind = data.draw(st.sampled_from(["ViT", "DeiT", "Beit", "Siglip"]))
        resample = data.draw(st.sampled_from([1, 2, 3, 4, 5]))
        size = {"height": target[0], "width": target[1]}
        self.check(
            hf_processor(kind, size=size, resample=resample, do_center_crop=False), noise(height, width, seed), target
        )

    @settings(max_examples=80, deadline=None)
    @given(height=SIDES, width=SIDES, seed=SEEDS, resized=st.integers(16, 60), cut=st.integers(0, 8), data=st.data())
    def test_cropping_processors(
        self, height: int, width: int, seed: int, resized: int, cut: int, data: st.DataObject
    ) -> None:
        kind = data.draw(st.sampled_from(["DeiT", "Beit", "CLIP", "Bit"]))
        crop = {"height": resized - cut, "width": resized - cut}
        squash = kind in ("DeiT", "Beit")
        size = {"height": resized, "width": resized} if squash else {"shortest_edge": resized}
        self.check(
            hf_processor(kind, size=size, crop_size=crop, do_center_crop=True),
            noise(height, width, seed),
            (resized - cut, resized - cut),
        )

    @staticmethod
    def check(image_processor: Any, image: Image.Image, size: tuple[int, int]) -> None:
        preprocessing = from_hf(stored_config(image_processor))
        assert preprocessing.image_size == size
        expected = torch.from_numpy(np.stack(image_processor(image)["pixel_values"]))
        torch.testing.assert_close(preprocessing(image), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("kind", ["ViT", "DeiT", "Siglip", "CLIP", "Bit"])
    def test_class_defaults(self, kind: str) -> None:
        given = {"image_processor_type": f"{kind}ImageProcessorFast"}
        assert from_hf(given) == from_hf(stored_config(hf_processor(kind)))

    @pytest.mark.parametrize(
        ("change", "low", "high"),
        [
            ({"do_normalize": False}, 0.0, 1.0),
            ({"do_rescale": False, "do_normalize": False}, 0.0, 255.0),
            ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, -1.0, 1.0),
            ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, -1.0, 1.0),
        ],
    )
    def test_every_way_to_scale(self, change: dict[str, Any], low: float, high: float) -> None:
        preprocessing = from_hf({"image_processor_type": "ViTImageProcessor", "size": 8, **change})
        black, white = preprocessing([Image.new("RGB", (9, 9)), Image.new("RGB", (9, 9), "white")])
        torch.testing.assert_close(black, torch.full((3, 8, 8), low), rtol=0, atol=1e-6)
        torch.testing.assert_close(white, torch.full((3, 8, 8), high), rtol=0, atol=1e-4)

    def test_dinov3_resizes_fractions(self) -> None:
        processor = transformers.DINOv3ViTImageProcessor(size={"height": 20, "width": 24})
        image = noise(57, 33)
        preprocessing = from_hf(stored_config(processor))
        expected = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(preprocessing(image), expected, rtol=0, atol=5e-6)

    def test_old_feature_extractor_files(self) -> None:
        vit = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 384}
        old_vit = from_hf({**vit, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2})
        assert old_vit == CONVENTIONS["hf"].with_image_size(384)
        assert from_hf({**vit, "resample": 2}) == old_vit
        crop = {"size": 224, "crop_size": 224, "do_center_crop": True}
        old_clip = from_hf({"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, **crop})
        assert (old_clip.crop_mode, old_clip.crop_pct, old_clip.image_size) == ("center", 1.0, (224, 224))
        old_deit = from_hf({**crop, "feature_extractor_type": "DeiTFeatureExtractor", "size": 256})
        assert (old_deit.crop_mode, old_deit.crop_pct, old_deit.image_size) == ("squash", 0.875, (224, 224))

    @given(resized=st.integers(1, 1024), cut=st.integers(0, 200))
    def test_the_resized_size_survives_as_a_fraction(self, resized: int, cut: int) -> None:
        crop = max(1, resized - cut)
        config = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": resized}, "crop_size": crop}
        preprocessing = from_hf(config)
        assert math.floor(crop / preprocessing.crop_pct) == resized

    @pytest.mark.parametrize(
        ("config", "field"),
        [
            ({}, "image_mean"),
            ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "do_resize"),
            ({"image_processor_type": "ViTImageProcessor", "resample": 9}, "resample"),
            ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 0}, "rescale_factor"),
            ({"image_processor_type": "ViTImageProcessor", "size": "224"}, "size"),
            ({"image_processor_type": "CLIPImageProcessor", "crop_size": {"shortest_edge": 224}}, "crop_size"),
            ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 224}}, "size"),
            ({"image_processor_type": "ViTImageProcessor", "size": {"max_height": 9, "max_width": 9}}, "size"),
            ({"image_processor_type": "CLIPImageProcessor", "crop_size": 256}, "crop_size"),
            ({"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 224, "width": 192}}, "crop_size"),
            ({"image_processor_type": "ViTImageProcessor", "image_mean": "0.5"}, "image_mean"),
            (
                {"size": 9, "crop_size": 9, "do_center_crop": True, "resample": 2, "image_mean": [0], "image_std": [1]},
                "size",
            ),
        ],
    )
    def test_what_cannot_be_expressed_is_named(self, config: dict[str, Any], field: str) -> None:
        with pytest.raises(ConfigError, match=field):
            from_hf(config)


def half_pixel_bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """tf.image.resize(..., antialias=False) by its definition, one output pixel at a time, in float64."""
    rows, columns = pixels.shape[:2]
    out = np.empty((height, width, pixels.shape[2]))
    for i in range(height):
        y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
        top, bottom = math.floor(y), min(math.floor(y) + 1, rows - 1)
        for j in range(width):
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            left, right = math.floor(x), min(math.floor(x) + 1, columns - 1)
            above = (1 - (x - left)) * pixels[top, left] + (x - left) * pixels[top, right]
            below = (1 - (x - left)) * pixels[bottom, left] + (x - left) * pixels[bottom, right]
            out[i, j] = (1 - (y - top)) * above + (y - top) * below
    return out


class TestTensorFlow:
    @settings(max_examples=40, deadline=None)
    @given(height=st.integers(1, 40), width=st.integers(1, 40), seed=SEEDS, target=st.tuples(INPUTS, INPUTS))
    def test_vit_jax(self, height: int, width: int, seed: int, target: tuple[int, int]) -> None:
        image = noise(height, width, seed)
        expected = (half_pixel_bilinear(np.asarray(image, np.float64), *target) - 127.5) / 127.5
        got = CONVENTIONS["vit_jax"].with_image_size(target)(image)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6)

    def test_big_vision_drops_fractions(self) -> None:
        image = noise(50, 37)
        resized = half_pixel_bilinear(np.asarray(image, np.float64), 16, 16)
        got = CONVENTIONS["big_vision"].with_image_size(16)(image)[0].permute(1, 2, 0).numpy() * 127.5 + 127.5
        clear = np.abs(resized - np.rint(resized)) > 1e-4
        np.testing.assert_allclose(got[clear], np.floor(resized)[clear], rtol=0, atol=1e-4)
        assert clear.mean() > 0.9

    def test_shrinking_without_antialias_reads_single_pixels(self) -> None:
        stripes = np.zeros((4, 30, 3), np.uint8)
        stripes[:, 1::3] = 255
        sharp = constant(CONVENTIONS["vit_jax"].with_image_size((4, 10)), Image.fromarray(stripes))
        assert sharp == pytest.approx([255] * 3)


class TestImages:
    def test_batches(self, tmp_path: Path) -> None:
        images = [noise(7, 9, seed) for seed in range(3)]
        images[0].save(tmp_path / "zero.png")
        array = np.stack([np.asarray(image) for image in images])
        expected = torch.cat([PLAIN(image) for image in images])
        assert expected.shape == (3, 3, 4, 6)
        assert expected.dtype == torch.float32
        assert torch.equal(PLAIN([tmp_path / "zero.png", array[1], images[2]]), expected)
        assert torch.equal(PLAIN(array), expected)
        assert torch.equal(PLAIN(str(tmp_path / "zero.png")), expected[:1])
        assert PLAIN([]).shape == (0, 3, 4, 6)

    def test_greyscale_palette_and_cmyk(self) -> None:
        grey = Image.new("L", (8, 8), 51)
        assert constant(PLAIN, grey) == pytest.approx([51] * 3)
        assert constant(PLAIN, Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4)) == pytest.approx([10, 200, 30])
        assert constant(PLAIN, Image.new("CMYK", (8, 8), (0, 255, 255, 0))) == pytest.approx([255, 0, 0], abs=1)
        one_bit = Image.new("1", (8, 8), 1)
        assert constant(PLAIN, one_bit) == pytest.approx([255] * 3)
        assert constant(PLAIN, np.full((8, 8), 51, np.uint8)) == pytest.approx([51] * 3)  # type: ignore[arg-type]
        assert constant(PLAIN, np.full((8, 8, 1), 51, np.uint8)) == pytest.approx([51] * 3)  # type: ignore[arg-type]

    def test_greyscale_models(self) -> None:
        model = Preprocessing(image_size=(4, 4), mean=(0.0,), std=(1.0,), interpolation="bilinear")
        assert constant(model, Image.new("L", (8, 8), 51)) == pytest.approx([51])
        assert constant(model, Image.new("RGB", (8, 8), (255, 0, 0))) == pytest.approx([76])
        sharp = Preprocessing(image_size=(4, 4), mean=(0.0,), std=(1.0,), interpolation="bilinear", antialias=False)
        assert constant(sharp, Image.new("L", (8, 8), 51)) == pytest.approx([51])

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparency_lies_over_white(self, mode: str, tmp_path: Path) -> None:
        clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        clear.convert(mode).save(tmp_path / "clear.png", transparency=0 if mode == "P" else None)
        assert constant(PLAIN, read_image(tmp_path / "clear.png")) == pytest.approx([255] * 3)
        half = np.zeros((8, 8, 4), np.uint8)
        half[..., 3] = 128
        assert constant(PLAIN, half) == pytest.approx([127] * 3, abs=1)  # type: ignore[arg-type]

    def test_sixteen_bits_keep_their_high_byte(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((8, 8), 0x3412, np.uint16)).save(tmp_path / "deep.png")
        assert constant(PLAIN, read_image(tmp_path / "deep.png")) == pytest.approx([0x34] * 3)

    def test_whole_numbers_are_taken_by_their_range(self) -> None:
        small = np.asarray(noise(9, 7)).astype(np.int64)
        expected = PLAIN(noise(9, 7))
        for dtype in (np.int32, np.int64, np.uint32):
            assert torch.equal(PLAIN(small.astype(dtype)), expected)
        assert torch.equal(PLAIN(Image.fromarray(small[..., 0].astype(np.int32))), PLAIN(noise(9, 7).split()[0]))
        for dtype in (np.uint16, np.int32, np.int64):
            assert torch.equal(PLAIN((small * 257).astype(dtype)), expected)
        assert constant(PLAIN, np.zeros((8, 8), np.uint16)) == pytest.approx([0] * 3)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "pixels",
        [
            np.full((8, 8), 255, np.uint16),
            np.full((8, 8), 4095, np.uint16),  # 12 bits in 16
            np.full((8, 8), 4095, np.int32),
            np.full((8, 8), 65536, np.int32),
            np.full((8, 8), 32767, np.int16),
            np.array([[-1, 200]], np.int32),
            np.full((8, 8, 3), 200.0, np.float32),
            np.array([[0.3, np.nan]], np.float32),
        ],
    )
    def test_values_of_unknown_range_are_refused(self, pixels: Any, tmp_path: Path) -> None:
        for source in (pixels, torch.from_numpy(pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))):
            with pytest.raises(VitHubError, match=r"image 0 holds .* whose full range is not known"):
                PLAIN(source)
        if pixels.dtype == np.uint16:
            Image.fromarray(pixels).save(tmp_path / "deep.png")
            with pytest.raises(VitHubError, match=r"deep\.png holds "):
                PLAIN(tmp_path / "deep.png")

    def test_every_kind_of_source_gives_the_same(self, tmp_path: Path) -> None:
        image = noise(9, 7)
        image.save(tmp_path / "a.png")
        content, pixels = (tmp_path / "a.png").read_bytes(), torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        expected = PLAIN(image)
        with (tmp_path / "a.png").open("rb") as file:
            sources = [content, bytearray(content), memoryview(content), io.BytesIO(content), file, pixels]
            sources += [pixels.float() / 255, pixels.double() / 255, pixels.half() / 255, pixels.to(torch.int32)]
            for source in sources:
                assert torch.equal(PLAIN(source), expected)
        assert torch.equal(PLAIN([*sources[:4], pixels]), expected.expand(5, -1, -1, -1))
        assert torch.equal(PLAIN(torch.stack([pixels, pixels])), expected.expand(2, -1, -1, -1))
        assert torch.equal(PLAIN(pixels[0]), PLAIN(image.split()[0]))
        with pytest.raises(VitHubError, match=r"image 0 is a tensor of shape \(9, 7, 3\)"):
            PLAIN(pixels.permute(1, 2, 0))
        with pytest.raises(VitHubError, match="image 0: cannot read it as an image"):
            PLAIN(content[:60])

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_exif_orientation(self, suffix: str, tmp_path: Path) -> None:
        upright = Image.new("RGB", (16, 32), "black")
        upright.paste("white", (0, 0, 16, 16))
        exif = Image.Exif()
        exif[0x0112] = 6  # stored turned a quarter to the left; a viewer turns it back
        upright.rotate(90, expand=True).save(tmp_path / f"turned.{suffix}", exif=exif)
        got = read_image(tmp_path / f"turned.{suffix}")
        np.testing.assert_allclose(np.asarray(got, int), np.asarray(upright, int), atol=3)

    def test_content_decides_not_the_suffix(self, tmp_path: Path) -> None:
        noise(8, 8).save(tmp_path / "photo.jpg", format="PNG")
        assert read_image(tmp_path / "photo.jpg").tobytes() == noise(8, 8).tobytes()

    def test_damaged_files_are_named(self, tmp_path: Path) -> None:
        noise(64, 64).save(tmp_path / "whole.png")
        noise(64, 64).save(tmp_path / "whole.jpg")
        damaged = {
            "cut.png": (tmp_path / "whole.png").read_bytes()[:2000],
            "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:700],
            "text.png": b"not an image",
            "empty.jpg": b"",
        }
        for name, content in damaged.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(VitHubError, match=name.replace(".", r"\.")):
                PLAIN([noise(8, 8), tmp_path / name])
            if content[:4] == b"\x89PNG":
                with pytest.raises(VitHubError, match=name.replace(".", r"\.")):
                    PLAIN(Image.open(tmp_path / name))
        with pytest.raises(VitHubError, match=r"missing\.png.*No such file"):
            PLAIN(tmp_path / "missing.png")
        with pytest.raises(VitHubError, match=str(tmp_path)):
            PLAIN(tmp_path)

    def test_a_thread_of_pixels_is_refused_before_it_fills_the_memory(self, tmp_path: Path) -> None:
        Image.new("L", (1, 60_000)).save(tmp_path / "thread.png")
        with pytest.raises(VitHubError, match=r"thread\.png: 60000x1 pixels"):
            CONVENTIONS["timm"](tmp_path / "thread.png")
        assert CONVENTIONS["vit_jax"](tmp_path / "thread.png").shape == (1, 3, 224, 224)

    @pytest.mark.parametrize(
        "source",
        [
            torch.zeros(3, 8, 8),
            np.zeros((8, 8, 3), np.float32),
            np.zeros((3, 8, 8), np.uint8),
            np.zeros((0, 8, 3), np.uint8),
            None,
            Image.new("F", (8, 8)),
        ],
        ids=["tensor", "floats", "channels first", "no pixels", "None", "float image"],
    )
    def test_what_is_no_image_is_named_by_its_place(self, source: Any) -> None:
        with pytest.raises(VitHubError, match="image 1 "):
            PLAIN([noise(8, 8), source])
        with pytest.raises(VitHubError, match="image 0 "):
            PLAIN(source)


class TestOneByOne:
    def test_a_transform_gives_one_image_of_a_batch(self, tmp_path: Path) -> None:
        model = vit_hub.load("vit-nano-digits")
        prepare, transform = vit_hub.preprocess(model), pickle.loads(pickle.dumps(vit_hub.create_transform(model)))
        image = noise(40, 50)
        assert transform(image).shape == (1, 32, 32)
        assert torch.equal(transform(image), prepare(image)[0])
        image.save(tmp_path / "a.png")
        assert torch.equal(transform((tmp_path / "a.png").read_bytes()), prepare(image)[0])
        with pytest.raises(VitHubError, match=r"missing\.png"):
            transform(tmp_path / "missing.png")

    def test_torchvision_s_folders_take_it(self, tmp_path: Path) -> None:
        from torchvision.datasets import ImageFolder

        for name in ("cat", "dog"):
            (tmp_path / name).mkdir()
            noise(20, 30).save(tmp_path / name / "a.png")
        model = vit_hub.load("vit-nano-digits")
        found = ImageFolder(tmp_path, transform=vit_hub.create_transform(model))
        images, labels = next(iter(torch.utils.data.DataLoader(found, batch_size=2, num_workers=1)))
        assert labels.tolist() == [0, 1]
        assert torch.equal(images[1:], vit_hub.preprocess(model)(tmp_path / "dog" / "a.png"))


class TestData:
    @pytest.mark.parametrize("name", sorted(CONVENTIONS))
    def test_json_round_trip(self, name: str) -> None:
        convention = CONVENTIONS[name]
        assert Preprocessing.from_dict(json.loads(json.dumps(convention.to_dict()))) == convention
        assert convention(noise(230, 260)).shape == (1, 3, 224, 224)

    def test_with_image_size(self) -> None:
        assert PLAIN.with_image_size(32).image_size == (32, 32)
        assert PLAIN.with_image_size((32, 48)) == Preprocessing.from_dict({**PLAIN.to_dict(), "image_size": [32, 48]})
        with pytest.raises(ConfigError, match="image_size"):
            PLAIN.with_image_size(0)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("image_size", (4, 4.0)),
            ("image_size", True),
            ("mean", (0.5, 0.5)),
            ("mean", 0.5),
            ("mean", (0.5, 0.5, math.nan)),
            ("std", (0.5,)),
            ("std", (0.5, 0.0, 0.5)),
            ("interpolation", "lanczos3"),
            ("interpolation", None),
            ("crop_pct", 0),
            ("crop_pct", 1.1),
            ("crop_pct", "1"),
            ("crop_mode", "top"),
            ("crop_offset", "ceil"),
            ("quantize", "truncate"),
            ("antialias", 1),
            ("colour", "RGB"),
        ],
    )
    def test_invalid_fields_are_named(self, field: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=field):
            Preprocessing.from_dict({**PLAIN.to_dict(), field: value})

    def test_contradiction_and_absence_are_named(self) -> None:
        with pytest.raises(ConfigError, match="antialias"):
            Preprocessing.from_dict({**PLAIN.to_dict(), "antialias": False, "interpolation": "bicubic"})
        with pytest.raises(ConfigError, match="mean, std, interpolation"):
            Preprocessing.from_dict({"image_size": 224})

    def test_importing_needs_no_torch(self) -> None:
        program = "import sys, vit_hub.preprocessing.spec; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
