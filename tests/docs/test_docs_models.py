"""docs/models.md says what the manifest holds."""

from __future__ import annotations

import models_document

from vit_hub.weights_manifest import titles


def test_the_document_is_what_the_manifest_says() -> None:
    text = models_document.TARGET.read_text(encoding="utf-8")
    assert models_document.document() == text, "run: python tools/models_document.py"


def test_every_family_has_a_row() -> None:
    text = models_document.TARGET.read_text(encoding="utf-8")
    for family in titles():
        assert f"\n| `{family}` |" in text
