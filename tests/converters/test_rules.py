"""The rule language by itself: layouts and tables that are written down once and read in both directions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples

from vit_hub.converters.formats import all_formats
from vit_hub.converters.rules.format import Format
from vit_hub.converters.rules.layouts import rearrange
from vit_hub.converters.rules.table import Drop, Names, Reading, Table, rule
from vit_hub.converters.tensors import LazyTensor, concat, from_array, split, stack, unstack
from vit_hub.errors import CheckpointError, ConfigError
from vit_hub.model.config import ViTConfig


def tensor(*shape: int, start: int = 0) -> LazyTensor:
    """Values that tell where each of them was."""
    return from_array(np.arange(start, start + math.prod(shape), dtype=np.int32).reshape(shape))


def values(item: LazyTensor) -> np.ndarray:
    found = item.read()
    assert found.shape == item.shape
    return found


def same(first: LazyTensor, second: LazyTensor) -> bool:
    return first.dtype == second.dtype and np.array_equal(values(first), values(second))


def unread(*shape: int) -> LazyTensor:
    """A tensor that a plan may describe but not read."""

    def read() -> Any:
        raise AssertionError("read while planning")

    return LazyTensor("F32", shape, read)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A layout over some axes, in any order and grouping on each side, and the sizes of its axes."""
    names = draw(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=4, unique=True))
    sizes = {name: draw(st.integers(1, 4)) for name in names}

    def side() -> str:
        order = draw(st.permutations(names))
        parts: list[str] = []
        while order:
            count = draw(st.integers(1, len(order)))
            group, order = order[:count], order[count:]
            parts.append(f"({' '.join(group)})" if count > 1 else group[0])
            if draw(st.booleans()):
                parts.append("1")
        return " ".join(parts)

    return f"{side()} -> {side()}", sizes


def shape_of(side: str, sizes: dict[str, int]) -> tuple[int, ...]:
    groups = side.replace("(", "").split(")") if "(" not in side else None
    if groups is not None:
        return tuple(1 if name == "1" else sizes[name] for name in side.split())
    shape: list[int] = []
    for index, part in enumerate(side.replace(")", "(").split("(")):
        names = part.split()
        if index % 2:
            shape.append(math.prod(sizes[name] for name in names))
        else:
            shape += [1 if name == "1" else sizes[name] for name in names]
    return tuple(shape)


@examples(200)
@given(case=layouts())
def test_a_layout_read_from_right_to_left_is_the_inverse(case: tuple[str, dict[str, int]]) -> None:
    layout, sizes = case
    left, right = (part.strip() for part in layout.split("->"))
    original = tensor(*shape_of(left, sizes))
    changed = rearrange(original, layout, sizes)
    assert changed.shape == shape_of(right, sizes)
    assert same(rearrange(changed, layout, sizes, inverse=True), original)
    assert sorted(values(changed).ravel()) == sorted(values(original).ravel())


@examples(100)
@given(case=layouts(), data=st.data())
def test_one_axis_of_a_group_may_be_left_to_the_shape(case: tuple[str, dict[str, int]], data: st.DataObject) -> None:
    layout, sizes = case
    left, _ = layout.split("->")
    free = data.draw(st.sampled_from(sorted(sizes)))
    known = {name: size for name, size in sizes.items() if name != free}
    original = tensor(*shape_of(left.strip(), sizes))
    assert same(rearrange(original, layout, known), rearrange(original, layout, sizes))


@pytest.mark.parametrize(
    ("layout", "shape", "sizes", "wanted"),
    [
        ("i o -> o i", (2, 3), {}, lambda x: x.T),
        ("p q c d -> d c p q", (2, 3, 4, 5), {}, lambda x: x.transpose(3, 2, 0, 1)),
        ("d h e -> (h e) d", (6, 2, 3), {}, lambda x: x.reshape(6, 6).T),
        ("h e d -> d (h e)", (2, 3, 6), {}, lambda x: x.reshape(6, 6).T),
        ("(h e) -> h e", (6,), {"h": 3}, lambda x: x.reshape(3, 2)),
        ("1 1 1 d -> d", (1, 1, 1, 4), {}, lambda x: x.reshape(4)),
        ("d -> 1 1 d", (4,), {}, lambda x: x.reshape(1, 1, 4)),
        ("(p q c) d -> d c p q", (12, 5), {"p": 2, "q": 2}, lambda x: x.reshape(2, 2, 3, 5).transpose(3, 2, 0, 1)),
        ("", (2, 3), {}, lambda x: x),
    ],
)
def test_layouts_of_real_formats(layout: str, shape: tuple[int, ...], sizes: dict[str, int], wanted: Any) -> None:
    original = tensor(*shape)
    assert np.array_equal(values(rearrange(original, layout, sizes)), wanted(values(original)))


@pytest.mark.parametrize(
    ("layout", "shape", "sizes"),
    [
        ("i o -> o i", (2, 3, 4), {}),
        ("i o -> o i", (6,), {}),
        ("1 d -> d", (2, 4), {}),
        ("(h e) d -> h e d", (7, 2), {"h": 2}),
        ("(h e) d -> h e d", (6, 2), {}),
        ("h e -> (h e)", (3, 2), {"h": 2}),
    ],
)
def test_a_shape_that_does_not_fit_its_layout_is_an_error(
    layout: str, shape: tuple[int, ...], sizes: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"shape|axes"):
        rearrange(unread(*shape), layout, sizes)


@pytest.mark.parametrize("layout", ["a b -> a", "a -> a b", "a a -> a a", "a b -> a c"])
def test_a_layout_names_every_axis_once_on_each_side(layout: str) -> None:
    with pytest.raises(ValueError, match="does not name every axis once"):
        rearrange(unread(2, 2), layout, {})


@examples(60)
@given(
    shapes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    rest=st.lists(st.integers(1, 3), max_size=2),
    count=st.integers(1, 4),
)
def test_joins_and_cuts_are_inverses(shapes: list[int], rest: list[int], count: int) -> None:
    parts = [tensor(size, *rest, start=100 * index) for index, size in enumerate(shapes)]
    whole = concat(parts)
    assert np.array_equal(values(whole), np.concatenate([values(part) for part in parts]))
    unit = math.gcd(*shapes)
    assert all(map(same, split(whole, [size // unit for size in shapes]), parts))
    layers = [tensor(2, *rest, start=100 * index) for index in range(count)]
    stacked = stack(layers)
    assert stacked.shape == (count, 2, *rest)
    assert all(map(same, unstack(stacked), layers))


def test_parts_that_do_not_belong_together_are_not_joined_or_cut() -> None:
    with pytest.raises(ValueError, match="cannot join"):
        concat([unread(2, 3), unread(2, 4)])
    with pytest.raises(ValueError, match="cannot join"):
        concat([unread(2), tensor(2)])
    for shape, weights in (((7, 2), (1, 1)), ((2,), (1, 1, 1)), ((), (1, 1))):
        with pytest.raises(ValueError, match="cannot cut"):
            split(unread(*shape), weights)
    with pytest.raises(ValueError, match="cannot reshape"):
        unread(2, 3).reshape((4, 2))


# A table with every kind of rule.
RULES = (
    rule("cls_token", "${root}cls", "1 1 d -> 1 1 d", "d -> 1 1 d", "1 d -> 1 1 d"),
    rule("mask_token", "${root}mask", carried=True),
    rule("blocks.{i}.norm.weight", "${root}layer_{i}/scale"),
    rule("blocks.{i}.qkv.weight", tuple(f"${{root}}layer_{{i}}/{part}/kernel" for part in "qkv"), "d h e -> (h e) d"),
    rule(("blocks.{i}.gate", "blocks.{i}.value"), "${root}layer_{i}/packed", weights=(1, 2)),
    rule("stages.{s}.blocks.{u}.weight", "${root}stage{s+1}/unit{u+1}"),
    rule("blocks.{i}.out.weight", "${root}stacked/out", "i o -> o i"),
    rule("pre_logits.weight", "${root}pooler", unless="${root}head"),
    rule("pooler.weight", "${root}pooler", carried=True),
    rule("head.weight", "${root}head"),
)
DROPS = (Drop(r"${root}text/.*", "text tower"), Drop(r".*counter", "a counter"))
TABLE = Table(RULES, DROPS, {"root": "vit."})
SIZES = {"h": 2}


def source(**changes: LazyTensor) -> dict[str, LazyTensor]:
    layers = {
        name: item
        for i in range(3)
        for name, item in {
            f"vit.layer_{i}/scale": tensor(4, start=i),
            **{f"vit.layer_{i}/{part}/kernel": tensor(4, 2, 2, start=100 * i + ord(part)) for part in "qkv"},
            f"vit.layer_{i}/packed": tensor(6, 5, start=i),
        }.items()
    }
    units = {f"vit.stage{s}/unit{u}": tensor(2, start=10 * s + u) for s in (1, 2) for u in (1, 2, 3)}
    rest = {
        "vit.cls": tensor(1, 1, 4),
        "vit.mask": tensor(4),
        "vit.stacked/out": tensor(3, 4, 2),
        "vit.head": tensor(3, 4),
    }
    return layers | units | rest | changes


def read(found: dict[str, LazyTensor]) -> Reading:
    return TABLE.read(found, SIZES)


def test_a_table_read_and_written_gives_the_source_back() -> None:
    original = source()
    reading = read(original)
    assert not reading.unknown
    assert not reading.dropped
    foreign, left = TABLE.write(reading.tensors, SIZES)
    assert not left
    assert foreign.keys() == original.keys()
    assert all(same(foreign[name], original[name]) for name in original)


def test_names_indices_joins_cuts_and_stacks_are_resolved() -> None:
    original = source()
    reading = read(original)
    found = reading.tensors
    q, k, v = (values(original[f"vit.layer_1/{part}/kernel"]).reshape(4, 4).T for part in "qkv")
    assert np.array_equal(values(found["blocks.1.qkv.weight"]), np.concatenate((q, k, v)))
    assert reading.origin["blocks.1.qkv.weight"] == tuple(f"vit.layer_1/{part}/kernel" for part in "qkv")
    packed = values(original["vit.layer_2/packed"])
    assert np.array_equal(values(found["blocks.2.gate"]), packed[:2])
    assert np.array_equal(values(found["blocks.2.value"]), packed[2:])
    assert np.array_equal(values(found["blocks.2.out.weight"]), values(original["vit.stacked/out"])[2].T)
    assert same(found["stages.0.blocks.2.weight"], original["vit.stage1/unit3"])
    assert reading.carried == ["mask_token"]


def test_nothing_is_read_before_it_is_asked_for() -> None:
    blind = {name: unread(*item.shape) for name, item in source().items()}
    foreign, _ = TABLE.write(read(blind).tensors, SIZES)
    assert {name: item.shape for name, item in foreign.items()} == {name: item.shape for name, item in blind.items()}


@examples(40)
@given(order=st.permutations(sorted(source())))
def test_the_order_of_the_source_does_not_matter(order: list[str]) -> None:
    original = source()
    reading = read({name: original[name] for name in order})
    wanted = read(original)
    assert reading.tensors.keys() == wanted.tensors.keys()
    assert all(same(reading.tensors[name], wanted.tensors[name]) for name in wanted.tensors)
    foreign, _ = TABLE.write(reading.tensors, SIZES)
    assert all(same(foreign[name], original[name]) for name in original)


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_an_alternative_shape_is_read_and_recorded(shape: tuple[int, ...]) -> None:
    odd = tensor(*shape)
    reading = read(source(**{"vit.cls": odd}))
    assert reading.tensors["cls_token"].shape == (1, 1, 4)
    assert reading.shapes == {"vit.cls": shape}
    foreign, _ = TABLE.write(reading.tensors, SIZES)
    assert same(foreign["vit.cls"].reshape(shape), odd)
    assert read(source()).shapes == {}


def test_a_rule_is_out_of_force_beside_the_tensor_it_names() -> None:
    both = read(source(**{"vit.pooler": tensor(2)}))
    assert "pre_logits.weight" not in both.tensors
    assert both.carried == ["mask_token", "pooler.weight"]
    without = source(**{"vit.pooler": tensor(2)})
    del without["vit.head"]
    alone = read(without)
    assert "pre_logits.weight" in alone.tensors
    assert alone.carried == ["mask_token"]
    foreign, _ = TABLE.write(alone.tensors, SIZES)
    assert "vit.pooler" in foreign


def test_what_is_dropped_has_its_reason_and_what_is_unknown_is_listed() -> None:
    reading = read(source(**{"vit.text/a": tensor(1), "step counter": tensor(1), "vit.other": tensor(1)}))
    assert reading.dropped == {"vit.text/a": "text tower", "step counter": "a counter"}
    assert reading.unknown == ["vit.other"]
    names = Names(("vit.head", "vit.text/a", "vit.other", "vit.layer_x/scale", "head"))
    assert TABLE.explain(names) == {"vit.head": "rule", "vit.text/a": "drop"}


def test_a_join_with_a_part_missing_is_not_made() -> None:
    part = source()
    del part["vit.layer_1/k/kernel"]
    reading = read(part)
    assert "blocks.1.qkv.weight" not in reading.tensors
    assert set(reading.unknown) == {"vit.layer_1/q/kernel", "vit.layer_1/v/kernel"}
    assert "blocks.0.qkv.weight" in reading.tensors


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit.layer_1/q/kernel", (4, 4)),
        ("vit.layer_1/k/kernel", (4, 3, 2)),
        ("vit.layer_0/packed", (7, 5)),
        ("vit.cls", (2, 4)),
        ("vit.stacked/out", (3, 4)),
        ("vit.stacked/out", ()),
    ],
)
def test_a_shape_that_no_layout_fits_is_an_error_with_the_tensors_name(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError) as error:
        read(source(**{name: unread(*shape)}))
    assert name in error.value.message
    # Of stacked layers, one is described.
    assert any(str(part) in error.value.message for part in (shape, shape[1:])) or "cannot" in error.value.message


def test_parts_of_different_dtype_are_not_joined() -> None:
    mixed = from_array(np.zeros((4, 2, 2), np.float16))
    with pytest.raises(CheckpointError, match=r"layer_1/q/kernel.*cannot join"):
        read(source(**{"vit.layer_1/v/kernel": mixed}))


def test_stacks_of_different_depth_are_not_joined() -> None:
    table = Table((rule("blocks.{i}.qkv", ("all/q", "all/k", "all/v")),))
    with pytest.raises(CheckpointError, match="all/q"):
        table.read({"all/q": unread(3, 2), "all/k": unread(2, 2), "all/v": unread(3, 2)}, {})


def test_what_no_rule_can_write_is_said() -> None:
    tensors = dict(read(source()).tensors)
    tensors["blocks.1.extra"] = tensor(2)
    del tensors["blocks.2.value"]
    foreign, left = TABLE.write(tensors, SIZES)
    assert left == ["blocks.2.gate", "blocks.1.extra"]
    assert "vit.layer_2/packed" not in foreign


def test_names_are_found_by_template_in_their_order() -> None:
    names = Names(("a.1.w", "a.0.w", "a.0.w", "a.x.w", "a_1.w", "a.w"))
    assert list(names) == ["a.1.w", "a.0.w", "a.x.w", "a_1.w", "a.w"]
    assert names.matching("a.{i}.w") == names.matching("a.{i}.w") == ["a.1.w", "a.0.w"]
    assert names.matching("a.w") == ["a.w"]
    assert names.matching("b.{i}") == []


def test_variables_are_literal_and_may_stand_for_several_names() -> None:
    table = Table((rule("a.{i}", "${root}x.{i}"),), (Drop("${root}drop", "so"),), {"root": "m(1).*"})
    names = Names(("m(1).*x.3", "m(1).*drop", "m(1)..x.3"))
    assert table.explain(names) == {"m(1).*x.3": "rule", "m(1).*drop": "drop"}
    several = Table((rule("qkv.{i}", "${part}.{i}"),), (), {"part": "q+k+v"})
    parts = {f"{part}.7": tensor(2, 3, start=ord(part)) for part in "qkv"}
    reading = several.read(parts, {})
    assert reading.tensors["qkv.7"].shape == (6, 3)
    foreign, _ = several.write(reading.tensors, {})
    assert all(same(foreign[name], item) for name, item in parts.items())


def test_an_index_of_the_foreign_side_only_is_recorded() -> None:
    """Chunked files (DINOv2's FSDP) number their chunks; the block's own number says the rest."""
    table = Table((rule("blocks.{i}.weight", "blocks.{c}.{i}.weight"),))
    chunked = {f"blocks.{i // 2}.{i}.weight": tensor(2, start=i) for i in range(4)}
    reading = table.read(chunked, {})
    assert sorted(reading.tensors) == [f"blocks.{i}.weight" for i in range(4)]
    foreign, _ = table.write(reading.tensors, {})
    found = {reading.names.get(name, name): item for name, item in foreign.items()}
    assert found.keys() == chunked.keys()
    assert all(same(found[name], chunked[name]) for name in chunked)


@examples(40)
@given(depth=st.integers(1, 12), shape=st.lists(st.integers(1, 3), min_size=2, max_size=2))
def test_any_number_of_layers_is_stacked_and_unstacked_in_order(depth: int, shape: list[int]) -> None:
    table = Table((rule("blocks.{i}.w", "all/w", "a b -> b a"),))
    stacked = tensor(depth, *shape)
    reading = table.read({"all/w": stacked}, {})
    assert len(reading.tensors) == depth
    shuffled = dict(sorted(reading.tensors.items()))  # 0, 1, 10, 11, 2, ...
    foreign, left = table.write(shuffled, {})
    assert not left
    assert same(foreign["all/w"], stacked)


@pytest.mark.parametrize(
    ("limits", "changes", "wanted"),
    [
        ({"num_classes": 0}, {"num_classes": 1}, [("num_classes", "1 is not supported, only 0")]),
        ({"pool": ("cls", "avg")}, {"pool": "map"}, [("pool", "'map' is not supported, only 'cls' or 'avg'")]),
        ({"pool": ("cls", "avg"), "patch_bias": True}, {"pool": "avg"}, []),
        ({"rope": None}, {}, []),
        # Equal, but of another type.
        ({"qkv_bias": 1}, {}, [("qkv_bias", "True is not supported, only 1")]),
        ({"num_registers": (True, False)}, {}, [("num_registers", "0 is not supported, only True or False")]),
        # What a format does not speak of is as in most.
        ({}, {"ffn": "swiglu"}, [("ffn", "'swiglu' is not supported, only 'mlp'")]),
        ({"ffn": ("mlp", "swiglu")}, {"ffn": "swiglu"}, []),
        (
            {},
            {"head_input": "cls_avg", "num_classes": 2},
            [("head_input", "'cls_avg' is not supported, only 'pooled'")],
        ),
    ],
)
def test_limits_name_the_field_the_value_and_the_possible_values(
    limits: dict[str, Any], changes: dict[str, Any], wanted: list[tuple[str, str]]
) -> None:
    fmt = Format(name="some", project="some", rules=(), limits=limits)
    assert fmt.obstacles(ViTConfig(**changes)) == wanted


def test_every_limit_of_a_format_is_a_value_that_its_field_can_have() -> None:
    for fmt in all_formats():
        for name, values in fmt.possible_values().items():
            default = getattr(ViTConfig(), name)
            for value in values:
                assert value is None or isinstance(value, str) or type(value) is type(default), (fmt.name, name)
                try:
                    ViTConfig(**{name: value})
                except ConfigError as error:
                    assert f"{name} must be one of" not in error.message
