"""Models that are sharded over processes, or wrapped for data parallelism, learn as one and are saved whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from kinds import KINDS
from small_models import random_images, random_model, raw
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import vit_hub

RATE = 1e-3


def shard(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def trained(model: nn.Module, images: torch.Tensor, wrap: Callable[[nn.Module], nn.Module]) -> torch.Tensor:
    """The loss before a step of gradient descent."""
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), RATE)
    loss = wrapped(images).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {"fsdp2": shard, "ddp": DistributedDataParallel}


def run(rank: int, folder: Path, kind: str, wrap: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'start'}", rank=rank, world_size=2)
    model = random_model(KINDS[kind], dtype=torch.float64)
    alone, images = copy.deepcopy(model), random_images(model.config, torch.float64)
    expected = trained(alone, images, lambda model: model)
    torch.testing.assert_close(trained(model, images, WRAPS[wrap]), expected, rtol=1e-10, atol=1e-10)
    file = folder / "model.safetensors"
    if wrap == "fsdp2" or rank == 0:
        assert model.save(file) == file
    distributed.barrier()
    assert file.is_file()
    again = vit_hub.load(file, dtype="auto")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again(images), alone.eval()(images), rtol=1e-10, atol=1e-10)
    if rank == 0:
        assert raw(alone.save(folder / "alone.safetensors")).keys() == raw(file).keys()
    if wrap == "fsdp2":
        model.head = nn.Sequential(nn.Linear(32, 5))
        with pytest.raises(vit_hub.ConfigError, match="head"):
            model.save(folder / "other.safetensors")
        assert not (folder / "other.safetensors").exists()
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [("plain", "fsdp2"), ("relative", "fsdp2"), ("masked", "fsdp2"), ("learned rotations", "fsdp2"), ("plain", "ddp")],
)
def test_it_learns_and_is_saved_as_one(kind: str, wrap: str, tmp_path: Path) -> None:
    mp.spawn(run, (tmp_path, kind, wrap), nprocs=2)


def test_a_model_without_values_is_refused_before_writing(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = vit_hub.VisionTransformer(KINDS["plain"])
    with pytest.raises(vit_hub.ConfigError, match="no values"):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
