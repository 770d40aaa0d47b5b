"""Names of published weights and what is known about them: no torch, no network.

The data is in :mod:`vit_hub.weights_manifest`; this module has the names that lead to it, and its types.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from vit_hub.errors import ConfigError, ModelNotFoundError
from vit_hub.model.config import ViTConfig
from vit_hub.model.flops import forward_flops
from vit_hub.model.shapes import num_parameters
from vit_hub.shown import ShortRepr
from vit_hub.weights_manifest import Outline, model_data, outlines, summary

__all__ = [
    "COMMERCIAL",
    "SORTS",
    "UNKNOWN_LICENSE",
    "Entry",
    "Metric",
    "WeightSource",
    "get_config",
    "get_entry",
    "imagenet_top1",
    "list_models",
    "namesake",
    "preferring",
]

COMMERCIAL = "commercial"
"""Stands for every licence that is stated and an open one, where a licence is asked for."""
UNKNOWN_LICENSE = "unknown"
"""The licence of weights without a stated one."""
_SUGGESTIONS = 5
# Names of other architectures: of networks of convolutions, and of transformers that are no plain ViT.
_OTHERS = {
    "not a Vision Transformer": (
        "resnet", "resnext", "wide_resnet", "efficientnet", "convnext", "mobilenet", "densenet", "vgg", "alexnet",
        "inception", "regnet", "xception", "squeezenet", "shufflenet", "nfnet", "ghostnet", "bert", "gpt", "llama",
        "yolov", "yolo11", "unet",
    ),
    "not a plain Vision Transformer, of one resolution throughout": (
        "swin", "pvt", "maxvit", "coatnet", "levit", "mvit", "hiera", "cvt", "twins", "nest", "mobilevit", "crossvit",
        "cait", "xcit", "poolformer", "efficientformer", "fastvit", "davit", "gcvit", "tiny_vit", "edgenext",
        "segformer",
    ),
}  # fmt: skip
_SIZES = ("image_size", "patch_size")
_WILDCARDS = "*?[]"


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


@dataclass(frozen=True, kw_only=True, repr=False)
class Entry(ShortRepr):
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

    def _facts(self) -> dict[str, object]:
        return {
            "id": self.id,
            "family": self.family,
            "params": self.params,
            "image_size": self.config.image_size,
            "license": self.license,
            "formats": [source.format for source in self.sources],
        }


def list_models(
    pattern: str | Iterable[str] | None = None,
    *,
    family: str | None = None,
    license: str | None = None,
    max_params: float | None = None,
    max_gflops: float | None = None,
    min_top1: float | None = None,
    head: bool | None = None,
    format: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    filter: Mapping[str, Any] | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> list[str]:
    """List the ids of models that meet all conditions: family by family, small models first.

    A model whose fact is not recorded does not meet a condition on it, and comes last when sorted by it.

    Args:
        pattern: words, in one string or several, in any order; each is part of a name of the model (id, alias, timm's
            name, repository, file) or of its family. A word with ``*`` or ``?`` matches a whole name, as in a shell
            (``google/*``). Case is ignored, and ``_`` and ``-`` are the same.
        family: name of a file of the manifest, such as ``augreg``.
        license: a licence such as ``apache-2.0``, or ``commercial``: any stated licence that is an open one.
        max_params: most parameters, head included.
        max_gflops: most billions of floating-point operations for one image (a multiply-add is two).
        min_top1: least published top-1 accuracy of the model's own head on ImageNet-1k, in percent.
        head: with a head, or without one.
        format: of one of the published files, such as ``timm``.
        image_size: height and width in pixels, or one number for both.
        filter: config field -> value, such as ``{"patch_size": (14, 14)}``.
        sort: a name of :data:`SORTS`: the best first for ``top1``, else the smallest; reversed by ``-`` before it.
        limit: most models.

    Raises:
        ConfigError: there is no such field to filter or name to sort by.
    """
    chosen = list(outlines())
    for word in _words(pattern):
        found = _matching(word)
        chosen = [name for name in chosen if name in found]
    size, fields = _pair(image_size), {key: _pair(value, key) for key, value in (filter or {}).items()}
    unknown = sorted(fields.keys() - {item.name for item in dataclasses.fields(ViTConfig)})
    if unknown:
        raise ConfigError(f"filter: the config has no field {unknown[0]!r}", hint="see vit_hub.ViTConfig")
    conditions: tuple[tuple[object, Callable[[str], bool]], ...] = (
        (family, lambda name: summary(name).family == family),
        (license, lambda name: _is_licensed(name, str(license).lower())),
        (max_params, lambda name: summary(name).params <= (max_params or 0)),
        (format, lambda name: format in summary(name).formats),
        (size, lambda name: summary(name).image_size == size),
        (min_top1, lambda name: (imagenet_top1(name) or -math.inf) >= (min_top1 or 0)),
        (head, lambda name: (get_config(name).num_classes > 0) == head),
        (filter, lambda name: fields.items() <= vars(get_config(name)).items()),
        (max_gflops, lambda name: _gflops(name) <= (max_gflops or 0)),
    )
    for given, holds in conditions:
        if given is not None:
            chosen = [name for name in chosen if holds(name)]
    return _sorted(chosen, sort)[:limit]


def _pair(value: Any, field: str = "image_size") -> Any:
    """Return a size given as one number as (height, width), lists as tuples; other values as they are."""
    if isinstance(value, list):
        return tuple(value)
    return (value, value) if isinstance(value, int) and field in _SIZES else value


def _words(pattern: str | Iterable[str] | None) -> list[str]:
    texts = [pattern] if isinstance(pattern, str) else pattern or ()
    return [word for text in texts for word in text.split()]


def _matching(word: str) -> set[str]:
    """Return the ids of the models with a name, or in a family, that has this word or matches this pattern."""
    loose = _loose(word)
    whole = fnmatch.translate(loose if set(word) & set(_WILDCARDS) else f"*{loose}*")
    matches = re.compile(whole).match
    named = {model_id for name, ids in _names().items() if matches(_loose(name)) for model_id in ids}
    return named | {model_id for model_id in outlines() if matches(summary(model_id).family)}


def _is_licensed(model_id: str, license: str) -> bool:
    found = summary(model_id)
    if license == COMMERCIAL:
        return not found.restricted and found.license != UNKNOWN_LICENSE
    return found.license == license


def _gflops(model_id: str) -> float:
    return forward_flops(get_config(model_id)) / 1e9


def imagenet_top1(model_id: str) -> float | None:
    """Return the first published top-1 accuracy of a model's own head on ImageNet-1k, in percent; None: unknown."""
    data, value = summary(model_id).top1 or ("", None)
    return value if data == "imagenet-1k" else None


SORTS: Mapping[str, Callable[[str], Any]] = {
    "name": lambda name: name,
    "params": lambda name: summary(name).params,
    "gflops": _gflops,
    "image-size": lambda name: math.prod(summary(name).image_size),
    "top1": lambda name: None if imagenet_top1(name) is None else -(imagenet_top1(name) or 0),
}
"""Names to sort models by -> the key of a model, the smallest first; None: unknown."""


def _sorted(names: list[str], sort: str | None) -> list[str]:
    """Sort ids by one of :data:`SORTS`, reversed after ``-``; those whose fact is unknown come last either way."""
    if sort is None:
        return names
    key = SORTS.get(sort.removeprefix("-"))
    if key is None:
        raise ConfigError(f"sort: models are not sorted by {sort!r}", hint=f"by {', '.join(SORTS)}, or - before one")
    keys = {name: key(name) for name in names}
    known = sorted((name for name in names if keys[name] is not None), key=keys.__getitem__, reverse=sort[0] == "-")
    return known + [name for name in names if keys[name] is None]


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
        other = next((text for text, stems in _OTHERS.items() if wanted.startswith(tuple(map(_loose, stems)))), None)
        if other:
            raise ModelNotFoundError(f"{name!r} is {other}", hint="`vit-hub list` shows the models there are")
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


def namesake(name: str) -> str | None:
    """Return the short name with the letters and digits of one that is spelled otherwise: ``vit-b16`` of ViT-B/16."""
    return _spelled().get(_letters(name))


@functools.cache
def _spelled() -> dict[str, str]:
    """Map the letters and digits of every name that is no repository's to the name, the manifest's own first."""
    own = [name for outline in outlines().values() for name in (*outline.aliases, outline.id)]
    names = [name for name in (*own, *_names()) if "/" not in name and len(_names()[name.lower()]) == 1]
    return {_letters(name): name for name in reversed(names)}


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _suggestion(name: str) -> str:
    """Suggest the names nearest to a mistyped one: names that continue it first, one name per model."""
    import difflib

    spelled = namesake(name)
    if spelled:
        return f"did you mean {spelled}?"
    wanted = _loose(name)
    known = {_loose(known): known for known, ids in _names().items() if len(ids) == 1}
    longer = sorted((loose for loose in known if wanted and wanted in loose), key=len)
    nearest: dict[tuple[str, ...], str] = {}
    for loose in [*longer, *difflib.get_close_matches(wanted, known, n=4 * _SUGGESTIONS)]:
        nearest.setdefault(_names()[known[loose]], known[loose])
    if not nearest:
        return "`vit-hub list` shows all names"
    return f"did you mean {', '.join(list(nearest.values())[:_SUGGESTIONS])}?"
