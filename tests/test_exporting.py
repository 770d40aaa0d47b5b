"""Exported files run in their runtimes with the model's outputs, or nothing is left of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from click.testing import CliRunner
from kinds import KINDS
from small_models import random_images, random_model, relative_error
from torch import Tensor, nn

import vit_hub
from vit_hub.cli import main
from vit_hub.exporting.export import TARGETS
from vit_hub.exporting.program import Options, make_program

CORE = openvino.Core()  # one: see to_openvino.py
SUFFIXES = [target.suffix for target in TARGETS.values()]


def run(path: Path, images: Tensor) -> Tensor:
    """Return the output of a file in its own runtime."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images).detach()
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [item.name for item in session.get_inputs()] == ["images"]
        return torch.from_numpy(session.run(["output"], {"images": images.numpy()})[0])
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    return torch.from_numpy(CORE.compile_model(path, "CPU", precise)({"images": images.numpy()})["output"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_gives_the_models_outputs(suffix: str, tmp_path: Path) -> None:
    report = vit_hub.export("vit-nano-digits", tmp_path / f"digits{suffix}")
    assert report.difference <= 1e-5
    assert report.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    if suffix == ".onnx":
        onnx.checker.check_model(report.path)
    model = vit_hub.load("vit-nano-digits")
    images = torch.rand(5, 1, 32, 32)
    with torch.inference_mode():
        assert relative_error(run(report.path, images), model(images)) <= 1e-5


# Every kind of model with every target takes minutes: tests/model/test_export.py has the kinds as programs.
@pytest.mark.parametrize(
    ("kind", "suffix"), [("plain", ".onnx"), ("rope", ".pt2"), ("windows", ".xml"), ("video", ".onnx")]
)
def test_one_file_takes_images_of_any_size(kind: str, suffix: str, tmp_path: Path) -> None:
    model = random_model(KINDS[kind])
    report = vit_hub.export(model, tmp_path / f"model{suffix}", dynamic=True)
    assert not model.dynamic or kind in ("rope", "video")
    model.dynamic = True
    images = torch.randn(3, *model.config.input_shape((40, 24)))
    with torch.inference_mode():
        assert relative_error(run(report.path, images), model(images)) <= 1e-4
    assert len({shape[-2:] for shape in report.compared}) > 1


# One of each thing that exporters have to understand; OpenVINO reads the same ONNX file as it does in an export.
@pytest.mark.parametrize(
    "kind",
    ["distilled", "swiglu packed", "map", "hybrid", "conv", "learned rotations", "relative", "differential", "windows"],
)
def test_families_agree_in_both_runtimes(kind: str, tmp_path: Path) -> None:
    model = random_model(KINDS[kind])
    program = make_program(model, model)
    path = tmp_path / "model.onnx"
    TARGETS["onnx"].write(program, path, Options())
    for target in ("onnx", "openvino"):
        compute = TARGETS[target].open(path, "float32")
        for images in program.inputs:
            with torch.inference_mode():
                assert relative_error(compute(images), model(images)) <= 1e-5, target


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_pixels_are_normalised_in_the_program(suffix: str, tmp_path: Path) -> None:
    report = vit_hub.export("vit-nano-digits", tmp_path / f"digits{suffix}", with_preprocess=True)
    model = vit_hub.load("vit-nano-digits")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    with torch.inference_mode():
        wanted = model(vit_hub.preprocess(model)(pixels))
    assert relative_error(run(report.path, torch.from_numpy(pixels)), wanted) <= 1e-5


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".onnx", {"dtype": "float16"}),
        (".onnx", {"int8": True}),
        (".pt2", {"dtype": "bfloat16"}),
        (".xml", {"dtype": "float16"}),
        (".xml", {"int8": True}),
    ],
)
def test_narrow_numbers_are_smaller_and_near(
    suffix: str, options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = vit_hub.export("vit-nano-digits", tmp_path / f"whole{suffix}")
    report = vit_hub.export("vit-nano-digits", tmp_path / f"narrow{suffix}", **options)
    assert report.size < 0.8 * whole.size
    assert 1e-5 < report.difference <= report.tolerance
    assert capfd.readouterr().out == ""  # where the command prints its result
    images = torch.rand(2, 1, 32, 32)
    assert run(report.path, images).dtype == torch.float32


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    names = list(vit_hub.class_names(vit_hub.load("vit-nano-digits")) or ())
    found = onnx.load(vit_hub.export("vit-nano-digits", tmp_path / "digits.onnx").path)
    facts = {item.key: json.loads(item.value) for item in found.metadata_props}
    extra = {"vit_hub": "", "labels": ""}
    torch.export.load(vit_hub.export("vit-nano-digits", tmp_path / "digits.pt2").path, extra_files=extra)
    core = CORE.read_model(vit_hub.export("vit-nano-digits", tmp_path / "digits.xml").path)
    for written in (
        facts,
        {key: json.loads(text) for key, text in extra.items()},
        {key: json.loads(core.get_rt_info(key).astype(str)) for key in extra},
    ):
        assert written["labels"] == names
        assert vit_hub.ViTConfig.from_dict(written["vit_hub"]["config"]) == vit_hub.get_config("vit-nano-digits")
        assert written["vit_hub"]["passport"]["weights_id"]


@pytest.mark.parametrize("suffix", [".pt2", ".xml"])
def test_another_result_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"model{suffix}").write_text("mine")
    model = random_model(KINDS["plain"])
    with pytest.raises(vit_hub.UnsupportedByFormatError, match="differ by"):
        vit_hub.export(model, tmp_path / f"model{suffix}", dtype="float16", tolerance=0)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_what_a_runtime_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(vit_hub.UnsupportedByFormatError, match="onnx cannot take this model"):
        vit_hub.export("vit-nano-digits", tmp_path / "model.onnx", dtype="bfloat16")
    with pytest.raises(vit_hub.ConfigError, match="must end with .onnx"):
        vit_hub.export("vit-nano-digits", tmp_path / "model.pt2", to="onnx")
    with pytest.raises(vit_hub.ConfigError, match="int8 is not for torch-export"):
        vit_hub.export("vit-nano-digits", tmp_path / "model.pt2", int8=True)
    assert not list(tmp_path.iterdir())


def test_a_model_in_memory_stays_as_it_is(tmp_path: Path) -> None:
    model = random_model(KINDS["plain"])
    model.head = nn.Linear(32, 3)
    images = random_images(model.config)
    with torch.inference_mode():
        before = model(images)
        found = run(vit_hub.export(model, tmp_path / "model.pt2", image_size=40).path, torch.randn(2, 3, 40, 40))
        assert found.shape == (2, 3)
        assert torch.equal(model(images), before)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "digits.pt2"
    done = CliRunner().invoke(main, ["export", "vit-nano-digits", str(path), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["path"], found["to"]) == (str(path), "torch-export")
    assert found["difference"] <= found["tolerance"] == 1e-4
    done = CliRunner().invoke(main, ["export", "vit-nano-digits", str(tmp_path / "digits.onxx")])
    assert done.exit_code == 1
    assert "must end with .onnx" in done.stderr


def test_weights_of_others_are_not_overwritten(tmp_path: Path) -> None:
    weights = tmp_path / "pytorch_model.bin"
    weights.write_bytes(b"weights")
    for overwrite in (False, True):
        with pytest.raises(vit_hub.VitHubError, match="exists"):
            vit_hub.export("vit-nano-digits", tmp_path / "pytorch_model.xml", overwrite=overwrite)
    assert weights.read_bytes() == b"weights"
