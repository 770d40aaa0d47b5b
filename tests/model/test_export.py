"""Models leave PyTorch at a new resolution or at any: no table is interpolated by an operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from small_models import configs, examples, random_images, random_model, relative_error
from torch import Tensor, fx
from torch.export import Dim
from torchvision.models.feature_extraction import create_feature_extractor

import vit_hub
from vit_hub.model.config import RESIZE_METHODS, RelPosMlp, Rope, ViTConfig

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


# Every convention of position tables, and stems that change the grid.
ANY_SIZE: dict[str, dict[str, Any]] = {
    **{method: {"resize": method} for method in RESIZE_METHODS if not method.startswith("relpos")},
    "by count": {"resize": "bilinear", "resize_by_count": True},
    "relative, linear": {**VARIETIES["relative"], "qkv_bias": "qv"},
    "relative, geometric": {**NO_TABLE, "rel_pos": "shared", "resize": "relpos-geometric"},
    "both tables": {"rel_pos": "block", "resize": "relpos-geometric"},
    "rotary": VARIETIES["rotary"],
    "stored periods": {
        **NO_TABLE,
        "rope": Rope(theta=100.0, coordinates="centered", stored_periods=True, pairs="half"),
        "num_registers": 2,
        "qkv_bias": "masked",
    },
    "longer side": {**NO_TABLE, "rope": Rope(coordinates="centered", normalize="max")},
    "learned rotations": {**NO_TABLE, "rope": Rope(mixed=True)},
    "relative, by a network": {**NO_TABLE, "rel_pos": "block", "rel_pos_mlp": RelPosMlp(hidden_dim=6, scale="swin")},
    "differential": {"differential": True, "parallel": "joint"},
    "sincos": {**VARIETIES["map"], "pos_embed": "sincos2d"},
    "hybrid": VARIETIES["hybrid"],
    "conv": {"stem": "conv", "stem_convs": ((8, 3, 2), (12, 3, 2)), "image_size": 32, "patch_size": 2},
    "windows": {
        "class_token": False,
        "pool": "avg",
        "final_norm": "none",
        "rel_pos": "decomposed",
        "neck": {"chans": 6},
        "windows": {"size": (2, 3), "full": (1,)},
    },
    "videos": {
        **NO_TABLE,
        "class_token": False,
        "pool": "attentive",
        "video": {"frames": 4},
        "rope": Rope(frames=True, pairs="tiled"),
    },
}
# (images, rows, columns): the model's own grid, others of as many patches, larger, smaller, not square.
GRIDS = [(2, 4, 4), (1, 2, 8), (3, 8, 2), (2, 6, 5), (1, 3, 7), (4, 12, 13)]


def any_size(name: str) -> vit_hub.VisionTransformer:
    model = random_model(ViTConfig(**SMALL | ANY_SIZE[name]))
    model.dynamic = True
    return model


def of_grid(model: vit_hub.VisionTransformer, batch: int, rows: int, columns: int) -> Tensor:
    p, q = model.config.pixels_per_patch
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randn(batch, model.config.in_chans, rows * p, columns * q, generator=generator)


def free_shapes(model: vit_hub.VisionTransformer) -> tuple[dict[int, Any]]:
    p, q = model.config.pixels_per_patch
    return ({0: Dim("batch"), 2: p * Dim("rows", min=2, max=99), 3: q * Dim("columns", min=2, max=99)},)


def exported(model: vit_hub.VisionTransformer, strict: bool = False) -> torch.nn.Module:
    shapes = free_shapes(model)
    return torch.export.export(model, (of_grid(model, 2, 6, 5),), dynamic_shapes=shapes, strict=strict).module()


@pytest.mark.parametrize("name", ANY_SIZE)
def test_one_program_for_all_sizes(name: str) -> None:
    model = any_size(name)
    program = exported(model)
    with torch.no_grad():
        for grid in GRIDS:
            images = of_grid(model, *grid)
            assert relative_error(program(images), model(images)) <= 1e-6, grid


@pytest.mark.parametrize("name", ["bicubic-offset", "by count", "relative, geometric", "stored periods"])
def test_one_program_for_all_sizes_by_dynamo(name: str) -> None:
    model = any_size(name)
    program = exported(model, strict=True)
    with torch.no_grad():
        for grid in GRIDS:
            images = of_grid(model, *grid)
            assert relative_error(program(images), model(images)) <= 1e-6, grid


@examples(12)
@given(config=configs())
def test_any_model_is_exported_for_all_sizes(config: ViTConfig) -> None:
    model = random_model(config, dtype=torch.float64)
    model.dynamic = True
    unit = zip(config.pixels_per_patch, ("rows", "columns"), strict=True)
    rows, columns = (step * Dim(name, min=2, max=99) for step, name in unit)
    images = of_grid(model, 2, 6, 5).double()
    program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch"), 2: rows, 3: columns},)).module()
    with torch.no_grad():
        for grid in ((3, 5, 7), (2, 2, 3), (4, *config.grid_size)):
            if min(grid[1:]) >= 2:
                images = of_grid(model, *grid).double()
                assert relative_error(program(images), model(images)) <= 1e-12, grid


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "name",
    ["bicubic-antialias", "bicubic-offset", "by count", "relative, geometric", "stored periods", "sincos", "windows"],
)
def test_one_onnx_file_for_all_sizes(name: str, tmp_path: Path) -> None:
    model, file = any_size(name), tmp_path / "model.onnx"
    images, shapes = of_grid(model, 2, 6, 5), free_shapes(model)
    torch.onnx.export(model, (images,), file, dynamo=True, verbose=False, input_names=["images"], dynamic_shapes=shapes)
    assert not {node.op_type for node in onnx.load(file).graph.node} & {"Resize", "Upsample", "GridSample"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for grid in GRIDS:
            images = of_grid(model, *grid)
            (found,) = session.run(None, {"images": images.numpy()})
            assert relative_error(torch.from_numpy(found), model(images)) <= 1e-5, grid
    wrong = of_grid(model, 1, 3, 3)[..., :-1]
    with pytest.raises(Exception, match="Reshape"):
        session.run(None, {"images": wrong.numpy()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["bicubic", "rotary"])
def test_images_are_padded_by_the_exported_program(name: str, tmp_path: Path) -> None:
    model, file = any_size(name), tmp_path / "model.onnx"
    model.pad = True
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    example = (torch.randn(2, 3, 23, 21),)
    program = torch.export.export(model, example, dynamic_shapes=shapes).module()
    torch.onnx.export(model, example, file, dynamo=True, verbose=False, input_names=["images"], dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for size in ((16, 16), (17, 30), (15, 16), (9, 41)):
            images = torch.randn(3, 3, *size)
            wanted = model(images)
            (found,) = session.run(None, {"images": images.numpy()})
            assert relative_error(program(images), wanted) <= 1e-6, size
            assert relative_error(torch.from_numpy(found), wanted) <= 1e-5, size


def test_sizes_that_are_not_whole_patches_are_refused_when_exporting() -> None:
    model = any_size("bicubic")
    with pytest.raises(Exception, match=r"rows = 4\*_rows"):
        torch.export.export(model, (torch.randn(2, 3, 24, 20),), dynamic_shapes=({2: Dim("rows"), 3: Dim("columns")},))
    with pytest.raises(Exception, match="Guard failed"):
        exported(model)(torch.randn(2, 3, 18, 16))


def test_a_model_of_one_size_is_not_exported_for_all() -> None:
    model = random_model(CONFIGS["table"])
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(Exception, match="specialized"):
        torch.export.export(model, (images,), dynamic_shapes=free_shapes(model))
    with pytest.raises(vit_hub.ConfigError, match="dynamic=True"):
        torch.export.export(model, (torch.randn(2, 3, 24, 20),), dynamic_shapes=free_shapes(model))


@pytest.mark.parametrize("name", ["bicubic", "relative, linear", "rotary", "sincos"])
def test_compiled_for_all_sizes_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    model = any_size(name)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True, fullgraph=True)
    for grid in GRIDS:
        images = of_grid(model, *grid)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]
    count = graphs["unique_graphs"]
    compiled(of_grid(model, 3, 9, 11))
    compiled(of_grid(model, 5, 10, 3))
    assert graphs["unique_graphs"] == count


@examples(30)
@given(config=configs(stem="patch"))
def test_torch_fx_traces_a_model_for_its_own_size(config: ViTConfig) -> None:
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    traced = fx.symbolic_trace(model)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {
        name for name, layer in model.named_modules() if type(layer) in (torch.nn.Linear, torch.nn.Conv2d)
    } <= called
    with torch.no_grad():
        assert relative_error(traced(images), model(images)) <= 1e-12
    p, q = config.pixels_per_patch
    with pytest.raises(AssertionError, match="traced for"):
        traced(torch.nn.functional.pad(images, (0, q, 0, p)))


def test_torchvisions_feature_extractor_sees_all_tokens() -> None:
    model = random_model(CONFIGS["table"], dtype=torch.float64)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = ["blocks.0", "blocks.1", "blocks.1.mlp.fc1", "norm", "head"]
    with torch.no_grad():
        found = create_feature_extractor(model, names)(images)
        tokens = model.forward_intermediates(images, [0, 1], return_prefix_tokens=True, output_fmt="NLC")
        for name, (patches, prefix) in zip(("blocks.0", "blocks.1"), tokens, strict=True):
            torch.testing.assert_close(found[name], torch.cat((prefix, patches), dim=1), rtol=1e-5, atol=1e-5)
        assert found["blocks.1.mlp.fc1"].shape == (2, 19, 48)
        torch.testing.assert_close(found["norm"], model.forward_features(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["head"], model(images), rtol=1e-5, atol=1e-5)
