"""Presets and weight files of keras-hub: the same outputs, the same bytes back, and what keras-hub itself loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from golden_cases import GOLDEN, native_tensors
from small_models import random_model

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError

PLAIN = {"image_size": (16, 16), "patch_size": (4, 4), "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 48}
SCALED = {"layer_scale": True}
DINOV3 = {
    **SCALED,
    "pos_embed": "none",
    "pos_embed_prefix": False,
    "norm_eps": 1e-5,
    "rope": {"theta": 100.0, "coordinates": "centered", "pairs": "half"},
}
CLIP = {"pre_norm": True, "patch_bias": False, "act": "quick_gelu", "norm_eps": 1e-5}
SIGLIP = {"class_token": False, "pos_embed_prefix": False, "pool": "map", "act": "gelu_tanh"}
NO_CLASS = {"class_token": False, "pos_embed_prefix": False}
MODELS: dict[str, dict[str, Any]] = {
    "ViT": {"num_classes": 5},
    "ViT, 12 blocks": {"depth": 12, "num_classes": 5},
    "ViT, one block": {"depth": 1},
    "ViT, mean of all tokens": {"pool": "avg", "pool_prefix": True, "num_classes": 5},
    "ViT, mean of patches": {**NO_CLASS, "pool": "avg", "patch_bias": False, "num_classes": 5},
    "ViT, first patch": {**NO_CLASS, "pool": "first", "num_classes": 5},
    "ViT, another layer": {"representation_dim": 10, "num_classes": 5, "norm_eps": 1e-5},
    "ViT, rectangles": {"image_size": (16, 24), "patch_size": (8, 4)},
    "DeiT": {"distilled": True, "num_classes": 5},
    "DINOv2": SCALED,
    "DINOv2, registers and gates": {**SCALED, "num_registers": 2, "ffn": "swiglu_packed", "act": "silu", "mlp_dim": 40},
    "DINOv3": {**DINOV3, "num_registers": 3, "qkv_bias": "qv"},
    "DINOv3, gates": {**DINOV3, "ffn": "swiglu", "act": "silu", "qkv_bias": False},
    "CLIP": CLIP,
    "SigLIP": SIGLIP,
}


def images(config: vit_hub.ViTConfig) -> torch.Tensor:
    return torch.randn(2, 3, *config.image_size, generator=torch.Generator().manual_seed(0))


def written(folder: Path, **fields: Any) -> tuple[Path, vit_hub.VisionTransformer]:
    """A model as a preset, and the model."""
    model = random_model(vit_hub.ViTConfig(**{**PLAIN, **fields}))
    model.save(folder / "model.safetensors")
    vit_hub.convert(folder / "model.safetensors", folder / "preset", to="keras_hub")
    return folder / "preset", model


def assert_same(path: Path, model: vit_hub.VisionTransformer) -> None:
    found = vit_hub.load(path)
    x = images(model.config)
    with torch.inference_mode():
        torch.testing.assert_close(found(x), model(x), rtol=0, atol=2e-6)
        torch.testing.assert_close(found.forward_features(x), model.forward_features(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_models_come_back(tmp_path: Path, fields: dict[str, Any]) -> None:
    path, model = written(tmp_path, **fields)
    assert vit_hub.open_checkpoint(path).format == "keras_hub"
    assert_same(path, model)
    vit_hub.convert(path, tmp_path / "again", to="keras_hub")
    assert native_tensors(tmp_path / "again") == native_tensors(path)
    for file in path.glob("*.json"):
        assert json.loads((tmp_path / "again" / file.name).read_text()) == json.loads(file.read_text())


def test_layers_are_numbered_as_keras_numbers_them(tmp_path: Path) -> None:
    path, _ = written(tmp_path, depth=12, num_classes=5)
    with h5py.File(path / "model.weights.h5") as file:
        blocks = file["layers/vi_t_encoder/encoder_layers"]
        names = ["vi_t_encoder_block", *(f"vi_t_encoder_block_{n}" for n in range(1, 12))]
        assert sorted(blocks) == sorted(names)
    with h5py.File(path / "task.weights.h5") as file:
        assert file["layers/dense/vars/0"].shape == (24, 5)


@pytest.mark.parametrize("fields", [{"num_classes": 5}, {"num_classes": 5, "representation_dim": 10}])
def test_one_file_of_a_classifier(tmp_path: Path, fields: dict[str, Any]) -> None:
    """``save_weights`` of a classifier has the backbone inside, and from_preset reads two files."""
    path, model = written(tmp_path, **fields)
    file = tmp_path / "task.weights.h5"
    vit_hub.convert(path, file, to="keras_hub")
    with h5py.File(file) as opened:
        assert "layers/vi_t_backbone/layers/vi_t_encoder/layer_norm/vars/0" in opened
        assert "layers/dense/vars/1" in opened
    assert_same(file, model)
    vit_hub.convert(file, tmp_path / "folder", to="keras_hub")
    assert native_tensors(tmp_path / "folder") == native_tensors(path)


def changed(path: Path, file: str, name: str, array: np.ndarray) -> None:
    with h5py.File(path / file, "r+") as opened:
        del opened[name]
        opened[name] = array


def test_stored_numbers_of_positions_count(tmp_path: Path) -> None:
    """CLIP's class looks rows of the table up by numbers in the file."""
    path, model = written(tmp_path, **CLIP)
    name = "layers/clip_vision_embedding/vars/1"
    with h5py.File(path / "model.weights.h5") as file:
        assert file[name][()].tolist() == [list(range(17))]
    numbers = np.random.default_rng(0).integers(-17, 17, (1, 17)).astype(np.int32)
    changed(path, "model.weights.h5", name, numbers)
    with torch.no_grad():
        model.pos_embed.copy_(model.pos_embed[:, torch.from_numpy(numbers[0]).long()])
    assert_same(path, model)
    vit_hub.convert(path, tmp_path / "middle.safetensors")
    vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "again", to="keras_hub")
    assert native_tensors(tmp_path / "again") == native_tensors(path)
    # At another size the table is the one that is computed with.
    vit_hub.convert(path, tmp_path / "larger", to="keras_hub", image_size=24)
    assert vit_hub.load(tmp_path / "larger").config.image_size == (24, 24)
    changed(path, "model.weights.h5", name, numbers + 17)
    with pytest.raises(vit_hub.CheckpointError, match="numbers of positions"):
        vit_hub.load(path)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("side", [8, 24])
def test_a_table_for_other_images_is_interpolated(tmp_path: Path, side: int, antialias: bool) -> None:
    """DINOv2's class interpolates its table when it is loaded; what the file has of it is not read."""
    path, _ = written(tmp_path, **SCALED)
    config = json.loads((path / "config.json").read_text())
    grid = side // 4
    config["config"] |= {"image_shape": [side, side, 3], "antialias_in_interpolation": antialias}
    (path / "config.json").write_text(json.dumps(config))
    stale = np.zeros((1, 1 + grid * grid, 24), np.float32)
    changed(path, "model.weights.h5", "layers/dinov2_embedding/vars/2", stale)
    model = vit_hub.load(path)
    with h5py.File(path / "model.weights.h5") as file:
        table = file["layers/dinov2_embedding/vars/3"][()]
    wanted = keys_bicubic(table[0, 1:].reshape(4, 4, 24), grid, antialias)
    assert model.config.image_size == (side, side)
    np.testing.assert_allclose(model.pos_embed.detach()[0, 1:].numpy(), wanted.reshape(-1, 24), rtol=0, atol=1e-6)
    assert np.array_equal(model.pos_embed.detach()[0, 0].numpy(), table[0, 0])
    vit_hub.convert(path, tmp_path / "again", to="keras_hub")
    assert native_tensors(tmp_path / "again") == native_tensors(path)


def keys_bicubic(table: np.ndarray, new: int, antialias: bool) -> np.ndarray:
    """jax.image.resize's bicubic, written out: weights are normalised over the samples that exist."""
    old = len(table)
    weights = np.zeros((new, old))
    width = max(old / new, 1.0) if antialias else 1.0
    for row in range(new):
        for column in range(old):
            x = abs((row + 0.5) * old / new - 0.5 - column) / width
            near = (1.5 * x - 2.5) * x * x + 1
            far = ((-0.5 * x + 2.5) * x - 4) * x + 2
            weights[row, column] = near if x <= 1 else far if x < 2 else 0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("yh,xw,hwd->yxd", weights, weights, table.astype(np.float64))


def test_classifiers_that_return_probabilities(tmp_path: Path) -> None:
    path, model = written(tmp_path, num_classes=5)
    task = json.loads((path / "task.json").read_text())
    task["config"]["activation"] = "softmax"
    (path / "task.json").write_text(json.dumps(task))
    with pytest.warns(UserWarning, match="softmax"):
        assert_same(path, model)
    vit_hub.convert(path, tmp_path / "again", to="keras_hub")
    assert json.loads((tmp_path / "again" / "task.json").read_text()) == task


def test_preprocessing_is_read_and_written(tmp_path: Path) -> None:
    source = GOLDEN / "kerashub_vit_cls" / "preset"
    found = vit_hub.preprocess(vit_hub.load(source))
    assert (found.mean, found.std, found.interpolation) == ((0.5,), (0.5,), "bilinear") or found.mean == (0.5,) * 3
    assert (found.crop_mode, found.antialias, found.quantize) == ("center", False, "none")
    vit_hub.convert(source, tmp_path / "hf", to="hf")
    vit_hub.convert(tmp_path / "hf", tmp_path / "preset", to="keras_hub")
    converter = json.loads((tmp_path / "preset" / "image_converter.json").read_text())
    assert converter["class_name"] == "ViTImageConverter"
    np.testing.assert_allclose(converter["config"]["scale"], [1 / 127.5] * 3)
    np.testing.assert_allclose(converter["config"]["offset"], [-1.0] * 3)
    preprocessor = json.loads((tmp_path / "preset" / "preprocessor.json").read_text())
    assert preprocessor["config"]["image_converter"] == converter


def test_towers_of_both_towers(tmp_path: Path) -> None:
    source = GOLDEN / "kerashub_clip" / "preset"
    report = vit_hub.convert(source, tmp_path / "middle.safetensors")
    assert any("clip_text_encoder" in name for name in report.dropped)
    for start in (source, report.path):
        alone = vit_hub.convert(start, tmp_path / "alone", to="keras_hub")
        assert "CLIPBackbone does not; keep_rest=True" in " ".join(alone.metadata_lost)
    vit_hub.convert(source, tmp_path / "whole", to="keras_hub", keep_rest=True)
    again = vit_hub.convert(tmp_path / "whole", tmp_path / "again", to="keras_hub", keep_rest=True)
    assert not again.metadata_lost
    assert json.loads((tmp_path / "again" / "config.json").read_text())["class_name"] == "CLIPBackbone"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"act": "gelu_tanh", "num_classes": 5}, "act"),
        ({"pool": "avg", "num_classes": 5}, "pool"),
        ({"distilled": True, "pool": "cls_dist", "num_classes": 5}, "pool"),
        ({**SCALED, "num_registers": 2, "norm_eps": 1e-5}, "norm_eps|num_registers"),
        ({**CLIP, "projection_dim": 8}, "num_classes|projection_dim"),
        ({**SIGLIP, "norm_eps": 1e-5}, "norm_eps"),
        ({"qk_norm": True}, "qk_norm"),
    ],
)
def test_models_that_no_class_computes(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedByFormatError, match=field):
        written(tmp_path, **fields)


def test_siglip_with_two_epsilons(tmp_path: Path) -> None:
    path, _ = written(tmp_path, **SIGLIP)
    config = json.loads((path / "config.json").read_text())
    config["config"]["layer_norm_epsilon"] = 1e-5
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="layer_norm_epsilon"):
        vit_hub.load(path)


KERAS = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras_hub, numpy as np
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    x = np.load(folder / "x.npy").transpose(0, 2, 3, 1)
    kind = keras_hub.models.ImageClassifier if (folder / "task.json").exists() else keras_hub.models.Backbone
    model = kind.from_preset(str(folder))
    model.preprocessor = None
    y = model.predict({name: x for name in model.input} if isinstance(model.input, dict) else x, verbose=0)
    np.save(folder / "y.npy", np.asarray(y))
    config = json.loads((folder / "config.json").read_text())
    own = (model.backbone if hasattr(model, "backbone") else model).get_config()
    assert own.keys() == config["config"].keys(), own.keys() ^ config["config"].keys()
"""


def test_keras_hub_loads_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("keras_hub")
    models = {}
    for number, fields in enumerate(MODELS.values()):
        (tmp_path / str(number)).mkdir()
        path, models[number] = written(tmp_path / str(number), **fields)
        np.save(path / "x.npy", images(models[number].config).numpy())
    folders = [tmp_path / str(number) / "preset" for number in models]
    subprocess.run([sys.executable, "-c", KERAS, *map(str, folders)], check=True)
    for path, model in zip(folders, models.values(), strict=True):
        found = torch.from_numpy(np.load(path / "y.npy"))
        x = images(model.config)
        with torch.inference_mode():
            wanted = model(x) if found.ndim == 2 else model.forward_features(x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_parts_of_a_preset(tmp_path: Path) -> None:
    path, model = written(tmp_path, num_classes=5)
    # The backbone's file alone has no head.
    assert vit_hub.load(path / "model.weights.h5").config.num_classes == 0
    shutil.copy(path / "model.weights.h5", tmp_path / "bare.h5")
    assert vit_hub.load(tmp_path / "bare.h5").config == model.config.replace(num_classes=0)
