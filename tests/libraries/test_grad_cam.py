"""pytorch-grad-cam explains a class of every kind of model from its last block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinds import KINDS
from small_models import random_images, random_model

grad_cam = pytest.importorskip("pytorch_grad_cam", reason="pip install 'vit-hub[test]'")


# Layers side by side have other norms.
TARGETS = [
    (kind, layer)
    for kind, config in KINDS.items()
    for layer in ("norm1", "norm2", "")
    if not (layer and config.branches > 1) and not (layer == "norm2" and config.parallel != "none")
]


@pytest.mark.parametrize(("kind", "layer"), TARGETS)
def test_a_class_is_explained(kind: str, layer: str) -> None:
    model, images = random_model(KINDS[kind]), random_images(KINDS[kind])
    prefix, (rows, columns) = model.config.num_prefix_tokens, model.config.grid_size

    def maps(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, rows, columns)

    # The class token reads patches in the last block's attention only; pooled patches are read behind it.
    pooled = model.config.pool in ("avg", "map")
    target = model.blocks[-1].get_submodule(layer)
    chosen = grad_cam.utils.model_targets.ClassifierOutputTarget(1)
    with grad_cam.GradCAM(model=model, target_layers=[target], reshape_transform=maps) as cam:
        found = cam(input_tensor=images, targets=[chosen] * len(images))
    assert found.shape == (len(images), *images.shape[-2:])
    assert np.isfinite(found).all()
    assert found.any() or (layer != "norm1" and not pooled)
