"""The same numbers as timm's own code, in float64, over random small models; and files that timm itself loads."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import PLAIN, configs, examples, random_images, random_model, randomise, relative_error
from timm.layers import DiffAttention, GluMlp, LayerNorm, Mlp, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError, VitHubError

EXACT = 1e-10
# What is folded is kept in float32, and timm computes rotary embeddings in it.
SINGLE = 1e-5
SMALL: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}


class DualAttention(DiffAttention):
    """Differential attention whose factor is two numbers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, dual_lambda=True, **options)


@st.composite
def timm_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer, all that change what it computes."""
    heads = draw(st.sampled_from((1, 2, 3)))
    patch = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    class_token = draw(st.booleans())
    pool = draw(st.sampled_from(["avg", "map", ""] + ["token"] * class_token))
    gated = pool != "map" and draw(st.booleans())
    act, norm_eps = (
        draw(st.sampled_from(("gelu", "gelu_tanh", "quick_gelu", "silu", "relu"))),
        draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
    )
    blocks = (Block,) * 6 + (ResPostBlock, ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)
    block = draw(st.sampled_from(blocks))
    gated = gated and block not in (ParallelScalingBlock, DiffParallelScalingBlock)  # which have no gates
    return {
        "img_size": tuple(n * p for n, p in zip(grid, patch, strict=True)),
        "patch_size": patch,
        "in_chans": draw(st.integers(1, 4)),
        "num_classes": draw(st.integers(0, 5)) if pool else 0,
        "global_pool": pool,
        "embed_dim": 8 * heads,
        "depth": draw(st.integers(1, 3)),
        "num_heads": heads,
        "mlp_ratio": draw(st.sampled_from((0.5, 2.0) if gated else (0.25, 1.3, 4.0))),
        "qkv_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "init_values": draw(st.sampled_from((None, 1e-5))),
        "class_token": class_token,
        "pos_embed": draw(st.sampled_from(("learn", "learn", "none"))),
        "no_embed_class": draw(st.booleans()),
        "reg_tokens": draw(st.sampled_from((0, 0, 1, 4))),
        "pool_include_prefix": draw(st.booleans()),
        "pre_norm": draw(st.booleans()),
        "final_norm": draw(st.booleans()),
        "fc_norm": draw(st.sampled_from((None, True, False))) if pool else None,
        "norm_layer": functools.partial(LayerNorm, eps=norm_eps),
        "act_layer": act,
        "mlp_layer": SwiGLUPacked if gated else Mlp,
        "block_fn": block,
        "attn_layer": draw(st.sampled_from(("attn", "attn", "diff"))),
    }


def made(cls: type[TimmVisionTransformer], arguments: dict[str, Any], dtype: torch.dtype) -> TimmVisionTransformer:
    model = cls(**arguments).to(dtype).eval()
    randomise(model)
    return model


def assert_same(
    ours: vit_hub.VisionTransformer, theirs: TimmVisionTransformer, images: Tensor, error: float = EXACT
) -> None:
    if ours.config.differential:  # whose factor timm computes in float32
        error = SINGLE
    with torch.inference_mode():
        tokens = theirs.forward_features(images)
        assert relative_error(ours.forward_features(images), tokens) <= error
        assert relative_error(ours(images), theirs(images)) <= error
        if ours.config.pool != "none":
            assert relative_error(ours.embed(images), theirs.forward_head(tokens, pre_logits=True)) <= error


def assert_goes_back(ours: vit_hub.VisionTransformer, theirs: TimmVisionTransformer) -> None:
    try:
        found = vit_hub.to_timm(ours)
    except UnsupportedByFormatError as error:
        # timm's architectures have epsilons of 1e-6, and of 1e-5 for CLIP's; those with other blocks have no gates.
        other = type(theirs.blocks[0]) is not Block
        assert ours.config.norm_eps != 1e-6 or (other and ours.config.ffn != "mlp"), error
        fields = ("norm_eps", *(("norm_position", "parallel", "branches", "config") if other else ()))
        assert any(f"{name}: " in error.message for name in fields), error
        return
    wanted = theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@examples(80)
@given(arguments=timm_arguments())
def test_a_timm_model_gives_the_same_numbers_and_goes_back(arguments: dict[str, Any]) -> None:
    theirs = made(TimmVisionTransformer, arguments, torch.float64)
    ours = vit_hub.from_module(theirs)
    assert ours.config.act == arguments["act_layer"]
    assert ours.config.norm_eps == arguments["norm_layer"].keywords["eps"]
    assert_same(ours, theirs, random_images(ours.config, torch.float64))
    assert_goes_back(ours, theirs)


@examples(20)
@given(arguments=timm_arguments())
def test_a_distilled_timm_model_gives_the_same_numbers_and_goes_back(arguments: dict[str, Any]) -> None:
    fixed = {"class_token": True, "global_pool": "token", "pos_embed": "learn", "no_embed_class": False}
    fixed |= {"reg_tokens": 0, "fc_norm": False, "block_fn": Block, "attn_layer": "attn"}
    theirs = made(VisionTransformerDistilled, arguments | fixed, torch.float64)
    if not arguments["num_classes"]:
        assert not hasattr(theirs.head, "weight")
    ours = vit_hub.from_module(theirs)
    assert ours.config.pool == "cls_dist"
    assert_same(ours, theirs, random_images(ours.config, torch.float64))
    assert_goes_back(ours, theirs)


def written_for_timm(model: vit_hub.VisionTransformer, folder: Path) -> tuple[TimmVisionTransformer, float]:
    """The model through a canonical file and a folder in timm's format, as timm builds and loads it, in float64.

    With the error that outputs may have.
    """
    report = vit_hub.convert(model.save(folder / "canonical.safetensors"), folder / "timm", to="timm")
    folded = any(message.startswith("irreversible: ") for message in report.warnings)
    theirs = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).double().eval()
    return theirs, SINGLE if folded or model.config.rope or model.config.differential else EXACT


# Mostly what timm has, and a little of everything that it has not.
NEARLY = PLAIN | {
    "ffn": st.sampled_from(("mlp", "mlp", "mlp", "swiglu_packed", "swiglu")),
    "norm_eps": st.sampled_from((1e-6, 1e-6, 1e-6, 1e-5, 1e-3)),
    "qkv_bias": st.sampled_from((True, True, False, "qv", "masked")),
    "patch_bias": st.sampled_from((True, True, False)),
    "qk_norm": st.booleans(),
    "pre_norm": st.sampled_from((False, False, True)),
    "distilled": st.sampled_from((False, False, True)),
    "num_registers": st.sampled_from((0, 0, 0, 4)),
    "pos_embed": st.sampled_from(("learned", "learned", "learned", "none", "sincos2d")),
    "layer_scale": st.booleans(),
    "attn_norm": st.sampled_from((False, False, False, False, True)),
    "mlp_norm": st.sampled_from((False, False, False, False, True)),
    "final_norm": st.sampled_from(("before", "before", "after", "none")),
    "pool": st.sampled_from(("avg", "map", "avg", "first")),
    "pool_mlp_dim": st.sampled_from((0, 0, 0, 24)),
    "representation_dim": st.sampled_from((0, 0, 0, 0, 3)),
    "projection_dim": st.sampled_from((0, 0, 0, 0, 3)),
    "head_input": st.sampled_from(("pooled", "pooled", "pooled", "cls_avg")),
    "norm_position": st.sampled_from(("pre", "pre", "post")),
    "differential": st.sampled_from((False, False, True)),
    "parallel": st.sampled_from(("none", "none", "none", "separate", "joint")),
    "branches": st.sampled_from((1, 1, 1, 2, 3)),
}


@examples(80)
@given(config=configs(**NEARLY), pool=st.sampled_from(("cls", "cls", "cls_dist", "")))
def test_what_is_written_in_timms_format_timm_runs_the_same(
    tmp_path: Path, config: vit_hub.ViTConfig, pool: str
) -> None:
    if pool == "cls_dist" and config.distilled and not config.representation_dim and not config.projection_dim:
        config = config.replace(pool="cls_dist")
    elif pool == "cls" and config.class_token and not config.distilled:
        config = config.replace(pool="cls")
    model = random_model(config)
    try:
        theirs, error = written_for_timm(model, tmp_path)
    except UnsupportedByFormatError as refusal:
        assert refusal.message.startswith("timm cannot express this model: ")
        return
    assert_same(model.double(), theirs, random_images(config, torch.float64), error)


EXPRESSIBLE = PLAIN | {
    "ffn": st.sampled_from(("mlp", "mlp", "swiglu_packed")),
    "norm_eps": 1e-6,
    "qkv_bias": st.booleans(),
    "qk_norm": st.booleans(),
    "pre_norm": st.booleans(),
    "layer_scale": st.booleans(),
    "pos_embed": st.sampled_from(("learned", "learned", "none")),
    "num_registers": st.sampled_from((0, 0, 1, 4)),
    "final_norm": st.sampled_from(("before", "none")),
    "representation_dim": 0,
}


@examples(40)
@given(
    config=configs(**EXPRESSIBLE, pool=st.sampled_from(("avg", "none"))),
    act=st.sampled_from(("gelu_tanh", "quick_gelu")),
)
def test_what_timm_has_is_never_refused(tmp_path: Path, config: vit_hub.ViTConfig, act: str) -> None:
    config = config.replace(act=act, patch_bias=not config.pre_norm)
    if config.ffn == "mlp":
        config = config.replace(norm_eps=1e-5)
    if config.pos_embed_prefix and config.num_registers:
        config = config.replace(pos_embed_registers=True)
    model = random_model(config)
    theirs, error = written_for_timm(model, tmp_path)
    assert error == EXACT
    assert_same(model.double(), theirs, random_images(config, torch.float64))


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "quick_gelu"])
@pytest.mark.parametrize("pool", ["cls", "map", "cls_dist"])
def test_activations_survive_the_way_through_timms_folder(act: str, pool: str, tmp_path: Path) -> None:
    config = vit_hub.ViTConfig(
        image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3,
        act=act, pool=pool, distilled=pool == "cls_dist",
    )  # fmt: skip
    model = random_model(config)
    theirs, _ = written_for_timm(model, tmp_path)
    assert isinstance(theirs, VisionTransformerDistilled) == (pool == "cls_dist")
    again = vit_hub.load(tmp_path / "timm", dtype="float64")
    assert again.config == config.replace(resize=again.config.resize)
    images = random_images(config, torch.float64)
    assert_same(model.double(), theirs, images)
    assert_same(again, theirs, images)


def test_a_folder_that_timm_saved_needs_no_hint(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", **SMALL, global_pool="avg", act_layer="gelu_tanh").eval()
    randomise(theirs)
    timm.models.save_for_hf(
        theirs, tmp_path, model_args={**SMALL, "global_pool": "avg", "act_layer": "gelu_tanh"}, safe_serialization=True
    )
    model = vit_hub.load(tmp_path, dtype="float64")
    assert (model.config.num_heads, model.config.act, model.config.pool) == (2, "gelu_tanh", "avg")
    assert_same(model, theirs.double(), random_images(model.config, torch.float64))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("patch_bias", {"pre_norm": True}),
        ("qkv_bias", {"qkv_bias": "masked"}),
        ("ffn", {"ffn": "swiglu", "act": "gelu"}),
        ("ffn", {"ffn": "swiglu_packed", "act": "silu", "pool": "map"}),
        ("representation_dim", {"representation_dim": 4}),
        ("pool", {"pool": "first"}),
        ("head_input", {"head_input": "cls_avg"}),
        ("head_norm", {"head_norm": True}),
        ("prefix_norm", {"prefix_norm": True}),
        ("stem", {"stem": "resnet", "stem_width": 32, "patch_size": 1}),
        ("distilled", {"distilled": True}),
        ("num_registers", {"distilled": True, "pool": "cls_dist", "num_registers": 2, "pos_embed_registers": True}),
        ("final_norm", {"distilled": True, "pool": "cls_dist", "final_norm": "after"}),
        ("norm_eps", {"norm_eps": 1e-12}),
        ("norm_eps", {"norm_eps": 1e-5, "distilled": True, "pool": "cls_dist"}),
    ],
)
def test_what_timm_cannot_express_is_refused_naming_the_field(
    field: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    small = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    model = random_model(vit_hub.ViTConfig(**{**small, "num_classes": 2, **changes}))
    path = model.save(tmp_path / "model.safetensors")
    for refused in (
        lambda: vit_hub.convert(path, tmp_path / "timm", to="timm"),
        lambda: vit_hub.to_timm(model),
    ):
        with pytest.raises(
            UnsupportedByFormatError, match=rf"timm cannot express this model: (.*; )?{field}: "
        ) as error:
            refused()
        assert "formats that can: canonical" in error.value.hint
    assert not (tmp_path / "timm").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"global_pool": "max"},
        {"global_pool": "avgmax"},
        {"global_pool": "prr"},
        {"global_pool": ""},
        {"attn_layer": DualAttention},
        {"act_layer": "mish"},
        {"mlp_layer": functools.partial(GluMlp, gate_last=True)},
        {"embed_norm_layer": "rmsnorm"},
    ],
    ids=lambda arguments: "-".join(map(str, arguments)),
)
def test_a_timm_model_that_computes_otherwise_is_refused(arguments: dict[str, Any]) -> None:
    theirs = made(TimmVisionTransformer, SMALL | arguments, torch.float64)
    with pytest.raises(VitHubError):
        vit_hub.from_module(theirs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm_layer": "rmsnorm"},
        {"norm_layer": "rmsnorm", "qk_norm": True},
        {"embed_norm_layer": "layernorm"},
    ],
    ids=str,
)
def test_other_norms_and_missing_biases_are_computed(arguments: dict[str, Any]) -> None:
    theirs = made(TimmVisionTransformer, SMALL | arguments, torch.float64)
    ours = vit_hub.from_module(theirs)
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(images), theirs(images)) <= EXACT
    state = vit_hub.to_timm(ours)
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("changes", [{"pool_heads": 1}, {"pool_mlp_dim": 6}], ids=str)
def test_pooling_that_only_naflexvit_has_is_written_as_one(changes: dict[str, Any], tmp_path: Path) -> None:
    small = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    config = vit_hub.ViTConfig(**small, num_classes=2, pool="map", pos_embed_prefix=False, norm_eps=1e-6, **changes)
    model = random_model(config, dtype=torch.float64)
    report = vit_hub.convert(model.save(tmp_path / "model.safetensors"), tmp_path / "timm", to="timm")
    assert report.format == "timm-naflex"
    theirs = timm.create_model(f"local-dir:{report.path}", pretrained=True).double().eval()
    images = random_images(config, torch.float64)
    with torch.inference_mode():
        assert relative_error(theirs(images), model(images)) <= 1e-6


def test_tensors_that_need_no_change_are_shared() -> None:
    theirs = made(TimmVisionTransformer, SMALL, torch.float32)
    ours = vit_hub.from_module(theirs)
    pointers = {name: value.data_ptr() for name, value in theirs.state_dict().items()}
    assert {name: value.data_ptr() for name, value in ours.state_dict().items()} == pointers
    assert {name: value.data_ptr() for name, value in vit_hub.to_timm(ours).items()} == pointers
    assert not ours.training


def test_an_image_size_that_timm_leaves_open_is_refused_where_it_contradicts_the_table() -> None:
    theirs = made(TimmVisionTransformer, SMALL, torch.float32)
    ours = vit_hub.from_module(theirs)
    with pytest.raises(ConfigError, match="8, 8"):
        ours(torch.zeros(1, 3, 16, 16))
