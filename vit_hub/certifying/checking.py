"""``vit_hub.check``: make a certificate, or repeat one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_hub.benching import PEERS, machine
from vit_hub.certifying.certificate import Certificate, changes, read_record, write_record
from vit_hub.certifying.numbers import error_findings, exact, golden_finding, probe
from vit_hub.certifying.origin import config_findings
from vit_hub.conversion import open_checkpoint
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.save import snapshot
from vit_hub.errors import ConfigError
from vit_hub.exporting.automatic import AUTO
from vit_hub.exporting.runtimes import TORCH, check_runtime
from vit_hub.hub.cache.hashes import sha256_of
from vit_hub.loading import load
from vit_hub.model.device import usable_device
from vit_hub.model.vit import VisionTransformer
from vit_hub.untrusted import quoted, usable_path

__all__ = ["check"]


def check(
    source: str | Path | Checkpoint | VisionTransformer | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    compile: str | None = None,
    runtime: str = TORCH,
    images: str | os.PathLike[str] | None = None,
    limit: int = 32,
    against: Sequence[str] = PEERS,
    certificate: str | Path | None = None,
    replay: str | Path | None = None,
    progress: bool = False,
    **opening: Any,
) -> Certificate:
    """Certify what a model computes here: its numbers, its peers', its authors' golden cases, and its config's origin.

    The model is computed in float64 on the CPU, which takes 8 bytes of memory a parameter. These exact outputs are what
    all others are compared with.

    Args:
        source: as for :func:`vit_hub.load`, or a model; None: what the certificate of ``replay`` names.
        device: to compute on; None: that of ``replay``, else the CPU.
        dtype: to compute in: ``float32``, ``float16``, ``bfloat16``, or ``auto`` for the stored one.
        compile: a mode of torch.compile; None: eager.
        runtime: ``torch``, ``onnxruntime``, ``openvino``, or ``auto`` for the fastest of them, which is recorded.
        images: to compute besides the generated ones: a folder, file or pattern.
        limit: at most so many of them.
        against: peers to compare with: ``timm``, ``transformers``.
        certificate: file to keep the record in.
        replay: a certificate to repeat, with its own settings but for the device; ``changes`` says what differs.
        progress: show progress bars on a terminal.
        opening: of :func:`vit_hub.open_checkpoint`, such as ``overrides``.

    Raises:
        ConfigError: a setting does not fit, or the device cannot be used.
        CheckpointError: ``replay`` is no certificate.
        VitHubError: the source or the images cannot be read.
    """
    settings: dict[str, Any] = {
        "device": str(device or "cpu"),
        "dtype": dtype,
        "compile": compile,
        "runtime": runtime,
        "images": None if images is None else os.fspath(images),
        "limit": limit,
        "against": list(against),
        "opening": {
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in opening.items()
            if value
        },
    }
    record = read_record(usable_path(replay)) if replay is not None else None
    if record is not None:
        source = record["source"] if source is None else source
        settings = {**record["settings"], **({} if device is None else {"device": str(device)})}
    if source is None:
        raise ConfigError("nothing to check", hint="give a model, or replay= (--replay) with a certificate")
    _check_settings(settings)
    written = None if certificate is None else usable_path(certificate)
    ckpt = _opened(source, settings["opening"], progress)
    found = _certificate(ckpt, source, settings)
    if record is not None:
        found = dataclasses.replace(found, changes=changes(record, found))
    if written is not None:
        write_record(written, found)
    return found


def _check_settings(settings: dict[str, Any]) -> None:
    """Refuse what cannot be run, before anything is read.

    Raises:
        ConfigError: a setting does not fit.
    """
    wrong = [name for name in settings["against"] if name not in PEERS]
    if wrong:
        raise ConfigError(f"against={quoted(wrong[0])} is not known", hint=f"known: {', '.join(PEERS)}")
    device = usable_device(settings["device"])
    if settings["runtime"] != AUTO:
        check_runtime(settings["runtime"], "float32" if settings["dtype"] == "auto" else settings["dtype"], device)
    if settings["runtime"] != TORCH and settings["compile"] is not None:
        raise ConfigError(
            f"{settings['runtime']} compiles by itself", hint="leave out compile= (--compile), or the runtime"
        )


def _opened(source: str | Path | Checkpoint | VisionTransformer, opening: dict[str, Any], progress: bool) -> Checkpoint:
    if isinstance(source, VisionTransformer):
        return snapshot(source)
    return open_checkpoint(source, **opening, progress=progress)


def _certificate(
    ckpt: Checkpoint, source: str | Path | Checkpoint | VisionTransformer, settings: dict[str, Any]
) -> Certificate:
    device = usable_device(settings["device"])
    findings = config_findings(ckpt, settings["opening"].get("overrides") or {})
    reference = load(ckpt, dtype=torch.float64)
    images = probe(ckpt, reference, settings["images"], settings["limit"])
    wanted = exact(reference, images.images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the reference was loaded
        errors, dtype, runtime = error_findings(
            ckpt,
            reference,
            wanted,
            images,
            device=device,
            dtype=settings["dtype"],
            compile=settings["compile"],
            runtime=settings["runtime"],
            against=settings["against"],
        )
    kind = (ckpt.passport.format if ckpt.format == "canonical" else ckpt.format).partition("-")[0]
    return Certificate(
        source=str(source) if isinstance(source, (str, Path)) else str(ckpt.path),
        settings={**settings, "runtime": runtime},
        machine=machine(device),
        weights=_weights(ckpt),
        config=_plain(ckpt.config.to_dict()),
        reference=wanted.record(),
        findings=[*findings, *errors, golden_finding(kind, device, dtype)],
    )


def _weights(ckpt: Checkpoint) -> dict[str, Any]:
    """Return the sha256 of the values under canonical names, which no change of format changes, and of the files."""
    digest = hashlib.sha256()
    for name, tensor in sorted(ckpt.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
    files = [{"file": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)} for path in ckpt.source.files]
    return {"id": ckpt.passport.weights_id or None, "sha256": digest.hexdigest(), "files": files}


def _plain(value: Any) -> Any:
    """Plain data with lists in place of tuples, as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
