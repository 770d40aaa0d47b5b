"""The format that docs/adding-a-format.md shows is taken from its text, installed, and does what the text says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import random_images, random_model, raw

import vit_hub
from vit_hub.converters import format_names, formats
from vit_hub.converters.containers import open_raw, write_tensors
from vit_hub.converters.formats import all_formats
from vit_hub.converters.tensors import from_array
from vit_hub.errors import CheckpointError, UnsupportedByFormatError

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "adding-a-format.md"
CONFIG = vit_hub.ViTConfig(
    image_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=3, mlp_dim=20, num_classes=5, act="gelu_tanh"
)


@pytest.fixture(autouse=True)
def acorn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the document's module where formats are looked for."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "acorn.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    all_formats.cache_clear()
    yield
    all_formats.cache_clear()
    sys.modules.pop("vit_hub.converters.formats.acorn", None)


@pytest.fixture
def model() -> vit_hub.VisionTransformer:
    return random_model(CONFIG)


@pytest.fixture
def file(model: vit_hub.VisionTransformer, tmp_path: Path) -> Path:
    """The model as the document's table lays it out."""
    return vit_hub.convert(model.save(tmp_path / "model.safetensors"), tmp_path / "model.npz", to="acorn").path


def test_names_and_shapes_are_those_of_the_table(file: Path) -> None:
    found = {name: tensor.shape for name, tensor in open_raw(file).tensors.items()}
    assert found["class_token"] == (1, 1, 12)
    assert found["positions"] == (5, 12)
    assert found["patches/kernel"] == (8, 8, 3, 12)
    assert found["blocks/attention/query/kernel"] == (2, 12, 3, 4)
    assert found["blocks/feed_forward/in/kernel"] == (2, 12, 20)


def test_it_is_recognised_and_told_apart(file: Path) -> None:
    assert "acorn" in format_names()
    assert vit_hub.open_checkpoint(file).format == "acorn"
    other = vit_hub.convert(file, file.with_name("other.npz"), to="vit_jax").path
    assert vit_hub.open_checkpoint(other).format == "vit_jax"


def test_the_model_computes_the_same(model: vit_hub.VisionTransformer, file: Path) -> None:
    images = random_images(CONFIG)
    assert torch.equal(vit_hub.load(file)(images), model(images))


def test_round_trips_are_exact(file: Path, tmp_path: Path) -> None:
    canonical = vit_hub.convert(file, tmp_path / "back.safetensors").path
    assert raw(canonical) == raw(tmp_path / "model.safetensors")
    again = vit_hub.convert(canonical, tmp_path / "again.npz", to="acorn").path
    assert again.read_bytes() == file.read_bytes()


def test_every_tensor_is_accounted_for(file: Path, tmp_path: Path) -> None:
    tensors = dict(open_raw(file).tensors)
    extra = from_array(np.zeros(3, np.float32))
    write_tensors(tmp_path / "teacher.npz", "npz", {**tensors, "teacher/norm/scale": extra})
    dropped = vit_hub.open_checkpoint(tmp_path / "teacher.npz").dropped
    assert dropped == {"teacher/norm/scale": "moving average of the weights, used in training only"}
    write_tensors(tmp_path / "unknown.npz", "npz", {**tensors, "blocks/gate": extra})
    with pytest.raises(CheckpointError, match="blocks/gate"):
        vit_hub.open_checkpoint(tmp_path / "unknown.npz")
    del tensors["norm/scale"]
    write_tensors(tmp_path / "missing.npz", "npz", tensors)
    with pytest.raises(CheckpointError):
        vit_hub.open_checkpoint(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("change", "field"),
    [({"pool": "avg"}, "pool"), ({"norm_eps": 1e-12}, "norm_eps"), ({"num_registers": 2}, "num_registers")],
)
def test_what_it_cannot_express_is_refused(change: dict[str, object], field: str, tmp_path: Path) -> None:
    source = random_model(CONFIG.replace(**change)).save(tmp_path / "changed.safetensors")
    with pytest.raises(UnsupportedByFormatError, match=field):
        vit_hub.convert(source, tmp_path / "changed.npz", to="acorn")
    assert not (tmp_path / "changed.npz").exists()
