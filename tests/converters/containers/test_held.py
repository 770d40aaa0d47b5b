"""Files that are replaced or removed between opening and converting: the provenance is of what was read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import timm_file, vit_jax_file

from vit_hub.conversion import open_checkpoint
from vit_hub.converters.write import convert_checkpoint
from vit_hub.errors import CheckpointError

OPTIONS = {"num_heads": 3, "act": "gelu_tanh"}


@pytest.mark.skipif(os.name == "nt", reason="an open file keeps its name there")
@pytest.mark.parametrize("fate", ["replaced", "removed"])
@pytest.mark.parametrize("content", [timm_file(), vit_jax_file()], ids=["safetensors", "npz"])
def test_the_hash_is_of_the_file_that_was_read(tmp_path: Path, content: bytes, fate: str) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(content)
    ckpt = open_checkpoint(path, overrides=OPTIONS)
    expected = {name: tensor.read().copy() for name, tensor in ckpt.tensors.items()}
    if fate == "replaced":
        other.write_bytes(content[:-5] + b"other")
        other.replace(path)
    else:
        path.unlink()
    convert_checkpoint(ckpt, tmp_path / "out.safetensors")
    found = open_checkpoint(tmp_path / "out.safetensors")
    assert found.provenance["source"] == [
        {"file": "a", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    ]
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor.read(), expected[name])


def test_a_file_changed_in_place_is_not_converted(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(timm_file())
    ckpt = open_checkpoint(path, overrides=OPTIONS)
    path.write_bytes(timm_file()[:-5] + b"other")
    os.utime(path, (1, 1))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        convert_checkpoint(ckpt, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
