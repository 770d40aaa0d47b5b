"""``--image-size``, ``--patch-size`` and ``--resize``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import vit_hub
from vit_hub.model.config import RESIZE_METHODS
from vit_hub.model.flops import forward_flops
from vit_hub.model.shapes import num_parameters

Run = Callable[..., Result]
Answer = Callable[..., Any]


@pytest.fixture
def classifier(models: Path) -> Path:
    """16x16 pixels in patches of 8: a grid of 2x2."""
    return models / "classifier.safetensors"


def test_convert_to_another_size(run: Run, classifier: Path, tmp_path: Path) -> None:
    result = run(
        "convert", classifier, tmp_path / "out", "--to", "timm", "--image-size", "32x24", "--patch-size", "4", "-v"
    )
    assert result.exit_code == 0, result.output
    assert "  --image-size: image_size" in result.stdout.splitlines()
    assert "  --patch-size: patch_size" in result.stdout.splitlines()
    found = vit_hub.load(tmp_path / "out")
    wanted = vit_hub.load(classifier, image_size=(32, 24), patch_size=4)
    assert (found.config.grid_size, found.config.patch_size) == ((8, 6), (4, 4))
    state = wanted.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())


def test_convert_by_another_method(run: Run, answer: Answer, classifier: Path, tmp_path: Path) -> None:
    tables = {}
    for method in ("source", "bicubic-antialias", "bilinear"):
        file = tmp_path / f"{method}.safetensors"
        assert answer("convert", classifier, file, "--image-size", 32, "--resize", method)["config"]["image_size"] == [
            32,
            32,
        ]
        tables[method] = vit_hub.open_checkpoint(file).tensors["pos_embed"].read().tobytes()
    assert tables["source"] == tables["bicubic-antialias"] != tables["bilinear"]
    result = run("convert", classifier, tmp_path / "out", "--resize", "cubic")
    assert result.exit_code == 2
    assert "bilinear-align-corners" in result.stderr


def test_predict_at_another_size(answer: Answer, models: Path, photos: Path) -> None:
    file = models / "imagenet.safetensors"
    model = vit_hub.load(file, image_size=(32, 24))
    with torch.inference_mode():
        wanted = model(vit_hub.preprocess(model)(photos / "0.png"))[0].softmax(-1).max()
    found = answer("predict", file, photos / "0.png", "--image-size", "32x24")
    assert found["predictions"][0]["classes"][0]["probability"] == pytest.approx(float(wanted))


@pytest.mark.parametrize("verb", ["convert", "predict", "info"])
def test_a_size_that_does_not_fit(run: Run, verb: str, classifier: Path, photos: Path, tmp_path: Path) -> None:
    rest = {"convert": [tmp_path / "out"], "predict": [photos]}.get(verb, [])
    result = run(verb, classifier, *rest, "--image-size", "30")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].endswith(
        "image_size=(30, 30) is not a whole number of patches of (8, 8) pixels"
    )
    assert "hint: nearest sizes that are: (24, 24) and (32, 32)" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["big", "0", "3x4x5", "-8", "8x", ""])
def test_what_is_no_size(run: Run, classifier: Path, size: str) -> None:
    result = run("info", classifier, f"--image-size={size}")
    assert result.exit_code == 2
    assert f"{size!r} is not a size; write 384 or 384x512: height, then width." in result.stderr


def test_info_at_another_size(run: Run, answer: Answer) -> None:
    text = run("info", "vit-b16", "--image-size", "384").stdout
    for line in (
        "At 384x384 pixels",
        "  grid                   14x14       24x24",
        "  tokens                 197         577",
        "  parameters             86,567,656  86,859,496",
        "  weights, bfloat16      173 MB      174 MB",
    ):
        assert line in text.splitlines()
    assert "346 MB of weights and about 5.45 MB for one image in float32, half of it in bfloat16" in text
    found = answer("info", "vit-b16", "--image-size", "384")["resized"]
    config = vit_hub.get_config("vit-b16").replace(image_size=384)
    assert found["config"] == json.loads(json.dumps(config.to_dict()))
    assert found["flops"] == forward_flops(config)
    assert found["params"] == num_parameters(config)
    assert (found["grid_size"], found["tokens"]) == ([24, 24], 577)
    assert found["memory_bytes"]["float32"] == {"weights": 4 * found["params"], "activations": 4 * 577 * 9 * 768}
    assert found["differences"] is None
    assert "resized" not in answer("info", "vit-b16")


def test_info_at_another_patch_size(answer: Answer) -> None:
    found = answer("info", "vit-b16", "--patch-size", "8")["resized"]
    assert found["config"]["image_size"] == [112, 112]
    assert found["grid_size"] == [14, 14]


def test_differences_between_methods(run: Run, answer: Answer, classifier: Path) -> None:
    found = answer("info", classifier, "--image-size", 40, "--resize")["resized"]["differences"]
    assert found["own"] == "bicubic-antialias"
    assert list(found["by_method"]) == [method for method in RESIZE_METHODS if not method.startswith("relpos-")]
    assert found["by_method"]["bicubic-antialias"] == {"maximum": 0, "mean": 0, "relative": 0}
    assert found["by_method"]["bilinear"]["maximum"] > found["by_method"]["bilinear"]["mean"] > 0
    only = answer("info", classifier, "--image-size", 40, "--resize", "bilinear")["resized"]["differences"]
    assert only["by_method"] == {"bilinear": found["by_method"]["bilinear"]}
    text = run("info", classifier, "--image-size", 40, "--resize").stdout
    assert "  bicubic-antialias (its own) " in text
    assert f"{found['by_method']['bilinear']['maximum']:.2g}" in text


def test_differences_of_the_bundled_model(answer: Answer) -> None:
    found = answer("info", "vit-nano-digits", "--image-size", 48, "--resize")["resized"]["differences"]
    assert found["own"] == "bilinear-align-corners"
    assert found["by_method"]["bicubic"]["mean"] > 0


def test_differences_need_the_weights(run: Run) -> None:
    result = run("info", "vit-b16", "--image-size", "384", "--resize")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: the weights of vit-b16 are not on this machine, so their tables cannot be compared; "
        "`vit-hub download vit-b16` fetches them\n"
    )
    assert "At 384x384 pixels" in result.stdout


def test_differences_need_a_size_and_a_table(run: Run, classifier: Path, tmp_path: Path) -> None:
    result = run("info", classifier, "--resize")
    assert result.exit_code == 2
    assert "--resize needs --image-size or --patch-size" in result.stderr
    assert "nothing is resized" in run("info", classifier, "--image-size", 16, "--resize").stdout
    config = vit_hub.ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=24)
    config = config.replace(pos_embed="sincos2d", pos_embed_prefix=False)
    file = vit_hub.VisionTransformer(config).save(tmp_path / "model.safetensors")
    assert "nothing is resized" in run("info", file, "--image-size", 32, "--resize").stdout


def test_info_of_a_size_loads_no_torch() -> None:
    program = (
        "import sys; from vit_hub.cli import main\n"
        "try: main(['info', 'vit-b16', '--image-size', '384'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
