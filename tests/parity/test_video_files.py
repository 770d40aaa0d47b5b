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


D, HEADS_2_1, P, TUBELET = 36, 2, 4, 2


def vjepa2_1(width: int = D) -> dict[str, Tensor]:
    """The tensors of an encoder of V-JEPA 2.1 of two blocks."""
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, TUBELET, P, P),
        "patch_embed.proj.bias": (width,),
        "patch_embed_img.proj.weight": (width, 3, 1, P, P),
        "patch_embed_img.proj.bias": (width,),
        "img_mod_embed": (1, 1, width),
        "video_mod_embed": (1, 1, width),
    }
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width)}
    for index in range(2):
        names: dict[str, tuple[int, ...]] = {f"blocks.{index}.{layer}": shape for layer, shape in layers.items()}
        names |= {f"blocks.{index}.{norm}": (width,) for norm in ("norm1", "norm2")}
        shapes |= {f"{name}.weight": shape for name, shape in names.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in names.items()}
    shapes |= {f"norms_block.{k}.{end}": (width,) for k in range(4) for end in ("weight", "bias")}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 for name, shape in shapes.items()}


def rotated(x: Tensor, place: Tensor) -> Tensor:
    """Rotate neighbouring channels [..., N, E] by places [N], as the project does since V-JEPA 2.1."""
    width = x.shape[-1]
    turns = 1.0 / 10000 ** (torch.arange(width // 2, dtype=x.dtype) / (width / 2.0))
    angles = (place[:, None] * turns).repeat_interleave(2, dim=-1)
    first, second = x.unflatten(-1, (-1, 2)).unbind(dim=-1)
    return x * angles.cos() + torch.stack((-second, first), dim=-1).flatten(-2) * angles.sin()


def encoded(state: dict[str, Tensor], videos: Tensor) -> Tensor:
    """The last tokens of V-JEPA 2.1's encoder, by its formulas, of videos [B, T, C, h, w]."""
    kernel = state["patch_embed.proj.weight"]
    boxes = torch.nn.functional.conv3d(videos.transpose(1, 2), kernel, state["patch_embed.proj.bias"], kernel.shape[2:])
    frames, rows, columns = boxes.shape[2:]
    x = boxes.flatten(2).transpose(1, 2) + state["video_mod_embed"]
    number = torch.arange(frames * rows * columns)
    places = (
        (number // (rows * columns)).double(),
        (number // columns % rows) * 15.0 / (rows - 1),
        (number % columns) * 15.0 / (columns - 1),
    )

    def norm(name: str, value: Tensor) -> Tensor:
        parts = (state[f"{name}.weight"], state[f"{name}.bias"])
        return torch.nn.functional.layer_norm(value, parts[0].shape, *parts, eps=1e-6)

    def linear(name: str, value: Tensor) -> Tensor:
        return torch.nn.functional.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    for index in range(2):
        block = f"blocks.{index}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(-1, (3, HEADS_2_1, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        step = 2 * ((q.shape[-1] // 3) // 2)

        def turned(part: Tensor, step: int = step) -> Tensor:
            axes = [rotated(part[..., n * step : (n + 1) * step], place) for n, place in enumerate(places)]
            return torch.cat((*axes, part[..., 3 * step :]), dim=-1)

        attended = torch.nn.functional.scaled_dot_product_attention(turned(q), turned(k), v)
        x = x + linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2))
        hidden = torch.nn.functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    return norm("norms_block.3", x)


@pytest.mark.parametrize("key", ["ema_encoder", "target_encoder"])
@pytest.mark.parametrize("width", [D, 32])
def test_vjepa2_1(tmp_path: Path, width: int, key: str) -> None:
    state = vjepa2_1(width)
    named = {f"module.backbone.{name}": value for name, value in state.items()}
    student = {name: value + 1 for name, value in named.items()}
    torch.save({"encoder": student, key: named, "predictor": {"module.x": torch.ones(2)}}, tmp_path / "vitb.pt")
    with pytest.warns(UserWarning, match="patch_embed_img"):
        ours = vit_hub.load(tmp_path / "vitb.pt", dtype="float64", **HEADS)
    generator = torch.Generator().manual_seed(3)
    for size in ((20, 12), (16, 16)):
        videos = torch.randn(2, 6, 3, *size, generator=generator, dtype=torch.float64)
        found = ours.set_image_size(size)(videos)
        torch.testing.assert_close(found, encoded(state, videos), atol=1e-10, rtol=1e-10)
    vit_hub.convert(tmp_path / "vitb.pt", tmp_path / "middle.safetensors", **HEADS)
    vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "back.pt", to="facebook-vjepa2_1")
    back = torch.load(tmp_path / "back.pt")[key]
    assert back.keys() == named.keys()
    assert all(torch.equal(back[name], value) for name, value in named.items())
