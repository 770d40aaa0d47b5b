"""The same numbers as transformers' own code, in float64, over random small models; and files that it loads itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import examples, random_images, random_model, randomise, relative_error
from torch import Tensor

import vit_hub
from vit_hub.converters.casting import from_tensor
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.read import read_raw
from vit_hub.errors import CheckpointError, ConfigError, UnsupportedByFormatError

pytestmark = pytest.mark.filterwarnings("ignore:.*default .* is used")

EXACT = 1e-10
# transformers computes rotations, and SigLIP 2's position table, in float32.
SINGLE = 1e-6

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A class of transformers with a config.

    Attributes:
        written: the class that a conversion writes, where that is another: the one of the image tower.
        limit: of the relative error in float64.
    """

    architecture: str
    config: transformers.PreTrainedConfig
    written: str = ""
    limit: float = EXACT
    # How it is saved: with the names of transformers 4, and as what.
    original: bool = True
    dtype: torch.dtype = torch.float32

    def model(self, dtype: torch.dtype = torch.float64) -> Any:
        made = getattr(transformers, self.architecture)(self.config).to(dtype).eval()
        randomise(made)
        return made


def _patches(images: Tensor, size: int) -> dict[str, Tensor]:
    """Images as SigLIP 2 takes them."""
    batch, chans, height, width = images.shape
    grid = images.reshape(batch, chans, height // size, size, width // size, size)
    flat = grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * chans)
    shapes = torch.tensor([[height // size, width // size]] * batch)
    return {"pixel_values": flat, "pixel_attention_mask": torch.ones(flat.shape[:2]), "spatial_shapes": shapes}


def outputs(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Outputs of a transformers model, by this library's names for them."""
    name, found = type(model).__name__, {}
    if name in ("SiglipModel", "Siglip2Model", "CLIPModel"):
        if name == "CLIPModel":
            found["forward"] = model.get_image_features(images).pooler_output
        return outputs(model.vision_model, images) | found
    if name == "BeitForMaskedImageModeling":
        tokens = model.beit(images).last_hidden_state
        return {"forward_features": model.layernorm(tokens) if model.config.use_mean_pooling else tokens}
    sizes = (
        getattr(config, "patch_size", 0) for config in (model.config, getattr(model.config, "vision_config", None))
    )
    given = model(**_patches(images, max(sizes)) if name.startswith("Siglip2") else {"pixel_values": images})
    for key, method in (
        ("logits", "forward"),
        ("image_embeds", "forward"),
        ("last_hidden_state", "forward_features"),
        ("pooler_output", "forward" if name == "ViTModel" else "embed"),
    ):
        if getattr(given, key, None) is not None:
            found[method] = getattr(given, key)
    if name.endswith("Backbone"):
        found["patches"] = given.feature_maps[-1].flatten(2).transpose(1, 2)
    return found


def _tower(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """Fields that all configs share."""
    heads, patch = draw(st.sampled_from((1, 2, 3))), draw(st.integers(1, 3))
    found = {
        "num_attention_heads": heads,
        "hidden_size": 8 * heads,
        "num_hidden_layers": draw(st.integers(1, 2)),
        "intermediate_size": draw(st.integers(1, 20)),
        "patch_size": patch,
        "image_size": patch * draw(st.integers(1, 4)),
        "num_channels": draw(st.sampled_from((1, 3))),
        "layer_norm_eps": draw(st.sampled_from((1e-12, 1e-6, 1e-5, 1e-3))),
        "hidden_act": draw(st.sampled_from(("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu"))),
    }
    return found | fixed


def _beit(draw: st.DrawFn) -> dict[str, Any]:
    relative = draw(st.sampled_from(("use_relative_position_bias", "use_shared_relative_position_bias", "")))
    return _tower(
        draw,
        use_mean_pooling=draw(st.booleans()),
        use_mask_token=draw(st.booleans()),
        use_absolute_position_embeddings=draw(st.booleans()),
        layer_scale_init_value=draw(st.sampled_from((0.1, 0.0))),
        num_labels=4,
        **({relative: True} if relative else {}),
    )


def _dinov2(draw: st.DrawFn) -> dict[str, Any]:
    fixed = {
        "mlp_ratio": draw(st.integers(1, 3)),
        "use_swiglu_ffn": draw(st.booleans()),
        "qkv_bias": draw(st.booleans()),
    }
    arguments = _tower(draw, **fixed, num_labels=4)
    del arguments["intermediate_size"]
    return arguments


def _dinov3(draw: st.DrawFn) -> dict[str, Any]:
    query, key = draw(st.sampled_from(((True, False), (True, True), (False, False))))
    arguments = _tower(
        draw,
        num_register_tokens=draw(st.sampled_from((4, 1, 0))),
        use_gated_mlp=draw(st.booleans()),
        query_bias=query,
        key_bias=key,
        value_bias=query,
        proj_bias=draw(st.sampled_from((True, True, False))),
        mlp_bias=draw(st.sampled_from((True, True, False))),
        rope_theta=draw(st.sampled_from((100.0, 30.0))),
    )
    return arguments | {"image_size": [arguments["patch_size"] * draw(st.integers(1, 4)) for _ in "hw"]}


def _siglip2(draw: st.DrawFn) -> dict[str, Any]:
    vision = _tower(draw, vision_use_head=draw(st.booleans()))
    return vision | {"num_patches": (vision.pop("image_size") // vision["patch_size"]) ** 2}


_TEXT = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 4, "vocab_size": 5,
    "max_position_embeddings": 3,
}  # fmt: skip


def _case(draw: st.DrawFn, architecture: str) -> Case:
    """A random config of a class, and what is written for it."""
    if architecture.startswith("Beit"):
        arguments = _beit(draw) | {"vocab_size": 5}
        if architecture.endswith(("Backbone", "MaskedImageModeling")):
            # A backbone leaves its final norm out; transformers mixes up two norms of nearly one name when it loads.
            arguments["use_mean_pooling"] = True
        written = "BeitModel" if architecture == "BeitForMaskedImageModeling" else ""
        return Case(architecture, transformers.BeitConfig(**arguments), written)
    if architecture.startswith("Data2Vec"):
        return Case(architecture, transformers.Data2VecVisionConfig(**_beit(draw)))
    if architecture.startswith("Dinov2WithRegisters"):
        registers = draw(st.sampled_from((4, 1)))
        config = transformers.Dinov2WithRegistersConfig(**_dinov2(draw), num_register_tokens=registers)
        return Case(architecture, config, architecture.replace("Backbone", "Model"))
    if architecture.startswith("Dinov2"):
        config = transformers.Dinov2Config(**_dinov2(draw), use_mask_token=draw(st.booleans()))
        return Case(architecture, config, architecture.replace("Backbone", "Model"))
    if architecture.startswith("DINOv3"):
        return Case(architecture, transformers.DINOv3ViTConfig(**_dinov3(draw)), "DINOv3ViTModel", limit=SINGLE)
    if architecture.startswith("IJepa"):
        return Case(architecture, transformers.IJepaConfig(**_tower(draw, qkv_bias=draw(st.booleans()), num_labels=4)))
    family = architecture.partition("Vision")[0].removesuffix("Model").removesuffix("ForImageClassification")
    vision = _tower(draw, vision_use_head=draw(st.booleans())) if family == "Siglip" else _tower(draw)
    vision = _siglip2(draw) if family == "Siglip2" else vision
    limit = SINGLE if family == "Siglip2" else EXACT
    projection = {"projection_dim": 6} if family == "CLIP" else {}
    if "Vision" in architecture:
        return Case(architecture, getattr(transformers, f"{family}VisionConfig")(**vision, **projection), limit=limit)
    config = getattr(transformers, f"{family}Config")(
        vision_config=vision, text_config=_TEXT, num_labels=4, **projection
    )
    tower = f"{family}VisionModel" + "WithProjection" * (family == "CLIP")
    return Case(architecture, config, "" if "Classification" in architecture else tower, limit)


@st.composite
def _cases(draw: st.DrawFn, architecture: str) -> Case:
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    return dataclasses.replace(_case(draw, architecture), original=draw(st.booleans()), dtype=dtype)


ARCHITECTURES = (
    "BeitModel", "BeitForImageClassification", "BeitForMaskedImageModeling", "BeitBackbone",
    "Data2VecVisionModel", "Data2VecVisionForImageClassification",
    "Dinov2Model", "Dinov2ForImageClassification", "Dinov2Backbone",
    "Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersBackbone",
    "DINOv3ViTModel", "DINOv3ViTBackbone",
    "SiglipVisionModel", "SiglipModel", "SiglipForImageClassification",
    "Siglip2VisionModel", "Siglip2Model", "Siglip2ForImageClassification",
    "CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel", "CLIPForImageClassification",
    "IJepaModel", "IJepaForImageClassification",
)  # fmt: skip


def of_each_class(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test over random small models, ``count`` of each class of transformers."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("architecture", ARCHITECTURES)
        @examples(count)
        @given(data=st.data())
        def run(architecture: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
            test(data.draw(_cases(architecture)), tmp_path_factory.mktemp("case"))

        run.__name__ = test.__name__
        return run

    return decorate


def assert_same(ours: vit_hub.VisionTransformer, theirs: Any, limit: float) -> None:
    images = random_images(ours.config, next(theirs.parameters()).dtype)
    with torch.inference_mode():
        for name, value in outputs(theirs, images).items():
            if name == "patches":
                found = ours.forward_features(images)[:, ours.config.num_prefix_tokens :]
            else:
                found = getattr(ours, name)(images)
            assert relative_error(found, value) <= limit, name


def loaded_strictly(folder: Path) -> Any:
    """A folder loaded by transformers in float64, with nothing missing and nothing left over."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64
    )
    assert not any(info.values()), info
    return model.eval()


def bits(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> (dtype, shape, bytes) of all tensors in a folder."""
    tensors = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    return {
        name: (str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, value in tensors.items()
    }


@of_each_class(5)
def test_a_model_in_memory_gives_the_same_numbers_and_goes_back(case: Case, folder: Path) -> None:
    theirs = case.model()
    ours = vit_hub.from_module(theirs)
    assert_same(ours, theirs, case.limit)
    again = vit_hub.to_transformers(ours)
    assert type(again).__name__ == (case.written or case.architecture)
    assert_same(ours, again, case.limit)


@of_each_class(4)
def test_a_saved_folder_gives_the_same_numbers_and_comes_back_byte_for_byte(case: Case, folder: Path) -> None:
    source, middle, target = folder / "source", folder / "middle", folder / "target"
    case.model(case.dtype).save_pretrained(source, save_original_format=case.original, max_shard_size=10_000)
    ckpt = vit_hub.open_checkpoint(source)
    assert_same(vit_hub.load(source, dtype="float64"), loaded_strictly(source), case.limit)
    vit_hub.convert(source, middle, to="canonical")
    vit_hub.convert(middle / "model.safetensors", target, to=ckpt.format)
    assert bits(target) == {name: value for name, value in bits(source).items() if name not in ckpt.dropped}
    again = loaded_strictly(target)
    assert type(again).__name__ == (case.written or case.architecture)
    assert_same(vit_hub.load(target, dtype="float64"), again, case.limit)


@of_each_class(3)
def test_what_is_written_without_a_past_transformers_runs_the_same(case: Case, folder: Path) -> None:
    ours = vit_hub.from_module(case.model(torch.float32))
    ours.passport, ours.carried = None, {}
    vit_hub.convert(ours.save(folder / "canonical.safetensors"), folder / "hf", to="hf")
    assert_same(ours.double(), loaded_strictly(folder / "hf"), case.limit)


def tiny(architecture: str, **changes: Any) -> Any:
    """A float32 model of a class with two towers or one."""
    config = getattr(transformers, architecture).config_class
    whole = {"vision_config": {**TINY, **changes}, "text_config": _TEXT}
    return Case(architecture, config(**(whole if hasattr(config(), "vision_config") else {**TINY, **changes}))).model(
        torch.float32
    )


TINY: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 16, "image_size": 8,
    "patch_size": 4, "num_patches": 4,
}  # fmt: skip


def rewritten(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize("architecture", ["CLIPModel", "SiglipModel", "Siglip2Model", "BeitForMaskedImageModeling"])
def test_a_whole_model_can_be_put_together_again(architecture: str, tmp_path: Path) -> None:
    theirs = tiny(architecture)
    theirs.save_pretrained(tmp_path / "source")
    report = vit_hub.convert(tmp_path / "source", tmp_path / "middle.safetensors", keep_rest=True)
    assert report.dropped
    vit_hub.convert(report.path, tmp_path / "tower", to="hf")
    vit_hub.convert(report.path, tmp_path / "whole", to="hf", keep_rest=True)
    assert bits(tmp_path / "whole") == bits(tmp_path / "source")
    assert type(loaded_strictly(tmp_path / "whole")) is type(theirs)
    assert bits(tmp_path / "tower").keys() == bits(tmp_path / "source").keys() - report.dropped.keys()
    assert "text_config" not in json.loads((tmp_path / "tower" / "config.json").read_text())


@pytest.mark.parametrize(
    ("architecture", "defaults"),
    [
        ("SiglipModel", {"hidden_act": "gelu_tanh", "norm_eps": 1e-6, "num_heads": 12}),
        ("Siglip2Model", {"hidden_act": "gelu_tanh", "norm_eps": 1e-6, "num_heads": 12, "patch_size": (16, 16)}),
        ("CLIPModel", {"hidden_act": "quick_gelu", "norm_eps": 1e-5, "num_heads": 12}),
    ],
)
def test_what_a_nested_config_leaves_out_is_the_default_of_its_class(
    architecture: str, defaults: dict[str, Any], tmp_path: Path
) -> None:
    fixed = {"hidden_size": 48, "num_attention_heads": 12, "patch_size": 16, "image_size": 32}
    tiny(architecture, **fixed).save_pretrained(tmp_path)
    kept = ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "num_patches")
    rewritten(
        tmp_path / "config.json",
        lambda file: {
            **file,
            "vision_config": {key: file["vision_config"][key] for key in kept if key in file["vision_config"]},
        },
    )
    if architecture == "CLIPModel":  # its default patch is no more than 32
        rewritten(
            tmp_path / "config.json",
            lambda file: {**file, "vision_config": {**file["vision_config"], "patch_size": 16}},
        )
    ckpt = vit_hub.open_checkpoint(tmp_path)
    assert (ckpt.config.act, ckpt.config.norm_eps, ckpt.config.num_heads) == tuple(defaults.values())[:3]
    assert ckpt.config.patch_size == (16, 16)
    said = [message for message in ckpt.warnings if "default" in message]
    assert len(said) == len(defaults)
    with pytest.warns(UserWarning, match="default"):
        assert_same(vit_hub.load(tmp_path, dtype="float64"), loaded_strictly(tmp_path), SINGLE)


def test_an_old_pickle_with_prefix_and_position_ids_is_read_and_written_back(tmp_path: Path) -> None:
    theirs = tiny("CLIPVisionModel")
    state = {f"vision_model.{name}": value for name, value in theirs.state_dict().items()}
    ids = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save({**state, **ids}, tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    ckpt = vit_hub.open_checkpoint(tmp_path)
    assert (ckpt.format, list(ckpt.dropped)) == ("hf", ["vision_model.embeddings.position_ids"])
    assert_same(vit_hub.load(tmp_path, dtype="float64"), theirs.double(), EXACT)
    vit_hub.convert(tmp_path, tmp_path / "again", to="hf")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == state.keys()


def test_two_norms_of_masked_image_modelling_are_not_mixed_up() -> None:
    theirs = tiny("BeitForMaskedImageModeling", use_mean_pooling=False).double()
    ours = vit_hub.from_module(theirs)
    assert (ours.config.pool, ours.config.final_norm) == ("cls", "before")
    assert_same(ours, theirs, EXACT)


def test_buffers_and_segmentation_heads_are_dropped_with_a_reason(tmp_path: Path) -> None:
    theirs = tiny("BeitModel", use_relative_position_bias=True, use_mean_pooling=False)
    theirs.save_pretrained(tmp_path)
    extra = {
        "encoder.layer.0.attention.attention.relative_position_bias.relative_position_index": torch.zeros(5, 5).long(),
        "decode_head.classifier.weight": torch.zeros(2, 2),
        "auxiliary_head.convs.0.bn.weight": torch.zeros(2),
        "fpn1.0.weight": torch.zeros(2),
    }
    save_file({**load_file(tmp_path / "model.safetensors"), **extra}, tmp_path / "model.safetensors", {"format": "pt"})
    ckpt = vit_hub.open_checkpoint(tmp_path)
    assert ckpt.dropped.keys() == extra.keys()
    assert all(ckpt.dropped.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value_bias": False}, "qkv_bias: .*query_bias=True, key_bias=False, value_bias=False"),
        ({"query_bias": False}, "qkv_bias: .*query_bias=False, key_bias=False, value_bias=True"),
    ],
)
def test_dinov3_without_some_biases_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json says .*{reason}|{reason}"):
        vit_hub.from_module(tiny("DINOv3ViTModel", **changes))


def test_a_model_with_no_registers_keeps_its_class_in_files_only(tmp_path: Path) -> None:
    theirs = tiny("Dinov2WithRegistersModel", num_register_tokens=0)
    theirs.save_pretrained(tmp_path / "source")
    vit_hub.convert(tmp_path / "source", tmp_path / "again", to="hf")
    assert bits(tmp_path / "again") == bits(tmp_path / "source")
    assert type(loaded_strictly(tmp_path / "again")) is type(theirs)
    other = vit_hub.to_transformers(vit_hub.from_module(theirs.double()))
    assert type(other).__name__ == "Dinov2Model"
    assert_same(vit_hub.from_module(theirs), other, EXACT)


def test_a_truncated_model_is_not_taken_for_a_shallower_one(tmp_path: Path) -> None:
    theirs = tiny("Dinov2Model")
    theirs.save_pretrained(tmp_path)
    state = {
        name: value for name, value in load_file(tmp_path / "model.safetensors").items() if ".layer.1." not in name
    }
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing blocks\.1\.norm1\.weight"):
        vit_hub.open_checkpoint(tmp_path)


@pytest.mark.parametrize("architecture", ["Dinov2Model", "BeitModel"])
def test_images_that_transformers_itself_mixes_up_are_warned_of(architecture: str) -> None:
    theirs = tiny(architecture, image_size=[8, 16])
    tensors = {name: from_tensor(value) for name, value in theirs.state_dict().items()}
    sidecars = {"config.json": {**theirs.config.to_dict(), "architectures": [architecture]}}
    ckpt = read_raw(RawCheckpoint(Path("model"), "safetensors", tensors, {}, sidecars, ()))
    assert ckpt.config.image_size == (8, 16)
    assert any("is not square" in message for message in ckpt.warnings)


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("ViTModel", {}, {"pool": "cls", "qkv_bias": True}),
        ("ViTModel", {"qkv_bias": False}, {"pool": "cls", "qkv_bias": False}),
        ("BeitModel", {"layer_scale_init_value": 0.0}, {"pool": "avg", "qkv_bias": "qv"}),
        ("IJepaModel", {}, {"pool": "avg", "class_token": False}),
        ("Dinov2Model", {}, {"pool": "cls", "resize": "bicubic"}),
        ("Dinov2WithRegistersModel", {}, {"resize": "bicubic-antialias", "num_registers": 4}),
        ("SiglipVisionModel", {}, {"pool": "map", "resize": "bicubic"}),
        ("Siglip2VisionModel", {}, {"pool": "map", "resize": "bilinear-antialias", "patch_size": (4, 4)}),
        ("CLIPVisionModel", {}, {"pool": "cls", "final_norm": "after", "act": "quick_gelu", "norm_eps": 1e-5}),
        ("DINOv3ViTModel", {"image_size": 224, "patch_size": 112}, {"pool": "cls", "norm_eps": 1e-5}),
    ],
)
def test_a_file_without_a_config_is_told_by_its_names(
    architecture: str, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    theirs = tiny(architecture, **changes)
    theirs.save_pretrained(tmp_path)
    ckpt = vit_hub.open_checkpoint(tmp_path / "model.safetensors", overrides={"num_heads": 3})
    assert ckpt.format.startswith("hf")
    assert {name: getattr(ckpt.config, name) for name in expected} == expected
    assert not any("same tensor names" in message for message in ckpt.warnings)


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"layer_scale": True, "norm_eps": 1e-6}, "Dinov2Model"),
        ({"layer_scale": True, "num_registers": 2}, "Dinov2WithRegistersModel"),
        ({"class_token": False, "pos_embed_prefix": False, "pool": "map", "act": "gelu"}, "SiglipVisionModel"),
        ({"class_token": False, "pos_embed_prefix": False, "pool": "avg", "act": "gelu"}, "IJepaModel"),
        ({"class_token": False, "pos_embed_prefix": False, "pool": "avg", "act": "gelu_tanh"}, "SiglipVisionModel"),
        ({"pre_norm": True, "patch_bias": False, "final_norm": "after"}, "CLIPVisionModel"),
        (
            {"pre_norm": True, "patch_bias": False, "final_norm": "after", "projection_dim": 4},
            "CLIPVisionModelWithProjection",
        ),
        ({"rel_pos": "block", "pos_embed": "none", "pos_embed_prefix": False, "qkv_bias": "qv"}, "BeitModel"),
        ({"representation_dim": 16}, "ViTModel"),
        ({"num_classes": 3}, "ViTForImageClassification"),
        ({"distilled": True, "num_classes": 3, "pool": "cls_dist"}, "DeiTForImageClassificationWithTeacher"),
    ],
)
def test_the_class_written_is_the_one_that_fits(config: dict[str, Any], architecture: str, tmp_path: Path) -> None:
    model = random_model(vit_hub.ViTConfig(**{**SMALL, "num_classes": 0, **config}))
    vit_hub.convert(model.save(tmp_path / "canonical.safetensors"), tmp_path / "hf", to="hf")
    theirs = loaded_strictly(tmp_path / "hf")
    assert type(theirs).__name__ == architecture
    assert_same(model.double(), theirs, EXACT)


SMALL: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "num_classes": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_scale": True, "image_size": (8, 16)},
        {"layer_scale": True, "mlp_dim": 20},
        {"layer_scale": True},
        {"layer_scale": True, "num_registers": 2, "pos_embed_prefix": False},
        {"pre_norm": True, "patch_bias": False, "final_norm": "before"},
        {"pre_norm": True, "patch_bias": True, "final_norm": "none", "pool": "avg"},
        {"class_token": False, "pos_embed_prefix": False, "pool": "avg", "image_size": (8, 16), "act": "gelu_tanh"},
        {"rel_pos": "block", "pos_embed": "none", "pos_embed_prefix": False, "qkv_bias": True},
        {"qkv_bias": "qv", "pool": "avg"},
    ],
)
def test_what_one_class_cannot_express_is_written_as_another_or_not_at_all(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(vit_hub.ViTConfig(**{**SMALL, **changes}))
    path = model.save(tmp_path / "model.safetensors")
    try:
        vit_hub.convert(path, tmp_path / "hf", to="hf")
    except UnsupportedByFormatError:
        assert not (tmp_path / "hf").exists()
        return
    theirs, images = loaded_strictly(tmp_path / "hf"), random_images(model.config, torch.float64)
    with torch.inference_mode():
        assert relative_error(model.double()(images), theirs(images).logits) <= SINGLE


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("qk_norm", {"qk_norm": True}),
        ("pool", {"class_token": False, "pos_embed_prefix": False, "pool": "map"}),
        ("pool", {"pool": "first"}),
    ],
)
def test_what_no_class_can_express_is_refused_naming_the_field(
    field: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    path = random_model(vit_hub.ViTConfig(**{**SMALL, **changes})).save(tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedByFormatError, match=rf"hf cannot express this model: (.*; )?{field}: "):
        vit_hub.convert(path, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()
