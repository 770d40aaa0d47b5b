"""AIMv2, InternViT, Sapiens 2, Pixtral, MLCD and NaFlexVit: the same numbers as transformers' and timm's own code."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import examples, random_images, random_model, randomise, relative_error
from timm.layers import LayerNorm, RmsNorm
from timm.layers import SwiGLU as TimmSwiGLU
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.model.config import Rope

pytestmark = pytest.mark.filterwarnings("ignore:.*default .* is used")

# transformers and timm compute rotations in float32.
EXACT, SINGLE = 1e-10, 1e-6


def _sizes(draw: st.DrawFn) -> dict[str, Any]:
    heads, patch = draw(st.sampled_from((1, 2, 4))), draw(st.integers(1, 3))
    return {
        "num_attention_heads": heads,
        "hidden_size": 8 * heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(4, 20)),
        "patch_size": patch,
        "image_size": patch * draw(st.integers(1, 4)),
        "num_channels": draw(st.sampled_from((1, 3))),
        "hidden_act": draw(st.sampled_from(("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu"))),
    }


def _aimv2(draw: st.DrawFn) -> Any:
    options = {name: draw(st.booleans()) for name in ("qkv_bias", "mlp_bias", "use_head", "is_native")}
    eps = draw(st.sampled_from((1e-5, 1e-3)))
    return transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**_sizes(draw), **options, rms_norm_eps=eps))


def _internvl(draw: st.DrawFn) -> Any:
    names = ("attention_bias", "use_qk_norm", "use_mask_token", "use_mean_pooling", "use_absolute_position_embeddings")
    options = {name: draw(st.booleans()) for name in names}
    options |= {"layer_norm_eps": draw(st.sampled_from((1e-6, 1e-4)))}
    norm = draw(st.sampled_from(("layer_norm", "rms_norm")))
    return transformers.InternVLVisionModel(
        transformers.InternVLVisionConfig(**_sizes(draw), **options, norm_type=norm)
    )


def _sapiens2(draw: st.DrawFn) -> Any:
    sizes = _sizes(draw)
    divisors = [count for count in (1, 2, 4) if sizes["num_attention_heads"] % count == 0]
    depth = sizes["num_hidden_layers"]
    query, key = draw(st.sampled_from(((True, True), (True, False), (False, False))))
    return transformers.Sapiens2Model(
        transformers.Sapiens2Config(
            **sizes,
            num_key_value_heads_per_layer=draw(st.lists(st.sampled_from(divisors), min_size=depth, max_size=depth)),
            query_bias=query,
            key_bias=key,
            value_bias=query,
            proj_bias=draw(st.booleans()),
            mlp_bias=draw(st.booleans()),
            use_qk_norm=draw(st.booleans()),
            use_mask_token=draw(st.booleans()),
            num_register_tokens=draw(st.sampled_from((0, 1, 3))),
            rope_theta=draw(st.sampled_from((100.0, 30.0))),
            rms_norm_eps=draw(st.sampled_from((1e-6, 1e-4))),
        )
    )


def _pixtral(draw: st.DrawFn) -> Any:
    rope = {"rope_type": "axial", "rope_theta": draw(st.sampled_from((10_000.0, 100.0)))}
    return transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**_sizes(draw), rope_parameters=rope))


def _mlcd(draw: st.DrawFn) -> Any:
    rope = {"rope_type": "axial", "rope_theta": draw(st.sampled_from((10_000.0, 100.0)))}
    eps = draw(st.sampled_from((1e-5, 1e-3)))
    return transformers.MLCDVisionModel(
        transformers.MLCDVisionConfig(**_sizes(draw), rope_parameters=rope, layer_norm_eps=eps)
    )


MODELS = {"aimv2": _aimv2, "internvl": _internvl, "sapiens2": _sapiens2, "pixtral": _pixtral, "mlcd": _mlcd}


def precise(theirs: Any) -> Any:
    """A model in float64, its RMSNorms too, which transformers computes in float32 whatever the model is in."""

    def normed(norm: Any, x: Tensor) -> Tensor:
        found: Tensor = norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        return found

    for layer in theirs.modules():
        if type(layer).__name__.endswith("RMSNorm"):
            layer.forward = functools.partial(normed, layer)
    return theirs.double().eval()


@st.composite
def models(draw: st.DrawFn, family: str) -> Any:
    made = MODELS[family](draw).eval()
    randomise(made)
    return made


def outputs(theirs: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, T, D] and the pooled output, if there is one."""
    found = theirs(pixel_values=images)
    tokens = found.last_hidden_state
    if type(theirs).__name__ == "PixtralVisionModel":  # all images in one sequence
        tokens = tokens.reshape(len(images), -1, tokens.shape[-1])
    return tokens, getattr(found, "pooler_output", None)


def assert_same(ours: vit_hub.VisionTransformer, theirs: Any, limit: float = SINGLE) -> None:
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        tokens, pooled = outputs(theirs, images)
        assert relative_error(ours.forward_features(images), tokens) <= limit
        if pooled is not None:
            assert relative_error(ours(images), pooled) <= limit


def loaded(folder: Path) -> Any:
    """A folder as transformers loads it, with nothing missing and nothing left over."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    found, info = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64
    )
    assert not any(info.values()), info
    return precise(found)


@pytest.mark.parametrize("family", MODELS)
@examples(12)
@given(data=st.data())
def test_transformers_models_in_memory(family: str, data: st.DataObject) -> None:
    theirs = precise(data.draw(models(family)))
    ours = vit_hub.from_module(theirs)
    assert_same(ours, theirs)
    if getattr(theirs.config, "use_gated_mlp", True):  # else transformers cannot load what it saves
        again = vit_hub.to_transformers(ours)
        assert type(again) is type(theirs)
        assert_same(ours, precise(again))


@pytest.mark.parametrize("family", MODELS)
@examples(8)
@given(data=st.data())
def test_transformers_folders_come_back_byte_for_byte(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("case")
    theirs = data.draw(models(family))
    theirs.save_pretrained(folder / "source")
    ckpt = vit_hub.open_checkpoint(folder / "source")
    assert (ckpt.format.partition("-")[0], ckpt.dropped) == ("hf", {})
    assert_same(vit_hub.load(folder / "source", dtype="float64"), precise(theirs))
    vit_hub.convert(folder / "source", folder / "middle.safetensors")
    vit_hub.convert(folder / "middle.safetensors", folder / "back", to=ckpt.format)
    before, after = (load_file(folder / name / "model.safetensors") for name in ("source", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert_same(vit_hub.load(folder / "back", dtype="float64"), loaded(folder / "back"))
    # Without a passport, too.
    ours = vit_hub.load(folder / "source")
    ours.passport, ours.carried = None, {}
    vit_hub.convert(ours.save(folder / "bare.safetensors"), folder / "again", to="hf")
    assert_same(ours.double(), loaded(folder / "again"))


@pytest.mark.parametrize("family", ["pixtral", "mlcd", "sapiens2", "aimv2"])
def test_rotary_and_computed_positions_take_other_sizes(family: str) -> None:
    theirs = {
        "pixtral": transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**TINY)),
        "mlcd": transformers.MLCDVisionModel(transformers.MLCDVisionConfig(**TINY)),
        "sapiens2": transformers.Sapiens2Model(transformers.Sapiens2Config(**TINY)),
        "aimv2": transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**TINY, is_native=True)),
    }[family]
    randomise(theirs)
    theirs = precise(theirs)
    ours = vit_hub.from_module(theirs)
    assert ours.dynamic
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert relative_error(ours.forward_features(images), outputs(theirs, images)[0]) <= SINGLE


TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def test_the_image_tower_of_a_whole_aimv2(tmp_path: Path) -> None:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4, "vocab_size": 5}
    whole = transformers.Aimv2Model(transformers.Aimv2Config(vision_config=TINY, text_config=text, projection_dim=6))
    randomise(whole)
    whole.save_pretrained(tmp_path / "source")
    ours = vit_hub.load(tmp_path / "source")
    images = random_images(ours.config)
    with torch.inference_mode():
        wanted = whole.eval().visual_projection(whole.vision_model(images).pooler_output)
        assert relative_error(ours(images), wanted) <= 1e-5
    report = vit_hub.convert(tmp_path / "source", tmp_path / "c.safetensors")
    assert all(name.startswith(("text_", "logit_scale")) for name in report.dropped)
    vit_hub.convert(report.path, tmp_path / "back", to="hf")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "back"))
    assert after.keys() == before.keys() - report.dropped.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("kind", "tower", "prefix"),
    [
        ("internvl", "internvl_vision", "vision_tower."),
        ("mistral3", "pixtral", "vision_tower."),
        ("llava", "pixtral", "vision_tower."),
        ("llava_onevision", "mlcd_vision_model", "vision_tower.vision_model."),
    ],
)
def test_towers_inside_of_larger_models(kind: str, tower: str, prefix: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(tower, **TINY, hidden_act="silu" if tower == "pixtral" else "gelu")
    theirs = transformers.AutoModel.from_config(config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    inside = {
        prefix + name.removeprefix("vision_model."): value
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    extra = {"language_model.model.norm.weight": torch.ones(4)}
    save_file({**inside, **extra}, tmp_path / "model.safetensors", {"format": "pt"})
    own = json.loads((tmp_path / "config.json").read_text())
    own.pop("architectures")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": own, "text_config": {}}))
    assert_same(vit_hub.load(tmp_path, dtype="float64"), precise(theirs))
    report = vit_hub.convert(tmp_path, tmp_path / "c.safetensors")
    assert report.dropped.keys() == extra.keys()
    vit_hub.convert(report.path, tmp_path / "back.safetensors", to="hf")
    assert load_file(tmp_path / "back.safetensors").keys() == inside.keys()


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_names_of_internvit_in_opengvlabs_own_repositories(norm: str, tmp_path: Path) -> None:
    """The same weights as transformers', whose class is the peer."""
    options = {"norm_type": norm, "use_qk_norm": norm == "rms_norm", "attention_bias": norm == "layer_norm"}
    theirs = transformers.InternVLVisionModel(transformers.InternVLVisionConfig(**TINY, **options)).eval()
    randomise(theirs)
    state, found = theirs.state_dict(), dict[str, Tensor]()
    found["embeddings.class_embedding"] = state["embeddings.cls_token"]
    found["embeddings.position_embedding"] = state["embeddings.position_embeddings"]
    names = {"projection_layer": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2"}
    for part in ("weight", "bias"):
        found[f"embeddings.patch_embedding.{part}"] = state[f"embeddings.patch_embeddings.projection.{part}"]
    for index in range(2):
        old, new = f"encoder.layer.{index}", f"encoder.layers.{index}"
        for part in ("weight", "bias"):
            parts = [state.get(f"{old}.attention.{name}_proj.{part}") for name in "qkv"]
            if parts[0] is not None:
                found[f"{new}.attn.qkv.{part}"] = torch.cat([value for value in parts if value is not None])
        for name, value in state.items():
            if name.startswith(f"{old}.") and not any(f".{part}_proj." in name for part in "qkv"):
                rest = (
                    name.removeprefix(f"{old}.").replace("attention.", "attn.").replace("attn.projection", "projection")
                )
                for before, after in names.items():
                    rest = rest.replace(before, after)
                found[f"{new}.{rest.replace('lambda_', 'ls')}"] = value
    config = {
        **TINY,
        "model_type": "intern_vit_6b",
        "norm_type": norm,
        "qk_normalization": norm == "rms_norm",
        "qkv_bias": norm == "layer_norm",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    whole = {"model_type": "internvl_chat", "vision_config": config}
    save_file(
        {f"vision_model.{name}": value.contiguous() for name, value in found.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(whole))
    ours = vit_hub.load(tmp_path, dtype="float64")
    assert (ours.config.pool, ours.config.final_norm) == ("cls", "none")
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        tokens = precise(theirs)(images).last_hidden_state
        assert relative_error(ours.forward_features(images), tokens) <= SINGLE
        assert relative_error(ours(images), ours.forward_features(images)[:, 0]) <= 1e-12
    vit_hub.convert(tmp_path, tmp_path / "c.safetensors")
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "back.safetensors", to="hf")
    again = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(again[f"vision_model.{name}"], value) for name, value in found.items())


def same_as_timm(ours: vit_hub.VisionTransformer, theirs: Any, limit: float) -> None:
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(ours.forward_features(images), theirs.forward_features(images)) <= limit
        assert relative_error(ours(images), theirs(images)) <= limit
    state, wanted = vit_hub.to_timm(ours), theirs.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())


@examples(20)
@given(data=st.data())
def test_timm_models_of_aimv2s_kind(data: st.DataObject) -> None:
    draw = data.draw
    norm = functools.partial(RmsNorm, eps=draw(st.sampled_from((1e-5, 1e-3))))
    bias = {"qkv_bias": draw(st.booleans()), "proj_bias": draw(st.booleans())}
    theirs = TimmVisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3, mlp_ratio=1.5, class_token=False,
        global_pool="avg", fc_norm=draw(st.booleans()), act_layer=torch.nn.SiLU, norm_layer=norm, embed_norm_layer=norm,
        mlp_layer=TimmSwiGLU, qk_norm=draw(st.booleans()), init_values=draw(st.sampled_from((None, 1e-5))), **bias,
    )  # fmt: skip
    randomise(theirs)
    theirs = theirs.double().eval()
    same_as_timm(vit_hub.from_module(theirs), theirs, EXACT)


@examples(20)
@given(data=st.data())
def test_timm_models_of_sapiens2s_kind(data: st.DataObject) -> None:
    draw = data.draw
    kind = draw(st.sampled_from((RmsNorm, LayerNorm)))
    heads = draw(st.none() | st.just(2) | st.lists(st.sampled_from((1, 2, 4)), min_size=2, max_size=2).map(tuple))
    theirs = Eva(
        img_size=8, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=3, num_kv_heads=heads,
        qkv_fused=False, qkv_bias=draw(st.booleans()), qk_norm=draw(st.booleans()), global_pool="token",
        attn_type="rope", swiglu_mlp=True, init_values=1.0, attn_only_layer_scale=draw(st.booleans()),
        rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False,
        num_reg_tokens=2, use_fc_norm=False, norm_layer=functools.partial(kind, eps=1e-6),
    )  # fmt: skip
    randomise(theirs)
    theirs = theirs.double().eval()
    same_as_timm(vit_hub.from_module(theirs), theirs, SINGLE)


NAFLEX = (
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_par_gap",
    "naflexvit_base_patch16_parfac_gap",
    "naflexvit_base_patch16_map",
    "naflexvit_so150m2_patch16_reg1_gap",
    "naflexvit_base_patch16_siglip",
    "naflexvit_base_patch16_radio_v3",
    "naflexvit_large_patch16_radio_v3",
)


def naflex(name: str, **options: Any) -> Any:
    grid = (4, 4) if "parfac" in name else (4, 3)
    sizes = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "pos_embed_grid_size": grid}
    theirs = timm.create_model(name, **{**sizes, "num_classes": 5, **options})
    randomise(theirs)
    return theirs.double().eval()


@pytest.mark.parametrize("name", NAFLEX)
def test_a_naflexvit_at_its_own_and_at_other_sizes(name: str) -> None:
    theirs = naflex(name)
    ours = vit_hub.from_module(theirs)
    assert ours.config.image_size == (16, 16 if "parfac" in name else 12)
    same_as_timm(ours, theirs, EXACT)
    ours.dynamic = True
    for size in ((16, 12), (24, 8), (8, 20), (12, 12)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.inference_mode():
            assert relative_error(ours(images), theirs(images)) <= SINGLE, size
    resized = vit_hub.from_module(theirs).set_image_size((24, 8))
    images = torch.randn(2, 3, 24, 8, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(resized(images), theirs(images)) <= SINGLE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embed_proj_type": "conv"},
        {"patchify_channels_last": False},
        {"patch_size": (2, 4), "in_chans": 1},
        {"pos_embed": "factorized", "norm_layer": "rmsnorm", "qk_norm": True},
        {"class_token": True, "global_pool": "token", "reg_tokens": 0, "pre_norm": True, "qkv_bias": False},
    ],
    ids=str,
)
def test_a_folder_of_a_naflexvit(options: dict[str, Any], tmp_path: Path) -> None:
    arguments = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "pos_embed_grid_size": [4, 3], **options}
    theirs = timm.create_model("naflexvit_base_patch16_gap", num_classes=5, **arguments).eval()
    randomise(theirs)
    timm.models.save_for_hf(theirs, tmp_path / "timm", model_args=arguments, safe_serialization=True)
    ckpt = vit_hub.open_checkpoint(tmp_path / "timm")
    assert (ckpt.format, ckpt.warnings) == ("timm-naflex", ())
    vit_hub.convert(ckpt, tmp_path / "c.safetensors")
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "again", to="timm-naflex")
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval().double()
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("timm", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    images = random_images(ckpt.config, torch.float64)
    with torch.inference_mode():
        wanted = theirs.double()(images)
        assert relative_error(vit_hub.load(ckpt, dtype="float64")(images), wanted) <= EXACT
        assert relative_error(again(images), wanted) <= EXACT


def test_separate_tables_that_timm_resizes_at_their_own_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pos_embed_grid_size=\[4, 3\]"):
        vit_hub.from_module(naflex("naflexvit_base_patch16_parfac_gap", pos_embed_grid_size=(4, 3)))


@pytest.mark.parametrize("name", NAFLEX)
def test_a_list_of_images_is_one_masked_batch_as_in_timm(name: str) -> None:
    theirs = naflex(name)
    ours = vit_hub.from_module(theirs)
    ours.dynamic = True
    images = [torch.randn(3, *size, dtype=torch.float64) for size in ((16, 12), (8, 20), (4, 4), (24, 16))]
    with torch.inference_mode():
        found = ours(images)
        alone = torch.cat([ours(image[None]) for image in images])
        patches = [image.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 3, 4, 0).flatten(2) for image in images]
        longest = max(part.shape[0] * part.shape[1] for part in patches)
        batch = torch.zeros(len(images), longest, 48, dtype=torch.float64)
        coordinates = torch.zeros(len(images), longest, 2, dtype=torch.long)
        valid = torch.zeros(len(images), longest, dtype=torch.bool)
        for index, part in enumerate(patches):
            count = part.shape[0] * part.shape[1]
            batch[index, :count] = part.flatten(0, 1)
            sides = torch.meshgrid(*(torch.arange(side) for side in part.shape[:2]), indexing="ij")
            coordinates[index, :count] = torch.stack(sides, -1).flatten(0, 1)
            valid[index, :count] = True
        wanted = theirs(batch, patch_coord=coordinates, patch_valid=valid)
    assert relative_error(found, alone) <= 1e-12
    assert relative_error(found, wanted) <= SINGLE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "map", "num_registers": 2},
        {"rope": Rope(pairs="half"), "pos_embed": "none", "pos_embed_prefix": False},
        {"rope": Rope(mixed=True), "pos_embed": "none", "pos_embed_prefix": False},
        {"rope": Rope(class_angles=True), "pos_embed": "none", "pos_embed_prefix": False},
        {"rel_pos": "block", "pos_embed": "none", "pos_embed_prefix": False},
        {"rel_pos": "shared", "pool": "avg"},
        {"distilled": True, "pool": "cls_dist"},
    ],
    ids=str,
)
def test_images_of_several_sizes_one_by_one_and_together(changes: dict[str, Any]) -> None:
    fields = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 20}
    model = random_model(vit_hub.ViTConfig(**fields, **changes, num_classes=3), dtype=torch.float64)
    model.dynamic = True
    images = [torch.randn(3, *size, dtype=torch.float64) for size in ((8, 8), (4, 12), (16, 8))]
    with torch.inference_mode():
        for method in (model, model.embed):
            alone = torch.cat([method(image[None]) for image in images])
            assert relative_error(method(images), alone) <= 1e-12
        for image, tokens in zip(images, model.forward_features(images), strict=True):
            assert relative_error(tokens, model.forward_features(image[None])[0]) <= 1e-12


def test_a_list_of_images_is_refused_where_it_cannot_be_computed() -> None:
    model = random_model(vit_hub.ViTConfig(**{**FIELDS, "pool": "none"}))
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 12)]
    with pytest.raises(ConfigError, match="images have shape"):
        model.forward_features(images)
    model.dynamic = True
    assert [tokens.shape[0] for tokens in model.forward_features(images)] == [5, 7]
    with pytest.raises(ConfigError, match="pool='none'"):
        model(images)
    with pytest.raises(ConfigError, match="empty"):
        model.forward_features([])


FIELDS: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "rms"},
        {"qk_norm": "rms"},
        {"qk_norm": "rms_width"},
        {"kv_heads": (1, 2)},
        {"patch_norm": True},
        {"pos_embed": "factorized"},
        {"pool": "attn"},
        {"rope": Rope(frequencies="alternate")},
        {"rope": Rope(class_angles=True)},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "to", ["vit_jax", "big_vision", "torchvision", "open_clip", "facebook", "mmpretrain", "keras_hub"]
)
def test_formats_without_a_place_for_it_refuse_it(changes: dict[str, Any], to: str, tmp_path: Path) -> None:
    path = random_model(vit_hub.ViTConfig(**FIELDS, **changes)).save(tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedByFormatError, match=f"{to} cannot express this model: "):
        vit_hub.convert(path, tmp_path / "out", to=to)


@pytest.mark.parametrize("changes", [{"proj_bias": False}, {"mlp_bias": False}, {"layer_scale": "attn"}])
def test_missing_biases_and_half_a_layer_scale_are_folded(changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(vit_hub.ViTConfig(**FIELDS, **changes, act="gelu_tanh", num_classes=3))
    report = vit_hub.convert(model.save(tmp_path / "model.safetensors"), tmp_path / "out.npz", to="vit_jax")
    assert any(text.startswith("irreversible") for text in report.warnings)
    images = random_images(model.config)
    with torch.inference_mode():
        found = vit_hub.load(report.path, overrides={"num_heads": 2})(images)
        assert relative_error(found, model(images)) <= 1e-5


def test_a_config_names_the_field_that_is_wrong() -> None:
    config = vit_hub.ViTConfig(**FIELDS)
    for field, value in {
        "kv_heads": (3, 3),
        "norm": "batch",
        "qk_norm": "layer",
        "pool": "mean",
        "qk_norm_eps": 2.0,
    }.items():
        with pytest.raises(ConfigError, match=rf"^{field}"):
            config.replace(**{field: value})
    assert config.replace(kv_heads=[2, 2]).kv_heads == ()
    assert replace(config, qk_norm="rms_width", num_heads=1).qk_norm == "rms"
