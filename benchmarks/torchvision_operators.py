"""Make ``import torchvision``, which timm needs, work with a torch build that it was not compiled for."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import torch


def _define() -> torch.library.Library | None:
    """Declare the operators if torchvision's own extension cannot define them.

    A torchvision built for CUDA refuses to import on a CPU-only torch, because importing registers shapes for operators
    that its extension could not define. Declaring them is enough: nothing here calls them.
    """
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    for extension in sorted(file for folder in folders or [] for file in Path(folder).glob("_C*.*")):
        with contextlib.suppress(OSError):
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return library


# The definitions live as long as the object.
DEFINITIONS = _define()
