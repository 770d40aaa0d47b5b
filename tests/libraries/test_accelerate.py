"""accelerate keeps parameters in host memory or on disk, and brings those of a module for the time of its call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kinds import KINDS
from small_models import random_images, random_model
from torch import nn

import vit_hub
from vit_hub.model.config import ViTConfig

accelerate = pytest.importorskip("accelerate", reason="pip install 'vit-hub[test]'")


def spread(model: nn.Module, folder: Path) -> nn.Module:
    """Every other module, and what the model holds itself, on disk."""
    places = dict.fromkeys((name for name, _ in model.named_children()), "cpu")
    with_weights = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    places |= dict.fromkeys(with_weights[1::2], "disk")
    own = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    places |= {name: "disk" for name, _ in own}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


def automatic(model: nn.Module, folder: Path) -> nn.Module:
    """Half of the model in memory, as accelerate divides it."""
    half = sum(value.numel() * value.element_size() for value in model.parameters()) // 2
    places = accelerate.infer_auto_device_map(model, {"cpu": half}, no_split_module_classes=["Block"])
    assert {"cpu", "disk"} <= set(places.values())
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


OFFLOADS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "cpu": lambda model, _: accelerate.cpu_offload(model, "cpu", offload_buffers=True),
    "disk": lambda model, folder: accelerate.disk_offload(model, str(folder), "cpu"),
    "disk, buffers too": lambda model, folder: accelerate.disk_offload(model, str(folder), "cpu", offload_buffers=True),
    "dispatch": spread,
    "automatic": automatic,
}


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_model_gives_the_same(kind: str, offload: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    model, images = random_model(config), random_images(config)
    model.dynamic = True
    p, q = config.pixels_per_patch
    larger = torch.randn(2, 3, config.image_size[0] + p, config.image_size[1] + 2 * q)
    with torch.no_grad():
        expected = [model(batch) for batch in (images, larger)]
        offloaded = OFFLOADS[offload](copy.deepcopy(model), tmp_path)
        assert any(value.is_meta for value in offloaded.parameters())
        for _ in range(2):
            for batch, wanted in zip((images, larger), expected, strict=True):
                torch.testing.assert_close(offloaded(batch), wanted, rtol=1e-5, atol=1e-5)


def test_what_needs_the_whole_model_says_so(tmp_path: Path) -> None:
    model, images = random_model(KINDS["plain"]), random_images(KINDS["plain"])
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), "cpu")
    for call in (offloaded.forward_features, offloaded.embed, offloaded.forward_intermediates):
        with pytest.raises(vit_hub.ConfigError, match="offloaded"):
            call(images)
    with pytest.raises(vit_hub.ConfigError, match="remove_hook"):
        offloaded.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    accelerate.hooks.remove_hook_from_submodules(offloaded)
    torch.testing.assert_close(offloaded.embed(images), model.embed(images), rtol=1e-5, atol=1e-5)


def test_an_accelerator_prepares_and_trains_it() -> None:
    model = random_model(ViTConfig(**KINDS["qv"].to_dict()))
    images, before = random_images(model.config), copy.deepcopy(model.state_dict())
    prepared, optimizer = accelerate.Accelerator(cpu=True).prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    prepared(images).square().mean().backward()
    optimizer.step()
    assert not [name for name, value in model.state_dict().items() if value.dim() and torch.equal(value, before[name])]
