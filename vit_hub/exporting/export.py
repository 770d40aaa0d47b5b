"""Exporting: write a program, run it, compare it with the model, and only then keep it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_hub.converters.containers.destination import refuse_existing
from vit_hub.converters.containers.together import files_together
from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError, UnsupportedByFormatError, VitHubError, first_line
from vit_hub.exporting import to_onnx, to_openvino, to_torch_export
from vit_hub.exporting.program import Options, Program, Run, make_program
from vit_hub.loading import load
from vit_hub.model.config import ViTConfig
from vit_hub.model.outputs import output_name
from vit_hub.model.vit import VisionTransformer
from vit_hub.untrusted import quoted, usable_path

__all__ = [
    "TARGETS",
    "TOLERANCES",
    "ExportReport",
    "Target",
    "check_packages",
    "export",
    "relative_difference",
    "write_program",
]


@dataclass(frozen=True)
class Target:
    """A kind of file to export to.

    Attributes:
        suffix: of its files.
        beside: name of the file with the weights, where they may be in one of their own.
        write: writes a program.
        open: opens a file and returns what runs it, in a dtype where the runtime chooses it.
        packages: modules that both need.
        extra: of vit-hub, that installs them.
    """

    suffix: str
    write: Callable[[Program, Path, Options], None]
    open: Callable[[Path, str], Run]
    packages: tuple[str, ...] = ()
    extra: str = ""
    beside: str = ""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return a file of this kind, and the one beside it where its weights may be."""
        name = self.beside.format(name=path.name, stem=path.stem)
        return (path, path.with_name(name)) if name else (path,)


_ONNX = ("onnx", "onnxscript", "onnxruntime")
TARGETS: dict[str, Target] = {
    "onnx": Target(".onnx", to_onnx.write, to_onnx.open_program, _ONNX, "onnx", "{name}.data"),
    "torch-export": Target(".pt2", to_torch_export.write, to_torch_export.open_program),
    "openvino": Target(
        ".xml",
        to_openvino.write,
        to_openvino.open_program,
        ("openvino", "onnx", "onnxscript"),
        "openvino",
        "{stem}.bin",
    ),
}
# Largest differences, relative to the largest value of an output, that a file is kept with. Half precision rounds each
# of hundreds of sums, to 11 and 8 bits; the error of 8-bit weights depends on the model.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 2e-1}


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Outcome of an export.

    Attributes:
        path: the file.
        size: bytes of the file, and of the one beside it with its weights.
        to: the target.
        what: its output.
        config: of the model.
        dtype: that it computes in.
        difference: largest difference from the model in float32, relative to the largest value of the output.
        compared: shapes of the images that it was run on.
        tolerance: largest difference that was allowed.
        warnings: of what the user should know.
    """

    path: Path
    size: int
    to: str
    what: str
    config: ViTConfig
    dtype: str
    difference: float
    compared: list[tuple[int, ...]]
    tolerance: float
    warnings: list[str] = field(default_factory=list)


def export(
    source: str | Path | Checkpoint | VisionTransformer,
    destination: str | Path,
    *,
    to: str | None = None,
    what: str = "output",
    image_size: int | tuple[int, int] | None = None,
    dynamic: bool = False,
    dtype: str = "float32",
    int8: bool = False,
    with_preprocess: bool = False,
    opset: int | None = None,
    tolerance: float | None = None,
    overwrite: bool = True,
    **opening: Any,
) -> ExportReport:
    """Write a model as a program for another runtime, run it there, and keep it if its outputs are the model's.

    The first input is ``images``, float32 [batch, C, h, w] as :func:`vit_hub.preprocess` gives them, with any batch
    size; the first output is what ``model(images)`` returns, or another one of its outputs, in float32. The file's
    metadata hold the config, the passport and the class names.

    Args:
        source: as for :func:`vit_hub.load`, or a model, which stays as it is.
        destination: the file to write: ``*.onnx``, ``*.pt2`` or ``*.xml`` (with ``*.bin`` beside it).
        to: ``onnx``, ``torch-export`` or ``openvino``; None: what the suffix says.
        what: ``output``: what the model returns; or ``embedding``, ``logits``, ``projection``, ``tokens``, ``block:N``,
            as for :func:`vit_hub.embed`.
        image_size: another (height, width) in pixels, as for :func:`vit_hub.load`.
        dynamic: images of any size in whole patches, in one program.
        dtype: to compute in: ``float32``, ``float16`` or ``bfloat16``; input and output stay float32.
        int8: store matrices with 8 bits, quantized by the runtime's own tool.
        with_preprocess: take pixels, uint8 [batch, h, w, C] of the model's size, and normalise them in the program.
        opset: version of ONNX's operators.
        tolerance: largest difference allowed, relative to the largest value of the output; None: that of the dtype in
            :data:`TOLERANCES`.
        overwrite: replace a file that exists.
        opening: further arguments of :func:`vit_hub.load`, such as ``overrides``.

    Raises:
        ConfigError: an option does not fit the target, or a package is missing.
        UnsupportedByFormatError: the runtime cannot take the program or computes something else; nothing is written.
        VitHubError: the source cannot be read, or the file cannot be written.
    """
    path = usable_path(destination)
    name = _target(path, to)
    refuse_existing(TARGETS[name].files(path), overwrite=overwrite)
    kind = "int8" if int8 else dtype
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"dtype {dtype!r} cannot be exported", hint="float32, float16 or bfloat16")
    check_packages(name)
    allowed = TOLERANCES[kind] if tolerance is None else tolerance
    said: list[str] = []
    reference = _reference(source, image_size, opening, said)
    model = copy.deepcopy(reference).to(getattr(torch, dtype))
    program = make_program(model, reference, what=what, dynamic=dynamic, with_preprocess=with_preprocess, stored=kind)
    difference, size = write_program(program, path, name, Options(int8=int8, opset=opset), allowed)
    return ExportReport(
        path=path,
        size=size,
        to=name,
        what=output_name(reference) if what == "output" else what,
        config=model.config,
        dtype=kind,
        difference=difference,
        compared=[tuple(images.shape) for images in program.inputs],
        tolerance=allowed,
        warnings=said,
    )


def check_packages(name: str) -> None:
    """Refuse a target whose packages are not installed.

    Raises:
        ConfigError: they are missing.
    """
    target = TARGETS[name]
    missing = [package for package in target.packages if find_spec(package) is None]
    if missing:
        raise ConfigError(f"{name} needs {', '.join(missing)}", hint=f"pip install 'vit-hub[{target.extra}]'")


def _target(path: Path, to: str | None) -> str:
    """Return the name of the target; the suffix has to be its own, since runtimes go by it."""
    by_suffix = {target.suffix: name for name, target in TARGETS.items()}
    if to is not None and to not in TARGETS:
        raise ConfigError(f"to={quoted(to)} is not known", hint=f"known: {', '.join(TARGETS)}")
    found = by_suffix.get(path.suffix)
    if found is None or to not in (None, found):
        wanted = [TARGETS[to].suffix] if to else list(by_suffix)
        raise ConfigError(
            f"{path}: the name of the file must end with {' or '.join(wanted)}", hint=f"such as {path.stem}{wanted[0]}"
        )
    return found


def _reference(
    source: str | Path | Checkpoint | VisionTransformer,
    image_size: int | tuple[int, int] | None,
    opening: Mapping[str, Any],
    said: list[str],
) -> VisionTransformer:
    """Return the model in float32 on the CPU; what loading warns of is said."""
    if isinstance(source, VisionTransformer):
        if opening:
            raise ConfigError(f"{next(iter(opening))}= is for loading a model, and this one is loaded")
        model = copy.deepcopy(source).to("cpu", torch.float32).eval()
        return model if image_size is None else model.set_image_size(image_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(source, image_size=image_size, **opening)
    said += [str(warning.message) for warning in caught]
    return model


def write_program(
    program: Program, path: Path, name: str, options: Options, tolerance: float, precision: str = "float32"
) -> tuple[float, int]:
    """Write a program for a target; it appears when it was run there and its outputs are the reference's.

    Args:
        program: to write.
        path: the file; others may come beside it.
        name: of the target.
        options: how it is written.
        tolerance: largest difference allowed, relative to the largest value of the output.
        precision: dtype that it is run in, for runtimes that choose it.

    Returns:
        The largest difference, and the bytes that were written.

    Raises:
        UnsupportedByFormatError: the runtime cannot take the program or computes something else; nothing is written.
        VitHubError: the file cannot be written.
    """
    beside = TARGETS[name].files(path)[1:]
    with files_together(path.parent, path.name, obsolete=[file.name for file in beside]) as folder:
        made = folder / path.name
        difference = _written(program, made, name, options, precision)
        if not difference <= tolerance:
            raise UnsupportedByFormatError(
                f"{path}: the outputs of {name} differ by {difference:.1e} of the largest value, "
                f"more than {tolerance:.1e}",
                hint="nothing was written; tolerance= (--tolerance) sets another limit",
            )
        size = sum(file.stat().st_size for file in folder.iterdir())
    return difference, size


def _written(program: Program, path: Path, name: str, options: Options, precision: str) -> float:
    """Write a program and return how far its outputs are from the reference's.

    Raises:
        UnsupportedByFormatError: the runtime refuses the program.
    """
    target = TARGETS[name]
    try:
        target.write(program, path, options)
        run = target.open(path, precision)
        return max(relative_difference(run(images), _expected(program, images)) for images in program.inputs)
    except VitHubError:
        raise
    except Exception as error:  # of exporters and runtimes, which raise anything at all
        raise UnsupportedByFormatError(
            f"{name} cannot take this model: {type(error).__name__}: {first_line(error)}",
            hint="nothing was written; another dtype or target may do, and --debug shows all of the error",
        ) from error


def _expected(program: Program, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return program.reference(images)  # type: ignore[no-any-return]


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinity if shapes differ or values are lost."""
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    if not wanted.numel():
        return 0.0
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-30))
