"""Neighbours and probes: what they should be, computed another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from noise import save_noise
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import vit_hub
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.model.config import ViTConfig
from vit_hub.running.neighbours import knn, probe, search

NAME = "vit-nano-digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``a`` and ``b`` with embeddings of 200 and of 60 digits by an untrained model, and the images of both."""
    folder, data = tmp_path_factory.mktemp("neighbours"), load_digits()
    for number in range(260):
        path = folder / ("train" if number < 200 else "test") / str(data.target[number]) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(data.images[number] * 255 / 16).astype(np.uint8)).save(path)
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=8, in_chans=1, embed_dim=32, depth=1, num_heads=2, mlp_dim=32)
    untrained = vit_hub.VisionTransformer(config)
    untrained.passport = vit_hub.load(NAME).passport
    untrained.save(folder / "untrained.safetensors")
    vit_hub.embed(folder / "untrained.safetensors", folder / "train", folder / "a", shard_size=64, workers=0)
    vit_hub.embed(folder / "untrained.safetensors", folder / "test", folder / "b", to="safetensors", workers=0)
    return folder


def vectors(images: Path) -> tuple[np.ndarray, np.ndarray]:
    paths = sorted(images.glob("*/*.png"))
    model = vit_hub.load(images.parent / "untrained.safetensors")
    with torch.inference_mode():
        found = model.embed(vit_hub.preprocess(model)(paths)).double().numpy()
    return found, np.array([int(path.parent.name) for path in paths])


def voted(reference: np.ndarray, labels: np.ndarray, image: np.ndarray, k: int) -> np.ndarray:
    """The labels by DINO's votes, most first."""
    similar = reference @ image
    near = np.argsort(-similar)[:k]
    votes = np.zeros(10)
    for index in near:
        votes[labels[index]] += np.exp(similar[index] / 0.07)
    return np.argsort(-votes)


@pytest.mark.parametrize("k", [1, 20])
def test_k_nearest_neighbours(k: int, digits: Path) -> None:
    reference, labels = vectors(digits / "train")
    images, truth = vectors(digits / "test")
    reference, images = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (reference, images))
    orders = [voted(reference, labels, image, k) for image in images]
    found = knn(digits / "a", digits / "b", k=k)
    assert (found.images, found.reference, found.classes) == (60, 200, 10)
    assert found.top1 == np.mean([order[0] == label for order, label in zip(orders, truth, strict=True)])
    if k > 5:
        assert found.top5 == np.mean([label in order[:5] for order, label in zip(orders, truth, strict=True)])
    alone = knn(digits / "a", k=k)
    without = [np.delete(np.arange(200), index) for index in range(200)]
    orders = [voted(reference[rest], labels[rest], reference[index], k) for index, rest in enumerate(without)]
    assert (alone.images, alone.reference) == (200, 200)
    assert alone.top1 == np.mean([order[0] == label for order, label in zip(orders, labels, strict=True)])
    assert alone.interval[0] < alone.top1 < alone.interval[1]


def test_linear_probe(digits: Path) -> None:
    reference, labels = vectors(digits / "train")
    images, truth = vectors(digits / "test")
    scaler = StandardScaler().fit(reference)
    model = LogisticRegression(C=0.5, max_iter=1000).fit(scaler.transform(reference), labels)
    found = probe(digits / "a", digits / "b", strength=0.5)
    assert found.top1 == pytest.approx(model.score(scaler.transform(images), truth), abs=1 / 60)
    held_out = probe(digits / "a")
    assert (held_out.images, held_out.reference) == (40, 160)
    assert 0.3 < held_out.top1 < 1
    assert probe(digits / "a") == held_out


def test_search_is_exact(digits: Path) -> None:
    table = ds.dataset(digits / "a").to_table()
    reference = np.array(table["embedding"].to_pylist())
    (image,) = (digits / "test").glob("*/230.png")
    model = vit_hub.load(digits / "untrained.safetensors")
    with torch.inference_mode():
        query = model.embed(vit_hub.preprocess(model)(image))[0].double().numpy()
    similar = reference @ query / np.linalg.norm(reference, axis=1) / np.linalg.norm(query)
    order = np.argsort(-similar)[:7]
    found = search(digits / "a", str(image), k=7)
    assert [each.id for each in found] == order.tolist()
    assert [each.path for each in found] == [table["path"][index].as_py() for index in order]
    assert [each.similarity for each in found] == pytest.approx(similar[order].tolist(), abs=1e-5)
    (itself,) = search(digits / "b", str(image), k=1)
    assert itself.path == f"{image.parent.name}/230.png"
    assert itself.similarity == pytest.approx(1, abs=1e-5)


def test_search_repeats_the_settings_of_the_folder(digits: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 48, "preprocessing": {"mean": 0.3}, "what": "logits"}
    vit_hub.embed(NAME, digits / "test" / "7", tmp_path / "out", **options, to="npy")
    image = next((digits / "test" / "7").glob("*.png"))
    (found,) = search(tmp_path / "out", str(image), k=1)
    assert (found.path, found.similarity) == (image.name, pytest.approx(1, abs=1e-5))
    model = vit_hub.load(NAME)
    with torch.no_grad():
        model.head.bias += 1
    saved = model.save(tmp_path / "tuned.safetensors")
    with pytest.raises(ConfigError, match="not the weights that the folder was made with"):
        search(tmp_path / "out", str(image), source=str(saved))
    with pytest.raises(VitHubError, match="missing.png: No such file"):
        search(tmp_path / "out", str(tmp_path / "missing.png"))


def test_folders_that_do_not_fit(digits: Path, tmp_path: Path) -> None:
    save_noise(tmp_path / "images" / "a.png", 0)
    vit_hub.embed(NAME, tmp_path / "images", tmp_path / "unlabelled")
    with pytest.raises(ConfigError, match=r"a\.png has no label"):
        knn(tmp_path / "unlabelled", k=1)
    vit_hub.embed(NAME, tmp_path / "images", tmp_path / "tokens", what="tokens")
    with pytest.raises(ConfigError, match="holds tokens, not one embedding an image"):
        knn(tmp_path / "tokens")
    vit_hub.embed(NAME, digits / "test", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"weights\.sha256 differs"):
        knn(digits / "a", tmp_path / "other")
    with pytest.raises(ConfigError, match="k=200: there are 200 images"):
        knn(digits / "a", k=200)
    with pytest.raises(VitHubError, match="no _manifest.json"):
        knn(tmp_path / "images")
    with pytest.raises(ConfigError, match="too few to hold some of each out"):
        probe(_of(digits / "test" / "7", tmp_path / "seven"))


def _of(images: Path, out: Path) -> Path:
    (out.parent / "one").mkdir()
    (out.parent / "one" / "7").symlink_to(images)
    vit_hub.embed(NAME, out.parent / "one", out)
    return out


def test_missing_shards_are_warned_of(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vit_hub.embed(NAME, digits / "test", out, shard_size=20, share=(0, 2))
    with pytest.warns(UserWarning, match="some shards are missing"):
        assert knn(out, k=3).images == 40
