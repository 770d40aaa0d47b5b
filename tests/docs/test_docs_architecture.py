"""docs/architecture.svg shows the rooms and imports that the source has."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import architecture_picture
import pytest


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """The test of the rooms, which knows their order."""
    path = Path(__file__).resolve().parents[1] / "test_architecture.py"
    spec = importlib.util.spec_from_file_location("architecture_rooms", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_current() -> None:
    text = architecture_picture.TARGET.read_text(encoding="utf-8")
    assert architecture_picture.picture() == text, "run: python tools/architecture_picture.py"


def test_it_shows_every_room(architecture: ModuleType) -> None:
    shown = [f"vit_hub.{name}".removesuffix(".") for room in architecture_picture.ROOMS for name in room.members]
    assert sorted(shown) == sorted(name for names in architecture.ROOMS for name in names)


def test_arrows_upward_are_the_exceptions(architecture: ModuleType) -> None:
    _, upward = architecture_picture.arrows()
    pairs = {tuple(map(architecture_picture.room_of, pair)) for pair in architecture.EXCEPTIONS}
    assert upward == pairs


def test_files_that_the_document_names_are_there() -> None:
    text = architecture_picture.TARGET.with_suffix(".md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:vit_hub|converters|weights_manifest|tests|tools|benchmarks|docs)/[\w./]*)`", text)
    assert len(files) > 10
    assert not [file for file in files if not (architecture_picture.ROOT / file).exists()]
