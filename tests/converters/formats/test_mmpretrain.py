"""mmpretrain's checkpoints: the config kept inside, files without one, pre-training files, averages, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples, random_model
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.preprocessing.mmengine import parse_config

RECORDED = {case.name: case for case in CASES if case.name.startswith("mmpre")}
SMALL: dict[str, Any] = {
    "image_size": (8, 8),
    "patch_size": (4, 4),
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_classes": 3,
    "resize": "bicubic",
}

pytestmark = pytest.mark.filterwarnings("ignore:.*class names in classes")


def contents(name: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(RECORDED[name].checkpoint, weights_only=True)
    return found


def saved(folder: Path, **parts: Any) -> Path:
    torch.save(parts, folder / "epoch_3.pth")
    return folder / "epoch_3.pth"


def written(folder: Path, **fields: Any) -> dict[str, Any]:
    """The file and the model of a random config."""
    model = random_model(vit_hub.ViTConfig(**{**SMALL, **fields}))
    model.save(folder / "model.safetensors")
    vit_hub.convert(folder / "model.safetensors", folder / "mm.pth", to="mmpretrain")
    found: dict[str, Any] = torch.load(folder / "mm.pth", weights_only=True)
    assert vit_hub.open_checkpoint(folder / "mm.pth").config == model.config
    return found


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_the_text_of_the_config_comes_back(name: str, tmp_path: Path) -> None:
    vit_hub.convert(RECORDED[name].checkpoint, tmp_path / "c.safetensors")
    label = vit_hub.open_checkpoint(RECORDED[name].checkpoint).format
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "back.pth", to=label)
    assert torch.load(tmp_path / "back.pth", weights_only=True)["meta"]["cfg"] == contents(name)["meta"]["cfg"]


def test_what_the_tensors_do_not_tell_is_written_as_config(tmp_path: Path) -> None:
    fields = {"act": "gelu_tanh", "norm_eps": 1e-4, "pool": "avg", "final_norm": "after", "qkv_bias": False}
    meta = written(tmp_path, **fields)["meta"]
    backbone = parse_config(meta["cfg"])["model"]["backbone"]
    assert backbone["layer_cfgs"] == {"act_cfg": {"type": "GELU", "approximate": "tanh"}}
    assert (backbone["norm_cfg"], backbone["out_type"]) == ({"type": "LN", "eps": 1e-4}, "avg_featmap")
    assert backbone["arch"] == {"embed_dims": 16, "num_layers": 2, "num_heads": 2, "feedforward_channels": 24}


@pytest.mark.parametrize(
    "fields",
    [
        {"ffn": "swiglu_packed", "act": "silu", "layer_scale": True},
        {"class_token": False, "pos_embed_prefix": False, "pool": "avg", "final_norm": "after"},
        {"pre_norm": True, "patch_bias": False, "act": "quick_gelu"},
        {"distilled": True, "head_input": "cls_dist"},
        {"representation_dim": 6, "image_size": (8, 12)},
        {"head_norm": True},
        {"rel_pos": "block", "pos_embed": "none", "qkv_bias": "qv", "resize": "relpos-geometric"},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_models_of_its_classes_are_written(fields: dict[str, Any], tmp_path: Path) -> None:
    state = written(tmp_path, **fields)["state_dict"]
    assert all(name.startswith(("backbone.", "head.", "neck.")) for name in state)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"num_registers": 2}, "num_registers"),
        ({"pool": "avg"}, "final_norm"),
        ({"rope": {}, "ffn": "swiglu_packed", "act": "silu"}, "rope"),
        ({"qk_norm": True}, "qk_norm"),
    ],
)
def test_other_models_are_refused(fields: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByFormatError, match=f"{field}: "):
        written(tmp_path, **fields)


@pytest.mark.parametrize("name", ["mmpre_beit", "mmpre_deit3", "mmpre_eva02_nosub", "mmpre_vit_mae_ft_avg"])
@pytest.mark.parametrize("at", ["backbone.", "model.backbone.", ""])
def test_without_a_config_the_class_shows_in_names_and_rows(name: str, at: str, tmp_path: Path) -> None:
    state = contents(name)["state_dict"]
    named = {key.replace("backbone.", at): tensor for key, tensor in state.items() if key.startswith("backbone.")}
    known = vit_hub.open_checkpoint(RECORDED[name].checkpoint)
    found = vit_hub.open_checkpoint(saved(tmp_path, **named), overrides={"num_heads": known.config.num_heads})
    assert found.format == known.format
    assert found.config.replace(num_classes=known.config.num_classes) == known.config
    if "deit3" in name:
        assert any("format='mmpretrain-vit'" in warning for warning in found.warnings)


def test_deit3_norms_twice_with_one_norm_and_its_second_comes_back(tmp_path: Path) -> None:
    model = vit_hub.load(RECORDED["mmpre_deit3"].checkpoint)
    block = model.blocks[0]
    assert torch.equal(block.norm1.weight, block.norm2.weight)
    assert block.norm1.weight.data_ptr() != block.norm2.weight.data_ptr()
    with torch.no_grad():
        block.norm2.weight += 1
    model.save(tmp_path / "trained.safetensors")
    with pytest.raises(
        UnsupportedByFormatError, match="one tensor for blocks.0.norm1.weight and blocks.0.norm2.weight"
    ):
        vit_hub.convert(tmp_path / "trained.safetensors", tmp_path / "mm.pth", to="mmpretrain-deit3")
    assert not (tmp_path / "mm.pth").exists()


def test_the_average_that_mmengine_wrote_into_state_dict_is_read(tmp_path: Path) -> None:
    found = contents("mmpre_beit")
    other: dict[str, Tensor] = {f"module.{name}": tensor + 1 for name, tensor in found["state_dict"].items()}
    path = saved(tmp_path, **found, ema_state_dict={**other, "steps": torch.tensor(7)})
    opened = vit_hub.open_checkpoint(path)
    assert torch.equal(
        torch.from_numpy(opened.tensors["norm.weight" if "norm.weight" in opened.tensors else "fc_norm.weight"].read()),
        found["state_dict"]["backbone.ln2.weight"],
    )
    assert any("ema_state_dict" in warning for warning in opened.warnings)


def test_parts_of_the_pre_training_are_left_out_with_reasons(tmp_path: Path) -> None:
    found = contents("mmpre_vit_mae_ft_avg")
    state = {name: tensor for name, tensor in found["state_dict"].items() if not name.startswith("head.")}
    extra = {
        "backbone.mask_token": torch.zeros(1, 1, 32),
        "neck.mask_token": torch.zeros(1, 1, 16),
        "neck.decoder_blocks.0.ln1.weight": torch.zeros(16),
        "momentum_encoder.module.0.patch_embed.projection.weight": torch.zeros(32, 3, 4, 4),
        "head.cls_head.weight": torch.zeros(8, 32),
    }
    opened = vit_hub.open_checkpoint(saved(tmp_path, meta=found["meta"], state_dict={**state, **extra}))
    assert opened.config.num_classes == 0
    assert set(opened.dropped) == {f"state_dict/{name}" for name in extra}


def test_class_names_and_preprocessing_are_read_and_written(tmp_path: Path) -> None:
    found = contents("mmpre_beit")
    found["meta"]["dataset_meta"] = {"classes": ("ant", "bee", "cat", "dog")}
    found["meta"]["cfg"] += """
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
test_pipeline = [dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=20, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=16), dict(type='PackInputs')]
"""
    model = vit_hub.load(saved(tmp_path, **found))
    assert vit_hub.class_names(model) == ("ant", "bee", "cat", "dog")
    preprocess = vit_hub.preprocess(model)
    assert (preprocess.mean, preprocess.interpolation, preprocess.crop_pct) == ((0.5, 0.5, 0.5), "bicubic", 0.8)
    for to in ("timm", "mmpretrain"):
        model.save(tmp_path / "model.safetensors")
        vit_hub.convert(tmp_path / "model.safetensors", tmp_path / "a", to="timm")
        report = vit_hub.convert(tmp_path / "a", tmp_path / to, to=to)
        assert not report.metadata_lost
        again = vit_hub.load(report.path)
        assert vit_hub.class_names(again) == ("ant", "bee", "cat", "dog")
        assert vit_hub.preprocess(again) == preprocess


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("'patch_size'", "'layer_cfgs': {'act_cfg': {'type': 'Mish'}}, 'patch_size'"), ConfigError, "Mish"),
        (("'patch_size'", "'layer_cfgs': [{'act_cfg': {'type': 'ReLU'}}, {}], 'patch_size'"), ConfigError, "layers"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    change: tuple[str, str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    found = contents("mmpre_beit")
    found["meta"]["cfg"] = found["meta"]["cfg"].replace(*change)
    with pytest.raises(error, match=message):
        vit_hub.open_checkpoint(saved(tmp_path, **found))


def test_two_final_norms_are_refused(tmp_path: Path) -> None:
    state = contents("mmpre_beit")["state_dict"]
    norms = {f"backbone.ln1.{part}": torch.ones(24) for part in ("weight", "bias")}
    with pytest.raises(ConfigError, match="final_norm"):
        vit_hub.open_checkpoint(saved(tmp_path, state_dict={**state, **norms}), overrides={"num_heads": 3})


def test_sam_without_a_config_is_told_by_its_shapes(tmp_path: Path) -> None:
    found = vit_hub.open_checkpoint(saved(tmp_path, state_dict=contents("mmpre_sam")["state_dict"]))
    stated = vit_hub.open_checkpoint(RECORDED["mmpre_sam"].checkpoint)
    assert (found.config, found.warnings) == (stated.config, ())


def test_a_config_is_parsed_and_never_run(tmp_path: Path) -> None:
    text = f"import os\nmodel = dict(a=open({str(tmp_path / 'made')!r}, 'w'), b=[-1, (2.5, None)], c={{'d': True}})\n"
    assert parse_config(text) == {"model": {"a": None, "b": [-1, [2.5, None]], "c": {"d": True}}}
    assert not (tmp_path / "made").exists()


@examples(60)
@given(st.text() | st.sampled_from(["(" * 500, "-" * 100_000 + "1", "x = " + "[" * 90 + "]" * 90, "a = 1 +", "\0"]))
def test_any_text_is_a_config_or_none(text: str) -> None:
    assert isinstance(parse_config(text), dict)


def test_what_a_file_keeps_about_itself_is_bounded(tmp_path: Path) -> None:
    found = contents("mmpre_vit_mae_ft_avg")
    many: list[Any] = ["x" * 1000]
    for _ in range(8):
        many = [many] * 4
    found["meta"] |= {"log": many}
    opened = vit_hub.open_checkpoint(saved(tmp_path, **found))
    assert opened.passport.sidecars["meta"].keys() == found["meta"].keys() - {"log"}
