"""Options for the device and dtype to compute in."""

from __future__ import annotations

import click

__all__ = ["device_option", "dtype_option"]

device_option = click.option(
    "--device", metavar="DEVICE", default="cpu", show_default=True, help="Device to compute on, such as cuda or mps."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="Dtype to compute in; auto is the stored one.",
)
