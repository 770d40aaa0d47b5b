"""ONNX files as sources: weights under names that exporters made, external data, damaged and deceitful files."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples

import vit_hub
from vit_hub.converters.containers import open_raw
from vit_hub.errors import CheckpointError, VitHubError

SMALL: dict[str, Any] = {
    "img_size": (8, 12),
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}
Export = Callable[[torch.nn.Module, torch.Tensor, Path], None]


def traced(model: torch.nn.Module, images: torch.Tensor, path: Path, **options: Any) -> None:
    torch.onnx.export(model, (images,), str(path), dynamo=False, **{"opset_version": 17, **options})


def captured(model: torch.nn.Module, images: torch.Tensor, path: Path, **options: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (images,), str(path), dynamo=True, verbose=False, **options)


EXPORTS: dict[str, Export] = {
    "traced": traced,
    "with written-out norms": lambda *given: traced(*given, opset_version=14),
    "not folded": lambda *given: traced(*given, do_constant_folding=False),
    "captured": captured,
}


def exported(tmp_path: Path, export: Export, name: str, **options: Any) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """An exported random model of timm's, images, and its output."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **options}).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += torch.randn_like(tensor) / 5
        images = torch.randn(2, 3, 8, 12)
        wanted = model(images)
    path = tmp_path / "model.onnx"
    export(model, images, path)
    return path, images, wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", EXPORTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False, "qkv_bias": False}),
        ("vit_small_patch14_reg4_dinov2", {"global_pool": "avg"}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
    ],
    ids=["plain", "average without key biases", "registers", "distilled", "CLIP"],
)
def test_exported_models_give_the_same_numbers(how: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    path, images, wanted = exported(tmp_path, EXPORTS[how], name, **options)
    model = vit_hub.load(path)
    with torch.inference_mode():
        assert (model(images) - wanted).abs().max() <= 1e-5
    told = vit_hub.open_checkpoint(path).inferred
    assert {told[field] for field in ("num_heads", "norm_eps", "act", "image_size")} == {
        "the program beside the weights"
    }
    report = vit_hub.convert(path, tmp_path / "timm", to="timm")
    with torch.inference_mode():
        assert torch.equal(vit_hub.load(report.path)(images), model(images))


@pytest.mark.filterwarnings("ignore")
def test_without_modules_the_biases_tell_the_layers(tmp_path: Path) -> None:
    path, images, wanted = exported(tmp_path, captured, "vit_tiny_patch16_224")
    program = onnx.load(path)
    for number, node in enumerate(program.graph.node):
        node.name = f"node_{number}"
        del node.metadata_props[:]
    onnx.save(program, tmp_path / "bare.onnx")
    with torch.inference_mode():
        assert (vit_hub.load(tmp_path / "bare.onnx")(images) - wanted).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_what_a_weight_is_must_be_told(tmp_path: Path) -> None:
    path, _, _ = exported(tmp_path, traced, "beit_base_patch16_224")
    with pytest.raises(CheckpointError, match=r"cannot be told which weight .* \(72,\)") as caught:
        vit_hub.open_checkpoint(path)
    assert "do_constant_folding=False" in caught.value.hint


# Files by hand


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def tensor(name: str, shape: tuple[int, ...], *values: bytes, code: int = 1) -> bytes:
    return b"".join([*(field(1, size) for size in shape), field(2, code), field(8, name), *values])


def model(*parts: bytes) -> bytes:
    return field(1, 10) + field(2, "by hand") + field(7, b"".join(parts))


FOUR = np.arange(4, dtype=np.float32)
RAW = field(9, FOUR.tobytes())


def outside(**entries: str) -> bytes:
    return b"".join(field(13, field(1, key) + field(2, value)) for key, value in entries.items()) + field(14, 1)


def opened(tmp_path: Path, content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    (tmp_path / "m.onnx").write_bytes(content)
    return {name: item.read() for name, item in open_raw(tmp_path / "m.onnx").tensors.items()}


@pytest.mark.parametrize(
    "values",
    [
        RAW,
        field(4, FOUR.tobytes()),
        outside(location="m.data", offset="8", length="16"),
        outside(location="exact.data"),
    ],
    ids=["raw", "packed", "outside", "whole file outside"],
)
def test_values_are_read_wherever_they_are(values: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.data").write_bytes(bytes(8) + FOUR.tobytes())
    (tmp_path / "exact.data").write_bytes(FOUR.tobytes())
    found = opened(tmp_path, model(field(5, tensor("a.weight", (2, 2), values))))
    assert np.array_equal(found["a.weight"], FOUR.reshape(2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (field(1, 10) + field(2, "by hand"), "holds no graph"),
        (model(field(5, tensor("a.weight", (2, 3), RAW))), "16 bytes"),
        (model(field(5, tensor("a.weight", (1 << 62, 1 << 62), RAW))), "bytes"),
        (model(field(5, tensor("a.weight", (4,), RAW)) * 2), "two values are named"),
        (model(field(5, tensor("a.weight", (4,), RAW)))[:-3], "beyond"),
        (model(field(5, tensor("a.weight", (1,) * 40, RAW))), "too many axes"),
        (model(field(5, tensor("a.weight", (4,), outside(location="../m.data")))), "not a name in this folder"),
        (model(field(5, tensor("a.weight", (4,), outside(location="none.data")))), "not beside it"),
        (model(field(5, tensor("a.weight", (4,), outside(location="short.data")))), "too short"),
        (model(field(5, tensor("a.weight", (4,), outside(location="short.data", offset="-8")))), "too short"),
        (model(field(5, tensor("a.weight", (4,), outside(location="short.data", offset="x")))), "invalid literal"),
        (model(field(1, field(4, "MatMulInteger")), field(5, tensor("a.weight", (4,), RAW))), "quantized"),
        (model(field(1, field(1, "w") + field(4, "Mul")), field(5, tensor("w", (4,), RAW))), "cannot be told"),
    ],
)
def test_damaged_and_foreign_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "short.data").write_bytes(bytes(15))
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path, content)
    assert caught.value.hint


def test_external_data_is_no_link_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(FOUR.tobytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m.data").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="not beside it"):
        opened(folder, model(field(5, tensor("a.weight", (4,), outside(location="m.data")))))


WHOLE = model(
    field(1, field(1, "x") + field(1, "onnx::MatMul_1") + field(2, "y") + field(3, "/a/MatMul") + field(4, "MatMul")),
    field(1, field(1, "y") + field(1, "a.bias") + field(2, "z") + field(4, "Add")),
    field(5, tensor("onnx::MatMul_1", (2, 2), RAW)),
    field(5, tensor("a.bias", (2,), field(9, FOUR[:2].tobytes()))),
    field(5, tensor("shape", (3,), field(7, struct.pack("3B", 1, 2, 3)), code=7)),
    field(11, field(1, "x") + field(2, field(1, field(2, field(1, field(1, 1)) + field(1, field(2, "n")))))),
)


def test_a_layer_is_named_by_its_bias(tmp_path: Path) -> None:
    found = opened(tmp_path, WHOLE)
    assert found.keys() == {"a.weight", "a.bias"}
    assert np.array_equal(found["a.weight"], FOUR.reshape(2, 2).T)


@examples(300)
@given(data=st.data())
def test_any_damage_gives_a_result_or_an_error_of_ours(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(2, len(content))) :]
    with contextlib.suppress(VitHubError):
        opened(tmp_path, bytes(content))
