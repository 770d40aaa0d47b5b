"""Files that ``vit-hub export`` wrote, run in their runtimes as models are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from vit_hub.converters.containers.programs import FACTS_KEY, LABELS_KEY, program_facts
from vit_hub.converters.passport import Passport
from vit_hub.errors import CheckpointError, ConfigError
from vit_hub.exporting.export import TARGETS, TOLERANCES, check_packages
from vit_hub.exporting.program import Run
from vit_hub.exporting.runtimes import RUNTIMES, TORCH
from vit_hub.hub.cache.hashes import sha256_of
from vit_hub.hub.trust import require_signed
from vit_hub.model.config import ViTConfig, size_pair
from vit_hub.model.vit import VisionTransformer
from vit_hub.shown import size_text
from vit_hub.untrusted import conform, parse_json

__all__ = ["ExportedFile", "exported_file"]


@dataclass(frozen=True)
class ExportedFile:
    """A program that ``vit-hub export`` wrote.

    Attributes:
        path: the file.
        target: a name of :data:`vit_hub.exporting.export.TARGETS`.
        config: of the model.
        passport: record of where the weights come from.
        labels: names of the classes.
        what: its output: ``logits``, ``embedding``, ``projection``, ``tokens``, ``block:N``; ``output``: what only the
            model itself has, such as a neck's map.
        dtype: that its weights are stored in: ``float32``, ``float16``, ``bfloat16`` or ``int8``.
        image_size: (height, width) in pixels.
        dynamic: it takes other sizes, too.
        pixels: mean and standard deviation by which it normalises uint8 pixels [B, h, w, C]; None: it takes
            preprocessed images.
        version: of vit-hub, that wrote it.
        precision: dtype that it is run in, for runtimes that choose it.
    """

    path: Path
    target: str
    config: ViTConfig
    passport: Passport | None
    labels: tuple[str, ...] | None
    what: str
    dtype: str
    image_size: tuple[int, int]
    dynamic: bool
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None
    version: str
    precision: str = "float32"

    @property
    def runtime(self) -> str:
        """The runtime that runs it."""
        return next((name for name, facts in RUNTIMES.items() if facts.target == self.target), TORCH)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those beside it with its weights."""
        return tuple(file for file in TARGETS[self.target].files(self.path) if file == self.path or file.is_file())

    def in_dtype(self, dtype: str | None) -> ExportedFile:
        """Return the same to be run in a dtype; None, ``auto`` and ``float32`` stand for its own.

        Raises:
            ConfigError: its runtime has no choice, or another one.
        """
        if dtype in (None, "auto", "float32", self.dtype):
            return self
        if self.target != "openvino" or dtype not in RUNTIMES["openvino"].dtypes:
            raise ConfigError(
                f"{self.path}: computes in {self.dtype}, not in {dtype}",
                hint=f"give the model itself, or export it again: vit-hub export MODEL OUT --dtype {dtype}",
            )
        return replace(self, precision=dtype)

    def in_size(self, image_size: int | tuple[int, int] | None) -> ExportedFile:
        """Return the same for images of a size.

        Raises:
            ConfigError: it takes images of one size, or these are not whole patches.
        """
        size = self.image_size if image_size is None else size_pair("image_size", image_size)
        if size == self.image_size:
            return self
        steps = self.config.pixels_per_patch
        if not self.dynamic or any(side % step for side, step in zip(size, steps, strict=True)):
            takes = f"whole patches of {size_text(steps)}" if self.dynamic else size_text(self.image_size)
            raise ConfigError(
                f"{self.path}: takes images of {takes}, not {size_text(size)}",
                hint="export the model again with --image-size or --dynamic",
            )
        return replace(self, image_size=size)

    def model(self) -> VisionTransformer:
        """Return the model without its weights, which are in the program: on the device ``meta``."""
        with torch.device("meta"):
            model = VisionTransformer(self.config).eval()
        dtype = self.precision if self.dtype in ("float32", "int8") else self.dtype
        model = model.to(getattr(torch, dtype))
        model.passport, model.input_size, model.dynamic = self.passport, self.image_size, self.dynamic
        return model

    def open(self) -> Run:
        """Return a function that runs it: preprocessed images, float32 [B, C, h, w] -> output, float32.

        Raises:
            ConfigError: its runtime is not installed.
            CheckpointError: the runtime cannot open it.
        """
        check_packages(self.target)
        try:
            run = TARGETS[self.target].open(self.path, self.precision)
        except Exception as error:  # of runtimes, which raise anything at all
            raise CheckpointError(
                f"{self.path}: {self.target} cannot open it: {type(error).__name__}: {error}",
                hint="is it complete, with the file of its weights beside it? Else export the model again",
            ) from error
        return self._of_images(self._of_pixels(run))

    def _of_images(self, run: Run) -> Run:
        """Let a program of videos take images [B, C, h, w], too, as the model does."""
        if self.config.video is None:
            return run
        frames, still = self.config.video.frames, self.config.still_frames

        def run_videos(images: Tensor) -> Tensor:
            if images.dim() == 5:
                return run(images)
            if still != frames:
                raise ConfigError(
                    f"{self.path}: takes videos of {frames} frames; the model sees an image as a video of {still}",
                    hint="give the model itself instead of the exported file",
                )
            return run(images.unsqueeze(1).expand(-1, frames, -1, -1, -1))

        return run_videos

    def _of_pixels(self, run: Run) -> Run:
        """Let a program of pixels take preprocessed images."""
        if self.pixels is None:
            return run
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in self.pixels)

        def run_pixels(images: Tensor) -> Tensor:
            pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
            return run(pixels.movedim(-3, -1).contiguous())

        return run_pixels


class _Optional(TypedDict, total=False):
    passport: dict[str, Any] | None
    mean: list[float]
    std: list[float]


class _Facts(_Optional):
    """Facts that an exported file states about itself."""

    config: dict[str, Any]
    what: str
    dtype: str
    image_size: list[int]
    dynamic: bool
    with_preprocess: bool
    version: str


def exported_file(path: str | os.PathLike[str]) -> ExportedFile | None:
    """Return what a file is if ``vit-hub export`` wrote it; None: it did not.

    Where ``VIT_HUB_TRUST`` is set, it must be signed.

    Raises:
        SignatureError: it is not.
        CheckpointError: what it says of itself is damaged.
    """
    place = Path(path)
    facts = program_facts(place)
    if facts is None:
        return None
    try:
        about = parse_json(facts.texts[FACTS_KEY])
        conform(about, _Facts, FACTS_KEY)
        labels = parse_json(facts.texts.get(LABELS_KEY) or "[]")
        conform(labels, list[str], LABELS_KEY)
        passport = about.get("passport")
        if about["dtype"] not in TOLERANCES:
            raise ValueError(f"there is no dtype {about['dtype']!r}")
        found = ExportedFile(
            path=place,
            target=facts.target,
            config=ViTConfig.from_dict(about["config"]),
            passport=None if passport is None else Passport.from_json(json.dumps(passport), str(place)),
            labels=tuple(labels) or None,
            what=str(about["what"]),
            dtype=str(about["dtype"]),
            image_size=size_pair("image_size", tuple(about["image_size"])),
            dynamic=bool(about["dynamic"]),
            pixels=_pixels(about),
            version=str(about["version"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{place}: what it says of itself under {FACTS_KEY!r} cannot be read: {error}",
            hint="export the model again: vit-hub export",
        ) from error
    require_signed({file: partial(sha256_of, file) for file in found.files})
    return found


def _pixels(about: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not about["with_preprocess"]:
        return None
    return tuple(map(float, about["mean"])), tuple(map(float, about["std"]))
