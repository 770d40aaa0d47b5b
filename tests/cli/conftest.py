from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from vit_hub import VisionTransformer, ViTConfig
from vit_hub.cli import main
from vit_hub.converters.passport import Passport
from vit_hub.preprocessing.project_files import CONVENTIONS

Run = Callable[..., Result]

CONFIG = ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=24, num_classes=4)
PROGRAM = [sys.executable, "-c", "from vit_hub.cli import main; main()"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("VIT_HUB_OFFLINE", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def run() -> Run:
    """Run the command in this process; stdout and stderr are pipes."""

    def call(*args: object) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    return call


@pytest.fixture
def answer(run: Run) -> Callable[..., Any]:
    """The JSON document that a successful command prints."""

    def call(*args: object) -> Any:
        result = run(*args, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


@pytest.fixture
def process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in its own process."""

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PROGRAM, *map(str, args)], capture_output=True, text=True, check=False)

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny canonical models."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = VisionTransformer(CONFIG)
    model.save(folder / "classifier.safetensors")
    model.to(torch.bfloat16).save(folder / "half.safetensors")
    with torch.no_grad():
        model.blocks[0].norm1.bias[:2] = torch.tensor([float("nan"), float("inf")])  # type: ignore[union-attr, operator]
    model.save(folder / "broken.safetensors")
    model = VisionTransformer(CONFIG)
    with torch.no_grad():
        model.head.weight.zero_()  # type: ignore[operator, union-attr]
    model.save(folder / "untrained.safetensors")
    VisionTransformer(CONFIG.replace(num_classes=0)).save(folder / "headless.safetensors")
    model = VisionTransformer(CONFIG.replace(num_classes=1000))
    preprocess = CONVENTIONS["timm"].with_image_size(CONFIG.image_size).to_dict()
    model.passport = Passport(format="canonical", labels="imagenet-1k", preprocess=preprocess)
    model.save(folder / "imagenet.safetensors")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder
