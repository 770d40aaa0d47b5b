"""docs/models.md counts what the manifest holds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from vit_hub.registry import get_entry, list_models

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| `")]
ENTRIES = [get_entry(model_id) for model_id in list_models()]


def test_every_family_is_there_with_its_number_of_models() -> None:
    counted = Counter(entry.family for entry in ENTRIES)
    assert {row[0].strip("`"): int(row[1]) for row in ROWS} == counted
    assert len(ROWS) == len(counted)
    assert f"\n{len(ENTRIES)} sets of weights have a name" in TEXT


def test_examples_licences_and_formats_are_the_familys() -> None:
    for family, _, _, example, licences, formats in ROWS:
        entries = [entry for entry in ENTRIES if entry.family == family.strip("`")]
        assert get_entry(example.strip("`")) in entries
        assert licences.split(", ") == sorted({entry.license + "*" * entry.restricted for entry in entries})
        assert set(re.findall("`(.*?)`", formats)) == {source.format for entry in entries for source in entry.sources}
