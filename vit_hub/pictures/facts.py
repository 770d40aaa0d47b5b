"""Facts about a model, as pairs of a name and a text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_hub.errors import ModelNotFoundError
from vit_hub.model.config import ViTConfig
from vit_hub.model.flops import forward_flops, tokens_of
from vit_hub.model.shapes import num_parameters
from vit_hub.pictures.subject import Subject
from vit_hub.preprocessing.of_checkpoint import class_names
from vit_hub.preprocessing.spec import Preprocessing
from vit_hub.registry import get_entry
from vit_hub.shown import size_text

__all__ = ["facts_of"]

_FEW = 5  # names of classes


def facts_of(subject: Subject, preprocessing: Preprocessing | None) -> list[tuple[str, str]]:
    """Return what a reader wants to know about a model: where it comes from, its size, parts, input and output."""
    config, passport = subject.config, subject.model.passport
    flops = forward_flops(config)
    found = [
        *(_origin(passport) if passport else ()),
        ("parameters", f"{num_parameters(config):,}"),
        ("operations", f"{flops / 1e9:,.3g} GFLOP for one image (a multiply-add is two)"),
        ("image", f"{size_text(config.image_size)} pixels, {config.in_chans} channel{'s' * (config.in_chans > 1)}"),
        (
            "patches",
            f"{size_text(config.grid_size)} of {size_text(config.pixels_per_patch)} pixels; {tokens_of(config)} tokens",
        ),
        ("encoder", f"{config.depth} blocks, width {config.embed_dim}, {config.num_heads} heads, MLP {config.mlp_dim}"),
        ("parts", ", ".join(_parts(config))),
        ("positions", _positions(config)),
        ("pooling", config.pool),
        ("classes", _classes(subject)),
        ("preprocessing", _preprocessing(preprocessing) if preprocessing else ""),
    ]
    return [(name, text) for name, text in found if text]


def _origin(passport: Any) -> Iterator[tuple[str, str]]:
    """Where the weights come from, by a ``vit_hub.converters.passport.Passport`` and the registry."""
    yield "weights", passport.weights_id
    yield "format", passport.format
    yield "file", "; ".join(map(_file, passport.source))
    yield "licence", passport.license
    with contextlib.suppress(ModelNotFoundError):
        entry = get_entry(passport.weights_id)
        yield "trained on", "; ".join(entry.data.values())
        yield "published", "; ".join(f"{metric.name} {metric.value}%" for metric in entry.metrics)


def _file(source: Mapping[str, Any]) -> str:
    size, sha256 = source.get("size"), source.get("sha256")
    about = ([f"{size:,} bytes"] if isinstance(size, int) else []) + ([f"sha256 {sha256}"] if sha256 else [])
    return f"{source.get('file', '')} ({', '.join(about)})" if about else str(source.get("file", ""))


def _parts(config: ViTConfig) -> list[str]:
    named = {
        "class token": config.class_token,
        "distillation token": config.distilled,
        f"{config.num_registers} registers": config.num_registers,
        f"{config.num_detection_tokens} detection tokens": config.num_detection_tokens,
        f"{config.stem} stem": config.stem != "patch",
        config.act: True,
        config.ffn: config.ffn != "mlp",
        "layer scale": config.layer_scale,
        "normed queries and keys": config.qk_norm,
        "RMSNorm": config.norm != "layer",
        "windows": config.windows,
        "differential attention": config.differential,
    }
    return [name for name, there in named.items() if there]


def _positions(config: ViTConfig) -> str:
    found = [
        config.pos_embed if config.pos_embed != "none" else "",
        "rotary" if config.rope else "",
        f"relative ({config.rel_pos})" if config.rel_pos != "none" else "",
    ]
    return ", ".join(filter(None, found)) or "none"


def _classes(subject: Subject) -> str:
    if not subject.config.num_classes:
        return "none: the model has no head"
    names = class_names(subject.model)
    if names is None:
        return f"{subject.config.num_classes:,}, whose names are not known"
    more = ", ..." if len(names) > _FEW else ""
    return f"{len(names):,}: {', '.join(name.split(',')[0] for name in names[:_FEW])}{more}"


def _preprocessing(spec: Preprocessing) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
    sizes = f"{spec.interpolation} to {size_text(spec.resize_to)}, {spec.crop_mode} {size_text(spec.image_size)}"
    return f"{sizes}; mean {mean}; std {std}"
