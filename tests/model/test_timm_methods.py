"""The methods that users of timm and DINOv2 call."""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from kinds import KINDS
from small_models import configs, examples, random_images, random_model, randomise, relative_error
from timm.models._features import FeatureInfo
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

import vit_hub

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_classes": 5,
}


@examples(60)
@given(config=configs())
def test_features_and_head_are_the_forward_pass(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    tokens = model.forward_features(images)
    assert relative_error(model.forward_head(tokens), model(images)) <= 1e-12
    before = model.forward_head(tokens, pre_logits=True)
    if config.num_classes:
        assert before.shape == (len(images), model.head_hidden_size)
        heads = model.get_classifier()
        if isinstance(heads, nn.Module):
            assert relative_error(heads(before), model(images)) <= 1e-12
    if config.pool == "cls_dist":
        assert relative_error(before, tokens[:, :2].mean(dim=1) if config.final_norm == "before" else before) <= 1e-12
        assert relative_error(before, model.embed(images)) <= 1e-12
    assert model.num_classes == config.num_classes
    assert model.num_features == config.embed_dim


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"distilled": True, "pool": "cls_dist"},
        {"head_input": "cls_avg"},
        {"num_classes": 0},
        {"representation_dim": 8},
    ],
    ids=["plain", "distilled", "wide", "headless", "representation"],
)
def test_a_classifier_is_reset_and_saved(fields: dict[str, object], tmp_path: Path) -> None:
    model = random_model(vit_hub.ViTConfig(**{**SMALL, **fields}))
    images = random_images(model.config)
    model.reset_classifier(7)
    assert model.num_classes == model.config.num_classes == 7
    logits = model(images).detach()
    assert logits.shape == (len(images), 7)
    assert logits.std() > 0
    again = vit_hub.load(model.save(tmp_path / "m.safetensors"))
    torch.testing.assert_close(again(images), logits, rtol=1e-5, atol=1e-6)
    if model.config.head_input == "pooled":
        model.reset_classifier(0)
        assert model.num_classes == model.config.num_classes == 0
        assert vit_hub.load(model.save(tmp_path / "n.safetensors")).config.num_classes == 0
    else:
        with pytest.raises(vit_hub.ConfigError, match="head_input"):
            model.reset_classifier(0)


def test_timms_layer_decay_gives_each_block_its_rate() -> None:
    from timm.optim import param_groups_layer_decay

    model = random_model(vit_hub.ViTConfig(**SMALL, num_registers=2))
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    named = dict(model.named_parameters())
    assert set(found) == {id(parameter) for parameter in named.values()}
    rates = {name: found[id(parameter)]["lr_scale"] for name, parameter in named.items()}
    assert rates["cls_token"] == rates["patch_embed.proj.weight"] < rates["blocks.0.norm1.weight"]
    assert rates["blocks.0.attn.qkv.weight"] < rates["blocks.1.attn.qkv.weight"] < rates["blocks.2.attn.qkv.weight"]
    assert rates["blocks.2.mlp.fc2.weight"] == rates["norm.weight"] < rates["head.weight"] == 1
    for name in ("cls_token", "pos_embed", "reg_token", "blocks.0.norm1.weight", "head.bias"):
        assert found[id(named[name])]["weight_decay"] == 0
    assert found[id(named["blocks.0.attn.qkv.weight"])]["weight_decay"] == 0.1


def test_checkpointing_changes_no_gradient() -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL), dtype=torch.float64)
    other, images = copy.deepcopy(model), random_images(model.config, torch.float64)
    other.set_grad_checkpointing()
    for each in (model, other):
        each(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-12)


def test_intermediate_layers_are_dinov2s() -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL, num_registers=2))
    images = random_images(model.config)
    with torch.no_grad():
        tokens = model.forward_features(images)
        (patches,) = model.get_intermediate_layers(images)
        assert torch.equal(patches, tokens[:, 3:])
        maps, cls = model.get_intermediate_layers(images, [2], reshape=True, return_class_token=True)[0]
        assert torch.equal(maps, patches.transpose(1, 2).reshape(len(images), 16, 4, 4))
        assert torch.equal(cls, tokens[:, 0])
        first, last = model.get_intermediate_layers(images, [0, 2], norm=False)
        assert torch.equal(torch.stack((first, last)), torch.stack(model.forward_intermediates(images, [0, 2], False)))
    without = random_model(vit_hub.ViTConfig(**SMALL, class_token=False, pool="avg"))
    with pytest.raises(vit_hub.ConfigError, match="class token"):
        without.get_intermediate_layers(images, return_class_token=True)


INTERMEDIATES: dict[str, tuple[type, dict[str, Any]]] = {
    "plain": (TimmVisionTransformer, {}),
    "registers": (TimmVisionTransformer, {"reg_tokens": 2, "pre_norm": True}),
    "no tokens": (TimmVisionTransformer, {"class_token": False, "global_pool": "avg"}),
    "norm after pooling": (TimmVisionTransformer, {"global_pool": "avg", "fc_norm": True}),
    "eva": (Eva, {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": True}),
    "mixed rotations": (Eva, {"use_rot_pos_emb": True, "rope_type": "mixed"}),
}


@pytest.mark.parametrize("name", INTERMEDIATES)
def test_intermediates_are_timms_with_all_its_arguments(name: str) -> None:
    cls, arguments = INTERMEDIATES[name]
    theirs = cls(img_size=(16, 12), patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5, **arguments)
    randomise(theirs.eval())
    ours, images = vit_hub.from_module(theirs), torch.randn(2, 3, 16, 12)
    accepted = inspect.signature(theirs.forward_intermediates).parameters
    choices: dict[str, tuple[Any, ...]] = {
        "indices": (None, 1, 2, [0, 2], (1,), [-2]),
        "return_prefix_tokens": (False, ours.config.num_prefix_tokens > 0),
        "norm": (False, True),
        "stop_early": (False, True),
        "output_fmt": ("NCHW", "NLC"),
        "intermediates_only": (False, True),
        "output_dict": (False, True) if "output_dict" in accepted else (False,),
    }
    for values in itertools.product(*choices.values()):
        call = dict(zip(choices, values, strict=True))
        called = {key: value for key, value in call.items() if key in accepted}
        with torch.no_grad():
            found, wanted = ours.forward_intermediates(images, **call), theirs.forward_intermediates(images, **called)
        assert type(found) is type(wanted), call
        if isinstance(wanted, dict):
            assert found.keys() == wanted.keys()
            found, wanted = [found[key] for key in wanted], list(wanted.values())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, call=call: f"{call}: {text}")


def test_timms_feature_extractor_takes_the_model() -> None:
    from timm.models._features import FeatureGetterNet

    model = random_model(vit_hub.ViTConfig(**SMALL))
    model.feature_info = FeatureInfo(
        [{"module": f"blocks.{i}", "num_chs": 16, "reduction": 4} for i in range(3)], (0, 2)
    )
    images = random_images(model.config)
    maps = FeatureGetterNet(model, out_indices=(0, 2))(images)
    assert [tuple(each.shape) for each in maps] == [(2, 16, 4, 4)] * 2


def test_a_format_of_outputs_that_is_none_is_refused() -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL))
    with pytest.raises(vit_hub.ConfigError, match="output_fmt"):
        model.forward_intermediates(random_images(model.config), output_fmt="NHWC")


def test_a_new_classifier_has_no_names_of_old_classes(tmp_path: Path) -> None:
    model = vit_hub.load("vit-nano-digits")
    assert vit_hub.class_names(model)
    model.reset_classifier(10)
    assert vit_hub.class_names(model) is None
    assert vit_hub.class_names(vit_hub.load(model.save(tmp_path / "m.safetensors"))) is None


def test_an_image_that_stands_for_a_video_has_maps_of_all_its_frames() -> None:
    config = KINDS["video table"]
    model = random_model(config)
    images = torch.randn(2, 3, *config.image_size)
    (maps,) = model.forward_intermediates(images, 1)
    tubelets = config.num_tubelets
    assert maps.shape == (2, config.embed_dim, tubelets, *config.grid_size)
    (layer,) = model.get_intermediate_layers(images, 1, reshape=True)
    assert layer.shape == maps.shape


def test_every_parameter_has_a_group_of_its_depth() -> None:
    model = random_model(KINDS["detections"])
    groups = model.group_matcher()
    stem = re.compile(groups["stem"])
    early = [name for name, _ in model.named_parameters() if stem.match(name)]
    assert {"cls_token", "det_token", "pos_embed", "mid_pos_embed", "patch_embed.proj.weight"} <= {*early}
