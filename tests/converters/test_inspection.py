"""Warnings of ``inspect``, and errors about files that are almost recognised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from small_models import random_model

import vit_hub
from vit_hub.cli.app import main
from vit_hub.converters.inspection import head_is_zero, other_copies, survey
from vit_hub.errors import CheckpointError, UnknownFormatError

SMALL = vit_hub.ViTConfig(image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, num_classes=3)
State = dict[str, torch.Tensor]
HEADS = {"num_heads": 2}


def state(seed: int = 0, **changes: Any) -> State:
    return dict(random_model(SMALL.replace(**changes), seed).state_dict())


def saved(tree: dict[str, Any], folder: Path) -> Path:
    torch.save(tree, folder / "file.pth")
    return folder / "file.pth"


def prefixed(prefix: str, tensors: State) -> State:
    return {prefix + name: value for name, value in tensors.items()}


BACKBONE = {"num_classes": 0}
IJEPA = {**BACKBONE, "class_token": False, "pos_embed_prefix": False, "pool": "avg"}
DINO_HEAD = {"head.mlp.0.weight": torch.ones(3, 3), "head.last_layer.weight_g": torch.ones(3, 1)}


@pytest.mark.parametrize(
    ("tree", "read", "copies"),
    [
        (lambda: {"state_dict": state(1), "state_dict_ema": state(2)}, "state_dict_ema/", ["state_dict/"]),
        (
            lambda: {
                "student": prefixed("module.backbone.", state(1, **BACKBONE)) | prefixed("module.", DINO_HEAD),
                "teacher": prefixed("backbone.", state(2, **BACKBONE)) | DINO_HEAD,
            },
            "teacher/backbone.",
            ["student/module.backbone."],
        ),
        (
            lambda: {
                "encoder": prefixed("module.", state(1, **IJEPA)),
                "target_encoder": prefixed("module.", state(2, **IJEPA)),
            },
            "target_encoder/module.",
            ["encoder/module."],
        ),
        (lambda: {"model": state(1), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "model/", []),
        (lambda: state(1), "", []),
    ],
    ids=["average", "teacher", "target encoder", "optimiser", "one"],
)  # fmt: skip
def test_another_copy_of_the_model_is_found(
    tree: Callable[[], dict[str, Any]], read: str, copies: list[str], tmp_path: Path
) -> None:
    ckpt = vit_hub.open_checkpoint(saved(tree(), tmp_path), overrides=HEADS)
    assert ckpt.passport.prefix == read
    assert list(other_copies(ckpt)) == copies
    assert all(reason in ckpt.dropped.values() for reason in other_copies(ckpt).values())


def test_the_command_tells_which_copy_is_read(tmp_path: Path) -> None:
    file = saved({"state_dict": state(1), "state_dict_ema": state(2)}, tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(file), "--set", "num_heads=2"])
    assert result.exit_code == 0
    assert (
        "holds the model twice: the one under 'state_dict_ema/' is read, not that under 'state_dict/'" in result.stderr
    )
    data = json.loads(CliRunner().invoke(main, ["inspect", str(file), "--set", "num_heads=2", "--json"]).stdout)
    assert any("twice" in message for message in data["warnings"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_are_surveyed_in_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: value.to(dtype) for name, value in state().items()}
    tensors["blocks.1.mlp.fc1.weight"] = tensors["blocks.0.mlp.fc1.weight"]
    tensors["blocks.0.norm1.bias"] = torch.zeros(16, dtype=dtype)
    tensors["blocks.1.norm1.bias"] = torch.zeros(16, dtype=dtype)
    tensors["norm.bias"][3], tensors["norm.bias"][4] = float("nan"), float("inf")
    tensors["head.weight"] = torch.zeros(3, 16, dtype=dtype)
    ckpt = vit_hub.open_checkpoint(saved(tensors, tmp_path), overrides=HEADS)
    read: list[int] = []
    found = survey(ckpt.tensors, read.append)
    assert found.not_finite == {"norm.bias": 2}
    assert found.equal == [["blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight"]]
    assert sum(read) == sum(tensor.nbytes for tensor in ckpt.tensors.values())
    assert head_is_zero(ckpt.tensors)


def test_the_command_tells_which_tensors_are_equal(tmp_path: Path) -> None:
    tensors = state()
    tensors["blocks.1.attn.qkv.weight"] = tensors["blocks.0.attn.qkv.weight"]
    file = saved(tensors, tmp_path)
    arguments = ["inspect", str(file), "--set", "num_heads=2"]
    assert "same values" not in CliRunner().invoke(main, arguments).stderr
    result = CliRunner().invoke(main, [*arguments, "--values"])
    assert "blocks.0.attn.qkv.weight, blocks.1.attn.qkv.weight have the same values" in result.stderr
    data = json.loads(CliRunner().invoke(main, [*arguments, "--values", "--json"]).stdout)
    assert data["equal"] == [["blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"]]


def test_look_alikes_are_named(tmp_path: Path) -> None:
    file = saved({"model": state()}, tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(file), "--set", "num_heads=2"])
    assert "read as facebook-deit; " in result.stderr
    assert "timm" in result.stderr
    assert "give format= (--format)" in result.stderr


def test_a_file_that_is_mostly_known_says_what_is_not(tmp_path: Path) -> None:
    tensors = state()
    tensors["blocks.0.adapter.down.weight"] = torch.zeros(3)
    tensors["blocks.1.atn.qkv.weight"] = tensors.pop("blocks.1.attn.qkv.weight")
    with pytest.raises(CheckpointError) as error:
        vit_hub.open_checkpoint(saved(tensors, tmp_path), overrides=HEADS)
    assert f"{len(tensors) - 2} of {len(tensors)} tensors are timm's, but not " in error.value.message
    assert "blocks.0.adapter.down.weight" in error.value.message
    assert "blocks.1.atn.qkv.weight (nearest: blocks.{i}.attn.qkv.weight)" in error.value.message


def test_a_file_of_which_little_is_known_says_how_little(tmp_path: Path) -> None:
    tensors = state()
    more = {f"blocks.{index}.convolution.weight": torch.zeros(2) for index in range(80)}
    total = len(tensors) + len(more)
    with pytest.raises(UnknownFormatError) as error:
        vit_hub.open_checkpoint(saved({**tensors, **more}, tmp_path), overrides=HEADS)
    assert f"timm matches best, with {len(tensors)} of {total} tensors, but not blocks.0.conv" in error.value.message


def test_a_file_of_something_else_shows_a_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"none of its 2 tensors is known, the first is 'layer1\.weight'"):
        vit_hub.open_checkpoint(saved({"layer1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, tmp_path))
