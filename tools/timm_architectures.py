"""Write the table of timm's Vision Transformers from the installed timm: class and arguments of each architecture.

python tools/timm_architectures.py
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from timm.layers import LayerNorm, get_act_layer, get_norm_layer
from timm.models import model_entrypoint
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

from vit_hub.converters.formats._timm import NO_EFFECT

TARGET = Path(__file__).resolve().parent.parent / "converters" / "formats" / "timm_architectures.json"
# timm's modules with Vision Transformers, of all classes.
MODULES = (
    "vision_transformer",
    "deit",
    "vision_transformer_hybrid",
    "eva",
    "beit",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "naflexvit",
    "deepseek_vit",
    "gemma4_vit",
    "qwen3_vit",
)
# The classes whose arguments the formats read; of others the table has the names.
CLASSES = (
    "VisionTransformer",
    "VisionTransformerDistilled",
    "VisionTransformerRelPos",
    "VisionTransformerSAM",
    "Eva",
    "Beit",
    "NaFlexVit",
)
# Arguments of timm's factory, not of a class.
_FACTORY = ("pretrained_filter_fn", "pretrained_strict", "feature_cfg", "kwargs_filter", "pretrained_cfg", "model_cfg")
_ACTIVATIONS = {get_act_layer(name): name for name in ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")}


class _Described(Exception):
    """Thrown instead of building a model."""


def _plain(value: Any) -> Any:
    """JSON for an argument: a layer is its name."""
    if isinstance(value, functools.partial):
        if "backbone" in value.keywords:
            return f"{value.func.__name__}({type(value.keywords['backbone']).__name__})"
        if value.func.__name__ == "GluMlp" and value.keywords.get("gate_last") is False:
            return "SwiGLUPacked"
        return value.func.__name__
    if callable(value):
        return _ACTIVATIONS.get(value) or value.__name__
    return list(value) if isinstance(value, tuple) else value


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments that have an effect; ``norm_eps`` stands for the epsilon in the norm layer."""
    found = {name: _plain(value) for name, value in values.items() if name not in (*NO_EFFECT, *_FACTORY)}
    norm = get_norm_layer(values.get("norm_layer"))
    if norm is not None and hasattr(norm(1), "eps"):
        found["norm_eps"] = norm(1).eps
    if found.get("norm_layer") in ("LayerNorm", None):
        found.pop("norm_layer", None)
    return found


def _defaults(cls: type) -> dict[str, Any]:
    """Defaults of the arguments of a class, which a subclass may pass on, or of a config that it takes instead."""
    if cls is NaFlexVit:
        return {**_arguments({**vars(NaFlexVitCfg()), "norm_layer": LayerNorm}), "norm_layer": None, "in_chans": 3}
    base = next(base for base in cls.__mro__ if "embed_dim" in inspect.signature(base).parameters)
    found = {name: item.default for name, item in inspect.signature(base).parameters.items()}
    return {"norm_layer": None, **_arguments({**found, "norm_layer": found.get("norm_layer") or LayerNorm})}


def table() -> dict[str, Any]:
    """Return the whole table: by class its defaults, and by architecture what differs from them."""
    built: dict[str, tuple[type, dict[str, Any]]] = {}

    def describe(cls: type, variant: str, pretrained: bool = False, **arguments: Any) -> None:
        config = arguments.pop("cfg", None)
        built[variant] = (cls, {**arguments, **(vars(config) if config else {})})
        raise _Described

    deprecated: dict[str, str] = {}
    for module in MODULES:
        try:
            code = importlib.import_module(f"timm.models.{module}")
        except ModuleNotFoundError:
            continue  # an older timm
        with mock.patch.object(code, "build_model_with_cfg", describe), torch.device("meta"):
            for name in timm.list_models(module=module):
                try:
                    model_entrypoint(name)(pretrained=False)
                except _Described:
                    continue
                raise AssertionError(f"{name} is built in another way")
        deprecated |= {old: new for old, new in timm.models.get_deprecated_models(module).items() if new}
    classes = {cls.__name__: cls for cls, _ in built.values()}
    defaults = {name: _defaults(classes[name]) for name in CLASSES}
    architectures: dict[str, dict[str, Any]] = {name: {} for name in CLASSES}
    others: dict[str, list[str]] = {}
    for name, (cls, arguments) in built.items():
        label = cls.__name__
        if label in CLASSES:
            usual = defaults[label]
            found = {key: value for key, value in _arguments(arguments).items() if value != usual.get(key)}
            architectures[label][name] = found
        else:
            others.setdefault(label, []).append(name)
    return {
        "timm": timm.__version__,
        "defaults": defaults,
        "architectures": architectures,
        "other_classes": others,
        "deprecated": {old: new.partition(".")[0] for old, new in deprecated.items()},
    }


def text(data: dict[str, Any]) -> str:
    """Return the table as JSON with a line for each architecture."""

    def lines(value: Any, depth: int) -> str:
        if not depth or not isinstance(value, dict):
            return json.dumps(value)
        rows = (f"{json.dumps(key)}: {lines(item, depth - 1)}" for key, item in value.items())
        return "{\n" + ",\n".join(rows) + "\n}"

    sections = (f"{json.dumps(key)}: {lines(value, 2 if key == 'architectures' else 1)}" for key, value in data.items())
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    TARGET.write_text(text(table()), encoding="utf-8")
    print(f"wrote {TARGET}", file=sys.stderr)
