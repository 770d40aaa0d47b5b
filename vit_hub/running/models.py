"""A model that is ready to run, with its preprocessing and the identity of its weights."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vit_hub.conversion import open_checkpoint
from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError
from vit_hub.exporting.automatic import AUTO, fastest_runtime
from vit_hub.exporting.files import ExportedFile, exported_file
from vit_hub.exporting.program import Run
from vit_hub.exporting.runtimes import TORCH, in_runtime, tensors_sha256
from vit_hub.hub.cache.hashes import sha256_of
from vit_hub.loading import load
from vit_hub.model.device import usable_device
from vit_hub.model.vit import VisionTransformer
from vit_hub.preprocessing.of_checkpoint import settled
from vit_hub.preprocessing.spec import Preprocessing, per_channel
from vit_hub.running.computing import Computation, automatic_batch_size
from vit_hub.running.reading import NativeSize

__all__ = ["Runnable", "own_gpu", "runnable"]

# Arguments of load that say how a checkpoint is read; the others say what becomes of it.
_READING = ("format", "overrides", "prefix", "base", "head", "dequantize", "revision", "locked", "offline")


@dataclass(frozen=True)
class Runnable:
    """A model and all that decides about its outputs.

    Attributes:
        model: in evaluation mode, on its device.
        preprocessing: of its images.
        native: where each image keeps its aspect ratio.
        source: what the caller named; empty for a model in memory.
        files: that the weights were read from; empty for a model in memory.
        program: the exported file that computes in place of the model, which has no weights then.
    """

    model: VisionTransformer
    preprocessing: Preprocessing
    native: NativeSize | None
    source: str
    files: tuple[Path, ...]
    program: ExportedFile | None = None

    def computation(
        self,
        what: str = "embedding",
        *,
        normalize: bool = False,
        compile: str | None = None,
        batch_size: int | None = None,
        runtime: str | None = None,
    ) -> Computation:
        """Return what computes an output of the model, for :func:`vit_hub.running.engine.run`.

        Args:
            what: ``embedding``, ``logits``, ``projection``, ``tokens`` or ``block:N``.
            normalize: as for :class:`Computation`, like the next two.
            compile: likewise.
            batch_size: likewise.
            runtime: a name of :data:`vit_hub.exporting.runtimes.RUNTIMES`; ``auto``: the fastest; None: torch.

        Raises:
            ConfigError: the model has no such output, or the runtime cannot compute it.
        """
        size = batch_size or automatic_batch_size(self.model)
        chosen = self._runtime(runtime, what, compile, size)
        function: Run | None = None
        if self.program is not None:
            function = self.program.open()
        elif chosen != TORCH:
            function = in_runtime(self.model, chosen, what=what, stills=True)
        return Computation(
            self.model,
            what,
            normalize=normalize,
            compile=compile,
            batch_size=size,
            runtime=chosen,
            function=function,
        )

    def _runtime(self, runtime: str | None, what: str, compile: str | None, batch_size: int) -> str:
        """Return the runtime that is meant.

        Raises:
            ConfigError: it cannot do what is asked for besides.
        """
        if self.program is not None:
            _check_program(self.program, runtime, what, compile)
            return self.program.runtime
        if runtime in (None, TORCH) or (runtime == AUTO and self.native is not None):
            return TORCH
        if compile is not None:
            raise ConfigError(
                f"compile is for the runtime {TORCH}, not for {runtime}",
                hint="leave out one of them: runtime (--runtime) or compile (--compile)",
            )
        if self.native is not None:
            raise ConfigError(
                f"{runtime} takes images of one size, and max_patches lets each keep its own",
                hint=f"leave out max_patches (--max-patches), or take the runtime {TORCH}",
            )
        if runtime == AUTO:
            return fastest_runtime(self.model, what=what, batch_size=batch_size, stills=True)
        return str(runtime)

    def weights(self) -> dict[str, Any]:
        """Return the identity of the weights: ``id`` in the registry, ``sha256``, and ``files`` with theirs.

        The sha256 of several files is that of their hashes; that of a model in memory is of its tensors.
        """
        files = [{"file": file.name, "size": file.stat().st_size, "sha256": sha256_of(file)} for file in self.files]
        if not files:
            digest = tensors_sha256(self.model)
        elif len(files) == 1:
            digest = str(files[0]["sha256"])
        else:
            digest = hashlib.sha256("".join(sorted(str(file["sha256"]) for file in files)).encode()).hexdigest()
        return {"id": getattr(self.model.passport, "weights_id", "") or None, "sha256": digest, "files": files}


def runnable(
    source: str | os.PathLike[str] | Checkpoint | VisionTransformer,
    *,
    device: str | torch.device | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    max_patches: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Runnable:
    """Load a model, or take one that is loaded.

    Args:
        source: as for :func:`vit_hub.load`, or a model, or a file that :func:`vit_hub.export` wrote.
        device: where to compute; ``cuda`` is the GPU of this process under torchrun and SLURM.
        preprocessing: fields that differ from the checkpoint's own :class:`Preprocessing`, such as ``mean``.
        max_patches: let each image keep its aspect ratio, with so many patches at most.
        progress: show progress bars on a terminal.
        options: of :func:`vit_hub.load`; none for a model.

    Raises:
        ConfigError: the device cannot be used, a field of the preprocessing is wrong, or the model takes one size only.
        VitHubError: as for :func:`vit_hub.load`.
    """
    program = exported_file(source) if isinstance(source, (str, os.PathLike)) else None
    if program is not None:
        return _of_program(program, device, preprocessing or {}, max_patches, options)
    if isinstance(source, VisionTransformer):
        if options:
            raise ConfigError(f"{', '.join(options)}: options of loading, and the model is loaded already")
        model, name, files = source.eval(), "", tuple[Path, ...]()
        if device is not None:
            model = model.to(usable_device(device))
    else:
        if device is not None:
            device = usable_device(own_gpu(device))
        reading = {key: value for key, value in options.items() if key in _READING}
        rest = {key: value for key, value in options.items() if key not in _READING}
        ckpt = (
            source
            if isinstance(source, Checkpoint)
            else open_checkpoint(os.fspath(source), progress=progress, **reading)
        )
        files = ckpt.source.files
        if max_patches is not None:
            rest["dynamic"] = True
        model = load(ckpt, device=device, **rest)
        name = str(ckpt.path if isinstance(source, Checkpoint) else os.fspath(source))
    spec = _preprocessing(model, preprocessing or {})
    native = None
    if max_patches is not None:
        if not model.dynamic:
            raise ConfigError("max_patches: the model takes images of one size", hint="load it with dynamic=True")
        if max_patches < 1:
            raise ConfigError(f"max_patches must be a whole number >= 1, not {max_patches!r}")
        native = NativeSize(model.config.patch_size, max_patches)
    return Runnable(model, spec, native, name, tuple(files))


def _of_program(
    program: ExportedFile,
    device: str | torch.device | None,
    fields: Mapping[str, Any],
    max_patches: int | None,
    options: Mapping[str, Any],
) -> Runnable:
    """Return an exported file as a model: all of it but the weights.

    Raises:
        ConfigError: something is asked for that was decided when it was exported.
    """
    path = program.path
    if device is not None and torch.device(device).type != "cpu":
        raise ConfigError(f"{path}: is run on the processor, not on {device}", hint="give the model itself")
    given = {name: value for name, value in options.items() if value and name not in ("dtype", "image_size", "offline")}
    given = {name: value for name, value in given.items() if (name, value) != ("resize", "source")}
    if max_patches is not None:
        given["max_patches"] = max_patches
    if program.pixels is not None:
        given |= {name: fields[name] for name in ("mean", "std") if name in fields}
    if given:
        raise ConfigError(
            f"{path}: {next(iter(given))} was decided when this file was exported",
            hint="give the model itself, or export it again",
        )
    program = program.in_dtype(_dtype_name(options.get("dtype"))).in_size(options.get("image_size"))
    model = program.model()
    return Runnable(model, _preprocessing(model, fields), None, str(path), program.files, program)


def _check_program(program: ExportedFile, runtime: str | None, what: str, compile: str | None) -> None:
    """Refuse what an exported file cannot do.

    Raises:
        ConfigError: it is asked for another runtime or output.
    """
    if runtime not in (None, AUTO, program.runtime):
        raise ConfigError(
            f"{program.path}: runs in {program.runtime}, not in {runtime}",
            hint=f"leave out the runtime, or give the model itself, which {runtime} runs, too",
        )
    if compile is not None:
        raise ConfigError(f"{program.path}: is compiled by {program.runtime}", hint="leave out compile (--compile)")
    if what != program.what:
        raise ConfigError(
            f"{program.path}: gives {program.what}, not {what}",
            hint=f"export the model with what={what!r} (--what {what})"
            + (f", or ask for --what {program.what}" if program.what != "output" else ""),
        )


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def own_gpu(device: str | torch.device) -> str | torch.device:
    """Return the GPU of this process where several processes share a machine."""
    if str(device) != "cuda":
        return device
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return f"cuda:{int(local) % max(1, torch.cuda.device_count())}"


def _preprocessing(model: VisionTransformer, fields: Mapping[str, Any]) -> Preprocessing:
    """Return the checkpoint's own preprocessing, with what the caller states in place of it.

    Where nothing is recorded and the caller states mean or standard deviation, the share that a project's own models
    are cropped to is no guess that fits: the whole image is taken, unless the caller states that, too.
    """
    spec, recorded, said = settled(model.passport, model.input_size, model.config.in_chans)
    if not recorded and not {"mean", "std"}.isdisjoint(fields):
        spec = replace(spec, crop_pct=1.0)
        stated = _changed(spec, fields)
        said[-1] = (
            f"no preprocessing is recorded for these weights: with mean {stated.mean} and std {stated.std}, images are "
            f"resized to {stated.resize_to[0]}x{stated.resize_to[1]} by {stated.interpolation} interpolation"
        )
    for message in said:
        warnings.warn(message, stacklevel=4)
    return _changed(spec, fields)


def _changed(spec: Preprocessing, fields: Mapping[str, Any]) -> Preprocessing:
    found = dict(fields)
    for name in ("mean", "std"):
        if name in found:
            values = found[name]
            values = values[0] if isinstance(values, (list, tuple)) and len(values) == 1 else values
            found[name] = per_channel(name, values)[: len(spec.mean)]
    if found.get("interpolation") not in (None, "bilinear"):
        found.setdefault("antialias", True)  # only bilinear is there without
    try:
        return replace(spec, **found)
    except TypeError as error:
        known = ", ".join(spec.to_dict())
        raise ConfigError(f"unknown preprocessing field among {', '.join(found)}", hint=f"known: {known}") from error
