"""YOLOS and ViTPose of transformers: the same tokens as their own code, at any size, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import randomise, relative_error

import vit_hub

pytestmark = pytest.mark.filterwarnings("ignore")
EXACT = 1e-10


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from((1, 2)))
    return {
        "num_attention_heads": heads,
        "hidden_size": 8 * heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "hidden_act": draw(st.sampled_from(("gelu", "relu", "gelu_pytorch_tanh"))),
        "layer_norm_eps": draw(st.sampled_from((1e-12, 1e-5))),
        "qkv_bias": draw(st.booleans()),
        "num_channels": draw(st.sampled_from((1, 3))),
    }


def images_of(config: Any, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, config.num_channels, height, width, dtype=torch.float64, generator=generator)


def ready(model: Any) -> Any:
    randomise(model)
    return model.double().eval()


def same_way_back(source: Path, tmp_path: Path) -> None:
    vit_hub.convert(source, tmp_path / "canonical.safetensors")
    report = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to="hf")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, report.path))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=sizes(),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    detections=st.integers(1, 4),
    middle=st.booleans(),
    pooled=st.booleans(),
)
def test_yolos(
    tmp_path_factory: pytest.TempPathFactory,
    shape: dict[str, Any],
    grid: tuple[int, int],
    detections: int,
    middle: bool,
    pooled: bool,
) -> None:
    folder = tmp_path_factory.mktemp("yolos")
    config = transformers.YolosConfig(
        **shape,
        intermediate_size=12,
        patch_size=4,
        image_size=[4 * side for side in grid],
        num_detection_tokens=detections,
        use_mid_position_embeddings=middle and shape["num_hidden_layers"] > 1,
    )
    theirs = ready(transformers.YolosModel(config, add_pooling_layer=pooled))
    theirs.save_pretrained(folder / "source")
    ours = vit_hub.load(folder / "source", dtype="float64", dynamic=True)
    assert ours.config.num_detection_tokens == detections
    for height, width in (tuple(4 * side for side in grid), (12, 20)):
        images = images_of(config, height, width)
        with torch.inference_mode():
            wanted = theirs(images)
            tokens = ours.forward_features(images)
            assert relative_error(tokens, wanted.last_hidden_state) <= EXACT
            if pooled:
                assert relative_error(ours(images), wanted.pooler_output) <= EXACT
            patches = ours.forward_intermediates(images, 1, norm=True)[0]
        assert patches.shape == (2, shape["hidden_size"], height // 4, width // 4)
        assert torch.equal(patches.flatten(2).transpose(1, 2), tokens[:, 1 : tokens.shape[1] - detections])
    same_way_back(folder / "source", folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=sizes(), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_vitpose(tmp_path_factory: pytest.TempPathFactory, shape: dict[str, Any], grid: tuple[int, int]) -> None:
    folder, size = tmp_path_factory.mktemp("pose"), [8 * side for side in grid]
    config = transformers.VitPoseBackboneConfig(**shape, mlp_ratio=2, patch_size=8, image_size=size)
    theirs = ready(transformers.VitPoseBackbone(config))
    theirs.save_pretrained(folder / "source")
    ours = vit_hub.load(folder / "source", dtype="float64")
    images = images_of(config, *size)
    with torch.inference_mode():
        wanted = theirs(images).feature_maps[-1]
        assert relative_error(ours(images), wanted) <= EXACT
    same_way_back(folder / "source", folder)


def small_pose(folder: Path, **options: Any) -> Any:
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "mlp_ratio": 2, "patch_size": 8}
    config = transformers.VitPoseBackboneConfig(**small, image_size=[24, 16], **options)
    theirs = ready(transformers.VitPoseBackbone(config))
    theirs.save_pretrained(folder)
    return theirs


def test_vitpose_at_another_size_and_changed(tmp_path: Path) -> None:
    small_pose(tmp_path / "source")
    ours = vit_hub.load(tmp_path / "source", dtype="float64", image_size=(32, 40))
    with torch.no_grad():
        ours.pos_embed += 0.1
    written = vit_hub.convert(ours.save(tmp_path / "tuned.safetensors"), tmp_path / "back", to="hf").path
    theirs = transformers.VitPoseBackbone.from_pretrained(written, dtype=torch.float64).eval()
    images = images_of(theirs.config, 32, 40)
    with torch.inference_mode():
        assert relative_error(theirs(images).feature_maps[-1], ours(images)) <= EXACT


def test_the_first_of_the_experts_by_dataset(tmp_path: Path) -> None:
    theirs = small_pose(tmp_path / "source", num_experts=3, part_features=4)
    source = vit_hub.open_checkpoint(tmp_path / "source")
    assert any("dataset_index 0" in text for text in source.warnings)
    assert len(source.dropped) == 2 * 2 * 2
    assert all(".experts.1." in name or ".experts.2." in name for name in source.dropped)
    images = images_of(theirs.config, 24, 16)
    with torch.inference_mode():
        wanted = theirs(images, dataset_index=torch.zeros(2, dtype=torch.int64)).feature_maps[-1]
        assert relative_error(vit_hub.load(source, dtype="float64")(images), wanted) <= EXACT
    vit_hub.convert(tmp_path / "source", tmp_path / "canonical.safetensors", keep_rest=True)
    report = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to="hf", keep_rest=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "source", report.path))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_whole_models(tmp_path: Path) -> None:
    small = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
        "image_size": [16, 24],
    }
    whole = ready(transformers.YolosForObjectDetection(transformers.YolosConfig(**small, intermediate_size=20)))
    whole.save_pretrained(tmp_path / "yolos")
    ours = vit_hub.load(tmp_path / "yolos", dtype="float64")
    images = images_of(whole.config, 16, 24)
    with torch.inference_mode():
        assert relative_error(ours(images), whole.vit(images).last_hidden_state) <= EXACT
    dropped = vit_hub.open_checkpoint(tmp_path / "yolos").dropped
    assert {name.split(".")[0] for name in dropped} == {"bbox_predictor", "class_labels_classifier"}
