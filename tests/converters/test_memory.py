"""Converting takes memory for some tensors, whatever the model: at most 150 MB or twice the largest tensor."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import vit_hub
from vit_hub.converters.containers import write_tensors
from vit_hub.converters.read import CONFIG_KEY
from vit_hub.converters.tensors import Array, concat, from_array
from vit_hub.model.shapes import num_parameters, tensor_shapes

MB = 1_000_000
# ViT-B/16 with a third of its blocks and the largest head there is, ImageNet-21k's.
CONFIG = vit_hub.ViTConfig(depth=4, num_classes=21_843, act="gelu_tanh", resize="bilinear-align-corners")
LARGEST = 4 * max(math.prod(shape) for shape in tensor_shapes(CONFIG).values())
BOUND = max(150 * MB, 2 * LARGEST)

# Linux's high-water mark of a process's resident memory, mapped pages of files included; getrusage would count the
# parent process before it.
PEAK = """
import sys
from pathlib import Path
import vit_hub
vit_hub.convert, {imports}
peak = lambda: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
vit_hub.convert(sys.argv[1], sys.argv[2], to=sys.argv[3], dtype={dtype!r})
print(peak() - before)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")


def write_sparse(path: Path) -> None:
    """A canonical file of zeros that takes no room on the disk."""
    header: dict[str, object] = {"__metadata__": {CONFIG_KEY: json.dumps(CONFIG.to_dict())}}
    end = 0
    for name, shape in tensor_shapes(CONFIG).items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def peak(source: Path, destination: Path, to: str, dtype: str | None = None) -> int:
    """Bytes above the interpreter with vit_hub imported (and torch, which only a change of dtype needs)."""
    script = PEAK.format(imports="__import__('torch')" if dtype else "None", dtype=dtype)
    command = [sys.executable, "-c", script, str(source), str(destination), to]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_peak_memory_of_conversions(tmp_path: Path) -> None:
    """One after the other, as people chain them; a converter that held a whole model would be over the bound."""
    assert 4 * num_parameters(CONFIG) > BOUND
    first, jax, canonical = tmp_path / "a.safetensors", tmp_path / "b.npz", tmp_path / "c.safetensors"
    write_sparse(first)
    found = {
        "canonical -> vit_jax": peak(first, jax, "vit_jax"),
        "vit_jax -> canonical": peak(jax, canonical, "canonical"),
        "canonical -> hf_flax": peak(first, tmp_path / "flax", "hf_flax"),
        "hf_flax -> canonical": peak(tmp_path / "flax", canonical, "canonical"),
        "canonical -> hf_tf": peak(first, tmp_path / "tf", "hf_tf"),
        "hf_tf -> canonical": peak(tmp_path / "tf", canonical, "canonical"),
        "canonical -> timm in bfloat16": peak(first, tmp_path / "d", "timm", "bfloat16"),
    }
    assert max(found.values()) <= BOUND, found


def test_joined_tensors_are_written_part_by_part(tmp_path: Path) -> None:
    parts = [from_array(np.full((2, 3), i, np.float32)) for i in range(3)]
    joined = concat([concat(parts[:2]), parts[2]])

    def whole() -> Array:
        raise AssertionError("all parts are in memory together")

    write_tensors(tmp_path / "a.safetensors", "safetensors", {"joined": dataclasses.replace(joined, read=whole)})
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["joined"], joined.read())
