"""A cache of its own for each test, a local server with tiny weights, and made-up entries of the registry."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Reply, Server, serving
from tiny import CONFIG, timm_file, vit_jax_file

import vit_hub.hub.names.locate
from vit_hub.preprocessing.project_files import CONVENTIONS
from vit_hub.registry import Entry, WeightSource, get_entry

__all__ = ["PREPROCESS", "MakeEntry", "cache", "forbid_sockets", "make_entry", "server"]

PREPROCESS = CONVENTIONS["timm"].with_image_size(CONFIG.image_size)
MakeEntry = Callable[..., Entry]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, not yet made; the working folder is empty and everything is online."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("VIT_HUB_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[Server]:
    """Serve ``/tiny.safetensors`` in timm's names and the same weights as vit_jax's ``/tiny.npz``."""
    with serving() as running:
        running.add("/tiny.safetensors", Reply(timm_file()))
        running.add("/tiny.npz", Reply(vit_jax_file()))
        yield running


@pytest.fixture
def make_entry(server: Server, monkeypatch: pytest.MonkeyPatch) -> MakeEntry:
    """Add ``tiny`` to the registry, with these sources: paths on the server, or whole sources."""

    def make(*sources: str | WeightSource, **fields: Any) -> Entry:
        complete = tuple(
            WeightSource(kind="https", format="timm", url=server.url + source) if isinstance(source, str) else source
            for source in sources
        )
        entry = Entry(
            id="tiny",
            aliases=("tiniest",),
            family="test",
            config=CONFIG,
            license="mit",
            data={"pretrain": "noise"},
            sources=complete,
            preprocess=PREPROCESS.to_dict(),
            labels="imagenet-1k",
        )
        entry = dataclasses.replace(entry, **fields)
        monkeypatch.setattr(
            vit_hub.hub.names.locate, "get_entry", lambda name: entry if name == "tiny" else get_entry(name)
        )
        return entry

    return make


def forbid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every socket an error."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
