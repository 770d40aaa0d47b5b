"""Class names and preprocessing travel with the weights; what a format has no place for is said, or refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples, random_model, randomise
from torch import nn

import vit_hub
from vit_hub.converters.passport import Passport
from vit_hub.errors import UnsupportedByFormatError
from vit_hub.preprocessing.labels import label_names
from vit_hub.preprocessing.spec import Preprocessing

NAMES = ["tabby cat", "dog, puppy", "émigré", "zèbre/zebra", "cup"]
SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
HF_SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
STATS: dict[str, Any] = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.4, 0.5]}
CONFIG = vit_hub.ViTConfig(
    image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=64, num_classes=5, norm_eps=1e-6
)


def timm_folder(folder: Path, config: dict[str, Any] | None = None, **pretrained: Any) -> Path:
    """A small timm classifier with the config.json that timm itself writes; ``config`` has more keys for it."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **SMALL)
    randomise(model)
    timm.models.save_for_hf(model, folder, model_args=dict(SMALL), safe_serialization=True)
    written = json.loads((folder / "config.json").read_text())
    written["pretrained_cfg"] |= {**STATS, "crop_pct": 1.0, "crop_mode": "squash", **pretrained}
    (folder / "config.json").write_text(json.dumps({**written, **(config or {})}))
    return folder


def hf_folder(folder: Path, **fields: Any) -> Path:
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    config = transformers.ViTConfig(**{**HF_SMALL, "layer_norm_eps": 1e-6, **names, **fields})
    model = transformers.ViTForImageClassification(config)
    randomise(model)
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size, image_mean=STATS["mean"], image_std=STATS["std"]).save_pretrained(folder)
    return folder


def names_in_timm(folder: Path) -> Any:
    """Class names as timm itself reads a folder."""
    return list(timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg["label_names"])


def names_in_transformers(folder: Path) -> list[str]:
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.label2id == {name: index for index, name in config.id2label.items()}
    return [config.id2label[index] for index in range(config.num_labels)]


WAYS_TO_NAME: dict[str, Any] = {
    "a list": ({"label_names": NAMES}, {}),
    "a list in pretrained_cfg": ({}, {"label_names": NAMES}),
    "a mapping": ({"label_names": {str(index): name for index, name in enumerate(NAMES)}}, {}),
    "a mapping in pretrained_cfg": ({}, {"label_names": {str(index): name for index, name in enumerate(NAMES)}}),
    "a mapping in another order": ({"label_names": {str(index): NAMES[index] for index in (4, 2, 0, 1, 3)}}, {}),
    "a mapping from names": ({"label_names": {name: index for index, name in enumerate(NAMES)}}, {}),
    "the former key": ({"labels": NAMES}, {}),
    "descriptions only": ({"label_descriptions": NAMES}, {}),
}


class TestClassNames:
    @pytest.mark.parametrize("way", WAYS_TO_NAME)
    def test_timms_configs(self, way: str, tmp_path: Path) -> None:
        config, pretrained = WAYS_TO_NAME[way]
        source = timm_folder(tmp_path / "source", config, **pretrained)
        assert vit_hub.class_names(vit_hub.load(source)) == tuple(NAMES)
        for to, read in (("hf", names_in_transformers), ("timm", names_in_timm)):
            report = vit_hub.convert(source, tmp_path / to, to=to, strict_metadata=True)
            assert read(report.path) == NAMES
            assert vit_hub.class_names(vit_hub.load(report.path)) == tuple(NAMES)

    def test_through_a_canonical_file(self, tmp_path: Path) -> None:
        for name, source in (
            ("timm", timm_folder(tmp_path / "a", {"label_names": NAMES})),
            ("hf", hf_folder(tmp_path / "b")),
        ):
            file = vit_hub.convert(source, tmp_path / f"{name}.safetensors").path
            assert vit_hub.class_names(vit_hub.load(file)) == tuple(NAMES)
            assert names_in_transformers(vit_hub.convert(file, tmp_path / f"{name}_hf", to="hf").path) == NAMES
            assert names_in_timm(vit_hub.convert(file, tmp_path / f"{name}_timm", to="timm").path) == NAMES

    def test_live_models(self, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", {"label_names": NAMES})
        model = vit_hub.load(source)
        theirs = vit_hub.to_transformers(model)
        assert theirs.config.id2label == dict(enumerate(NAMES))
        assert vit_hub.class_names(vit_hub.from_module(theirs)) == tuple(NAMES)
        live = timm.create_model(f"local-dir:{source}", pretrained=True).eval()
        ours = vit_hub.from_module(live)
        assert vit_hub.class_names(ours) == tuple(NAMES)
        assert vit_hub.preprocess(ours) == vit_hub.preprocess(model)
        ours.save(tmp_path / "saved.safetensors")
        assert vit_hub.class_names(vit_hub.load(tmp_path / "saved.safetensors")) == tuple(NAMES)

    def test_names_of_the_registrys_lists(self, tmp_path: Path) -> None:
        for to, read in (("hf", names_in_transformers), ("timm", names_in_timm)):
            assert read(vit_hub.convert("vit-nano-digits", tmp_path / to, to=to).path) == list(label_names("digits"))

    @pytest.mark.parametrize("kind", ["CLIPForImageClassification", "SiglipForImageClassification"])
    def test_two_towers_have_them_at_the_top(self, kind: str, tmp_path: Path) -> None:
        tower = {**HF_SMALL, "num_channels": 3}
        config = getattr(transformers, kind).config_class(vision_config=tower, id2label=dict(enumerate(NAMES)))
        config.label2id = {name: index for index, name in enumerate(NAMES)}
        model = getattr(transformers, kind)(config)
        randomise(model)
        model.save_pretrained(tmp_path / "source")
        file = vit_hub.convert(tmp_path / "source", tmp_path / "canonical.safetensors").path
        assert vit_hub.class_names(vit_hub.load(file)) == tuple(NAMES)
        assert names_in_transformers(vit_hub.convert(file, tmp_path / "hf", to="hf").path) == NAMES

    def test_longer_descriptions_stay_with_timm(self, tmp_path: Path) -> None:
        described = {name: f"a picture of a {name}" for name in NAMES}
        source = timm_folder(tmp_path / "source", {"label_names": NAMES, "label_descriptions": described})
        assert vit_hub.class_names(vit_hub.load(source)) == tuple(NAMES)
        file = vit_hub.convert(source, tmp_path / "canonical.safetensors").path
        back = vit_hub.convert(file, tmp_path / "timm", to="timm", strict_metadata=True).path
        cfg = timm.create_model(f"local-dir:{back}", pretrained=True).pretrained_cfg
        assert cfg["label_descriptions"] == described
        report = vit_hub.convert(file, tmp_path / "hf", to="hf")
        assert any("descriptions" in text for text in report.metadata_lost)

    def test_names_that_several_classes_have(self, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", {"label_names": ["crane", "cup", "crane", "dog", "cat"]})
        report = vit_hub.convert(source, tmp_path / "hf", to="hf")
        assert any("'crane'" in text or "(crane)" in text for text in report.metadata_lost)
        config = transformers.AutoConfig.from_pretrained(report.path)
        assert [config.id2label[index] for index in range(5)] == ["crane", "cup", "crane", "dog", "cat"]
        assert vit_hub.class_names(vit_hub.load(report.path)) == ("crane", "cup", "crane", "dog", "cat")
        again = vit_hub.convert(report.path, tmp_path / "again", to="hf")
        assert not again.metadata_lost  # the source's label2id is no richer
        assert names_in_timm(vit_hub.convert(source, tmp_path / "timm", to="timm", strict_metadata=True).path)

    @pytest.mark.parametrize(
        ("stated", "words"),
        [
            (["a", "b"], "they are 2, and the head has 5"),
            ({"0": "a", "9": "b"}, "class 9"),
            ({"a": "b"}, "not the numbers"),
            ([["a"], "b", "c", "d", "e"], "not a name"),
            ([None, "b", "c", "d", "e"], "not a name"),
            ("abcde", "neither a list nor a mapping"),
            ({"0": "a", "00": "b"}, "two names"),
        ],
    )
    def test_names_that_cannot_be_used(self, stated: Any, words: str, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", {"label_names": stated})
        with pytest.warns(UserWarning, match=words):
            assert vit_hub.class_names(vit_hub.load(source)) is None
        report = vit_hub.convert(source, tmp_path / "hf", to="hf")
        assert [text for text in report.warnings if words in text] == report.metadata_lost
        assert vit_hub.class_names(vit_hub.load(report.path)) is None

    @pytest.mark.parametrize(
        ("stated", "names"),
        [
            ([0, 1, 2, 3, 4], ("0", "1", "2", "3", "4")),
            ({"1": "dog", "3": "cat"}, ("LABEL_0", "dog", "LABEL_2", "cat", "LABEL_4")),
        ],
    )
    def test_names_that_are_mended(self, stated: Any, names: tuple[str, ...], tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", {"label_names": stated})
        with pytest.warns(UserWarning, match="label_names"):
            assert vit_hub.class_names(vit_hub.load(source)) == names

    def test_placeholders_are_no_names(self, tmp_path: Path) -> None:
        source = hf_folder(tmp_path / "hf", id2label=None, label2id=None, num_labels=5)
        assert vit_hub.class_names(vit_hub.load(source)) is None
        written = json.loads((vit_hub.convert(source, tmp_path / "timm", to="timm").path / "config.json").read_text())
        assert "label_names" not in written

    @pytest.mark.parametrize(
        ("to", "name"), [("torchvision", "out"), ("vit_jax", "out.npz"), ("timm", "out.pth"), ("facebook", "out")]
    )
    def test_where_there_is_no_place_for_them(self, to: str, name: str, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", {"label_names": NAMES})
        options = {"lossy": to == "vit_jax"}
        with pytest.raises(UnsupportedByFormatError, match="class names") as caught:
            vit_hub.convert(source, tmp_path / name, to=to, strict_metadata=True, **options)
        assert "strict_metadata" in caught.value.hint
        assert not (tmp_path / name).exists()
        report = vit_hub.convert(source, tmp_path / name, to=to, **options)
        (said,) = [text for text in report.warnings if text.startswith("class names: ")]
        assert "5 classes (tabby cat, dog, puppy, émigré, ...)" in said
        assert said in report.metadata_lost

    def test_an_opened_checkpoint_keeps_its_names_when_a_model_gets_another_head(self, tmp_path: Path) -> None:
        opened = vit_hub.open_checkpoint(timm_folder(tmp_path / "timm", {}, label_names=NAMES))
        before = json.dumps(opened.passport.to_dict())
        assert vit_hub.class_names(vit_hub.load(opened, num_classes=3)) is None
        assert json.dumps(opened.passport.to_dict()) == before
        assert list(vit_hub.class_names(vit_hub.load(opened)) or ()) == NAMES

    def test_another_head_has_no_names(self, tmp_path: Path) -> None:
        source = hf_folder(tmp_path / "source")
        three = vit_hub.load(source, num_classes=3)
        assert vit_hub.class_names(three) is None
        three.save(tmp_path / "three.safetensors")
        five = vit_hub.load(tmp_path / "three.safetensors", num_classes=5)
        five.save(tmp_path / "five.safetensors")
        report = vit_hub.convert(tmp_path / "five.safetensors", tmp_path / "hf", to="hf", strict_metadata=True)
        assert names_in_transformers(report.path) == [f"LABEL_{index}" for index in range(5)]
        model = vit_hub.load(source)
        model.head = nn.Linear(16, 2)
        assert vit_hub.to_transformers(model).config.num_labels == 2

    def test_files_of_earlier_versions(self, tmp_path: Path) -> None:
        """A passport that has the names in config.json only."""
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        file = vit_hub.convert(hf_folder(tmp_path / "source"), tmp_path / "now.safetensors").path
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        passport = json.loads(metadata["vit_hub.passport"])
        assert passport.pop("labels") == NAMES
        stated = passport.pop("preprocess")
        metadata["vit_hub.passport"] = json.dumps(passport)
        save_file(load_file(file), tmp_path / "before.safetensors", metadata)
        model = vit_hub.load(tmp_path / "before.safetensors")
        assert vit_hub.class_names(model) == tuple(NAMES)
        assert json.loads(json.dumps(vit_hub.preprocess(model).to_dict())) == stated


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"crop_mode": "border"}, "crop_mode center"),
            ({"crop_mode": "center", "crop_pct": 16 / 19}, "a pixel earlier"),
        ],
    )
    def test_what_a_format_cannot_say_is_said(self, fields: dict[str, Any], words: str, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", **fields)
        with pytest.raises(UnsupportedByFormatError, match="preprocessing"):
            vit_hub.convert(source, tmp_path / "hf", to="hf", strict_metadata=True)
        assert not (tmp_path / "hf").exists()
        (said,) = vit_hub.convert(source, tmp_path / "hf", to="hf").metadata_lost
        assert said.startswith("preprocessing: hf cannot say all of it: ")
        assert words in said

    @pytest.mark.parametrize("crop_pct", [1.0, 0.8])
    def test_what_it_can_say_is_not(self, crop_pct: float, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", {"label_names": NAMES}, crop_pct=crop_pct, interpolation="bilinear")
        wanted = vit_hub.preprocess(vit_hub.load(source))
        for to in ("hf", "timm"):
            report = vit_hub.convert(source, tmp_path / to, to=to, strict_metadata=True)
            assert not report.warnings
            image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
            found = vit_hub.preprocess(vit_hub.load(report.path))
            torch.testing.assert_close(found(image), wanted(image), rtol=0, atol=1e-6)

    def test_a_pixel_of_some_crops_is_a_remark(self, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source", crop_mode="center")
        report = vit_hub.convert(source, tmp_path / "hf", to="hf", strict_metadata=True)
        (said,) = report.warnings
        assert "starts a pixel earlier in hf" in said
        assert not report.metadata_lost

    @pytest.mark.parametrize("via", ["hf", "timm", "canonical"])
    def test_there_and_back(self, via: str, tmp_path: Path) -> None:
        for name, source in (("timm", timm_folder(tmp_path / "a", crop_pct=0.8)), ("hf", hf_folder(tmp_path / "b"))):
            target = tmp_path / (name + via)
            file = vit_hub.convert(source, target.with_suffix(".safetensors" * (via == "canonical")), to=via).path
            back = vit_hub.convert(file, tmp_path / f"{name}_{via}_back", to=name).path
            wanted, found = (vit_hub.preprocess(vit_hub.load(path)) for path in (source, back))
            image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
            torch.testing.assert_close(found(image), wanted(image), rtol=0, atol=1e-6)

    def test_an_image_processor_stays_as_it_is(self, tmp_path: Path) -> None:
        source = hf_folder(tmp_path / "source")
        stated = json.loads((source / "preprocessor_config.json").read_text())
        file = vit_hub.convert(source, tmp_path / "canonical.safetensors").path
        back = vit_hub.convert(file, tmp_path / "back", to="hf", strict_metadata=True).path
        assert json.loads((back / "preprocessor_config.json").read_text()) == stated

    def test_one_without_a_fixed_size_stays_and_is_lost_elsewhere(self, tmp_path: Path) -> None:
        source = hf_folder(tmp_path / "source")
        stated = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
        (source / "preprocessor_config.json").write_text(json.dumps(stated))
        back = vit_hub.convert(source, tmp_path / "hf", to="hf", strict_metadata=True).path
        assert json.loads((back / "preprocessor_config.json").read_text()) == stated
        with pytest.raises(UnsupportedByFormatError, match="do_resize"):
            vit_hub.convert(source, tmp_path / "timm", to="timm", strict_metadata=True)

    def test_timms_defaults_where_its_config_leaves_them_out(self, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source")
        config = json.loads((source / "config.json").read_text())
        for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation"):
            config["pretrained_cfg"].pop(key, None)
        (source / "config.json").write_text(json.dumps(config))
        image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
        theirs = timm.create_model(f"local-dir:{source}", pretrained=True)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
        from PIL import Image

        found = vit_hub.preprocess(vit_hub.load(source))(image)
        assert torch.equal(found[0], transform(Image.fromarray(image)))

    def test_open_clips_own_is_read(self, tmp_path: Path) -> None:
        model = random_model(CONFIG.replace(num_classes=0, projection_dim=8, norm_eps=1e-5, **_CLIP))
        folder = vit_hub.convert(model.save(tmp_path / "a.safetensors"), tmp_path / "open", to="open_clip").path
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["preprocess_cfg"] = {"size": 16, **STATS, "interpolation": "bilinear", "resize_mode": "squash"}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        found = vit_hub.preprocess(vit_hub.load(folder))
        assert (found.mean, found.crop_mode, found.interpolation) == (tuple(STATS["mean"]), "squash", "bilinear")

    def test_conventions_that_are_written_are_warned_of(self, tmp_path: Path) -> None:
        random_model(CONFIG).save(tmp_path / "unknown.safetensors")
        report = vit_hub.convert(tmp_path / "unknown.safetensors", tmp_path / "hf", to="hf", strict_metadata=True)
        assert any("no preprocessing is recorded" in text for text in report.warnings)
        report = vit_hub.convert(tmp_path / "unknown.safetensors", tmp_path / "bare.pth", to="torchvision")
        assert not any("preprocessing" in text for text in report.warnings)

    def test_where_there_is_no_place_for_it(self, tmp_path: Path) -> None:
        source = timm_folder(tmp_path / "source")
        said = vit_hub.convert(source, tmp_path / "out", to="torchvision").metadata_lost
        assert "preprocessing: torchvision has no place for it" in said[0]
        assert "mean [0.485, 0.456, 0.406] instead of [0.1, 0.2, 0.3]" in said[0]


_CLIP = {"pre_norm": True, "patch_bias": False, "final_norm": "after", "act": "quick_gelu"}


class TestTextTowers:
    @pytest.mark.parametrize("to", ["open_clip", "openai_clip"])
    def test_a_missing_one_is_said_and_the_image_tower_loads(self, to: str, tmp_path: Path) -> None:
        config = CONFIG.replace(num_classes=0, projection_dim=8, norm_eps=1e-5, embed_dim=64, mlp_dim=256, **_CLIP)
        config = config.replace(num_heads=1)
        model = random_model(config)
        file = model.save(tmp_path / "model.safetensors")
        with pytest.raises(UnsupportedByFormatError, match="only the image tower"):
            vit_hub.convert(file, tmp_path / "out", to=to, strict_metadata=True)
        assert not (tmp_path / "out").exists()
        report = vit_hub.convert(file, tmp_path / "out", to=to)
        (said,) = report.metadata_lost
        assert "vit_hub.load reads it" in said
        text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
        vision = {"image_size": 16, "patch_size": 8, "width": 64, "head_width": 64, "layers": 2}
        theirs = open_clip.CLIP(8, {**vision, "mlp_ratio": 4.0}, text, quick_gelu=True).eval()
        (weights,) = (path for path in report.path.iterdir() if path.suffix != ".json")
        if to == "open_clip":
            found = open_clip.load_checkpoint(theirs, str(weights), strict=False)
        else:
            found = theirs.load_state_dict(torch.load(weights), strict=False)
        assert not found.unexpected_keys
        assert not any(name.startswith("visual.") for name in found.missing_keys)
        images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(theirs.encode_image(images), model(images), rtol=1e-4, atol=1e-4)

    def test_a_kept_one_is_put_back(self, tmp_path: Path) -> None:
        text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
        vision = {"image_size": 16, "patch_size": 8, "width": 64, "head_width": 64, "layers": 2}
        model_cfg = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
        theirs = open_clip.CLIP(8, vision, text)
        randomise(theirs)
        (tmp_path / "source").mkdir()
        torch.save(theirs.state_dict(), tmp_path / "source" / "open_clip_pytorch_model.bin")
        (tmp_path / "source" / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
        file = vit_hub.convert(tmp_path / "source", tmp_path / "one.safetensors", keep_rest=True).path
        report = vit_hub.convert(file, tmp_path / "back", to="open_clip", keep_rest=True, strict_metadata=True)
        again = open_clip.create_model(f"local-dir:{report.path}")
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


# Targets whose config files hold more or less of it. A model of another size or activation would be refused first.
_TARGETS = ("hf", "timm", "keras_hub", "mmpretrain", "open_clip", "torchvision", "vit_jax", "facebook", "big_vision")
_NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
_SPECS = st.builds(
    Preprocessing,
    image_size=st.just((16, 16)),
    mean=st.sampled_from(((0.5,) * 3, (0.1, 0.2, 0.3), (0.0,) * 3)),
    std=st.sampled_from(((0.5,) * 3, (0.3, 0.4, 0.5), (1.0,) * 3)),
    interpolation=st.sampled_from(("bilinear", "bicubic", "nearest", "lanczos")),
    crop_pct=st.sampled_from((1.0, 0.9, 0.875, 0.5, 16 / 19)),
    crop_mode=st.sampled_from(("center", "squash", "border")),
    crop_offset=st.sampled_from(("round", "floor")),
    quantize=st.sampled_from(("round", "round", "floor", "none")),
) | st.builds(
    Preprocessing,
    image_size=st.just((16, 16)),
    mean=st.just((0.5,) * 3),
    std=st.just((0.5,) * 3),
    interpolation=st.just("bilinear"),
    antialias=st.just(False),
)


def with_metadata(folder: Path, labels: list[str] | None = None, spec: Preprocessing | None = None) -> Path:
    """A canonical file of a small model with these class names and this preprocessing in its passport."""
    model = random_model(CONFIG)
    record = spec.to_dict() if spec else None
    model.passport = Passport(format="canonical", labels=labels, preprocess=record)
    return model.save(folder / "model.safetensors")


@examples(80)
@given(names=st.lists(_NAMES, min_size=5, max_size=5), to=st.sampled_from((*_TARGETS, "canonical")))
def test_any_class_names_are_given_back_or_named_as_lost(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], to: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = with_metadata(folder, labels=names)
    assert vit_hub.class_names(vit_hub.load(source)) == tuple(names)
    report = vit_hub.convert(source, folder / ("out.safetensors" if to == "canonical" else "out"), to=to, lossy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = vit_hub.class_names(vit_hub.load(report.path, overrides={"num_heads": 2}))
    said = [text for text in report.metadata_lost if text.startswith("class names: ")]
    assert (found == tuple(names)) or (said and found is None)


@examples(150)
@given(spec=_SPECS, to=st.sampled_from((*_TARGETS, "canonical")), height=st.integers(9, 60), width=st.integers(9, 60))
def test_any_preprocessing_is_given_back_or_named_as_lost(
    tmp_path_factory: pytest.TempPathFactory, spec: Preprocessing, to: str, height: int, width: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = with_metadata(folder, spec=spec)
    report = vit_hub.convert(source, folder / ("out.safetensors" if to == "canonical" else "out"), to=to, lossy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = vit_hub.load(report.path, overrides={"num_heads": 2})
        found = vit_hub.preprocess(model)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    same = torch.allclose(found(image), spec(image), rtol=0, atol=1e-5)
    assert same or any(text.startswith("preprocessing: ") for text in report.warnings)
    back = vit_hub.convert(report.path, folder / "back.safetensors", overrides={"num_heads": 2}).path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert vit_hub.preprocess(vit_hub.load(back)) == found
