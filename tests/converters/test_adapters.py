"""Adapters of peft against peft's own merge: the same bits in float32, whatever names and format the base has."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import vit_hub
from vit_hub.cli import app
from vit_hub.errors import CheckpointError, ConfigError, VitHubError

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def randomised(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def hf(kind: str = "ViTForImageClassification", **fields: Any) -> Any:
    names = {"ViT": "ViTConfig", "Dinov2": "Dinov2Config", "CLIP": "CLIPVisionConfig"}
    config = next(name for start, name in names.items() if kind.startswith(start))
    return randomised(getattr(transformers, kind)(getattr(transformers, config)(**{**SMALL, **fields})))


def adapted(model: Any, folder: Path, base: str | None = "../base", **options: Any) -> Any:
    """Save a random adapter of a model, and return peft's merged model."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    wrapped.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    return wrapped.merge_and_unload().eval()


def merged_state(folder: Path, model: Any, tmp_path: Path) -> None:
    """Compare the adapter's folder with peft's merged model, weight by weight."""
    model.save_pretrained(tmp_path / "merged")
    ours = vit_hub.open_checkpoint(folder)
    theirs = vit_hub.open_checkpoint(tmp_path / "merged")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].read().tobytes() == tensor.read().tobytes(), name
    assert ours.config == theirs.config


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"alpha_pattern": {"v_proj": 3, "layers.0.mlp.fc1": 5}, "rank_pattern": {"q_proj": 2}},
    "regular expression": {"alpha_pattern": {r".*layers\.1\..*q_proj": 20}},
    "fan in": {"fan_in_fan_out": True},
    "bias": {"bias": "all"},
    "lora bias": {"lora_bias": True},
    "lora only": {"bias": "lora_only"},
    "not initialised": {"init_lora_weights": "gaussian"},
}
LINEAR = ["q_proj", "v_proj", "o_proj", "fc1"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_peft_merges(tmp_path: Path, variant: str) -> None:
    model = hf()
    model.save_pretrained(tmp_path / "base")
    merged = adapted(model, tmp_path / "adapter", target_modules=LINEAR, **VARIANTS[variant])
    merged_state(tmp_path / "adapter", merged, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    "kind", ["ViTForImageClassification", "ViTModel", "Dinov2ForImageClassification", "CLIPVisionModel"]
)
def test_the_patch_embedding_of_many_models(tmp_path: Path, kind: str, dora: bool) -> None:
    model = hf(kind)
    model.save_pretrained(tmp_path / "base")
    targets = ["projection", "patch_embedding", "fc1", "q_proj", "query"]
    merged = adapted(model, tmp_path / "adapter", target_modules=targets, use_dora=dora)
    merged_state(tmp_path / "adapter", merged, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", ["ViTForImageClassification", "ViTModel"])
def test_a_new_classifier(tmp_path: Path, old: str) -> None:
    """The base has another classifier, or none, and then no prefix either."""
    hf(old).save_pretrained(tmp_path / "base")
    labels = {"id2label": dict(enumerate("abcde")), "label2id": {name: i for i, name in enumerate("abcde")}}
    model = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True, **labels
    )
    merged = adapted(model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["classifier"])
    ours = vit_hub.load(tmp_path / "adapter")
    with torch.no_grad():
        assert (ours(IMAGES) - merged(IMAGES).logits).abs().max() < 2e-6
    assert ours.config.num_classes == 5
    merged.save_pretrained(tmp_path / "merged")
    assert ours.config == vit_hub.open_checkpoint(tmp_path / "merged").config


@pytest.mark.filterwarnings("ignore")
def test_other_names_and_formats_of_the_base(tmp_path: Path) -> None:
    """The adapter has the names of transformers 5, the base another project's."""
    model = hf()
    model.save_pretrained(tmp_path / "hf")
    merged = adapted(model, tmp_path / "adapter", base=None, target_modules=LINEAR)
    with torch.no_grad():
        wanted = merged(IMAGES).logits
    vit_hub.convert(tmp_path / "hf", tmp_path / "canonical.safetensors")
    vit_hub.convert(tmp_path / "hf", tmp_path / "timm", to="timm", lossy=True)
    opened = vit_hub.open_checkpoint(tmp_path / "hf")
    for base in (tmp_path / "hf", tmp_path / "canonical.safetensors", tmp_path / "timm", opened):
        model = vit_hub.load(tmp_path / "adapter", base=base, overrides={"norm_eps": 1e-12, "num_heads": 3})
        with torch.no_grad():
            assert (model(IMAGES) - wanted).abs().max() < 2e-6
    report = vit_hub.convert(tmp_path / "adapter", tmp_path / "out", to="hf", base=tmp_path / "hf")
    again = transformers.ViTForImageClassification.from_pretrained(report.path)
    with torch.no_grad():
        assert torch.equal(again(IMAGES).logits, wanted)


@pytest.mark.filterwarnings("ignore")
def test_names_of_older_adapters(tmp_path: Path) -> None:
    model = hf()
    model.save_pretrained(tmp_path / "base")
    merged = adapted(model, tmp_path / "adapter", target_modules=["q_proj", "fc1"])
    old = {
        "layers.": "encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "mlp.fc1": "intermediate.dense",
    }
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(state, tmp_path / "adapter" / "adapter_model.bin")
    merged_state(tmp_path / "adapter", merged, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_timm_models(tmp_path: Path) -> None:
    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = randomised(timm.create_model("vit_tiny_patch16_224", **arguments))
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    options = {"target_modules": ["qkv", "fc2", "patch_embed.proj"], "modules_to_save": ["head"]}
    merged = adapted(model, tmp_path / "adapter", base=None, **options)
    ours = vit_hub.load(tmp_path / "adapter", base=tmp_path / "base.safetensors", overrides={"num_heads": 3})
    with torch.no_grad():
        assert (ours(IMAGES) - merged(IMAGES)).abs().max() < 2e-6
    with pytest.raises(CheckpointError, match="does not name its base model") as raised:
        vit_hub.load(tmp_path / "adapter")
    assert "base=" in raised.value.hint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = hf().to(dtype)
    model.save_pretrained(tmp_path / "base")
    adapted(model, tmp_path / "adapter", target_modules=LINEAR)
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / "base", dtype=dtype)
    merged = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").merge_and_unload()
    merged_state(tmp_path / "adapter", merged, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = hf()
    model.save_pretrained(tmp_path / "base")
    adapted(model, tmp_path / "adapter", target_modules=["q_proj"])
    return tmp_path / "adapter"


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_tensors_are_read_on_demand(folder: Path) -> None:
    ckpt = vit_hub.open_checkpoint(folder)
    (folder / "adapter_model.safetensors").rename(folder / "moved")
    assert ckpt.tensors["blocks.0.attn.qkv.weight"].read().shape == (72, 24)


def test_a_base_that_is_not_found(folder: Path) -> None:
    change(folder, base_model_name_or_path="nobody/nothing")
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*nobody/nothing") as raised:
        vit_hub.open_checkpoint(folder, offline=True)
    assert "base=" in raised.value.hint
    assert "merge" in raised.value.hint
    done = CliRunner().invoke(app.main, ["inspect", str(folder), "--offline"])
    assert done.exit_code == 1
    done = CliRunner().invoke(app.main, ["inspect", str(folder), "--offline", "--base", str(folder.parent / "base")])
    assert done.exit_code == 0


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_a_base_that_can_be_no_path(folder: Path, name: str) -> None:
    change(folder, base_model_name_or_path=name)
    with pytest.raises(CheckpointError):
        vit_hub.open_checkpoint(folder, offline=True)


def test_base_is_for_adapters(folder: Path) -> None:
    with pytest.raises(ConfigError, match="adapter"):
        vit_hub.open_checkpoint(folder.parent / "base", base=folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"peft_type": "LOHA"}, "of the kind LOHA"),
        ({"peft_type": None}, "of the kind None"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"alpha_pattern": {"(a+)+": 3}}, "too involved"),
        ({"alpha_pattern": {"(": 3}}, "damaged"),
        ({"alpha_pattern": [3]}, "damaged"),
        ({"lora_alpha": "x"}, "damaged"),
        ({"lora_alpha": math.nan}, "damaged.*scaling of .* is nan"),
        ({"lora_alpha": 1e300}, "damaged.*scaling"),
    ],
)
def test_other_kinds_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    change(folder, **settings)
    with pytest.raises(CheckpointError, match=message) as raised:
        vit_hub.open_checkpoint(folder)
    assert raised.value.hint


def test_an_adapter_of_another_model(folder: Path) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    save_file({name.replace("layers.1", "layers.7"): value for name, value in state.items()}, folder / "x.safetensors")
    shutil.move(folder / "x.safetensors", folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.7"):
        vit_hub.open_checkpoint(folder)
    save_file({name: value[..., :-1].contiguous() for name, value in state.items()}, folder / "x.safetensors")
    shutil.move(folder / "x.safetensors", folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="do not fit"):
        vit_hub.load(folder)


def test_an_adapter_beside_a_whole_model(folder: Path) -> None:
    for path in (folder.parent / "base").iterdir():
        shutil.copy(path, folder)
    assert vit_hub.open_checkpoint(folder).source.files == (folder / "model.safetensors",)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_damage_gives_no_other_error(folder: Path, file: str, data: st.DataObject) -> None:
    whole = (folder / file).read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / file).write_bytes(content)
    with contextlib.suppress(VitHubError):
        for tensor in vit_hub.open_checkpoint(folder, base=folder.parent / "base").tensors.values():
            assert tensor.read().shape == tensor.shape
    (folder / file).write_bytes(whole)
