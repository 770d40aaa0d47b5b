"""vit-hub: any Vision Transformer checkpoint, from any framework, in one call."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from vit_hub.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    IntegrityError,
    ModelNotFoundError,
    SignatureError,
    UnknownFormatError,
    UnsafeCheckpointError,
    UnsupportedByFormatError,
    VitHubError,
)
from vit_hub.version import __version__

if TYPE_CHECKING:
    from vit_hub.certifying.checking import check
    from vit_hub.choosing import recommend
    from vit_hub.conversion import convert, open_checkpoint
    from vit_hub.exporting.comparing import compare
    from vit_hub.exporting.export import export
    from vit_hub.hub.download import download
    from vit_hub.hub.signing import sign, verify_signature
    from vit_hub.interop import from_module, to_timm, to_transformers
    from vit_hub.loading import from_pretrained, load
    from vit_hub.model.config import ViTConfig
    from vit_hub.model.vit import VisionTransformer
    from vit_hub.preprocessing.of_checkpoint import class_names, create_transform, preprocess
    from vit_hub.preprocessing.spec import Preprocessing, native_size
    from vit_hub.registry import get_config, list_models
    from vit_hub.running.embedder import Embedder
    from vit_hub.running.embedding import embed
    from vit_hub.running.evaluation import evaluate

# A source tree has converters/ and weights_manifest/ beside this folder; an installed package has them inside.
# (os.path, because importing pathlib would double the time that `import vit_hub` takes.)
if not os.path.isdir(os.path.join(__path__[0], "converters")):  # noqa: PTH112, PTH118
    __path__.append(os.path.dirname(__path__[0]))  # noqa: PTH120

# Public name -> module. Imported on first use, so that `import vit_hub` costs no torch.
_MODULES = {
    "ViTConfig": "model.config",
    "VisionTransformer": "model.vit",
    "Preprocessing": "preprocessing.spec",
    "native_size": "preprocessing.spec",
    "class_names": "preprocessing.of_checkpoint",
    "create_transform": "preprocessing.of_checkpoint",
    "preprocess": "preprocessing.of_checkpoint",
    "get_config": "registry",
    "list_models": "registry",
    "recommend": "choosing",
    "from_module": "interop",
    "to_timm": "interop",
    "to_transformers": "interop",
    "download": "hub.download",
    "sign": "hub.signing",
    "verify_signature": "hub.signing",
    "from_pretrained": "loading",
    "load": "loading",
    "check": "certifying.checking",
    "compare": "exporting.comparing",
    "convert": "conversion",
    "open_checkpoint": "conversion",
    "export": "exporting.export",
    "Embedder": "running.embedder",
    "embed": "running.embedding",
    "evaluate": "running.evaluation",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "Embedder",
    "IntegrityError",
    "ModelNotFoundError",
    "Preprocessing",
    "SignatureError",
    "UnknownFormatError",
    "UnsafeCheckpointError",
    "UnsupportedByFormatError",
    "ViTConfig",
    "VisionTransformer",
    "VitHubError",
    "__version__",
    "check",
    "class_names",
    "compare",
    "convert",
    "create_transform",
    "download",
    "embed",
    "evaluate",
    "export",
    "from_module",
    "from_pretrained",
    "get_config",
    "list_models",
    "load",
    "native_size",
    "open_checkpoint",
    "preprocess",
    "recommend",
    "sign",
    "to_timm",
    "to_transformers",
    "verify_signature",
]


# Packages that are public as they are.
_PACKAGES = ("pictures",)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_PACKAGES})
