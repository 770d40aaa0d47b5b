"""The README of a repository with published weights: their origin, their licence, how to load them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import num_parameters
from vit_hub.registry import UNKNOWN_LICENSE
from vit_hub.shown import visible

__all__ = ["PUBLISHED_FORMATS", "CardFacts", "is_open", "model_card"]

PUBLISHED_FORMATS = ("canonical", "timm", "hf")
"""The formats of a published repository: for vit-hub, timm or transformers."""
_OPEN = (
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
    "zlib",
    "unlicense",
    "mpl-2.0",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
)
# Further ones that Hugging Face's hub has a name for; the rest are "other" there, with their own name beside it.
_NAMED = (
    UNKNOWN_LICENSE,
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nd-4.0",
    "openrail",
    "apple-ascl",
    "apple-amlr",
    "gemma",
)
_LIBRARIES = {"canonical": "vit-hub", "timm": "timm", "hf": "transformers"}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts on a card.

    Attributes:
        repo: the repository.
        format: ``canonical``, ``timm`` or ``hf``.
        config: the model.
        license: identifier or name.
        restricted: it is no open licence.
        weights_id: in vit-hub's registry; may be empty.
        address: the origin of the weights; empty for a local file.
        base_model: the repository on Hugging Face's hub that they came from.
        source_format: the format that they were converted from.
        source_files: ``file``, ``size`` in bytes and ``sha256`` of each.
        converter: version of vit-hub that converted them; empty where they are pushed as they were.
        data: data sets of the stages of training.
        preprocess: evaluation preprocessing.
        labels: the name of the list of classes, if known.
        hf_class: the class of transformers that loads them, for format ``hf``.
    """

    repo: str
    format: str
    config: ViTConfig
    license: str
    restricted: bool
    weights_id: str = ""
    address: str = ""
    base_model: str | None = None
    source_format: str = ""
    source_files: Sequence[Mapping[str, Any]] = ()
    converter: str = ""
    data: Mapping[str, str]
    preprocess: Mapping[str, Any] | None = None
    labels: str | None = None
    hf_class: str = ""


def is_open(license: str) -> bool:
    """Return whether a licence allows every use, commercial use included."""
    return license.lower() in _OPEN


def model_card(facts: CardFacts) -> str:
    """Return the text of README.md: metadata for Hugging Face's hub, then text for people."""
    from huggingface_hub import ModelCardData

    known = facts.license.lower() in (*_OPEN, *_NAMED)
    data = ModelCardData(
        license=facts.license.lower() if known else "other",
        license_name=None if known else re.sub("[^a-z0-9.-]+", "-", facts.license.lower()).strip("-"),
        library_name=_LIBRARIES[facts.format],
        pipeline_tag="image-classification" if facts.config.num_classes else "image-feature-extraction",
        base_model=facts.base_model,
        tags=["vision-transformer", "vit-hub"],
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {_text(facts.repo.rpartition('/')[2])}", _model(facts)]
    parts += ["## Where the weights come from", _table(_provenance(facts))]
    if facts.license.lower() == UNKNOWN_LICENSE:
        parts.append("Nobody states a licence for these weights: ask their authors before you use or pass them on.")
    elif facts.restricted:
        parts.append("The licence is not an open one: read its terms before you use or pass on these weights.")
    if facts.preprocess:
        shown = ((_text(str(name).replace("_", " ")), _value(value)) for name, value in facts.preprocess.items())
        parts += ["## Preprocessing", _table(shown)]
    parts += ["## How to load it", _usage(facts)]
    return "\n\n".join(parts) + "\n"


def _model(facts: CardFacts) -> str:
    config = facts.config
    (height, width), (p, q) = config.image_size, config.pixels_per_patch
    head = f"a head for {config.num_classes:,} classes" if config.num_classes else "no head"
    named = f" ({_text(facts.labels)})" if facts.labels and config.num_classes else ""
    return (
        f"A Vision Transformer with {num_parameters(config):,} parameters: {config.depth} blocks of width "
        f"{config.embed_dim} with {config.num_heads} heads, images of {height}x{width} pixels in patches of {p}x{q}, "
        f"{head}{named}."
    )


def _provenance(facts: CardFacts) -> Iterator[tuple[str, str]]:
    if facts.weights_id:
        yield "weights", f"from {_code(facts.weights_id)} of vit-hub's registry"
    if facts.address:
        yield "fetched from", _code(facts.address)
    if facts.source_format:
        yield "format there", _code(facts.source_format)
    for item in facts.source_files:
        size = f"{item['size']:,} bytes, " if isinstance(item.get("size"), int) else ""
        yield "source file", f"{_code(item.get('file', ''))}, {size}sha256 {_code(item.get('sha256', 'not recorded'))}"
    if facts.converter:
        yield "converted by", f"vit-hub {_text(facts.converter)}"
    for stage, data in facts.data.items():
        yield {"pretrain": "pretrained on", "finetune": "fine-tuned on"}.get(stage, _text(stage)), _text(data)
    yield "licence", _text(facts.license)


def _usage(facts: CardFacts) -> str:
    config = facts.config
    result = "tokens = model.forward_features(images)" if config.pool == "none" else "embedding = model.embed(images)"
    lines = [
        "import vit_hub",
        "",
        f'model = vit_hub.load("{facts.repo}")',
        'images = vit_hub.preprocess(model)("picture.jpg")',
        "logits = model(images)" if config.num_classes else result,
    ]
    if facts.format == "timm":
        lines += ["", "import timm", "", f'model = timm.create_model("hf-hub:{facts.repo}", pretrained=True)']
    if facts.format == "hf":
        name = facts.hf_class if facts.hf_class.isidentifier() else "AutoModel"
        lines += ["", f"from transformers import {name}", "", f'model = {name}.from_pretrained("{facts.repo}")']
    return "\n".join(["```python", *lines, "```"])


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _value(value: object) -> str:
    return _text(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


def _code(text: str) -> str:
    """Format untrusted text, such as a file's name, as code in a cell of a table."""
    return f"`{visible(' '.join(str(text).split()))}`".replace("|", "\\|") if "`" not in str(text) else _text(str(text))


def _text(text: str) -> str:
    """Escape untrusted text, so that nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", visible(" ".join(str(text).split())))
