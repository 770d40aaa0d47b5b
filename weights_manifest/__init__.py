"""Published weights: where they are, their hashes, licences and preprocessing; one TOML file per family, no code.

A file holds ``family`` and its ``title``, then ``[defaults]`` for every model of the file, ``[formats.<format>]`` with
the conventions of one checkpoint format (that of a model's first source applies), then one ``[[model]]`` per set of
weights. ``schema.json`` describes all keys.

Parsing all files would take most of the time of ``vit-hub list``. So the text is only split at its ``[[model]]`` lines
and searched for names and for the columns of a list; a model is parsed on demand. This requires keys at the start of a
line, and a model's own tables before its sources; the tests compare with a full parse.
"""

from __future__ import annotations

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FOLDER", "Outline", "Summary", "model_data", "outlines", "summary", "titles"]

FOLDER = Path(__file__).parent

_MODEL = "[[model]]\n"
_NAMES = re.compile(r"^(id|aliases|repo|url) = (\[[^\]]*\]|.*)", re.MULTILINE)
_STRING = re.compile(r'"([^"]*)"')
_SOURCE = "\n[[model.sources]]\n"
_FIELD = re.compile(r'^(family|format|license|params|restricted|gated) = "?([^"\n]*)', re.MULTILINE)
_IMAGE_SIZE = re.compile(r"^(?:config = .*?\b)?image_size = (?:(\d+)|\[(\d+), (\d+)\])", re.MULTILINE)
_TOP1 = re.compile(r'^ *\{ name = "([^" ]+) top-1\b[^"]*", value = ([0-9.]+)', re.MULTILINE)


@dataclass(frozen=True)
class Outline:
    """Names and text of a model, enough to find it.

    Attributes:
        id: the model's own name.
        aliases: further names from the manifest.
        repos: Hugging Face repositories among its sources.
        urls: addresses among its sources.
        path: the family's file.
        text: the model's part of that file.
    """

    id: str
    aliases: tuple[str, ...]
    repos: tuple[str, ...]
    urls: tuple[str, ...]
    path: Path
    text: str


@dataclass(frozen=True)
class Summary:
    """Columns of a model in a list.

    Attributes:
        family: the ``family`` of its file.
        params: parameters of the first source, head included.
        image_size: (height, width) in pixels.
        license: as in the registry's entry.
        restricted: the licence is not an open one.
        gated: every source requires a login.
        formats: of its sources, in order of preference.
        top1: the first published top-1 accuracy: data set and percent.
    """

    family: str
    params: int
    image_size: tuple[int, int]
    license: str
    restricted: bool
    gated: bool
    formats: tuple[str, ...]
    top1: tuple[str, float] | None


@functools.cache
def outlines() -> dict[str, Outline]:
    """Return every model by id: families in alphabetical order of their files, models in the order of the file."""
    found = {}
    for path in sorted(FOLDER.glob("*.toml")):
        for text in _read(path)[1:]:
            names: dict[str, list[str]] = {"id": [], "aliases": [], "repo": [], "url": []}
            for key, value in _NAMES.findall(text):
                names[key] += _STRING.findall(value)
            [model_id] = names["id"]
            found[model_id] = Outline(
                model_id, tuple(names["aliases"]), tuple(names["repo"]), tuple(names["url"]), path, text
            )
    return found


def model_data(model_id: str, first: int = 0) -> dict[str, Any]:
    """Return one model as plain data, with its family's defaults and its first source's conventions filled in.

    Args:
        model_id: the model's own name.
        first: index of the source to put first.

    Raises:
        KeyError: no model has this id (aliases are the registry's business).
    """
    outline = outlines()[model_id]
    head = _head(outline.path)
    [model] = tomllib.loads(_MODEL + outline.text)["model"]
    defaults, formats = head.get("defaults", {}), head.get("formats", {})
    ordered = [model["sources"].pop(first), *model["sources"]]
    conventions = formats.get(ordered[0]["format"], {})
    filled = {
        table: {**defaults.get(table, {}), **conventions.get(table, {}), **model.get(table, {})}
        for table in ("config", "preprocess")
    }
    sources = [{**formats.get(source["format"], {}).get("source", {}), **source} for source in ordered]
    return {**defaults, **model, **filled, "family": head["family"], "sources": sources}


@functools.cache
def summary(model_id: str) -> Summary:
    """Return the columns of one model in a list, without parsing it.

    Raises:
        KeyError: no model has this id.
    """
    outline = outlines()[model_id]
    head = _read(outline.path)[0]
    text, *sources = outline.text.split(_SOURCE)
    # What the model states comes after what its family does, and stays.
    own = dict(_FIELD.findall(head) + _FIELD.findall(text))
    served = [dict(_FIELD.findall(source)) for source in sources]
    side, height, width = _IMAGE_SIZE.search(text + head).groups()  # type: ignore[union-attr]
    top1 = _TOP1.search(text)
    return Summary(
        family=own["family"],
        params=int(own["params"]),
        image_size=(int(height or side), int(width or side)),
        license=own["license"],
        restricted=own.get("restricted") == "true",
        gated=all(source.get("gated") == "true" for source in served),
        formats=tuple(dict.fromkeys(source["format"] for source in served)),
        top1=(top1[1], float(top1[2])) if top1 else None,
    )


def titles() -> dict[str, str]:
    """Return what each family is, by its name, in the order of :func:`outlines`."""
    heads = [_head(path) for path in dict.fromkeys(outline.path for outline in outlines().values())]
    return {head["family"]: head["title"] for head in heads}


@functools.cache
def _head(path: Path) -> dict[str, Any]:
    head: dict[str, Any] = tomllib.loads(_read(path)[0])
    return head


@functools.cache
def _read(path: Path) -> list[str]:
    """Return the file's head, then the text of each model."""
    return path.read_text(encoding="utf-8").split("\n" + _MODEL)
