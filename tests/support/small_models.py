"""Small random models over the whole config space, for property tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

import vit_hub
from vit_hub.model.config import ACTIVATIONS, RESIZE_METHODS, Merger, Neck, RelPosMlp, Rope, Video, Windows

__all__ = [
    "PLAIN",
    "configs",
    "examples",
    "grid_configs",
    "random_bits",
    "random_images",
    "random_model",
    "randomise",
    "raw",
    "relative_error",
]

# Between tensors this small, threads spend their time waiting for one another.
torch.set_num_threads(1)


def examples(count: int) -> settings:
    """Settings for a property test: the same examples in every run."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# What a Vision Transformer of the paper has not.
PLAIN: dict[str, Any] = {
    "ffn": "mlp",
    "patch_bias": True,
    "qkv_bias": True,
    "qk_norm": False,
    "pre_norm": False,
    "distilled": False,
    "num_registers": 0,
    "pos_embed": "learned",
    "rope": None,
    "rel_pos": "none",
    "attn_norm": False,
    "mlp_norm": False,
    "prefix_norm": False,
    "layer_scale": False,
    "final_norm": "before",
    "projection_dim": 0,
    "pool_heads": 0,
    "pool_mlp_dim": 0,
    "pool_prefix": False,
    "head_input": "pooled",
    "head_norm": False,
    "norm_position": "pre",
    "differential": False,
    "parallel": "none",
    "branches": 1,
    "stem": "patch",
    "norm": "layer",
    "qk_norm_eps": None,
    "proj_bias": True,
    "mlp_bias": True,
    "kv_heads": (),
    "patch_norm": False,
    "resize_square": False,
}

_SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))
_MOSTLY_NOT = st.sampled_from((False, False, False, True))
_STEMS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "resnet": {
        "stem_stages": st.sampled_from(((), (1,), (1, 1))),
        "stem_width": st.just(32),
        "stem_standardize": st.sampled_from(("std", "var")),
        "stem_norm_eps": st.sampled_from((1e-6, 1e-5)),
    },
    "conv": {"stem_convs": st.sampled_from((((3, 3, 2),), ((3, 3, 2), (4, 3, 2))))},
}
_ROPES = st.builds(
    Rope,
    theta=st.sampled_from((100.0, 10_000.0)),
    coordinates=st.sampled_from(("index", "centered")),
    normalize=st.sampled_from(("separate", "max", "min")),
    offset=st.sampled_from((0.0, 1.0)),
    reference_grid=st.sampled_from((None, (16, 16))),
    order=st.sampled_from(("yx", "xy")),
    pairs=st.sampled_from(("half", "interleaved")),
    mixed=st.booleans(),
    frequencies=st.sampled_from(("same", "same", "alternate")),
) | st.builds(Rope, coordinates=st.just("centered"), stored_periods=st.just(True))

_REL_POS_MLPS = st.builds(RelPosMlp, hidden_dim=st.sampled_from((1, 6)), scale=st.sampled_from(("log", "swin")))


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> vit_hub.ViTConfig:
    """Any consistent config of a tiny model; ``fixed`` fields are values, or strategies for them where they are free.

    Of configs that mean the same, one is drawn: no rows for prefix tokens that are not there.
    """
    found: dict[str, Any] = {}

    def field(name: str, strategy: st.SearchStrategy[Any]) -> Any:
        chosen = fixed.get(name, strategy)
        found[name] = draw(chosen) if isinstance(chosen, st.SearchStrategy) else chosen
        return found[name]

    def field_if(possible: object, name: str, strategy: st.SearchStrategy[Any]) -> Any:
        """The field where it can be anything but its default."""
        return field(name, strategy) if possible else None

    heads = field("num_heads", st.sampled_from((1, 2, 3)))
    width = field("embed_dim", st.sampled_from((4 * heads, 8 * heads)))
    for name, strategy in _STEMS.get(field("stem", st.sampled_from(("patch",) * 8 + ("resnet", "conv"))), {}).items():
        field(name, strategy)
    patch = field("patch_size", _SIDES)
    # The size of the image follows from the pixels of a patch, which a config of any size tells.
    stem = {name: value for name, value in found.items() if name.startswith("stem") or name == "patch_size"}
    unit = vit_hub.ViTConfig(**stem, image_size=64 * max(patch)).pixels_per_patch
    field("image_size", _SIDES.map(lambda sides: tuple(n * p for n, p in zip(sides, unit, strict=True))))
    field("depth", st.integers(1, 3))
    field("mlp_dim", st.integers(1, 20))
    field("in_chans", st.integers(1, 4))
    field("ffn", st.sampled_from(("mlp", "swiglu", "swiglu_packed")))
    field("act", st.sampled_from(ACTIVATIONS))
    eps = field("norm_eps", st.sampled_from((1e-12, 1e-6, 1e-5, 1e-3)))
    # RMSNorm makes anything of gates that are closed.
    root = eps > 1e-12 and found["act"] != "relu"
    field("norm", st.sampled_from(("layer", "layer", "layer", *(("rms", "rms_blocks") if root else ()))))
    bias = field("qkv_bias", st.sampled_from((True, False, "qv", "masked")))
    for name in ("patch_bias", "pre_norm"):
        field(name, st.booleans())
    post = field("norm_position", st.sampled_from(("pre", "pre", "pre", "post"))) == "post"
    field_if(not post, "layer_scale", st.sampled_from((True, False, "attn")))
    side_by_side = field_if(not post, "parallel", st.sampled_from(("none",) * 6 + ("separate", "joint")))
    branches = field_if(not post and side_by_side == "none", "branches", st.sampled_from((1,) * 6 + (2, 3)))
    differential = field("differential", _MOSTLY_NOT)
    field("qk_norm", st.sampled_from((True, False, False, "rms", "rms_width")[: 3 if differential else None]))
    field_if(found["qk_norm"], "qk_norm_eps", st.sampled_from((None, None, 1e-4)))
    for name in ("attn_norm", "mlp_norm", "patch_norm"):
        field(name, _MOSTLY_NOT)
    for name in ("proj_bias", "mlp_bias"):
        field(name, _MOSTLY_NOT.map(lambda missing: not missing))
    divisors = st.sampled_from([count for count in (1, 2, 3) if heads % count == 0])
    shared = st.lists(divisors, min_size=found["depth"], max_size=found["depth"]).map(tuple)
    field_if(bias != "masked", "kv_heads", st.just(()) | st.just(()) | shared)
    classes = field("class_token", st.booleans())
    field_if(classes, "distilled", st.booleans())
    registers = field("num_registers", st.sampled_from((0, 0, 1, 4)))
    prefix = classes + found.get("distilled", False) + registers
    tables = ("learned", "learned", "learned", "sincos2d", "none", "sincos2d_mae", "factorized")
    learned = field("pos_embed", st.sampled_from(tables)) == "learned"
    if not (learned and classes):
        found["pos_embed_prefix"] = False
    rows = field_if(learned and classes, "pos_embed_prefix", st.booleans())
    field_if(rows and registers, "pos_embed_registers", st.booleans())
    field_if(not differential, "rope", st.none() | st.none() | _ROPES)
    rope = found.get("rope")
    if rope and rope.mixed:
        found.pop("kv_heads", None)
    elif classes and rope and "rope" not in fixed:
        found["rope"] = dataclasses.replace(rope, class_angles=draw(_MOSTLY_NOT))
    places = st.sampled_from(("none", "none", "block", "shared"))
    relative = field_if(prefix == int(classes) and (branches or 1) == 1, "rel_pos", places)
    field_if(relative not in (None, "none"), "rel_pos_mlp", st.none() | _REL_POS_MLPS)

    pools = ["avg", "map", "first", "none", "attn"] + ["cls"] * classes + ["cls_dist"] * found.get("distilled", False)
    pool = field("pool", st.sampled_from(pools))
    norm = field("final_norm", st.sampled_from(["before", "none"] + ["after"] * (pool != "none")))
    field_if(prefix and norm == "before", "prefix_norm", _MOSTLY_NOT)
    field_if(pool in ("map", "attn"), "pool_heads", st.sampled_from((0, 0, 1 if heads > 1 else 2)))
    hidden = st.integers(1, 20).filter(lambda size: size != found["mlp_dim"])
    field_if(pool == "map", "pool_mlp_dim", st.just(0) | hidden)
    field_if(pool in ("map", "attn", "avg") and prefix, "pool_prefix", st.booleans())
    head = field_if(pool != "none", "num_classes", st.integers(0, 5))
    single = pool not in ("none", "cls_dist")
    both = field_if(
        pool == "cls" and head and norm != "after",
        "head_input",
        st.sampled_from(("pooled", "pooled", "pooled", "cls_avg")),
    )
    plain = single and both != "cls_avg"
    layer = field_if(plain, "representation_dim", st.sampled_from((0, 0, 3, width)))
    field_if(plain and not layer, "projection_dim", st.sampled_from((0, 0, 5)))
    field_if(plain and head, "head_norm", _MOSTLY_NOT)
    field("resize", st.sampled_from(RESIZE_METHODS))
    field("resize_by_count", st.booleans())
    field_if(found["pos_embed"] in ("learned", "factorized"), "resize_square", _MOSTLY_NOT)
    return vit_hub.ViTConfig(**found)


@st.composite
def grid_configs(draw: st.DrawFn) -> vit_hub.ViTConfig:
    """A tiny model with layers that :func:`configs` has not: windows, necks, mergers, frames, or detection tokens."""
    kind = draw(st.sampled_from(("windows", "neck", "merger", "joint", "apart", "detections")))
    heads, depth, merge = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    patch, grid = draw(_SIDES), draw(_SIDES)
    unit = tuple(side * (merge if kind == "merger" else 1) for side in patch)
    found: dict[str, Any] = {
        "num_heads": heads,
        "embed_dim": 8 * heads,
        "depth": depth,
        "patch_size": patch,
        "image_size": tuple(count * side for count, side in zip(grid, unit, strict=True)),
        "mlp_dim": draw(st.integers(1, 20)),
        "in_chans": draw(st.sampled_from((1, 3))),
        "act": draw(st.sampled_from(("gelu", "gelu_tanh", "silu"))),
        "ffn": draw(st.sampled_from(("mlp", "mlp", "swiglu"))),
        "norm_eps": draw(st.sampled_from((1e-6, 1e-3))),
        "qkv_bias": draw(st.sampled_from((True, False, "qv"))),
        "layer_scale": draw(st.booleans()),
        "class_token": kind == "detections",
        "pool": "none",
        "pos_embed": draw(st.sampled_from(("learned", "none"))),
    }
    ends = {"neck": "none", "merger": "none"}
    found["final_norm"] = ends.get(kind) or draw(st.sampled_from(("before", "none")))
    if kind in ("windows", "neck", "merger"):
        size = st.tuples(st.integers(1, 5), st.integers(1, 5))
        full = st.lists(st.integers(0, depth - 1), max_size=2)
        pad = draw(st.booleans())
        found["windows"] = draw(st.none() | st.builds(Windows, size=size, full=full, pad=st.just(pad)))
        found["rel_pos"] = draw(st.sampled_from(("none", "decomposed")))
        rotate = found["rel_pos"] == "none" and not pad
        found["rope"] = draw(st.none() | st.builds(Rope, axes=st.sampled_from(("apart", "turns")))) if rotate else None
    if kind in ("windows", "neck"):
        found["pool"] = draw(st.sampled_from(("none", "avg")))
        found["num_classes"] = draw(st.integers(0, 3)) if found["pool"] == "avg" else 0
    if kind == "neck":
        found["neck"] = Neck(chans=draw(st.sampled_from((0, 3))))
    if kind == "merger":
        found["merger"] = Merger(dim=draw(st.integers(1, 5)), size=merge)
    if kind in ("joint", "apart"):
        tubelet = draw(st.integers(1, 2))
        frames = tubelet * draw(st.integers(1, 2))
        found["video"] = Video(frames=frames, tubelet=tubelet, joint=kind == "joint")
    if kind == "joint":
        found["pos_embed"] = draw(st.sampled_from(("sincos1d", "none")))
        found["rope"] = draw(st.none() | st.just(Rope(frames=True, pairs="tiled")))
        found["pool"] = draw(st.sampled_from(("none", "avg", "first", "attentive")))
        found["pool_depth"] = draw(st.integers(0, 2)) if found["pool"] == "attentive" else 0
        found["num_classes"] = draw(st.integers(0, 3)) if found["pool"] != "none" else 0
    if kind == "detections":
        found |= {"pos_embed": "learned", "num_detection_tokens": draw(st.integers(1, 3))}
        found |= {"mid_pos_embed": depth > 1 and draw(st.booleans()), "pool": draw(st.sampled_from(("none", "cls")))}
    return vit_hub.ViTConfig(**found)


def random_model(
    config: vit_hub.ViTConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> vit_hub.VisionTransformer:
    """A model with every parameter random, so that none of them can be left out unnoticed."""
    model = vit_hub.VisionTransformer(config).to(dtype).eval()
    randomise(model, seed)
    model.reset_tables()
    return model


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Random values for every parameter and floating-point buffer; norms and what is divided by are about one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.3
                divisor = name.endswith(("running_var", "periods"))
                scale = "norm" in name and name.endswith("weight")
                value.copy_(noise.exp() if divisor else noise + 1.0 if scale else noise)


def random_bits(model: vit_hub.VisionTransformer, seed: int = 0) -> vit_hub.VisionTransformer:
    """The model with bits at random for values: infinities, several kinds of NaN, denormal numbers."""
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            drawn = generator.integers(0, 256, value.numel() * value.element_size(), np.uint8)
            value.copy_(torch.from_numpy(drawn).view(value.dtype).reshape(value.shape))
    return model


def random_images(config: vit_hub.ViTConfig, dtype: torch.dtype = torch.float32, batch: int = 2) -> Tensor:
    """Images [batch, C, h, w] of the model's size."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.in_chans, *config.image_size, generator=generator, dtype=torch.float64).to(dtype)


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Canonical name -> (dtype, shape, bytes) of a canonical file."""
    tensors = vit_hub.open_checkpoint(path).tensors
    return {
        name: (item.dtype, item.shape, np.ascontiguousarray(item.read()).tobytes()) for name, item in tensors.items()
    }


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
