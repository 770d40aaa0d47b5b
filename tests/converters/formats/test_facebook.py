"""Facebook's original files: every project, every dict around the weights, there and back to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples, random_images, random_model
from torch import Tensor, nn

import vit_hub
from vit_hub.errors import CheckpointError, ConfigError, UnknownFormatError, UnsupportedByFormatError

State = dict[str, Tensor]
OPTIMISER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
SMALL: dict[str, Any] = {
    "image_size": (8, 8),
    "patch_size": (4, 4),
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "mlp_dim": 8,
}


class Maker:
    """Random tensors under the names of the projects."""

    def __init__(self, width: int = 8, depth: int = 2, dtype: torch.dtype = torch.float32, grid: int = 3) -> None:
        self.width, self.depth, self.dtype, self.grid = width, depth, dtype, grid
        self._generator = torch.Generator().manual_seed(width + depth)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype)

    def layer(self, name: str, *shape: int, bias: bool = True) -> State:
        return {f"{name}.weight": self.random(*shape), **({f"{name}.bias": self.random(shape[0])} if bias else {})}

    def block(self, name: str, ffn: str = "mlp", qkv_bias: bool = True) -> State:
        width, hidden = self.width, 2 * self.width
        state = self.layer(f"{name}.norm1", width) | self.layer(f"{name}.attn.qkv", 3 * width, width, bias=qkv_bias)
        state |= self.layer(f"{name}.attn.proj", width, width) | self.layer(f"{name}.norm2", width)
        if ffn == "w12":
            return (
                state | self.layer(f"{name}.mlp.w12", 2 * hidden, width) | self.layer(f"{name}.mlp.w3", width, hidden)
            )
        if ffn == "w123":
            gates = self.layer(f"{name}.mlp.w1", hidden, width) | self.layer(f"{name}.mlp.w2", hidden, width)
            return state | gates | self.layer(f"{name}.mlp.w3", width, hidden)
        return state | self.layer(f"{name}.mlp.fc1", hidden, width) | self.layer(f"{name}.mlp.fc2", width, hidden)

    def vit(self, *, token: bool = True, rows: int = 1, norm: bool = True, table: bool = True, **block: Any) -> State:
        """Tensors that all of them have, with ``rows`` rows of the position table before those of the patches."""
        state: State = {"cls_token": self.random(1, 1, self.width)} if token else {}
        if table:
            state["pos_embed"] = self.random(1, rows + self.grid**2, self.width)
        state |= self.layer("patch_embed.proj", self.width, 3, 4, 4)
        for index in range(self.depth):
            state |= self.block(f"blocks.{index}", **block)
        return state | (self.layer("norm", self.width) if norm else {})

    def each_block(self, *names: str) -> State:
        return {f"blocks.{index}.{name}": self.random(self.width) for index in range(self.depth) for name in names}

    def head(self, name: str = "head") -> State:
        return self.layer(name, 5, self.width)

    def dinov2(self, registers: int = 0, ffn: str = "mlp") -> State:
        state = {
            **self.vit(ffn=ffn),
            "mask_token": self.random(1, self.width),
            **self.each_block("ls1.gamma", "ls2.gamma"),
        }
        return {**state, "register_tokens": self.random(1, registers, self.width)} if registers else state

    def dinov3(self, ffn: str = "mlp", qkv_bias: bool = True, untied: bool = False) -> State:
        state = self.vit(table=False, ffn=ffn, qkv_bias=qkv_bias) | self.each_block("ls1.gamma", "ls2.gamma")
        state |= {"mask_token": self.random(1, self.width), "storage_tokens": self.random(1, 4, self.width)}
        state["rope_embed.periods"] = torch.tensor([1.0])
        if qkv_bias:
            mask = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(self.width)
            state |= {f"blocks.{index}.attn.qkv.bias_mask": mask for index in range(self.depth)}
        return state | (self.layer("cls_norm", self.width) | self.layer("local_cls_norm", self.width) if untied else {})

    def mae_decoder(self) -> State:
        state = {"mask_token": self.random(1, 1, 4), "decoder_pos_embed": self.random(1, 1 + self.grid**2, 4)}
        return state | self.layer("decoder_embed", 4, self.width) | self.layer("decoder_blocks.0.norm1", 4)

    def statistics(self, name: str, width: int) -> State:
        mean = {f"{name}.running_mean": self.random(width), f"{name}.running_var": self.random(width).abs() + 0.5}
        return {**mean, f"{name}.num_batches_tracked": torch.tensor(7)}

    def conv_stem(self) -> State:
        """MoCo v3's: four convolutions of stride 2, then one of kernel 1."""
        state, inputs = State(), 3
        for index in range(4):
            state |= self.layer(f"patch_embed.proj.{3 * index}", index + 1, inputs, 3, 3, bias=False)
            state |= self.layer(f"patch_embed.proj.{3 * index + 1}", index + 1)
            state |= self.statistics(f"patch_embed.proj.{3 * index + 1}", index + 1)
            inputs = index + 1
        body = {name: value for name, value in self.vit().items() if "patch_embed" not in name}
        return body | state | self.layer("patch_embed.proj.12", self.width, inputs, 1, 1)


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def chunked(state: State, size: int = 1) -> State:
    """FSDP's names: blocks.<chunk>.<number in the whole model>."""
    found = State()
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // size))
        found[".".join(parts)] = value
    return found


# label, what is in the file, prefix of what is read, and fields that must come out
Case = tuple[str, Callable[[Maker], dict[str, Any]], str, dict[str, Any]]
OFFSET, PLAIN = {"resize": "bicubic-offset", "norm_eps": 1e-6}, {"resize": "bicubic", "norm_eps": 1e-6}
CASES: dict[str, Case] = {
    "dino": ("facebook-dino", lambda m: m.vit(), "", {**OFFSET, "pool": "cls"}),
    "dino full": (
        "facebook-dino",
        lambda m: {
            "student": under("module.backbone.", m.vit()) | under("module.head.", m.layer("mlp.0", 3, m.width)),
            "teacher": under("backbone.", m.vit()) | under("head.", m.layer("mlp.0", 3, m.width)),
            "optimizer": OPTIMISER,
            "dino_loss": {"center": m.random(1, 3)},
            "fp16_scaler": {"scale": torch.tensor(2.0)},
            "epoch": 3,
        },
        "teacher/backbone.",
        OFFSET,
    ),
    "dinov2": ("facebook-dinov2", lambda m: m.dinov2(), "", {**OFFSET, "layer_scale": True, "num_registers": 0}),
    "dinov2 registers": (
        "facebook-dinov2",
        lambda m: m.dinov2(4),
        "",
        {"resize": "bicubic-antialias", "num_registers": 4, "pos_embed_registers": False},
    ),
    "dinov2 giant": ("facebook-dinov2", lambda m: m.dinov2(ffn="w12"), "", {"ffn": "swiglu_packed", "act": "silu"}),
    "dinov2 teacher": (
        "facebook-dinov2",
        lambda m: {"teacher": under("backbone.", m.dinov2()) | under("dino_head.", m.layer("mlp.0", 3, m.width))},
        "teacher/backbone.",
        OFFSET,
    ),
    "dinov2 chunked": (
        "facebook-dinov2-chunked",
        lambda m: {"teacher": under("backbone.", chunked(m.dinov2(4))), "iteration": 7},
        "teacher/backbone.",
        {"num_registers": 4},
    ),
    "dinov2 giant chunked": (
        "facebook-dinov2-chunked",
        lambda m: chunked(m.dinov2(ffn="w12"), 2),
        "",
        {"ffn": "swiglu_packed"},
    ),
    "dinov3": (
        "facebook-dinov3",
        lambda m: m.dinov3(),
        "",
        {"norm_eps": 1e-5, "qkv_bias": "masked", "num_registers": 4, "pos_embed": "none", "pool": "cls"},
    ),
    "dinov3 7B": (
        "facebook-dinov3",
        lambda m: m.dinov3(ffn="w123", qkv_bias=False, untied=True),
        "",
        {"qkv_bias": False, "ffn": "swiglu", "act": "silu", "prefix_norm": True},
    ),
    "dinov3 teacher": (
        "facebook-dinov3",
        lambda m: {
            "teacher": under("backbone.", m.dinov3(ffn="w123")) | under("ibot_head.", m.layer("mlp.0", 3, m.width))
        },
        "teacher/backbone.",
        {"ffn": "swiglu"},
    ),
    "mae": ("facebook-mae", lambda m: {"model": m.vit() | m.mae_decoder()}, "model/", {**PLAIN, "pool": "cls"}),
    "mae encoder": ("facebook-mae", lambda m: {"model": m.vit()}, "model/", PLAIN),
    "mae unwrapped": ("facebook-mae", lambda m: m.vit() | m.mae_decoder(), "", PLAIN),
    "mae fine-tuned": (
        "facebook-mae",
        lambda m: {"model": m.vit(norm=False) | m.layer("fc_norm", m.width) | m.head(), "optimizer": OPTIMISER},
        "model/",
        {"pool": "avg", "final_norm": "after", "num_classes": 5},
    ),
    "mae probe": (
        "facebook-mae",
        lambda m: {"model": m.vit() | m.statistics("head.0", m.width) | m.head("head.1"), "optimizer": OPTIMISER},
        "model/",
        {"head_norm": True, "num_classes": 5, "pool": "cls"},
    ),
    "mocov3": (
        "facebook-mocov3",
        lambda m: {
            "state_dict": under(
                "module.base_encoder.", m.vit() | m.layer("head.0", 3, m.width) | m.statistics("head.1", 3)
            )
            | under("module.momentum_encoder.", m.vit())
            | under("module.predictor.", m.layer("0", 3, 3)),
            "optimizer": OPTIMISER,
            "scaler": {"scale": torch.tensor(2.0)},
        },
        "state_dict/module.base_encoder.",
        {**PLAIN, "num_classes": 0},
    ),
    "mocov3 probe": (
        "facebook-mocov3",
        lambda m: {"state_dict": under("module.", m.vit() | m.head()), "arch": "vit_base"},
        "state_dict/module.",
        {**PLAIN, "num_classes": 5},
    ),
    "mocov3 conv": (
        "facebook-mocov3",
        lambda m: {"state_dict": under("module.", m.conv_stem() | m.head())},
        "state_dict/module.",
        {"stem": "conv", "stem_convs": ((1, 3, 2), (2, 3, 2), (3, 3, 2), (4, 3, 2))},
    ),
    "msn": (
        "facebook-msn",
        lambda m: {
            "target_encoder": under("module.", m.vit() | m.layer("fc.fc1", 3, m.width) | m.statistics("fc.bn1", 3)),
            "encoder": under("module.", m.vit() | m.layer("fc.fc1", 3, m.width)),
            "prototypes": m.random(4, 3),
            "opt": OPTIMISER,
            "scaler": None,
        },
        "target_encoder/module.",
        {**PLAIN, "class_token": True},
    ),
    "ijepa": (
        "facebook-ijepa",
        lambda m: {
            "encoder": under("module.", m.vit(token=False, rows=0)),
            "predictor": under("module.", {"mask_token": m.random(1, 1, 4)}),
            "target_encoder": under("module.", m.vit(token=False, rows=0)),
            "opt": OPTIMISER,
        },
        "target_encoder/module.",
        {**PLAIN, "class_token": False, "pool": "avg", "final_norm": "before"},
    ),
    "deit": ("facebook-deit", lambda m: {"model": m.vit() | m.head()}, "model/", {**PLAIN, "num_classes": 5}),
    "deit training": (
        "facebook-deit",
        lambda m: {"model": m.vit() | m.head(), "model_ema": m.vit() | m.head(), "optimizer": OPTIMISER},
        "model/",
        PLAIN,
    ),
    "deit distilled": (
        "facebook-deit",
        lambda m: {
            "model": {**m.vit(rows=2), "dist_token": m.random(1, 1, m.width), **m.head(), **m.head("head_dist")}
        },
        "model/",
        {"distilled": True, "pool": "cls_dist"},
    ),
    "deit3": (
        "facebook-deit",
        lambda m: {"model": m.vit(rows=0) | m.each_block("gamma_1", "gamma_2") | m.head()},
        "model/",
        {"layer_scale": True, "pos_embed_prefix": False},
    ),
}


def flat(tree: Any, prefix: str = "") -> State:
    found = State()
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, (dict, list)):
            found |= flat(value, f"{prefix}{key}/")
    return found


def same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def saved(folder: Path, content: dict[str, Any], name: str = "checkpoint.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("name", CASES)
@examples(4)
@given(heads=st.integers(1, 3), depth=st.integers(1, 3), grid=st.sampled_from((3, 5)), dtype=st.sampled_from(DTYPES))
def test_there_and_back(tmp_path: Path, name: str, heads: int, depth: int, grid: int, dtype: torch.dtype) -> None:
    label, make, prefix, expected = CASES[name]
    content = make(Maker(8 * heads, depth, dtype, grid))
    source, before = saved(tmp_path, content), flat(content)
    options: dict[str, Any] = {"num_heads": 2 * heads}
    if name.startswith("dinov3"):
        options["image_size"] = (8, 12)
    ckpt = vit_hub.open_checkpoint(source, overrides=options)
    assert ckpt.format == label
    assert ckpt.passport.prefix == prefix
    assert {field: getattr(ckpt.config, field) for field in expected} == expected
    assert (ckpt.config.embed_dim, ckpt.config.depth, ckpt.config.mlp_dim) == (8 * heads, depth, 16 * heads)

    # Every tensor of the source is in the model, carried along, or dropped for a reason.
    read = {part for parts in ckpt.origin.values() for part in parts}
    assert read | set(ckpt.dropped) == set(before)
    assert not read & set(ckpt.dropped)
    assert all(ckpt.dropped.values())
    assert all(part.startswith(prefix) for part in read)

    vit_hub.convert(source, tmp_path / "canonical.safetensors", overrides=options, keep_rest=True)
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "again.pth", to=label)
    again = flat(torch.load(tmp_path / "again.pth", weights_only=True))
    assert set(again) == read
    assert all(same(again[part], before[part]) for part in read)
    # With what was left out beside it, the whole file can be put together again.
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "whole.pth", to=label, keep_rest=True)
    whole = flat(torch.load(tmp_path / "whole.pth", weights_only=True))
    (tmp_path / "canonical.safetensors.rest.safetensors").unlink(missing_ok=True)
    assert set(whole) == set(before)
    assert all(same(whole[part], value) for part, value in before.items())


@pytest.mark.parametrize("name", CASES)
def test_plain_facebook_writes_a_file_of_the_same_kind(tmp_path: Path, name: str) -> None:
    label, make, _, _ = CASES[name]
    options: dict[str, Any] = {"num_heads": 2}
    if name.startswith("dinov3"):
        options["image_size"] = (8, 8)
    source = saved(tmp_path, make(Maker()))
    model = vit_hub.load(source, overrides=options)
    report = vit_hub.convert(source, tmp_path / "out", to="facebook", overrides=options)
    again = vit_hub.open_checkpoint(report.path, overrides=options)
    # Without its projector a MoCo v3 backbone is one of MAE's, which resizes alike.
    assert again.format == report.format == {"mocov3": "facebook-mae"}.get(name, label.removesuffix("-chunked"))
    assert again.config.resize == model.config.resize
    images = random_images(model.config)
    with torch.inference_mode():
        torch.testing.assert_close(vit_hub.load(report.path, overrides=options)(images), model(images))


def test_teacher_and_target_are_read_and_not_the_student(tmp_path: Path) -> None:
    for name, other in (
        ("dino full", "student/module.backbone."),
        ("ijepa", "encoder/module."),
        ("msn", "encoder/module."),
    ):
        _, make, prefix, _ = CASES[name]
        content = make(Maker())
        before = flat(content)
        ckpt = vit_hub.open_checkpoint(saved(tmp_path, content), overrides={"num_heads": 2})
        read = torch.from_numpy(ckpt.tensors["norm.weight"].read().copy())
        assert torch.equal(read, before[f"{prefix}norm.weight"])
        assert not torch.equal(read, before[f"{other}norm.weight"])
        assert f"{other}norm.weight" in ckpt.dropped


def test_names_of_the_gated_layers(tmp_path: Path) -> None:
    state = Maker().dinov3(ffn="w123")
    ckpt = vit_hub.open_checkpoint(saved(tmp_path, state), overrides={"num_heads": 2})
    for ours, theirs in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
        read = ckpt.tensors[f"blocks.1.mlp.{ours}.weight"].read().copy()
        assert torch.equal(torch.from_numpy(read), state[f"blocks.1.mlp.{theirs}.weight"])


def test_stored_periods_and_bias_masks_are_used(tmp_path: Path) -> None:
    state = Maker().dinov3()
    images = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    options = {"image_size": (12, 12)}

    def run(**changes: Tensor) -> Tensor:
        model = vit_hub.load(saved(tmp_path, {**state, **changes}), overrides=options)
        with torch.inference_mode():
            return model(images)

    outputs = run()
    # One period for every four channels of a head tells the heads.
    assert vit_hub.load(saved(tmp_path, state), overrides=options).config.num_heads == 2
    masked = state["blocks.0.attn.qkv.bias"].clone()
    masked[8:16] += 1
    assert torch.equal(run(**{"blocks.0.attn.qkv.bias": masked}), outputs)
    assert not torch.allclose(run(**{"blocks.0.attn.qkv.bias_mask": torch.ones(24)}), outputs)
    assert not torch.allclose(run(**{"rope_embed.periods": torch.tensor([1.5])}), outputs)


def test_linear_probe_of_mae(tmp_path: Path) -> None:
    maker = Maker()
    state = maker.vit() | maker.statistics("head.0", 8) | maker.head("head.1")
    model = vit_hub.load(saved(tmp_path, {"model": state}), overrides={"num_heads": 2})
    images = random_images(model.config)
    probe = nn.Sequential(nn.BatchNorm1d(8, affine=False, eps=1e-6), nn.Linear(8, 5)).eval()
    probe.load_state_dict(
        {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    )
    with torch.inference_mode():
        torch.testing.assert_close(model(images), probe(model.embed(images)))
    assert vit_hub.load(tmp_path / "checkpoint.pth", overrides={"num_heads": 2}, num_classes=0).config.num_classes == 0


def test_convolutional_stem_of_mocov3(tmp_path: Path) -> None:
    state = Maker().conv_stem() | Maker().head()
    model = vit_hub.load(saved(tmp_path, {"state_dict": under("module.", state)}), overrides={"num_heads": 2})
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 1), (1, 2), (2, 3), (3, 4)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    stem = nn.Sequential(*layers, nn.Conv2d(4, 8, 1)).eval()
    prefix = "patch_embed.proj."
    stem.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    images = random_images(model.config)
    with torch.inference_mode():
        torch.testing.assert_close(model.patch_embed(images), stem(images).flatten(2).transpose(1, 2))


def test_heads_of_mocov3(tmp_path: Path) -> None:
    for width, heads in ((384, 12), (768, 12), (192, 3)):
        content = {"state_dict": under("module.", Maker(width, 1).vit() | Maker(width).head())}
        assert vit_hub.open_checkpoint(saved(tmp_path, content)).config.num_heads == heads


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (lambda m: m.vit(), "facebook-dino"),
        (lambda m: m.vit() | m.head(), "timm"),
        (lambda m: {"model": m.vit()}, "facebook-mae"),
        (lambda m: {"model": m.vit() | m.head()}, "facebook-deit"),
        (lambda m: {"state_dict": m.vit() | m.head()}, "timm"),
        (lambda m: {"state_dict": under("module.", m.vit() | m.head())}, "facebook-mocov3"),
        (lambda m: m.vit() | m.each_block("ls1.gamma", "ls2.gamma"), "timm"),
        (lambda m: m.dinov2(), "facebook-dinov2"),
    ],
)
def test_precedence_among_look_alikes(tmp_path: Path, content: Callable[[Maker], dict[str, Any]], label: str) -> None:
    path = saved(tmp_path, content(Maker()))
    ckpt = vit_hub.open_checkpoint(path, overrides={"num_heads": 2})
    assert ckpt.format == label
    if label not in ("facebook-dinov2", "timm"):
        assert any("timm" in message and "format=" in message for message in ckpt.warnings)
        assert "timm" in ckpt.inferred["format"]


def test_timm_keeps_its_own_files(tmp_path: Path) -> None:
    state = Maker().vit()
    from safetensors.torch import save_file

    save_file(state, tmp_path / "model.safetensors")
    options = {"num_heads": 2}
    assert vit_hub.open_checkpoint(tmp_path / "model.safetensors", overrides=options).format == "timm"
    folder = tmp_path / "hub"
    folder.mkdir()
    saved(folder, state, "pytorch_model.bin")
    file = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "global_pool": "token"}
    (folder / "config.json").write_text(json.dumps(file))
    assert vit_hub.open_checkpoint(folder, overrides={**options, "image_size": (12, 12)}).format == "timm"


def test_format_insists(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": Maker().vit() | Maker().head()})
    options = {"num_heads": 2}
    assert vit_hub.open_checkpoint(path, format="timm", overrides=options).config.resize == "bicubic-antialias"
    assert vit_hub.open_checkpoint(path, format="facebook-mae", overrides=options).format == "facebook-mae"
    assert vit_hub.open_checkpoint(path, format="facebook", overrides=options).format == "facebook-deit"
    with pytest.raises(UnknownFormatError, match="facebook-dinov2"):
        vit_hub.open_checkpoint(path, format="facebook-dinov5", overrides=options)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.zeros(5, 16), "bias": torch.zeros(5)},
        {"linear.weight": torch.zeros(5, 16), "linear.bias": torch.zeros(5)},
        {"state_dict": {"module.linear.weight": torch.zeros(5, 16)}, "optimizer": OPTIMISER, "best_acc": 77.0},
    ],
)
def test_linear_heads_are_no_backbones(tmp_path: Path, content: dict[str, Any]) -> None:
    path = saved(tmp_path, content, "dinov2_vits14_linear_head.pth")
    with pytest.raises(UnknownFormatError, match=r"linear_head\.pth.*a linear head alone.*backbone"):
        vit_hub.open_checkpoint(path)


def test_unknown_and_missing_tensors_are_named(tmp_path: Path) -> None:
    state, options = Maker().dinov2(), {"num_heads": 2}
    path = saved(tmp_path, {**state, "blocks.0.attn.relative_bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.relative_bias.*nearest"):
        vit_hub.open_checkpoint(path, overrides=options)
    del state["blocks.1.norm2.bias"]
    with pytest.raises(CheckpointError, match=r"missing blocks\.1\.norm2\.bias"):
        vit_hub.open_checkpoint(saved(tmp_path, state), overrides=options)
    with pytest.raises(ConfigError, match="num_heads"):
        vit_hub.open_checkpoint(saved(tmp_path, Maker().dinov2()))
    with pytest.raises(ConfigError, match="num_heads"):
        vit_hub.open_checkpoint(saved(tmp_path, Maker().dinov2()), overrides={"num_heads": 3})


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "facebook-dino"),
        ({"num_classes": 3}, "facebook-deit"),
        ({"num_classes": 3, "pool": "avg", "final_norm": "after"}, "facebook-mae"),
        ({"num_classes": 3, "distilled": True, "pool": "cls_dist"}, "facebook-deit"),
        ({"num_classes": 3, "layer_scale": True, "pos_embed_prefix": False}, "facebook-deit"),
        ({"num_classes": 3, "head_norm": True}, "facebook-mae"),
        ({"class_token": False, "pos_embed_prefix": False, "pool": "avg"}, "facebook-ijepa"),
        ({"layer_scale": True}, "facebook-dinov2"),
        ({"layer_scale": True, "num_registers": 4}, "facebook-dinov2"),
        ({"layer_scale": True, "ffn": "swiglu_packed", "act": "silu"}, "facebook-dinov2"),
    ],
)
def test_plain_facebook_finds_who_can_express_a_model(tmp_path: Path, changes: dict[str, Any], label: str) -> None:
    model = random_model(vit_hub.ViTConfig(**{**SMALL, **changes}))
    if model.config.head_norm:
        model.head_norm.running_var.abs_()
    model.save(tmp_path / "ours.safetensors")
    report = vit_hub.convert(tmp_path / "ours.safetensors", tmp_path / "out", to="facebook")
    assert report.format == label
    again = vit_hub.load(report.path, overrides={"num_heads": 2})
    images = random_images(model.config)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), model(images))
    if label == "facebook-dinov2":
        state = torch.load(report.path / "model.pth", weights_only=True)
        assert torch.equal(state["mask_token"], torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"act": "gelu_tanh"}, "act"),
        ({"norm_eps": 1e-12}, "norm_eps"),
        ({"pool": "map"}, "pool"),
        ({"representation_dim": 4}, "representation_dim"),
        ({"layer_scale": True, "num_registers": 4, "num_classes": 3}, "num_classes"),
    ],
)
def test_what_none_of_them_can_express_is_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    random_model(vit_hub.ViTConfig(**{**SMALL, **changes})).save(tmp_path / "ours.safetensors")
    with pytest.raises(UnsupportedByFormatError, match=field) as raised:
        vit_hub.convert(tmp_path / "ours.safetensors", tmp_path / "out.pth", to="facebook")
    assert "canonical" in raised.value.hint
    assert not (tmp_path / "out.pth").exists()
