"""Archives of ``torch.export`` (``.pt2``)."""

from __future__ import annotations

from pathlib import Path
from typing import IO, BinaryIO, cast

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
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.export.save(record(program), cast(IO[bytes], sink), extra_files=dict(program.facts))
        if sink.error is not None:
            raise sink.error


class _Sink:
    """A file whose first error is raised afterwards: torch's writer ends the process on a full disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write, or do as if it had been written."""
        try:
            if self.error is None:
                self._file.write(content)
        except OSError as error:
            self.error = error
        return len(content)


def open_program(path: Path, precision: str) -> Run:
    """Return a function that runs a file, in the dtype that it was written in."""
    module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)  # type: ignore[no-any-return]

    return run
