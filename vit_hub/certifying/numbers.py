"""Findings about numbers: what is run here, and the peers, beside exact values computed in float64 on the CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vit_hub.benching import forward_pass, peer_modules
from vit_hub.certifying.certificate import Finding
from vit_hub.certifying.golden import golden_cases, golden_error
from vit_hub.converters.compare import TOLERANCE
from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError, VitHubError, first_line
from vit_hub.exporting.automatic import AUTO, fastest_runtime
from vit_hub.exporting.export import TOLERANCES as OF_PROGRAMS
from vit_hub.exporting.export import relative_difference
from vit_hub.exporting.runtimes import TORCH, check_runtime, in_runtime
from vit_hub.loading import load
from vit_hub.model.outputs import output_function
from vit_hub.model.vit import VisionTransformer
from vit_hub.preprocessing.of_checkpoint import settled
from vit_hub.running.reading import Reader
from vit_hub.running.sources import Sources

__all__ = ["PEER_TOLERANCE", "TOLERANCES", "Exact", "Probe", "error_findings", "exact", "golden_finding", "probe"]

# Largest errors that pass, relative to the largest value of an output. Two runs in float32 agree to 2e-5, whatever
# order they sum in; half precision rounds each of hundreds of sums to 11 and 8 bits.
TOLERANCES = {**OF_PROGRAMS, "float64": 1e-9, "float32": TOLERANCE}
# Peers compute angles of rotary positions and resized tables in float32, and all else exactly.
PEER_TOLERANCE = 1e-6

_GENERATED = 2  # images
_BATCH = 8
_KEPT = 8  # values of each exact output in the record


@dataclass(frozen=True)
class Probe:
    """Images to compute.

    Attributes:
        images: float32 [N, C, h, w], preprocessed: first the generated ones, the same on every machine.
        given: how many of them, the last, are the caller's.
    """

    images: Tensor
    given: int = 0


def probe(ckpt: Checkpoint, model: VisionTransformer, images: str | os.PathLike[str] | None, limit: int) -> Probe:
    """Return generated images of a model's size, and the caller's after them.

    Args:
        ckpt: the checkpoint, which says how images are preprocessed.
        model: the model.
        images: a folder, file or pattern, as for :func:`vit_hub.embed`; None: no others.
        limit: at most so many of them.

    Raises:
        VitHubError: none of the images can be read.
    """
    config = model.config
    # Whole numbers: the floating-point generators differ from machine to machine.
    pixels = np.random.default_rng(0).integers(0, 256, (_GENERATED, *config.input_shape(model.input_size)))
    generated = torch.from_numpy(pixels).float() / 127.5 - 1
    if images is None:
        return Probe(generated)
    if config.video is not None:
        raise ConfigError(
            "images= (--images): the model takes videos", hint="leave it out: generated videos are computed"
        )
    spec, _, said = settled(ckpt.passport, model.input_size, config.in_chans)
    for message in said:
        warnings.warn(message, stacklevel=3)
    items = [item for item, _ in zip(Sources.of([images]).items(), range(limit), strict=False)]
    reader = Reader(spec)
    batch = reader.batch(items, reader.read(items))
    unread = [f"{items[index].name}: {error}" for index, error in batch.errors.items()]
    if not len(batch.images):
        why = f": {unread[0]}" if unread else ""
        raise VitHubError(f"{os.fspath(images)}: no image can be read{why}")
    for error in unread:
        warnings.warn(f"left out: {error}", stacklevel=3)
    return Probe(torch.cat([generated, torch.as_tensor(batch.images)]), len(batch.images))


@dataclass(frozen=True)
class Exact:
    """Exact outputs by name: ``output`` (what the model returns), ``embedding`` and ``tokens`` where there are such."""

    outputs: dict[str, Tensor]

    def record(self) -> dict[str, list[float]]:
        """Return the root mean square of each output for the generated images, and a few of its values."""
        found = {}
        for name, values in self.outputs.items():
            flat = values[:_GENERATED].flatten()
            chosen = flat[torch.linspace(0, len(flat) - 1, min(_KEPT, len(flat))).long()]
            found[name] = [float(flat.square().mean().sqrt()), *chosen.tolist()]
        return found


def exact(model: VisionTransformer, images: Tensor) -> Exact:
    """Compute all outputs of a model in float64 on the CPU."""
    names = ["output", *(["embedding"] if model.config.pool != "none" else []), "tokens"]
    return Exact({name: _computed(output_function(model, name), images.double()) for name in names})


def _computed(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply a function to images in batches; float64 on the CPU."""
    with torch.inference_mode():
        return torch.cat([run(images[i : i + _BATCH]).cpu().double() for i in range(0, len(images), _BATCH)])


def error_findings(
    ckpt: Checkpoint,
    reference: VisionTransformer,
    wanted: Exact,
    images: Probe,
    *,
    device: torch.device,
    dtype: str | torch.dtype,
    compile: str | None,
    runtime: str,
    against: Sequence[str],
) -> tuple[list[Finding], str, str]:
    """Compare what is run here, and the peers, with exact outputs.

    Returns:
        The findings, the dtype that was computed in, and the runtime.
    """
    model = load(ckpt, device=device, dtype=dtype)
    name = str(model.patch_embed.proj.weight.dtype).removeprefix("torch.")
    if runtime == AUTO:
        runtime = fastest_runtime(model, batch_size=_BATCH)
    check_runtime(runtime, name, device)
    tolerance = (TOLERANCES if runtime == TORCH else OF_PROGRAMS)[name]
    findings = []
    for what, values in wanted.outputs.items():
        found = _computed(_runner(model, what, compile, runtime), images.images)
        findings.append(_error(what, found, values, tolerance, images.given if what == "output" else 0, model))
    findings += _peer_findings(reference, model, wanted, images.images, against)
    return findings, name, runtime


def _runner(model: VisionTransformer, what: str, compile: str | None, runtime: str) -> Callable[[Tensor], Tensor]:
    if runtime != TORCH:
        return in_runtime(model, runtime, what=what)
    function = output_function(model, what)
    if compile is not None:
        function = torch.compile(function, mode=compile)
    weight = model.patch_embed.proj.weight
    # Cloned, because CUDA graphs write all results to one place.
    return lambda images: function(images.to(weight.device, weight.dtype)).clone()


def _error(what: str, found: Tensor, wanted: Tensor, tolerance: float, given: int, model: VisionTransformer) -> Finding:
    error = relative_difference(found, wanted)
    figures = {"error": error}
    text = f"{error:.1e} of the largest value, at most {tolerance:.0e}"
    if given and model.config.num_classes and found.shape == wanted.shape:
        agree = found[-given:].argmax(-1) == wanted[-given:].argmax(-1)
        figures["top1_agreement"] = float(agree.double().mean())
        text += f"; the same class for {int(agree.sum())} of {given} images"
    return Finding(
        name=f"error of {what}",
        verdict="pass" if error <= tolerance else "fail",
        text=text,
        figures=figures,
        tolerance=tolerance,
    )


def _peer_findings(
    reference: VisionTransformer, model: VisionTransformer, wanted: Exact, images: Tensor, against: Sequence[str]
) -> Iterable[Finding]:
    """Compare the peers' own code in float64 with the exact output, and show its error in what is run here."""
    modules, problems = peer_modules(reference, against)
    for name in against:
        if name in problems:
            yield Finding(name=name, verdict="none", text=problems[name])
            continue
        try:
            yield _peer_finding(name, modules[name], model, wanted, images)
        except Exception as error:  # of the peers, which raise anything at all
            yield Finding(
                name=name, verdict="none", text=f"it cannot be run: {type(error).__name__}: {first_line(error)}"
            )


def _peer_finding(name: str, module: nn.Module, model: VisionTransformer, wanted: Exact, images: Tensor) -> Finding:
    task, values, what = "output", wanted.outputs["output"], "its own code"
    difference = _peer_error(module, task, images.double(), values)
    if not difference <= PEER_TOLERANCE and not model.config.num_classes:
        # Formats leave the pooling of a model without a head to the reader, who may have another.
        task, values, what = "features", wanted.outputs["tokens"], "its own code pools otherwise; its tokens"
        difference = _peer_error(module, task, images.double(), values)
    if difference == float("inf"):
        return Finding(name=name, verdict="none", text="its class returns other outputs")
    if not difference <= PEER_TOLERANCE and _peer_error(module, task, images.double(), values) != difference:
        return Finding(name=name, verdict="none", text="its class computes something random, such as masks")
    weight = model.patch_embed.proj.weight
    module = module.to(weight.device, weight.dtype)
    here = _peer_error(module, task, images.to(weight.device, weight.dtype), values)
    return Finding(
        name=name,
        verdict="pass" if difference <= PEER_TOLERANCE else "fail",
        text=f"{what}, in float64: {difference:.1e} from the exact values, at most {PEER_TOLERANCE:.0e}; as run here, "
        f"eager: {here:.1e}",
        figures={"float64": difference, "error": here},
        tolerance=PEER_TOLERANCE,
    )


def _peer_error(module: nn.Module, task: str, images: Tensor, wanted: Tensor) -> float:
    return relative_difference(_computed(forward_pass(module, task), images), wanted)


def golden_finding(kind: str, device: torch.device, dtype: str) -> Finding:
    """Compute the golden cases of a format, named without its dialect; of ``canonical``, all cases."""
    cases = list(golden_cases(None if kind == "canonical" else kind))
    name = f"golden cases of {kind}"
    if not cases:
        return Finding(name=name, verdict="none", text="none come with the package")
    figures = {case.folder.name: golden_error(case, device, getattr(torch, dtype)) for case in cases}
    # They are recorded in float32.
    tolerance, worst = max(TOLERANCES[dtype], TOLERANCES["float32"]), max(figures.values())
    return Finding(
        name=name,
        verdict="pass" if worst <= tolerance else "fail",
        text=f"{len(cases)} recorded from the projects' own code: {worst:.1e} of the largest value, "
        f"at most {tolerance:.0e} (eager, in PyTorch)",
        figures=figures,
        tolerance=tolerance,
    )
