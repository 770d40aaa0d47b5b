"""docs/formats.md says what the formats say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vit_hub.converters import format_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formats_document", ROOT / "tools" / "formats_document.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_is_what_the_formats_say(tool: ModuleType) -> None:
    text = tool.TARGET.read_text(encoding="utf-8")
    assert tool.document() == text, "run: python tools/formats_document.py"


def test_it_names_every_format_and_dialect(tool: ModuleType) -> None:
    text = tool.TARGET.read_text(encoding="utf-8")
    for name in format_names():
        for part in name.split("-"):
            assert f"`{part}" in text or f"-{part}`" in text, name
