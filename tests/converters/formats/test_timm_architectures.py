"""Models described by timm's config.json: the architecture that it names, its model_args, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import timm_architectures
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import examples, random_images, randomise, relative_error
from timm.layers import SwiGLUPacked
from timm.models import model_entrypoint
from torch import nn

import vit_hub
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _timm
from vit_hub.converters.infer_config import conventional_heads
from vit_hub.converters.read import Checkpoint, read_raw
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import ConfigError, UnknownFormatError, VitHubError
from vit_hub.interop import timm_facts, timm_format
from vit_hub.model.config import ViTConfig

TABLE: dict[str, Any] = json.loads(timm_architectures.TARGET.read_text(encoding="utf-8"))
CLASS_OF = {name: cls for cls, found in TABLE["architectures"].items() for name in found}
OTHERS = [name for names in TABLE["other_classes"].values() for name in names]
same_timm = pytest.mark.skipif(timm.__version__ != TABLE["timm"], reason="the table is of another version of timm")


def nothing() -> Any:
    raise AssertionError("no values are needed")


def read(module: nn.Module, file: dict[str, Any]) -> Checkpoint:
    """Read a model's names and shapes with a config.json beside them."""
    return read_raw(unread(module, {"config.json": file}))


def unread(module: nn.Module, sidecars: dict[str, Any]) -> RawCheckpoint:
    tensors = {key: LazyTensor("F32", tuple(value.shape), nothing) for key, value in module.state_dict().items()}
    return RawCheckpoint(Path("folder"), "safetensors", tensors, {}, sidecars, ())


def live(module: Any) -> ViTConfig:
    """Read the config from the module's attributes."""
    return read_raw(unread(module, {}), format=timm_format(module), overrides=timm_facts(module)).config


def size_of(module: Any) -> list[int]:
    """The size of a model's images; that of a NaFlexVit fills its position table."""
    return list(module.patch_embed.img_size if hasattr(module, "patch_embed") else timm_facts(module)["image_size"])


def on_meta(name: str, **arguments: Any) -> Any:
    with torch.device("meta"):
        return model_entrypoint(name)(pretrained=False, **arguments)


@same_timm
def test_the_table_is_what_the_tool_writes() -> None:
    assert timm_architectures.TARGET.read_text(encoding="utf-8") == timm_architectures.text(timm_architectures.table())


# What the shapes and names of tensors show.
IN_TENSORS = {
    *("in_chans", "num_classes", "embed_dim", "depth", "patch_size", "class_token", "reg_tokens", "num_reg_tokens"),
    *("mlp_ratio", "swiglu_mlp", "swiglu_align_to", "qkv_bias", "qkv_fused", "qk_norm", "attn_pool_mlp_ratio"),
    *("scale_mlp", "scale_attn_inner", "scale_attn_norm", "scale_mlp_norm", "init_values", "scale_attn_inner_norm"),
    *("num_kv_heads", "attn_only_layer_scale", "proj_bias", "embed_proj_type"),
    *("pos_embed", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias"),
    *("rel_pos_type", "rel_pos_dim", "shared_rel_pos", "use_abs_pos", "use_rel_pos", "neck_chans"),
    *("pre_norm", "use_pre_transformer_norm", "final_norm", "use_post_transformer_norm", "fc_norm", "use_fc_norm"),
}
READ = {
    *("num_heads", "norm_eps", "global_pool", "pool_include_prefix", "no_embed_class", "img_size"),
    *("attn_pool_num_heads", "use_rot_pos_emb", "rope_temperature", "rope_grid_offset", "rope_grid_indexing"),
    *("rope_rotate_half", "ref_feat_shape", "use_post_norm", "window_size", "global_attn_indexes"),
    *("pos_embed_grid_size", "pos_embed_interp_mode", "pos_embed_ar_preserving", "pos_embed_antialias"),
    *("pos_embed_align_corners", "patchify_channels_last"),
}
# What has an effect only together with what is refused, or on several images at once.
WITHOUT_EFFECT = {
    *("rope_mrope_section", "rope_ref_feat_shape"),
    *("pos_embed_use_grid_sample", "use_key_only_attn_mask", "enable_patch_interpolator"),
}


def test_every_argument_of_timms_classes_is_accounted_for() -> None:
    arguments = {name for defaults in TABLE["defaults"].values() for name in defaults}
    supported = _timm._SUPPORTED.keys() | _timm._SUPPORTED_NAFLEX.keys()
    assert arguments - IN_TENSORS - READ - supported == WITHOUT_EFFECT


@same_timm
@pytest.mark.parametrize("name", CLASS_OF)
def test_an_architecture_is_read_as_timms_own_module_or_refused(name: str) -> None:
    """From its name alone, with two blocks; what cannot be computed is refused by name, and nothing else is."""
    depth = {"depth": 2, **({"num_kv_heads": 4} if "sapiens2" in name else {})}
    module = on_meta(name, num_classes=5, **depth)
    size = {"input_size": [3, *size_of(module)]}
    file = {"architecture": f"{name}.some_tag", "num_classes": 5, "model_args": depth, "pretrained_cfg": size}
    try:
        expected = live(module)
    except VitHubError:
        with pytest.raises(ConfigError, match=rf"architecture {name}\.some_tag: .* is not supported"):
            read(module, file)
        return
    found = read(module, file)
    assert found.config == expected
    assert found.warnings == ()


@pytest.mark.parametrize("name", OTHERS)
def test_an_architecture_of_another_class_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"folder: config\.json: architecture {name}: timm's class \w+ is not"):
        read(nn.Linear(2, 2), {"architecture": name})


@same_timm
@pytest.mark.parametrize("old", TABLE["deprecated"])
def test_a_former_name_means_the_same(old: str) -> None:
    module = on_meta(TABLE["deprecated"][old], depth=1, num_classes=0)
    found = read(module, {"architecture": old, "model_args": {"depth": 1}})
    assert (found.config, found.warnings) == (live(module), ())


@st.composite
def described(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """An architecture, and any of the arguments that JSON can hold."""
    name = draw(st.sampled_from(sorted(CLASS_OF)))
    cls, one_of = CLASS_OF[name], lambda *values: st.sampled_from(values)
    choices: dict[str, Any] = {
        "num_heads": one_of(1, 2, 4, 8),
        "embed_dim": one_of(64, 192),
        "global_pool": one_of("token", "avg", "map", "", "max"),
        "img_size": one_of(64, (96, 64)),
        "patch_size": one_of(8, 32),
        "in_chans": one_of(1, 4),
        "mlp_ratio": one_of(1.5, 4),
        "qkv_bias": st.booleans(),
        "init_values": one_of(None, 1e-5),
        "class_token": st.booleans(),
        "no_embed_class": st.booleans(),
        "drop_path_rate": one_of(0.1),
    }
    if cls == "VisionTransformer":
        choices |= {
            "pool_include_prefix": st.booleans(),
            "act_layer": one_of(None, "gelu", "gelu_tanh", "quick_gelu", "silu", "mish"),
            "norm_layer": one_of("layernorm", "rmsnorm"),
            "reg_tokens": one_of(0, 3),
            "fc_norm": one_of(None, True, False),
            "final_norm": st.booleans(),
            "pre_norm": st.booleans(),
            "qk_norm": st.booleans(),
            "pos_embed": one_of("learn", "none"),
            "attn_layer": one_of("attn", "diff"),
            "dynamic_img_size": st.booleans(),
        }
    if cls == "VisionTransformerDistilled":
        choices |= {"act_layer": one_of("gelu_tanh", "silu")}
    if cls == "Eva":
        choices |= {
            "attn_pool_num_heads": one_of(None, 2),
            "num_reg_tokens": one_of(0, 3),
            "swiglu_mlp": st.booleans(),
            "use_rot_pos_emb": st.booleans(),
            "rope_type": one_of("cat", "dinov3"),
            "rope_temperature": one_of(50.0),
            "rope_grid_indexing": one_of("ij", "xy"),
            "rope_rotate_half": st.booleans(),
            "ref_feat_shape": one_of(None, 5, (3, 4)),
            "use_post_norm": st.booleans(),
            "use_fc_norm": one_of(None, True, False),
            "use_abs_pos_emb": st.booleans(),
        }
    if cls == "VisionTransformerRelPos":
        choices |= {
            "qk_norm": st.booleans(),
            "fc_norm": st.booleans(),
            "rel_pos_type": one_of("mlp", "mlp-swin", "bias"),
            "rel_pos_dim": one_of(None, 8),
            "shared_rel_pos": st.booleans(),
        }
        del choices["no_embed_class"]
    if cls == "NaFlexVit":
        del choices["img_size"]  # its table has a grid of its own
    if cls == "Beit":
        choices |= {"use_abs_pos_emb": st.booleans(), "use_fc_norm": one_of(None, True, False)}
    names = draw(st.lists(st.sampled_from(sorted(choices)), max_size=5, unique=True))
    return name, {"depth": draw(st.integers(1, 2)), **{key: draw(choices[key]) for key in names}}


@same_timm
@examples(300)
@given(model=described())
def test_model_args_override_what_the_architecture_fixes(model: tuple[str, dict[str, Any]]) -> None:
    name, arguments = model
    try:
        module = on_meta(name, num_classes=0, **arguments)
    except Exception:
        assume(False)
    file = json.loads(json.dumps({"architecture": name, "global_pool": module.global_pool, "model_args": arguments}))
    file["pretrained_cfg"] = {"input_size": [3, *size_of(module)]}
    try:
        expected = live(module)
    except VitHubError:
        with pytest.raises(VitHubError):
            read(module, file)
        return
    found = read(module, file)
    assert found.config == expected
    assert found.warnings == ()


SMALL: dict[str, Any] = {"embed_dim": 96, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_huge_patch14_224", {"num_heads": None, "embed_dim": 128}),
        ("vit_base_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
        ("vit_base_patch16_224", {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2}),
        ("vit_base_patch16_224", {"global_pool": "map", "pool_include_prefix": True}),
        ("vit_base_patch16_siglip_256", {"class_token": True, "pool_include_prefix": True}),
        ("vit_base_patch16_clip_quickgelu_224", {"act_layer": "gelu_tanh"}),
        ("vit_base_patch16_clip_224", {"norm_layer": "layernorm"}),
        ("vit_base_patch16_gap_224", {"num_heads": None}),
        ("deit_small_distilled_patch16_224", {}),
        ("beit3_base_patch16_224", {}),
        ("beit3_large_patch16_224", {"img_size": (48, 32)}),
        ("vit_base_patch16_rpn_224", {}),
        ("vit_base_patch16_rpn_224", {"class_token": True, "qkv_bias": True, "global_pool": "token"}),
        ("eva02_enormous_patch14_clip_224", {}),
        ("eva02_tiny_patch14_224", {"use_post_norm": True, "num_heads": 2}),
        ("vit_relpos_small_patch16_224", {}),
        ("vit_relpos_base_patch16_cls_224", {}),
        ("vit_relpos_base_patch16_clsgap_224", {"rel_pos_type": "bias"}),
        ("vit_relpos_base_patch32_plus_rpn_256", {"rel_pos_type": "bias", "img_size": (48, 32)}),
        ("vit_srelpos_medium_patch16_224", {"rel_pos_type": "mlp-swin"}),
        ("vit_srelpos_small_patch16_224", {"rel_pos_type": "bias", "init_values": None}),
        ("vit_pwee_patch16_reg1_gap_256", {"qkv_bias": False, "qk_norm": True}),
        ("vit_dpwee_patch16_reg1_gap_256", {"init_values": None}),
        ("vit_dpwee_patch16_reg1_gap_256", {"qkv_bias": False, "qk_norm": True, "class_token": True}),
        ("vit_dwee_patch16_reg1_gap_256", {"qk_norm": True}),
        ("vit_dlittle_patch16_reg1_gap_256", {}),
        ("vit_base_patch16_224", {"attn_layer": "diff"}),
        ("vit_small_patch16_18x2_224", {}),
        ("vit_base_patch16_18x2_224", {"attn_layer": "diff", "init_values": None}),
        ("vit_pe_lang_large_patch14_448", {}),
        ("beitv2_base_patch16_224", {}),
        ("vit_pe_core_tiny_patch16_384", {"num_heads": 4, "embed_dim": 128}),
        ("vit_pe_core_large_patch14_336", {"attn_pool_num_heads": 2}),
        ("vit_pe_spatial_tiny_patch16_512", {"embed_dim": 120}),
        ("eva02_tiny_patch14_224", {"num_heads": 2, "ref_feat_shape": 7}),
        ("vit_small_patch16_dinov3", {}),
        ("vit_small_patch16_rope_mixed_224", {}),
        ("test_vit3", {}),
    ],
    ids=str,
)
def test_a_folder_of_timms_gives_timms_numbers(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """As save_for_hf writes it, without a warning; and once more after a conversion to timm's format."""
    arguments = {key: value for key, value in {**SMALL, **arguments}.items() if value is not None}
    theirs = timm.create_model(name, num_classes=5, **arguments).eval()
    randomise(theirs)
    timm.models.save_for_hf(theirs, tmp_path / "timm", model_args=arguments, safe_serialization=True)
    ckpt = vit_hub.open_checkpoint(tmp_path / "timm")
    assert ckpt.warnings == ()
    vit_hub.convert(ckpt, tmp_path / "again", to="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval().double()
    images = random_images(ckpt.config, torch.float64)
    theirs = theirs.double()
    config = ckpt.config
    tolerance = 1e-6 if config.rope or config.rel_pos_mlp or config.differential else 1e-10
    with torch.inference_mode():
        wanted = theirs(images)
        assert relative_error(vit_hub.load(ckpt, dtype="float64")(images), wanted) <= tolerance
        assert relative_error(vit_hub.load(tmp_path / "again", dtype="float64")(images), wanted) <= tolerance
        assert relative_error(again(images), wanted) <= tolerance
        assert relative_error(vit_hub.from_module(theirs)(images), wanted) <= tolerance


@pytest.mark.parametrize("registers", [0, 4])
def test_gates_from_the_callers_code_keep_the_heads_of_the_architecture(registers: int) -> None:
    """As in Virchow and Virchow 2: the config cannot name the layer class, so that its activation is a guess."""
    arguments = {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "reg_tokens": registers}
    module = on_meta(
        "vit_huge_patch14_224", num_classes=0, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, depth=2, **arguments
    )
    found = read(module, {"architecture": "vit_huge_patch14_224", "model_args": {**arguments, "depth": 2}})
    assert found.config == live(module)
    assert found.config.num_heads == 16
    [warning] = found.warnings
    assert "act=silu is a guess" in warning


def test_norms_after_the_layers_are_read_from_the_architecture_or_its_arguments() -> None:
    args = {"depth": 1, "use_post_norm": True}
    for name, stated in (
        ("vit_base_patch16_rpn_224", {"depth": 1}),
        ("vit_relpos_medium_patch16_rpn_224", {"depth": 1}),
        ("eva02_enormous_patch14_clip_224", {"depth": 1}),
        ("eva02_tiny_patch14_224", args),
    ):
        found = read(on_meta(name, **stated), {"architecture": name, "model_args": stated})
        assert (found.config.norm_position, found.warnings) == ("post", ())
    module = on_meta("vit_base_patch16_rpn_224", depth=1)
    assert read(module, {"architecture": "vit_base_patch16_224", "model_args": {}}).config.norm_position == "pre"


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_relpos_small_patch16_rpn_224"])
def test_norms_after_the_layers_of_a_bare_file_are_a_guess_each_time(name: str) -> None:
    module, heads = on_meta(name, depth=1), {"num_heads": 12 if "base" in name else 6}
    found = read_raw(unread(module, {}), overrides=heads)
    [warning] = found.warnings
    assert "norm_position=post is a guess" in warning
    assert "--set norm_position=pre" in warning
    assert found.config == live(module)
    other = read_raw(unread(module, {}), overrides={**heads, "norm_position": "pre"})
    assert (other.config, other.warnings) == (found.config.replace(norm_position="pre"), ())


def test_the_bare_file_of_eva02_enormous_has_norms_after_the_layers() -> None:
    module = on_meta("eva02_enormous_patch14_clip_224", depth=1)
    assert read_raw(unread(module, {}), overrides={"num_heads": 16}).config == live(module)


def test_tensors_that_contradict_the_blocks_of_the_architecture_are_an_error() -> None:
    for tensors, name in (
        ("vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"),
        ("vit_dwee_patch16_reg1_gap_256", "vit_wee_patch16_reg1_gap_256"),
        ("vit_tiny_patch16_224", "vit_small_patch16_18x2_224"),
    ):
        with pytest.raises(VitHubError):
            read(on_meta(tensors, depth=1), {"architecture": name, "model_args": {"depth": 1}})


def test_arguments_that_are_not_known_are_named() -> None:
    module = on_meta("vit_tiny_patch16_224", depth=1)
    args = {"depth": 1, "attention_sinks": 4, "norm_eps": 1e-3, "drop_rate": 0.1}
    found = read(module, {"architecture": "vit_tiny_patch16_224", "model_args": args})
    [warning] = found.warnings
    assert "model_args attention_sinks, norm_eps are not known" in warning
    assert found.config.norm_eps == 1e-6


def test_an_architecture_that_is_not_known_is_a_guess() -> None:
    module = on_meta("vit_tiny_patch16_224", depth=1)
    unknown, heads = read(module, {"architecture": "my_vit", "model_args": {"depth": 1}}).warnings
    assert "architecture my_vit is not known" in unknown
    assert "num_heads=3 is a guess" in heads
    [unknown] = read(module, {"architecture": "my_vit", "model_args": {"depth": 1, "num_heads": 3}}).warnings
    assert "architecture my_vit is not known" in unknown


def test_an_architecture_of_another_width_than_the_tensors_is_doubted() -> None:
    module = on_meta("vit_small_patch16_224", depth=1)
    [warning] = read(module, {"architecture": "vit_tiny_patch16_224"}).warnings
    assert "vit_tiny_patch16_224 is 192 channels wide, the tensors are 384: num_heads=3" in warning


def test_pooling_beside_model_args_is_that_of_the_saved_model() -> None:
    module = on_meta("vit_tiny_patch16_224", depth=1, global_pool="avg", fc_norm=False)
    assert read(module, {"architecture": "vit_tiny_patch16_224", "global_pool": "avg"}).config == live(module)
    with pytest.raises(ConfigError, match="global_pool=max is not supported"):
        read(module, {"architecture": "vit_tiny_patch16_224", "global_pool": "max"})


def test_pooling_whose_tensor_is_missing_is_left_to_the_tensors() -> None:
    module = on_meta("vit_tiny_patch16_224", depth=1, class_token=False, global_pool="avg")
    found = read(module, {"architecture": "vit_tiny_patch16_224"})
    assert found.config.pool == "avg"
    [warning] = found.warnings
    assert "global_pool=token needs the tensor cls_token" in warning


def test_transformers_wrapper_of_timm_names_the_architecture_too() -> None:
    """Its config.json has the architecture and model_args at the top, and null for what was not given."""
    args = {"depth": 1, "embed_dim": 128, "num_heads": 4}
    module = on_meta("vit_tiny_patch16_224", num_classes=5, **args)
    file = {"architecture": "vit_tiny_patch16_224", "model_type": "timm_wrapper", "do_pooling": True}
    assert read(module, {**file, "model_args": args}).config == live(module)
    module = on_meta("vit_huge_patch14_224", depth=1)
    assert read(module, {**file, "architecture": "vit_huge_patch14_224", "model_args": None}).config == live(module)


@pytest.mark.parametrize(
    "name",
    [
        "vit_huge_patch14_224",
        "vit_pe_core_tiny_patch16_384",
        "vit_base_patch16_rpn_224",
        "vit_relpos_small_patch16_224",
    ],
)
def test_open_clip_takes_its_towers_from_the_same_table(name: str) -> None:
    module = on_meta(name, num_classes=0, depth=1)
    size = module.patch_embed.img_size[0]
    vision = {"timm_model_name": name, "timm_pool": module.global_pool, "timm_proj": "linear", "image_size": size}
    config = {"model_cfg": {"embed_dim": 7, "vision_cfg": vision, "text_cfg": {}}}
    tower = unread(module, {"open_clip_config.json": config})
    tensors = {f"visual.trunk.{key}": tensor for key, tensor in tower.tensors.items()}
    tensors["visual.head.proj.weight"] = LazyTensor("F32", (7, module.num_features), nothing)
    whole = RawCheckpoint(Path("folder"), "safetensors", tensors, {}, tower.sidecars, ())
    found = read_raw(whole)
    assert found.config == live(module).replace(projection_dim=7)
    assert found.warnings == ()


@pytest.mark.parametrize(("width", "published"), [(96, False), (192, True)])
def test_a_bare_perception_encoder_of_another_width_is_a_guess(width: int, published: bool) -> None:
    module = on_meta("vit_pe_core_tiny_patch16_384", depth=1, embed_dim=width)
    warnings = read_raw(unread(module, {}), overrides={"num_heads": 3}).warnings
    assert warnings == () if published else "no published Perception Encoder is 96 channels wide" in warnings[0]


def test_heads_of_a_bare_file_are_a_guess_each_time(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    module = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5)
    save_file(module.state_dict(), file)
    for _ in range(2):
        [warning] = vit_hub.open_checkpoint(file).warnings
        assert "num_heads=3 is a guess" in warning
        assert '{"num_heads": N}' in warning
        assert "--set num_heads=N" in warning
    with pytest.warns(UserWarning, match="num_heads=3 is a guess"):
        vit_hub.load(file)
    report = vit_hub.convert(file, tmp_path / "out.safetensors")
    assert any("num_heads=3 is a guess" in warning for warning in report.warnings)
    assert vit_hub.open_checkpoint(file, overrides={"num_heads": 6}).warnings == ()
    assert vit_hub.open_checkpoint(tmp_path / "out.safetensors").warnings == ()
    assert read_raw(unread(module, {}), hints={"num_heads": 3}).warnings == ()


def test_published_shapes_have_the_heads_that_most_of_timms_architectures_have() -> None:
    """The guess for bare files; exceptions are models of timm's own tests, and two of a shape with other heads."""
    wrong = set()
    for name, cls in CLASS_OF.items():
        args = {**TABLE["defaults"][cls], **TABLE["architectures"][cls][name]}
        refused = _timm.refusal(unread(nn.Identity(), {"config.json": {"architecture": name}}))
        if refused or args.get("qk_norm"):  # norms of heads show their number
            continue
        gated = args.get("swiglu_mlp") or args.get("mlp_layer") == "SwiGLUPacked"
        split = args.get("swiglu_align_to") or args.get("scale_mlp")
        width = 128 if args.get("embed_norm_layer") else 64
        ffn = ("swiglu" if split else "swiglu_packed") if gated else "mlp"
        try:
            heads = conventional_heads(args["embed_dim"], args["depth"], ffn, width)
        except ConfigError:
            heads = 0
        if heads != args["num_heads"]:
            wrong.add(name)
    tests = {"test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos"}
    giants = {"vit_giant_patch16_radio_v3", "naflexvit_giant_patch16_radio_v3"}
    assert wrong == {*tests, "vit_base_patch16_gap_224", *giants}


@pytest.mark.parametrize(
    "file",
    [
        {"model_args": [1]},
        {"model_args": {"num_heads": "three"}},
        {"model_args": {"img_size": "big"}},
        {"model_args": {"global_pool": ["avg"]}},
        {"model_args": {"act_layer": {}}},
        {"model_args": {"use_rot_pos_emb": True, "rope_temperature": "hot"}, "architecture": "eva02_tiny_patch14_224"},
        {"model_args": {"ref_feat_shape": "wide"}, "architecture": "eva02_tiny_patch14_224"},
    ],
    ids=str,
)
def test_a_damaged_config_is_an_error_of_ours(file: dict[str, Any]) -> None:
    file = {"architecture": "vit_tiny_patch16_224", **file}
    with pytest.raises(ConfigError):
        read(on_meta(file["architecture"], depth=1), file)


def test_what_a_config_leaves_out_is_taken_from_the_architecture() -> None:
    module = on_meta("vit_tiny_patch16_224", depth=1)
    for file in ({"pretrained_cfg": None, "model_args": None}, {"input_size": [3, 224, 224]}, {"global_pool": None}):
        found = read(module, {"architecture": "vit_tiny_patch16_224", **file})
        assert (found.config, found.warnings) == (live(module), ())


def test_a_config_without_an_architecture_is_not_timms() -> None:
    with pytest.raises(UnknownFormatError):
        read(nn.Linear(2, 2), {"architectures": ["NaFlexVit"]})
