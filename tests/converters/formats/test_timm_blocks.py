"""timm's other blocks in files: which formats hold them, and what a file without a config says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import random_images, random_model, relative_error

import vit_hub
from vit_hub.converters import format_names
from vit_hub.errors import UnsupportedByFormatError
from vit_hub.model.config import RelPosMlp

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48, "num_classes": 5,
}  # fmt: skip
NO_TABLE: dict[str, Any] = {"pos_embed": "none", "pos_embed_prefix": False}
NO_CLASS: dict[str, Any] = {"class_token": False, "pool": "avg", "final_norm": "after"}
# Of each kind one with, and one without a class token, near to what other projects have.
KINDS: dict[str, dict[str, Any]] = {
    "post": {"norm_position": "post"},
    "post, average": {"norm_position": "post", "pos_embed_prefix": False, **NO_CLASS},
    "post, separate biases": {"norm_position": "post", "qkv_bias": "qv"},
    "differential": {"differential": True},
    "parallel": {"parallel": "separate", "layer_scale": True},
    "parallel, joint": {"parallel": "joint", "differential": True, "qkv_bias": False},
    "branches": {"branches": 2, "layer_scale": True},
    "network": {**NO_TABLE, "rel_pos": "block", "rel_pos_mlp": RelPosMlp(hidden_dim=8)},
    "network, shared": {**NO_TABLE, **NO_CLASS, "rel_pos": "shared", "rel_pos_mlp": RelPosMlp(scale="swin")},
    "network, post": {**NO_TABLE, "rel_pos": "block", "rel_pos_mlp": RelPosMlp(), "norm_position": "post"},
    "table": {**NO_TABLE, **NO_CLASS, "rel_pos": "block", "layer_scale": True},
    "table, shared": {**NO_TABLE, **NO_CLASS, "rel_pos": "shared", "layer_scale": True},
}
FORMATS = [name for name in format_names() if "-" not in name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_holds_a_block_or_refuses_it(kind: str, tmp_path: Path) -> None:
    config = vit_hub.ViTConfig(**SMALL | KINDS[kind])
    model, images = random_model(config), random_images(config)
    source, wanted, written = model.save(tmp_path / "model.safetensors"), model(images), set()
    for name in FORMATS:
        try:
            report = vit_hub.convert(source, tmp_path / name, to=name)
        except UnsupportedByFormatError:
            continue
        written.add(name)
        again = vit_hub.load(report.path)
        assert relative_error(again(images), wanted) <= 1e-5, name
    assert written == {"canonical", "timm"}


@pytest.mark.parametrize("kind", ["post", "post, separate biases"])
def test_a_bare_file_that_would_be_read_otherwise_is_not_written(kind: str, tmp_path: Path) -> None:
    """Without a config file, nothing tells these models from those with norms before the layers."""
    model = random_model(vit_hub.ViTConfig(**SMALL | KINDS[kind]))
    source = model.save(tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedByFormatError, match="norm_position: 'post' would be read back as 'pre'") as error:
        vit_hub.convert(source, tmp_path / "bare.safetensors", to="timm")
    assert "a folder, with timm's config file, can" in error.value.hint
    report = vit_hub.convert(source, tmp_path / "folder", to="timm")
    assert vit_hub.load(report.path).config.norm_position == "post"


@pytest.mark.parametrize(("kind", "other"), [("post, average", "pre"), ("network, post", "pre")])
def test_what_a_bare_file_means_can_be_given(kind: str, other: str, tmp_path: Path) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL | KINDS[kind] | {"qkv_bias": False}))
    source, bare = model.save(tmp_path / "model.safetensors"), tmp_path / "bare.safetensors"
    vit_hub.convert(source, bare, to="timm")
    heads = {"num_heads": 2}
    with pytest.warns(UserWarning, match="norm_position=post is a guess"):
        again = vit_hub.load(bare, overrides=heads)
    images = random_images(model.config)
    assert torch.equal(again(images), model(images))
    assert vit_hub.open_checkpoint(bare, overrides={**heads, "norm_position": "post"}).warnings == ()
    changed = vit_hub.load(bare, overrides={**heads, "norm_position": other})
    assert changed.config == again.config.replace(norm_position=other)
