"""Devices that PyTorch computes on."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import torch
from torch import Tensor

from vit_hub.errors import ConfigError, first_line

__all__ = ["Uploader", "processor_name", "usable_device"]

_PIECE = 4 << 20  # bytes: as fast as larger ones, and pinning takes time


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device of this name after computing something on it; with its number, which other threads need.

    Raises:
        ConfigError: it does not exist or cannot be used.
    """
    try:
        found = torch.zeros(1, device=device)
        found.item()
        return found.device
    # The exception for a misspelt, unsupported or missing device differs from device to device.
    except Exception as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used: {first_line(error)}", hint="cpu always works"
        ) from error


def processor_name() -> str:
    """Return what the processor is called."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Uploader:
    """Copier of tensors from host memory to a CUDA device, for one thread.

    The driver copies ordinary memory through a small buffer of its own and waits for each piece. Here one piece is laid
    out and cast in pinned memory while the piece before is on its way.

    Args:
        device: to copy to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pieces = [(_pinned(_PIECE), torch.cuda.Event()) for _ in range(2)]  # type: ignore[no-untyped-call]

    def upload(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy on the device, in a dtype; its values are there after :meth:`finish`."""
        target = torch.empty(tensor.shape, dtype=dtype, device=self._device)
        # Work on what had this memory before may still be waiting.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        source, values = tensor.reshape(-1), target.view(-1)
        step = _PIECE // dtype.itemsize
        with torch.cuda.stream(self._stream):
            for start in range(0, len(source), step):
                piece = source[start : start + step]
                buffer, sent = self._pieces[0]
                self._pieces.reverse()
                sent.synchronize()
                pinned = buffer.view(dtype)[: len(piece)]
                pinned.copy_(piece)
                values[start : start + step].copy_(pinned, non_blocking=True)
                sent.record(self._stream)
        return target

    def finish(self) -> None:
        """Wait until everything is on the device."""
        self._stream.synchronize()


def _pinned(size: int) -> Tensor:
    """Bytes of host memory that a GPU reads without the driver's help."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
