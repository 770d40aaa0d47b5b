"""Files that cannot be read as a Vision Transformer: one error that names the file, the fault in it, and the remedy."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import random_model

import vit_hub
from vit_hub.converters import format_names
from vit_hub.errors import CheckpointError, ConfigError, UnknownFormatError, UnsafeCheckpointError, VitHubError

CONFIG = vit_hub.ViTConfig(
    image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3, norm_eps=1e-6
)
State = dict[str, torch.Tensor]
TOLD = {"num_heads": 2}

pytestmark = pytest.mark.filterwarnings("ignore:.*have the same tensor names")


@pytest.fixture
def state() -> State:
    """A state dict in timm's names."""
    return dict(random_model(CONFIG).state_dict())


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    """The same kind of model in vit_jax's names."""
    model = random_model(CONFIG.replace(act="gelu_tanh")).save(tmp_path / "for_jax.safetensors")
    with np.load(vit_hub.convert(model, tmp_path / "for_jax.npz", to="vit_jax").path) as archive:
        return dict(archive)


def refusal(error: type[VitHubError], source: Path, *parts: str, **options: Any) -> VitHubError:
    """The error on opening ``source``: of this very class, on one line, naming the file, the parts and a remedy."""
    with pytest.raises(VitHubError) as caught:
        vit_hub.open_checkpoint(source, **options)
    found = caught.value
    assert type(found) is error, found
    assert str(source) in found.message
    for part in parts:
        assert part in str(found)
    assert found.hint
    assert "\n" not in str(found)
    return found


def saved(state: State, path: Path) -> Path:
    """The tensors in a file of the container that its name says."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["norm.weight", "pos_embed", "blocks.1.norm2.bias", "blocks.0.attn.proj.weight"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_tensor(name: str, suffix: str, state: State, tmp_path: Path) -> None:
    del state[name]
    source = saved(state, tmp_path / f"weights{suffix}")
    if name == "pos_embed":  # a model without a position table is one that exists
        assert vit_hub.open_checkpoint(source, overrides=TOLD).config.pos_embed == "none"
        return
    refusal(CheckpointError, source, f"missing {name}", "incomplete", overrides=TOLD)


def test_several_missing_tensors_are_counted(state: State, tmp_path: Path) -> None:
    kept = {name: value for name, value in state.items() if not name.startswith("blocks.0.")}
    refusal(CheckpointError, saved(kept, tmp_path / "w.safetensors"), "missing blocks.0.", "more", overrides=TOLD)


def test_a_missing_layer_between_others(state: State, tmp_path: Path) -> None:
    moved = {name.replace("blocks.1.", "blocks.2."): value for name, value in state.items()}
    refusal(CheckpointError, saved(moved, tmp_path / "w.safetensors"), "missing blocks.1.norm1.weight", overrides=TOLD)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("blocks.0.attn.adapter.weight", "blocks.{i}.attn"),
        ("blocks.0.norm3.weight", "blocks.{i}.norm"),
        ("norm_weight", "norm.weight"),
        ("something.else.entirely", ""),
    ],
)
def test_an_unknown_tensor_is_named_with_the_nearest_known(
    name: str, nearest: str, state: State, tmp_path: Path
) -> None:
    state[name] = torch.zeros(4)
    error = refusal(CheckpointError, saved(state, tmp_path / "w.safetensors"), name, "accounted for", overrides=TOLD)
    assert f"of {len(state)} tensors" in error.message
    if nearest:
        assert f"{name} (nearest: {nearest}" in error.message


def test_a_tensor_beside_a_wrapper_is_left_out_under_its_own_name(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "extra": {"thing": torch.zeros(2)}}, tmp_path / "w.pth")
    opened = vit_hub.open_checkpoint(tmp_path / "w.pth", overrides=TOLD)
    assert opened.dropped == {"extra/thing": "not part of the image encoder"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.mlp.fc1.weight", (25, 16)),
        ("blocks.1.attn.qkv.weight", (16, 48)),
        ("blocks.1.norm1.bias", (1, 16)),
        ("head.weight", (3, 17)),
        ("cls_token", (16,)),
        ("norm.bias", ()),
    ],
)
def test_a_tensor_of_another_shape(name: str, shape: tuple[int, ...], state: State, tmp_path: Path) -> None:
    wanted = tuple(state[name].shape)
    state[name] = torch.zeros(shape)
    source = saved(state, tmp_path / "w.safetensors")
    refusal(CheckpointError, source, name, str(shape), str(wanted), "damaged", overrides=TOLD)


@pytest.mark.parametrize("shape", [(16, 8, 2), (16, 32), (48, 16), (16, 2, 4)])
def test_a_jax_kernel_of_another_shape(shape: tuple[int, ...], arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
    np.savez(tmp_path / "w.npz", **{**arrays, name: np.zeros(shape, np.float32)})
    refusal(CheckpointError, tmp_path / "w.npz", name)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_weights_that_are_not_floating_point(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    state["blocks.1.mlp.fc2.weight"] = torch.zeros_like(state["blocks.1.mlp.fc2.weight"], dtype=dtype)
    source = saved(state, tmp_path / "w.safetensors")
    refusal(CheckpointError, source, "blocks.1.mlp.fc2.weight", "dtype", "floating point", overrides=TOLD)


def test_queries_and_keys_of_different_dtype(tmp_path: Path) -> None:
    model = random_model(CONFIG)
    folder = vit_hub.convert(model.save(tmp_path / "w.safetensors"), tmp_path / "hf", to="hf").path
    weights = load_file(folder / "model.safetensors")
    name = "vit.encoder.layer.1.attention.attention.key.weight"
    weights[name] = weights[name].half()
    save_file(weights, folder / "model.safetensors")
    refusal(CheckpointError, folder, name, "F16")


def test_heads_that_nothing_tells(state: State, tmp_path: Path) -> None:
    source = saved(state, tmp_path / "w.safetensors")
    refusal(ConfigError, source, "num_heads", "embed_dim=16", 'overrides={"num_heads": N}', "--set num_heads=N")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_an_image_size_that_nothing_tells(
    suffix: str, state: State, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    source = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        table = np.zeros((1, 1 + 6, 16), np.float32)
        np.savez(source, **{**arrays, "Transformer/posembed_input/pos_embedding": table})
    else:
        saved({**state, "pos_embed": torch.zeros(1, 1 + 6, 16)}, source)
    refusal(ConfigError, source, "image_size", "7 rows", 'overrides={"image_size": (height, width)}', overrides=TOLD)
    ckpt = vit_hub.open_checkpoint(source, overrides={**TOLD, "image_size": (8, 12)})
    assert ckpt.config.grid_size == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "error", "parts"),
    [
        ({"num_heads": 5}, ConfigError, ["num_heads=5", "embed_dim=16"]),
        ({"num_heads": 0}, ConfigError, ["num_heads", "whole number >= 1"]),
        ({"num_heads": 2, "embed_dim": 32}, CheckpointError, ["(1, 1, 16)", "(1, 1, 32)"]),
        ({"num_heads": 2, "depth": 3}, CheckpointError, ["missing blocks.2.norm1.weight"]),
        ({"num_heads": 2, "depth": 1}, CheckpointError, ["unexpected blocks.1.norm1.weight"]),
        ({"num_heads": 2, "num_classes": 5}, CheckpointError, ["head.weight", "(3, 16)", "(5, 16)"]),
        ({"num_heads": 2, "image_size": 64}, CheckpointError, ["pos_embed", "(1, 5, 16)"]),
        ({"num_heads": 2, "image_size": (8, 12)}, CheckpointError, ["pos_embed", "(1, 5, 16)"]),
        ({"num_heads": 2, "patch_size": 2}, CheckpointError, ["patch_embed.proj.weight", "(16, 3, 4, 4)"]),
        ({"num_heads": 2, "pool": "map"}, CheckpointError, ["missing attn_pool.latent"]),
        ({"num_heads": 2, "final_norm": "after"}, CheckpointError, ["fc_norm.weight"]),
        (
            {"num_heads": 2, "class_token": False, "pool": "avg", "image_size": 8},
            CheckpointError,
            ["unexpected cls_token"],
        ),
        ({"num_heads": 2, "layer_scale": True}, CheckpointError, ["blocks.0.ls1.gamma"]),
        ({"num_heads": 2, "act": "gelu_fast"}, ConfigError, ["act", "gelu_tanh"]),
        ({"num_heads": 2, "norm_eps": 0}, ConfigError, ["norm_eps"]),
        ({"num_heads": 2, "heads": 4}, ConfigError, ["heads", "num_heads"]),
    ],
)
def test_an_override_that_cannot_fit(
    overrides: dict[str, Any], error: type[VitHubError], parts: list[str], state: State, tmp_path: Path
) -> None:
    source = saved(state, tmp_path / "w.safetensors")
    with pytest.raises(VitHubError) as caught:
        vit_hub.open_checkpoint(source, overrides=overrides)
    assert type(caught.value) is error, caught.value
    for part in (str(source), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_heads_that_contradict_the_shapes_of_the_tensors(
    heads: int, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """vit_jax's attention kernels are [width, heads, width / heads]: here two heads."""
    np.savez(tmp_path / "w.npz", **arrays)
    error = refusal(CheckpointError, tmp_path / "w.npz", "query/kernel", "(16, 2, 8)", overrides={"num_heads": heads})
    assert error.message.count("kernel")


def _convolutional() -> State:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 3)
    )
    return {f"features.{name}": value for name, value in layers.state_dict().items()}


def _resnet() -> State:
    names = ("conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.downsample.0", "fc")
    return {f"{name}.{part}": torch.zeros(4) for name in names for part in ("weight", "bias")}


def _language_model() -> State:
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2")
    blocks = {f"h.{i}.{name}.{part}": torch.zeros(4) for i in range(2) for name in names for part in ("weight", "bias")}
    return {"wte.weight": torch.zeros(9, 4), "wpe.weight": torch.zeros(9, 4), **blocks, "ln_f.weight": torch.zeros(4)}


def _text_encoder() -> State:
    """BERT's layers are named as a ViT's are; its embeddings are not."""
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "intermediate.dense", "output.dense", "output.LayerNorm")  # fmt: skip
    names = (f"encoder.layer.{i}.{part}" for i in range(2) for part in parts)
    layers = {f"{name}.{kind}": torch.zeros(4) for name in names for kind in ("weight", "bias")}
    return {"embeddings.word_embeddings.weight": torch.zeros(9, 4), **layers}


@pytest.mark.parametrize("other", [_convolutional, _resnet, _language_model, _text_encoder])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_another_kind_of_model(other: Callable[[], State], suffix: str, tmp_path: Path) -> None:
    found = other()
    source = saved(found, tmp_path / f"w{suffix}")
    with pytest.raises(CheckpointError) as caught:
        vit_hub.open_checkpoint(source)
    error = caught.value
    assert str(source) in error.message
    assert str(len(found)) in error.message
    assert error.hint
    if type(error) is UnknownFormatError:
        assert "not a Vision Transformer checkpoint of a known format" in error.message
        assert "timm" in error.hint
        assert "format=" in error.hint


def test_a_text_tower_alone_says_that_it_is_one(tmp_path: Path) -> None:
    names = ("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight", "logit_scale")
    refusal(UnknownFormatError, saved({name: torch.zeros(4) for name in names}, tmp_path / "w.safetensors"), "text")


@pytest.mark.parametrize("label", ["vit_jax", "hf", "torchvision", "openai_clip", "big_vision"])
def test_a_format_insisted_on_that_it_is_not(label: str, state: State, tmp_path: Path) -> None:
    source = saved(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        vit_hub.open_checkpoint(source, format=label, overrides=TOLD)
    assert str(source) in caught.value.message
    assert caught.value.hint


def test_a_file_of_this_library_insisted_on_that_it_is_not(state: State, tmp_path: Path) -> None:
    refusal(CheckpointError, saved(state, tmp_path / "w.safetensors"), "not a canonical file", format="canonical")


def test_a_format_that_does_not_exist(state: State, tmp_path: Path) -> None:
    source = saved(state, tmp_path / "w.safetensors")
    with pytest.raises(UnknownFormatError, match="no format 'keras'") as caught:
        vit_hub.open_checkpoint(source, format="keras")
    assert all(name in caught.value.hint for name in format_names())


@pytest.mark.parametrize(
    ("content", "name", "part"),
    [
        (b"These are not weights.\n", "w.npz", "text"),
        (b"<!DOCTYPE html><html>404</html>", "w.pth", "HTML"),
        (b'{"error": "not found"}', "w.safetensors", "JSON"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "w.bin", "image"),
        (bytes(range(256)), "w.pt", "binary"),
    ],
)
def test_a_file_that_is_no_checkpoint(content: bytes, name: str, part: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(UnknownFormatError, tmp_path / name, part)


def test_files_that_are_damaged_or_empty(state: State, tmp_path: Path) -> None:
    whole = saved(state, tmp_path / "whole.safetensors").read_bytes()
    for name, content in (
        ("w.safetensors", whole[: len(whole) // 2]),
        ("empty.npz", b""),
        ("zip.npz", b"PK\x03\x04" + bytes(99)),
    ):
        (tmp_path / name).write_bytes(content)
        refusal(CheckpointError, tmp_path / name)
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"none\.safetensors.*no tensors"):
        vit_hub.open_checkpoint(tmp_path / "none.safetensors")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    refusal(CheckpointError, tmp_path / "w.npz", "no such file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("weights to come")
    refusal(CheckpointError, tmp_path / "folder", "no weights", "model.safetensors")


def test_the_content_decides_what_a_file_is(arrays: dict[str, np.ndarray], state: State, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **arrays)
    misnamed = (tmp_path / "w.npz").rename(tmp_path / "pytorch_model.bin")
    assert vit_hub.open_checkpoint(misnamed).format == "vit_jax"
    torch.save(state, tmp_path / "w.pth")
    misnamed = (tmp_path / "w.pth").rename(tmp_path / "model.npz")
    assert vit_hub.open_checkpoint(misnamed, format="timm", overrides=TOLD).config == vit_hub.open_checkpoint(
        saved(state, tmp_path / "w.safetensors"), format="timm", overrides=TOLD
    ).config  # fmt: skip


def test_a_tensor_that_is_there_twice(arrays: dict[str, np.ndarray], state: State, tmp_path: Path) -> None:
    source = tmp_path / "w.npz"
    np.savez(source, **arrays)
    with zipfile.ZipFile(source) as archive:
        cls = archive.read("cls.npy")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(source, "a") as archive:
        archive.writestr("cls.npy", cls)
    refusal(CheckpointError, source, "two members are named 'cls.npy'")
    folder = tmp_path / "sharded"
    folder.mkdir()
    half = sorted(state)[: len(state) // 2 + 1]
    save_file({name: state[name] for name in half}, folder / "a.safetensors")
    save_file({name: state[name] for name in state if name not in half[:-1]}, folder / "b.safetensors")
    where = {name: "a.safetensors" if name in half else "b.safetensors" for name in state}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError) as caught:
        vit_hub.open_checkpoint(folder, overrides=TOLD)
    assert half[-1] in caught.value.message
    assert str(folder) in caught.value.message


def test_a_file_that_would_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("executed",))

    torch.save({"model": {"weight": torch.zeros(2)}, "args": Payload()}, tmp_path / "w.pth")
    refusal(UnsafeCheckpointError, tmp_path / "w.pth", "would run", "print")
    np.savez(tmp_path / "w.npz", cls=np.array([{"a": 1}], dtype=object))
    refusal(UnsafeCheckpointError, tmp_path / "w.npz", "cls")


@pytest.mark.parametrize("content", ["{", "[1, 2]", "null"])
def test_a_config_file_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    model = random_model(CONFIG)
    folder = vit_hub.convert(model.save(tmp_path / "w.safetensors"), tmp_path / "timm", to="timm").path
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        vit_hub.open_checkpoint(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("num_attention_heads", "two", "num_heads"),
        ("num_attention_heads", None, "num_heads"),
        ("image_size", "8x8", "image_size"),
        ("patch_size", [4], "patch_size"),
        ("layer_norm_eps", "tiny", "norm_eps"),
        ("hidden_act", 7, "act"),
        ("architectures", "ViT", "architectures"),
        ("id2label", ["a", "b", "c"], "id2label"),
    ],
)
def test_a_config_file_with_values_of_another_kind(key: str, value: Any, field: str, tmp_path: Path) -> None:
    """Whatever stands in a config.json, no other error than this library's leaves it."""
    model = random_model(CONFIG)
    folder = vit_hub.convert(model.save(tmp_path / "w.safetensors"), tmp_path / "hf", to="hf").path
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            vit_hub.class_names(vit_hub.load(folder))
            vit_hub.convert(folder, tmp_path / "again", to="hf")
        except VitHubError as error:
            assert str(folder) in error.message
            assert field in error.message


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda tensors: tensors.pop("norm.bias"), ["missing norm.bias"]),
        (lambda tensors: tensors.update(more=torch.zeros(2)), ["unexpected more"]),
        (lambda tensors: tensors.update({"head.bias": torch.zeros(4)}), ["(4,)", "(3,)"]),
        (lambda tensors: tensors.update({"head.bias": torch.zeros(3, dtype=torch.int32)}), ["I32"]),
    ],
)
def test_a_canonical_file_with_other_tensors_than_it_says(
    change: Callable[[State], object], parts: list[str], tmp_path: Path
) -> None:
    from safetensors import safe_open

    path = random_model(CONFIG).save(tmp_path / "whole.safetensors")
    tensors = load_file(path)
    change(tensors)
    with safe_open(path, "pt") as file:
        save_file(tensors, tmp_path / "w.safetensors", file.metadata())
    refusal(CheckpointError, tmp_path / "w.safetensors", *parts)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("huggingface", "did you mean hf?"),
        ("Transformers", "did you mean hf?"),
        ("keras", "did you mean keras_hub?"),
        ("OpenCLIP", "did you mean open_clip?"),
        ("vit-jax", "did you mean vit_jax?"),
        ("onnx", "`vit-hub export --to onnx`"),
        ("torch_export", "`vit-hub export --to torch-export`"),
    ],
)
def test_what_people_call_a_format_is_told(state: State, tmp_path: Path, name: str, hint: str) -> None:
    source = saved(state, tmp_path / "w.safetensors")
    with pytest.raises(UnknownFormatError, match=f"no format {name!r}") as caught:
        vit_hub.convert(source, tmp_path / "out", to=name, overrides={"num_heads": 2})
    assert caught.value.hint.startswith(hint)
