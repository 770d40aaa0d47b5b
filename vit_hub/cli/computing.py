"""Options that say where and in what numbers to compute."""

from __future__ import annotations

import click

__all__ = ["device_option", "dtype_option"]

device_option = click.option(
    "--device", metavar="DEVICE", default="cpu", show_default=True, help="Where to compute, such as cuda or mps."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="What to compute in; auto is what is stored.",
)
