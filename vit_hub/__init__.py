"""vit-hub: any Vision Transformer checkpoint, from any framework, in one call."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_hub.config import ViTConfig
    from vit_hub.conversion import compare, convert, open_checkpoint
    from vit_hub.errors import (
        CheckpointError,
        ConfigError,
        DownloadError,
        IntegrityError,
        ModelNotFoundError,
        UnknownFormatError,
        UnsafeCheckpointError,
        UnsupportedByFormatError,
        VitHubError,
    )
    from vit_hub.exchange import from_module, to_timm, to_transformers
    from vit_hub.hub.downloading import download
    from vit_hub.loading import load
    from vit_hub.model import VisionTransformer
    from vit_hub.preprocessing import Preprocessing, native_size
    from vit_hub.registry import get_config, list_models
    from vit_hub.transforms import class_names, preprocess

__version__ = "0.1.0"

# Public name -> module. Imported on first use, so that `import vit_hub` costs no torch.
_HOMES = {
    "ViTConfig": "config",
    "compare": "conversion",
    "convert": "conversion",
    "open_checkpoint": "conversion",
    "download": "hub.downloading",
    "from_module": "exchange",
    "to_timm": "exchange",
    "to_transformers": "exchange",
    "load": "loading",
    "VisionTransformer": "model",
    "Preprocessing": "preprocessing",
    "native_size": "preprocessing",
    "get_config": "registry",
    "list_models": "registry",
    "class_names": "transforms",
    "preprocess": "transforms",
    **dict.fromkeys(
        (
            "CheckpointError",
            "ConfigError",
            "DownloadError",
            "IntegrityError",
            "ModelNotFoundError",
            "UnknownFormatError",
            "UnsafeCheckpointError",
            "UnsupportedByFormatError",
            "VitHubError",
        ),
        "errors",
    ),
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "IntegrityError",
    "ModelNotFoundError",
    "Preprocessing",
    "UnknownFormatError",
    "UnsafeCheckpointError",
    "UnsupportedByFormatError",
    "ViTConfig",
    "VisionTransformer",
    "VitHubError",
    "class_names",
    "compare",
    "convert",
    "download",
    "from_module",
    "get_config",
    "list_models",
    "load",
    "native_size",
    "open_checkpoint",
    "preprocess",
    "to_timm",
    "to_transformers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
