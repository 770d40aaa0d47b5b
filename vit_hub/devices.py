"""Devices that PyTorch computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_hub.errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["usable_device"]


def usable_device(device: str | torch.device) -> torch.device:
    """The device of this name, on which something was computed to see that it works.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    import torch

    try:
        torch.zeros(1, device=device).item()
        return torch.device(device)
    # What torch raises for a device that is misspelt, not compiled in or not there differs from device to device.
    except Exception as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used: {first_line(error)}", hint="cpu always works"
        ) from error
