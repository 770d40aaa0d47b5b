"""Names of published weights and what is known about them: no torch, no network.

The data is in :mod:`vit_hub.weights_manifest`; this module has the names that lead to it, and its types.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from vit_hub.errors import ModelNotFoundError
from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import num_parameters
from vit_hub.weights_manifest import Outline, model_data, outlines

__all__ = ["Entry", "Metric", "WeightSource", "get_config", "get_entry", "list_models", "preferring"]

_SUGGESTIONS = 5


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """One place that serves a model's weights.

    Hash, size and revision are set only if a public source documents them.

    Attributes:
        kind: ``hf`` (``repo``, ``file``, ``revision``), ``https`` (``url``; also ``s3://``) or ``bundled`` (``file``).
        format: the checkpoint format: ``vit_jax``, ``timm``, ``hf`` and so on.
        repo: Hugging Face repository.
        file: file in the repository, or in the package's own folder ``vit_hub/data``.
        file_assumed: the file's name is not documented but follows the repository's convention.
        revision: commit of the repository, 40 hex digits.
        url: address of the file.
        sha256: of the file, 64 hex digits.
        sha256_prefix: its first digits, if only they are documented.
        size: bytes.
        evidence: the public source of hash, size and revision.
        relation: how the file's tensors relate to the weight set: the ``same``, a ``subset`` (no head, no layer before
            the head) or ``derived`` (values changed).
        config: fields that differ from the entry's config.
        params: parameters of this file, if their number differs from the entry's.
        gated: the server requires a login and acceptance of its terms.
        note: remark for users of this source.
    """

    kind: str
    format: str
    repo: str | None = None
    file: str | None = None
    file_assumed: bool = False
    revision: str | None = None
    url: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    size: int | None = None
    evidence: str = ""
    relation: str = "same"
    config: dict[str, Any] = field(default_factory=dict)
    params: int | None = None
    gated: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One published result: ``value`` in percent at ``image_size`` pixels (None: not stated), from ``evidence``."""

    name: str
    value: float
    image_size: int | None = None
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One set of weights.

    Attributes:
        id: unique name, such as ``vit-b16.augreg2-in21k-ft-in1k-224``.
        aliases: other names: short ones, timm names, Hugging Face repositories, stems of original files.
        family: the manifest file it is in.
        config: with the conventions (activation, norm epsilon, resizing) of the first source's project.
        sources: in order of preference.
        license: SPDX identifier in lower case, or the licence's own name; ``unknown`` if none is stated.
        restricted: the licence is not an open one: no commercial use, or terms of its own.
        data: data sets of the stages ``pretrain`` and ``finetune``.
        preprocess: evaluation preprocessing of the first source's project: fields of
            :class:`vit_hub.preprocessing.spec.Preprocessing`; empty: not documented, and as the files themselves say.
        labels: list of the class names, for :func:`vit_hub.preprocessing.labels.label_names`; None: unknown.
        metrics: published results.
        params: parameters of the first source, of the image tower with its head.
        evidence: public documents that state config, preprocessing, licence and sources.
        notes: remarks for users.
    """

    id: str
    aliases: tuple[str, ...]
    family: str
    config: ViTConfig
    sources: tuple[WeightSource, ...]
    license: str
    data: dict[str, str]
    preprocess: dict[str, Any]
    labels: str | None = None
    metrics: tuple[Metric, ...] = ()
    params: int | None = None
    restricted: bool = False
    evidence: str = ""
    notes: tuple[str, ...] = ()


def list_models(pattern: str | None = None) -> list[str]:
    """List ids in the manifest's order: family by family, small models first.

    Args:
        pattern: keep the models with a name that matches, as in a shell (``*b16*``, ``google/*``), ignoring case.
    """
    if pattern is None:
        return list(outlines())
    matches = re.compile(fnmatch.translate(pattern.lower())).match
    found = {model_id for name, ids in _names().items() if matches(name) for model_id in ids}
    return [model_id for model_id in outlines() if model_id in found]


def get_entry(name: str) -> Entry:
    """Return the entry with this id, alias, timm name, Hugging Face repository id or original file's stem.

    Case is ignored, and ``_`` and ``-`` are interchangeable if that leaves one model. A repository, or timm's full
    name, selects that copy: it becomes the first source, and its project's conventions are the entry's.

    Raises:
        ModelNotFoundError: no model or more than one has the name; the hint names the nearest ones.
    """
    wanted = _loose(name)
    ids = _names().get(name.lower()) or _loosely_named(wanted)
    if len(ids) > 1:
        raise ModelNotFoundError(f"{name!r} names {len(ids)} models", hint=f"say which: {', '.join(ids)}")
    if not ids:
        raise ModelNotFoundError(f"no model is called {name!r}", hint=_suggestion(name))
    entry, copies = _entry(ids[0]), (wanted, f"timm/{wanted}")
    return next((preferring(entry, source) for source in entry.sources if _loose(source.repo or "") in copies), entry)


def preferring(entry: Entry, source: WeightSource) -> Entry:
    """Return the entry with one of its sources as the first, and with the conventions of that source's project."""
    if source == entry.sources[0] or source not in entry.sources or entry.id not in outlines():
        return entry
    return _entry(entry.id, _entry(entry.id).sources.index(source))


def get_config(name: str) -> ViTConfig:
    """Return the config of a model, without its weights: ``VisionTransformer(config)`` builds it.

    Args:
        name: any name of :func:`list_models`, alias, timm name, Hugging Face repository or original file's stem.

    Raises:
        ModelNotFoundError: no model or more than one has the name; the hint names the nearest ones.
    """
    return get_entry(name).config


def _entry(model_id: str, first: int = 0) -> Entry:
    data, outline = model_data(model_id, first), outlines()[model_id]
    config = ViTConfig.from_dict(data["config"])
    own = data["sources"][0]
    if first:
        data["params"] = own.get("params") or num_parameters(config.replace(**own.get("config", {})))
    preprocess = {key: tuple(value) if isinstance(value, list) else value for key, value in data["preprocess"].items()}
    return Entry(
        **{
            **data,
            "config": config,
            "aliases": tuple(dict.fromkeys((*outline.aliases, *_derived_names(outline)))),
            "preprocess": {"image_size": config.image_size, **preprocess} if "mean" in preprocess else {},
            "sources": tuple(WeightSource(**source) for source in data["sources"]),
            "metrics": tuple(Metric(**metric) for metric in data.get("metrics", ())),
            "notes": tuple(data.get("notes", ())),
        }
    )


def _derived_names(outline: Outline) -> Iterator[str]:
    """Derive names from a model's sources: repositories, timm's name, stems of files."""
    for repo in outline.repos:
        yield repo
        if repo.startswith("timm/"):
            yield repo.removeprefix("timm/")
    for url in outline.urls:
        yield PurePosixPath(url).stem


@functools.cache
def _names() -> dict[str, tuple[str, ...]]:
    """Map every name in lower case to the ids it stands for; names that the manifest gives explicitly have one."""
    derived: dict[str, dict[str, None]] = {}
    given: dict[str, tuple[str, ...]] = {}
    for outline in outlines().values():
        # A timm name without its tag is timm's default if it is an alias, else it stands for all models that have it.
        architectures = (repo.split("/")[1].split(".")[0] for repo in outline.repos if repo.startswith("timm/"))
        for name in (*_derived_names(outline), *architectures):
            derived.setdefault(name.lower(), {})[outline.id] = None
        for name in (outline.id, *outline.aliases):
            given[name.lower()] = (outline.id,)
    return {**{name: tuple(ids) for name, ids in derived.items()}, **given}


def _loosely_named(wanted: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found for name, ids in _names().items() if _loose(name) == wanted for found in ids))


def _loose(name: str) -> str:
    return name.lower().replace("_", "-")


def _suggestion(name: str) -> str:
    """Suggest the names nearest to a mistyped one: names that continue it first, one name per model."""
    import difflib

    wanted = _loose(name)
    known = {_loose(known): known for known, ids in _names().items() if len(ids) == 1}
    longer = sorted((loose for loose in known if wanted and wanted in loose), key=len)
    nearest: dict[tuple[str, ...], str] = {}
    for loose in [*longer, *difflib.get_close_matches(wanted, known, n=4 * _SUGGESTIONS)]:
        nearest.setdefault(_names()[known[loose]], known[loose])
    if not nearest:
        return "`vit-hub list` shows all names"
    return f"did you mean {', '.join(list(nearest.values())[:_SUGGESTIONS])}?"
