"""A model at another image or patch size, and the effect of other resizing methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_hub.cli.description import memory_of
from vit_hub.cli.options import ALL_METHODS
from vit_hub.cli.output import Output, amount, size_text
from vit_hub.converters.resize import TableDifference, table_differences
from vit_hub.model.config import ViTConfig
from vit_hub.model.flops import forward_flops, tokens_of
from vit_hub.model.resize import resized_config, table_method
from vit_hub.model.shapes import num_parameters

if TYPE_CHECKING:
    from vit_hub.converters import Checkpoint

__all__ = ["Differences", "differences_of", "resized_lines"]


@dataclass(frozen=True)
class Differences:
    """Distances of tables resized by other methods from those resized by the source's ``own``."""

    own: str
    by_method: dict[str, TableDifference]


def differences_of(
    ckpt: Checkpoint, image_size: tuple[int, int] | None, patch_size: tuple[int, int] | None, resize: str
) -> Differences:
    """Return the differences of all methods, or of the one that ``--resize`` names."""
    found = table_differences(ckpt, resized_config(ckpt.config, image_size, patch_size))
    if resize != ALL_METHODS:
        found = {method: item for method, item in found.items() if method == table_method(ckpt.config, resize)}
    return Differences(ckpt.config.resize, found)


def resized_lines(output: Output, old: ViTConfig, new: ViTConfig, differences: Differences | None) -> list[str]:
    """Describe the model as it is and at its new size, side by side, and the differences of the methods, if any."""
    stored, resized = _figures(old), _figures(new)
    rows = [(name, text, resized[name]) for name, text in stored.items()]
    lines = [output.heading(f"At {size_text(new.image_size)} pixels")]
    lines += output.table(("", "stored", "resized"), rows, indent="  ")
    if differences is None:
        return lines
    lines += ["", output.heading("Position tables resized by other methods than its own")]
    if not differences.by_method:
        return [*lines, "  nothing is resized: the grid stays the same, or the model stores no position table"]
    table = [
        (
            f"{method} (its own)" if method == differences.own else method,
            f"{item.maximum:.2g}",
            f"{item.mean:.2g}",
            f"{item.relative:.1%}",
        )
        for method, item in differences.by_method.items()
    ]
    header = ("method", "largest difference", "mean", "relative")
    return [*lines, *output.table(header, table, right=header[1:], indent="  ")]


def _figures(config: ViTConfig) -> dict[str, str]:
    found = {
        "image": size_text(config.image_size),
        "patch": size_text(config.patch_size),
        "grid": size_text(config.grid_size),
        "tokens": f"{tokens_of(config):,}",
        "parameters": f"{num_parameters(config):,}",
        "operations": amount(forward_flops(config), "FLOP"),
    }
    for dtype, memory in memory_of(config).items():
        for what, size in memory.items():
            found[f"{what}, {dtype}"] = "unknown" if size is None else amount(size, "B")
    return found
