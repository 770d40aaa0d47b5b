"""The program that is exported: a model with what belongs before and after it, and the inputs that it is tried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vit_hub.converters.containers.programs import FACTS_KEY, LABELS_KEY
from vit_hub.errors import ConfigError
from vit_hub.model.outputs import output_function, output_name
from vit_hub.model.vit import VisionTransformer
from vit_hub.preprocessing.of_checkpoint import class_names, preprocess
from vit_hub.version import __version__

__all__ = ["Options", "Program", "Run", "make_program"]

# Runs a written file on the processor: images [B, ...] -> output.
Run: TypeAlias = "Callable[[Tensor], Tensor]"

# Patches a side beyond the model's own grid, of the further images that a program of any size is tried on.
_OTHER_GRIDS = ((2, -1), (-1, 3))
_FEWEST_PATCHES = 2  # a side of one patch is a constant to PyTorch
_MOST_PATCHES = 4096


class _Whole(nn.Module):
    """A model that takes float32 images, or pixels, and gives float32, whatever it computes in."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: VisionTransformer, what: str, dtype: torch.dtype, pixels: tuple[Tensor, Tensor] | None
    ) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        # Wrapped, so that a model as its own function is not its submodule twice.
        self.function = partial(output_function(model, what))
        self.has_pixels = pixels is not None
        if pixels is not None:
            self.register_buffer("mean", pixels[0], persistent=False)
            self.register_buffer("std", pixels[1], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, h, w], already preprocessed, or uint8 [B, h, w, C] -> what the model gives, float32."""
        if self.has_pixels:
            images = ((images.float() / 255 - self.mean) / self.std).movedim(-1, -3)
        return self.function(images.to(self.dtype)).float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Program:
    """A model as it is exported.

    Attributes:
        module: images -> output.
        dtype: the dtype that it computes in, ``float32``, ``float16`` or ``bfloat16``.
        example: images that it is recorded with, two of them.
        shapes: free axes of the images, as ``torch.export`` takes them.
        reference: the same in float32, that outputs are compared with.
        inputs: images of several batch sizes, and sizes if these are free.
        facts: config, passport and class names as text for the file's metadata, by key.
    """

    module: nn.Module
    dtype: str
    example: Tensor
    shapes: dict[int, Any]
    reference: nn.Module
    inputs: list[Tensor] = field(repr=False)
    facts: dict[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a program is written.

    Attributes:
        int8: with weights of 8 bits, quantized by the runtime's own tool.
        opset: version of ONNX's operators; None: the exporter's choice.
    """

    int8: bool = False
    opset: int | None = None


def make_program(
    model: VisionTransformer,
    reference: VisionTransformer,
    *,
    what: str = "output",
    dynamic: bool = False,
    with_preprocess: bool = False,
    stills: bool = False,
    stored: str = "float32",
) -> Program:
    """Put a program together.

    Args:
        model: on the CPU, in the dtype to compute in.
        reference: the same model in float32.
        what: its output, as :func:`vit_hub.model.outputs.output_function` has them.
        dynamic: images of any size in whole patches, instead of the model's own.
        with_preprocess: take pixels and normalise them.
        stills: take images, also where the model takes videos, too.
        stored: dtype of the weights, for the file's metadata.

    Raises:
        ConfigError: the model has no such output, or ``with_preprocess`` is given and the images have other than one or
            three channels.
    """
    config = model.config
    pixels = None
    if with_preprocess:
        if config.in_chans not in (1, 3):
            raise ConfigError(f"with_preprocess=True: images have 1 or 3 channels, the model takes {config.in_chans}")
        spec = preprocess(reference)
        pixels = (torch.tensor(spec.mean), torch.tensor(spec.std))
    if dynamic:
        model.dynamic = reference.dynamic = True
    dtype = model.patch_embed.proj.weight.dtype
    inputs = list(_inputs(model, dynamic, with_preprocess, stills))
    return Program(
        module=_Whole(model, what, dtype, pixels).eval(),
        dtype=str(dtype).removeprefix("torch."),
        example=inputs[0],
        shapes=_free_axes(model, dynamic, inputs[0].dim() - 2 - with_preprocess),
        reference=_Whole(reference, what, torch.float32, pixels).eval(),
        inputs=inputs,
        facts=_facts(reference, what, dynamic, pixels, stored),
    )


def _facts(
    model: VisionTransformer, what: str, dynamic: bool, pixels: tuple[Tensor, Tensor] | None, stored: str
) -> dict[str, str]:
    about: dict[str, Any] = {
        "config": model.config.to_dict(),
        "passport": model.passport.to_dict() if model.passport else None,
        "what": output_name(model) if what == "output" else what,
        "dtype": stored,
        "image_size": list(model.input_size),
        "dynamic": dynamic,
        "with_preprocess": pixels is not None,
        "version": __version__,
    }
    if pixels is not None:
        about |= {name: values.tolist() for name, values in zip(("mean", "std"), pixels, strict=True)}
    names = class_names(model)
    return {FACTS_KEY: json.dumps(about, sort_keys=True), **({LABELS_KEY: json.dumps(names)} if names else {})}


def _free_axes(model: VisionTransformer, dynamic: bool, rows: int) -> dict[int, Any]:
    """Batch; height (axis ``rows``) and width in whole patches, of whole squares before a merger, if they are free."""
    from torch.export import Dim

    shapes: dict[int, Any] = {0: Dim("batch")}
    if dynamic:
        squares = model.config.merger.size if model.config.merger else 1
        for axis, name, step in zip((rows, rows + 1), ("rows", "columns"), model.config.pixels_per_patch, strict=True):
            shapes[axis] = squares * step * Dim(name, min=_FEWEST_PATCHES, max=_MOST_PATCHES)
    return shapes


def _inputs(model: VisionTransformer, dynamic: bool, with_preprocess: bool, stills: bool) -> Iterator[Tensor]:
    """Random images: two, one and three of the model's size, and two each of other sizes if these are free."""
    generator = torch.Generator().manual_seed(0)
    config = model.config

    def images(count: int, size: tuple[int, int]) -> Tensor:
        *frames, channels, height, width = config.input_shape(size, stills=stills)
        if with_preprocess:
            shape = (count, *frames, height, width, channels)
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return torch.randn(count, *frames, channels, height, width, generator=generator)

    sizes = [model.input_size]
    if dynamic:
        squares = config.merger.size if config.merger else 1
        for more in _OTHER_GRIDS:
            grid = (max(_FEWEST_PATCHES, side + extra) for side, extra in zip(config.grid_size, more, strict=True))
            rows, columns = (-(-side // squares) * squares for side in grid)
            sizes.append((rows * config.pixels_per_patch[0], columns * config.pixels_per_patch[1]))
    # Programs of any size are recorded with one that no constant of the model has.
    if dynamic:
        sizes = [*sizes[1:], sizes[0]]
    yield images(2, sizes[0])
    for count in (1, 3):
        yield from (images(count, size) for size in sizes)
