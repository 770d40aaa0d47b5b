"""The bundled model: the file is what the manifest pins, and it does what the manifest says."""

from __future__ import annotations

import functools
import re
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import vit_hub
from vit_hub.converters import open_checkpoint
from vit_hub.preprocessing.labels import label_names
from vit_hub.preprocessing.project_files import CONVENTIONS
from vit_hub.preprocessing.spec import Preprocessing
from vit_hub.registry import get_entry

NAME = "vit-nano-digits"
DATA = Path(str(files("vit_hub") / "data"))
FILE = DATA / "vit_nano_digits.npz"
SAMPLES = DATA / "digits"
RIGHT, HELD_OUT = 353, 355

BLOCK = {
    "LayerNorm_0/scale": (48,),
    "LayerNorm_0/bias": (48,),
    "MultiHeadDotProductAttention_1/query/kernel": (48, 3, 16),
    "MultiHeadDotProductAttention_1/query/bias": (3, 16),
    "MultiHeadDotProductAttention_1/key/kernel": (48, 3, 16),
    "MultiHeadDotProductAttention_1/key/bias": (3, 16),
    "MultiHeadDotProductAttention_1/value/kernel": (48, 3, 16),
    "MultiHeadDotProductAttention_1/value/bias": (3, 16),
    "MultiHeadDotProductAttention_1/out/kernel": (3, 16, 48),
    "MultiHeadDotProductAttention_1/out/bias": (48,),
    "LayerNorm_2/scale": (48,),
    "LayerNorm_2/bias": (48,),
    "MlpBlock_3/Dense_0/kernel": (48, 96),
    "MlpBlock_3/Dense_0/bias": (96,),
    "MlpBlock_3/Dense_1/kernel": (96, 48),
    "MlpBlock_3/Dense_1/bias": (48,),
}
# Names and axes as in the public files of google-research/vision_transformer.
LAYOUT = {
    "cls": (1, 1, 48),
    "embedding/kernel": (4, 4, 1, 48),
    "embedding/bias": (48,),
    "Transformer/posembed_input/pos_embedding": (1, 65, 48),
    "Transformer/encoder_norm/scale": (48,),
    "Transformer/encoder_norm/bias": (48,),
    "head/kernel": (48, 10),
    "head/bias": (10,),
    **{f"Transformer/encoderblock_{i}/{name}": shape for i in range(4) for name, shape in BLOCK.items()},
}


@functools.cache
def model() -> vit_hub.VisionTransformer:
    return vit_hub.load(NAME, offline=True)


def held_out() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Every fifth image of each class, as the manifest words it."""
    data = load_digits()
    chosen = np.sort(np.concatenate([np.flatnonzero(data.target == digit)[4::5] for digit in range(10)]))
    return np.rint(data.images[chosen] * 255 / 16).astype(np.uint8), data.target[chosen]


def logits(images: list[Image.Image] | list[Path]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model()(vit_hub.preprocess(model())(images))
    return found


def test_held_out_images_are_recognised_as_documented() -> None:
    images, classes = held_out()
    assert len(classes) == HELD_OUT
    right = int((logits([Image.fromarray(image) for image in images]).argmax(dim=1).numpy() == classes).sum())
    assert right == RIGHT
    [metric] = get_entry(NAME).metrics
    assert metric.value == round(100 * right / HELD_OUT, 2)
    assert f"{RIGHT} of {HELD_OUT} " in metric.evidence


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_samples_are_recognised_in_any_mode(mode: str, tmp_path: Path) -> None:
    paths = sorted(SAMPLES.glob("*.png"))
    assert [path.stem for path in paths] == [str(digit) for digit in range(10)]
    for path in paths:
        Image.open(path).convert(mode).save(tmp_path / path.name)
    names = vit_hub.class_names(model())
    assert names == label_names("digits") == tuple("0123456789")
    top = logits([tmp_path / path.name for path in paths]).argmax(dim=1)
    assert [names[index] for index in top] == [path.stem for path in paths]


def test_samples_are_held_out_images() -> None:
    images, classes = held_out()
    prepare = vit_hub.preprocess(model())
    for digit in range(10):
        sample, original = prepare([SAMPLES / f"{digit}.png"]), prepare([images[classes == digit][0]])
        torch.testing.assert_close(sample, original, atol=2 / 255, rtol=0)


def test_file_has_the_original_layout() -> None:
    with np.load(FILE, allow_pickle=False) as arrays:
        assert {name: arrays[name].shape for name in arrays.files} == LAYOUT
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype("<f4")}
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    with zipfile.ZipFile(FILE) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert FILE.stat().st_size < 400_000


def test_file_alone_says_what_the_manifest_says() -> None:
    entry = get_entry(NAME)
    checkpoint = open_checkpoint(FILE)
    assert (checkpoint.format, checkpoint.config, checkpoint.dropped) == ("vit_jax", entry.config, {})
    grey = {**CONVENTIONS["vit_jax"].to_dict(), "image_size": (32, 32), "mean": (0.5,), "std": (0.5,)}
    assert Preprocessing.from_dict(entry.preprocess) == Preprocessing.from_dict(grey)
    with pytest.warns(UserWarning, match="convention of vit_jax"):
        assert vit_hub.preprocess(vit_hub.load(FILE)) == vit_hub.preprocess(model())


@pytest.mark.parametrize("way", ["canonical", "timm"])
def test_there_and_back_gives_the_same_bytes(way: str, tmp_path: Path) -> None:
    there = vit_hub.convert(NAME, tmp_path / "there", to=way, offline=True)
    back = vit_hub.convert(there.path, tmp_path / "back.npz", to="vit_jax")
    with np.load(FILE) as first, np.load(back.path) as second:
        assert set(first.files) == set(second.files)
        assert all(first[name].tobytes() == second[name].tobytes() for name in first.files)
    if way == "canonical":
        assert back.path.read_bytes() == FILE.read_bytes()


def test_saved_model_names_its_origin_and_licence(tmp_path: Path) -> None:
    saved = open_checkpoint(model().save(tmp_path / "mine.safetensors"))
    assert (saved.passport.weights_id, saved.passport.license, saved.passport.labels) == (NAME, "apache-2.0", "digits")


def test_licence_of_the_data_is_named_where_the_data_is() -> None:
    notice = (SAMPLES / "LICENSE.txt").read_text(encoding="utf-8")
    notes = " ".join(get_entry(NAME).notes)
    for text in (notice, notes):
        assert re.search(r"Alpaydin and C\. Kaynak", text)
        assert "CC BY 4.0" in text
        assert "10.24432/C50P49" in text
