"""The own files of VideoMAE and V-JEPA 2, made of transformers' models, which are conversions of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import randomise
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError

COMMON: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 4}
HEADS: dict[str, Any] = {"overrides": {"num_heads": 2}}


def made(model: Any) -> Any:
    model = model.eval()
    randomise(model)
    return model


def renamed(state: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def fused(state: dict[str, Tensor], query: str, parts: tuple[str, ...], target: str) -> dict[str, Tensor]:
    """Join queries, keys and values."""
    found = dict(state)
    for name in state:
        if query in name:
            found[name.replace(query, target)] = torch.cat([found.pop(name.replace(query, part)) for part in parts])
    return found


_VIDEOMAE = (
    (r"^videomae\.", ""),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"encoder\.layer\.", "blocks."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.attention\.q_proj\.bias|attention\.attention\.query\.bias", "attn.q_bias"),
    (r"attention\.attention\.v_proj\.bias|attention\.attention\.value\.bias", "attn.v_bias"),
    (r"attention\.attention\.", "attn."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head"),
)


def videomae(**options: Any) -> tuple[Any, dict[str, Tensor]]:
    """A model of transformers with the epsilon of the project, and its tensors under the project's names."""
    config = transformers.VideoMAEConfig(
        **COMMON, image_size=16, num_frames=16, intermediate_size=48, num_labels=3, layer_norm_eps=1e-6, **options
    )
    theirs = made(transformers.VideoMAEForVideoClassification(config))
    if theirs.fc_norm is not None:
        theirs.fc_norm.eps = 1e-6
    names = ("query", "key", "value")
    parts = tuple(f"attention.attention.{name}.weight" for name in names)
    state = fused(dict(theirs.state_dict()), parts[0], parts, "attention.attention.qkv.weight")
    return theirs, renamed(state, _VIDEOMAE)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("key", ["module", "model"])
def test_a_classifier_of_videomae(tmp_path: Path, key: str, mean: bool) -> None:
    theirs, state = videomae(use_mean_pooling=mean)
    torch.save({key: state, "epoch": 3}, tmp_path / "videomae.pth")
    options: dict[str, Any] = {"overrides": {"num_heads": 2, "image_size": 16}}
    with pytest.warns(UserWarning, match=r"video\.frames=16 is a guess"):
        ours = vit_hub.load(tmp_path / "videomae.pth", **options)
    videos = torch.randn(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(videos), theirs(videos).logits, atol=2e-5, rtol=1e-5)
    vit_hub.convert(tmp_path / "videomae.pth", tmp_path / "middle.safetensors", **options)
    vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "back.pth", to="videomae")
    back = torch.load(tmp_path / "back.pth")[key]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_the_pre_training_of_videomae(tmp_path: Path) -> None:
    theirs, state = videomae(use_mean_pooling=False)
    encoder = {f"encoder.{name}": value for name, value in state.items() if not name.startswith("head")}
    rest = {"decoder.blocks.0.norm1.weight": torch.ones(8), "encoder_to_decoder.weight": torch.ones(8, 24)}
    rest["mask_token"] = torch.ones(1, 1, 8)
    torch.save({"model": {**encoder, **rest}}, tmp_path / "pretrain.pth")
    options: dict[str, Any] = {"overrides": {"num_heads": 2, "image_size": 16, "video": {"frames": 16}}}
    ckpt = vit_hub.open_checkpoint(tmp_path / "pretrain.pth", **options)
    assert ckpt.dropped.keys() == {f"model/{name}" for name in rest}
    assert not any("guess" in text for text in ckpt.warnings)
    videos = torch.randn(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    wanted = theirs.videomae(videos).last_hidden_state
    torch.testing.assert_close(vit_hub.load(ckpt)(videos), wanted, atol=2e-5, rtol=1e-5)
    vit_hub.convert(ckpt, tmp_path / "hf", to="hf")
    again = transformers.VideoMAEModel.from_pretrained(tmp_path / "hf").eval()
    torch.testing.assert_close(again(videos).last_hidden_state, wanted, atol=2e-5, rtol=1e-5)


_VJEPA2 = (
    (r"^encoder\.embeddings\.patch_embeddings", "patch_embed"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.", ".attn."),
    (r"^encoder\.layernorm", "norm"),
)


def vjepa2() -> tuple[Any, dict[str, Tensor]]:
    config = transformers.VJEPA2Config(
        **COMMON, crop_size=16, frames_per_clip=64, mlp_ratio=2, pred_hidden_size=12, pred_num_attention_heads=1,
        pred_num_hidden_layers=1, pred_num_mask_tokens=1,
    )  # fmt: skip
    theirs = made(transformers.VJEPA2Model(config))
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("predictor.")}
    for end in ("weight", "bias"):
        parts = tuple(f"attention.{name}.{end}" for name in ("query", "key", "value"))
        state = fused(state, parts[0], parts, f"attention.qkv.{end}")
    return theirs, renamed(state, _VJEPA2)


@pytest.mark.parametrize("table", [None, (1, 64, 24)])
def test_vjepa2_reads_the_moving_average(tmp_path: Path, table: tuple[int, ...] | None) -> None:
    theirs, state = vjepa2()
    state |= {} if table is None else {"pos_embed": torch.ones(table)}
    target = {f"module.backbone.{name}": value for name, value in state.items()}
    student = {name: value + 1 for name, value in target.items()}
    content = {
        "encoder": student,
        "predictor": {"module.backbone.predictor_norm.weight": torch.ones(3)},
        "target_encoder": target,
        "opt": {"state": {}},
        "epoch": 3,
    }
    torch.save(content, tmp_path / "vitl.pt")
    with pytest.warns(UserWarning, match="'target_encoder/module.backbone.' is read"):
        ours = vit_hub.load(tmp_path / "vitl.pt", image_size=16, **HEADS)
    videos = torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    wanted = theirs(videos, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(ours(videos), wanted, atol=2e-5, rtol=1e-5)
    context = vit_hub.load(tmp_path / "vitl.pt", prefix="encoder", **HEADS)
    assert torch.equal(context.norm.weight, state["norm.weight"] + 1)
    vit_hub.convert(tmp_path / "vitl.pt", tmp_path / "middle.safetensors", **HEADS)
    vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "back.pt", to="facebook-vjepa2")
    back = torch.load(tmp_path / "back.pt")["target_encoder"]
    assert back.keys() == target.keys()
    assert all(torch.equal(back[name], value) for name, value in target.items())


def test_vjepa2_between_its_own_files_and_transformers(tmp_path: Path) -> None:
    theirs, state = vjepa2()
    theirs.save_pretrained(tmp_path / "hf")
    vit_hub.convert(tmp_path / "hf", tmp_path / "own.pt", to="facebook-vjepa2")
    found = torch.load(tmp_path / "own.pt")["target_encoder"]
    assert {name.removeprefix("module.backbone."): value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in state.items()
    }


def test_the_first_vjepa_is_refused(tmp_path: Path) -> None:
    _, state = vjepa2()
    torch.save({"encoder": {**state, "pos_embed": torch.ones(1, 1568, 24)}}, tmp_path / "vitl16.pth")
    with pytest.raises(ConfigError, match="first V-JEPA"):
        vit_hub.open_checkpoint(tmp_path / "vitl16.pth", **HEADS)
