"""Quantized weights: refused by name, and computed with dequantize=True as the project that quantized them does."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import random_model

import vit_hub
from vit_hub.cli import app
from vit_hub.converters.casting import to_torch
from vit_hub.errors import CheckpointError, VitHubError
from vit_hub.model.config import ViTConfig

CONFIG = ViTConfig(image_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=2, mlp_dim=72, num_classes=5)
LAYER = "vit.encoder.layer.1.intermediate.dense.weight"
CANONICAL = "blocks.1.mlp.fc1.weight"
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = random_model(CONFIG).save(tmp_path / "w.safetensors")
    return Path(vit_hub.convert(path, tmp_path / "hf", to="hf", lossy=True).path)


def change(folder: Path, parts: State, **config: Any) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, **parts}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))


def read(folder: Path) -> torch.Tensor:
    with pytest.raises(CheckpointError, match="quantized") as raised:
        vit_hub.open_checkpoint(folder)
    assert "--dequantize" in raised.value.hint
    ckpt = vit_hub.open_checkpoint(folder, dequantize=True)
    assert not [name for name in ckpt.source.tensors if "scale" in name.lower() or "absmax" in name or "SCB" in name]
    assert "quantization_config" not in ckpt.passport.sidecars["config.json"]
    vit_hub.load(folder, dequantize=True)(torch.zeros(1, 3, 16, 16))
    return to_torch(ckpt.tensors[CANONICAL])


def weight(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[LAYER]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_as_bitsandbytes(folder: Path, kind: str, nested: bool, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    values = weight(folder).to(dtype)
    packed, state = functional.quantize_4bit(values, quant_type=kind, compress_statistics=nested, blocksize=64)
    parts = {f"{LAYER}.{name}": part.contiguous() for name, part in state.as_dict(packed=True).items()}
    change(folder, {LAYER: packed, **parts}, quantization_config={"quant_method": "bitsandbytes"})
    found = read(folder)
    wanted = functional.dequantize_4bit(packed, state)
    assert found.dtype == wanted.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=1e-7 if dtype == torch.float32 else 0, atol=0)


def test_eight_bits_as_bitsandbytes(folder: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    numbers, rows, _ = functional.int8_vectorwise_quant(weight(folder).half())
    parts = {"SCB": rows, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    beside = {LAYER.removesuffix("weight") + name: part for name, part in parts.items()}
    change(folder, {LAYER: numbers, **beside}, torch_dtype="float16")
    found = read(folder)
    assert found.dtype == torch.float16
    assert torch.equal(found, functional.int8_vectorwise_dequant(numbers, rows).half())


@pytest.mark.parametrize("block", [64, 1000, 4608, 1 << 40])
def test_four_bits_by_hand(folder: Path, block: int) -> None:
    """Two codes a byte, the first in the upper half; a scale for each block."""
    codes = torch.arange(72 * 64) % 16
    table, scales = torch.linspace(-1, 1, 16), torch.rand(-(-72 * 64 // block))
    about = json.dumps({"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": [72, 64]}).encode()
    parts = {
        LAYER: (codes[0::2] * 16 + codes[1::2]).to(torch.uint8).reshape(-1, 1),
        f"{LAYER}.absmax": scales,
        f"{LAYER}.quant_map": table,
        f"{LAYER}.quant_state.bitsandbytes__nf4": torch.tensor(list(about), dtype=torch.uint8),
    }
    change(folder, parts)
    wanted = table[codes] * scales.repeat_interleave(min(block, 72 * 64))[: 72 * 64]
    assert torch.equal(read(folder), wanted.reshape(72, 64))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("scales", ["one", "rows", "blocks"])
def test_eight_bits_with_scales(folder: Path, dtype: torch.dtype, scales: str) -> None:
    numbers = (weight(folder) * 20).to(dtype)
    shape = {"one": (), "rows": (72, 1), "blocks": (3, 2)}[scales]
    name = "weight_scale_inv" if scales == "blocks" else "weight_scale"
    factors = torch.rand(shape)
    change(
        folder,
        {LAYER: numbers, LAYER.removesuffix("weight") + name: factors},
        quantization_config={"weight_block_size": [32, 32]} if scales == "blocks" else {},
    )
    spread = factors.repeat_interleave(32, 0).repeat_interleave(32, 1)[:72] if scales == "blocks" else factors
    assert torch.equal(read(folder), numbers.float() * spread)


def test_plain_8_bit_floats(folder: Path) -> None:
    numbers = weight(folder).to(torch.float8_e4m3fn)
    change(folder, {LAYER: numbers}, torch_dtype="bfloat16")
    assert torch.equal(read(folder), numbers.to(torch.bfloat16))


def test_the_command(folder: Path, tmp_path: Path) -> None:
    change(folder, {LAYER: weight(folder).to(torch.float8_e4m3fn)})
    arguments = ["convert", str(folder), str(tmp_path / "out.safetensors")]
    assert CliRunner().invoke(app.main, arguments).exit_code == 1
    assert CliRunner().invoke(app.main, [*arguments, "--dequantize"]).exit_code == 0
    assert np.isfinite(vit_hub.open_checkpoint(tmp_path / "out.safetensors").tensors[CANONICAL].read()).all()


def test_without_quantized_weights_nothing_changes(folder: Path) -> None:
    one, other = vit_hub.open_checkpoint(folder), vit_hub.open_checkpoint(folder, dequantize=True)
    assert all(one.tensors[name].read().tobytes() == item.read().tobytes() for name, item in other.tensors.items())


@pytest.mark.parametrize(
    "about",
    [
        {"blocksize": 0, "shape": [72, 64]},
        {"blocksize": 64, "shape": [1 << 40, 64]},
        {"blocksize": 64, "shape": [-72, -64]},
        {"blocksize": "64", "shape": [72, 64]},
        {"shape": [72, 64]},
        [],
    ],
)
def test_descriptions_that_do_not_fit(folder: Path, about: object) -> None:
    parts = {
        LAYER: torch.zeros(72 * 32, 1, dtype=torch.uint8),
        f"{LAYER}.absmax": torch.ones(72),
        f"{LAYER}.quant_map": torch.ones(16),
        f"{LAYER}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8),
    }
    change(folder, parts)
    with pytest.raises(CheckpointError, match="quantization"):
        vit_hub.open_checkpoint(folder, dequantize=True)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_no_other_error(folder: Path, data: st.DataObject) -> None:
    about = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [72, 64]}
    about |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1}
    content = bytearray(json.dumps(about).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    parts = {
        LAYER: torch.zeros(72 * 32, 1, dtype=torch.uint8),
        f"{LAYER}.absmax": torch.ones(72, dtype=torch.uint8),
        f"{LAYER}.quant_map": torch.ones(16),
        f"{LAYER}.nested_absmax": torch.ones(data.draw(st.sampled_from([1, 1, 0, 3]))),
        f"{LAYER}.nested_quant_map": torch.ones(data.draw(st.sampled_from([256, 256, 1]))),
        f"{LAYER}.quant_state.bitsandbytes__nf4": torch.tensor(list(content), dtype=torch.uint8),
    }
    change(folder, parts)
    with contextlib.suppress(VitHubError):
        for tensor in vit_hub.open_checkpoint(folder, dequantize=True).tensors.values():
            assert tensor.read().shape == tensor.shape
