"""The garbage collector is as it was after a model is opened and built."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import vit_hub
from vit_hub.converters.collecting import no_collection


@pytest.fixture(autouse=True)
def on_again() -> Iterator[None]:
    yield
    gc.enable()


def test_the_collector_runs_again_after_loading() -> None:
    vit_hub.load("vit-nano-digits")
    assert gc.isenabled()


def test_the_collector_runs_again_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(vit_hub.CheckpointError):
        vit_hub.load(tmp_path / "a.safetensors")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    vit_hub.load("vit-nano-digits")
    assert not gc.isenabled()


def test_the_collector_waits_for_the_outermost_body() -> None:
    with no_collection():
        with no_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
