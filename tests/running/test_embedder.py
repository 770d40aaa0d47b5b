"""The callable for other engines: columns in, columns out."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vit_hub
from vit_hub.errors import ConfigError, VitHubError

NAME = "vit-nano-digits"


def expected(paths: list[Path]) -> np.ndarray:
    model = vit_hub.load(NAME)
    with torch.inference_mode():
        return model.embed(vit_hub.preprocess(model)(paths)).numpy()


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    return sorted(photos.glob("dog/*.png"))


def test_every_kind_of_column(paths: list[Path]) -> None:
    wanted = expected(paths)
    columns: list[list[Any]] = [
        [path.read_bytes() for path in paths],
        [{"bytes": path.read_bytes(), "path": None} for path in paths],
        [{"bytes": None, "path": str(path)} for path in paths],
        [str(path) for path in paths],
        [Image.open(path) for path in paths],
        [np.asarray(Image.open(path)) for path in paths],
        [memoryview(path.read_bytes()) for path in paths],
    ]
    embedder = pickle.loads(pickle.dumps(vit_hub.Embedder(NAME, errors="raise")))
    for column in columns:
        found = embedder({"image": column, "label": np.arange(len(paths))})
        assert sorted(found) == ["embedding", "height", "label", "width"]
        np.testing.assert_allclose(found["embedding"], wanted, rtol=0, atol=1e-5)
        assert found["label"].tolist() == list(range(len(paths)))
    assert found["width"].tolist() == [50] * len(paths)
    for name in ("img", "bytes", "path"):
        found = embedder({name: columns[0 if name != "path" else 3], "more": columns[0]})
        assert ("path" in found, name in found and name != "path") == (name == "path", False)
        np.testing.assert_allclose(found["embedding"], wanted, rtol=0, atol=1e-5)
    after_use = pickle.loads(pickle.dumps(embedder))
    assert np.array_equal(after_use({"image": columns[0]})["embedding"], found["embedding"])
    assert len(pickle.dumps(embedder)) < 2000


def test_options_reach_the_model(paths: list[Path]) -> None:
    embedder = vit_hub.Embedder(
        NAME, column="picture", what="logits", batch_size=2, image_size=48, preprocessing={"mean": 0.2}
    )
    found = embedder({"picture": [str(path) for path in paths]})["embedding"]
    model = vit_hub.load(NAME, image_size=48)
    prepare = vit_hub.Preprocessing.from_dict({**vit_hub.preprocess(model).to_dict(), "mean": [0.2]})
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(prepare(paths)).numpy(), rtol=0, atol=1e-5)


def test_images_that_cannot_be_read(paths: list[Path]) -> None:
    batch = {"image": [paths[0].read_bytes(), b"broken", None], "path": ["a", "b.jpg", "c"]}
    with pytest.raises(VitHubError, match=r"b\.jpg: cannot read it as an image"):
        vit_hub.Embedder(NAME)(batch)
    found = vit_hub.Embedder(NAME, errors="null")(batch)
    assert [error is None for error in found["error"]] == [True, False, False]
    assert np.isnan(found["embedding"]).all(axis=1).tolist() == [False, True, True]
    assert found["path"] == ["a", "b.jpg", "c"]
    alone = vit_hub.Embedder(NAME, errors="null")({"image": [b""]})
    assert alone["embedding"].shape == (1, 48)


def test_mistakes(paths: list[Path]) -> None:
    with pytest.raises(ConfigError, match="raise or null"):
        vit_hub.Embedder(NAME, errors="ignore")
    with pytest.raises(ConfigError, match="no column 'image'"):
        vit_hub.Embedder(NAME)({"picture": []})
    with pytest.raises(ConfigError, match="a Checkpoint cannot be sent"):
        vit_hub.Embedder(vit_hub.open_checkpoint(NAME))  # type: ignore[arg-type]


def test_hugging_face_datasets(paths: list[Path]) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", datasets.Image())
    mapped = data.map(vit_hub.Embedder(NAME), batched=True, batch_size=4, remove_columns="image")
    np.testing.assert_allclose(np.array(mapped["embedding"]), expected(paths), rtol=0, atol=1e-5)
    undecoded = data.cast_column("image", datasets.Image(decode=False))
    again = undecoded.map(vit_hub.Embedder(NAME), batched=True, batch_size=4, remove_columns="image", num_proc=2)
    np.testing.assert_allclose(np.array(again["embedding"]), expected(paths), rtol=0, atol=1e-5)


def test_arrow_columns(paths: list[Path]) -> None:
    import pyarrow as pa

    column = pa.array([path.read_bytes() for path in paths])
    found = vit_hub.Embedder(NAME)({"image": column})
    np.testing.assert_allclose(found["embedding"], expected(paths), rtol=0, atol=1e-5)
    assert vit_hub.Embedder(NAME)({"image": [io.BytesIO(paths[0].read_bytes())]})["embedding"].shape == (1, 48)
