"""Models at a new resolution leave PyTorch: nothing is interpolated at run time, so any exporter understands them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_models import random_model
from torch import Tensor

import vit_hub
from vit_hub.model.config import Rope, ViTConfig

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 48, "num_classes": 5,
}  # fmt: skip
NO_TABLE: dict[str, Any] = {"pos_embed": "none", "pos_embed_prefix": False}
VARIETIES: dict[str, dict[str, Any]] = {
    "table": {"num_registers": 2},
    "relative": {**NO_TABLE, "rel_pos": "block", "resize": "relpos-bilinear", "pool": "avg", "final_norm": "after"},
    "rotary": {**NO_TABLE, "rope": Rope(reference_grid=(4, 4)), "ffn": "swiglu", "act": "silu"},
    "map": {"class_token": False, "pos_embed_prefix": False, "pool": "map", "act": "gelu_tanh"},
    "hybrid": {"stem": "resnet", "stem_stages": (1, 1), "stem_width": 32, "image_size": 64, "patch_size": 1},
}
CONFIGS = {name: ViTConfig(**SMALL | fields) for name, fields in VARIETIES.items()}


def resized(config: ViTConfig, folder: Path) -> tuple[vit_hub.VisionTransformer, Tensor, Tensor]:
    """A model loaded for larger images, such images, and its outputs."""
    p, q = config.pixels_per_patch
    file = random_model(config).save(folder / "model.safetensors")
    model = vit_hub.load(file, image_size=(6 * p, 5 * q))
    images = torch.randn(2, 3, *model.config.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model, images, model(images)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_torch_export_at_a_new_resolution(config: ViTConfig, tmp_path: Path) -> None:
    model, images, wanted = resized(config, tmp_path)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
    with torch.inference_mode():
        assert torch.allclose(program(images), wanted, rtol=0, atol=1e-5)
        assert torch.allclose(program(images.repeat(3, 1, 1, 1)), wanted.repeat(3, 1), rtol=0, atol=1e-5)


# What the exporter of PyTorch says of itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["table", "relative", "rotary", "map"])
def test_onnx_at_a_new_resolution(name: str, tmp_path: Path) -> None:
    model, images, wanted = resized(CONFIGS[name], tmp_path)
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (images,),
        file,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert not {node.op_type for node in onnx.load(file).graph.node} & {"Resize", "Upsample", "GridSample"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (found,) = session.run(None, {"images": images.repeat(count, 1, 1, 1).numpy()})
        assert np.abs(found - wanted.repeat(count, 1).numpy()).max() <= 1e-4
