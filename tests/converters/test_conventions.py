"""Activation, epsilon, pooling and resizing follow the format that weights come from, and stay with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from golden_cases import CASES, Case

import vit_hub
from vit_hub.errors import UnsupportedByFormatError

CASE = {case.name: case for case in CASES}
ALIGNED, SMOOTH, BICUBIC = "bilinear-align-corners", "bicubic-antialias", "bicubic"
# What each project runs its own files with: activation, epsilon of norms, pooling and where the last norm stands
# ("avg after": the mean of tokens that are not normed is), how a table is resized at another image size.
SOURCES: dict[str, tuple[str, float, str, str]] = {
    "vitjax_token_prelinen_npz": ("gelu_tanh", 1e-6, "cls before", ALIGNED),
    "vitjax_token_linen": ("gelu_tanh", 1e-6, "cls before", ALIGNED),
    "vitjax_gap": ("gelu_tanh", 1e-6, "avg before", ALIGNED),
    "vitjax_hybrid_r_blocks_prelinen": ("gelu_tanh", 1e-6, "cls before", ALIGNED),
    "bv_gap_learn": ("gelu_tanh", 1e-6, "avg before", ALIGNED),
    "bv_map_learn_scan": ("gelu_tanh", 1e-6, "map before", ALIGNED),
    "bv_siglip_map": ("gelu_tanh", 1e-6, "map before", ALIGNED),
    "bv_tok_sincos2d": ("gelu_tanh", 1e-6, "cls before", ALIGNED),
    "timm_vit_token": ("gelu", 1e-6, "cls before", SMOOTH),
    "timm_vit_avg_fcnorm": ("gelu", 1e-6, "avg after", SMOOTH),
    "timm_siglip_map": ("gelu", 1e-6, "map before", SMOOTH),
    "timm_dinov2_giant_swiglu": ("silu", 1e-6, "cls before", SMOOTH),
    "timm_eva02_rope_swiglu": ("silu", 1e-6, "avg after", SMOOTH),
    "timm_pe_core_map": ("gelu", 1e-5, "map before", SMOOTH),
    "timm_beit": ("gelu", 1e-6, "avg after", "relpos-geometric"),
    "hf_vit_cls": ("gelu", 1e-12, "cls before", BICUBIC),
    "hf_deit_teacher": ("gelu", 1e-12, "cls_dist before", BICUBIC),
    "hf_vitmae_model": ("gelu", 1e-12, "cls before", BICUBIC),
    "hf_vitmsn_model": ("gelu", 1e-6, "cls before", BICUBIC),
    "hf_ijepa_model": ("gelu", 1e-12, "avg before", BICUBIC),
    "hf_beit_cls_relpos": ("gelu", 1e-12, "avg after", "relpos-bilinear"),
    "hf_data2vec_cls": ("gelu", 1e-12, "avg after", "relpos-bilinear"),
    "hf_dinov2_cls": ("gelu", 1e-6, "cls before", BICUBIC),
    "hf_dinov2reg_model": ("gelu", 1e-6, "cls before", SMOOTH),
    "hf_siglip_vision": ("gelu_tanh", 1e-6, "map before", BICUBIC),
    "hf_siglip2_vision_square": ("gelu_tanh", 1e-6, "map before", "bilinear-antialias"),
    "hf_clip_vision_projection": ("quick_gelu", 1e-5, "cls after", BICUBIC),
    "torchvision_vit": ("gelu", 1e-6, "cls before", "bicubic-align-corners"),
    "openai_clip_visual": ("quick_gelu", 1e-5, "cls after", BICUBIC),
    "openclip_gelu": ("gelu", 1e-5, "cls after", SMOOTH),
    "fb_dino": ("gelu", 1e-6, "cls before", "bicubic-offset"),
    "fb_deit": ("gelu", 1e-6, "cls before", BICUBIC),
    "fb_mae_pretrain": ("gelu", 1e-6, "cls before", BICUBIC),
    "fb_mae_finetune_globalpool": ("gelu", 1e-6, "avg after", BICUBIC),
    "fb_mocov3_linear": ("gelu", 1e-6, "cls before", BICUBIC),
    "fb_msn": ("gelu", 1e-6, "cls before", BICUBIC),
    "fb_ijepa_encoder": ("gelu", 1e-6, "avg before", BICUBIC),
    "fb_dinov2": ("gelu", 1e-6, "cls before", "bicubic-offset"),
    "fb_dinov2_giant_swiglu": ("silu", 1e-6, "cls before", "bicubic-offset"),
    "fb_dinov2_reg4": ("gelu", 1e-6, "cls before", SMOOTH),
}
# Models whose positions are computed: there is no table to resize.
COMPUTED = {"fb_dinov3_vits_style": ("gelu", 1e-5), "hf_dinov3_vit": ("gelu", 1e-5)}


def facts(config: vit_hub.ViTConfig) -> tuple[str, float, str, str]:
    return config.act, config.norm_eps, f"{config.pool} {config.final_norm}", config.resize


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_run_as_by_the_project_that_it_comes_from(name: str, tmp_path: Path) -> None:
    case = CASE[name]
    assert not {"act", "norm_eps", "pool"} & set(case.overrides)
    ckpt = vit_hub.open_checkpoint(case.checkpoint, overrides=case.overrides)
    assert facts(ckpt.config) == SOURCES[name]
    for field in ("act", "norm_eps", "pool", "resize"):
        assert ckpt.inferred[field]
    vit_hub.convert(case.checkpoint, tmp_path / "canonical.safetensors", overrides=case.overrides)
    assert facts(vit_hub.open_checkpoint(tmp_path / "canonical.safetensors").config) == SOURCES[name]


@pytest.mark.parametrize("name", COMPUTED)
def test_a_model_with_computed_positions_too(name: str) -> None:
    case = CASE[name]
    config = vit_hub.open_checkpoint(case.checkpoint, overrides=case.overrides).config
    assert (config.act, config.norm_eps) == COMPUTED[name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_what_the_recorded_models_were_run_with(case: Case) -> None:
    config = vit_hub.open_checkpoint(case.checkpoint, overrides=case.overrides).config
    recorded = case.meta["config"]
    eps = recorded.get("eps", config.norm_eps)
    assert config.norm_eps == (eps[0] if isinstance(eps, list) else eps)
    activation = str(recorded["activation"]).lower()
    if "quick" in activation:
        assert config.act == "quick_gelu"
    elif "tanh" in activation:
        assert config.act == "gelu_tanh"
    else:
        gated = "silu" in activation or (case.name.startswith("mmpre") and config.ffn != "mlp")
        assert config.act == ("silu" if gated else "gelu")


# transformers' class defaults, which apply where config.json is silent.
DEFAULTS = {
    "hf_vit_cls": 1e-12,
    "hf_deit_teacher": 1e-12,
    "hf_vitmae_model": 1e-12,
    "hf_beit_cls_relpos": 1e-12,
    "hf_data2vec_cls": 1e-12,
    "hf_ijepa_model": 1e-12,
    "hf_vitmsn_model": 1e-6,
    "hf_dinov2_cls": 1e-6,
    "hf_dinov2reg_model": 1e-6,
    "hf_siglip_vision": 1e-6,
    "hf_siglip2_vision_square": 1e-6,
    "hf_clip_vision_projection": 1e-5,
    "hf_dinov3_vit": 1e-5,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_config_leaves_out_takes_the_default_of_its_class_and_says_so(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(CASE[name].checkpoint, folder)
    file = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tower = file.get("vision_config", file)
    tower.pop("layer_norm_eps", None)
    (folder / "config.json").write_text(json.dumps(file), encoding="utf-8")
    ckpt = vit_hub.open_checkpoint(folder)
    assert ckpt.config.norm_eps == DEFAULTS[name]
    (message,) = [message for message in ckpt.warnings if "layer_norm_eps" in message]
    assert f"default {DEFAULTS[name]}" in message


@pytest.mark.parametrize(
    ("name", "to", "file", "said"),
    [
        ("vitjax_token_linen", "timm", "config.json", {"model_args": {"act_layer": "gelu_tanh"}}),
        ("bv_siglip_map", "timm", "config.json", {"model_args": {"act_layer": "gelu_tanh", "global_pool": "map"}}),
        ("hf_siglip_vision", "timm", "config.json", {"model_args": {"act_layer": "gelu_tanh", "fc_norm": False}}),
        ("hf_clip_vision_projection", "timm", "config.json", {"model_args": {"act_layer": "quick_gelu"}}),
        ("timm_vit_token", "hf", "config.json", {"hidden_act": "gelu", "layer_norm_eps": 1e-6}),
        ("vitjax_token_linen", "hf", "config.json", {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}),
        ("openclip_gelu", "hf", "config.json", {"hidden_act": "gelu", "layer_norm_eps": 1e-5}),
        ("openai_clip_visual", "hf", "config.json", {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}),
        ("openai_clip_visual", "open_clip", "open_clip_config.json", {"model_cfg": {"quick_gelu": True}}),
        ("fb_dinov3_vits_style", "hf", "config.json", {"hidden_act": "gelu", "layer_norm_eps": 1e-5}),
    ],
)
def test_the_config_that_is_written_keeps_the_numbers(
    name: str, to: str, file: str, said: dict[str, Any], tmp_path: Path
) -> None:
    case = CASE[name]
    report = vit_hub.convert(case.checkpoint, tmp_path / "out", to=to, overrides=case.overrides)
    written = json.loads((report.path / file).read_text(encoding="utf-8"))
    for key, value in said.items():
        if isinstance(value, dict):
            assert {inner: written[key][inner] for inner in value} == value
        else:
            assert written[key] == value


@pytest.mark.parametrize(
    ("name", "to", "suffix", "field"),
    [
        ("vitjax_token_linen", "timm", ".safetensors", "act"),
        ("vitjax_token_linen", "torchvision", ".pth", "act"),
        ("timm_vit_token", "vit_jax", ".npz", "act"),
        ("timm_siglip_map", "big_vision", ".npz", "act"),
        ("hf_vit_cls", "timm", "", "norm_eps"),
        ("hf_vit_cls", "timm", ".safetensors", "norm_eps"),
        ("hf_vit_cls", "torchvision", ".pth", "norm_eps"),
        ("openai_clip_visual", "open_clip", ".pt", "act"),
        ("timm_vit_reg4_gap", "vit_jax", ".npz", "num_registers"),
        ("fb_dinov2_reg4", "vit_jax", ".npz", "num_registers"),
    ],
)
def test_where_nothing_can_say_it_the_target_is_refused(
    name: str, to: str, suffix: str, field: str, tmp_path: Path
) -> None:
    case = CASE[name]
    target = tmp_path / f"out{suffix}"
    with pytest.raises(UnsupportedByFormatError, match=rf"{to} cannot express this model: (.*; )?{field}: ") as error:
        vit_hub.convert(case.checkpoint, target, to=to, overrides=case.overrides)
    assert "canonical" in error.value.hint
    assert not target.exists()
    report = vit_hub.convert(case.checkpoint, target, to=to, overrides=case.overrides, lossy=True)
    assert any(message.startswith(f"lossy: {field}: ") for message in report.warnings)
    assert target.exists()
