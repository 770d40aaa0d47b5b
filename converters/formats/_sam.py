"""Shared by the formats of Segment Anything's image encoders: their table, and what shapes tell of windows.

Source: segment_anything/modeling/image_encoder.py (arXiv 2304.02643).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_hub.converters.rules.format import ANY, Requirement
from vit_hub.converters.rules.table import Rule, rule, weight_and_bias
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig

__all__ = [
    "CONVENTIONS", "LIMITS", "REQUIRES", "TRUNK", "WINDOWS", "fields_of_shapes", "rules", "stated_windows",
    "windows_of",
]  # fmt: skip

CONVENTIONS: Mapping[str, Any] = {"act": "gelu", "norm_eps": 1e-6, "resize": "bicubic"}
# Segment Anything's windows, in files that cannot tell them.
_WINDOW = 14

# Of the blocks alone, which ViTDet has, too.
TRUNK: Mapping[str, object] = {
    "qkv_bias": (True, False),
    "patch_bias": True,
    "qk_norm": False,
    "pre_norm": False,
    "class_token": False,
    "num_registers": 0,
    "pos_embed": ("learned", "none"),
    "rope": None,
    "rel_pos": ("decomposed", "none"),
    "layer_scale": False,
    "final_norm": "none",
    "num_classes": 0,
    "pool": "none",
    "stem": "patch",
    "windows": ANY,
}
LIMITS: Mapping[str, object] = {**TRUNK, "neck": ANY}
WINDOWS = (
    Requirement("windows", lambda c: c.windows is None or c.windows.pad, "its windows are filled with zeros"),
    Requirement(
        "windows", lambda c: c.windows is None or len(set(c.windows.size)) == 1, "its windows are as high as wide"
    ),
)
REQUIRES = (
    Requirement("neck", lambda c: c.neck is not None and c.neck.chans > 0, "its neck has convolutions"),
    *WINDOWS,
)


def rules(
    root: str,
    block: str,
    layers: Mapping[str, str],
    neck: Sequence[str] = "0123",
    patch: str = "patch_embed.proj",
    necks: str = "neck.",
) -> tuple[Rule, ...]:
    """Return the table of an image encoder.

    Args:
        root: what stands before all names.
        block: a block, below the root.
        layers: canonical name -> name of the norms and linear layers of a block.
        neck: names of the layers of the neck.
        patch: the patch embedding.
        necks: what stands before the layers of the neck.
    """
    at = f"{root}{block}"
    return (
        rule("pos_embed", f"{root}pos_embed", "1 y x d -> 1 (y x) d"),
        *weight_and_bias("patch_embed.proj", f"{root}{patch}"),
        *weight_and_bias("blocks.{i}.norm1", f"{at}.{layers['norm1']}"),
        *weight_and_bias("blocks.{i}.attn.qkv", f"{at}.attn.qkv"),
        *(rule(f"blocks.{{i}}.attn.rel_pos_{axis}", f"{at}.attn.rel_pos_{axis}") for axis in "hw"),
        *weight_and_bias("blocks.{i}.attn.proj", f"{at}.attn.proj"),
        *weight_and_bias("blocks.{i}.norm2", f"{at}.{layers['norm2']}"),
        *weight_and_bias("blocks.{i}.mlp.fc1", f"{at}.{layers['fc1']}"),
        *weight_and_bias("blocks.{i}.mlp.fc2", f"{at}.{layers['fc2']}"),
        rule("neck.0.weight", f"{root}{necks}{neck[0]}.weight"),
        *weight_and_bias("neck.1", f"{root}{necks}{neck[1]}"),
        rule("neck.2.weight", f"{root}{necks}{neck[2]}.weight"),
        *weight_and_bias("neck.3", f"{root}{necks}{neck[3]}"),
    )


def fields_of_shapes(
    tensors: Mapping[str, LazyTensor], root: str, block: str, patch: str = "patch_embed.proj", attention: str = "attn"
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields that shapes tell, image size and windows, and a warning where they do not tell the windows.

    Args:
        tensors: those of the file.
        root: what stands before all names.
        block: a block, with ``{i}`` for its number.
        patch: the patch embedding.
        attention: that of a block, below it.

    Raises:
        ConfigError: blocks have windows of different sizes.
    """
    table, kernel = tensors.get(f"{root}pos_embed"), tensors.get(f"{root}{patch}.weight")
    sizes: dict[int, tuple[int, int]] = {}
    depth = 0
    while f"{root}{block.replace('{i}', str(depth))}.{attention}.qkv.weight" in tensors:
        name = f"{root}{block.replace('{i}', str(depth))}.{attention}.rel_pos_"
        offsets = [tensors[name + axis].shape for axis in "hw" if name + axis in tensors]
        if len(offsets) == 2 and all(offsets):
            sizes[depth] = ((offsets[0][0] + 1) // 2, (offsets[1][0] + 1) // 2)
        depth += 1
    grid = (table.shape[1], table.shape[2]) if table is not None and len(table.shape) == 4 else None
    grid = grid or max(sizes.values(), default=None)
    fields: dict[str, Any] = {}
    if grid and kernel is not None and len(kernel.shape) == 4:
        fields["image_size"] = (grid[0] * kernel.shape[2], grid[1] * kernel.shape[3])
    if not sizes:
        full = tuple(range(depth // 4 - 1, depth, max(depth // 4, 1))) if depth >= 4 else ()
        fields["windows"] = {"size": (_WINDOW, _WINDOW), "full": full}
        return fields, (
            f"windows of {_WINDOW}x{_WINDOW} patches, but for the blocks {', '.join(map(str, full))}, are a guess: "
            "without tables of relative positions nothing in the file tells them; overrides= (--set windows=) does",
        )
    windows = {size for size in sizes.values() if size != grid}
    if len(windows) > 1:
        raise ConfigError(f"windows: blocks have windows of different sizes, {sorted(windows)}: not supported")
    if windows:
        full = tuple(number for number, size in sizes.items() if size == grid)
        fields["windows"] = {"size": windows.pop(), "full": full}
    return fields, ()


def windows_of(size: Any, full: Any) -> dict[str, Any] | None:
    """Return the windows that a config states by the side of one and the blocks without; None if all blocks have none.

    Raises:
        ConfigError: they are not whole numbers.
    """
    if size == 0:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not isinstance(full, (list, tuple)):
        raise ConfigError(f"windows: a size of {size!r} and blocks {full!r} are not whole numbers")
    return {"size": (size, size), "full": tuple(full)}


def stated_windows(config: ViTConfig) -> tuple[int, list[int]]:
    """Return what a config states: the side of a window, 0 without, and the blocks without."""
    return (config.windows.size[0], list(config.windows.full)) if config.windows else (0, [])
