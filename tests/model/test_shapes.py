"""The table of parts, read in both directions."""

from __future__ import annotations

import re

from hypothesis import given
from small_models import configs, examples, grid_configs

import vit_hub
from vit_hub.model.config import CHOICES
from vit_hub.model.shapes import PARTS, field_of, fields_of, tensor_shapes

# Fields that no tensor shows alone: how tables are computed, pooling that needs no tensors, strides, conventions.
UNSEEN = {"pool", "pos_embed", "num_heads", "pool_mlp_dim", "in_chans", "stem_convs"}


@given(configs())
@examples(200)
def test_shapes_give_the_fields_back_that_decide_them(config: vit_hub.ViTConfig) -> None:
    found = fields_of(tensor_shapes(config))
    if config.num_heads == 1 and config.qk_norm == "rms":  # the norm of one head is that of all
        assert found.pop("qk_norm") == "rms_width"
    wrong = {field: value for field, value in found.items() if field not in UNSEEN and getattr(config, field) != value}
    assert not wrong
    if config.pos_embed == "learned":
        assert found["pos_embed"] == "learned"
    if found.get("qk_norm") in (True, "rms") or config.rel_pos != "none":
        assert found["num_heads"] == config.num_heads
    if config.pool_mlp_dim:
        assert found["pool_mlp_dim"] == config.pool_mlp_dim


@given(grid_configs())
@examples(100)
def test_shapes_tell_the_layers_that_depend_on_the_grid(config: vit_hub.ViTConfig) -> None:
    found = fields_of(tensor_shapes(config))
    for field in ("embed_dim", "depth", "mlp_dim", "ffn", "qkv_bias", "layer_scale", "num_classes", "rel_pos"):
        assert found[field] == getattr(config, field), field
    for field in ("num_detection_tokens", "mid_pos_embed", "pool_depth", "patch_size", "final_norm"):
        assert found[field] == getattr(config, field), field
    for field in ("neck", "merger"):
        group = getattr(config, field)
        assert found.get(field) == (None if group is None else vars(group))


def test_every_condition_is_a_field_and_a_value_that_it_can_have() -> None:
    fields = vars(vit_hub.ViTConfig())
    for part in PARTS:
        for field, wanted in part.when.items():
            assert field in fields, part
            values = wanted if isinstance(wanted, tuple) else (wanted,)
            assert callable(wanted) or set(values) <= {*CHOICES.get(field, (None,))}, part


def test_every_part_names_the_field_that_decides_it() -> None:
    for part in PARTS:
        name = re.sub(r"\{[ij]\}", "3", part.name)
        assert field_of(name) in (*part.when, "depth"), part
