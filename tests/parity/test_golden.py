"""The recorded outputs of other projects' own code: the same numbers, the same bytes back, through every format."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from golden_cases import CASES, OUTPUTS, Case, native_tensors

import vit_hub
from vit_hub.converters import format_names
from vit_hub.errors import UnsupportedByFormatError

FORMATS = [name for name in format_names() if "-" not in name]
# How a table would be resized, which the target's own project does in its own way.
LATER = ("resize", "resize_by_count")
FIELDS = {field.name for field in dataclasses.fields(vit_hub.ViTConfig)}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*default .* is used", "ignore:.*have the same tensor names", "ignore:.*class names"
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def errors(model: vit_hub.VisionTransformer, case: Case) -> dict[str, float]:
    """Recorded output -> largest absolute error of the model's own."""
    images = case.images()
    with torch.inference_mode():
        found = {name: OUTPUTS[name](model, images) for name in case.outputs()}
    assert {name: value.shape for name, value in found.items()} == {k: v.shape for k, v in case.outputs().items()}
    return {name: float((found[name] - wanted).abs().max()) for name, wanted in case.outputs().items()}


def test_there_are_cases_of_every_project() -> None:
    assert {case.name.split("_")[0] for case in CASES} >= {
        "vitjax",
        "bv",
        "timm",
        "hf",
        "fb",
        "openai",
        "openclip",
        "torchvision",
        "hfflax",
        "hftf",
        "kerashub",
    }
    assert all(case.meta["outputs"] for case in CASES)


@every_case
def test_outputs_are_those_of_the_original_code(case: Case) -> None:
    found = errors(vit_hub.load(case.checkpoint, overrides=case.overrides), case)
    assert max(found.values()) <= 2e-5, found


@every_case
def test_every_tensor_comes_back_unchanged(case: Case, tmp_path: Path) -> None:
    source, middle = case.checkpoint, tmp_path / "canonical.safetensors"
    spelling = vit_hub.open_checkpoint(source, overrides=case.overrides).format
    report = vit_hub.convert(source, middle, overrides=case.overrides)
    back = tmp_path / ("folder" if source.is_dir() else f"back{source.suffix}")
    assert vit_hub.convert(middle, back, to=spelling).format == spelling
    wanted = {name: value for name, value in native_tensors(source).items() if name not in report.dropped}
    assert native_tensors(back) == wanted


@every_case
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_that_can_express_it_gives_the_same_outputs(case: Case, to: str, tmp_path: Path) -> None:
    native = vit_hub.open_checkpoint(case.checkpoint, overrides=case.overrides)
    try:
        report = vit_hub.convert(case.checkpoint, tmp_path / "out", to=to, overrides=case.overrides)
    except UnsupportedByFormatError as error:
        assert to not in ("canonical", native.format.split("-")[0])
        assert any(f" {field}: " in error.message for field in FIELDS), error
        assert "canonical" in error.hint
        assert not (tmp_path / "out").exists()
        return
    options = {
        field: getattr(report.config, field)
        for field in ("num_heads", "image_size")
        if any(field in message for message in report.warnings)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Some projects have the same tensor names; what was written is still read as the right one.
        warnings.filterwarnings("ignore", ".*have the same tensor names")
        # The recorded models of mmpretrain name fewer classes than they have.
        warnings.filterwarnings("ignore", ".*class names in classes are ignored")
        model = vit_hub.load(report.path, overrides=options)
    if not any(message.startswith("irreversible") for message in report.warnings):
        assert report.config == native.config
    assert model.config == report.config.replace(**{name: getattr(model.config, name) for name in LATER})
    found = errors(model, case)
    if any("all tokens are normed" in message for message in report.warnings):
        found = {name: error for name, error in found.items() if not name.startswith("tokens")}
    assert max(found.values()) <= 2e-5, found
