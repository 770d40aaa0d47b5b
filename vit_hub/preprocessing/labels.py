"""Names of the classes of a model's head: lists that vit-hub ships, and those that config files state.

The data files are in ``vit_hub/data``.
"""

from __future__ import annotations

import copy
import functools
import gzip
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_hub.errors import ConfigError
from vit_hub.preprocessing.mmengine import META

__all__ = [
    "LABEL_FILES",
    "label_keys",
    "label_names",
    "names_of",
    "placeholders",
    "stated_descriptions",
    "stated_labels",
    "without_labels",
]

# One line per class, in the order of the head's outputs: key (ImageNet's: WordNet synset), tab, name (its lemmas).
LABEL_FILES = {
    "imagenet-1k": "imagenet_1k.tsv",
    "imagenet-21k-goog": "imagenet_21k_goog.tsv.gz",
    "digits": "digits.tsv",
}
_DATA = Path(__file__).parent.parent / "data"
_CONFIG = "config.json"
# Keys of config.json with class names, most telling first: transformers', timm's, timm's of former times. timm has its
# keys at the top or in pretrained_cfg. The last two are mmengine's, in what a checkpoint keeps under meta.
_KEYS = ("id2label", "label_names", "labels", "label_descriptions", "label2id", "classes", "CLASSES")
_DESCRIPTIONS = "label_descriptions"


@functools.cache
def label_names(kind: str) -> tuple[str, ...]:
    """Return class names in the order of the head's outputs; all are distinct.

    For ImageNet a name is the synset's full list of lemmas ("tench, Tinca tinca"). Where several classes share it
    ("crane", the bird and the machine) the synset is appended: "crane (n02012849)".

    Args:
        kind: ``imagenet-1k`` (1,000 classes), ``imagenet-21k-goog`` (21,843: Google's ImageNet-21k heads) or
            ``digits`` (10: "0" to "9").

    Raises:
        ConfigError: the kind is unknown.
    """
    rows = _rows(kind)
    counts = Counter(name for _, name in rows)
    return tuple(name if counts[name] == 1 else f"{name} ({synset})" for synset, name in rows)


@functools.cache
def label_keys(kind: str) -> tuple[str, ...]:
    """Return short unique names of the same classes: for ImageNet WordNet's synsets, such as ``n01440764``.

    Raises:
        ConfigError: the kind is unknown.
    """
    return tuple(key for key, _ in _rows(kind))


def _rows(kind: str) -> list[tuple[str, str]]:
    if kind not in LABEL_FILES:
        raise ConfigError(f"unknown labels {kind!r}", hint=f"known: {', '.join(LABEL_FILES)}")
    data = (_DATA / LABEL_FILES[kind]).read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    return [(key, name) for key, _, name in (line.partition("\t") for line in text.splitlines())]


def names_of(labels: str | Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    """Return the names of ``count`` classes that a record has, as a list or as the name of one; None if it has others.

    Raises:
        ConfigError: there is no list of this name.
    """
    if not labels or not count:
        return None
    names = label_names(labels) if isinstance(labels, str) else tuple(labels)
    return names if len(names) == count else None


def placeholders(count: int) -> list[str]:
    """Return what transformers calls the classes of a head that nobody named."""
    return [f"LABEL_{index}" for index in range(count)]


def stated_labels(sidecars: Mapping[str, Mapping[str, Any]], count: int) -> tuple[list[str] | None, list[str]]:
    """Return the names that the config files beside the weights give ``count`` classes, and warnings about them.

    Names may be a list, or a mapping from numbers to names or from names to numbers. Classes that a mapping leaves out
    get placeholders; names that are numbers become text. Both are warned of, as is what cannot be used at all.
    """
    warnings = []
    for file, place in _places(sidecars) if count else ():
        for key in _KEYS:
            if not place.get(key):
                continue
            try:
                names, said = _in_order(place[key], count)
            except ConfigError as error:
                warnings.append(f"{file}: the class names in {key} are ignored: {error.message}")
            else:
                return (None if names == placeholders(count) else names), [f"{file}: {key} {text}" for text in said]
    return None, warnings


def stated_descriptions(sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return timm's longer descriptions of classes by name; empty if there are none."""
    found = [place[_DESCRIPTIONS] for _, place in _places(sidecars) if isinstance(place.get(_DESCRIPTIONS), Mapping)]
    return dict(found[0]) if found else {}


def without_labels(sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the config files without class names, for a model with another head."""
    found = copy.deepcopy({name: dict(content) for name, content in sidecars.items()})
    for _, place in _places(found):
        for key in (*_KEYS, "num_labels"):
            place.pop(key, None)
    return found


def _places(sidecars: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Return the mappings that may hold class names, each with the file it is from."""
    config, meta = sidecars.get(_CONFIG, {}), sidecars.get(META, {})
    places = (
        (_CONFIG, config),
        (_CONFIG, config.get("pretrained_cfg")),
        (META, meta.get("dataset_meta")),
        (META, meta),
    )
    return [(file, place) for file, place in places if isinstance(place, Mapping)]


def _in_order(value: Any, count: int) -> tuple[list[str], list[str]]:
    """Return names in the order of the head's outputs, and what had to be done for it.

    Raises:
        ConfigError: they are not the names of that many classes.
    """
    said = []
    if isinstance(value, Mapping):
        numbered = _numbered(value)
        if not set(numbered) <= set(range(count)):
            raise ConfigError(f"they are for class {max(numbered)}, and the head has {count}")
        if len(numbered) < count:
            said.append(f"names {len(numbered)} of the {count} classes: the others are called LABEL_0, LABEL_1, ...")
        items = [numbered.get(index, name) for index, name in enumerate(placeholders(count))]
    elif isinstance(value, (list, tuple)):
        items = list(value)
        if len(items) != count:
            raise ConfigError(f"they are {len(items)}, and the head has {count} classes")
    else:
        raise ConfigError(f"they are neither a list nor a mapping but {value!r}")
    for item in items:
        if not isinstance(item, (str, int, float)):
            raise ConfigError(f"{item!r} is not a name")
    others = [item for item in items if not isinstance(item, str)]
    if others:
        said.append(f"has names that are not text, such as {others[0]!r}: they are read as text")
    return [str(item) for item in items], said


def _numbered(value: Mapping[Any, Any]) -> dict[int, Any]:
    """Return a mapping from the numbers of classes, of one from numbers to names or from names to numbers.

    Raises:
        ConfigError: it is neither, or names a class twice.
    """
    if all(type(item) is int for item in value.values()) and not all(_is_number(key) for key in value):
        pairs = [(item, key) for key, item in value.items()]
    elif all(_is_number(key) for key in value):
        pairs = [(int(key), item) for key, item in value.items()]
    else:
        raise ConfigError("its keys are not the numbers of classes")
    if len(dict(pairs)) < len(pairs):
        raise ConfigError("a class has two names")
    return dict(pairs)


def _is_number(key: Any) -> bool:
    return type(key) is int or (isinstance(key, str) and key.isascii() and key.isdigit())
