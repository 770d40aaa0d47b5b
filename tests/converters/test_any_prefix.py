"""Wrappers, prefixes, copies, other modules and classifiers elsewhere: files as training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import CASES, Case
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import examples, random_model

import vit_hub
from vit_hub.errors import CheckpointError, UnknownFormatError
from vit_hub.model.config import ViTConfig

State = dict[str, Any]
SMALL = ViTConfig(image_size=24, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3)
CONFIGS = {
    "plain": SMALL,
    "headless": SMALL.replace(num_classes=0),
    "registers and scale": SMALL.replace(num_registers=2, layer_scale=True, pos_embed_prefix=False),
    "mean of the patches": SMALL.replace(class_token=False, pos_embed_prefix=False, pool="avg"),
}
TOLD = {"num_heads": SMALL.num_heads}


def model_of(config: ViTConfig = SMALL) -> Any:
    return random_model(config)


def state_of(model: Any) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def images(config: ViTConfig = SMALL) -> torch.Tensor:
    return torch.randn(2, config.in_chans, *config.image_size, generator=torch.Generator().manual_seed(3))


def saved(tree: State, tmp_path: Path) -> Path:
    torch.save(tree, tmp_path / "file.pth")
    return tmp_path / "file.pth"


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def flat(tree: State, before: str = "") -> State:
    """The tensors of nested dicts, names joined by a slash."""
    found: State = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}/")
        elif isinstance(value, torch.Tensor):
            found[before + name] = value
    return found


def same_bytes(file: Path, wanted: State) -> bool:
    found = flat(torch.load(file, weights_only=True))
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


ATOMS = (
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "net.",
    "_fsdp_wrapped_module.",
    "timm_model.",
    "encoder.",
    "my.own.",
)
KEYS = ("state_dict", "model_state_dict", "module", "net", "weights", "params", "ema", "model")
EXTRAS: State = {
    "n_averaged": torch.tensor(3),
    "epoch": torch.tensor(7),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}},
    "lr_scheduler": {"last": torch.tensor([0.1])},
    "scaler": {"scale": torch.tensor(65536.0)},
    "criterion": {"weight": torch.ones(5)},
}


@examples(60)
@given(
    kind=st.sampled_from(sorted(CONFIGS)),
    atoms=st.lists(st.sampled_from(ATOMS), max_size=4),
    keys=st.lists(st.sampled_from(KEYS), max_size=3),
    extras=st.sets(st.sampled_from(sorted(EXTRAS))),
)
def test_any_stack_of_wrappers_is_read_and_goes_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, atoms: list[str], keys: list[str], extras: set[str]
) -> None:
    tmp_path, config = tmp_path_factory.mktemp("any"), CONFIGS[kind]
    model = model_of(config)
    inner = prefixed("".join(atoms), state_of(model))
    tree: State = inner
    for key in keys:
        tree = {key: tree}
    tree = {**tree, **{name: EXTRAS[name] for name in extras}}
    given_pool = {**TOLD, "pool": config.pool}
    loaded = vit_hub.load(saved(tree, tmp_path), overrides=given_pool)
    assert loaded.config.replace(resize=config.resize) == config
    assert torch.equal(loaded(images(config)), model(images(config)))
    canonical = vit_hub.convert(tmp_path / "file.pth", tmp_path / "c.safetensors", overrides=given_pool)
    wrapped = flat(tree)
    assert canonical.dropped.keys() == {name for name in wrapped if not name.endswith(tuple(inner))} | {
        name for name in wrapped if name.partition("/")[0] in extras
    }
    label = vit_hub.open_checkpoint(tmp_path / "file.pth", overrides=given_pool).format
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "back.pth", to=label)
    assert same_bytes(
        tmp_path / "back.pth", {name: value for name, value in wrapped.items() if name not in canonical.dropped}
    )


def weight_file(case: Case) -> Path | None:
    """The one file of a recorded checkpoint that torch saves, or could have."""
    place = case.checkpoint
    files = [place] if place.is_file() else [file for file in place.iterdir() if file.suffix != ".json"]
    return files[0] if len(files) == 1 and files[0].suffix in (".safetensors", ".bin", ".pth") else None


def flat_state(file: Path) -> State | None:
    """The tensors of a file that has no wrapper of its own."""
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    return dict(state) if all(isinstance(value, torch.Tensor) for value in state.values()) else None


RECORDED = {case.name: file for case in CASES if (file := weight_file(case)) and flat_state(file)}


@examples(40)
@given(
    case=st.sampled_from([case for case in CASES if case.name in RECORDED]),
    atoms=st.lists(st.sampled_from(ATOMS), min_size=1, max_size=3),
    keys=st.lists(st.sampled_from(KEYS), max_size=2),
    extras=st.sets(st.sampled_from(sorted(EXTRAS))),
)
def test_every_family_is_read_from_any_stack_and_goes_back(
    tmp_path_factory: pytest.TempPathFactory, case: Case, atoms: list[str], keys: list[str], extras: set[str]
) -> None:
    folder, file = tmp_path_factory.mktemp("family"), RECORDED[case.name]
    for beside in file.parent.glob("*.json"):
        (folder / beside.name).write_bytes(beside.read_bytes())
    native = flat_state(file) or {}
    tree: State = prefixed("".join(atoms), native)
    for key in keys:
        tree = {key: tree}
    tree = {**tree, **{name: EXTRAS[name] for name in extras}}
    torch.save(tree, folder / "pytorch_model.bin")
    place = folder if case.checkpoint.is_dir() else folder / "pytorch_model.bin"
    options = {"overrides": case.overrides, "format": vit_hub.open_checkpoint(file, overrides=case.overrides).format}
    found = vit_hub.load(place, **options)
    # Sums depend on where values lie in memory, so neither is mapped.
    whole = vit_hub.load(case.checkpoint, overrides=case.overrides, mmap=False)
    assert torch.equal(found(case.images()), whole(case.images()))
    opened = vit_hub.open_checkpoint(place, **options)
    # Without its config file it would be read with other fields, which only lossy=True allows.
    back = vit_hub.convert(opened, folder / "back.pth", to=opened.format, lossy=True)
    assert same_bytes(back.path, {name: value for name, value in flat(tree).items() if name not in opened.dropped})
    # What the same file without wrappers leaves out, and the extras.
    plain = vit_hub.open_checkpoint(file, **options).dropped
    beside = {name for name in flat(tree) if name.partition("/")[0] in extras}
    assert opened.dropped.keys() == beside | {"/".join([*reversed(keys), "".join(atoms) + name]) for name in plain}


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."])
@pytest.mark.parametrize("before", ["", "module.", "_fsdp_wrapped_module.", "model.module."])
def test_wrappers_between_modules_are_removed_and_put_back(wrapper: str, before: str, tmp_path: Path) -> None:
    model = model_of()
    state = {
        before + name.replace("attn.", f"attn.{wrapper}").replace("head.", f"head.{wrapper}"): value
        for name, value in state_of(model).items()
    }
    opened = vit_hub.open_checkpoint(saved(state, tmp_path), overrides=TOLD)
    assert torch.equal(vit_hub.load(opened)(images()), model(images()))
    assert {part for parts in opened.origin.values() for part in parts} == state.keys()
    vit_hub.convert(opened, tmp_path / "c.safetensors")
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "back.pth", to=opened.format)
    assert same_bytes(tmp_path / "back.pth", state)


def test_the_prefix_is_reported(tmp_path: Path) -> None:
    opened = vit_hub.open_checkpoint(
        saved({"net": prefixed("my.own.", state_of(model_of()))}, tmp_path), overrides=TOLD
    )
    assert opened.passport.prefix == "net/my.own."
    assert "'net/my.own.'" in opened.inferred["prefix"]


COPIES = [
    ("teacher/backbone.", "student/backbone."),
    ("teacher.backbone.", "student.backbone."),
    ("target_encoder/module.", "encoder/module."),
    ("state_dict/module.base_encoder.", "state_dict/module.momentum_encoder."),
    ("state_dict_ema/", "state_dict/"),
    ("model/", "model_ema/"),
    ("visual_encoder.", "visual_encoder_m."),
]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("read", "other"), COPIES)
def test_of_two_copies_the_one_that_its_project_evaluates_is_read(
    read: str, other: str, swapped: bool, tmp_path: Path
) -> None:
    models = {read: model_of(), other: model_of()}
    with torch.no_grad():
        models[other].blocks[0].attn.proj.weight.mul_(2)
    parts = [prefixed(prefix, state_of(model)) for prefix, model in models.items()]
    tree: State = {}
    for name, value in {**parts[swapped], **parts[not swapped]}.items():
        *keys, last = name.split("/")
        level = tree
        for key in keys:
            level = level.setdefault(key, {})
        level[last] = value
    file = saved(tree, tmp_path)
    opened = vit_hub.open_checkpoint(file, overrides=TOLD)
    assert any(repr(other) in text for text in opened.warnings)
    assert opened.dropped.keys() == prefixed(other, state_of(models[other])).keys()
    assert torch.equal(vit_hub.load(opened)(images()), models[read](images()))
    for chosen, model in models.items():
        told = vit_hub.open_checkpoint(file, overrides=TOLD, prefix=chosen.rstrip("./"))
        assert torch.equal(vit_hub.load(told)(images()), model(images()))


def test_copies_of_no_known_project_are_listed_and_chosen_by_prefix(tmp_path: Path) -> None:
    first, second = model_of(), model_of(SMALL.replace(num_classes=0))
    file = saved({**prefixed("left.", state_of(first)), **prefixed("right.", state_of(second))}, tmp_path)
    with pytest.raises(CheckpointError, match=r"'left\.' \(\d+ tensors, timm\), 'right\.' \(\d+ tensors") as error:
        vit_hub.open_checkpoint(file, overrides=TOLD)
    assert "--prefix" in error.value.hint
    chosen = vit_hub.load(file, overrides=TOLD, prefix="right")
    assert torch.equal(chosen(images()), second(images()))
    with pytest.raises(UnknownFormatError, match="under 'middle'"):
        vit_hub.open_checkpoint(file, prefix="middle")
    vit_hub.convert(file, tmp_path / "c.safetensors", overrides=TOLD, prefix="left.")
    assert torch.equal(vit_hub.load(tmp_path / "c.safetensors")(images()), first(images()))


@pytest.mark.parametrize("outer", ["", "model."])
def test_a_prefix_chooses_a_model_though_it_begins_that_of_another(outer: str, tmp_path: Path) -> None:
    first, second = model_of(), model_of(SMALL.replace(num_classes=5))
    file = saved({**prefixed(outer, state_of(first)), **prefixed(f"{outer}left.", state_of(second))}, tmp_path)
    with pytest.raises(CheckpointError, match="holds several models"):
        vit_hub.open_checkpoint(file, overrides=TOLD)
    for prefix, model in ((outer, first), (f"{outer}left", second)):
        assert torch.equal(vit_hub.load(file, overrides=TOLD, prefix=prefix)(images()), model(images()))


def test_an_unknown_tensor_inside_of_a_wrapped_encoder_is_an_error(tmp_path: Path) -> None:
    state = {**prefixed("model.backbone.", state_of(model_of())), "model.fpn.weight": torch.ones(3)}
    assert vit_hub.open_checkpoint(saved(state, tmp_path), overrides=TOLD).dropped.keys() == {"model.fpn.weight"}
    state["model.backbone.blocks.0.adapter.weight"] = torch.ones(3)
    with pytest.raises(CheckpointError, match=r"model\.backbone\.blocks\.0\.adapter\.weight"):
        vit_hub.open_checkpoint(saved(state, tmp_path), overrides=TOLD)


HEADS = ["head.1", "head.fc", "heads", "heads.0", "classifier", "classifier.1", "fc", "linear"]


@pytest.mark.parametrize("before", ["", "module.", "model/"])
@pytest.mark.parametrize("place", HEADS)
def test_a_linear_layer_in_another_place_is_the_classifier(place: str, before: str, tmp_path: Path) -> None:
    model = model_of()
    state = {before + name.replace("head.", f"{place}."): value for name, value in state_of(model).items()}
    key = before.rstrip("/") if before.endswith("/") else ""
    file = saved({key: {name.removeprefix(before): value for name, value in state.items()}} if key else state, tmp_path)
    opened = vit_hub.open_checkpoint(file, overrides=TOLD)
    assert not opened.dropped
    assert torch.equal(vit_hub.load(opened)(images()), model(images()))
    assert any(place in text for text in opened.warnings) is not place.startswith("head.")
    vit_hub.convert(opened, tmp_path / "c.safetensors")
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "back.pth", to=opened.format)
    assert same_bytes(tmp_path / "back.pth", state)


def test_a_classifier_beside_a_backbone_whose_format_has_none(tmp_path: Path) -> None:
    config = SMALL.replace(num_classes=0, layer_scale=True)
    model, linear = model_of(config), torch.nn.Linear(SMALL.embed_dim, 3)
    state = {"mask_token": torch.ones(1, SMALL.embed_dim), **state_of(model)}
    tree = {**prefixed("backbone.", state), **prefixed("fc.", state_of(linear))}
    opened = vit_hub.open_checkpoint(saved(tree, tmp_path), format="facebook-dinov2", overrides=TOLD)
    assert opened.config.num_classes == 3
    with torch.no_grad():
        assert torch.allclose(vit_hub.load(opened)(images()), linear(model(images())), atol=1e-6)
    vit_hub.convert(opened, tmp_path / "c.safetensors")
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "back.pth", to="facebook-dinov2")
    assert same_bytes(tmp_path / "back.pth", tree)


@pytest.mark.parametrize("before", ["", "module."])
@pytest.mark.parametrize(
    "head",
    [
        torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)),
        torch.nn.Sequential(torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 3)),
    ],
    ids=["mlp", "batch norm"],
)
def test_another_classifier_is_left_out_and_said_so_and_kept_on_request(
    head: torch.nn.Module, before: str, tmp_path: Path
) -> None:
    assert SMALL.embed_dim == 16
    model = model_of(SMALL.replace(num_classes=0))
    state = prefixed(before, {**state_of(model), **prefixed("head.", state_of(head))})
    file = saved(state, tmp_path)
    report = vit_hub.convert(file, tmp_path / "c.safetensors", overrides=TOLD, keep_rest=True)
    assert report.config.num_classes == 0
    wanted = {name for name in state if "head." in name}
    assert report.dropped.keys() == wanted
    assert any("classifier" in text and "head." in text and "num_classes=0" in text for text in report.warnings)
    assert load_file(tmp_path / "c.safetensors.rest.safetensors").keys() == wanted
    assert torch.equal(vit_hub.load(tmp_path / "c.safetensors")(images()), model(images()))


def test_optimiser_states_with_the_names_of_the_weights_are_no_copies(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "vitjax_token_linen" / "checkpoint.npz"
    with np.load(golden) as archive:
        arrays = {name: archive[name] for name in archive.files}
    states = {f"opt_state/0/{moment}/{name}": value for moment in ("mu", "nu") for name, value in arrays.items()}
    np.savez(tmp_path / "file.npz", **{f"state/vit/{name}": value for name, value in arrays.items()}, **states)
    opened = vit_hub.open_checkpoint(tmp_path / "file.npz")
    assert opened.passport.prefix == "state/vit/"
    assert opened.dropped.keys() == states.keys()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blocks.0.attn.qkv.lora_A.default.weight", "merge_and_unload"),
        ("blocks.0.attn.qkv.weight.absmax", "dequantize"),
        ("blocks.0.attn.qkv.qweight", "quantized by GPTQ"),
        ("blocks.0.attn.qkv.parametrizations.weight.original", "remove_parametrizations"),
    ],
)
def test_what_was_done_to_a_model_is_recognised_and_the_remedy_named(name: str, text: str, tmp_path: Path) -> None:
    state = {**state_of(model_of()), name: torch.ones(2)}
    with pytest.raises(CheckpointError) as error:
        vit_hub.open_checkpoint(saved(state, tmp_path), overrides=TOLD)
    assert text in f"{error.value.message} {error.value.hint}"


def test_a_pooler_and_a_classifier_in_one_file_are_a_question(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    encoder = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=24, patch_size=8)).eval()
    linear = torch.nn.Linear(16, 3)
    tree = {**prefixed("vit.", state_of(encoder)), **prefixed("classifier.", state_of(linear))}
    file = saved(tree, tmp_path)
    told: State = {**TOLD, "norm_eps": 1e-12}
    opened = vit_hub.open_checkpoint(file, overrides=told)
    assert any("pooler" in text and "representation_dim=16" in text for text in opened.warnings)
    with torch.no_grad():
        hidden = encoder(images())
        assert torch.allclose(vit_hub.load(opened)(images()), linear(hidden.last_hidden_state[:, 0]), atol=1e-5)
        pooled = vit_hub.load(file, overrides={**told, "representation_dim": 16})
        assert torch.allclose(pooled(images()), linear(hidden.pooler_output), atol=1e-5)
    vit_hub.convert(file, tmp_path / "c.safetensors", overrides={**told, "representation_dim": 16})
    vit_hub.convert(tmp_path / "c.safetensors", tmp_path / "back.pth", to=opened.format)
    assert same_bytes(tmp_path / "back.pth", tree)


@pytest.mark.parametrize("to", ["hf", "facebook-dinov3"])
def test_pooling_of_a_model_without_a_head_is_the_readers_choice(to: str, tmp_path: Path) -> None:
    rope = {"theta": 100.0, "coordinates": "centered", "pairs": "half"}
    changes: State = {
        "num_classes": 0,
        "pos_embed": "none",
        "pos_embed_prefix": False,
        "rope": rope,
        "layer_scale": True,
    }
    model = model_of(SMALL.replace(**changes, qkv_bias="qv", norm_eps=1e-5, pool="avg"))
    model.save(tmp_path / "c.safetensors")
    report = vit_hub.convert(tmp_path / "c.safetensors", tmp_path / ("out" if to == "hf" else "out.pth"), to=to)
    assert any("pooling" in text for text in report.warnings)
    again = vit_hub.load(report.path, overrides={"image_size": 24, **({} if to == "hf" else TOLD)})
    assert torch.allclose(again.forward_features(images()), model.forward_features(images()), atol=1e-6)
