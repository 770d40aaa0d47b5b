"""The tensors of a model: which it has and in which shapes, from its config alone, without torch.

One table, the parts, is read in both directions: a config gives names and shapes, and names and shapes give back the
fields that decide them. Names are timm's wherever timm has one. :class:`vit_hub.model.vit.VisionTransformer` has
exactly these tensors (a test compares the two), so converters plan and validate without building a model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from vit_hub.model.config import ATTENTION_POOLS, CHOICES, ViTConfig

__all__ = ["PARTS", "Part", "field_of", "fields_of", "num_parameters", "tensor_shapes"]

Shape = tuple[int, ...]

# The axes that shapes are made of; "3D" in a shape is three times axis D.
AXES: dict[str, Callable[[ViTConfig], int]] = {
    "D": lambda c: c.embed_dim,
    "M": lambda c: c.mlp_dim,
    "A": lambda c: c.pool_mlp_dim or c.mlp_dim,
    "H": lambda c: c.num_heads,
    "E": lambda c: c.head_dim,
    "e": lambda c: c.head_dim // 2,
    "y": lambda c: c.grid_size[0],
    "x": lambda c: c.grid_size[1],
    "f": lambda c: c.head_dim // 4,
    "L": lambda c: c.depth,
    "R": lambda c: c.num_registers,
    "C": lambda c: c.patch_chans,
    "p": lambda c: c.patch_size[0],
    "q": lambda c: c.patch_size[1],
    "P": lambda c: c.num_prefix_rows + c.num_patches,
    "T": lambda c: c.num_relative_rows,
    "F": lambda c: c.representation_dim,
    "J": lambda c: c.projection_dim,
    "X": lambda c: c.feature_dim,
    "K": lambda c: c.num_classes,
}
# Those that differ between blocks.
BLOCK_AXES: dict[str, Callable[[ViTConfig, int], int]] = {
    "Q": lambda c, block: c.embed_dim + 2 * c.kv_dim(block),
    "V": lambda c, block: c.kv_dim(block),
}
# Those that are fields of the config.
_SIZES = {
    "D": "embed_dim",
    "M": "mlp_dim",
    "A": "pool_mlp_dim",
    "H": "num_heads",
    "C": "in_chans",
    "R": "num_registers",
    "F": "representation_dim",
    "J": "projection_dim",
    "K": "num_classes",
}


@dataclass(frozen=True)
class Part:
    """One tensor.

    Attributes:
        name: canonical name; ``{i}`` stands for the number of a block.
        shape: its axes, separated by spaces.
        when: config field -> the value or values with which a model has the tensor, or a test of the value.
        trained: False for buffers.
    """

    name: str
    shape: str
    when: Mapping[str, Any]
    trained: bool = True

    def fits(self, config: ViTConfig) -> bool:
        """Return whether a model of this config has the tensor."""
        return all(_holds(getattr(config, field), wanted) for field, wanted in self.when.items())

    def size(self, config: ViTConfig, block: int = 0) -> Shape:
        """Return the tensor's shape in a model of this config, in one of its blocks."""
        return tuple(factor * _length(axis, config, block) for factor, axis in _axes(self.shape))


def _length(axis: str, config: ViTConfig, block: int) -> int:
    if axis in BLOCK_AXES:
        return BLOCK_AXES[axis](config, block)
    return AXES[axis](config) if axis else 1


def _holds(value: object, wanted: Any) -> bool:
    return bool(wanted(value)) if callable(wanted) else value in _values(wanted)


def _values(wanted: Any) -> tuple[Any, ...]:
    return wanted if isinstance(wanted, tuple) else (wanted,)


@cache
def _axes(shape: str) -> tuple[tuple[int, str], ...]:
    """Factor and axis of each dimension; a number alone has no axis."""
    found = (re.fullmatch(r"(\d*)([A-Za-z]?)", part) for part in shape.split())
    return tuple((int(match[1] or 1), match[2]) for match in found if match)


def _tensor(name: str, shape: str, *, trained: bool = True, **when: Any) -> tuple[Part, ...]:
    return (Part(name, shape, when, trained),)


# The kinds of norms with which those of the blocks, and those after them, have a bias.
_IN_BLOCKS = "layer"
_AFTER_BLOCKS = ("layer", "rms_blocks")


def _norm(name: str, width: str, norm: Any = _IN_BLOCKS, **when: Any) -> tuple[Part, ...]:
    return (Part(f"{name}.weight", width, when), Part(f"{name}.bias", width, {**when, "norm": norm}))


def _linear(name: str, outputs: str, inputs: str, bias: str = "", **when: Any) -> tuple[Part, ...]:
    """A linear layer; ``bias`` is the field that its bias hangs on, too."""
    biased = {**when, **({bias: True} if bias else {})}
    return (Part(f"{name}.weight", f"{outputs} {inputs}", when), Part(f"{name}.bias", outputs, biased))


def _statistics(name: str, width: str, **when: Any) -> tuple[Part, ...]:
    """The buffers of a BatchNorm."""
    sizes = {"running_mean": width, "running_var": width, "num_batches_tracked": ""}
    return tuple(Part(f"{name}.{part}", shape, when, trained=False) for part, shape in sizes.items())


_RELATIVE_TABLE = "relative_position_bias_table"
_TOKENS = (
    *_tensor("cls_token", "1 1 D", class_token=True),
    *_tensor("dist_token", "1 1 D", distilled=True),
    *_tensor("reg_token", "1 R D", num_registers=bool),
    *_tensor("pos_embed", "1 P D", pos_embed="learned"),
    *_tensor("pos_embed_y", "1 y D", pos_embed="factorized"),
    *_tensor("pos_embed_x", "1 x D", pos_embed="factorized"),
)
# Between these two come the tensors of a stem.
_EMBEDDING = (
    *_tensor("patch_embed.proj.weight", "D C p q"),
    *_tensor("patch_embed.proj.bias", "D", patch_bias=True),
    *_norm("patch_embed.norm", "D", patch_norm=True),
    *_norm("norm_pre", "D", pre_norm=True),
    *_tensor("rope_embed.periods", "f", trained=False, rope=lambda rope: rope is not None and rope.stored_periods),
    *_tensor("rope.freqs", "2 L H e", rope=lambda rope: rope is not None and rope.mixed),
    *_tensor("rope.class_angles", "1 e", rope=lambda rope: rope is not None and rope.class_angles),
    *_tensor(f"rel_pos_bias.{_RELATIVE_TABLE}", "T H", rel_pos="shared"),
)
_BLOCK = (
    *_norm("blocks.{i}.norm1", "D"),
    *_tensor("blocks.{i}.attn.qkv.weight", "Q D"),
    *_tensor("blocks.{i}.attn.qkv.bias", "Q", qkv_bias=(True, "masked")),
    *_tensor("blocks.{i}.attn.qkv.bias_mask", "Q", trained=False, qkv_bias="masked"),
    *_tensor("blocks.{i}.attn.q_bias", "D", qkv_bias="qv"),
    *_tensor("blocks.{i}.attn.v_bias", "V", qkv_bias="qv"),
    *_tensor("blocks.{i}.attn.q_norm.weight", "E", qk_norm=(True, "rms")),
    *_tensor("blocks.{i}.attn.q_norm.bias", "E", qk_norm=True),
    *_tensor("blocks.{i}.attn.q_norm.weight", "D", qk_norm="rms_width"),
    *_tensor("blocks.{i}.attn.k_norm.weight", "E", qk_norm=(True, "rms")),
    *_tensor("blocks.{i}.attn.k_norm.bias", "E", qk_norm=True),
    *_tensor("blocks.{i}.attn.k_norm.weight", "V", qk_norm="rms_width"),
    *_tensor(f"blocks.{{i}}.attn.{_RELATIVE_TABLE}", "T H", rel_pos="block"),
    *_norm("blocks.{i}.attn.norm", "D", attn_norm=True),
    *_linear("blocks.{i}.attn.proj", "D", "D", "proj_bias"),
    *_tensor("blocks.{i}.ls1.gamma", "D", layer_scale=(True, "attn")),
    *_norm("blocks.{i}.norm2", "D"),
    *_linear("blocks.{i}.mlp.fc1_g", "M", "D", "mlp_bias", ffn="swiglu"),
    *_linear("blocks.{i}.mlp.fc1_x", "M", "D", "mlp_bias", ffn="swiglu"),
    *_linear("blocks.{i}.mlp.fc1", "M", "D", "mlp_bias", ffn="mlp"),
    *_linear("blocks.{i}.mlp.fc1", "2M", "D", "mlp_bias", ffn="swiglu_packed"),
    *_norm("blocks.{i}.mlp.norm", "M", mlp_norm=True),
    *_linear("blocks.{i}.mlp.fc2", "D", "M", "mlp_bias"),
    *_tensor("blocks.{i}.ls2.gamma", "D", layer_scale=True),
)
_OUTPUT = (
    *_norm("cls_norm", "D", _AFTER_BLOCKS, prefix_norm=True),
    *_norm("norm", "D", _AFTER_BLOCKS, final_norm="before"),
    *_norm("fc_norm", "D", _AFTER_BLOCKS, final_norm="after"),
    *_tensor("attn_pool.latent", "1 1 D", pool=ATTENTION_POOLS),
    *_linear("attn_pool.q", "D", "D", pool="map"),
    *_tensor("attn_pool.kv.weight", "2D D", pool=ATTENTION_POOLS),
    *_tensor("attn_pool.kv.bias", "2D", pool="map"),
    *_tensor("attn_pool.kv.bias", "2D", pool="attn", qkv_bias=bool),
    *_linear("attn_pool.proj", "D", "D", pool=ATTENTION_POOLS),
    *_norm("attn_pool.norm", "D", _AFTER_BLOCKS, pool="map"),
    *_linear("attn_pool.mlp.fc1", "A", "D", pool="map"),
    *_linear("attn_pool.mlp.fc2", "D", "A", pool="map"),
    *_linear("pre_logits.fc", "F", "D", representation_dim=bool),
    *_tensor("projection.weight", "J D", projection_dim=bool),
    *_statistics("head_norm", "X", head_norm=True),
    *_linear("head", "K", "X", num_classes=bool, head_input="pooled"),
    *_linear("head", "K", "2X", num_classes=bool, head_input="cls_avg"),
    *_linear("head_dist", "K", "X", pool="cls_dist", num_classes=bool),
)
PARTS = (*_TOKENS, *_EMBEDDING, *_BLOCK, *_OUTPUT)
"""Every tensor but those of a stem, in the order in which files store them."""


def tensor_shapes(config: ViTConfig) -> dict[str, Shape]:
    """Return every canonical tensor of a model, name -> shape, in the order in which files store them."""
    block = [part for part in _BLOCK if part.fits(config)]
    return {
        **{part.name: part.size(config) for part in _TOKENS if part.fits(config)},
        **dict(_stem_shapes(config)),
        **{part.name: part.size(config) for part in _EMBEDDING if part.fits(config)},
        **{
            part.name.replace("{i}", str(index)): part.size(config, index)
            for index in range(config.depth)
            for part in block
        },
        **{part.name: part.size(config) for part in _OUTPUT if part.fits(config)},
    }


def num_parameters(config: ViTConfig) -> int:
    """Return the number of parameters of the whole model, head included."""
    buffers = tuple(part.name.rpartition(".")[2] for part in PARTS if not part.trained)
    return sum(math.prod(shape) for name, shape in tensor_shapes(config).items() if not name.endswith(buffers))


def field_of(tensor: str) -> str:
    """Return the config field that a canonical tensor's presence depends on, for error messages."""
    if tensor.startswith(_BACKBONE):
        return "stem"
    name = re.sub(r"^blocks\.\d+\.", "blocks.{i}.", tensor)
    return next((field for part in PARTS if part.name == name for field in part.when), "depth")


def fields_of(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the config fields that names and shapes of canonical tensors tell; the first block stands for all.

    Whether all tensors agree with those fields is for the caller to check, against :func:`tensor_shapes`.
    """
    present = {part.name: shapes[name] for part in PARTS if (name := part.name.replace("{i}", "0")) in shapes}
    sizes = _sizes_of(present)
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
    found: dict[str, Any] = {"depth": max(blocks, default=-1) + 1}
    found |= {field: sizes[axis] for axis, field in _SIZES.items() if axis in sizes}
    if "p" in sizes and "q" in sizes:
        found["patch_size"] = (sizes["p"], sizes["q"])
    for field, parts in _decided_by_one_field().items():
        # A size is zero where its tensor is missing.
        found.setdefault(field, _choice(field, parts, present, sizes) if field in CHOICES else 0)
    found.setdefault("num_classes", 0)
    if present.get("head.weight", ())[1:] == (2 * sizes.get("D", 0),):
        found["head_input"] = "cls_avg"
    if sizes.get("A") == sizes.get("M"):
        found.pop("pool_mlp_dim", None)
    if "E" in sizes and "D" in sizes:
        if found["qk_norm"] == "rms" and sizes["E"] == sizes["D"]:
            found["qk_norm"] = "rms_width"
        else:
            found["num_heads"] = sizes["D"] // sizes["E"]
    if found["norm"] == "rms" and {"norm.bias", "fc_norm.bias", "attn_pool.norm.bias"} & present.keys():
        found["norm"] = "rms_blocks"
    return found | _stem_fields(shapes)


def _sizes_of(present: Mapping[str, Shape]) -> dict[str, int]:
    """The sizes of axes; what every model has counts before what hangs on other fields."""
    sizes: dict[str, int] = {}
    for part in sorted(PARTS, key=lambda part: len(part.when)):
        axes, shape = _axes(part.shape), present.get(part.name, ())
        for (factor, axis), size in zip(axes, shape, strict=False):
            if len(axes) == len(shape) and axis and size % factor == 0:
                sizes.setdefault(axis, size // factor)
    return sizes


@cache
def _decided_by_one_field() -> dict[str, list[Part]]:
    """The parts whose presence hangs on one field alone, by that field.

    Pooling and rotary embeddings have kinds without tensors of their own, so tensors do not tell those.
    """
    found: dict[str, list[Part]] = {}
    for part in PARTS:
        if len(part.when) == 1 and not {"pool", "rope"} & set(part.when):
            found.setdefault(next(iter(part.when)), []).append(part)
    return found


def _choice(field: str, parts: list[Part], present: Mapping[str, Shape], sizes: Mapping[str, int]) -> Any:
    """The value of a field under which a model has exactly those of its tensors that are there, in their shapes."""
    wanted: dict[str, tuple[Any, ...]] = {}
    for part in parts:
        wanted[part.name] = (*wanted.get(part.name, ()), *_values(part.when[field]))

    def evidence(value: Any) -> tuple[int, int, bool]:
        names = sum((name in present) == (value in values) for name, values in wanted.items())
        mine = [part for part in parts if part.name in present and value in _values(part.when[field])]
        shapes = sum(
            present[part.name] == tuple(factor * sizes.get(axis, 1) for factor, axis in _axes(part.shape))
            for part in mine
        )
        return names, shapes, value == "none"

    return max(CHOICES[field], key=evidence)


_BACKBONE = "patch_embed.backbone"


def _stem_shapes(config: ViTConfig) -> Iterator[tuple[str, Shape]]:
    """The tensors of what comes before the patch embedding."""
    if config.stem == "resnet":
        yield from _resnet(config)
    inputs = config.in_chans
    for index, (outputs, kernel, _) in enumerate(config.stem_convs):
        yield from _conv(f"{_BACKBONE}.layers.{index}.conv", inputs, outputs, kernel)
        yield from _affine(f"{_BACKBONE}.layers.{index}.norm", outputs)
        for part in _statistics(f"{_BACKBONE}.layers.{index}.norm", ""):
            yield part.name, () if part.name.endswith("tracked") else (outputs,)
        inputs = outputs


def _resnet(config: ViTConfig) -> Iterator[tuple[str, Shape]]:
    root, inputs = f"{_BACKBONE}.stem", config.stem_width
    yield from _conv(f"{root}.conv", config.in_chans, inputs, 7)
    yield from _affine(f"{root}.norm", inputs)
    for stage, units in enumerate(config.stem_stages):
        middle = config.stem_width * 2**stage
        outputs = 4 * middle
        for unit in range(units):
            name = f"{_BACKBONE}.stages.{stage}.blocks.{unit}"
            kernels = ((inputs, middle, 1), (middle, middle, 3), (middle, outputs, 1))
            for index, kernel in enumerate(kernels, 1):
                yield from _conv(f"{name}.conv{index}", *kernel)
                yield from _affine(f"{name}.norm{index}", kernel[1])
            if unit == 0:
                yield from _conv(f"{name}.downsample.conv", inputs, outputs, 1)
                yield from _affine(f"{name}.downsample.norm", outputs)
            inputs = outputs


def _conv(name: str, inputs: int, outputs: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)


def _affine(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from ((f"{name}.weight", (width,)), (f"{name}.bias", (width,)))


def _stem_fields(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The fields of a stem; a kernel's stride is not in the file: 2, as published."""
    root, first = shapes.get(f"{_BACKBONE}.stem.conv.weight"), shapes.get(f"{_BACKBONE}.layers.0.conv.weight")
    if root:
        units = Counter(
            int(name.split(".")[3])
            for name in shapes
            if name.startswith(f"{_BACKBONE}.stages.") and name.endswith(".conv1.weight")
        )
        stages = tuple(units[stage] for stage in sorted(units))
        return {"stem": "resnet", "stem_width": root[0], "stem_stages": stages, "in_chans": root[1]}
    if first:
        kernels = [shapes[name] for name in shapes if name.startswith(f"{_BACKBONE}.layers.") and ".conv." in name]
        return {"stem": "conv", "stem_convs": tuple((k[0], k[2], 2) for k in kernels), "in_chans": first[1]}
    return {}
