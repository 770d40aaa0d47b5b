"""A model's config, where it came from and what was left out, as text and as data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from vit_hub.cli.output import Output, amount, count_of, plain
from vit_hub.model.config import ViTConfig
from vit_hub.model.flops import activation_values, forward_flops, tokens_of
from vit_hub.model.shapes import num_parameters
from vit_hub.shown import size_text

__all__ = ["config_data", "config_lines", "dropped_lines", "grouped", "memory_of", "value_text"]

_SHOWN = 3
# Fields that say what a model is, even where they have their usual values.
_ESSENTIAL = (
    *("image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_dim"),
    *("act", "norm_eps", "class_token", "pos_embed", "pool", "num_classes", "resize"),
)


def config_lines(
    output: Output,
    config: ViTConfig,
    inferred: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    every: bool = False,
) -> list[str]:
    """Describe a model: size, tokens, operations, then its fields: those that say what it is, or have unusual values.

    Args:
        output: how wide lines may be.
        config: the model.
        inferred: field -> where it came from; None if it was not read from a file.
        overrides: fields that the user set.
        every: list all fields.
    """
    patches = f"{size_text(config.grid_size)} patches of {size_text(config.patch_size)} pixels"
    tokens = " + ".join([*_prefix_tokens(config), patches])
    lines = [output.heading("Model")]
    lines += output.fields(
        [
            ("parameters", f"{num_parameters(config):,}"),
            ("operations", f"{amount(forward_flops(config), 'FLOP')} for one image (a multiply-add is two)"),
            ("tokens", f"{tokens_of(config)}: {tokens}"),
            ("memory", _memory_text(config)),
        ]
    )
    usual, origins = vars(ViTConfig()), {**(inferred or {}), **dict.fromkeys(overrides or {}, "--set")}
    shown = {
        name: value_text(value)
        for name, value in vars(config).items()
        if every or name in _ESSENTIAL or value != usual[name] or name in (overrides or {})
    }
    hidden = len(vars(config)) - len(shown)
    where = "--json" if inferred is None else "-v (inspect) or --json"
    others = ("others", f"{hidden} fields have their usual values; {where} has all" if hidden else "")
    if len(set(origins.values())) <= 1:
        title = ", from ".join(["Config", *set(origins.values())])
        return [*lines, "", output.heading(title), *output.fields([*shown.items(), others])]
    rows = [(name, value, origins.get(name, "default")) for name, value in shown.items()]
    table = output.table(("field", "value", "taken from"), rows, indent="  ")
    return [*lines, "", output.heading("Config"), *table, *output.fields([others])]


def _prefix_tokens(config: ViTConfig) -> list[str]:
    named = [("class token", config.class_token), ("distillation token", config.distilled)]
    found = [name for name, present in named if present]
    return [*found, count_of(config.num_registers, "register")] if config.num_registers else found


def _memory_text(config: ViTConfig) -> str:
    full = memory_of(config)["float32"]
    image = "" if full["activations"] is None else f" and about {amount(full['activations'], 'B')} for one image"
    return f"{amount(full['weights'] or 0, 'B')} of weights{image} in float32, half of it in bfloat16"


def memory_of(config: ViTConfig) -> dict[str, dict[str, int | None]]:
    """Estimate bytes by dtype: of the weights, and of what a forward pass without gradients holds for one image."""
    values = {"weights": num_parameters(config), "activations": activation_values(config)}
    return {
        dtype: {name: count and count * size for name, count in values.items()}
        for dtype, size in (("float32", 4), ("bfloat16", 2))
    }


def config_data(config: ViTConfig) -> dict[str, Any]:
    """Return the description of a model as JSON-ready data."""
    return {
        "config": config.to_dict(),
        "params": num_parameters(config),
        "flops": forward_flops(config),
        "grid_size": config.grid_size,
        "tokens": tokens_of(config),
        "memory_bytes": memory_of(config),
    }


def dropped_lines(output: Output, dropped: Mapping[str, str]) -> list[str]:
    """List what was left out: one line per reason, with the number of tensors and the first of them."""
    rows = []
    for reason, names in grouped(dropped).items():
        more = ", ..." if len(names) > _SHOWN else ""
        rows.append((count_of(len(names), "tensor"), f"{reason}: {', '.join(names[:_SHOWN])}{more}"))
    return output.fields(rows)


def grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Invert name -> reason: reason -> names, in the order of their first appearance."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found


def value_text(value: Any) -> str:
    """Write a config value as ``--set`` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value in (None, ()):
        return "none"
    if isinstance(value, (tuple, list)):
        return ("x" if all(isinstance(item, int) for item in value) else ", ").join(map(value_text, value))
    if dataclasses.is_dataclass(value):
        return json.dumps(plain(value))
    return str(value)
