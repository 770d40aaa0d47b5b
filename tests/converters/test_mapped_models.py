"""Files that change while a model of theirs is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import random_images, random_model

import vit_hub

CONFIG = vit_hub.ViTConfig(image_size=16, patch_size=4, embed_dim=64, depth=4, num_heads=1, mlp_dim=256, num_classes=5)
PROGRAM = """
import sys, torch, vit_hub
model = vit_hub.load(sys.argv[1], mmap=False)
open(sys.argv[1], "r+b").truncate(100)
print(tuple(model(torch.zeros(1, 3, 16, 16)).shape))
"""


def test_without_mapping_a_file_may_be_cut_short(tmp_path: Path) -> None:
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 5)"


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_replaced_by_our_own_writers_changes_nothing(mmap: bool, tmp_path: Path) -> None:
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    model, images = vit_hub.load(file, mmap=mmap), random_images(CONFIG)
    fresh = vit_hub.load(file, mmap=False)
    other = random_model(CONFIG, seed=1)
    other.save(file)
    with torch.no_grad():
        assert torch.equal(model(images), fresh(images))
        assert torch.equal(vit_hub.load(file)(images), other(images))


def test_a_model_can_be_saved_over_its_own_file(tmp_path: Path) -> None:
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    before = vit_hub.load(file, mmap=False).state_dict()
    vit_hub.load(file).save(file)
    after = vit_hub.load(file).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
