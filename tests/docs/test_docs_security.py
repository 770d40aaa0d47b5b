"""docs/security.md has the limits and formats that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from vit_hub.preprocessing.images import FORMATS
from vit_hub.untrusted import LIMITS

TEXT = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


def test_the_table_has_every_limit() -> None:
    rows = re.findall(r"^\| (.+) \| ([\d,]+) (.+) \|$", TEXT, re.MULTILINE)
    assert rows == [(limit.of, f"{limit.most:,}", limit.unit) for limit in LIMITS]


def test_it_names_the_formats_of_images() -> None:
    assert ", ".join(FORMATS) in " ".join(TEXT.split())
