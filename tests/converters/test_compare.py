"""Comparison of weights and outputs across any two formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from golden_cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import configs, examples, random_model

import vit_hub
from vit_hub.errors import CheckpointError, ConfigError, UnknownFormatError

CONFIG = vit_hub.ViTConfig(
    image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3, norm_eps=1e-6
)
LATER = {"resize", "resize_by_count"}

pytestmark = pytest.mark.filterwarnings("ignore:.*have the same tensor names")


def saved(config: vit_hub.ViTConfig, path: Path, **changes: torch.Tensor) -> Path:
    """A canonical file of a random model with some tensors changed."""
    model = random_model(config)
    for name, value in changes.items():
        model.state_dict()[name].copy_(value)
    return model.save(path)


def status(result: Any) -> dict[str, str]:
    return {row.name: row.status for row in result.tensors}


@pytest.mark.parametrize("name", ["vitjax_token_linen", "timm_vit_token", "timm_deit_distilled", "hf_vitmsn_model"])
def test_a_checkpoint_is_the_same_in_every_format(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    paths = [case.checkpoint]
    for to in ("canonical", "timm", "hf"):
        paths.append(vit_hub.convert(case.checkpoint, tmp_path / to, to=to, overrides=case.overrides).path)
    for other in paths[1:]:
        result = vit_hub.compare(case.checkpoint, other, overrides=case.overrides)
        assert set(status(result).values()) == {"equal"}
        assert result.same_weights
        assert result.same_numbers
        assert result.output_difference == 0.0
        assert set(result.config) <= LATER


@examples(25)
@given(config=configs())
def test_a_file_is_the_same_as_itself(tmp_path: Path, config: vit_hub.ViTConfig) -> None:
    path = saved(config, tmp_path / "a.safetensors")
    result = vit_hub.compare(path, path)
    assert result.same_weights
    assert result.same_numbers
    assert result.config == {}
    assert [row.name for row in result.tensors] == list(vit_hub.open_checkpoint(path).tensors)


@examples(25)
@given(name=st.sampled_from(sorted(random_model(CONFIG).state_dict())), data=st.data())
def test_one_changed_value_is_found(tmp_path: Path, name: str, data: st.DataObject) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    changed = random_model(CONFIG).state_dict()[name].clone()
    index = data.draw(st.integers(0, changed.numel() - 1))
    changed.view(-1)[index] += 0.25
    second = saved(CONFIG, tmp_path / "b.safetensors", **{name: changed})
    result = vit_hub.compare(first, second)
    assert {row.name for row in result.tensors if row.status != "equal"} == {name}
    assert status(result)[name] == "different"
    (row,) = [row for row in result.tensors if row.name == name]
    assert row.max_difference == pytest.approx(0.25, rel=1e-5)
    assert not result.same_weights
    assert result.config == {}
    swapped = vit_hub.compare(second, first)
    assert swapped.tensors == result.tensors
    assert swapped.output_difference == pytest.approx(result.output_difference)


def test_the_bias_of_keys_is_seen_though_no_output_shows_it(tmp_path: Path) -> None:
    bias = random_model(CONFIG).state_dict()["blocks.0.attn.qkv.bias"].clone()
    bias[16:32] += 1.0
    result = vit_hub.compare(
        saved(CONFIG, tmp_path / "a.safetensors"),
        saved(CONFIG, tmp_path / "b.safetensors", **{"blocks.0.attn.qkv.bias": bias}),
    )
    assert not result.same_weights
    assert result.same_numbers


@pytest.mark.parametrize(
    ("field", "values"), [("act", ("gelu", "gelu_tanh")), ("norm_eps", (1e-6, 1e-3)), ("num_heads", (2, 4))]
)
def test_the_same_weights_with_other_numbers(field: str, values: tuple[Any, Any], tmp_path: Path) -> None:
    paths = [
        saved(CONFIG.replace(**{field: value}), tmp_path / f"{index}.safetensors")
        for index, value in enumerate(values)
    ]  # fmt: skip
    result = vit_hub.compare(*paths)
    assert result.same_weights
    assert not result.same_numbers
    assert result.config == {field: values}
    models = [vit_hub.load(path) for path in paths]
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = float((models[0](images) - models[1](images)).abs().max())
    assert result.output_difference == pytest.approx(wanted)
    assert wanted > 2e-5


def test_a_head_of_zeros_hides_no_difference(tmp_path: Path) -> None:
    """As in files pre-trained on ImageNet-21k, whose heads were never stored."""
    zeros = {"head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3)}
    first = saved(CONFIG, tmp_path / "a.safetensors", **zeros)
    second = saved(CONFIG.replace(act="quick_gelu"), tmp_path / "b.safetensors", **zeros)
    result = vit_hub.compare(first, second)
    assert result.same_weights
    assert not result.same_numbers


def test_how_a_table_would_be_resized_changes_no_number(tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    result = vit_hub.compare(first, saved(CONFIG.replace(resize="bicubic"), tmp_path / "b.safetensors"))
    assert result.same_numbers
    assert result.config == {"resize": ("bicubic-antialias", "bicubic")}


@pytest.mark.parametrize(("dtype", "equal"), [("float64", True), ("bfloat16", False), ("float16", False)])
def test_another_dtype_is_told_from_other_values(dtype: str, equal: bool, tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    vit_hub.convert(first, tmp_path / "b.safetensors", dtype=dtype)
    result = vit_hub.compare(first, tmp_path / "b.safetensors")
    assert set(status(result).values()) == ({"dtype"} if equal else {"different"})
    assert result.same_weights == result.same_numbers == equal
    rounded = load_file(tmp_path / "b.safetensors")
    original = load_file(first)
    for row in result.tensors:
        x, y = original[row.name].double().flatten(), rounded[row.name].double().flatten()
        assert row.max_difference == float((x - y).abs().max())
        assert row.relative == pytest.approx(float((x - y).norm() / max(x.norm(), y.norm())))
        assert row.cosine == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)))
        assert row.rounded_to == (None if row.max_difference == 0 else dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_that_were_rounded_are_told_in_any_dtype(dtype: str, tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    vit_hub.convert(first, tmp_path / "b.safetensors", dtype=dtype)
    vit_hub.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", dtype="float32")
    for pair in ((first, tmp_path / "c.safetensors"), (tmp_path / "c.safetensors", first)):
        result = vit_hub.compare(*pair)
        assert not result.same_weights
        assert {row.rounded_to for row in result.tensors if row.status == "different"} == {dtype}


def test_a_tolerance_is_relative_to_the_norms(tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    second = saved(CONFIG, tmp_path / "b.safetensors", **{"norm.bias": random_model(CONFIG).norm.bias.detach() + 0.01})
    strict = vit_hub.compare(first, second)
    assert (strict.same_weights, strict.same_numbers) == (False, False)
    (row,) = [row for row in strict.tensors if row.status == "different"]
    assert row.rounded_to is None
    assert row.relative is not None
    assert strict.output_relative is not None
    assert strict.output_cosine is not None
    assert 0.9 < strict.output_cosine < 1
    loose = vit_hub.compare(first, second, tolerance=1.01 * max(row.relative, strict.output_relative))
    assert (loose.same_weights, loose.same_numbers) == (True, True)
    assert loose.tensors == strict.tensors
    between = vit_hub.compare(first, second, tolerance=0.99 * row.relative)
    assert not between.same_weights
    other = vit_hub.compare(first, saved(CONFIG.replace(num_classes=0), tmp_path / "c.safetensors"), tolerance=1.0)
    assert not other.same_weights


def test_values_that_are_exact_in_the_narrower_dtype_are_the_same_weights(tmp_path: Path) -> None:
    first = random_model(CONFIG).to(torch.bfloat16).save(tmp_path / "a.safetensors")
    vit_hub.convert(first, tmp_path / "b.safetensors", dtype="float32")
    result = vit_hub.compare(first, tmp_path / "b.safetensors")
    assert set(status(result).values()) == {"dtype"}
    assert result.same_weights
    assert result.same_numbers


def test_not_a_number_is_the_same_only_bit_for_bit(tmp_path: Path) -> None:
    nan = torch.full((16,), float("nan"))
    first, second = (saved(CONFIG, tmp_path / f"{n}.safetensors", **{"norm.bias": nan}) for n in "ab")
    assert vit_hub.compare(first, second).same_weights
    result = vit_hub.compare(first, saved(CONFIG, tmp_path / "c.safetensors"))
    assert status(result)["norm.bias"] == "different"
    assert not result.same_weights
    assert not result.same_numbers


def test_a_missing_head_is_only_in_one(tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    second = vit_hub.load(first, num_classes=0).save(tmp_path / "b.safetensors")
    result = vit_hub.compare(first, second)
    assert {name: found for name, found in status(result).items() if found != "equal"} == {
        "head.weight": "only in first",
        "head.bias": "only in first",
    }
    assert not result.same_weights
    assert result.config == {"num_classes": (3, 0)}
    # The embeddings of both are compared, which are the same.
    assert result.output_difference == 0.0
    assert set(status(vit_hub.compare(second, first)).values()) == {"equal", "only in second"}


def test_another_shape_is_no_difference_in_values(tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    second = vit_hub.load(first, num_classes=5).save(tmp_path / "b.safetensors")
    result = vit_hub.compare(first, second)
    assert {row.name: row.max_difference for row in result.tensors if row.status == "shape"} == {
        "head.weight": None,
        "head.bias": None,
    }
    assert not result.same_weights


@pytest.mark.parametrize("changes", [{"image_size": 12}, {"in_chans": 1}])
def test_models_of_other_images_have_no_common_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    result = vit_hub.compare(first, saved(CONFIG.replace(**changes), tmp_path / "b.safetensors"))
    assert result.output_difference is None
    assert not result.same_numbers
    assert not result.same_weights
    assert set(result.config) == set(changes)


def test_carried_tensors_are_listed_but_are_not_the_models_weights(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        encoder_stride=4,
    )  # fmt: skip
    transformers.ViTForMaskedImageModeling(config).save_pretrained(tmp_path / "a")
    weights = load_file(tmp_path / "a" / "model.safetensors")
    weights["vit.embeddings.mask_token"] = torch.ones(1, 1, 16)
    (tmp_path / "b").mkdir()
    save_file(weights, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    result = vit_hub.compare(tmp_path / "a", tmp_path / "b")
    assert status(result)["mask_token"] == "different"
    assert result.same_weights
    assert result.same_numbers


def test_what_neither_file_tells_has_to_be_told(tmp_path: Path) -> None:
    save_file(random_model(CONFIG).state_dict(), tmp_path / "a.safetensors")
    torch.save(random_model(CONFIG).state_dict(), tmp_path / "b.pth")
    with pytest.raises(ConfigError, match=r"a\.safetensors.*num_heads"):
        vit_hub.compare(tmp_path / "a.safetensors", tmp_path / "b.pth")
    result = vit_hub.compare(
        tmp_path / "a.safetensors", tmp_path / "b.pth", overrides={"num_heads": 2}, formats=("timm", "timm")
    )
    assert result.same_weights
    assert result.same_numbers


def test_what_cannot_be_read_is_an_error_of_that_file(tmp_path: Path) -> None:
    first = saved(CONFIG, tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", x=np.zeros(2))
    with pytest.raises(CheckpointError, match=r"c\.npz"):
        vit_hub.compare(first, tmp_path / "c.npz")
    with pytest.raises(UnknownFormatError, match=r"b\.npz"):
        vit_hub.compare(first, tmp_path / "b.npz")
    with pytest.raises(UnknownFormatError, match="keras"):
        vit_hub.compare(first, first, formats=("keras", None))
