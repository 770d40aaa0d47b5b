"""The same numbers as transformers' own code, in float64, over random small models; and files it reads and writes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from golden_cases import CASES, native_tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import PLAIN, configs, examples, random_images, random_model, randomise, relative_error
from torch import Tensor, nn
from transformers import AutoConfig

import vit_hub
from vit_hub.errors import ConfigError, UnsupportedByFormatError, VitHubError

EXACT = 1e-10
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu",
               "silu": "silu", "relu": "relu"}  # fmt: skip
# Class -> its model type, and whether it has a classifier.
CLASSES = {
    "ViTModel": ("vit", False),
    "ViTForImageClassification": ("vit", True),
    "DeiTModel": ("deit", False),
    "DeiTForImageClassification": ("deit", True),
    "DeiTForImageClassificationWithTeacher": ("deit", True),
    "ViTMAEModel": ("vit_mae", False),
    "ViTMSNModel": ("vit_msn", False),
    "ViTMSNForImageClassification": ("vit_msn", True),
}
POOLERS = ("ViTModel", "DeiTModel")
every_class = pytest.mark.parametrize("name", CLASSES)


@st.composite
def hf_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of transformers' configs, all that change what the models compute."""
    heads = draw(st.sampled_from((1, 2, 3)))
    patch = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    square = draw(st.booleans())
    return {
        "image_size": 4 * grid[0] if square else [n * p for n, p in zip(grid, patch, strict=True)],
        "patch_size": 4 if square else list(patch),
        "num_channels": draw(st.integers(1, 4)),
        "hidden_size": 8 * heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 20)),
        "hidden_act": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "layer_norm_eps": draw(st.sampled_from((1e-12, 1e-6, 1e-5, 1e-3))),
        "qkv_bias": draw(st.booleans()),
    }


SMALL: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_size": 16, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "intermediate_size": 24}  # fmt: skip


def made(name: str, arguments: dict[str, Any], dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """A transformers model with random weights; ``options`` go to its class."""
    config = AutoConfig.for_model(CLASSES[name][0], **arguments)
    if name.startswith("ViTMAE"):
        config.mask_ratio = 0.0
    model: nn.Module = getattr(transformers, name)(config, **options)
    randomise(model.to(dtype).eval())
    return model


def outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, output) of a transformers model; nothing masked or shuffled."""
    base = model.base_model if model.base_model is not model else model
    noise = {}
    if model.config.model_type == "vit_mae":
        patches = base.embeddings.patch_embeddings.num_patches
        noise = {"noise": torch.arange(patches, dtype=images.dtype).expand(len(images), -1)}
    with torch.inference_mode():
        found = base(images, **noise)
        tokens = found.last_hidden_state
        if base is not model:
            return tokens, model(images).logits
    pooled = getattr(found, "pooler_output", None)
    return tokens, tokens[:, 0] if pooled is None else pooled


def assert_same(ours: vit_hub.VisionTransformer, theirs: nn.Module, error: float = EXACT) -> None:
    images = random_images(ours.config, next(ours.parameters()).dtype)
    tokens, output = outputs(theirs, images)
    with torch.inference_mode():
        assert relative_error(ours.forward_features(images), tokens) <= error
        assert relative_error(ours(images), output) <= error


@every_class
@examples(12)
@given(
    arguments=hf_arguments(),
    options=st.fixed_dictionaries(
        {"pooler": st.booleans(), "width": st.sampled_from((None, 5)), "classes": st.integers(1, 5)}
    ),
)
def test_a_transformers_model_gives_the_same_numbers_and_goes_back(
    name: str, arguments: dict[str, Any], options: dict[str, Any]
) -> None:
    construct = {"add_pooling_layer": options["pooler"]} if name in POOLERS else {}
    width = {"pooler_output_size": options["width"]} if name in POOLERS else {}
    theirs = made(name, {**arguments, **width, "num_labels": options["classes"]}, **construct)
    ours = vit_hub.from_module(theirs)
    assert ours.config.act == ACTIVATIONS[arguments["hidden_act"]]
    assert ours.config.norm_eps == arguments["layer_norm_eps"]
    assert_same(ours, theirs)
    back = vit_hub.to_transformers(ours)
    assert type(back) is type(theirs)
    assert not back.training
    found, wanted = back.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    if name.startswith("ViTMAE"):
        back.config.mask_ratio = 0.0
    assert_same(ours, back)


def saved(model: nn.Module, folder: Path, how: str) -> Path:
    """The model as transformers, or its users, put it on disk."""
    if how == "v5 names":
        model.save_pretrained(folder, save_original_format=False)
    elif how == "sharded":
        model.save_pretrained(folder, max_shard_size="4KB")
        assert (folder / "model.safetensors.index.json").exists()
    else:
        model.save_pretrained(folder)
    if how == "bin":
        weights = folder / "model.safetensors"
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    if how == "module names":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@every_class
@pytest.mark.parametrize("how", ["v4 names", "v5 names", "sharded", "bin", "module names"])
def test_what_transformers_saves_is_read_and_written_back(name: str, how: str, tmp_path: Path) -> None:
    theirs = made(name, {**SMALL, "num_labels": 3}, torch.float32)
    folder = saved(theirs, tmp_path / "theirs", how)
    ours = vit_hub.load(folder, dtype="float64")
    assert_same(ours, theirs.double())
    ckpt = vit_hub.open_checkpoint(folder)
    assert ckpt.format in ("hf", "hf-v5")
    assert not ckpt.dropped
    vit_hub.convert(folder, tmp_path / "canonical.safetensors")
    back = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to=ckpt.format).path
    assert native_tensors(back) == native_tensors(folder)
    again, info = type(theirs).from_pretrained(back, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    if name.startswith("ViTMAE"):
        assert again.config.mask_ratio == 0.0
    assert_same(ours, again.double().eval())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTModel"])
def test_half_precision_files_keep_their_dtype_and_bytes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = made(name, {**SMALL, "num_labels": 3}, dtype)
    folder = saved(theirs, tmp_path / "theirs", "v4 names")
    kept = vit_hub.load(folder, dtype="auto")
    assert {value.dtype for value in kept.parameters()} == {dtype}
    assert {value.dtype for value in vit_hub.load(folder).parameters()} == {torch.float32}
    assert_same(vit_hub.load(folder, dtype="float64"), theirs.double())
    vit_hub.convert(folder, tmp_path / "canonical.safetensors")
    back = vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to="hf").path
    assert native_tensors(back) == native_tensors(folder)
    assert next(vit_hub.to_transformers(kept).parameters()).dtype == dtype


def from_transformers(folder: Path) -> nn.Module:
    """The class that config.json names, loaded strictly."""
    config = json.loads((folder / "config.json").read_text())
    name = config["architectures"][0]
    pooler = any("pooler" in tensor for tensor in native_tensors(folder))
    options = {"add_pooling_layer": pooler} if name in POOLERS else {}
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.double().eval()


@pytest.mark.parametrize("to", ["hf", "hf-v5"])
@pytest.mark.parametrize(
    "name", ["vitjax_token_linen", "vitjax_token_prelinen_npz", "timm_vit_token", "timm_deit_distilled"]
)
def test_checkpoints_of_other_projects_run_the_same_in_transformers(name: str, to: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    folder = vit_hub.convert(case.checkpoint, tmp_path / "hf", to=to, overrides=case.overrides).path
    theirs = from_transformers(folder)
    assert type(theirs).__name__ == (
        "DeiTForImageClassificationWithTeacher" if "distilled" in name else "ViTForImageClassification"
    )
    assert_same(vit_hub.load(case.checkpoint, overrides=case.overrides, dtype="float64"), theirs)
    assert (folder / "preprocessor_config.json").exists()


# Mostly what transformers' ViT has, and a little of everything that it has not.
NEARLY = PLAIN | {
    "ffn": st.sampled_from(("mlp", "mlp", "mlp", "mlp", "swiglu")),
    "patch_bias": st.sampled_from((True, True, True, False)),
    "qkv_bias": st.sampled_from((True, True, True, False, "masked")),
    "qk_norm": st.sampled_from((False, False, False, False, True)),
    "pre_norm": st.sampled_from((False, False, False, False, True)),
    "layer_scale": st.sampled_from((False, False, True)),
    "class_token": True,
    "distilled": st.sampled_from((False, False, True)),
    "num_registers": st.sampled_from((0, 0, 0, 0, 2)),
    "pos_embed": st.sampled_from(("learned", "learned", "learned", "none", "sincos2d")),
    "pos_embed_prefix": st.sampled_from((True, True, True, False)),
    "pool": st.sampled_from(("cls", "cls", "cls", "first")),
    "final_norm": st.sampled_from(("before", "before", "before", "none")),
    "head_input": st.sampled_from(("pooled", "pooled", "pooled", "cls_avg")),
    "num_classes": st.sampled_from((0, 0, 3)),
    "projection_dim": st.sampled_from((0, 0, 0, 5)),
}


@pytest.mark.parametrize("to", ["hf", "hf-v5"])
@examples(40)
@given(config=configs(**NEARLY))
def test_what_is_written_in_its_format_transformers_runs_the_same(
    tmp_path: Path, to: str, config: vit_hub.ViTConfig
) -> None:
    model = random_model(config)
    try:
        report = vit_hub.convert(model.save(tmp_path / "canonical.safetensors"), tmp_path / "hf", to=to)
    except UnsupportedByFormatError as refusal:
        assert refusal.message.startswith(f"{to} cannot express this model: ")
        return
    # What is folded is kept in float32.
    folded = any(message.startswith("irreversible: ") for message in report.warnings)
    error = 1e-5 if folded else EXACT
    assert_same(model.double(), from_transformers(tmp_path / "hf"), error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if folded else "error")
        assert_same(model, vit_hub.to_transformers(model), error)


@st.composite
def expressible(draw: st.DrawFn) -> vit_hub.ViTConfig:
    config = draw(configs(**PLAIN | {"qkv_bias": st.booleans()}, class_token=True, pos_embed_prefix=True, pool="cls"))
    config = config.replace(representation_dim=0) if config.num_classes else config
    if draw(st.booleans()):
        return config.replace(distilled=True, pool="cls_dist" if config.num_classes and draw(st.booleans()) else "cls")
    return config


@examples(30)
@given(config=expressible())
def test_what_transformers_has_is_never_refused(tmp_path: Path, config: vit_hub.ViTConfig) -> None:
    model = random_model(config)
    vit_hub.convert(model.save(tmp_path / "canonical.safetensors"), tmp_path / "hf", to="hf")
    again = vit_hub.load(tmp_path / "hf")
    assert again.config == config.replace(resize=again.config.resize, resize_by_count=again.config.resize_by_count)
    theirs = vit_hub.to_transformers(model.double())
    assert_same(model, theirs)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("pool", {"pool": "map"}),
        ("pool", {"pool": "first"}),
        ("qkv_bias", {"qkv_bias": "masked"}),
        ("ffn", {"ffn": "swiglu", "act": "silu"}),
        ("final_norm", {"final_norm": "none"}),
        ("final_norm", {"final_norm": "after"}),
        ("representation_dim", {"representation_dim": 4}),
        ("head_norm", {"head_norm": True}),
        ("prefix_norm", {"prefix_norm": True}),
        ("num_registers", {"num_registers": 2}),
        ("qk_norm", {"qk_norm": True}),
        ("pre_norm", {"pre_norm": True}),
        ("attn_norm", {"attn_norm": True}),
        ("mlp_norm", {"mlp_norm": True}),
        ("stem", {"stem": "resnet", "stem_width": 32, "patch_size": 1}),
        ("rope", {"rope": {"mixed": True}}),
    ],
)
def test_what_transformers_cannot_express_is_refused_naming_the_field(
    field: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    small = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    model = random_model(vit_hub.ViTConfig(**{**small, "num_classes": 2, **changes}))
    path = model.save(tmp_path / "model.safetensors")
    for refused in (
        lambda: vit_hub.convert(path, tmp_path / "hf", to="hf"),
        lambda: vit_hub.to_transformers(model),
    ):
        with pytest.raises(UnsupportedByFormatError, match=rf"cannot express this model: (.*; )?{field}: ") as error:
            refused()
        assert "formats that can: canonical" in error.value.hint
    assert not (tmp_path / "hf").exists()


def test_the_decoder_of_a_masked_autoencoder_is_left_out_and_said_so(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "vit_mae", **SMALL, decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=8, mask_ratio=0.0,
    )  # fmt: skip
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ckpt = vit_hub.open_checkpoint(tmp_path / "theirs")
    names = set(load_file(tmp_path / "theirs" / "model.safetensors"))
    assert set(ckpt.dropped) == {name for name in names if name.startswith("decoder.")}
    assert ckpt.dropped
    assert set(ckpt.dropped.values()) == {"decoder"}
    assert_same(vit_hub.load(tmp_path / "theirs", dtype="float64"), theirs.vit.double())
    assert_same(vit_hub.from_module(theirs), theirs.vit)


def test_a_class_that_computes_otherwise_is_refused() -> None:
    for name in ("swin", "convnext", "bert"):
        model = transformers.AutoModel.from_config(AutoConfig.for_model(name, **_tiny(name)))
        with pytest.raises(VitHubError):
            vit_hub.from_module(model)


def _tiny(name: str) -> dict[str, Any]:
    if name == "bert":
        return {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "vocab_size": 9,
        }
    if name == "swin":
        return {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2}
    return {"hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("hidden_act", "mish", "hidden_act.*mish"),
        ("pooler_act", "relu", "pooler_act.*relu"),
        ("image_size", 16, "pos_embed.*config.json"),
        ("patch_size", 2, "pos_embed.*config.json"),
        ("num_attention_heads", 3, "num_heads=3"),
    ],
)
def test_a_config_file_that_the_model_cannot_follow_is_refused(
    key: str, value: Any, named: str, tmp_path: Path
) -> None:
    """Running on with other numbers than transformers' would be worse than stopping."""
    saved(made("ViTModel", SMALL, torch.float32), tmp_path, "v4 names")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(VitHubError, match=named) as error:
        vit_hub.load(tmp_path)
    assert str(tmp_path) in error.value.message


@pytest.mark.parametrize(
    ("name", "eps"), [("ViTModel", 1e-12), ("DeiTModel", 1e-12), ("ViTMAEModel", 1e-12), ("ViTMSNModel", 1e-6)]
)
def test_an_epsilon_that_the_config_file_leaves_out_is_the_classes_own_and_warned_of(
    name: str, eps: float, tmp_path: Path
) -> None:
    theirs = made(name, {**SMALL, "layer_norm_eps": eps}, torch.float32)
    saved(theirs, tmp_path, "v4 names")
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["layer_norm_eps"]
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=f"layer_norm_eps.*{eps}"):
        model = vit_hub.load(tmp_path, dtype="float64")
    assert model.config.norm_eps == eps
    assert_same(model, theirs.double())


def test_bare_weights_without_a_config_file_need_their_heads_told(tmp_path: Path) -> None:
    theirs = made("ViTForImageClassification", {**SMALL, "num_labels": 3}, torch.float32)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="num_heads.*overrides"):
        vit_hub.load(tmp_path / "weights.pth")
    ours = vit_hub.load(tmp_path / "weights.pth", overrides={"num_heads": 2, "norm_eps": 1e-12}, dtype="float64")
    assert_same(ours, theirs.double())


def test_class_names_and_preprocessing_travel_with_the_folder(tmp_path: Path) -> None:
    labels = {0: "cat", 1: "dog", 2: "eel"}
    numbers = {name: index for index, name in labels.items()}
    theirs = made("ViTForImageClassification", {**SMALL, "id2label": labels, "label2id": numbers}, torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    processor = transformers.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=mean, image_std=std, resample=2
    )
    processor.save_pretrained(tmp_path / "theirs")
    model = vit_hub.load(tmp_path / "theirs")
    assert vit_hub.class_names(model) == ("cat", "dog", "eel")
    assert vit_hub.preprocess(model).mean == tuple(mean)
    vit_hub.convert(tmp_path / "theirs", tmp_path / "canonical.safetensors")
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "back", to="hf")
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "back")
    assert again.config.id2label == labels
    assert again.config.label2id == numbers
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    wanted = processor(image, return_tensors="pt")["pixel_values"]
    found = transformers.ViTImageProcessor.from_pretrained(tmp_path / "back")(image, return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(found, wanted)
