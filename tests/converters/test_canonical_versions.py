"""Canonical files that earlier versions wrote still load, to the same numbers, and still find their way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import CASES, OUTPUTS, native_tensors

import vit_hub

FILES = sorted((Path(__file__).parent / "canonical_0_1_0").glob("*.safetensors"))
GOLDEN = {case.name: case for case in CASES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_0_1_0_gives_the_recorded_outputs(file: Path) -> None:
    case = GOLDEN[file.stem]
    model = vit_hub.load(file)
    assert model.passport.converter == "0.1.0"
    with torch.inference_mode():
        for name, expected in case.outputs().items():
            assert torch.allclose(OUTPUTS[name](model, case.images()), expected, rtol=0, atol=2e-5), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_0_1_0_is_written_back_byte_for_byte(file: Path, tmp_path: Path) -> None:
    case = GOLDEN[file.stem]
    target = tmp_path / case.checkpoint.name
    report = vit_hub.convert(file, target, to=vit_hub.load(file).passport.format)
    assert native_tensors(report.path) == native_tensors(case.checkpoint)
