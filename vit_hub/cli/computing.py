"""Options that say where and in what numbers to compute."""

from __future__ import annotations

import click

from vit_hub.errors import ConfigError

__all__ = ["checked_device", "device_option", "dtype_option"]

device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where to compute, such as cuda or mps."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="What to compute in; auto is what is stored.",
)


def checked_device(device: str) -> str:
    """The device, which can be used.

    Raises:
        ConfigError: it cannot.
    """
    import torch

    try:
        torch.zeros(1, device=device).item()
    # What torch raises for a device that is misspelt, not compiled in or not there differs from device to device.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used: {reason}", hint="--device cpu always works") from error
    return device
