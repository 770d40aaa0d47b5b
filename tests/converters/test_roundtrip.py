"""Names, shapes, dtypes and bytes that come back unchanged, whatever the format, the wrapper and the values."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from golden_cases import CASES, Case, native_tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import (
    PLAIN,
    configs,
    examples,
    grid_configs,
    random_bits,
    random_images,
    random_model,
    raw,
    relative_error,
)

import vit_hub
from vit_hub.converters import format_names
from vit_hub.errors import CheckpointError, ConfigError, UnknownFormatError, UnsupportedByFormatError, VitHubError
from vit_hub.model.shapes import tensor_shapes

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SMALL = vit_hub.ViTConfig(
    image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3, norm_eps=1e-6
)

# Which of a model's fields say how its table would be resized, which each project does in its own way.
LATER = ("resize", "resize_by_count")

pytestmark = pytest.mark.filterwarnings("ignore:.*have the same tensor names", "ignore:.*default .* is used")

VIT_JAX = configs(**PLAIN, act="gelu_tanh", norm_eps=1e-6, pool=st.sampled_from(("cls", "avg")), class_token=True).map(
    lambda config: config if config.pool == "cls" else config.replace(class_token=False, pos_embed_prefix=False)
).map(lambda config: config.replace(pos_embed_prefix=config.class_token))  # fmt: skip
HF = configs(**PLAIN | {"qkv_bias": st.booleans()}, pool="cls", class_token=True, pos_embed_prefix=True).map(
    lambda config: config.replace(representation_dim=0 if config.num_classes else config.representation_dim)
)
REGISTERS = {"num_registers": st.sampled_from((0, 4)), "representation_dim": 0}


def _with_rows_for_registers(config: vit_hub.ViTConfig) -> vit_hub.ViTConfig:
    return config.replace(pos_embed_registers=config.pos_embed_prefix and config.num_registers > 0)


TIMM_BARE = configs(
    **PLAIN | REGISTERS | {"qkv_bias": st.booleans(), "layer_scale": st.booleans(), "final_norm": "after"},
    act="gelu", norm_eps=1e-6, pool="avg",
).map(_with_rows_for_registers)  # fmt: skip
TIMM = configs(
    **PLAIN | REGISTERS | {
        "ffn": st.sampled_from(("mlp", "swiglu_packed")), "qkv_bias": st.booleans(), "qk_norm": st.booleans(),
        "pre_norm": st.booleans(), "layer_scale": st.booleans(), "pos_embed": st.sampled_from(("learned", "none")),
        "final_norm": st.sampled_from(("before", "none")),
    },
    norm_eps=1e-6, pool=st.sampled_from(("avg", "none")),
).map(_with_rows_for_registers).map(lambda config: config.replace(patch_bias=not config.pre_norm))  # fmt: skip
EXPRESSIBLE: dict[tuple[str, str], st.SearchStrategy[vit_hub.ViTConfig]] = {
    ("canonical", ""): configs() | grid_configs(),
    ("canonical", ".safetensors"): configs() | grid_configs(),
    ("timm", ""): TIMM,
    ("timm", ".safetensors"): TIMM_BARE,
    ("timm", ".pth"): TIMM_BARE,
    ("hf", ""): HF,
    ("hf-v5", ""): HF,
    ("vit_jax", ""): VIT_JAX,
    ("vit_jax", ".npz"): VIT_JAX,
    ("vit_jax-linen", ".npz"): VIT_JAX,
    ("vit_jax", ".safetensors"): VIT_JAX,
}


def unstated(report: Any) -> dict[str, Any]:
    """The options that the report says have to be given when the file is loaded."""
    fields = ("num_heads", "image_size")
    return {
        name: getattr(report.config, name) for name in fields if any(f" {name}=" in text for text in report.warnings)
    }


def same_model(found: vit_hub.ViTConfig, wanted: vit_hub.ViTConfig) -> bool:
    return found == wanted.replace(**{name: getattr(found, name) for name in LATER})


def assert_all_accounted_for(source: Path, **options: Any) -> None:
    ckpt = vit_hub.open_checkpoint(source, **options)
    used = [name for names in ckpt.origin.values() for name in names]
    assert set(used) | set(ckpt.dropped) == set(native_tensors(source))
    assert not set(used) & set(ckpt.dropped)
    assert all(ckpt.dropped.values())


@pytest.mark.parametrize(("to", "suffix"), EXPRESSIBLE, ids=lambda part: part or "folder")
@examples(12)
@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)))
def test_canonical_to_any_format_and_back(
    tmp_path_factory: pytest.TempPathFactory, to: str, suffix: str, data: st.DataObject, dtype: str
) -> None:
    config = data.draw(EXPRESSIBLE[to, suffix])
    folder = tmp_path_factory.mktemp("way")
    model = random_bits(random_model(config, dtype=DTYPES[dtype]))
    first = model.save(folder / "first.safetensors")
    report = vit_hub.convert(first, folder / f"there{suffix}", to=to)
    assert not report.dropped
    back = vit_hub.convert(report.path, folder / "back.safetensors", overrides=unstated(report))
    assert same_model(back.config, config)
    assert raw(folder / "back.safetensors") == raw(first)
    # Stored periods of rotations keep their dtype when a model is cast.
    assert {item[0] for name, item in raw(first).items() if name != "rope_embed.periods"} - {"I64"} == {dtype}
    assert_all_accounted_for(report.path, overrides=unstated(report))


def random_array(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random bits; BF16 as numpy keeps it, two bytes of no known type."""
    carrier = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "V2"}[dtype])
    data = generator.integers(0, 256, math.prod(shape) * carrier.itemsize, np.uint8)
    array = data.view(carrier).reshape(shape)
    return np.asfortranarray(array) if generator.integers(2) else array


def jax_arrays(config: vit_hub.ViTConfig, spelling: str, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint as vit_jax writes it, its names and shapes written down apart from the library's table."""
    attention, norm, mlp = {
        "prelinen": ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
        "linen": ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
    }[spelling]
    width, hidden, heads = config.embed_dim, config.mlp_dim, config.num_heads
    head = (heads, width // heads)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (*config.patch_size, config.in_chans, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, config.num_patches + config.class_token, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
    }
    if config.class_token:
        shapes["cls"] = (1, 1, width)
    for index in range(config.depth):
        block = f"Transformer/encoderblock_{index}"
        for name in ("LayerNorm_0", norm):
            shapes |= {f"{block}/{name}/scale": (width,), f"{block}/{name}/bias": (width,)}
        for name in ("query", "key", "value"):
            shapes |= {f"{block}/{attention}/{name}/kernel": (width, *head), f"{block}/{attention}/{name}/bias": head}
        shapes |= {f"{block}/{attention}/out/kernel": (*head, width), f"{block}/{attention}/out/bias": (width,)}
        shapes |= {f"{block}/{mlp}/Dense_0/kernel": (width, hidden), f"{block}/{mlp}/Dense_0/bias": (hidden,)}
        shapes |= {f"{block}/{mlp}/Dense_1/kernel": (hidden, width), f"{block}/{mlp}/Dense_1/bias": (width,)}
    features = config.representation_dim or width
    if config.representation_dim:
        shapes |= {"pre_logits/kernel": (width, features), "pre_logits/bias": (features,)}
    if config.num_classes:
        shapes |= {"head/kernel": (features, config.num_classes), "head/bias": (config.num_classes,)}
    generator = np.random.default_rng(seed)
    return {name: random_array(generator, shape, dtype) for name, shape in shapes.items()}


def way_and_back(source: Path, folder: Path, **options: Any) -> tuple[Path, Any]:
    """The source through a canonical file into its own format again, with no further hint."""
    spelling = vit_hub.open_checkpoint(source, **options).format
    report = vit_hub.convert(source, folder / "canonical.safetensors", **options)
    back = folder / ("back" + source.suffix)
    assert vit_hub.convert(folder / "canonical.safetensors", back, to=spelling).format == spelling
    return back, report


@examples(40)
@given(
    config=VIT_JAX,
    spelling=st.sampled_from(("prelinen", "linen")),
    dtype=st.sampled_from(sorted(DTYPES)),
    prefix=st.sampled_from(("", "params/", "opt/target/", "optimizer/target/")),
    compressed=st.booleans(),
)
def test_a_vit_jax_file_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    config: vit_hub.ViTConfig,
    spelling: str,
    dtype: str,
    prefix: str,
    compressed: bool,
) -> None:
    folder = tmp_path_factory.mktemp("npz")
    arrays = {prefix + name: array for name, array in jax_arrays(config, spelling, dtype).items()}
    (np.savez_compressed if compressed else np.savez)(folder / "source.npz", **arrays)
    square = config.grid_size[0] == config.grid_size[1]
    options = {"overrides": {} if square else {"image_size": config.image_size}}
    ckpt = vit_hub.open_checkpoint(folder / "source.npz", **options)
    assert ckpt.config == config.replace(resize="bilinear-align-corners", resize_by_count=True)
    assert ckpt.format == ("vit_jax" if spelling == "prelinen" else "vit_jax-linen")
    assert_all_accounted_for(folder / "source.npz", **options)
    back, report = way_and_back(folder / "source.npz", folder, **options)
    assert not report.dropped
    assert native_tensors(back) == native_tensors(folder / "source.npz")


@pytest.mark.parametrize("spelling", ["prelinen", "linen"])
def test_each_jax_axis_lands_where_it_belongs(spelling: str, tmp_path: Path) -> None:
    """The layouts written out by hand; no outside code is needed to see a transposed kernel."""
    config = SMALL.replace(patch_size=(4, 2), representation_dim=5, act="gelu_tanh")
    arrays = jax_arrays(config, spelling, "F32")
    np.savez(tmp_path / "source.npz", **arrays)
    ckpt = vit_hub.open_checkpoint(tmp_path / "source.npz", overrides={"image_size": (8, 8)})
    found = {name: tensor.read() for name, tensor in ckpt.tensors.items()}

    def same(name: str, wanted: np.ndarray) -> None:
        assert found[name].tobytes() == np.ascontiguousarray(wanted).tobytes()

    block = "Transformer/encoderblock_1"
    attention = f"{block}/MultiHeadDotProductAttention_{'1' if spelling == 'prelinen' else '0'}"
    kernels = [arrays[f"{attention}/{name}/kernel"] for name in ("query", "key", "value")]
    same("blocks.1.attn.qkv.weight", np.concatenate([kernel.reshape(16, 16).T for kernel in kernels]))
    biases = [arrays[f"{attention}/{name}/bias"] for name in ("query", "key", "value")]
    same("blocks.1.attn.qkv.bias", np.concatenate([bias.reshape(16) for bias in biases]))
    same("blocks.1.attn.proj.weight", arrays[f"{attention}/out/kernel"].reshape(16, 16).T)
    same("patch_embed.proj.weight", arrays["embedding/kernel"].transpose(3, 2, 0, 1))
    same("blocks.1.norm2.weight", arrays[f"{block}/LayerNorm_{'2' if spelling == 'prelinen' else '1'}/scale"])
    same("pre_logits.fc.weight", arrays["pre_logits/kernel"].T)
    same("head.weight", arrays["head/kernel"].T)


@pytest.mark.parametrize("grid", [(1, 3), (6, 8), (2, 12)])
def test_a_grid_that_is_square_only_with_the_class_row_is_not_guessed(grid: tuple[int, int], tmp_path: Path) -> None:
    """Forty-eight patches and a class token are forty-nine rows, which is not a grid of seven by seven."""
    config = SMALL.replace(image_size=[side * 4 for side in grid], act="gelu_tanh")
    np.savez(tmp_path / "source.npz", **jax_arrays(config, "prelinen", "F32"))
    with pytest.raises(ConfigError, match="image_size.*overrides"):
        vit_hub.open_checkpoint(tmp_path / "source.npz")
    ckpt = vit_hub.open_checkpoint(tmp_path / "source.npz", overrides={"image_size": config.image_size})
    assert ckpt.config.pos_embed_prefix
    assert ckpt.config.grid_size == grid


def timm_state(config: vit_hub.ViTConfig, dtype: str = "F32", seed: int = 0) -> dict[str, torch.Tensor]:
    """timm's names are the canonical ones (its own models load them: ``tests/parity``)."""
    model = random_bits(random_model(config, dtype=DTYPES[dtype]), seed)
    return {name: model.state_dict()[name] for name in tensor_shapes(config)}


def optimiser_state(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    moments = {index: {"step": torch.tensor(3.0), "exp_avg": value} for index, value in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": list(moments)}]}


@pytest.mark.parametrize("module", ["", "module."])
@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "state_dict_ema", "model_ema"])
@examples(6)
@given(config=TIMM_BARE, dtype=st.sampled_from(sorted(DTYPES)))
def test_a_wrapped_state_dict_comes_back_in_its_wrapper(
    tmp_path_factory: pytest.TempPathFactory, wrapper: str, module: str, config: vit_hub.ViTConfig, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("pth")
    state = {module + name: value for name, value in timm_state(config, dtype).items()}
    tree: dict[str, Any] = {wrapper: state, "epoch": 3, "arch": "vit"} if wrapper else state
    torch.save(tree, folder / "source.pth")
    told = {name: getattr(config, name) for name in ("num_heads", "image_size", "norm_position")}
    options = {"overrides": told}
    ckpt = vit_hub.open_checkpoint(folder / "source.pth", **options)
    assert same_model(ckpt.config, config)
    back, report = way_and_back(folder / "source.pth", folder, **options)
    assert not report.dropped
    assert native_tensors(back) == native_tensors(folder / "source.pth")


def test_training_checkpoints_give_the_averaged_weights_and_account_for_the_rest(tmp_path: Path) -> None:
    student, average = timm_state(SMALL, seed=1), timm_state(SMALL, seed=2)
    source = tmp_path / "source.pth"
    torch.save(
        {"state_dict": student, "state_dict_ema": average, "optimizer": optimiser_state(student), "epoch": 3}, source
    )
    overrides = {"num_heads": 2}
    assert_all_accounted_for(source, overrides=overrides)
    back, report = way_and_back(source, tmp_path, overrides=overrides)
    assert raw(tmp_path / "canonical.safetensors")["norm.weight"][2] == average["norm.weight"].numpy().tobytes()
    assert "student" in report.dropped["state_dict/norm.weight"]
    assert "optimiser" in report.dropped["optimizer/state/0/exp_avg"]
    before, after = native_tensors(source), native_tensors(back)
    assert after == {name: value for name, value in before.items() if name not in report.dropped}


def test_what_was_left_out_can_be_kept_and_put_back(tmp_path: Path) -> None:
    student, average = timm_state(SMALL, seed=1), timm_state(SMALL, seed=2)
    source = tmp_path / "source.pth"
    torch.save({"state_dict": student, "state_dict_ema": average, "optimizer": optimiser_state(student)}, source)
    middle = tmp_path / "canonical.safetensors"
    report = vit_hub.convert(source, middle, overrides={"num_heads": 2}, keep_rest=True)
    (rest,) = tmp_path.glob("*rest.safetensors")
    assert set(load_file(rest)) == set(report.dropped)
    vit_hub.convert(middle, tmp_path / "back.pth", to="timm", keep_rest=True)
    assert native_tensors(tmp_path / "back.pth") == native_tensors(source)
    # Only on request.
    vit_hub.convert(middle, tmp_path / "without.pth", to="timm")
    assert not set(native_tensors(tmp_path / "without.pth")) & set(report.dropped)


def test_a_whole_masked_autoencoder_comes_back_with_its_decoder(tmp_path: Path) -> None:
    config = transformers.ViTMAEConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=8,
    )  # fmt: skip
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path / "source")
    report = vit_hub.convert(tmp_path / "source", tmp_path / "middle", keep_rest=True)
    assert report.path == tmp_path / "middle" / "model.safetensors"
    vit_hub.convert(report.path, tmp_path / "back", to="hf", keep_rest=True)
    wanted = native_tensors(tmp_path / "source")
    found = native_tensors(tmp_path / "back" / "model.safetensors")
    assert found == wanted
    assert any(name.startswith("decoder.") for name in found)


@pytest.mark.parametrize("name", ["ViTForMaskedImageModeling", "DeiTForMaskedImageModeling"])
def test_a_mask_token_is_carried_along(name: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        name[:4].rstrip("F").lower().removesuffix("f"), image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8, encoder_stride=4,
    )  # fmt: skip
    getattr(transformers, name)(config).save_pretrained(tmp_path / "source")
    back, report = way_and_back(tmp_path / "source", tmp_path)
    before = native_tensors(tmp_path / "source")
    assert native_tensors(back) == {name: value for name, value in before.items() if not name.startswith("decoder.")}
    assert set(report.dropped) == {name for name in before if name.startswith("decoder.")}
    assert "mask_token" in raw(tmp_path / "canonical.safetensors")
    model = vit_hub.load(tmp_path / "source")
    assert "mask_token" not in model.state_dict()
    saved = model.save(tmp_path / "tuned.safetensors")
    assert raw(saved)["mask_token"] == raw(tmp_path / "canonical.safetensors")["mask_token"]
    lossless = vit_hub.convert(saved, tmp_path / "again", to="hf")
    assert native_tensors(lossless.path) == native_tensors(back)


def test_a_carried_tensor_without_a_place_in_the_target_is_reported(tmp_path: Path) -> None:
    state = random_model(SMALL.replace(norm_eps=1e-6)).state_dict()
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        layer_norm_eps=1e-6, encoder_stride=4,
    )  # fmt: skip
    transformers.ViTForMaskedImageModeling(config).save_pretrained(tmp_path / "source")
    report = vit_hub.convert(tmp_path / "source", tmp_path / "timm", to="timm")
    assert "timm has no place for it" in report.dropped["vit.embeddings.mask_token"]
    assert "mask_token" not in native_tensors(tmp_path / "timm")
    assert state


@pytest.mark.parametrize("name", ["reg_token", "dist_token", "head.weight", "norm_pre.weight", "blocks.0.ls1.gamma"])
def test_a_carried_tensor_with_the_name_of_a_part_that_the_model_has_not(name: str, tmp_path: Path) -> None:
    model = random_model(SMALL.replace(norm_eps=1e-6, num_classes=0))
    model.carried = {name: torch.zeros(16, 3, 0, 4)}
    saved = model.save(tmp_path / "saved.safetensors")
    for label in format_names():
        with contextlib.suppress(VitHubError):
            vit_hub.convert(saved, tmp_path / label, to=label, lossy=True)


def test_a_pooler_beside_a_classifier_is_carried_and_not_computed_with(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "hf_vit_cls")
    state = load_file(case.checkpoint / "model.safetensors")
    width = state["classifier.weight"].shape[1]
    generator = torch.Generator().manual_seed(0)
    state["vit.pooler.dense.weight"] = torch.randn(width, width, generator=generator)
    state["vit.pooler.dense.bias"] = torch.randn(width, generator=generator)
    (tmp_path / "source").mkdir()
    save_file(state, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    (tmp_path / "source" / "config.json").write_bytes((case.checkpoint / "config.json").read_bytes())
    with torch.inference_mode():
        found = vit_hub.load(tmp_path / "source")(case.images())
    assert relative_error(found, case.outputs()["logits"]) <= 1e-5
    back, report = way_and_back(tmp_path / "source", tmp_path)
    assert not report.dropped
    assert native_tensors(back) == native_tensors(tmp_path / "source")


def test_the_optimisers_state_beside_jax_parameters_is_left_out(tmp_path: Path) -> None:
    arrays = jax_arrays(SMALL.replace(act="gelu_tanh"), "linen", "F32")
    inside = {f"opt/target/{name}": array for name, array in arrays.items()}
    beside = {"opt/state/step": np.int32(7), "opt/state/param_states/cls/grad_ema": arrays["cls"]}
    np.savez(tmp_path / "source.npz", **inside, **beside)
    assert_all_accounted_for(tmp_path / "source.npz")
    back, report = way_and_back(tmp_path / "source.npz", tmp_path)
    assert set(report.dropped) == set(beside)
    assert set(native_tensors(back)) == set(inside)


def sources(folder: Path) -> Iterator[Path]:
    """The same small model in every kind of file that is written."""
    model = random_model(SMALL)
    first = model.save(folder / "canonical.safetensors")
    yield first
    for to, name in (
        ("timm", "timm"),
        ("timm", "timm.pth"),
        ("timm", "timm.safetensors"),
        ("hf", "hf"),
        ("hf-v5", "hf5"),
    ):
        yield vit_hub.convert(first, folder / name, to=to).path
    np.savez(folder / "source.npz", **jax_arrays(SMALL.replace(act="gelu_tanh"), "linen", "F32"))
    yield folder / "source.npz"


def files(path: Path) -> dict[str, bytes]:
    """Contents by name."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name if path.is_dir() else file.suffix: file.read_bytes() for file in found}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for index, source in enumerate(sources(tmp_path)):
        for to in ("canonical", "timm", "hf"):
            first, second = (
                vit_hub.convert(source, tmp_path / f"{index}-{to}-{n}", to=to, overrides={"num_heads": 2}).path
                for n in (1, 2)
            )
            assert files(first) == files(second)


def test_a_file_may_be_converted_in_place(tmp_path: Path) -> None:
    path = random_model(SMALL).save(tmp_path / "model.safetensors")
    wanted = {name: value[2] for name, value in raw(path).items()}
    vit_hub.convert(path, path, to="timm")
    assert {name: value[2] for name, value in native_tensors(path).items()} == wanted
    vit_hub.convert(path, path, overrides={"num_heads": 2})
    assert {name: value[2] for name, value in raw(path).items()} == wanted


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    path = random_model(SMALL).save(tmp_path / "model.safetensors")

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    for name, to in (("out.safetensors", "canonical"), ("out.pth", "timm"), ("hf", "hf")):
        with pytest.raises(KeyboardInterrupt):
            vit_hub.convert(path, tmp_path / name, to=to, progress=interrupt)
        left = [file for file in tmp_path.rglob("*") if file.is_file() and file != path]
        assert not left
    older = b"an older file"
    (tmp_path / "out.pth").write_bytes(older)
    with pytest.raises(KeyboardInterrupt):
        vit_hub.convert(path, tmp_path / "out.pth", to="timm", progress=interrupt)
    assert (tmp_path / "out.pth").read_bytes() == older


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    path = random_model(SMALL).save(tmp_path / "model.safetensors")
    total = sum(len(value[2]) for value in raw(path).values())
    for to in ("canonical", "timm", "hf"):
        counted: list[int] = []
        vit_hub.convert(path, tmp_path / to, to=to, progress=counted.append)
        assert sum(counted) == total


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "BF16", "F64"])
def test_another_dtype_on_request(dtype: str, tmp_path: Path) -> None:
    model = random_model(SMALL)
    path = model.save(tmp_path / "model.safetensors")
    names = {"BF16": torch.bfloat16, "F64": torch.float64}
    wanted = {name: value.to(names.get(dtype) or getattr(torch, dtype)) for name, value in model.state_dict().items()}
    vit_hub.convert(path, tmp_path / "cast.safetensors", dtype=dtype)
    vit_hub.convert(path, tmp_path / "timm.safetensors", to="timm", dtype=dtype)
    for file in ("cast.safetensors", "timm.safetensors"):
        found = load_file(tmp_path / file)
        assert found.keys() == wanted.keys()
        assert all(
            found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted
        )


@pytest.mark.parametrize("dtype", ["int8", "I64", "float8", ""])
def test_an_unknown_dtype_is_refused(dtype: str, tmp_path: Path) -> None:
    path = random_model(SMALL).save(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=f"dtype '{dtype}'.*float16"):
        vit_hub.convert(path, tmp_path / "out.safetensors", dtype=dtype)
    assert not (tmp_path / "out.safetensors").exists()


def test_an_unknown_target_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = random_model(SMALL).save(tmp_path / "model.safetensors")
    with pytest.raises(UnknownFormatError, match="'jax'.*vit_jax"):
        vit_hub.convert(path, tmp_path / "out", to="jax")
    with pytest.raises(UnsupportedByFormatError, match=r"out\.pth.*safetensors"):
        vit_hub.convert(path, tmp_path / "out.pth")
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors"}


def test_a_fine_tuned_model_goes_back_to_its_sources_format(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "vitjax_token_linen")
    model = vit_hub.load(case.checkpoint, num_classes=4)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1.0)
    saved = model.save(tmp_path / "tuned.safetensors")
    report = vit_hub.convert(saved, tmp_path / "tuned.npz", to=model.passport.format)
    assert report.format == "vit_jax-linen"
    before, after = native_tensors(case.checkpoint), native_tensors(tmp_path / "tuned.npz")
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name][1] != after[name][1]}
    assert changed == {"head/kernel", "head/bias"}
    again = vit_hub.load(tmp_path / "tuned.npz")
    images = random_images(again.config)
    assert torch.equal(again(images), model(images))


def test_what_a_bare_file_cannot_say_is_refused_unless_lossy_and_then_measured(tmp_path: Path) -> None:
    model = random_model(SMALL.replace(act="gelu_tanh"))
    path = model.save(tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedByFormatError, match="act: 'gelu_tanh' would be read back as 'gelu'") as error:
        vit_hub.convert(path, tmp_path / "bare.safetensors", to="timm")
    assert "lossy=True" in error.value.hint
    assert not (tmp_path / "bare.safetensors").exists()
    report = vit_hub.convert(path, tmp_path / "bare.safetensors", to="timm", lossy=True)
    (told_so,) = [text for text in report.warnings if "act:" in text]
    assert told_so.startswith("lossy: ")
    (measured,) = [text for text in report.warnings if "differ from the source's by up to" in text]
    other = vit_hub.load(tmp_path / "bare.safetensors", overrides={"num_heads": 2})
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    difference = float((other(images) - model(images)).abs().max().detach())
    assert difference > 1e-5
    assert float(measured.rsplit(" ", 1)[1]) == pytest.approx(difference, rel=0.1)


def test_lossy_leaves_out_what_has_no_place(tmp_path: Path) -> None:
    model = random_model(SMALL.replace(num_registers=4))
    path = model.save(tmp_path / "model.safetensors")
    report = vit_hub.convert(path, tmp_path / "model.npz", to="vit_jax", lossy=True)
    assert any(text.startswith("lossy: num_registers: ") and "reg_token" in text for text in report.warnings)
    assert any("by up to" in text for text in report.warnings)


def test_a_bare_file_says_what_must_be_told(tmp_path: Path) -> None:
    path = random_model(SMALL.replace(image_size=(8, 12))).save(tmp_path / "model.safetensors")
    report = vit_hub.convert(path, tmp_path / "bare.safetensors", to="timm")
    assert unstated(report) == {"num_heads": 2, "image_size": (8, 12)}
    report = vit_hub.convert(path, tmp_path / "folder", to="timm")
    assert unstated(report) == {}
    assert all("no preprocessing is recorded" in text for text in report.warnings)


def test_the_passport_says_where_the_weights_come_from(tmp_path: Path) -> None:
    import hashlib

    case = next(case for case in CASES if case.name == "vitjax_token_linen")
    vit_hub.convert(case.checkpoint, tmp_path / "canonical.safetensors")
    found = vit_hub.open_checkpoint(tmp_path / "canonical.safetensors").provenance
    content = case.checkpoint.read_bytes()
    assert found["format"] == "vit_jax-linen"
    assert found["container"] == "npz"
    assert found["source"] == [
        {"file": "checkpoint.npz", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    ]
    assert found["converter"] == vit_hub.__version__
    # The record of the first source survives further canonical copies.
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "copy.safetensors")
    assert vit_hub.open_checkpoint(tmp_path / "copy.safetensors").provenance == found
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "canonical.safetensors").read_bytes()


@pytest.mark.parametrize("key", ["vit_hub.config", "vit_hub.passport"])
def test_a_damaged_record_in_a_canonical_file_is_refused(key: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = random_model(SMALL).save(tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for content in ("{", "[]", '{"depth": 1}' if key.endswith("config") else "{}"):
        save_file(load_file(path), tmp_path / "damaged.safetensors", {**metadata, key: content})
        with pytest.raises((CheckpointError, ConfigError), match=r"damaged\.safetensors"):
            vit_hub.load(tmp_path / "damaged.safetensors")


# A few fields at once: of models that differ in everything from all projects', none would be written.
UNUSUAL = st.dictionaries(
    st.sampled_from(
        sorted({*PLAIN, "pool", "act", "norm_eps", "class_token", "pos_embed_prefix", "representation_dim"})
    ),
    st.none(),
    max_size=3,
)
USUAL = PLAIN | {
    "class_token": True,
    "pos_embed_prefix": True,
    "pool": "cls",
    "act": st.sampled_from(("gelu", "gelu_tanh")),
    "norm_eps": 1e-6,
    "representation_dim": 0,
}


@st.composite
def unusual(draw: st.DrawFn) -> vit_hub.ViTConfig:
    free = draw(UNUSUAL)
    fixed = {name: value for name, value in USUAL.items() if name not in free}
    if {"class_token", "distilled"} & set(free):
        fixed.pop("pool", None)
    return draw(configs(**fixed))


@examples(120)
@given(config=unusual(), to=st.sampled_from([name for name in format_names() if "-" not in name]))
def test_a_format_expresses_a_model_or_names_the_fields_that_it_cannot(
    tmp_path_factory: pytest.TempPathFactory, config: vit_hub.ViTConfig, to: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    model = random_model(config)
    path = model.save(folder / "model.safetensors")
    try:
        report = vit_hub.convert(path, folder / "out", to=to)
    except UnsupportedByFormatError as error:
        fields = {field.name for field in dataclasses.fields(vit_hub.ViTConfig)}
        head, _, rest = error.message.partition(": ")
        assert head == f"{to} cannot express this model"
        assert all(part.split(": ")[0] in fields for part in rest.split("; "))
        assert not (folder / "out").exists()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = vit_hub.load(
            report.path, overrides=unstated(report), format=None if to == "canonical" else report.format
        )
    if not any(text.startswith("irreversible: ") for text in report.warnings):
        assert same_model(again.config, config)
        state = again.state_dict()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    images = random_images(config)
    with torch.inference_mode():
        assert relative_error(again(images), model(images)) <= 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": False, "pool": "avg"},
        {"pos_embed": "none"},
        {"num_registers": 0, "pos_embed_registers": True},
        {"pool": "map", "pool_heads": 2},
        {"pool": "map", "pool_mlp_dim": 24},
        {"pool_heads": 4},
        {"pool_mlp_dim": 5},
        {"stem_width": 32},
        {"stem_norm_eps": 1e-5},
        {"stem_standardize": "var"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_fields_that_change_nothing_stand_in_no_formats_way(changes: dict[str, Any], tmp_path: Path) -> None:
    """Rows of tokens that are not there, heads of a pool that is not used, a width that is the usual one."""
    model = random_model(SMALL.replace(**changes))
    report = vit_hub.convert(model.save(tmp_path / "model.safetensors"), tmp_path / "timm", to="timm")
    assert report.format == "timm"
    assert all("no preprocessing is recorded" in text for text in report.warnings)
    assert vit_hub.compare(tmp_path / "model.safetensors", report.path).same_numbers


@pytest.mark.parametrize("case", [case for case in CASES if case.checkpoint.is_dir()], ids=lambda case: case.name)
def test_a_file_in_the_format_of_its_source_has_its_names_or_is_refused(case: Case, tmp_path: Path) -> None:
    ckpt = vit_hub.open_checkpoint(case.checkpoint, overrides=case.overrides)
    if any(file.suffix == ".h5" for file in case.checkpoint.iterdir()):
        return  # two files
    target = tmp_path / "file.safetensors"
    try:
        vit_hub.convert(ckpt, target, to=ckpt.format)
    except UnsupportedByFormatError as error:
        assert "a folder" in (error.hint or "")
        vit_hub.convert(ckpt, target, to=ckpt.format, lossy=True)
    assert load_file(target).keys() == {name for name in ckpt.source.tensors if name not in ckpt.dropped}
