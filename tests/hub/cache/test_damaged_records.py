"""A damaged record in the cache is as if it were not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vit_hub.hub.cache import inventory
from vit_hub.hub.cache.records import Delivery, Pin, Record, all_records, read_record, record_file, write_record

GOOD, BAD = "https://example.org/good.npz", "https://example.org/bad.npz"
PIN = {"sha256": "0" * 64, "size": 1}
DATA = {"version": 1, "asked": BAD, "folder": "/x", "address": BAD, "files": {"bad.npz": PIN}}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "9" * 5000,
        "[]",
        "null",
        json.dumps({**DATA, "folder": "x" * 5000}),
        json.dumps({**DATA, "folder": "/x\0"}),
        json.dumps({**DATA, "folder": 5}),
        json.dumps({**DATA, "folder": "/\ud800"}),
        json.dumps({**DATA, "asked": ["x"]}),
        json.dumps({**DATA, "files": {"bad.npz": {**PIN, "size": 1e400}}}),
        json.dumps({**DATA, "files": {"bad.npz": {**PIN, "size": True}}}),
        json.dumps({**DATA, "files": {"x" * 5000: PIN}}),
        json.dumps({**DATA, "files": {"../bad.npz": PIN}}),
        json.dumps(DATA)[:-1] + ', "asked": "https://example.org/other.npz"}',
    ],
)
def test_no_command_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "good.npz").write_bytes(b"x")
    good: Any = Record(tmp_path, Delivery(GOOD, {"good.npz": Pin("0" * 64, 1)}))
    write_record(GOOD, good)
    record_file(BAD).write_text(content)
    assert read_record(BAD) is None
    assert [requested for _, requested, _ in all_records()] == [GOOD]
    assert inventory.items() is not None
    inventory.prune(days=1, dry_run=True)
    assert read_record(GOOD) == good
