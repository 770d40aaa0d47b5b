"""torchao quantizes the linear layers of every kind of model, and their quantized weights are what is computed with."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from kinds import KINDS
from small_models import random_images, random_model, relative_error
from torch import nn

torchao = pytest.importorskip("torchao.quantization", reason="pip install 'vit-hub[test]'")


def quantized(model: nn.Module, config: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = copy.deepcopy(model)
        torchao.quantize_(found, config)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_eight_bits_are_used_everywhere(kind: str) -> None:
    model, images = random_model(KINDS[kind]), random_images(KINDS[kind])
    found = quantized(model, torchao.Int8WeightOnlyConfig())
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        for name in names:
            weight = found.get_submodule(name).weight
            assert type(weight) is not nn.Parameter, name
            rounded.get_submodule(name).weight.copy_(weight.dequantize())
        assert relative_error(found(images), rounded(images)) <= 1e-4
        assert relative_error(found(images), model(images)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_quantization_stays_near(kind: str) -> None:
    model, images = random_model(KINDS[kind]), random_images(KINDS[kind])
    with torch.no_grad():
        found = quantized(model, torchao.Int8DynamicActivationInt8WeightConfig())(images)
        assert 1e-5 < relative_error(found, model(images)) <= 0.2
