"""Every Vision Transformer that timm can build by a name: the same numbers and tensors, or a reason why not."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
import timm
import torch
from small_models import random_images, randomise, relative_error

import vit_hub
from vit_hub.errors import VitHubError
from vit_hub.interop import timm_model

PREFIXES = ("vit_*", "deit*", "beit*", "eva*", "flexivit*", "samvit*", "naflexvit*", "aimv2*", "sapiens*")
NAMES = sorted({name for prefix in PREFIXES for name in timm.list_models(prefix)})
# Names that are refused, and why.
REASONS = {
    "vit_*_mci_*": "a stem of MobileOne blocks",
    "vit_*_resnet*d_*": "a ResNet with batch norms",
}
# What timm computes in float32 whatever the model is in: rotations, offsets, the factor of differential attention.
EXACT, SINGLE = 1e-10, 1e-5


def small(name: str) -> Any:
    """The architecture with two blocks of three heads, on a grid of 4 by 4 patches."""
    options: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    if "_r_s" in name or "_r26_s" in name or "_r50_s" in name:  # a ResNet before the patches
        options |= {"img_size": 64}
    else:
        options |= {"img_size": 16, "patch_size": 4}
    if "radio" in name and name.startswith("naflexvit"):
        options |= {"pos_embed_grid_size": (8, 8)}  # of 128 x 128, whose attention takes most of a minute
    if "sapiens2" in name:
        options["num_kv_heads"] = (3, 1)  # of each block
    model = timm.create_model(name, pretrained=False, **options).double().eval()
    randomise(model)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_timms_gives_the_same_numbers_and_tensors_or_a_reason(name: str) -> None:
    reason = next((reason for pattern, reason in REASONS.items() if fnmatch.fnmatch(name, pattern)), None)
    try:
        theirs = small(name)
        ours = vit_hub.from_module(theirs)
    except (VitHubError, TypeError, AssertionError):
        assert reason, name
        return
    assert not reason, f"{name} is computed"
    images, config = random_images(ours.config, torch.float64), ours.config
    error = SINGLE if config.rope or config.rel_pos_mlp or config.differential else EXACT
    tensors, wanted = vit_hub.to_timm(ours), theirs.state_dict()
    assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in wanted.items()}
    assert all(torch.equal(value, wanted[key]) for key, value in tensors.items())
    ours.passport = None
    again = timm_model(ours)
    with torch.inference_mode():
        expected = theirs(images)
        assert relative_error(ours(images), expected) <= error
        assert relative_error(ours.forward_features(images), theirs.forward_features(images)) <= error
        assert relative_error(again(images), expected) <= error
