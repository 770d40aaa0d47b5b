from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vit_hub.errors import ConfigError, ModelNotFoundError
from vit_hub.hub.names.locate import locate
from vit_hub.model.config import ViTConfig
from vit_hub.model.flops import forward_flops
from vit_hub.registry import SORTS, get_config, get_entry, list_models

DEFAULT = "vit-b16.augreg2-in21k-ft-in1k-224"


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("vit-b16", DEFAULT),
        ("VIT_B16", DEFAULT),
        (DEFAULT, DEFAULT),
        ("vit_base_patch16_224", DEFAULT),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", DEFAULT),
        ("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", DEFAULT),
        ("vit-base-patch16-224.augreg2-in21k-ft-in1k", DEFAULT),
        ("vit-ti16", "vit-ti16.augreg-in21k-ft-in1k-224"),
        ("vit-s32", "vit-s32.augreg-in21k-ft-in1k-224"),
        ("vit-b8", "vit-b8.augreg2-in21k-ft-in1k-224"),
        ("vit-l16-384", "vit-l16.augreg-in21k-ft-in1k-384"),
        ("vit-l32", "vit-l32.orig-in21k-ft-in1k-384"),
        ("vit-h14", "vit-h14.orig-in21k-224"),
        ("google/vit-base-patch16-224", "vit-b16.orig-in21k-ft-in1k-224"),
        ("ViT-B_16-224", "vit-b16.orig-in21k-ft-in1k-224"),
        ("google/vit-base-patch16-384", "vit-b16.orig-in21k-ft-in1k-384"),
        ("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "vit-b16.augreg-in21k-224"),
    ],
)
def test_a_model_is_found_by_any_of_its_names(name: str, model_id: str) -> None:
    assert get_entry(name).id == model_id


def test_vit_b16_is_pinned_as_documented() -> None:
    source = get_entry("vit-b16").sources[0]
    assert (source.kind, source.file, source.size) == ("hf", "model.safetensors", 346284714)
    assert source.sha256 == "32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b"
    assert source.revision == "063c6c38a5d8510b2e57df480445e94b231dad2c"


@pytest.mark.parametrize(
    ("repo", "npz"),
    [
        ("google/vit-base-patch16-224", "imagenet21k%2Bimagenet2012/ViT-B_16-224.npz"),
        ("google/vit-base-patch16-384", "imagenet21k%2Bimagenet2012/ViT-B_16.npz"),
        ("google/vit-base-patch16-224-in21k", "imagenet21k/ViT-B_16.npz"),
    ],
)
def test_googles_repositories_hold_the_weights_of_these_files(repo: str, npz: str) -> None:
    urls = [source.url for source in get_entry(repo).sources]
    assert f"https://storage.googleapis.com/vit_models/{npz}" in urls


def test_sources_say_what_differs_from_the_first() -> None:
    first, *others = get_entry("vit-b16.orig-in21k-224").sources
    assert first.relation == "subset"
    assert first.config == {}
    by_format = {source.format: source for source in others if source.kind == "hf" or source.format == "vit_jax"}
    assert by_format["timm"].config == {"representation_dim": 0}
    assert by_format["vit_jax"].config == {"num_classes": 21843}


@pytest.mark.parametrize(
    ("name", "repo", "resize", "crop_pct", "params"),
    [
        ("dinov2-s14", "facebook/dinov2-small", "bicubic", 0.875, 22056192),
        ("facebook/dinov2-small", "facebook/dinov2-small", "bicubic", 0.875, 22056192),
        ("vit_small_patch14_dinov2", "facebook/dinov2-small", "bicubic", 0.875, 22056192),
        ("vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m",
         "bicubic-antialias", 1.0, 22056192),
        ("timm/vit_base_patch16_siglip_gap_224.v2_webli", "timm/vit_base_patch16_siglip_gap_224.v2_webli",
         "bicubic-antialias", 1.0, 85797120),
    ],
)  # fmt: skip
def test_naming_a_copy_asks_for_it(name: str, repo: str, resize: str, crop_pct: float, params: int) -> None:
    """Its own repository, or timm's full name; any other name leaves the choice to the registry."""
    entry = get_entry(name)
    assert entry.sources[0].repo == repo
    assert (entry.config.resize, entry.preprocess["crop_pct"], entry.params) == (resize, crop_pct, params)
    assert {source.repo for source in entry.sources} == {source.repo for source in get_entry(entry.id).sources}


def test_a_name_of_several_models_lists_them() -> None:
    with pytest.raises(ModelNotFoundError, match="names 4 models") as error:
        get_entry("ViT-B_16")
    models = ("orig-in21k-224", "orig-in21k-ft-in1k-384", "gsam-in1k-224", "sam-in1k-224")
    for model_id in (f"vit-b16.{name}" for name in models):
        assert model_id in error.value.hint


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("vit-b61", "vit-b16"),
        ("vit_base_patch16_242", "vit_base_patch16_224"),
        ("google/vit-base-patch16-244", "google/vit-base-patch16-224"),
        ("vit-l16.augreg", "vit-l16.augreg-in21k-224"),
    ],
)
def test_a_mistyped_name_gets_up_to_five_suggestions(typed: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError) as error:
        get_entry(typed)
    suggested = error.value.hint.removeprefix("did you mean ").removesuffix("?").split(", ")
    assert meant in suggested
    assert len(suggested) <= 5
    assert len({get_entry(name).id for name in suggested}) == len(suggested)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ViT-B/16", "vit-b16"), ("vitb16", "vit-b16"), ("DINOv2-S/14", "dinov2-s14"), ("Siglip B16", "siglip-b16")],
)
def test_a_name_as_papers_write_it_is_told(typed: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"did you mean {meant}[?]"):
        get_entry(typed)
    with pytest.raises(ModelNotFoundError, match=f"did you mean {meant}[?]"):
        locate(typed)


@pytest.mark.parametrize("name", ["someone/vit-b16", "google/vit-b", "hf://ViT-B/16", "vit-b16/vit-b16", "a/b@v1"])
def test_a_repository_stays_one(name: str) -> None:
    assert [source.kind for source in locate(name)[1]] == ["hf"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "'resnet50' is not a Vision Transformer"),
        ("ResNet-50", "is not a Vision Transformer"),
        ("convnext_base", "is not a Vision Transformer"),
        ("swin_tiny_patch4_window7_224", "is not a plain Vision Transformer"),
    ],
)
def test_other_architectures_are_told(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message) as error:
        get_entry(name)
    assert "vit-hub list" in error.value.hint


@pytest.mark.parametrize("name", ["", "qqqqqqqqqq"])
def test_a_name_like_no_other_points_to_the_list(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="vit-hub list"):
        get_entry(name)


def test_list_models_filters_by_any_name() -> None:
    everything = list_models()
    assert DEFAULT in everything
    assert len(set(everything)) == len(everything)
    assert DEFAULT in list_models("VIT_BASE_PATCH16_224")
    assert "vit-h14.orig-in21k-224" in list_models("google/*")
    assert list_models("*no-such-model*") == []
    assert list_models("*b16*") == list_models("b16") == [name for name in everything if name in list_models("*b16*")]


def test_words_are_parts_of_names_in_any_order() -> None:
    found = list_models("dinov2 base")
    assert "dinov2-b14.lvd142m-518" in found
    assert found == list_models("BASE dinov2") == list_models(("base", "DINOv2"))
    assert found == [name for name in list_models("dinov2") if name in list_models("base")]
    assert list_models("vit_base_patch16_clip") == list_models("vit-base-patch16-clip") != []
    # A pattern stands for a whole name, a word for a part of one.
    assert list_models("vit-b1?") == [DEFAULT]
    assert set(list_models("google/* 384")) < set(list_models("google/*"))


def facts(name: str) -> dict[str, Any]:
    """Return what conditions are about, from the whole entry."""
    entry = get_entry(name)
    top1 = [item.value for item in entry.metrics if item.name.startswith("imagenet-1k top-1")]
    return {
        "params": entry.params,
        "gflops": forward_flops(entry.config) / 1e9,
        "image-size": entry.config.image_size[0] * entry.config.image_size[1],
        "top1": top1[0] if top1 else None,
        "name": name,
        "entry": entry,
    }


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    return {name: facts(name) for name in list_models()}


CONDITIONS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({"family": "augreg"}, lambda it: it["entry"].family == "augreg"),
    ({"license": "MIT"}, lambda it: it["entry"].license == "mit"),
    ({"license": "commercial"}, lambda it: not it["entry"].restricted and it["entry"].license != "unknown"),
    ({"max_params": 6_355_944}, lambda it: it["params"] <= 6_355_944),
    ({"max_gflops": 10}, lambda it: it["gflops"] <= 10),
    ({"min_top1": 85.108}, lambda it: (it["top1"] or 0) >= 85.108),
    ({"head": True}, lambda it: it["entry"].config.num_classes > 0),
    ({"head": False}, lambda it: it["entry"].config.num_classes == 0),
    ({"format": "vit_jax"}, lambda it: any(source.format == "vit_jax" for source in it["entry"].sources)),
    ({"image_size": 384}, lambda it: it["entry"].config.image_size == (384, 384)),
    ({"image_size": (1024, 768)}, lambda it: it["entry"].config.image_size == (1024, 768)),
    ({"filter": {"patch_size": 14}}, lambda it: it["entry"].config.patch_size == (14, 14)),
    ({"filter": {"pool": "map", "depth": 24}}, lambda it: it["entry"].config.pool == "map"
     and it["entry"].config.depth == 24),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "holds"), CONDITIONS)
def test_conditions_are_about_recorded_facts(
    known: dict[str, dict[str, Any]], condition: dict[str, Any], holds: Callable[[dict[str, Any]], bool]
) -> None:
    found = list_models(**condition)
    assert found == [name for name, about in known.items() if holds(about)]
    assert 0 < len(found) < len(known)
    assert list_models("vit b16", **condition) == [name for name in found if name in list_models("vit b16")]


@pytest.mark.parametrize("key", SORTS)
def test_sorting_puts_what_is_unknown_last(known: dict[str, dict[str, Any]], key: str) -> None:
    for order, backward in ((key, key == "top1"), (f"-{key}", key != "top1")):
        names = list_models(sort=order)
        values = [known[name][key] for name in names]
        stated = [value for value in values if value is not None]
        assert values == sorted(stated, reverse=backward) + [None] * (len(values) - len(stated))
        assert set(names) == set(known)
        assert list_models(sort=order, limit=3) == names[:3]


def test_what_cannot_be_sorted_or_filtered_by() -> None:
    with pytest.raises(ConfigError, match="not sorted by 'size'.*params"):
        list_models(sort="size")
    with pytest.raises(ConfigError, match="no field 'patchsize'"):
        list_models(filter={"patchsize": 14})


def test_get_config_is_the_entrys() -> None:
    config = get_config("vit-ti16")
    assert isinstance(config, ViTConfig)
    assert (config.embed_dim, config.num_heads, config.num_classes) == (192, 3, 1000)
    assert config == get_entry("vit-ti16").config


def test_entries_cannot_be_changed_behind_the_registrys_back() -> None:
    entry = get_entry("vit-b16")
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.license = "mine"  # type: ignore[misc]
    entry.preprocess["crop_pct"] = 0.1
    assert get_entry("vit-b16").preprocess["crop_pct"] == 0.9


def test_looking_up_a_model_imports_no_framework() -> None:
    code = (
        "import sys; from vit_hub.registry import *; list_models('*'); get_entry('vit-b16');"
        "print([m for m in ('torch', 'numpy', 'transformers', 'huggingface_hub', 'timm') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
