"""ONNX files, and ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vit_hub.exporting.program import Options, Program, Run
from vit_hub.exporting.to_torch_export import record

__all__ = ["open_program", "quiet", "write"]

# Protocol buffers hold no more: weights go to a file beside the graph.
_LARGEST_FILE = (2 << 30) - (16 << 20)


def write(program: Program, path: Path, options: Options) -> None:
    """Write a program, with its facts as properties of the model; checked by ``onnx.checker``.

    Weights of more than 2 GB go into ``*.onnx.data`` beside it.
    """
    import onnx

    with quiet():
        made = torch.onnx.export(
            record(program),
            dynamo=True,
            verbose=False,
            opset_version=options.opset,
            input_names=["images"],
            output_names=["output"],
        )
    assert made is not None
    for key, text in program.facts.items():
        made.model.metadata_props[key] = text
    large = sum(value.nbytes for value in program.module.state_dict().values()) > _LARGEST_FILE
    whole = path.with_suffix(".whole.onnx") if options.int8 else path
    made.save(whole, external_data=large)
    if options.int8:
        _quantize(whole, path)
    onnx.checker.check_model(path)


def _quantize(source: Path, path: Path) -> None:
    """Write a file whose matrix products have weights of 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            source, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
        )
    for left in source.parent.glob(f"{source.name}*"):
        left.unlink()


def open_program(path: Path, precision: str) -> Run:
    """Return a function that runs a file on the processor, in the dtype that it was written in."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        (found,) = session.run(None, {name: images.contiguous().numpy()})
        return torch.from_numpy(found)

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress and the warnings of their own code to themselves."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
