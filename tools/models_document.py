"""Write docs/models.md from the manifest, and from the list of what is not in it.

python tools/models_document.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vit_hub.registry import Entry, get_entry, list_models
from vit_hub.weights_manifest import titles

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "models.md"
NOT_LISTED = Path(__file__).parent / "models_not_listed.toml"

INTRODUCTION = """\
# Models

Written by `python tools/models_document.py` from `weights_manifest/` and `tools/models_not_listed.toml`;
`tests/docs/test_docs_models.py` fails if it is not up to date.

{count} sets of weights have a name: `vit-hub list` shows all of them, `vit-hub list --family dinov2` those of one
family, `vit-hub info NAME` the details of one, with the public documents that state them. The catalogue on the
documentation site (`python tools/catalogue.py FOLDER` writes it) searches, sorts and filters all. Other weights need no
name: a Hugging Face repository, a URL or a file is read in any of the [formats](formats.md).

A name is `family-size+patch.training-image size`, as in `deit3-b16.in21k-ft-in1k-384`; short names stand for the most
popular variant. timm names, Hugging Face repositories, open_clip's `model/tag` and the names of original files lead to
the same models.

`*`: the licence is not an open one; no commercial use, or terms of its own. `unknown`: no licence is stated. A model's
weights are published in one or more formats, the preferred one first. If there are several copies, the family's file in
`weights_manifest/` explains which comes first, and how they differ. Config, activation and preprocessing are those of
the first.

"""
PINS = """
Hashes, sizes and commits are recorded if a public source documents them, with that source. `python
tools/refresh_manifest.py` fills in the rest from the servers' metadata.

## Not listed

These published weights of Vision Transformers have no entry: they are not plain or windowed Vision Transformers, or no
public document says what an entry must.

"""
COPIES = """
These copies of weights that have an entry are not among its files.

"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |\n" for cells in (header, *rows)]
    return "".join((lines[0], f"|{'---|' * len(header)}\n", *lines[1:]))


def _family(name: str, title: str, entries: Sequence[Entry]) -> list[str]:
    example = (*entries[0].aliases, entries[0].id)[0]
    licences = sorted({entry.license + "*" * entry.restricted for entry in entries})
    formats = dict.fromkeys(source.format for entry in entries for source in entry.sources)
    shown = ", ".join(f"`{format_name}`" for format_name in formats)
    return [f"`{name}`", str(len(entries)), title, f"`{example}`", ", ".join(licences), shown]


def document() -> str:
    """The text of docs/models.md."""
    entries = [get_entry(model_id) for model_id in list_models()]
    families = {name: [entry for entry in entries if entry.family == name] for name in titles()}
    rows = [_family(name, titles()[name], members) for name, members in families.items()]
    left_out = {
        key: [(item["name"], item["reason"]) for item in items]
        for key, items in tomllib.loads(NOT_LISTED.read_text(encoding="utf-8")).items()
    }
    return (
        INTRODUCTION.format(count=len(entries))
        + _table(("family", "models", "content", "example", "licence", "formats"), rows)
        + PINS
        + _table(("weights", "reason"), left_out["weights"])
        + COPIES
        + _table(("copies", "reason"), left_out["copies"])
    )


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
