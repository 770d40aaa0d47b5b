"""Outputs for a batch of images: embeddings, logits, tokens, the output of a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_hub.errors import ConfigError
from vit_hub.model.flops import activation_values
from vit_hub.model.outputs import output_function
from vit_hub.model.vit import VisionTransformer

__all__ = ["Computation"]

_ON_CPU = 8  # images a batch; more are slower there
_MOST = 256
_SHARE_OF_MEMORY = 0.4


class Computation:
    """A model and what is wanted of it; batches in, arrays out. :meth:`Runnable.computation` makes them.

    Args:
        model: in evaluation mode.
        what: ``embedding`` (pooled, [D]), ``logits`` ([classes]), ``projection`` (CLIP's, [D]), ``tokens`` (all, before
            pooling, [T, D]), or ``block:N`` (all as they leave block N, [T, D]).
        normalize: divide embeddings and projections by their length.
        compile: a mode of torch.compile; None: not compiled.
        batch_size: images in a batch; smaller ones are filled up where the model is compiled.
        runtime: what computes: torch, or the one that ``function`` runs in.
        function: images [N, C, h, w], float32 on the processor -> output, in place of the model.

    Raises:
        ConfigError: the model has no such output.
    """

    def __init__(
        self,
        model: VisionTransformer,
        what: str = "embedding",
        *,
        normalize: bool = False,
        compile: str | None = None,
        batch_size: int | None = None,
        runtime: str = "torch",
        function: Callable[[Any], Any] | None = None,
    ) -> None:
        self.model, self.what, self.normalize, self.runtime = model, what, normalize, runtime
        weight = model.patch_embed.proj.weight
        self.device, self.dtype = weight.device, weight.dtype
        if function is None:
            function = output_function(model, what)
        else:
            self.device, self.dtype = torch.device("cpu"), torch.float32
        if normalize and what not in ("embedding", "projection"):
            raise ConfigError(f"normalize is for embeddings, not for {what}")
        self.batch_size = batch_size or automatic_batch_size(model)
        self._filled = compile is not None
        self._function = torch.compile(function, mode=compile) if compile else function
        self._copies: Any = None
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the output for one image of the model's size."""
        blank = torch.zeros(1, self.model.config.in_chans, *self.model.input_size)
        shape: tuple[int, ...] = self.fetch(self.submit(blank))[0].shape
        return shape

    @torch.inference_mode()
    def submit(self, images: Tensor | Sequence[Tensor]) -> Any:
        """Begin to compute; on a GPU this returns before it is done. Several sizes come as a list [C, h, w]."""
        if not isinstance(images, Tensor):
            return self._finished(self._function([self._moved(image) for image in images]))
        count = len(images)
        if self._filled and count < self.batch_size:
            images = torch.cat((images, images[:1].expand(self.batch_size - count, -1, -1, -1)))
        outputs = self._function(self._moved(images))[:count]
        # CUDA graphs write the results of every batch to the same place.
        return self._finished(outputs.clone() if self._filled else outputs)

    def fetch(self, outputs: Any) -> Any:
        """Wait for what was submitted: float32 [N, ...], or a list of arrays where shapes differ."""
        if isinstance(outputs, Tensor):
            return outputs.cpu().numpy()
        return [output.cpu().numpy() for output in outputs]

    def _moved(self, images: Tensor) -> Tensor:
        """Copy images to the device, beside what is computed there, and cast them."""
        if self._copies is None:
            return images.to(self.device, self.dtype)
        with torch.cuda.stream(self._copies):
            moved = images.pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copies)
        moved.record_stream(current)
        return moved.to(self.dtype)

    def _finished(self, outputs: Any) -> Any:
        if not isinstance(outputs, Tensor):
            return [output.float() for output in outputs]
        outputs = outputs.float()
        return F.normalize(outputs, dim=-1) if self.normalize else outputs


def automatic_batch_size(model: VisionTransformer) -> int:
    """Return a number of images with which the device is busy and its memory is not full."""
    weight = model.patch_embed.proj.weight
    if weight.device.type != "cuda":
        return _ON_CPU
    values = activation_values(model.config)
    if not values:
        return _ON_CPU
    free, _ = torch.cuda.mem_get_info(weight.device)
    fitting = int(_SHARE_OF_MEMORY * free / (values * weight.element_size()))
    return max(1, min(_MOST, 1 << max(0, fitting.bit_length() - 1)))
