"""OpenVINO's files (``.xml`` with ``.bin``), and its runtime."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_hub.errors import ConfigError
from vit_hub.exporting.program import Options, Program, Run
from vit_hub.exporting.to_onnx import quiet
from vit_hub.exporting.to_onnx import write as write_onnx

__all__ = ["open_program", "write"]

# The runtime's own choice is bfloat16 on processors that have it.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def write(program: Program, path: Path, options: Options) -> None:
    """Write a program, with its facts as runtime information.

    Raises:
        ConfigError: an option that is not for this target, or a package that it needs is missing.
    """
    import openvino

    if options.opset:
        raise ConfigError("opset is not for openvino", hint="export to onnx")
    # Its reader of torch's programs does not know the arithmetic on sizes; its reader of ONNX does.
    onnx_file = path.with_suffix(".onnx")
    write_onnx(program, onnx_file, Options())
    made = openvino.convert_model(onnx_file)
    if options.int8:
        made = _compressed(made)
    for key, text in program.facts.items():
        made.set_rt_info(text, key)
    openvino.save_model(made, path, compress_to_fp16=program.dtype == "float16")
    del made  # its weights are views of the file
    for left in path.parent.glob(f"{onnx_file.name}*"):
        left.unlink()


def _compressed(model: Any) -> Any:
    """Return a model whose matrix products have weights of 8 bits."""
    with quiet():
        try:
            import nncf
        except ImportError as error:
            raise ConfigError("int8 for openvino needs nncf", hint="pip install nncf") from error
        # Its own import sets the level of its logger.
        nncf.set_log_level(logging.ERROR)
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


@functools.cache
def _core() -> Any:
    """Return the one core of the process, which stays until its end.

    A core gives the thread that makes it a stack for signals, and takes it away with itself. Cores that do not go in
    the opposite order of their making, or that go in another thread, leave the thread a stack that is no longer
    there: the next signal, a Ctrl-C or the end of a child, would end the process without a word.
    """
    import openvino

    return openvino.Core()


def open_program(path: Path, precision: str) -> Run:
    """Return a function that runs a file on the processor, in a dtype if it has instructions for that, else float32."""
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = _core().compile_model(path, "CPU", settings)

    def run(images: Tensor) -> Tensor:
        found = compiled(images.contiguous().numpy(), share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(found).clone()

    return run
