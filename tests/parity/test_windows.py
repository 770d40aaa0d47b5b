"""Windowed attention with decomposed relative positions and a neck: Segment Anything's encoders, of all projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import examples, random_images, randomise, relative_error
from timm.models import model_entrypoint
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.model.config import Neck, Windows

EXACT = 1e-10


def made(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    model = model.to(dtype).eval()
    randomise(model)
    return model


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Depth, grid, windows that divide it, do not divide it, or are larger, and blocks without windows."""
    depth = draw(st.integers(1, 4))
    return {
        "depth": depth,
        "heads": draw(st.sampled_from((1, 2, 3))),
        "patch": draw(st.integers(1, 3)),
        "grid": draw(st.integers(1, 6)),
        "window": draw(st.integers(0, 7)),
        "full": draw(st.lists(st.integers(0, depth), max_size=3)),
    }


@st.composite
def hf_models(draw: st.DrawFn) -> Any:
    size = draw(sizes())
    config = transformers.SamVisionConfig(
        hidden_size=8 * size["heads"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        num_channels=draw(st.sampled_from((1, 3))),
        image_size=size["grid"] * size["patch"],
        patch_size=size["patch"],
        window_size=size["window"],
        global_attn_indexes=size["full"],
        output_channels=draw(st.integers(1, 6)),
        mlp_dim=draw(st.integers(1, 20)),
        qkv_bias=draw(st.booleans()),
        use_abs_pos=draw(st.booleans()),
        use_rel_pos=draw(st.booleans()),
        hidden_act=draw(st.sampled_from(("gelu", "gelu_new", "quick_gelu", "relu"))),
        layer_norm_eps=draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
    )
    return made(transformers.SamVisionModel(config))


def last_block(model: Any, images: Tensor) -> Tensor:
    """Tokens before the neck of a transformers model, [B, N, D]."""
    kept: list[Tensor] = []
    hook = model.vision_encoder.neck.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    model(images)
    hook.remove()
    return kept[0].flatten(1, 2)


@examples(60)
@given(theirs=hf_models())
def test_a_model_of_transformers_gives_the_same_map_and_tokens_and_goes_back(theirs: Any) -> None:
    ours = vit_hub.from_module(theirs)
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), theirs(images).last_hidden_state) <= EXACT
        assert relative_error(ours.forward_features(images), last_block(theirs, images)) <= EXACT
    back = vit_hub.to_transformers(ours)
    found, wanted = back.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with torch.inference_mode():
        assert relative_error(back(images).last_hidden_state, theirs(images).last_hidden_state) <= EXACT


@st.composite
def timm_arguments(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(sizes())
    pool = draw(st.sampled_from(("avg", "")))
    eps = draw(st.sampled_from((1e-5, 1e-6)))
    return {
        "img_size": tuple(size["patch"] * draw(st.integers(1, 6)) for _ in "hw"),
        "patch_size": size["patch"],
        "in_chans": draw(st.sampled_from((1, 3))),
        "embed_dim": 8 * size["heads"],
        "depth": size["depth"],
        "num_heads": size["heads"],
        "window_size": size["window"],
        "global_attn_indexes": tuple(size["full"]),
        "mlp_ratio": draw(st.sampled_from((0.5, 1.3, 4.0))),
        "qkv_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "init_values": draw(st.sampled_from((None, 1e-5))),
        "pre_norm": draw(st.booleans()),
        "use_abs_pos": draw(st.booleans()),
        "use_rel_pos": draw(st.booleans()),
        "neck_chans": draw(st.sampled_from((None, 3, 6))),
        "global_pool": pool,
        "num_classes": draw(st.integers(0, 4)) if pool else 0,
        **({} if eps == 1e-5 else {"norm_layer": None}),
    }


@examples(60)
@given(arguments=timm_arguments())
def test_a_model_of_timm_gives_the_same_numbers_and_goes_back(arguments: dict[str, Any]) -> None:
    theirs = made(VisionTransformerSAM(**arguments))
    ours = vit_hub.from_module(theirs)
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        feature_map = theirs.forward_features(images)
        assert relative_error(ours(images), theirs(images)) <= EXACT
        if arguments["global_pool"]:
            assert relative_error(ours.forward_features(images), feature_map) <= EXACT
            assert relative_error(ours.embed(images), theirs.forward_head(feature_map, pre_logits=True)) <= EXACT
            assert relative_error(ours.forward_head(feature_map), theirs(images)) <= EXACT
        blocks = theirs.forward_intermediates(images, intermediates_only=True)
        for found, wanted in zip(ours.forward_intermediates(images), blocks, strict=True):
            assert relative_error(found, wanted) <= EXACT
    found, wanted = vit_hub.to_timm(ours), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("changes", [{}, {"norm_layer": None}, {"neck_chans": None, "num_classes": 0}], ids=str)
def test_a_folder_of_timms_is_read_and_timm_reads_what_is_written(changes: dict[str, Any], tmp_path: Path) -> None:
    arguments = {
        "img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5,
        "window_size": 3, "global_attn_indexes": [1], "neck_chans": 12, **changes,
    }  # fmt: skip
    theirs = made(model_entrypoint("samvit_base_patch16")(**arguments), torch.float32)
    timm.models.save_for_hf(theirs, tmp_path / "timm", model_args=arguments, safe_serialization=True)
    ckpt = vit_hub.open_checkpoint(tmp_path / "timm")
    assert ckpt.warnings == ()
    vit_hub.convert(ckpt, tmp_path / "canonical.safetensors")
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "again", to="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval().double()
    images, theirs = random_images(ckpt.config, torch.float64), theirs.double()
    with torch.inference_mode():
        for model in (again, vit_hub.load(tmp_path / "again", dtype="float64"), vit_hub.load(ckpt, dtype="float64")):
            assert relative_error(model(images), theirs(images)) <= EXACT


SMALL = {
    "img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "window_size": 4,
    "global_attn_indexes": (1,), "neck_chans": 6, "use_rel_pos": True, "num_classes": 0, "global_pool": "",
    "norm_layer": None,
}  # fmt: skip


def segment_anything(file: Path, prefix: str = "image_encoder.", **changes: Any) -> Any:
    """Write a model as Segment Anything's own code saves it, and return timm's model of its image encoder."""
    theirs = made(VisionTransformerSAM(**{**SMALL, **changes}), torch.float32)
    state = {prefix + name.replace("mlp.fc", "mlp.lin"): value for name, value in theirs.state_dict().items()}
    torch.save(
        {
            **state,
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.ones(2, 3),
            "mask_decoder.iou_token.weight": torch.ones(1, 6),
        },
        file,
    )
    return theirs.double()


@pytest.mark.parametrize("prefix", ["image_encoder.", "model/module.image_encoder.", "sam_model.image_encoder."])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_size": 0},
        {"window_size": 6, "img_size": 16},
        {"use_abs_pos": False},
        {"img_size": (24, 16)},
        {"global_attn_indexes": (0, 2)},
    ],
    ids=str,
)
def test_a_file_of_segment_anything_tells_its_windows_by_shapes(
    prefix: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    theirs = segment_anything(tmp_path / "sam.pth", prefix.rpartition("/")[2], **changes)
    state = torch.load(tmp_path / "sam.pth")
    torch.save({"model": state} if "/" in prefix else state, tmp_path / "sam.pth")
    ckpt = vit_hub.open_checkpoint(tmp_path / "sam.pth")
    assert (ckpt.format, ckpt.config.num_heads, ckpt.config.pool) == ("facebook-sam", 2, "none")
    assert ckpt.warnings == ()
    assert all("mask_decoder" in name or "prompt_encoder" in name for name in ckpt.dropped)
    images = random_images(ckpt.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(vit_hub.load(ckpt, dtype="float64")(images), theirs(images)) <= EXACT
    vit_hub.convert(ckpt, tmp_path / "canonical.safetensors")
    back = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back.pth", to="facebook-sam")
    found = torch.load(back.path)
    found = found.get("model", found)
    assert found.keys() == {name for name in state if "image_encoder" in name}
    assert all(torch.equal(found[name], state[name]) for name in found)


def test_without_tables_of_relative_positions_the_windows_are_a_guess(tmp_path: Path) -> None:
    segment_anything(tmp_path / "sam.pth", use_rel_pos=False)
    ckpt = vit_hub.open_checkpoint(tmp_path / "sam.pth", overrides={"num_heads": 2})
    assert any("windows of 14x14 patches" in text for text in ckpt.warnings)
    told = vit_hub.open_checkpoint(
        tmp_path / "sam.pth", overrides={"num_heads": 2, "windows": {"size": (4, 4), "full": [1]}}
    )
    assert told.config.windows == Windows(size=(4, 4), full=(1,))


def test_an_encoder_goes_from_project_to_project(tmp_path: Path) -> None:
    """With the same numbers; the class of transformers is strict about names, too."""
    theirs = segment_anything(tmp_path / "sam.pth")
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = theirs(images)
        for to in ("hf", "timm", "mmpretrain", "facebook"):
            report = vit_hub.convert(tmp_path / "sam.pth", tmp_path / to, to=to)
            assert relative_error(vit_hub.load(report.path, dtype="float64")(images), wanted) <= EXACT
        again, info = transformers.SamVisionModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
        assert not any(info.values())
        assert relative_error(again.eval().double()(images).last_hidden_state, wanted) <= EXACT
    for to in ("torchvision", "vit_jax", "open_clip", "big_vision"):
        with pytest.raises(UnsupportedByFormatError, match="neck|windows|rel_pos"):
            vit_hub.convert(tmp_path / "sam.pth", tmp_path / "other", to=to)


def test_the_encoder_in_a_whole_model_of_transformers(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
        "window_size": 3, "global_attn_indexes": [1], "output_channels": 8, "num_pos_feats": 4, "mlp_dim": 32,
    }  # fmt: skip
    prompt = {"hidden_size": 8, "image_size": 16, "patch_size": 4, "image_embedding_size": 4, "mask_input_channels": 4}
    decoder = {"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 1, "iou_head_hidden_dim": 8}
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    theirs = made(transformers.SamModel(config), torch.float32)
    theirs.save_pretrained(tmp_path / "sam")
    ours = vit_hub.load(tmp_path / "sam")
    images = random_images(ours.config)
    with torch.inference_mode():
        wanted = theirs.get_image_embeddings(images)
        assert relative_error(ours(images), getattr(wanted, "last_hidden_state", wanted)) <= 1e-5
    vit_hub.convert(tmp_path / "sam", tmp_path / "back.safetensors", to="hf")
    before, after = load_file(tmp_path / "sam" / "model.safetensors"), load_file(tmp_path / "back.safetensors")
    assert after.keys() == {name for name in before if name.startswith("vision_encoder.")}
    assert all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_images_of_another_size_give_timms_numbers(size: tuple[int, int]) -> None:
    """timm resizes table and relative positions of the blocks without windows for each image."""
    theirs = made(VisionTransformerSAM(**{**SMALL, "embed_layer": _any_size()}), torch.float32)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    dynamic, fixed = vit_hub.from_module(theirs), vit_hub.from_module(theirs)
    dynamic.dynamic = True
    fixed.set_image_size(size)
    with torch.inference_mode():
        wanted = theirs(images)
        assert relative_error(dynamic(images), wanted) <= 1e-5
        assert relative_error(fixed(images), wanted) <= 1e-5


def _any_size() -> Any:
    from functools import partial

    from timm.layers import Format, PatchEmbed

    return partial(PatchEmbed, output_fmt=Format.NHWC, strict_img_size=False)


@pytest.mark.parametrize("pad", [True, False])
def test_attention_maps_of_windows_are_zero_between_windows(pad: bool) -> None:
    config = vit_hub.ViTConfig(
        image_size=(5, 4), patch_size=1, embed_dim=8, depth=2, num_heads=2, mlp_dim=8, class_token=False,
        pool="none", final_norm="none", windows=Windows(size=(2, 3), full=(1,), pad=pad), neck=Neck(chans=3),
    )  # fmt: skip
    model = vit_hub.VisionTransformer(config).eval()
    within, full = model.attention_maps(random_images(config))
    rows, columns = torch.arange(20) // 4 // 2, torch.arange(20) % 4 // 3
    apart = (rows[:, None] != rows[None]) | (columns[:, None] != columns[None])
    assert within[:, :, apart].eq(0).all()
    assert within[:, :, ~apart].gt(0).all()
    assert torch.allclose(full.sum(-1), torch.ones(2, 2, 20))
    # Zeros beyond the grid have a share of the attention of windows at the edge.
    assert torch.allclose(within.sum(-1)[:, :, rows < 2][..., :3], torch.ones(2, 2, 3))
    assert bool(within.sum(-1)[:, :, -1].lt(1 - 1e-6).all()) == pad


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"windows": {"size": (2, 2)}, "class_token": True, "pool": "cls"}, "windows"),
        ({"neck": {"chans": 4}, "pool": "map"}, "neck"),
        ({"windows": {"full": [1]}}, "windows lacks windows.size"),
        ({"windows": {"size": (2, 2), "full": [-1]}}, "windows.full must hold whole numbers"),
        ({"neck": 5}, "neck must be a mapping"),
        ({"rel_pos": "decomposed", "rope": {}}, "rel_pos"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vit_hub.ViTConfig(**{"class_token": False, "pool": "none", "final_norm": "none", **fields})


def test_blocks_that_all_lack_windows_are_the_same_as_no_windows() -> None:
    plain = vit_hub.ViTConfig(depth=2, class_token=False, pool="none", final_norm="none")
    assert plain.replace(windows={"size": (2, 2), "full": [0, 1, 5]}) == plain


def test_a_canonical_file_keeps_windows_and_neck(tmp_path: Path) -> None:
    segment_anything(tmp_path / "sam.pth")
    model = vit_hub.load(tmp_path / "sam.pth")
    model.save(tmp_path / "again.safetensors")
    again = vit_hub.load(tmp_path / "again.safetensors")
    assert again.config == model.config
    assert again.config.neck == Neck(chans=6)
