"""Readers given changed files; ``VIT_HUB_FUZZ_SECONDS`` makes the run longer, up to a minute."""

from __future__ import annotations

import os
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("memory and time are limited by Linux's means", allow_module_level=True)

from fuzz import run


def test_every_reader_reads_a_changed_file_or_refuses_it() -> None:
    seconds = min(float(os.environ.get("VIT_HUB_FUZZ_SECONDS", "0")), 60)
    result = run([], 0, seconds=seconds) if seconds else run([], 0, inputs=12)
    assert not result.findings
    assert len(result.counts) == 32
    assert min(result.counts.values()) >= 12
