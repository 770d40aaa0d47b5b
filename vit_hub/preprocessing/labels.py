"""Names of the classes of a model's head. The data files are in ``vit_hub/data``."""

from __future__ import annotations

import functools
import gzip
from collections import Counter
from pathlib import Path

from vit_hub.errors import ConfigError

__all__ = ["LABEL_FILES", "label_names"]

# One line per class, in the order of the head's outputs: key (ImageNet's: WordNet synset), tab, name (its lemmas).
LABEL_FILES = {
    "imagenet-1k": "imagenet_1k.tsv",
    "imagenet-21k-goog": "imagenet_21k_goog.tsv.gz",
    "digits": "digits.tsv",
}
_DATA = Path(__file__).parent.parent / "data"


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
    if kind not in LABEL_FILES:
        raise ConfigError(f"unknown labels {kind!r}", hint=f"known: {', '.join(LABEL_FILES)}")
    data = (_DATA / LABEL_FILES[kind]).read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    rows = [line.split("\t") for line in text.splitlines()]
    counts = Counter(name for _, name in rows)
    return tuple(name if counts[name] == 1 else f"{name} ({synset})" for synset, name in rows)
