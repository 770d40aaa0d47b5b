"""Devices that PyTorch computes on."""

from __future__ import annotations

import torch

from vit_hub.errors import ConfigError, first_line

__all__ = ["usable_device"]


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device of this name after computing something on it.

    Raises:
        ConfigError: it does not exist or cannot be used.
    """
    try:
        torch.zeros(1, device=device).item()
        return torch.device(device)
    # The exception for a misspelt, unsupported or missing device differs from device to device.
    except Exception as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used: {first_line(error)}", hint="cpu always works"
        ) from error
