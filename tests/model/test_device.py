"""Copies to a GPU, piece by piece; here with a stand-in for CUDA, which does at once what a GPU does later."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

import vit_hub
from vit_hub.converters import build
from vit_hub.model import device as devices


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.waited: list[Any] = []
        self.synchronized = 0

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        self.synchronized += 1


class Event:
    """Fails if a buffer is written before what was copied from it is waited for."""

    def __init__(self) -> None:
        self.pending = False

    def record(self, stream: Any) -> None:
        assert not self.pending
        self.pending = True

    def synchronize(self) -> None:
        self.pending = False


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    made: list[Stream] = []

    def stream(device: Any = None) -> Stream:
        made.append(Stream())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    monkeypatch.setattr(devices, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(devices, "_PIECE", 64)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (16,), (17, 9), (3, 4, 5)])
def test_every_value_arrives_in_its_dtype(shape: tuple[int, ...], dtype: torch.dtype, streams: list[Stream]) -> None:
    uploader = devices.Uploader(torch.device("cpu"))
    values = torch.randn(shape)
    assert torch.equal(uploader.upload(values, dtype), values.to(dtype))
    swapped = values.transpose(0, -1) if values.dim() else values
    assert torch.equal(uploader.upload(swapped, dtype), swapped.to(dtype))
    count = torch.tensor(3)
    assert torch.equal(uploader.upload(count, torch.int64), count)
    uploader.finish()
    assert streams[0].waited == ["current"] * 3
    assert streams[0].synchronized == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_loads_through_pinned_memory(
    dtype: str, streams: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Place:
        """A device that says that it is a GPU, and is none."""

        type = "cuda"

    plain = vit_hub.load("vit-nano-digits", dtype=dtype)
    lazy = vit_hub.open_checkpoint("vit-nano-digits").tensors
    empty, device = torch.empty, torch.device

    def on_the_host(*shape: Any, **options: Any) -> torch.Tensor:
        if isinstance(options.get("device"), Place):
            del options["device"]
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", on_the_host)
    monkeypatch.setattr(build.torch, "device", lambda name: Place() if name == "fake" else device(name))
    found = build._read(lazy, "fake", getattr(torch, dtype), mmap=True)
    assert len(streams) == build._READERS
    assert all(stream.synchronized for stream in streams)
    wanted = plain.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(np.isfinite(value.float().numpy()).all() for value in found.values())


def test_a_device_is_named_with_its_number() -> None:
    assert devices.usable_device("cpu") == torch.device("cpu")
    with pytest.raises(vit_hub.ConfigError, match="toaster"):
        devices.usable_device("toaster")
