"""Comparison of checkpoints and exported programs: of weights where there are any, else of outputs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_hub.conversion import open_checkpoint
from vit_hub.converters.compare import Comparison, agreement, compare_checkpoints, config_differences
from vit_hub.converters.containers.programs import program_facts
from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig
from vit_hub.shown import size_text

if TYPE_CHECKING:
    from vit_hub.exporting.files import ExportedFile
    from vit_hub.exporting.program import Run

__all__ = ["compare"]

_IMAGES = 2


def compare(
    first: str | Path | Checkpoint,
    second: str | Path | Checkpoint,
    *,
    formats: tuple[str | None, str | None] = (None, None),
    overrides: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    offline: bool = False,
) -> Comparison:
    """Compare weights and numbers of two checkpoints, across any two formats.

    Files that :func:`vit_hub.export` wrote are run in their runtimes, on two random images, and the outputs are
    compared: their weights are folded and rearranged.

    Args:
        first: registry name, Hugging Face repository, URL, or local file or folder; or an opened checkpoint; or an
            exported file.
        second: likewise.
        formats: insist on formats instead of recognising them.
        overrides: config fields that neither file determines.
        tolerance: largest relative difference of tensors and of outputs that counts as the same; None: tensors must be
            equal, and outputs agree to 2e-5, those of exported files to the tolerance of their dtype.
        offline: open no connection.

    Returns:
        ``.same_weights``, ``.same_numbers``, a row per tensor, the config fields that differ, and the largest
        difference of the outputs on random images.

    Raises:
        ConfigError: an exported file gives what the other one does not have.
        VitHubError: one of them cannot be read.
    """
    if not any(_is_program(source) for source in (first, second)):
        a, b = (
            open_checkpoint(source, format=format, overrides=overrides, offline=offline)
            for source, format in zip((first, second), formats, strict=True)
        )
        return compare_checkpoints(a, b, tolerance=tolerance)
    # Their imports cost torch's.
    from vit_hub.exporting.files import exported_file

    files = [None if isinstance(source, Checkpoint) else exported_file(source) for source in (first, second)]
    program = next(file for file in files if file is not None)
    others = [file for file in files if file is not None and file is not program]
    for other in others:
        if (other.what, other.image_size) != (program.what, program.image_size):
            raise ConfigError(
                f"{program.path} gives {program.what} of {size_text(program.image_size)}, "
                f"{other.path} {other.what} of {size_text(other.image_size)}",
                hint="export one of them again, with --what and --image-size of the other",
            )
    sides = [
        (file.config, file.open()) if file is not None else _of_weights(source, program, format, overrides, offline)
        for source, file, format in zip((first, second), files, formats, strict=True)
    ]
    return _compared(program, [config for config, _ in sides], [run for _, run in sides], files, tolerance)


def _is_program(source: str | Path | Checkpoint) -> bool:
    return not isinstance(source, Checkpoint) and program_facts(Path(source)) is not None


def _of_weights(
    source: str | Path | Checkpoint,
    program: ExportedFile,
    format: str | None,
    overrides: Mapping[str, Any] | None,
    offline: bool,
) -> tuple[ViTConfig, Run]:
    """Return a model's config and what computes the output of a program, at its image size."""
    from vit_hub.exporting.runtimes import TORCH, in_runtime
    from vit_hub.loading import load

    ckpt = open_checkpoint(source, format=format, overrides=overrides, offline=offline)
    steps = program.config.pixels_per_patch
    pad = any(side % step for side, step in zip(program.image_size, steps, strict=True))
    model = load(ckpt, image_size=program.image_size, pad=pad)
    return model.config, in_runtime(model, TORCH, what=program.what)


def _compared(
    program: ExportedFile,
    configs: list[ViTConfig],
    runs: list[Run],
    files: list[ExportedFile | None],
    tolerance: float | None,
) -> Comparison:
    import torch

    from vit_hub.exporting.export import TOLERANCES, relative_difference

    generator = torch.Generator().manual_seed(0)
    shape = (_IMAGES, *program.config.input_shape(program.image_size))
    images = torch.randn(shape, generator=generator)
    pixels = next((file.pixels for file in files if file is not None and file.pixels is not None), None)
    if pixels is not None:  # values that pixels have
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in pixels)
        images = (torch.randint(0, 256, shape, generator=generator) / 255 - mean) / std
    found, wanted = (run(images) for run in runs)
    agreed = agreement(found, wanted) if found.shape == wanted.shape else None
    largest = max(TOLERANCES[file.dtype] for file in files if file is not None)
    if tolerance is None:
        same = relative_difference(found, wanted) <= largest
    else:
        same = agreed is not None and agreed.relative <= tolerance
    return Comparison(
        same_weights=None,
        same_numbers=same,
        tensors=(),
        config=config_differences(*configs),
        output_difference=agreed.difference if agreed else None,
        output_relative=agreed.relative if agreed else None,
        output_cosine=agreed.cosine if agreed else None,
        tolerance=largest * float(wanted.abs().max()) if tolerance is None else tolerance,
    )
