"""Accuracy: right numbers, and labels that mean what they say."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from noise import save_noise
from PIL import Image
from sklearn.datasets import load_digits

import vit_hub
from vit_hub.converters.passport import Passport
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.model.config import ViTConfig
from vit_hub.preprocessing.labels import label_keys, label_names
from vit_hub.preprocessing.project_files import CONVENTIONS
from vit_hub.running.evaluation import wilson

NAME = "vit-nano-digits"


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits that the bundled model was not trained on, as tools/train_nano_digits.py divides them."""
    folder, data = tmp_path_factory.mktemp("digits"), load_digits()
    for digit in range(10):
        for number in np.flatnonzero(data.target == digit)[4::5]:
            path = folder / str(digit) / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.rint(data.images[number] * 255 / 16).astype(np.uint8)).save(path)
    return folder


def test_the_bundled_model_has_its_published_accuracy(held_out: Path) -> None:
    found = vit_hub.evaluate(NAME, held_out)
    assert (found.images, found.errors) == (355, 0)
    assert found.top1 == 353 / 355
    assert found.top5 == 354 / 355
    assert found.published == 0.9944
    assert found.within
    assert found.interval == pytest.approx((0.97970, 0.99845), abs=1e-5)
    assert found.confusion.sum() == 355
    assert np.trace(found.confusion) == 353
    assert [each.label for each in found.classes] == [str(digit) for digit in range(10)]
    assert sum(round(each.top1 * each.images) for each in found.classes) == 353


def test_converted_models_are_as_accurate(held_out: Path, tmp_path: Path) -> None:
    state = vit_hub.convert(NAME, tmp_path / "timm", to="timm").path
    bare = next(Path(state).glob("*.safetensors")) if Path(state).is_dir() else Path(state)
    alone = tmp_path / "alone" / "weights.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(bare.read_bytes())
    overrides = {"num_heads": 3, "act": "gelu_tanh", "norm_eps": 1e-6}
    # Nothing but the weights: what is stated replaces the convention, whose crop would cost accuracy.
    stated = {"mean": 0.5, "std": 0.5, "interpolation": "bilinear"}
    with pytest.warns(UserWarning, match="images are resized to 32x32 by bilinear"):
        found = vit_hub.evaluate(alone, held_out, overrides=overrides, preprocessing=stated)
    assert found.top1 >= 352 / 355
    assert found.published is None
    folder = vit_hub.evaluate(vit_hub.convert(NAME, tmp_path / "hf", to="hf").path, held_out, batch_size=50, workers=2)
    assert folder.top1 >= 352 / 355


def classifier(folder: Path, classes: int, labels: str | list[str] | None = None) -> Path:
    torch.manual_seed(0)
    model = vit_hub.VisionTransformer(
        ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=24, num_classes=classes)
    )
    spec = CONVENTIONS["timm"].with_image_size(16).to_dict()
    model.passport = Passport(format="canonical", labels=labels, preprocess=spec)
    return model.save(folder / f"classifier{classes}.safetensors")


def indices(model: Path, folder: Path, **options: Any) -> dict[str, int]:
    return {each.label: each.index for each in vit_hub.evaluate(model, folder, **options).classes}


def folders(parent: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        save_noise(parent / name / "a.png", seed)
    return parent


def test_labels_of_imagenet(tmp_path: Path) -> None:
    model = classifier(tmp_path, 1000, "imagenet-1k")
    names = label_names("imagenet-1k")
    keys = label_keys("imagenet-1k")
    crane = names.index("crane (n02012849)")
    given = folders(
        tmp_path / "val", "7", "n01440764", "goldfish", "Great_White_Shark", names[3], keys[crane], "crane (n03126707)"
    )
    assert indices(model, given) == {
        "7": 7,
        "n01440764": 0,
        "goldfish": 1,
        "Great_White_Shark": 2,
        names[3]: 3,
        keys[crane]: crane,
        "crane (n03126707)": keys.index("n03126707"),
    }
    folders(given, "crane")
    with pytest.raises(ConfigError, match="1 of 8 labels are no class of the model, such as 'crane'"):
        indices(model, given)


def test_synsets_of_a_model_without_names(tmp_path: Path) -> None:
    assert indices(classifier(tmp_path, 1000), folders(tmp_path / "val", "n01440764", "n15075141")) == {
        "n01440764": 0,
        "n15075141": 999,
    }


def test_mappings(tmp_path: Path) -> None:
    model, given = classifier(tmp_path, 3, ["cat", "dog", "cow"]), folders(tmp_path / "val", "0", "Katze", "Kuh")
    mapping: dict[str, int | str] = {"Katze": "cat", "Kuh": 2, "0": "dog"}
    expected = {"0": 1, "Katze": 0, "Kuh": 2}
    assert indices(model, given, mapping=mapping) == expected
    (tmp_path / "a.json").write_text(json.dumps(mapping))
    (tmp_path / "a.tsv").write_text("".join(f"{label}\t{name}\n" for label, name in mapping.items()))
    assert indices(model, given, mapping=tmp_path / "a.json") == expected
    assert indices(model, given, mapping=tmp_path / "a.tsv") == expected
    for name in ("a.json", "a.tsv"):  # as some editors write it
        (tmp_path / name).write_text((tmp_path / name).read_text(), encoding="utf-8-sig")
        assert indices(model, given, mapping=tmp_path / name) == expected
    (tmp_path / "a.txt").write_text("Hund\t1\n\nKatze is a cat")
    with pytest.raises(ConfigError, match="no mapping of labels to classes: line 3 has not two columns"):
        indices(model, given, mapping=tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="2 of 3 labels are no class of the model, such as 'Katze'"):
        indices(model, given)
    with pytest.raises(ConfigError, match="such as '9'"):
        indices(model, given, mapping={**mapping, "Kuh": 9})


def test_classes_without_names_are_taken_in_alphabetical_order_with_a_warning(tmp_path: Path) -> None:
    model, given = classifier(tmp_path, 3), folders(tmp_path / "val", "dog", "cat", "cow")
    with pytest.warns(UserWarning, match="alphabetical order, cat for output 0 to dog for output 2"):
        assert indices(model, given) == {"cat": 0, "cow": 1, "dog": 2}
    (given / "dog" / "a.png").unlink()
    with pytest.raises(ConfigError, match="2 of 2 labels"):
        indices(model, given)


def test_data_sets_number_their_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat", "cow"])})
    images = [str(save_noise(tmp_path / f"{seed}.png", seed)) for seed in range(2)]
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="by their numbers"):
        assert indices(classifier(tmp_path, 3), tmp_path / "a.parquet") == {"cat": 1, "dog": 0}
    named = classifier(tmp_path, 4, ["cat", "cow", "dog", "hen"])
    assert indices(named, tmp_path / "a.parquet") == {"cat": 0, "dog": 2}


def test_images_without_labels_and_unreadable_ones(tmp_path: Path) -> None:
    model, given = classifier(tmp_path, 3), folders(tmp_path / "val", "0", "1")
    (given / "1" / "b.png").write_bytes(b"broken")
    found = vit_hub.evaluate(model, given)
    assert (found.images, found.errors) == (2, 1)
    save_noise(given / "c.png", 5)
    with pytest.raises(ConfigError, match=r"c\.png: nothing says what class it is"):
        vit_hub.evaluate(model, given)
    (tmp_path / "none" / "0").mkdir(parents=True)
    (tmp_path / "none" / "0" / "b.png").write_bytes(b"")
    with pytest.raises(VitHubError, match="none of the images could be read"):
        vit_hub.evaluate(model, tmp_path / "none")


def test_parquet_gives_what_folders_give(held_out: Path, tmp_path: Path) -> None:
    files = sorted(held_out.glob("*/*.png"))[::5]
    table = {"img": [file.read_bytes() for file in files], "digit": [int(file.parent.name) for file in files]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    found = vit_hub.evaluate(NAME, tmp_path / "a.parquet", label_column="digit")
    model = vit_hub.load(NAME)
    with torch.inference_mode():
        right = model(vit_hub.preprocess(model)(files)).argmax(1) == torch.tensor(table["digit"])
    assert found.top1 == pytest.approx(float(right.float().mean()))
    with pytest.raises(ConfigError, match="nothing says what class it is"):
        vit_hub.evaluate(NAME, tmp_path / "a.parquet")


def test_models_that_cannot_classify(tmp_path: Path) -> None:
    model = vit_hub.load(NAME)
    model.reset_classifier(0)
    with pytest.raises(ConfigError, match="no classification head"):
        vit_hub.evaluate(model, folders(tmp_path, "0"))


@pytest.mark.parametrize(("right", "images"), [(4, 10), (9, 10), (368, 500), (1, 3)])
def test_wilson_s_interval_solves_its_equation(right: int, images: int) -> None:
    share = right / images
    for bound in wilson(right, images):
        assert abs(share - bound) == pytest.approx(1.959963984540054 * np.sqrt(bound * (1 - bound) / images), abs=1e-12)


def test_wilson_s_interval_ends_at_the_ends() -> None:
    assert wilson(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1), abs=1e-5)


def test_stated_values_replace_a_convention_only(tmp_path: Path) -> None:
    from vit_hub.running.models import runnable

    recorded = classifier(tmp_path, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = runnable(recorded, preprocessing={"mean": 0.1}).preprocessing
    assert (spec.mean, spec.crop_pct) == ((0.1,) * 3, CONVENTIONS["timm"].crop_pct)
    model = vit_hub.VisionTransformer(ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2))
    with pytest.warns(UserWarning, match="resized to 16x16"):
        assert runnable(model, preprocessing={"mean": 0.1}).preprocessing.crop_pct == 1.0
    with pytest.warns(UserWarning, match="is the convention of timm"):
        assert runnable(model).preprocessing.crop_pct == CONVENTIONS["timm"].crop_pct
