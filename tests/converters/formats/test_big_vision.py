"""Files of big_vision in all its spellings, and vit_jax's hybrids: the numbers of the formulas, the same bytes back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax_reference as reference
import numpy as np
import pytest
import torch
from golden_cases import native_tensors
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples

import vit_hub
from vit_hub.errors import ConfigError

WIDTH, HEADS, HIDDEN, DEPTH, PATCH, CLASSES = 16, 2, 12, 2, 4, 5
PREFIXES = ("", "params/", "opt/target/", "params/img/", "opt/target/img/", "img/")
TABLES = ("pos_embedding", "Transformer/pos_embedding", "Transformer/posembed_input/pos_embedding")
POOLS = {"map": "map", "gap": "avg", "tok": "cls", "0": "first"}
EXACT = 1e-9


def drawn(shapes: dict[str, tuple[int, ...]], half: bool = False) -> dict[str, np.ndarray]:
    """Random parameters in float64 that float32, or bfloat16, holds exactly; scales stay around one."""
    generator = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        values = generator.normal(size=shape) * 0.3 + (1.0 if name.endswith("scale") else 0.0)
        bits = values.astype(np.float32)
        if half:
            bits = (bits.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        made[name] = bits.astype(np.float64)
    return made


def stored(array: np.ndarray, half: bool = False) -> np.ndarray:
    """As the file has it: float32, or the two upper bytes of it as numpy's void."""
    single = array.astype(np.float32)
    return (single.view(np.uint32) >> 16).astype(np.uint16).view("V2") if half else single


def scanned(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All blocks stacked along a leading axis."""
    first = "Transformer/encoderblock_0/"
    kept = {name: value for name, value in arrays.items() if "/encoderblock_" not in name}
    for name in arrays:
        if name.startswith(first):
            layers = [arrays[f"Transformer/encoderblock_{index}/{name[len(first) :]}"] for index in range(DEPTH)]
            kept[f"Transformer/encoderblock/{name[len(first) :]}"] = np.stack(layers)
    return kept


def shapes_of(pool: str, table: str, patches: int, rep_size: int, classes: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embedding/kernel": (PATCH, PATCH, 3, WIDTH), "embedding/bias": (WIDTH,)}
    shapes |= reference.block_shapes(WIDTH, HEADS, HIDDEN, DEPTH)
    if table == "learn":
        shapes["pos_embedding"] = (1, patches, WIDTH)
    if pool == "tok":
        shapes["cls"] = (1, 1, WIDTH)
    if pool == "map":
        shapes |= reference.map_shapes(WIDTH, HEADS, HIDDEN)
    if rep_size:
        shapes |= reference.dense("pre_logits", WIDTH, rep_size)
    return shapes | (reference.dense("head", rep_size or WIDTH, classes) if classes else {})


def images_of(grid: tuple[int, int]) -> np.ndarray:
    """[2, h, w, 3]"""
    return np.random.default_rng(1).normal(size=(2, grid[0] * PATCH, grid[1] * PATCH, 3))


def outputs_of(
    parameters: dict[str, np.ndarray], images: np.ndarray, pool: str, table: str
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and output of the reference: positions are added to the patches before the class token stands there."""
    x = reference.tokens(parameters, images)
    rows, columns = images.shape[1] // PATCH, images.shape[2] // PATCH
    x = x + (reference.sincos2d(rows, columns, WIDTH) if table == "sincos2d" else parameters["pos_embedding"])
    if pool == "tok":
        x = np.concatenate([np.broadcast_to(parameters["cls"], (len(x), 1, WIDTH)), x], axis=1)
    x = reference.forward(parameters, x, DEPTH)
    return x, reference.pool(parameters, x, pool)


def assert_same(path: Path, images: np.ndarray, wanted: tuple[np.ndarray, np.ndarray], options: dict[str, Any]) -> None:
    """Tokens and output of a file are the wanted ones; both compute in float64."""
    model = vit_hub.load(path, overrides=options, dtype="float64")
    with torch.inference_mode():
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        found = model.forward_features(batch).numpy(), model(batch).numpy()
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT * np.abs(theirs).max())


def assert_comes_back(source: Path, options: dict[str, Any]) -> Any:
    """The way through a canonical file needs no hint, and gives the same bytes."""
    middle, back = source.with_name("canonical.safetensors"), source.with_name("back.npz")
    spelling = vit_hub.open_checkpoint(source, overrides=options).format
    report = vit_hub.convert(source, middle, overrides=options)
    vit_hub.convert(middle, back, to=spelling)
    before = native_tensors(source)
    assert native_tensors(back) == {name: value for name, value in before.items() if name not in report.dropped}
    return report


@examples(120)
@given(
    pool=st.sampled_from(sorted(POOLS)),
    table=st.sampled_from(("learn", "learn", "sincos2d")),
    grid=st.sampled_from(((3, 3), (2, 2), (2, 3))),
    rep_size=st.sampled_from((0, 0, WIDTH, 6)),
    classes=st.sampled_from((0, CLASSES)),
    scan=st.booleans(),
    place=st.sampled_from(TABLES),
    inline=st.booleans(),
    prefix=st.sampled_from(PREFIXES),
    half=st.booleans(),
)
def test_a_file_of_any_spelling(
    tmp_path_factory: pytest.TempPathFactory,
    pool: str,
    table: str,
    grid: tuple[int, int],
    rep_size: int,
    classes: int,
    scan: bool,
    place: str,
    inline: bool,
    prefix: str,
    half: bool,
) -> None:
    parameters = drawn(shapes_of(pool, table, grid[0] * grid[1], rep_size, classes), half)
    arrays = scanned(parameters) if scan else dict(parameters)
    if table == "learn":
        arrays[place] = arrays.pop("pos_embedding")
    if inline:
        arrays = {name.removeprefix("MAPHead_0/"): value for name, value in arrays.items()}
    source = tmp_path_factory.mktemp("bv") / "source.npz"
    others = beside(prefix)
    np.savez(source, **{prefix + name: stored(value, half) for name, value in arrays.items()}, **others)

    options: dict[str, Any] = {"pool": "first"} if pool == "0" else {}
    if table == "sincos2d" or grid[0] != grid[1]:
        options["image_size"] = (grid[0] * PATCH, grid[1] * PATCH)
    ckpt = vit_hub.open_checkpoint(source, overrides=options, format="big_vision")
    config = ckpt.config
    assert (config.pool, config.num_heads, config.depth) == (POOLS[pool], HEADS, DEPTH)
    assert (config.act, config.norm_eps, config.final_norm) == ("gelu_tanh", 1e-6, "before")
    assert (config.class_token, config.pos_embed_prefix) == (pool == "tok", False)
    assert config.pos_embed == {"learn": "learned"}.get(table, table)
    assert (config.representation_dim, config.num_classes) == (rep_size, classes)
    assert {tensor.dtype for tensor in ckpt.tensors.values()} == {"BF16" if half else "F32"}
    assert ckpt.dropped.keys() == others.keys()
    assert ckpt.format.partition("-")[0] == "big_vision"

    images = images_of(grid)
    assert_same(source, images, outputs_of(parameters, images, pool, table), options)
    report = assert_comes_back(source, options)
    assert set(report.dropped) == set(others)


def beside(prefix: str) -> dict[str, np.ndarray]:
    """Tensors beside an image tower, and the optimiser's state beside its target."""
    found: dict[str, np.ndarray] = {}
    if prefix.endswith("img/"):
        both = prefix.removesuffix("img/")
        found |= {f"{both}txt/Embed_0/embedding": np.zeros((3, 4), np.float32)}
        found |= {f"{both}txt/Encoder_0/encoderblock_0/LayerNorm_0/scale": np.ones(4, np.float32)}
        found |= {f"{both}{name}": np.zeros(1, np.float32) for name in "tb"}
    if prefix.startswith("opt/"):
        found["opt/state/step"] = np.zeros((), np.int32)
        found["opt/state/param_states/embedding/kernel/grad_ema"] = np.zeros(3, np.float32)
    return found


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    arrays = {f"params/img/{name}": stored(value) for name, value in drawn(shapes_of("map", "learn", 4, 0, 0)).items()}
    np.savez(tmp_path / "two.npz", **arrays, **beside("params/img/"))
    dropped = vit_hub.open_checkpoint(tmp_path / "two.npz").dropped
    assert dropped["params/txt/Embed_0/embedding"] == "text tower"
    assert "temperature or bias" in dropped["params/t"]
    assert "temperature or bias" in dropped["params/b"]


def test_a_locked_image_tower_keeps_its_head(tmp_path: Path) -> None:
    """LiT: the head under img/ maps the image to the space that both towers share."""
    parameters = drawn(shapes_of("tok", "learn", 9, 0, 7))
    arrays = {f"params/img/{name}": stored(value) for name, value in parameters.items()}
    np.savez(tmp_path / "lit.npz", **arrays, **beside("params/img/"))
    images = images_of((3, 3))
    assert vit_hub.open_checkpoint(tmp_path / "lit.npz").config.num_classes == 7
    assert_same(tmp_path / "lit.npz", images, outputs_of(parameters, images, "tok", "learn"), {})


@examples(20)
@given(side=st.integers(2, 4), prefix=st.sampled_from(PREFIXES), half=st.booleans(), scan=st.booleans())
def test_a_naflex_file(
    tmp_path_factory: pytest.TempPathFactory, side: int, prefix: str, half: bool, scan: bool
) -> None:
    """The patch kernel is [p * p * 3, D], rows in the order height, width, channel; the table is a square grid."""
    parameters = drawn(shapes_of("map", "learn", side * side, 0, 0), half)
    arrays = scanned(parameters) if scan else dict(parameters)
    arrays["embedding/kernel"] = arrays["embedding/kernel"].reshape(-1, WIDTH)
    arrays["pos_embedding"] = arrays["pos_embedding"].reshape(side, side, WIDTH)
    source = tmp_path_factory.mktemp("naflex") / "source.npz"
    np.savez(source, **{prefix + name: stored(value, half) for name, value in arrays.items()})
    config = vit_hub.open_checkpoint(source).config
    assert (config.patch_size, config.grid_size) == ((PATCH, PATCH), (side, side))
    assert config.resize == "bilinear-antialias"
    images = images_of((side, side))
    assert_same(source, images, outputs_of(parameters, images, "map", "learn"), {})
    assert_comes_back(source, {})


def test_a_class_row_in_the_table_is_vit_jaxs(tmp_path: Path) -> None:
    """big_vision's own loader adds that row to the class token; here it stays what it is, and the numbers are equal."""
    parameters = drawn(shapes_of("tok", "learn", 9, 0, CLASSES))
    row = np.random.default_rng(2).normal(size=(1, 1, WIDTH)).astype(np.float32)
    arrays = {name: stored(value) for name, value in parameters.items()}
    arrays["Transformer/posembed_input/pos_embedding"] = np.concatenate([row, arrays.pop("pos_embedding")], axis=1)
    np.savez(tmp_path / "source.npz", **arrays)
    ckpt = vit_hub.open_checkpoint(tmp_path / "source.npz")
    assert ckpt.config.pos_embed_prefix
    assert ckpt.tensors["pos_embed"].shape == (1, 10, WIDTH)
    images = images_of((3, 3))
    folded = {**parameters, "cls": parameters["cls"] + row}
    assert_same(tmp_path / "source.npz", images, outputs_of(folded, images, "tok", "learn"), {})
    assert_comes_back(tmp_path / "source.npz", {})


def test_a_size_that_a_computed_table_leaves_open_has_to_be_a_possible_one(tmp_path: Path) -> None:
    arrays = {name: stored(value) for name, value in drawn(shapes_of("gap", "sincos2d", 9, 0, CLASSES)).items()}
    np.savez(tmp_path / "source.npz", **arrays)
    ckpt = vit_hub.open_checkpoint(tmp_path / "source.npz")
    assert "convention" in ckpt.inferred["image_size"]
    with pytest.raises(ConfigError, match="image_size"):
        vit_hub.open_checkpoint(tmp_path / "source.npz", overrides={"image_size": 2})


PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}


@examples(12)
@given(
    units=st.sampled_from(((), (1,), (1, 2), (2, 1, 1))),
    prelinen=st.booleans(),
    size=st.sampled_from(((32, 32), (40, 40), (24, 48))),
    patch=st.sampled_from((1, 2)),
    pool=st.sampled_from(("tok", "gap")),
    prefix=st.sampled_from(("", "params/", "opt/target/", "optimizer/target/")),
)
def test_a_hybrid_of_vit_jax(
    tmp_path_factory: pytest.TempPathFactory,
    units: tuple[int, ...],
    prelinen: bool,
    size: tuple[int, int],
    patch: int,
    pool: str,
    prefix: str,
) -> None:
    """The ResNet with blocks or its root alone; group norms are [1, 1, 1, C] in the older files."""
    stem = reference.resnet_shapes(32, units)
    if not prelinen:
        stem = {name: shape[-1:] if "/gn" in f"/{name}" else shape for name, shape in stem.items()}
    chans = 32 * 2 ** (len(units) + 1) if units else 32
    strides = 4 * 2 ** max(len(units) - 1, 0)
    grid = tuple(math.ceil(side / strides) // patch for side in size)
    shapes = stem | {"embedding/kernel": (patch, patch, chans, WIDTH), "embedding/bias": (WIDTH,)}
    shapes |= reference.block_shapes(WIDTH, HEADS, HIDDEN, DEPTH) | reference.dense("head", WIDTH, CLASSES)
    rows = grid[0] * grid[1] + (pool == "tok")
    shapes |= {"Transformer/posembed_input/pos_embedding": (1, rows, WIDTH)}
    shapes |= {"cls": (1, 1, WIDTH)} if pool == "tok" else {}
    parameters = drawn(shapes)

    images = np.random.default_rng(1).normal(size=(2, *size, 3))
    x = reference.resnet(parameters, images, units)
    x = reference.tokens(parameters, x[:, : grid[0] * patch, : grid[1] * patch])
    if pool == "tok":
        x = np.concatenate([np.broadcast_to(parameters["cls"], (2, 1, WIDTH)), x], axis=1)
    x = reference.forward(parameters, x + parameters["Transformer/posembed_input/pos_embedding"], DEPTH)

    arrays: dict[str, np.ndarray] = {}
    for name, value in parameters.items():
        parts = name.split("/")
        if prelinen and len(parts) > 2 and parts[1].startswith("encoderblock"):
            parts[2] = PRE_LINEN.get(parts[2], parts[2])
        arrays[prefix + "/".join(parts)] = stored(value)
    source = tmp_path_factory.mktemp("hybrid") / "source.npz"
    np.savez(source, **arrays)
    options: dict[str, Any] = {"image_size": size}
    ckpt = vit_hub.open_checkpoint(source, overrides=options)
    assert ckpt.format == ("vit_jax" if prelinen else "vit_jax-linen")
    assert (ckpt.config.stem, ckpt.config.stem_stages, ckpt.config.grid_size) == ("resnet", units, grid)
    assert_same(source, images, (x, reference.pool(parameters, x, pool)), options)
    assert_comes_back(source, options)
