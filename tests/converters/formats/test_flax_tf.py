"""Hugging Face's Flax and TensorFlow files in all their containers: the same outputs, the same bytes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from golden_cases import GOLDEN, native_tensors
from safetensors import safe_open
from small_models import random_model

import vit_hub
from vit_hub.errors import UnsupportedByFormatError

PLAIN = {
    "image_size": (16, 16),
    "patch_size": (4, 4),
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 48,
    "norm_eps": 1e-12,
}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def outputs(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return vit_hub.load(path)(IMAGES)


def written(folder: Path, to: str, **fields: Any) -> tuple[Path, torch.Tensor]:
    """A model in a format of transformers, and its outputs."""
    model = random_model(vit_hub.ViTConfig(**{**PLAIN, **fields}))
    model.save(folder / "model.safetensors")
    with torch.inference_mode():
        wanted = model(torch.randn(2, 3, *model.config.image_size, generator=torch.Generator().manual_seed(0)))
    vit_hub.convert(folder / "model.safetensors", folder / to, to=to)
    return folder / to, wanted


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(raw, dtype).reshape(shape) for name, (dtype, shape, raw) in native_tensors(path).items()
    }


@pytest.mark.parametrize("to", ["hf_flax", "hf_tf"])
@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 5},
        {"num_classes": 5, "act": "gelu_tanh", "qkv_bias": False},
        {"representation_dim": 24},
        {"num_classes": 5, "pool": "avg", "final_norm": "after", "qkv_bias": "qv", "rel_pos": "shared"},
        {"pre_norm": True, "patch_bias": False, "final_norm": "after", "act": "quick_gelu", "norm_eps": 1e-5},
    ],
)
def test_models_come_back(tmp_path: Path, to: str, fields: dict[str, Any]) -> None:
    if fields.get("rel_pos"):
        fields = {**fields, "pos_embed": "none", "layer_scale": True}
    path, wanted = written(tmp_path, to, **fields)
    assert vit_hub.open_checkpoint(path).format == to
    torch.testing.assert_close(outputs(path), wanted, rtol=0, atol=2e-6)
    vit_hub.convert(path, tmp_path / "again", to=to)
    assert native_tensors(tmp_path / "again") == native_tensors(path)


def test_activations_have_the_names_of_transformers_4(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "hf_tf", act="gelu_tanh", num_classes=5)
    assert json.loads((path / "config.json").read_text())["hidden_act"] == "gelu_new"


def test_flax_safetensors_have_dots(tmp_path: Path) -> None:
    source, wanted = written(tmp_path, "hf_flax", num_classes=5)
    path = tmp_path / "dots"
    path.mkdir()
    shutil.copy(source / "config.json", path)
    tree = {name.replace("/", "."): array for name, array in arrays(source).items()}
    safetensors.numpy.save_file(tree, path / "model.safetensors", {"format": "flax"})
    ckpt = vit_hub.open_checkpoint(path)
    assert ckpt.format == "hf_flax"
    torch.testing.assert_close(outputs(path), wanted, rtol=0, atol=2e-6)
    vit_hub.convert(path, tmp_path / "again", to="hf_flax")
    assert native_tensors(tmp_path / "again") == native_tensors(path)
    with safe_open(tmp_path / "again" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "flax"}


def plain(source: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of Keras without layer and model before their names."""
    return {name.split("/", 2)[2]: array for name, array in arrays(source).items()}


def test_tf_safetensors_have_no_model_in_their_names(tmp_path: Path) -> None:
    source, wanted = written(tmp_path, "hf_tf", num_classes=5)
    path = tmp_path / "plain"
    path.mkdir()
    shutil.copy(source / "config.json", path)
    safetensors.numpy.save_file(plain(source), path / "model.safetensors", {"format": "tf"})
    torch.testing.assert_close(outputs(path), wanted, rtol=0, atol=2e-6)
    vit_hub.convert(path, tmp_path / "again", to="hf_tf")
    assert native_tensors(tmp_path / "again") == native_tensors(path)
    with safe_open(tmp_path / "again" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "tf"}
    # Written as HDF5 they get the names that Keras looks for.
    vit_hub.convert(path, tmp_path / "whole.h5", to="hf_tf")
    with h5py.File(tmp_path / "whole.h5") as file:
        assert list(file["classifier"]) == ["tf_model"]


def test_sharded_tf_files(tmp_path: Path) -> None:
    source, wanted = written(tmp_path, "hf_tf", num_classes=5)
    path = tmp_path / "shards"
    path.mkdir()
    shutil.copy(source / "config.json", path)
    index: dict[str, str] = {}
    for number, part in enumerate(sorted(plain(source).items())):
        file = f"tf_model-0000{number % 2 + 1}-of-00002.h5"
        index[f"tf_vi_t_for_image_classification/{part[0]}"] = file
        with h5py.File(path / file, "a") as shard:
            shard[part[0]] = part[1]
    (path / "tf_model.h5.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    torch.testing.assert_close(outputs(path), wanted, rtol=0, atol=2e-6)
    vit_hub.convert(path, tmp_path / "again", to="hf_tf")
    shard = "tf_model-00001-of-00001.h5"
    assert sorted(file.name for file in (tmp_path / "again").glob("tf*")) == [shard, "tf_model.h5.index.json"]
    assert {name: array.tobytes() for name, array in arrays(tmp_path / "again" / shard).items()} == {
        name: array.tobytes() for name, array in plain(source).items()
    }
    with h5py.File(tmp_path / "again" / shard) as file:
        assert [name.decode() for name in file.attrs["layer_names"]] == list(
            json.loads((tmp_path / "again" / "tf_model.h5.index.json").read_text())["weight_map"]
        )
    torch.testing.assert_close(outputs(tmp_path / "again"), wanted, rtol=0, atol=2e-6)


def test_a_model_that_keras_numbered(tmp_path: Path) -> None:
    """The second model of a process has another name, which is kept."""
    source = GOLDEN / "hftf_deit_teacher" / "hf"
    path = tmp_path / "second"
    path.mkdir()
    shutil.copy(source / "config.json", path)
    with h5py.File(path / "tf_model.h5", "w") as file:
        for name, array in arrays(source).items():
            layer, model, rest = name.split("/", 2)
            file[f"{layer}/{model}_1/{rest}"] = array
    assert torch.equal(outputs(path), outputs(source))
    vit_hub.convert(path, tmp_path / "again", to="hf_tf")
    assert native_tensors(tmp_path / "again") == native_tensors(path)
    with h5py.File(tmp_path / "again" / "tf_model.h5") as file:
        assert {name.decode() for name in file.attrs["layer_names"]} == set(file)


@pytest.mark.parametrize(
    ("to", "fields", "field"),
    [
        ("hf_flax", {"distilled": True, "num_classes": 5, "pool": "cls_dist"}, "distilled"),
        ("hf_flax", {"image_size": (16, 24), "num_classes": 5}, "image_size"),
        ("hf_flax", {"ffn": "swiglu_packed", "act": "silu", "layer_scale": True}, "ffn"),
        ("hf_flax", {"representation_dim": 8}, "representation_dim"),
        ("hf_tf", {"class_token": False, "pos_embed_prefix": False, "pool": "avg", "num_classes": 5}, "class_token"),
        ("hf_tf", {"num_registers": 2, "num_classes": 5}, "num_registers"),
        (
            "hf_tf",
            {"pre_norm": True, "patch_bias": False, "final_norm": "after", "projection_dim": 8},
            "num_classes|pre_norm|projection_dim",
        ),
    ],
)
def test_models_that_no_class_computes(tmp_path: Path, to: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedByFormatError, match=field):
        written(tmp_path, to, **fields)
    assert not (tmp_path / to).exists()
