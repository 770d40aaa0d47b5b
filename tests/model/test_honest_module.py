"""A model that others take apart: adapters, hooks, parametrizations, casts and writes to its values all take effect."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import configs, examples, grid_configs, random_images, random_model, relative_error
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters

import vit_hub

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_classes": 5,
}


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold parameters of their own."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    }


class Probe(nn.Module):
    """Calls the layer in whose place it stands, and remembers what came out."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.kept: Tensor | None = None
        self.copy: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, *args: Any) -> Tensor:
        self.kept = self.base(*args)
        self.copy = self.kept.clone()
        return self.kept


@examples(60)
@given(config=configs())
def test_every_layer_can_be_replaced(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    expected = model(images).detach()
    probed = copy.deepcopy(model)
    probes = {}
    for name, layer in layers(probed).items():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
            parent, _, attribute = name.rpartition(".")
            probes[name] = Probe(layer)
            setattr(probed.get_submodule(parent), attribute, probes[name])
    with torch.no_grad():
        assert relative_error(probed(images), expected) <= 1e-12
    assert not [name for name, probe in probes.items() if probe.kept is None]
    assert all(torch.equal(probe.kept, probe.copy) for probe in probes.values())
    attn = "attn" if config.branches == 1 else "attns.0.attn"
    last = probes[f"blocks.{config.depth - 1}.{attn}.qkv"].kept
    assert last.shape[1] == config.num_prefix_tokens + config.num_patches


@examples(90)
@given(config=configs() | grid_configs())
def test_every_layer_is_seen_by_hooks(config: vit_hub.ViTConfig) -> None:
    model, images = random_model(config, dtype=torch.float64), random_images(config, torch.float64)
    expected = model(images).detach()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, layer in layers(model).items():
        layer.register_forward_hook(
            lambda _, inputs, output, name=name: seen.setdefault(name, []).append((output, output.clone()))
        )
    with torch.no_grad():
        assert relative_error(model(images), expected) <= 1e-12
    assert set(seen) == set(layers(model))
    assert all(torch.equal(output, kept) for found in seen.values() for output, kept in found)


@pytest.mark.parametrize("pool", ["cls", "cls_dist"])
@pytest.mark.parametrize("watched", ["blocks.1", "blocks.1.norm2", "blocks.1.mlp", "norm"])
def test_who_looks_at_the_last_block_sees_all_tokens(watched: str, pool: str) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL, pool=pool, distilled=pool == "cls_dist"), dtype=torch.float64)
    images, seen = random_images(model.config, torch.float64), []
    expected, tokens = model(images), model.forward_features(images)
    handle = model.get_submodule(watched).register_forward_hook(lambda _, args, output: seen.append(output))
    for call in (model, model.embed):
        assert relative_error(call(images), expected if call is model else model.embed(images)) <= 1e-12
    assert all(output.shape == tokens.shape for output in seen)
    handle.remove()
    assert relative_error(model(images), expected) <= 1e-12


def test_a_global_hook_keeps_what_it_saw() -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL))
    images, seen = random_images(model.config), []
    expected = model(images).detach()

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output, output.clone()))

    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(keep)
        try:
            torch.testing.assert_close(model(images), expected)
        finally:
            handle.remove()
    assert seen
    assert all(torch.equal(output, kept) for output, kept in seen)


@pytest.mark.parametrize("qkv_bias", [True, False, "qv", "masked"])
def test_parametrizations_take_effect(qkv_bias: bool | str) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = random_model(vit_hub.ViTConfig(**SMALL, qkv_bias=qkv_bias), dtype=torch.float64)
    doubled, images = copy.deepcopy(model), random_images(model.config, torch.float64)
    for name in ("patch_embed.proj", "blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"):
        parametrize.register_parametrization(model.get_submodule(name), "weight", Doubled())
        with torch.no_grad():
            doubled.get_submodule(name).weight.mul_(2)
    with torch.no_grad():
        torch.testing.assert_close(model(images), doubled(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("qkv_bias", [True, False, "qv", "masked"])
def test_other_parameters_can_be_passed_in(qkv_bias: bool | str) -> None:
    config = vit_hub.ViTConfig(**SMALL, qkv_bias=qkv_bias)
    model, other = random_model(config, dtype=torch.float64), random_model(config, seed=1, dtype=torch.float64)
    images = random_images(config, torch.float64)
    with torch.no_grad():
        found = torch.func.functional_call(model, other.state_dict(), (images,))
        torch.testing.assert_close(found, other(images), rtol=1e-12, atol=1e-12)


def in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5).add_(0.25)


def replaced(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5 + 0.25


def through_numpy(model: nn.Module) -> None:
    for parameter in model.parameters():
        array = parameter.detach().numpy()
        array *= 0.5
        array += 0.25


def as_a_vector(model: nn.Module) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()) * 0.5 + 0.25, model.parameters())


def by_state_dict(model: nn.Module) -> None:
    with torch.inference_mode():
        model.load_state_dict({name: tensor * 0.5 + 0.25 for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("update", [in_place, replaced, through_numpy, as_a_vector, by_state_dict])
@pytest.mark.parametrize(
    "fields",
    [{}, {"rel_pos": "block"}, {"rel_pos": "shared"}, {"pos_embed": "none", "rel_pos": "block"}],
    ids=["table", "relative", "shared", "relative alone"],
)
def test_resized_tables_follow_the_values(fields: dict[str, Any], update: Callable[[nn.Module], None]) -> None:
    used, fresh = (random_model(vit_hub.ViTConfig(**SMALL, **fields)).requires_grad_(False) for _ in range(2))
    used.dynamic = fresh.dynamic = True
    images = torch.randn(1, 3, 24, 20)
    used(images)
    update(used)
    update(fresh)
    assert torch.equal(used(images), fresh(images))


@examples(60)
@given(config=configs(), update=st.sampled_from([in_place, replaced, through_numpy, as_a_vector, by_state_dict]))
def test_any_model_follows_its_values_at_any_size(
    config: vit_hub.ViTConfig, update: Callable[[nn.Module], None]
) -> None:
    used, fresh = (random_model(config, dtype=torch.float64).requires_grad_(False) for _ in range(2))
    used.dynamic = fresh.dynamic = True
    own = random_images(config, torch.float64)
    rows, columns = config.pixels_per_patch
    other = torch.randn(1, config.in_chans, config.image_size[0] + rows, config.image_size[1] + 2 * columns).double()
    used(own), used(other)
    update(used)
    update(fresh)
    for images in (other, own):
        assert torch.equal(used(images), fresh(images)) or used(images).isnan().any()


def test_rotations_follow_the_periods_that_are_loaded() -> None:
    rope = {"theta": 100.0, "coordinates": "centered", "pairs": "half", "stored_periods": True}
    config = vit_hub.ViTConfig(**SMALL, pos_embed="none", rope=rope)
    model, other = random_model(config), random_model(config, seed=1)
    other.rope_embed.periods.mul_(1.5)
    other.reset_tables()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.rope_cos, other.rope_cos)
    assert torch.equal(model(random_images(config)), other(random_images(config)))


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bfloat16": lambda model: model.bfloat16(),
    "float16": lambda model: model.half(),
    "float64": lambda model: model.double(),
    "float32": lambda model: model.half().float(),
}


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize(
    "fields",
    [
        {"pos_embed": "none", "rope": {}},
        {"pos_embed": "none", "rope": {"theta": 100.0, "coordinates": "centered", "stored_periods": True}},
        {"pos_embed": "sincos2d"},
    ],
    ids=["rope", "stored periods", "sincos"],
)
def test_casting_is_loading_in_that_dtype(fields: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL, **fields))
    if model.rope_embed is not None:
        model.rope_embed.periods.mul_(1.1)
    file = model.save(tmp_path / "m.safetensors")
    loaded, cast = vit_hub.load(file, dtype=dtype), CASTS[dtype](vit_hub.load(file))
    for name in ("rope_cos", "rope_sin", "pos_table"):
        expected, found = getattr(loaded, name), getattr(cast, name)
        assert (expected is None) == (found is None)
        assert expected is None or (expected.dtype == found.dtype and torch.equal(expected, found)), name
    if model.rope_embed is not None:
        assert torch.equal(cast.rope_embed.periods, model.rope_embed.periods)
        assert torch.equal(loaded.rope_embed.periods, model.rope_embed.periods)


@examples(40)
@given(config=configs(), dtype=st.sampled_from(sorted(CASTS)))
def test_casting_any_model_is_loading_it_in_that_dtype(
    tmp_path_factory: pytest.TempPathFactory, config: vit_hub.ViTConfig, dtype: str
) -> None:
    model = random_model(config)
    if dtype == "float32":  # rounded to half precision and back; rotations and tables that are computed are not
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point() and not name.endswith("periods"):
                    value.copy_(value.half())
    file = model.save(tmp_path_factory.mktemp("any") / "m.safetensors")
    loaded, cast = vit_hub.load(file, dtype=dtype), CASTS[dtype](vit_hub.load(file))
    found = dict(cast.named_buffers()) | dict(cast.named_parameters())
    for name, value in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_a_batch_of_no_images_gives_no_rows() -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL))
    assert model(torch.empty(0, 3, 16, 16)).shape == (0, 5)
    assert model.forward_features(torch.empty(0, 3, 16, 16)).shape == (0, 17, 16)


@pytest.mark.parametrize(
    "fields", [{}, {"pos_embed": "none", "rope": {}}, {"pos_embed": "sincos2d"}], ids=["table", "rope", "sincos"]
)
def test_it_is_traced_at_its_own_and_at_other_sizes(fields: dict[str, Any]) -> None:
    model = random_model(vit_hub.ViTConfig(**SMALL, **fields))
    model.dynamic = True
    for size in ((16, 16), (24, 20)):
        traced, images = torch.jit.trace(model, torch.randn(2, 3, *size)), torch.randn(2, 3, *size)
        torch.testing.assert_close(traced(images), model(images), rtol=1e-5, atol=1e-5)


def test_a_compiled_dynamic_model_runs_and_trains_at_several_sizes() -> None:
    torch._dynamo.reset()
    model = random_model(vit_hub.ViTConfig(**SMALL))
    model.dynamic = True
    compiled = torch.compile(model, backend="aot_eager")
    for size in ((16, 16), (24, 20), (20, 28)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
        compiled(images).sum().backward()
    assert model.pos_embed.grad is not None
