"""docs/formats.md says what the formats say."""

from __future__ import annotations

import formats_document

from vit_hub.converters import format_names


def test_the_document_is_what_the_formats_say() -> None:
    text = formats_document.TARGET.read_text(encoding="utf-8")
    assert formats_document.document() == text, "run: python tools/formats_document.py"


def test_it_names_every_format_and_dialect() -> None:
    text = formats_document.TARGET.read_text(encoding="utf-8")
    for name in format_names():
        for part in name.split("-"):
            assert f"`{part}" in text or f"-{part}`" in text, name
