"""Checkpoints as MLX leaves them: torch's names, kernels with their channels last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import CASES, Case
from safetensors.torch import load_file, save_file
from small_models import random_images, random_model

import vit_hub
from vit_hub.errors import VitHubError


def is_kernel(name: str, tensor: torch.Tensor) -> bool:
    """Weights of convolutions, of images or videos; tables of four axes stay."""
    return name.endswith("weight") and tensor.dim() in (4, 5)


def has_kernels(file: Path) -> bool:
    return file.is_file() and any(is_kernel(*item) for item in load_file(file).items())


FOLDERS = [case for case in CASES if has_kernels(case.checkpoint / "model.safetensors")]


def written(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    """Write a recorded checkpoint as MLX has it, and return its tensors."""
    folder.mkdir()
    for file in case.checkpoint.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(case.checkpoint / "model.safetensors")
    tensors = {
        name: tensor.movedim(1, -1).contiguous() if is_kernel(name, tensor) else tensor
        for name, tensor in tensors.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "mlx"})
    return tensors


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: case.name)
def test_the_same_numbers_and_the_way_back(case: Case, tmp_path: Path) -> None:
    tensors = written(case, tmp_path / "mlx")
    wanted = vit_hub.load(case.checkpoint, overrides=case.overrides)(case.images())
    model = vit_hub.load(tmp_path / "mlx", overrides=case.overrides)
    assert torch.equal(model(case.images()), wanted)
    opened = vit_hub.open_checkpoint(tmp_path / "mlx", overrides=case.overrides)
    assert "MLX" in opened.inferred["layout"]
    vit_hub.convert(opened, tmp_path / "canonical.safetensors")
    back = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to=opened.format).path
    found = load_file(back / "model.safetensors")
    assert found.keys() == tensors.keys() - opened.dropped.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.items())
    assert torch.equal(vit_hub.load(back, overrides=case.overrides)(case.images()), wanted)
    # Another format has the layout of its own project.
    other = vit_hub.convert(opened, tmp_path / "plain.safetensors")
    assert torch.equal(vit_hub.load(other.path)(case.images()), wanted)


def test_an_npz_has_no_metadata_that_tell(tmp_path: Path) -> None:
    config = vit_hub.ViTConfig(image_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=24)
    model = random_model(config)
    kernel = model.patch_embed.proj.weight.permute(0, 2, 3, 1)
    tensors = {**model.state_dict(), "patch_embed.proj.weight": kernel.contiguous()}
    np.savez(tmp_path / "weights.npz", **{name: tensor.detach().numpy() for name, tensor in tensors.items()})
    found = vit_hub.load(tmp_path / "weights.npz", overrides={"num_heads": 2})
    images = random_images(config)
    assert torch.equal(found(images), model(images))


def test_quantized_weights_are_named(tmp_path: Path) -> None:
    case = next(case for case in FOLDERS if case.name.startswith("hf_clip"))
    tensors = written(case, tmp_path / "mlx")
    name = next(name for name in tensors if name.endswith("mlp.fc1.weight"))
    rows = tensors[name].shape[0]
    tensors[name] = torch.zeros(rows, 3, dtype=torch.int32)
    tensors |= {name.replace("weight", part): torch.ones(rows, 1) for part in ("scales", "biases")}
    save_file(tensors, tmp_path / "mlx" / "model.safetensors", {"format": "mlx"})
    with pytest.raises(VitHubError, match="quantized by MLX"):
        vit_hub.open_checkpoint(tmp_path / "mlx")
