"""Findings about the config: is it the one that the model was published or trained with?

Outputs cannot tell: every program that follows the config gives its numbers, wrong ones too. So the config is compared
with what is recorded of its origin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_hub.certifying.certificate import Finding
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.read import CONFIG_KEY, CONFIG_SHA256_KEY, Checkpoint, read_raw
from vit_hub.converters.recognize import recognize
from vit_hub.converters.write import as_stored
from vit_hub.errors import VitHubError
from vit_hub.hub.cache.hashes import sha256_of
from vit_hub.hub.fetch import fetch
from vit_hub.hub.resolve import Resolved, open_resolved
from vit_hub.model.config import CHOICES, RESIZING, ViTConfig
from vit_hub.model.shapes import tensor_shapes
from vit_hub.registry import Entry, get_entry, list_models, preferring

__all__ = ["config_findings"]

# Fields that users change for their own ends (sizes, what is pooled, the head), or that are without effect at the
# model's own size.
_FREE = ("image_size", "patch_size", *RESIZING)
_READ_OUT = ("pool", "head", "final_norm", "representation", "projection", "num_classes")
_BY_NAME = "by the name in the file"
# Keys of config files that name an activation.
_ACTIVATION_KEYS = ("hidden_act", "act_layer", "act_cfg", "activation", "hidden_activation", "quick_gelu")


def config_findings(ckpt: Checkpoint, given: Mapping[str, Any]) -> list[Finding]:
    """Compare the config of a checkpoint with the records of its origin.

    Args:
        ckpt: the checkpoint.
        given: config fields that the caller states now, and answers for.
    """
    stored = as_stored(ckpt)
    published = _as_published(ckpt, given)
    found = [_seal(ckpt), _as_read(ckpt, stored, given), published]
    if published.verdict == "none":
        found.append(_activation(ckpt, stored, given))
    return [finding for finding in found if finding is not None]


def _seal(ckpt: Checkpoint) -> Finding | None:
    """Compare the config of a canonical file with the hash that was written beside it."""
    metadata = ckpt.source.metadata
    if ckpt.format != "canonical" or CONFIG_SHA256_KEY not in metadata:
        return None
    name = "config in the file"
    if hashlib.sha256(metadata[CONFIG_KEY].encode()).hexdigest() == metadata[CONFIG_SHA256_KEY]:
        return Finding(name=name, verdict="pass", text="as vit-hub wrote it")
    return Finding(name=name, verdict="fail", text="it was changed after vit-hub wrote it: its sha256 is another")


def _as_read(ckpt: Checkpoint, stored: RawCheckpoint | None, given: Mapping[str, Any]) -> Finding | None:
    """Compare the config of a canonical file with the one that its source gives when it is read again."""
    if ckpt.format != "canonical":
        return None
    name, source = "config of the source", ckpt.passport.format
    if stored is None:
        return Finding(name=name, verdict="none", text="the file has no record of a source in another format")
    config, entry = ckpt.config, _entry(ckpt.passport.weights_id)
    options = {"num_heads": config.num_heads, "image_size": config.image_size}
    try:
        again = read_raw(
            stored,
            format=source,
            overrides={**ckpt.passport.overrides, **options},
            hints={"pool": entry.config.pool} if entry else {},
        ).config
    except VitHubError as error:
        return Finding(name=name, verdict="fail", text=f"it cannot be read again as {source}: {error.message}")
    return _verdict(name, config, [(f"the {source} source says", again)], given)


def _as_published(ckpt: Checkpoint, given: Mapping[str, Any]) -> Finding:
    """Compare the config with the registry's, where the weights are known by name, hash or values."""
    name = "config as published"
    for how, entry in _known(ckpt):
        # Projects compute a model with their own activation: the copy of one is as good as that of another.
        copies = [preferring(entry, source).config.replace(**source.config) for source in entry.sources]
        # Nobody can answer for another config of weights that are these; weights that are only named so may be tuned.
        answered = given if how == _BY_NAME else {}
        found = _verdict(name, ckpt.config, [(f"{entry.id} has", copy) for copy in copies], answered)
        return dataclasses.replace(found, text=f"{found.text} ({how})")
    return Finding(name=name, verdict="none", text="the weights are not known by name, hash or values")


def _verdict(name: str, config: ViTConfig, wanted: list[tuple[str, ViTConfig]], given: Mapping[str, Any]) -> Finding:
    """Compare a config with several, one of which it has to agree with."""
    differences = [(whose, other, _different(config, other, given)) for whose, other in wanted]
    whose, other, fields = min(differences, key=lambda found: len(found[2]))
    if not fields:
        return Finding(name=name, verdict="pass", text=f"{whose} the same")
    told = "; ".join(f"{field} is {getattr(config, field)!r}, {whose} {getattr(other, field)!r}" for field in fields)
    return Finding(name=name, verdict="fail", text=told)


def _different(a: ViTConfig, b: ViTConfig, given: Mapping[str, Any]) -> list[str]:
    """Fields that change what the blocks compute and differ, without those that shapes of tensors tell."""
    free = {*_FREE, *given, "in_chans", "depth"}
    return [
        item.name
        for item in dataclasses.fields(ViTConfig)
        if item.name not in free
        and not item.name.startswith(_READ_OUT)
        and getattr(a, item.name) != getattr(b, item.name)
    ]


def _entry(weights_id: str) -> Entry | None:
    try:
        return get_entry(weights_id) if weights_id else None
    except VitHubError:
        return None  # of an earlier registry


def _known(ckpt: Checkpoint) -> Iterator[tuple[str, Entry]]:
    """Yield the entries of the registry that these weights are, and how that is known, the surest first."""
    hashes = {sha256_of(file) for file in ckpt.source.files}
    hashes |= {item["sha256"] for item in ckpt.passport.source if "sha256" in item}
    entries = _entries()
    for entry in entries:
        if any(source.sha256 in hashes for source in entry.sources if source.sha256):
            yield "by the sha256 of the file", entry
    for entry in entries:
        if _has_shapes(entry, ckpt) and any(_same_values(ckpt, other) for other in _local_copies(entry)):
            yield "its values are those of the copy on this machine", entry
    named = _entry(ckpt.passport.weights_id)
    if named is not None:
        yield _BY_NAME, named


@functools.cache
def _entries() -> list[Entry]:
    return [get_entry(name) for name in list_models()]


def _has_shapes(entry: Entry, ckpt: Checkpoint) -> bool:
    names = ("embed_dim", "depth", "mlp_dim", "patch_size", "in_chans")
    return all(getattr(entry.config, name) == getattr(ckpt.config, name) for name in names)


def _local_copies(entry: Entry) -> Iterator[Checkpoint]:
    """Open the copies of a model that are on this machine."""
    for source in entry.sources:
        try:
            yield open_resolved(
                Resolved(fetch(source, offline=True), hints={"num_heads": entry.config.num_heads}), offline=True
            )
        except VitHubError:
            continue


def _same_values(a: Checkpoint, b: Checkpoint) -> bool:
    """Return whether all tensors of both blocks and embeddings are equal; heads may differ."""
    names = [name for name in tensor_shapes(a.config) if name.startswith(("blocks.", "patch_embed."))]
    # Small tensors first: two models differ in the first.
    return all(
        name in b.tensors
        and a.tensors[name].shape == b.tensors[name].shape
        and np.array_equal(a.tensors[name].read(), b.tensors[name].read())
        for name in sorted(names, key=lambda name: a.tensors[name].nbytes)
    )


def _activation(ckpt: Checkpoint, stored: RawCheckpoint | None, given: Mapping[str, Any]) -> Finding:
    """Compare the activation with the one that its project has unless told otherwise, and with published models.

    No tensor shows it, and a wrong one gives plausible outputs. Every project has one of its own for each architecture.
    """
    name, act = "activation", ckpt.config.act
    kind = ckpt.passport.format if ckpt.format == "canonical" else ckpt.format
    if "act" in given:
        return Finding(name=name, verdict="none", text=f"{act}, as you say")
    if act == ckpt.source.program_fields.get("act"):
        return Finding(name=name, verdict="pass", text=f"{act}, as the program in the file computes")
    usual = _usual_activations(ckpt, stored)
    if act in usual:
        return Finding(name=name, verdict="pass", text=f"{act}, which {kind} has for this architecture")
    published = next(_published_with(ckpt.config, kind.partition("-")[0]), None)
    if published is not None:
        return Finding(name=name, verdict="pass", text=f"{act}, as published models of this kind, such as {published}")
    instead = f"{kind} has {' or '.join(usual)} for this architecture unless told otherwise, and no" if usual else "no"
    text = (
        f"{act}: {instead} published model of this kind has {act}; if it was trained with it, say so: --set act={act}"
    )
    return Finding(name=name, verdict="fail", text=text)


def _usual_activations(ckpt: Checkpoint, stored: RawCheckpoint | None) -> list[str]:
    """Return what the project computes where config files and caller name none, and its published models have."""
    if stored is None:
        return []
    config, prefix = ckpt.config, ckpt.passport.prefix or None
    overrides = {**ckpt.passport.overrides, "num_heads": config.num_heads, "image_size": config.image_size}
    overrides.pop("act", None)
    label = ckpt.passport.format if ckpt.format == "canonical" else ckpt.format
    raw = dataclasses.replace(stored, sidecars=_without_activation(stored.sidecars))
    found: set[str | None] = set()
    with contextlib.suppress(VitHubError):
        found.add(read_raw(raw, format=label, overrides=overrides, prefix=prefix).config.act)
    with contextlib.suppress(VitHubError):
        conventions = recognize(stored, label, prefix).format.conventions
        # Gated layers have SiLU in nearly all projects (arXiv 2002.05202).
        found.add(conventions.get("act") if config.ffn == "mlp" else "silu")
    return sorted(act for act in found if act is not None)


def _without_activation(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_activation(item) for key, item in value.items() if key not in _ACTIVATION_KEYS}
    return [_without_activation(item) for item in value] if isinstance(value, list) else value


def _published_with(config: ViTConfig, kind: str) -> Iterator[str]:
    """Yield published models of a format that are built as a config says, activation included."""
    free = {*RESIZING, "stem_standardize"}
    built = [name for name in CHOICES if name not in free and not name.startswith(_READ_OUT)]
    for entry in _entries():
        for source in entry.sources:
            if source.format == kind or kind == "canonical":
                copy = preferring(entry, source).config
                if all(getattr(copy, name) == getattr(config, name) for name in built):
                    yield entry.id
