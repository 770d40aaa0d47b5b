"""The one model: its parameters, its outputs, its shortcuts, and how it behaves under PyTorch's tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinds import KINDS
from small_models import configs, examples, grid_configs, random_images, random_model, relative_error

import vit_hub
from vit_hub.errors import ConfigError
from vit_hub.model.config import RelPosMlp, Rope
from vit_hub.model.positions import sincos2d
from vit_hub.model.shapes import field_of, num_parameters, tensor_shapes
from vit_hub.model.vit import VisionTransformer

SMALL: dict[str, Any] = {
    "image_size": (12, 8),
    "patch_size": (4, 2),
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_classes": 5,
}
# Every kind of output and of pooling, with the parts that the forward pass treats differently.
VARIETIES: dict[str, dict[str, Any]] = {
    "token": {},
    "registers": {"num_registers": 3, "pool": "avg", "layer_scale": True},
    "map": {"pool": "map", "class_token": False, "pos_embed_prefix": False, "qk_norm": True},
    "fc_norm": {"pool": "avg", "final_norm": "after", "pos_embed_prefix": False},
    "clip": {"pre_norm": True, "patch_bias": False, "num_classes": 0, "projection_dim": 7, "act": "quick_gelu"},
    "distilled": {"distilled": True, "pool": "cls_dist"},
    "swiglu": {"ffn": "swiglu", "act": "silu", "qkv_bias": "qv", "representation_dim": 6},
    "packed": {"ffn": "swiglu_packed", "act": "silu", "qkv_bias": False},
    "sincos": {"pos_embed": "sincos2d", "pos_embed_prefix": False, "pool": "first", "act": "gelu_tanh"},
    "tokens": {"pool": "none", "num_classes": 0},
    "rope": {"pos_embed": "none", "pos_embed_prefix": False, "qkv_bias": "masked", "num_registers": 2,
             "rope": Rope(theta=100.0, coordinates="centered", pairs="half"), "prefix_norm": True, "pool": "none",
             "num_classes": 0},
    "mixed_rope": {"rope": Rope(mixed=True), "attn_norm": True, "mlp_norm": True, "pool": "map", "pool_prefix": True},
    "relative": {"pos_embed": "none", "pos_embed_prefix": False, "rel_pos": "block", "pool": "avg",
                 "final_norm": "after"},
    "shared_relative": {"rel_pos": "shared"},
    "hybrid": {"stem": "resnet", "stem_stages": (1,), "stem_width": 32, "patch_size": 1, "image_size": (12, 16)},
    "convolutions": {"stem": "conv", "stem_convs": ((4, 3, 2),), "patch_size": 2, "image_size": (12, 16)},
    "linear_head": {"head_input": "cls_avg"},
    "linear_probe": {"head_norm": True, "pool": "avg"},
    "post_norm": {"norm_position": "post"},
    "parallel": {"parallel": "joint", "layer_scale": True},
    "relative_network": {"pos_embed": "none", "pos_embed_prefix": False, "rel_pos": "shared", "class_token": False,
                         "rel_pos_mlp": RelPosMlp(hidden_dim=6), "pool": "avg"},
}  # fmt: skip
every_variety = pytest.mark.parametrize(
    "config", [vit_hub.ViTConfig(**SMALL | v) for v in VARIETIES.values()], ids=VARIETIES
)


@examples(150)
@given(config=configs() | grid_configs())
def test_the_parameters_are_those_of_the_layout(config: vit_hub.ViTConfig) -> None:
    with torch.device("meta"):
        model = VisionTransformer(config)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == tensor_shapes(config)
    assert sum(value.numel() for value in model.parameters()) == num_parameters(config)
    assert all(hasattr(config, field_of(name)) for name in tensor_shapes(config))


@pytest.mark.parametrize("norm", ["layer", "rms", "rms_blocks"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_parameters_of_the_layout(kind: str, norm: str) -> None:
    config = KINDS[kind].replace(norm=norm)
    with torch.device("meta"):
        model = VisionTransformer(config)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == tensor_shapes(config)


@examples(60)
@given(config=configs())
def test_outputs_have_the_documented_shapes(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config), random_images(config, batch=3)
    tokens = (3, config.num_prefix_tokens + config.num_patches, config.embed_dim)
    assert model.forward_features(images).shape == tokens
    if config.pool == "none":
        assert model(images).shape == tokens
        with pytest.raises(ConfigError, match="pool='none'.*forward_features"):
            model.embed(images)
        return
    assert model.embed(images).shape == (3, config.embed_dim)
    width = config.num_classes or config.projection_dim or config.representation_dim or config.embed_dim
    assert model(images).shape == ((3, width) if config.pool != "cls_dist" or config.num_classes else (3, tokens[-1]))


@examples(60)
@given(config=configs())
def test_the_shortcut_to_the_pooled_output_gives_what_all_tokens_give(config: vit_hub.ViTConfig) -> None:
    """The last block computes the pooled queries only; here the output is composed from all tokens, in float64."""
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    tokens = model.forward_features(images)
    if config.pool == "none":
        assert torch.equal(model(images), tokens)
        return
    first = config.num_prefix_tokens
    pools: dict[str, Callable[[], torch.Tensor]] = {
        "cls": lambda: tokens[:, 0],
        "cls_dist": lambda: tokens[:, :2],
        "avg": lambda: tokens[:, first:].mean(dim=1),
        "first": lambda: tokens[:, first],
        "attn": lambda: model.attn_pool(tokens if config.pool_prefix else tokens[:, first:]),
        "map": lambda: model.attn_pool(tokens[:, first:]),
    }
    if config.pool_prefix:
        pools |= {"map": lambda: model.attn_pool(tokens), "avg": lambda: tokens.mean(dim=1)}
    pooled = model.fc_norm(pools[config.pool]())
    if config.head_input == "cls_avg":
        embedded, wanted = pooled, model.head(torch.cat((tokens[:, 0], tokens[:, first:].mean(dim=1)), dim=1))
    elif config.pool == "cls_dist":
        embedded, wanted = pooled.mean(dim=1), (model.head(pooled[:, 0]) + model.head_dist(pooled[:, 1])) / 2
    else:
        embedded, wanted = pooled, model.head(model.head_norm(model.projection(model.pre_logits(pooled))))
    assert relative_error(model.embed(images), embedded) <= 1e-12
    assert relative_error(model(images), wanted) <= 1e-12


@every_variety
def test_intermediate_outputs_are_those_of_the_blocks(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config), random_images(config)
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    model.forward_features(images)
    rows, columns = config.grid_size
    patches = [output[:, config.num_prefix_tokens :] for output in seen]
    found = model.forward_intermediates(images, [0, -1], reshape=False)
    assert all(torch.equal(item, part) for item, part in zip(found, patches, strict=True))
    maps = model.forward_intermediates(images, 2)
    assert [item.shape for item in maps] == [(2, config.embed_dim, rows, columns)] * 2
    assert all(torch.equal(item.flatten(2).transpose(1, 2), part) for item, part in zip(maps, patches, strict=True))
    # Patches are row-major: row r, column c is patch r * columns + c.
    assert torch.equal(maps[0][:, :, 1, 2], patches[0][:, columns + 2])
    assert torch.equal(model.forward_intermediates(images, [1, 0])[0], maps[1])
    for wrong in (3, 0, [2], [-3], []):
        with pytest.raises(ConfigError, match=r"indices=.*blocks 0 to 1"):
            model.forward_intermediates(images, wrong)


@every_variety
def test_attention_maps_are_what_the_blocks_attend_with(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    model.forward_features(images)
    attended = tuple(seen)
    maps = model.attention_maps(images)
    tokens = config.num_prefix_tokens + config.num_patches
    assert [item.shape for item in maps] == [(2, config.num_heads, tokens, tokens)] * config.depth
    for attention, (x, output), block in zip(maps, attended, model.blocks, strict=True):
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones_like(attention[..., 0]))
        values = block.attn.qkv_heads(x)[2]
        combined = block.attn.norm((attention @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(block.attn.proj(combined), output)


def test_differential_attention_maps_are_what_the_blocks_attend_with() -> None:
    config = vit_hub.ViTConfig(**SMALL, differential=True)
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    model.forward_features(images)
    attended = tuple(seen)
    for index, (weights, (x, output)) in enumerate(zip(model.attention_maps(images), attended, strict=True)):
        attn = model.blocks[index].attn
        dots = [(getattr(attn, f"lambda_q{n}") * getattr(attn, f"lambda_k{n}")).sum() for n in (1, 2)]
        start = 0.8 - 0.6 * np.exp(-0.3 * index)
        factor = dots[0].exp() - dots[1].exp() + start
        torch.testing.assert_close(weights.sum(dim=-1), (1 - factor).expand_as(weights[..., 0]))
        summed = attn.sub_norm(weights @ attn.qkv_heads(x)[2]) * (1 - start)
        torch.testing.assert_close(attn.proj(summed.transpose(1, 2).flatten(2)), output)


def test_the_blocks_compute_the_papers_equations() -> None:
    """Equations 1-4 of arXiv 2010.11929 and the attention of 1706.03762, written out in numpy."""
    config = vit_hub.ViTConfig(**SMALL)
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64, batch=1)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * torch.distributions.Normal(0, 1).cdf(torch.from_numpy(x)).numpy()

    picture = images[0].numpy()
    p, q = config.patch_size
    cut = [
        picture[:, y * p : (y + 1) * p, x * q : (x + 1) * q].ravel()
        for y in range(config.grid_size[0])
        for x in range(config.grid_size[1])
    ]
    kernel = weights["patch_embed.proj.weight"].reshape(config.embed_dim, -1)
    patches = np.stack(cut) @ kernel.T + weights["patch_embed.proj.bias"]
    z = np.concatenate([weights["cls_token"][0], patches]) + weights["pos_embed"][0]
    for index in range(config.depth):
        block = f"blocks.{index}"
        q_, k, v = np.split(linear(norm(z, f"{block}.norm1"), f"{block}.attn.qkv"), 3, axis=-1)
        heads = []
        for head in range(config.num_heads):
            part = slice(head * config.head_dim, (head + 1) * config.head_dim)
            scores = np.exp(q_[:, part] @ k[:, part].T / np.sqrt(config.head_dim))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        z = z + linear(np.concatenate(heads, axis=-1), f"{block}.attn.proj")
        z = z + linear(gelu(linear(norm(z, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    logits = linear(norm(z, "norm")[0], "head")
    assert np.abs(model(images)[0].detach().numpy() - logits).max() <= 1e-12 * np.abs(logits).max()


def test_the_sine_cosine_table_is_big_visions() -> None:
    table = sincos2d((2, 3), 8)
    assert table.shape == (6, 8)
    y, x = 1, 2
    slow = 1 / 10_000
    wanted = [
        np.sin(x),
        np.sin(x * slow),
        np.cos(x),
        np.cos(x * slow),
        np.sin(y),
        np.sin(y * slow),
        np.cos(y),
        np.cos(y * slow),
    ]
    np.testing.assert_allclose(table[y * 3 + x], wanted, rtol=1e-12)


@every_variety
def test_a_model_without_weights_allocates_nothing(config: vit_hub.ViTConfig) -> None:
    with torch.device("meta"):
        model = VisionTransformer(config)
        assert model(torch.empty(2, config.in_chans, *config.image_size)).is_meta
    assert all(value.is_meta for value in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(
    "name",
    ["token", "map", "clip", "distilled", "packed", "sincos", "tokens", "rope", "mixed_rope", "relative", "hybrid"],
)
def test_it_compiles_and_exports_as_one_graph(name: str) -> None:
    config = vit_hub.ViTConfig(**SMALL | VARIETIES[name])
    model, images = random_model(config), random_images(config)
    wanted = model(images)
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(model, fullgraph=True, backend="eager")(images), wanted, atol=1e-6)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    assert torch.allclose(exported.module()(images), wanted, atol=1e-6)
    assert exported.module()(random_images(config, batch=3)).shape[0] == 3


@every_variety
def test_half_precision_stays_near_the_float32_outputs(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config), random_images(config)
    wanted = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)
    assert relative_error(mixed.float(), wanted) <= 0.1
    low = model.to(torch.bfloat16)
    assert low(images.bfloat16()).dtype == torch.bfloat16
    assert relative_error(low(images.bfloat16()).float(), wanted) <= 0.1


@every_variety
def test_every_parameter_has_a_gradient(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config).train(), random_images(config)
    model(images).square().sum().backward()
    without = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0}
    # A softmax does not change with what is added to all its scores: the bias of the keys has no effect.
    assert without <= {"attn_pool.q.bias"}


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 3, 12, 9), (2, 1, 12, 8), (3, 12, 8), (2, 3, 24, 16)])
def test_images_of_another_size_are_refused_with_both_sizes(shape: tuple[int, ...]) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL))
    for method in (model, model.embed, model.forward_features, model.forward_intermediates, model.attention_maps):
        with pytest.raises(ConfigError, match="12, 8") as error:
            method(torch.zeros(shape))
        assert str(shape) in str(error.value)
        assert "image_size=" in error.value.hint


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 12, 8), "add the axis of the batch, images[None]"),
        ((2, 12, 8, 3), "put the channels before height and width, images.permute(0, 3, 1, 2)"),
        ((2, 1, 12, 8), "load the model with in_chans=1"),
    ],
)
def test_images_of_another_shape_get_a_remedy(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        random_model(vit_hub.ViTConfig(**SMALL))(torch.zeros(shape))
    assert error.value.hint.startswith(words)


def test_a_fine_tuned_model_is_saved_and_loaded(tmp_path: Path) -> None:
    random_model(vit_hub.ViTConfig(**SMALL)).save(tmp_path / "base.safetensors")
    model = vit_hub.load(tmp_path / "base.safetensors", num_classes=3, in_chans=1)
    assert model.config.num_classes == 3
    images = random_images(model.config)
    assert torch.equal(model(images), torch.zeros(2, 3))
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 2])).backward()
        optimizer.step()
    model.eval()
    path = model.save(tmp_path / "tuned")
    assert path == tmp_path / "tuned" / "model.safetensors"
    again = vit_hub.load(path)
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(images), model(images))
    # The memory of the first file is not what was trained.
    assert torch.equal(vit_hub.load(tmp_path / "base.safetensors").state_dict()["norm.weight"],
                       random_model(vit_hub.ViTConfig(**SMALL)).state_dict()["norm.weight"])  # fmt: skip


@pytest.mark.parametrize("chans", [1, 2, 3, 5])
def test_other_channels_keep_the_response_to_grey_images(chans: int, tmp_path: Path) -> None:
    """Summed for one channel, repeated and scaled for others: equal channels give the tokens they gave."""
    path = random_model(vit_hub.ViTConfig(**SMALL)).save(tmp_path / "base.safetensors")
    grey = torch.rand(2, 1, 12, 8)
    model = vit_hub.load(path, in_chans=chans)
    assert model.config.in_chans == chans
    wanted = vit_hub.load(path)(grey.expand(-1, 3, -1, -1))
    if chans in (1, 3):
        torch.testing.assert_close(model(grey.expand(-1, chans, -1, -1)), wanted)
    kernel = vit_hub.load(path).patch_embed.proj.weight
    found = model.patch_embed.proj.weight
    assert found.shape[1] == chans
    if chans not in (1, 3):
        torch.testing.assert_close(found, kernel[:, [i % 3 for i in range(chans)]] * 3 / chans)


def test_removing_the_head_leaves_the_embedding(tmp_path: Path) -> None:
    base = random_model(vit_hub.ViTConfig(**SMALL))
    path = base.save(tmp_path / "base.safetensors")
    images = random_images(base.config)
    model = vit_hub.load(path, num_classes=0)
    assert model.config.num_classes == 0
    torch.testing.assert_close(model(images), base.embed(images))
    assert vit_hub.load(path, num_classes=5).head.weight.equal(base.head.weight)


def test_loading_keeps_or_changes_the_dtype_as_asked(tmp_path: Path) -> None:
    path = random_model(vit_hub.ViTConfig(**SMALL)).to(torch.bfloat16).save(tmp_path / "half.safetensors")
    dtypes = {dtype: {value.dtype for value in vit_hub.load(path, dtype=dtype).parameters()} for dtype in
              ("float32", "auto", "float16", torch.float64)}  # fmt: skip
    assert dtypes == {
        "float32": {torch.float32},
        "auto": {torch.bfloat16},
        "float16": {torch.float16},
        torch.float64: {torch.float64},
    }
    for wrong in ("int8", "float33", torch.int32):
        with pytest.raises(ConfigError, match="dtype"):
            vit_hub.load(path, dtype=wrong)


@pytest.mark.parametrize("device", ["toaster", "cuda:1000", "xpu:7"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=device) as error:
        vit_hub.load("vit-nano-digits", device=device)
    assert "cpu" in error.value.hint


def test_loading_initialises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = random_model(vit_hub.ViTConfig(**SMALL)).save(tmp_path / "model.safetensors")
    monkeypatch.setattr(torch.Tensor, "uniform_", _forbidden(torch.Tensor.uniform_))
    monkeypatch.setattr(torch.Tensor, "normal_", _forbidden(torch.Tensor.normal_))
    state = torch.random.get_rng_state()
    vit_hub.load(path)
    assert torch.equal(torch.random.get_rng_state(), state)


def _forbidden(method: Callable[..., Any]) -> Callable[..., Any]:
    def checked(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert tensor.is_meta
        return method(tensor, *args, **kwargs)

    return checked


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_heads", {"num_heads": 3}),
        ("num_heads", {"num_heads": 0}),
        ("embed_dim", {"embed_dim": -16}),
        ("embed_dim", {"embed_dim": 16.0}),
        ("depth", {"depth": True}),
        ("mlp_dim", {"mlp_dim": 0}),
        ("in_chans", {"in_chans": 0}),
        ("num_registers", {"num_registers": -1}),
        ("num_classes", {"num_classes": -1}),
        ("representation_dim", {"representation_dim": 1.5}),
        ("projection_dim", {"projection_dim": "8"}),
        ("image_size", {"image_size": (3, 8)}),
        ("image_size", {"image_size": (12, 8, 3)}),
        ("image_size", {"image_size": "12"}),
        ("patch_size", {"patch_size": (0, 2)}),
        ("patch_size", {"patch_size": (4.0, 2)}),
        ("norm_eps", {"norm_eps": 0.0}),
        ("norm_eps", {"norm_eps": 1}),
        ("norm_eps", {"norm_eps": "1e-6"}),
        ("ffn", {"ffn": "glu"}),
        ("act", {"act": "gelu_new"}),
        ("qkv_bias", {"qkv_bias": "kv"}),
        ("pos_embed", {"pos_embed": "rope2"}),
        ("pool", {"pool": "max"}),
        ("final_norm", {"final_norm": "both"}),
        ("resize", {"resize": "nearest"}),
        ("pool", {"class_token": False}),
        ("distilled", {"class_token": False, "distilled": True, "pool": "avg"}),
        ("pool", {"pool": "cls_dist"}),
        ("pool", {"pool": "cls_dist", "distilled": True, "representation_dim": 4}),
        ("final_norm", {"pool": "none", "num_classes": 0, "final_norm": "after"}),
        ("num_classes", {"pool": "none"}),
        ("pos_embed_registers", {"num_registers": 2, "pos_embed_registers": True, "pos_embed_prefix": False}),
        ("pos_embed", {"embed_dim": 6, "pos_embed": "sincos2d"}),
        ("pool_prefix", {"pool": "first", "pool_prefix": True}),
        ("pool_prefix", {"pool": "avg", "class_token": False, "pool_prefix": True}),
        ("pool_heads", {"pool": "map", "pool_heads": 3}),
        ("prefix_norm", {"pool": "avg", "final_norm": "after", "prefix_norm": True}),
        ("head_input", {"pool": "avg", "head_input": "cls_avg"}),
        ("head_norm", {"num_classes": 0, "head_norm": True}),
        ("rel_pos", {"num_registers": 1, "rel_pos": "block"}),
        ("rope", {"embed_dim": 12, "rope": {}}),
        ("rope", {"rope": {"pairs": "thirds"}}),
        ("rope", {"rope": {"base": 10}}),
        ("stem_convs", {"stem": "conv"}),
        ("stem_stages", {"stem_stages": (3, 4, 9)}),
        ("stem_width", {"stem": "resnet", "stem_width": 40, "patch_size": 1, "image_size": 16}),
        ("projection_dim", {"projection_dim": 4, "num_classes": 0, "representation_dim": 4}),
        ("projection_dim", {"projection_dim": 4, "num_classes": 0, "pool": "cls_dist", "distilled": True}),
        ("representation_dim", {"pool": "none", "num_classes": 0, "representation_dim": 4}),
        ("hidden_size", {"hidden_size": 16}),
    ],
)  # fmt: skip
def test_an_inconsistent_config_is_refused_naming_the_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"\b{field}\b"):
        vit_hub.ViTConfig.from_dict(SMALL | changes)


@examples(50)
@given(config=configs(stem="patch"), fraction=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_a_config_is_plain_data(config: vit_hub.ViTConfig, fraction: tuple[int, int]) -> None:
    import json

    assert vit_hub.ViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(config.replace())
    rest = tuple(min(part, size - 1) for part, size in zip(fraction, config.patch_size, strict=True))
    larger = config.replace(image_size=[size + extra for size, extra in zip(config.image_size, rest, strict=True)])
    assert larger.num_patches == config.num_patches
    images = random_images(larger)
    whole = images[..., : config.image_size[0], : config.image_size[1]]
    assert torch.equal(random_model(larger).forward_features(images), random_model(config).forward_features(whole))
