"""Models in other runtimes: exported once into the cache, and run from there."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_hub.converters.containers import atomic_path
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.exporting.export import TARGETS, TOLERANCES, check_packages, write_program
from vit_hub.exporting.program import Options, Run, make_program
from vit_hub.hub.cache.hashes import sha256_of
from vit_hub.hub.cache.paths import PROGRAM_RECORD, file_lock, is_trusted, program_folder
from vit_hub.model.outputs import output_function
from vit_hub.model.vit import VisionTransformer
from vit_hub.untrusted import read_json
from vit_hub.version import installed_version

__all__ = ["RUNTIMES", "TORCH", "Runtime", "check_runtime", "in_runtime", "program_settings", "tensors_sha256"]

TORCH = "torch"


@dataclass(frozen=True)
class Runtime:
    """One way to run a model.

    Attributes:
        target: of :data:`vit_hub.exporting.export.TARGETS`, that its programs are; None: the model itself is run.
        dtypes: that it computes in on the processor.
        packages: distributions whose versions decide about its programs.
    """

    target: str | None
    dtypes: tuple[str, ...]
    packages: tuple[str, ...] = field(default=())


RUNTIMES: dict[str, Runtime] = {
    TORCH: Runtime(None, ("float32", "bfloat16", "float16"), ("torch",)),
    "onnxruntime": Runtime("onnx", ("float32",), ("torch", "onnx", "onnxscript", "onnxruntime")),
    "openvino": Runtime("openvino", ("float32", "bfloat16"), ("torch", "onnx", "onnxscript", "openvino")),
}


def in_runtime(model: VisionTransformer, runtime: str, *, what: str = "output", stills: bool = False) -> Run:
    """Return a function that computes an output of a model in a runtime: float32 [N, C, h, w] -> float32 [N, ...].

    It takes videos [N, T, C, h, w] where the model does, or with ``stills`` images there, too.

    The program is exported into the cache when it is first needed, tried there, and then used by every later call. It
    computes with as many threads as torch does.

    Args:
        model: in evaluation mode, which stays as it is; its dtype and image size are the program's.
        runtime: a name of :data:`RUNTIMES`.
        what: ``output`` (what the model returns), or another one of
            :func:`vit_hub.model.outputs.output_function`.
        stills: take images, also where the model takes videos, too.

    Raises:
        ConfigError: the runtime cannot do this, or is not installed.
        UnsupportedByFormatError: the runtime cannot take the program or computes something else.
        VitHubError: the cache cannot be written.
    """
    weight = model.patch_embed.proj.weight
    dtype = str(weight.dtype).removeprefix("torch.")
    check_runtime(runtime, dtype, weight.device)
    output_function(model, what)  # which refuses what the model does not have
    target = RUNTIMES[runtime].target
    if target is None:
        return _in_torch(model, what)
    settings = program_settings(model, (runtime,), what, stills=stills)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path = program_folder(key) / f"program{TARGETS[target].suffix}"
    if not _is_whole(path, settings):  # a cache that is filled may be read-only
        with file_lock(path):
            if not _is_whole(path, settings):
                _make(path, model, target, settings)
    return TARGETS[target].open(path, dtype)


def check_runtime(runtime: str, dtype: str, device: torch.device | str = "cpu") -> None:
    """Refuse what a runtime cannot do.

    Raises:
        ConfigError: it is not known, not installed, does not compute in this dtype, or not on this device.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"there is no runtime {runtime!r}", hint=f"one of {', '.join(RUNTIMES)}")
    facts = RUNTIMES[runtime]
    if facts.target is None:
        return
    if torch.device(device).type != "cpu":
        raise ConfigError(
            f"{runtime} computes on the processor, not on {device}",
            hint="leave out the device, or use the runtime torch: runtime='torch', --runtime torch",
        )
    if dtype not in facts.dtypes:
        able = ", ".join(name for name, other in RUNTIMES.items() if dtype in other.dtypes)
        raise ConfigError(
            f"{runtime} does not compute in {dtype} on processors",
            hint=f"take the dtype {' or '.join(facts.dtypes)}, or the runtime {able}",
        )
    check_packages(facts.target)


def tensors_sha256(model: VisionTransformer) -> str:
    """Return the sha256 of a model's tensors: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else b"")
    return digest.hexdigest()


def program_settings(
    model: VisionTransformer, runtimes: Sequence[str], what: str, *, stills: bool = False
) -> dict[str, Any]:
    """Return all that decides about a model's programs, JSON-ready; arguments as for :func:`in_runtime`."""
    packages = {package for runtime in runtimes for package in RUNTIMES[runtime].packages}
    return {
        "runtimes": list(runtimes),
        "what": what,
        "stills": stills and model.config.video is not None,
        "dtype": str(model.patch_embed.proj.weight.dtype).removeprefix("torch."),
        "weights": tensors_sha256(model),
        "config": model.config.to_dict(),
        "image_size": list(model.input_size),
        "padding": model.pad,
        "resize": model.resize,
        "versions": {name: installed_version(name) for name in ("vit-hub", *sorted(packages))},
    }


def _is_whole(path: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a program is there, made by whom the cache trusts, with these settings and unchanged since."""
    try:
        record = read_json(path.parent / PROGRAM_RECORD)
        files = {path.parent / name: sha256 for name, sha256 in record["files"].items()}
        return bool(
            record["settings"] == settings
            and path in files
            and all(map(is_trusted, (path.parent / PROGRAM_RECORD, *files)))
            and all(sha256_of(file) == sha256 for file, sha256 in files.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make(path: Path, model: VisionTransformer, target: str, settings: Mapping[str, Any]) -> None:
    """Write a program, and when it is there the record that vouches for it."""
    what, dtype = settings["what"], settings["dtype"]
    reference = copy.deepcopy(model).to("cpu", torch.float32).eval()
    program = make_program(reference, reference, what=what, stills=settings["stills"])
    try:
        difference, _ = write_program(program, path, target, Options(), TOLERANCES[dtype], dtype)
    except UnsupportedByFormatError as error:
        for file in path.parent.glob("program.*"):
            file.unlink()
        raise UnsupportedByFormatError(
            f"{target} cannot stand in for this model: {error.message}",
            hint=f"take another runtime: runtime={TORCH!r}, --runtime {TORCH}",
        ) from error
    files = {file.name: sha256_of(file) for file in path.parent.glob("program.*") if file.name != PROGRAM_RECORD}
    name = getattr(model.passport, "weights_id", "")
    record = {"model": name, "settings": settings, "difference": difference, "files": files}
    with atomic_path(path.parent / PROGRAM_RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _in_torch(model: VisionTransformer, what: str) -> Run:
    function = output_function(model, what)
    weight = model.patch_embed.proj.weight

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return function(images.to(weight.device, weight.dtype)).float()  # type: ignore[no-any-return]

    return run
