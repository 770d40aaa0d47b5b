"""Models for ``torch.hub``: one entry point for each short name of the registry, and ``load`` for any other source.

``torch.hub.load("OWNER/vit-hub", "vit_b16")`` is ``vit_hub.load("vit-b16")``; ``torch.hub.list`` shows the names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vit_hub
from vit_hub.weights_manifest import outlines

dependencies = [
    "torch",
    "safetensors",
    "huggingface_hub",
    "httpx2",
    "filelock",
    "platformdirs",
    "isal",
    "numpy",
    "PIL",
    "tqdm",
]

load = vit_hub.load


def _entry_point(name: str) -> Callable[..., vit_hub.VisionTransformer]:
    def entry_point(pretrained: bool = True, **options: Any) -> vit_hub.VisionTransformer:
        if pretrained:
            return vit_hub.load(name, **options)
        return vit_hub.VisionTransformer(vit_hub.get_config(name), **options)

    entry_point.__doc__ = (
        f"Load {name}; with pretrained=False a model of this config with random weights. Further arguments are those "
        "of vit_hub.load, or of vit_hub.VisionTransformer."
    )
    return entry_point


_NAMES = {name.replace("-", "_"): name for outline in outlines().values() for name in (outline.id, *outline.aliases)}
globals().update({word: _entry_point(name) for word, name in _NAMES.items() if word.isidentifier()})
