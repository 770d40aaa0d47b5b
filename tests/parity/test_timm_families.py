"""timm's Eva, Beit and hybrid models: the same numbers, the same bytes back, and folders that timm itself loads."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_cases import native_tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import examples, random_images, randomise, relative_error
from timm.layers import LayerNorm, StdConv2dSame
from timm.models import model_entrypoint
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock, VisionTransformerRelPos
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError, VitHubError

# timm computes rotary embeddings, offsets and the factor of differential attention in float32 whatever the model is in.
EXACT, SINGLE = 1e-10, 1e-6


def made(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The model in a dtype, with random parameters; norms and layer scale stay around one."""
    model = model.to(dtype).eval()
    randomise(model)
    return model


def assert_same(ours: vit_hub.VisionTransformer, theirs: Any, images: Tensor, error: float) -> None:
    with torch.inference_mode():
        tokens = theirs.forward_features(images)
        assert relative_error(ours.forward_features(images), tokens) <= error
        assert relative_error(ours(images), theirs(images)) <= error
        if ours.config.pool != "none":
            assert relative_error(ours.embed(images), theirs.forward_head(tokens, pre_logits=True)) <= error


def assert_goes_back(ours: vit_hub.VisionTransformer, theirs: Any) -> None:
    found, wanted = vit_hub.to_timm(ours), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@st.composite
def common_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that Eva and Beit share, and patches and images that are not square."""
    heads = draw(st.sampled_from((1, 2, 3)))
    patch = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return {
        "img_size": tuple(n * p for n, p in zip(grid, patch, strict=True)),
        "patch_size": patch,
        "in_chans": draw(st.integers(1, 3)),
        "num_classes": draw(st.integers(0, 4)),
        "embed_dim": 8 * heads,
        "depth": draw(st.integers(1, 3)),
        "num_heads": heads,
        "mlp_ratio": draw(st.sampled_from((0.5, 1.3, 4.0))),
        "qkv_bias": draw(st.booleans()),
        "swiglu_mlp": draw(st.booleans()),
        "scale_mlp": draw(st.booleans()),
        "init_values": draw(st.sampled_from((None, 1e-5))),
        "norm_layer": functools.partial(LayerNorm, eps=draw(st.sampled_from((1e-6, 1e-5, 1e-3)))),
    }


@st.composite
def eva_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of timm's Eva, all that change what it computes but for what the canonical model has not."""
    found = draw(common_arguments())
    class_token = draw(st.booleans())
    # With gates, attention pooling has another activation than the blocks.
    pools = ["avg"] + ["token"] * class_token + ["map"] * (not found["swiglu_mlp"])
    kind = draw(st.sampled_from((None, "cat", "mixed", "dinov3")))
    shapes = st.sampled_from((None, (16, 16), (3, 5)))
    return found | {
        "global_pool": draw(st.sampled_from(pools)),
        "class_token": class_token,
        "num_reg_tokens": draw(st.sampled_from((0, 0, 1, 4))),
        "attn_type": draw(st.sampled_from(("eva", "rope"))),
        "qkv_fused": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "swiglu_align_to": draw(st.sampled_from((0, 4))),
        "scale_attn_inner": draw(st.booleans()),
        "no_embed_class": draw(st.booleans()),
        "use_abs_pos_emb": draw(st.booleans()),
        "use_rot_pos_emb": kind is not None,
        "rope_type": kind or "cat",
        "rope_temperature": draw(st.sampled_from((10.0, 100.0, 10_000.0))),
        "rope_grid_offset": draw(st.sampled_from((0.0, 1.0))) if kind == "cat" else 0.0,
        "rope_grid_indexing": draw(st.sampled_from(("ij", "xy"))),
        "rope_rotate_half": kind != "mixed" and draw(st.booleans()),
        "ref_feat_shape": draw(shapes) if kind == "cat" else None,
        "use_pre_transformer_norm": draw(st.booleans()),
        "use_post_transformer_norm": draw(st.sampled_from((None, None, False))),
        "use_fc_norm": draw(st.sampled_from((None, False))),
        "attn_pool_num_heads": draw(st.sampled_from((None, 4))),
        "attn_pool_mlp_ratio": draw(st.sampled_from((None, 2.0))),
    }


@examples(40)
@given(arguments=eva_arguments())
def test_an_eva_model_with_norms_after_its_layers_gives_the_same_numbers_and_goes_back(
    arguments: dict[str, Any],
) -> None:
    # timm has no norms of queries and keys in such blocks.
    theirs = made(Eva(**arguments | {"use_post_norm": True, "qk_norm": False}))
    ours = vit_hub.from_module(theirs)
    assert ours.config.norm_position == "post"
    assert_same(ours, theirs, random_images(ours.config, torch.float64), SINGLE if ours.config.rope else EXACT)
    assert_goes_back(ours, theirs)


@examples(100)
@given(arguments=eva_arguments())
def test_an_eva_model_gives_the_same_numbers_and_goes_back(arguments: dict[str, Any]) -> None:
    theirs = made(Eva(**arguments))
    ours = vit_hub.from_module(theirs)
    assert ours.config.norm_eps == arguments["norm_layer"].keywords["eps"]
    assert (ours.config.rope is not None) == arguments["use_rot_pos_emb"]
    assert_same(ours, theirs, random_images(ours.config, torch.float64), SINGLE if ours.config.rope else EXACT)
    assert_goes_back(ours, theirs)


@st.composite
def relpos_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of timm's VisionTransformerRelPos, all that change what it computes."""
    found = draw(common_arguments())
    class_token = draw(st.booleans())
    pool = draw(st.sampled_from(["avg", "avg", ""] + ["token"] * class_token))
    kind = draw(st.sampled_from(("mlp", "mlp-swin", "bias")))
    # Where the grid is one patch high or wide, timm divides by zero for Swin's scale.
    size = (
        found["img_size"]
        if kind != "mlp-swin"
        else tuple(max(n, 2 * p) for n, p in zip(found["img_size"], found["patch_size"], strict=True))
    )
    return {key: value for key, value in found.items() if key not in ("swiglu_mlp", "scale_mlp")} | {
        "img_size": size,
        "num_classes": found["num_classes"] if pool else 0,
        "global_pool": pool,
        "class_token": class_token,
        "qk_norm": draw(st.booleans()),
        "fc_norm": bool(pool) and draw(st.booleans()),
        "rel_pos_type": kind,
        "rel_pos_dim": draw(st.sampled_from((None, 5))),
        "shared_rel_pos": draw(st.booleans()),
        "block_fn": draw(st.sampled_from((RelPosBlock, ResPostRelPosBlock))),
    }


@examples(80)
@given(arguments=relpos_arguments())
def test_a_model_with_relative_positions_gives_the_same_numbers_and_goes_back(arguments: dict[str, Any]) -> None:
    theirs = made(VisionTransformerRelPos(**arguments))
    ours = vit_hub.from_module(theirs)
    error = SINGLE if ours.config.rel_pos_mlp else EXACT
    assert_same(ours, theirs, random_images(ours.config, torch.float64), error)
    if ours.config.norm_eps == 1e-6:  # that of all its architectures
        assert_goes_back(ours, theirs)


@examples(30)
@given(arguments=relpos_arguments(), grid=st.tuples(st.integers(2, 5), st.integers(2, 5)))
def test_relative_positions_follow_another_image_size(arguments: dict[str, Any], grid: tuple[int, int]) -> None:
    theirs = made(VisionTransformerRelPos(**arguments))
    ours = vit_hub.from_module(theirs)
    size = tuple(n * p for n, p in zip(grid, arguments["patch_size"], strict=True))
    assert ours.dynamic == (arguments["rel_pos_type"] != "bias")
    ours.set_image_size(size)
    theirs.set_input_size(size)
    # timm resizes tables in float32.
    assert_same(ours, theirs, random_images(ours.config, torch.float64), 1e-5)


@st.composite
def beit_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of timm's Beit; a model with a table in every block and a shared one at once is not published."""
    pool = draw(st.sampled_from(("avg", "token")))
    tables = draw(st.sampled_from(("block", "shared", "none")))
    return draw(common_arguments()) | {
        "global_pool": pool,
        "use_abs_pos_emb": tables == "none" or draw(st.booleans()),
        "use_rel_pos_bias": tables == "block",
        "use_shared_rel_pos_bias": tables == "shared",
        "use_fc_norm": draw(st.sampled_from((None, True, False))),
    }


@examples(60)
@given(arguments=beit_arguments())
def test_a_beit_model_gives_the_same_numbers_and_goes_back(arguments: dict[str, Any]) -> None:
    theirs = made(Beit(**arguments))
    ours = vit_hub.from_module(theirs)
    assert_same(ours, theirs, random_images(ours.config, torch.float64), EXACT)
    assert_goes_back(ours, theirs)


@examples(8)
@given(
    layers=st.sampled_from(((), (1,), (1, 2), (2, 1, 1))),
    patch=st.sampled_from((1, 2)),
    pool=st.sampled_from(("token", "avg")),
    size=st.sampled_from(((32, 32), (32, 48), (37, 41))),
)
def test_a_hybrid_gives_the_same_numbers_and_goes_back(
    layers: tuple[int, ...], patch: int, pool: str, size: tuple[int, int]
) -> None:
    options: dict[str, Any] = {
        "stem_type": "same",
        "preact": False,
        "conv_layer": functools.partial(StdConv2dSame, eps=1e-8),
    }
    if layers:
        channels = tuple(128 * 2**stage for stage in range(len(layers)))
        backbone = ResNetV2(layers, channels, num_classes=0, global_pool="", stem_chs=32, **options)
    else:
        backbone = create_resnetv2_stem(3, 32, **options)
    theirs = TimmVisionTransformer(
        img_size=size, patch_size=patch, embed_dim=16, depth=1, num_heads=2, num_classes=3, global_pool=pool,
        embed_layer=functools.partial(HybridEmbed, backbone=backbone),
    )  # fmt: skip
    theirs = made(theirs)
    ours = vit_hub.from_module(theirs)
    assert ours.config.stem_stages == layers
    assert_same(ours, theirs, random_images(ours.config, torch.float64), EXACT)
    assert_goes_back(ours, theirs)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Eva, {"global_pool": "max"}),
        (Eva, {"global_pool": "map", "swiglu_mlp": True}),
        (Eva, {"use_rot_pos_emb": True, "rope_type": "mrope", "embed_dim": 128, "rope_mrope_section": (8, 12, 12)}),
        (Beit, {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True}),
    ],
    ids=str,
)
def test_a_model_that_computes_otherwise_is_refused(cls: Any, arguments: dict[str, Any]) -> None:
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    with pytest.raises(VitHubError):
        vit_hub.from_module(made(cls(**small | arguments)))


SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
# One of every kind, and what a caller has to say of its bare state dict.
KINDS: dict[str, dict[str, Any]] = {
    "vit_small_patch16_dinov3_qkvb": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3": {},
    "eva02_base_patch14_224": {},
    "eva02_tiny_patch14_224": {},
    "eva_giant_patch14_224": {},
    "eva02_base_patch16_clip_224": {},
    "vit_pe_core_base_patch16_224": {},
    "vit_pe_spatial_base_patch16_512": {},
    "vit_pe_lang_large_patch14_448": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_small_patch16_rope_ape_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "beit_base_patch16_224": {},
    "beit3_base_patch16_224": {},
    "vit_base_patch16_rpn_224": {},
    "vit_relpos_small_patch16_224": {},
    "vit_relpos_base_patch16_cls_224": {},
    "vit_relpos_base_patch16_clsgap_224": {},
    "vit_relpos_medium_patch16_rpn_224": {},
    "vit_srelpos_medium_patch16_224": {},
    "eva02_enormous_patch14_clip_224": {"norm_position": "post"},
    "vit_dlittle_patch16_reg1_gap_256": {},
    "vit_pwee_patch16_reg1_gap_256": {},
    "vit_dpwee_patch16_reg1_gap_256": {},
    "vit_small_patch16_18x2_224": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_so150m_patch16_reg4_gap_256": {},
    "vit_base_patch16_siglip_224": {},
    "vit_so400m_patch16_siglip_gap_256": {"act": "gelu_tanh"},
    "flexivit_small": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch16_clip_quickgelu_224": {"act": "quick_gelu"},
    "deit3_small_patch16_224": {},
    "deit_small_distilled_patch16_224": {},
}
HYBRIDS = ("vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224", "vit_base_r50_s16_224")


@pytest.mark.parametrize("name", [*KINDS, *HYBRIDS])
def test_a_published_architecture_there_and_back(name: str, tmp_path: Path) -> None:
    """A bare state dict with what a caller has to say of it; then the folder that timm loads."""
    size = {"img_size": 64} if name in HYBRIDS else {"img_size": 16, "patch_size": 4}
    theirs = made(model_entrypoint(name)(pretrained=False, num_classes=5, **SMALL, **size), torch.float32)
    options = {"num_heads": 3, "image_size": (size["img_size"],) * 2, **KINDS.get(name, {})}
    source, middle = tmp_path / "bare.safetensors", tmp_path / "canonical.safetensors"
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, source)

    report = vit_hub.convert(source, middle, overrides=options)
    vit_hub.convert(middle, tmp_path / "back.safetensors", to=vit_hub.open_checkpoint(source, overrides=options).format)
    assert native_tensors(tmp_path / "back.safetensors") == native_tensors(source)
    vit_hub.convert(middle, tmp_path / "folder", to="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert type(again) is type(theirs)

    config = report.config
    error = SINGLE if config.rope or config.rel_pos_mlp or config.differential else EXACT
    images = random_images(report.config, torch.float64)
    with torch.inference_mode():
        wanted = theirs.double()(images)
        assert relative_error(vit_hub.load(source, overrides=options, dtype="float64")(images), wanted) <= error
        assert relative_error(again.double()(images), wanted) <= error
        ours = vit_hub.load(tmp_path / "folder", dtype="float64")
        assert relative_error(ours(images), wanted) <= error
    assert ours.config == report.config


def test_a_perception_encoder_is_told_from_a_pre_normed_model_by_its_config(tmp_path: Path) -> None:
    arguments = SMALL | {"img_size": 16, "patch_size": 4, "pre_norm": True, "global_pool": "map", "num_classes": 5}
    theirs = made(timm.create_model("vit_base_patch16_clip_224", **arguments), torch.float32)
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    ours = vit_hub.load(tmp_path)
    assert ours.config.rope is None
    with torch.inference_mode():
        images = random_images(ours.config)
        assert relative_error(ours(images), theirs(images)) <= SINGLE


def test_gates_with_attention_pooling_are_refused_in_files(tmp_path: Path) -> None:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "swiglu_mlp": True}
    theirs = made(Eva(**arguments, global_pool="map", init_values=1e-5), torch.float32)
    save_file(theirs.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="act: "):
        vit_hub.open_checkpoint(tmp_path / "bare.safetensors", overrides={"num_heads": 2})


def test_a_stem_of_another_kind_is_refused_by_name() -> None:
    with torch.device("meta"):
        peer = timm.create_model("vit_base_mci_224", pretrained=False)
    with pytest.raises(ConfigError, match="stem: timm's ConvStem"):
        vit_hub.from_module(peer)
