"""Which weights exist, where they are, their hashes, licences and preprocessing: one TOML file a family, no code.

A file holds ``family``, then ``[defaults]`` that every model of the file takes, ``[formats.<format>]`` with the
conventions of one checkpoint format (the format of a model's first source decides), then one ``[[model]]`` a weight
set. ``schema.json`` describes it all.

Parsing all of it would take most of the time of ``vit-hub list``. So the text is only cut at its ``[[model]]`` lines
and searched for names; a model is parsed when it is asked for. That needs ``id``, ``aliases``, ``repo`` and ``url`` to
stand at the start of a line, which the tests check against a full parse.
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

__all__ = ["FOLDER", "Outline", "outlines", "record"]

FOLDER = Path(__file__).parent

_MODEL = "[[model]]\n"
_NAMES = re.compile(r"^(id|aliases|repo|url) = (\[[^\]]*\]|.*)", re.MULTILINE)
_STRING = re.compile(r'"([^"]*)"')


@dataclass(frozen=True)
class Outline:
    """What finding a model needs to know about it.

    Attributes:
        id: the model's own name.
        aliases: further names that the manifest gives it.
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


@functools.cache
def outlines() -> dict[str, Outline]:
    """Every model by id: families in alphabetical order of their files, models in the order of the file."""
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


def record(model_id: str) -> dict[str, Any]:
    """One model as plain data, with the defaults of its family and the conventions of its first source filled in.

    Raises:
        KeyError: no model has this id (aliases are the registry's business).
    """
    outline = outlines()[model_id]
    head = _head(outline.path)
    [model] = tomllib.loads(_MODEL + outline.text)["model"]
    defaults, formats = head.get("defaults", {}), head.get("formats", {})
    conventions = formats.get(model["sources"][0]["format"], {})
    filled = {
        table: {**defaults.get(table, {}), **conventions.get(table, {}), **model.get(table, {})}
        for table in ("config", "preprocess")
    }
    sources = [{**formats.get(source["format"], {}).get("source", {}), **source} for source in model["sources"]]
    return {**defaults, **model, **filled, "family": head["family"], "sources": sources}


@functools.cache
def _head(path: Path) -> dict[str, Any]:
    head: dict[str, Any] = tomllib.loads(_read(path)[0])
    return head


@functools.cache
def _read(path: Path) -> list[str]:
    """The file's head, then the text of each model."""
    return path.read_text(encoding="utf-8").split("\n" + _MODEL)
