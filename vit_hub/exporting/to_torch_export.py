"""Archives of ``torch.export`` (``.pt2``)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vit_hub.errors import ConfigError
from vit_hub.exporting.program import Options, Program, Run

__all__ = ["open_program", "record", "write"]


def record(program: Program) -> torch.export.ExportedProgram:
    """Return the program that ``torch.export`` records."""
    with torch.no_grad():
        return torch.export.export(program.module, (program.example,), dynamic_shapes=(program.shapes,), strict=False)


def write(program: Program, path: Path, options: Options) -> None:
    """Write a program, with its facts as extra files.

    Raises:
        ConfigError: an option that is not for this target.
    """
    if options.int8 or options.opset:
        raise ConfigError(f"{'int8' if options.int8 else 'opset'} is not for torch-export", hint="export to onnx")
    torch.export.save(record(program), path, extra_files=dict(program.facts))


def open_program(path: Path, precision: str) -> Run:
    """Return a function that runs a file, in the dtype that it was written in."""
    module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)  # type: ignore[no-any-return]

    return run
