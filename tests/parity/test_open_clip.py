"""The same numbers as open_clip's own code, in float64, over random small towers; and files that open_clip loads.

OpenAI's class is open_clip's with other defaults and the same names, so it is checked through open_clip's too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from small_models import configs, examples, random_images, random_model, randomise, relative_error
from torch import Tensor, nn

import vit_hub
from vit_hub.errors import CheckpointError, UnsupportedByFormatError

EXACT = 1e-10
CONFIG = "open_clip_config.json"
# What lies beside the image tower in a full checkpoint.
TEXT = {
    "positional_embedding": torch.zeros(6, 8),
    "text_projection": torch.zeros(8, 5),
    "token_embedding.weight": torch.zeros(9, 8),
    "ln_final.weight": torch.zeros(8),
    "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(24, 8),
    "logit_scale": torch.zeros(()),
}
NUMBERS = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
CLIP_LIKE: dict[str, Any] = {
    "stem": "patch",
    "attn_norm": False,
    "mlp_norm": False,
    "norm": "layer",
    "proj_bias": True,
    "mlp_bias": True,
    "kv_heads": (),
    "patch_norm": False,
    "norm_position": "pre",
    "differential": False,
    "parallel": "none",
    "branches": 1,
    "resize_square": False,
    "rope": None,
    "rel_pos": "none",
    "prefix_norm": False,
    "head_input": "pooled",
    "head_norm": False,
    "in_chans": 3,
    "ffn": "mlp",
    "qkv_bias": True,
    "patch_bias": False,
    "qk_norm": False,
    "layer_scale": st.booleans(),
    "class_token": True,
    "distilled": False,
    "num_registers": 0,
    "pos_embed": "learned",
    "pos_embed_prefix": True,
    "num_classes": 0,
    "representation_dim": 0,
    "projection_dim": 5,
}


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """``model_cfg`` of open_clip_config.json, all of it that changes what an image tower computes."""
    heads, patch = draw(st.sampled_from((1, 2, 3))), draw(st.integers(1, 4))
    quick = draw(st.booleans())
    tanh = not quick and draw(st.booleans())
    return {
        "embed_dim": draw(st.integers(1, 9)),
        "quick_gelu": quick,
        "vision_cfg": {
            "layers": draw(st.integers(1, 3)),
            "width": 8 * heads,
            "head_width": 8,
            "mlp_ratio": draw(st.sampled_from((0.25, 1.3, 4.0))),
            "patch_size": patch,
            "image_size": [patch * draw(st.integers(1, 3)), patch * draw(st.integers(1, 3))],
            "ls_init_value": draw(st.sampled_from((None, 0.1))),
            "no_ln_pre": draw(st.booleans()),
            "pool_type": draw(st.sampled_from(("tok", "avg"))),
            "final_ln_after_pool": draw(st.booleans()),
            "act_kwargs": {"approximate": "tanh"} if tanh else None,
            "norm_kwargs": draw(st.sampled_from((None, {"eps": 1e-3}))),
        },
    }


def tower(model: dict[str, Any]) -> nn.Module:
    built = _build_vision_tower(model["embed_dim"], model["vision_cfg"], model["quick_gelu"])
    randomise(built)
    return built.double().eval()


def named(module: nn.Module) -> dict[str, Tensor]:
    return {f"visual.{name}": value for name, value in module.state_dict().items()}


def image_tower(path: Path) -> dict[str, Tensor]:
    """The part of a file that an image tower of open_clip or OpenAI loads."""
    file = path / "open_clip_model.safetensors" if path.is_dir() else path
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, weights_only=True)
    return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}


@examples(25)
@given(model=models())
def test_folder_with_config(tmp_path_factory: pytest.TempPathFactory, model: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("clip")
    theirs = tower(model)
    torch.save({**TEXT, **named(theirs)}, folder / "open_clip_pytorch_model.bin")
    (folder / CONFIG).write_text(json.dumps({"model_cfg": {**model, "text_cfg": {"layers": 1}}}))
    ckpt = vit_hub.open_checkpoint(folder)
    vision = model["vision_cfg"]
    assert ckpt.format == ("open_clip" if vision["final_ln_after_pool"] else "open_clip-ln_before_pool")
    assert set(ckpt.dropped) == set(TEXT)
    assert ckpt.config.resize == "bicubic-antialias"

    ours = vit_hub.load(folder, dtype="float64")
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), theirs(images)) <= EXACT

    vit_hub.convert(folder, folder / "canonical.safetensors")
    back = vit_hub.convert(folder / "canonical.safetensors", folder / "back", to=ckpt.format)
    again = image_tower(folder / "back")
    assert all(torch.equal(again[name], value) for name, value in theirs.state_dict().items())
    config = json.loads((folder / "back" / CONFIG).read_text())["model_cfg"]
    assert config["text_cfg"] == {"layers": 1}
    rebuilt = tower(config)
    rebuilt.load_state_dict(again, strict=True)
    with torch.inference_mode():
        assert relative_error(rebuilt(images), theirs(images)) <= EXACT
    assert vit_hub.open_checkpoint(back.path).config == ckpt.config


@examples(15)
@given(model=models(), wrapper=st.sampled_from(("", "state_dict/module.")))
def test_bare_file_needs_to_be_told(
    tmp_path_factory: pytest.TempPathFactory, model: dict[str, Any], wrapper: str
) -> None:
    folder = tmp_path_factory.mktemp("clip")
    vision = {**model["vision_cfg"], "final_ln_after_pool": True, "act_kwargs": None, "norm_kwargs": None}
    theirs = tower({**model, "vision_cfg": vision})
    state: dict[str, Any] = {**TEXT, **named(theirs)}
    if wrapper:
        state = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
        state["optimizer"] = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    torch.save(state, folder / "epoch_3.pt")
    options: dict[str, Any] = {"num_heads": vision["width"] // 8, "image_size": tuple(vision["image_size"])}
    options |= {"pool": "avg"} if vision["pool_type"] == "avg" else {}
    options |= {"act": "quick_gelu"} if model["quick_gelu"] else {}
    ckpt = vit_hub.open_checkpoint(folder / "epoch_3.pt", overrides=options)
    assert ckpt.format == "open_clip"
    inside = {wrapper + name for name in TEXT}
    assert set(ckpt.dropped) == (inside | {"optimizer/state/0/exp_avg"} if wrapper else inside)

    ours = vit_hub.load(folder / "epoch_3.pt", dtype="float64", overrides=options)
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), theirs(images)) <= EXACT
    vit_hub.convert(folder / "epoch_3.pt", folder / "canonical.safetensors", overrides=options, keep_rest=True)
    vit_hub.convert(folder / "canonical.safetensors", folder / "again.pt", to="open_clip")
    again = torch.load(folder / "again.pt", weights_only=True)
    tensors = again["state_dict"] if wrapper else again
    prefix = wrapper.removeprefix("state_dict/")
    assert all(torch.equal(tensors[f"{prefix}visual.{name}"], value) for name, value in theirs.state_dict().items())


def openai_model(width: int = 64, layers: int = 2, side: int = 3) -> dict[str, Any]:
    vision = {"layers": layers, "width": width, "patch_size": 4, "image_size": 4 * side}
    return {"embed_dim": 6, "quick_gelu": True, "vision_cfg": vision}


def as_openai(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of OpenAI's class: attention is declared before the norms of a block; matrices in float16."""
    state = named(module.float())
    order = sorted(state, key=lambda name: (name.partition("resblocks")[:2], ".ln_" in name and "resblocks" in name))
    blocks = [name for name in order if "resblocks" in name]
    blocks.sort(key=lambda name: int(name.split("resblocks.")[1].split(".")[0]))
    others = [name for name in order if "resblocks" not in name]
    halved = ("in_proj_weight", "in_proj_bias", "out_proj", "mlp", "conv1", "visual.proj")
    return {
        name: state[name].half() if any(part in name for part in halved) else state[name] for name in others + blocks
    }


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_openai(tmp_path: Path, full: bool, half: bool) -> None:
    theirs = tower(openai_model())
    state = as_openai(theirs)
    if not half:
        state = {name: value.float() for name, value in state.items()}
    rest = {**TEXT, **NUMBERS} if full else {}
    torch.save({**state, **rest}, tmp_path / "ViT.pt")
    ckpt = vit_hub.open_checkpoint(tmp_path / "ViT.pt")
    assert ckpt.format == "openai_clip"
    assert (ckpt.config.act, ckpt.config.norm_eps, ckpt.config.num_heads) == ("quick_gelu", 1e-5, 1)
    assert (ckpt.config.pool, ckpt.config.final_norm) == ("cls", "after")
    assert set(ckpt.dropped) == set(rest)
    assert all(ckpt.dropped.values())

    theirs.load_state_dict({name.removeprefix("visual."): value for name, value in state.items()})
    ours = vit_hub.load(tmp_path / "ViT.pt", dtype="float64")
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), theirs.double()(images)) <= EXACT

    vit_hub.convert(tmp_path / "ViT.pt", tmp_path / "canonical.safetensors")
    for to in ("openai_clip", "open_clip"):
        report = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / to, to=to)
        found = vit_hub.open_checkpoint(report.path)
        assert (found.format, found.config.act) == (to, "quick_gelu")
    again = torch.load(tmp_path / "openai_clip" / "model.pt", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in state.items())
    tower(openai_model()).load_state_dict(image_tower(tmp_path / "open_clip"), strict=True)


def test_what_is_written_for_one_is_not_taken_for_the_other(tmp_path: Path) -> None:
    config = {"image_size": (8, 8), "patch_size": (4, 4), "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    clip = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "projection_dim": 4, "final_norm": "after"}
    for act, to in (("gelu", "open_clip"), ("quick_gelu", "openai_clip")):
        random_model(vit_hub.ViTConfig(**config, **clip, act=act)).save(tmp_path / "ours.safetensors")
        for suffix in (".pt", ".safetensors"):
            report = vit_hub.convert(tmp_path / "ours.safetensors", tmp_path / f"{act}{suffix}", to=to)
            found = vit_hub.open_checkpoint(report.path, overrides={"num_heads": 2})
            assert (found.format, found.config.act) == (to, act)
            assert any("same tensor names" in message for message in found.warnings)
    with pytest.raises(UnsupportedByFormatError, match="act: 'quick_gelu' would be read back as 'gelu'"):
        vit_hub.convert(tmp_path / "ours.safetensors", tmp_path / "bare.pt", to="open_clip")


def test_format_overrides_the_look_alike(tmp_path: Path) -> None:
    torch.save(as_openai(tower(openai_model())), tmp_path / "ViT.pt")
    ckpt = vit_hub.open_checkpoint(tmp_path / "ViT.pt", format="open_clip")
    assert (ckpt.format, ckpt.config.act, ckpt.config.resize) == ("open_clip", "gelu", "bicubic-antialias")


@examples(15)
@given(
    config=configs(
        **CLIP_LIKE,
        patch_size=st.sampled_from(((2, 2), (4, 4))),
        act=st.sampled_from(("gelu", "gelu_tanh", "quick_gelu")),
    )
)
def test_other_models_load_into_open_clip(tmp_path_factory: pytest.TempPathFactory, config: vit_hub.ViTConfig) -> None:
    folder = tmp_path_factory.mktemp("clip")
    config = config.replace(
        pool="avg" if config.pool == "avg" else "cls",
        final_norm="after" if config.final_norm == "none" else config.final_norm,
        projection_dim=5,
        pool_prefix=False,
    )
    ours = random_model(config, dtype=torch.float64)
    ours.save(folder / "ours.safetensors")
    report = vit_hub.convert(folder / "ours.safetensors", folder / "out", to="open_clip")
    theirs = tower(json.loads((report.path / CONFIG).read_text())["model_cfg"])
    theirs.load_state_dict(image_tower(report.path), strict=True)
    images = random_images(config, torch.float64)
    with torch.inference_mode():
        assert relative_error(theirs(images), ours(images)) <= EXACT
        assert relative_error(vit_hub.load(report.path, dtype="float64")(images), ours(images)) <= EXACT


@pytest.mark.parametrize(("projection", "pool"), [("linear", "avg"), ("linear", "token"), ("none", "token")])
def test_tower_of_timm(tmp_path: Path, projection: str, pool: str) -> None:
    theirs = TimmModel("test_vit", embed_dim=6, image_size=160, pool=pool, proj=projection)
    randomise(theirs)
    theirs.double().eval()
    torch.save({**TEXT, **named(theirs), "logit_bias": torch.zeros(1)}, tmp_path / "open_clip_pytorch_model.bin")
    vision = {"timm_model_name": "test_vit", "timm_pool": pool, "timm_proj": projection, "image_size": 160}
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": {"embed_dim": 6, "vision_cfg": vision}}))
    options = {"num_heads": 2}
    ckpt = vit_hub.open_checkpoint(tmp_path, overrides=options)
    assert ckpt.format == "open_clip-timm"
    assert ckpt.config.pool == {"token": "cls"}.get(pool, pool)
    assert set(ckpt.dropped) == {*TEXT, "logit_bias"}

    ours = vit_hub.load(tmp_path, dtype="float64", overrides=options)
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), theirs(images)) <= EXACT
    vit_hub.convert(tmp_path, tmp_path / "canonical.safetensors", overrides=options)
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to=ckpt.format)
    again = image_tower(tmp_path / "back")
    theirs.load_state_dict(again, strict=True)
    config = vit_hub.ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2, mlp_dim=8)
    random_model(config).save(tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedByFormatError, match="by their name"):
        vit_hub.convert(tmp_path / "other.safetensors", tmp_path / "other", to="open_clip-timm")


def test_projections_that_are_no_matrix_are_named(tmp_path: Path) -> None:
    theirs = TimmModel("test_vit", embed_dim=6, image_size=160, pool="avg", proj="mlp")
    torch.save(named(theirs), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"visual\.head\.mlp\.fc1\.weight"):
        vit_hub.open_checkpoint(tmp_path / "model.pt", overrides={"num_heads": 2})
