"""Files of BEiT's pre-training: read as encoders, the head listed, kept and given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import vit_hub

_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def original(**options: Any) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A model of timm, and its tensors as unilm's code saves them, with indices as buffers."""
    model = timm.create_model("beit_base_patch16_224", **_SIZES, **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    state = dict(model.state_dict())
    for name in [name for name in state if name.endswith("bias_table")]:
        state[name.replace("bias_table", "index")] = torch.zeros(17, 17, dtype=torch.int64)
    return model, state


HEAD = {"mask_token": (1, 1, 24), "lm_head.weight": (11, 24), "lm_head.bias": (11,)}
# BEiT v2 predicts from a class token of an early layer, too.
HEAD_V2 = {
    **HEAD,
    "cls_pt_layers.0.norm1.weight": (24,),
    "cls_pt_layers.1.attn.q_bias": (24,),
    "cls_pt_norm.bias": (24,),
}


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "block"])
@pytest.mark.parametrize("head", [HEAD, HEAD_V2], ids=["v1", "v2"])
def test_unilm(tmp_path: Path, shared: bool, head: dict[str, tuple[int, ...]]) -> None:
    model, state = original(
        num_classes=0, global_pool="token", use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared, init_values=0.1
    )
    state |= {name: torch.randn(shape, generator=torch.Generator().manual_seed(2)) for name, shape in head.items()}
    torch.save({"model": state}, tmp_path / "beit_pt22k.pth")
    torch.testing.assert_close(vit_hub.load(tmp_path / "beit_pt22k.pth")(IMAGES), model(IMAGES), atol=2e-5, rtol=1e-5)
    report = vit_hub.convert(tmp_path / "beit_pt22k.pth", tmp_path / "model.safetensors", keep_rest=True)
    listed = {name for name in head if name != "mask_token"}
    assert {f"model/{name}" for name in listed} <= report.dropped.keys()
    assert all("pre-training" in report.dropped[f"model/{name}"] for name in listed)
    label = vit_hub.open_checkpoint(tmp_path / "beit_pt22k.pth").format
    vit_hub.convert(tmp_path / "model.safetensors", tmp_path / "back.pth", to=label, keep_rest=True)
    back = torch.load(tmp_path / "back.pth")["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_mask_token_gets_into_transformers_files_and_not_into_timms(tmp_path: Path) -> None:
    model, state = original(num_classes=0, global_pool="token", use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    state |= {name: torch.randn(shape) for name, shape in HEAD.items()}
    torch.save({"model": state}, tmp_path / "beit.pth")
    vit_hub.convert(tmp_path / "beit.pth", tmp_path / "hf", to="hf")
    theirs = transformers.BeitModel.from_pretrained(tmp_path / "hf").eval()
    assert torch.equal(theirs.embeddings.mask_token, state["mask_token"])
    vit_hub.convert(tmp_path / "beit.pth", tmp_path / "timm", to="timm")
    timms = timm.create_model(
        "beit_base_patch16_224",
        pretrained=False,
        num_classes=0,
        **_SIZES,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        global_pool="token",
    ).eval()
    timms.load_state_dict(load_file(tmp_path / "timm" / "model.safetensors"))
    torch.testing.assert_close(timms(IMAGES), model(IMAGES))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "block"])
def test_fine_tuned(tmp_path: Path, shared: bool) -> None:
    model, state = original(
        num_classes=5, global_pool="avg", use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared, init_values=0.1
    )
    torch.save({"model": state}, tmp_path / "beit.pth")
    torch.testing.assert_close(vit_hub.load(tmp_path / "beit.pth")(IMAGES), model(IMAGES), atol=2e-5, rtol=1e-5)


def test_transformers(tmp_path: Path) -> None:
    config = transformers.BeitConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8,
        use_mask_token=True, use_shared_relative_position_bias=True, vocab_size=11,
    )  # fmt: skip
    theirs = transformers.BeitForMaskedImageModeling(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    wanted = theirs.layernorm(theirs.beit(IMAGES).last_hidden_state)
    ours = vit_hub.load(tmp_path / "hf")
    torch.testing.assert_close(ours.forward_features(IMAGES), wanted, atol=2e-5, rtol=1e-5)
    report = vit_hub.convert(tmp_path / "hf", tmp_path / "model.safetensors", keep_rest=True)
    assert report.dropped.keys() == {"lm_head.weight", "lm_head.bias"}
    vit_hub.convert(tmp_path / "model.safetensors", tmp_path / "back", to="hf", keep_rest=True)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).exists()
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.BeitForMaskedImageModeling.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(again(IMAGES).logits, theirs(IMAGES).logits)
