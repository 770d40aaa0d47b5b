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

from vit_hub.model.config import ATTENTION_POOLS, CHOICES, Neck, RelPosMlp, ViTConfig

__all__ = ["PARTS", "Part", "field_of", "fields_of", "num_parameters", "tensor_shapes"]

Shape = tuple[int, ...]

# The axes that shapes are made of; "3D" in a shape is three times axis D.
AXES: dict[str, Callable[[ViTConfig], int]] = {
    "D": lambda c: c.embed_dim,
    "M": lambda c: c.mlp_dim,
    "A": lambda c: c.pool_mlp_dim or c.mlp_dim,
    "H": lambda c: c.num_heads,
    "E": lambda c: c.head_dim,
    "d": lambda c: c.head_dim // 2 if c.differential else c.head_dim,
    "e": lambda c: c.head_dim // 2,
    "y": lambda c: c.grid_size[0],
    "x": lambda c: c.grid_size[1],
    "f": lambda c: c.head_dim // 4,
    "L": lambda c: c.depth,
    "R": lambda c: c.num_registers,
    "C": lambda c: c.patch_chans,
    "p": lambda c: c.patch_size[0],
    "q": lambda c: c.patch_size[1],
    "P": lambda c: c.num_prefix_rows + c.num_patches + c.num_detection_tokens,
    "n": lambda c: c.num_detection_tokens,
    "l": lambda c: c.depth - 1,
    "T": lambda c: c.num_relative_rows,
    "G": lambda c: c.rel_pos_mlp.hidden_dim if c.rel_pos_mlp else 0,
    "F": lambda c: c.representation_dim,
    "J": lambda c: c.projection_dim,
    "X": lambda c: c.feature_dim,
    "W": lambda c: c.head_width,
    "K": lambda c: c.num_classes,
    "t": lambda c: c.video.tubelet if c.video else 1,
    "N": lambda c: c.neck.chans if c.neck else 0,
    "S": lambda c: c.merger.size**2 * c.embed_dim if c.merger else 0,
    "O": lambda c: c.merger.dim if c.merger else 0,
}
# Those that differ between blocks.
BLOCK_AXES: dict[str, Callable[[ViTConfig, int], int]] = {
    "u": lambda c, block: 2 * (c.window(block) or c.grid_size)[0] - 1,
    "v": lambda c, block: 2 * (c.window(block) or c.grid_size)[1] - 1,
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
    "n": "num_detection_tokens",
    "F": "representation_dim",
    "J": "projection_dim",
    "K": "num_classes",
}


@dataclass(frozen=True)
class Part:
    """One tensor.

    Attributes:
        name: canonical name; ``{i}`` stands for the number of a block, ``{j}`` for that of one of the pooling.
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


def _is_log(mlp: RelPosMlp | None) -> bool:
    return mlp is not None and mlp.scale == "log"


def _convolves(neck: Neck | None) -> bool:
    return neck is not None and neck.chans > 0


def _given(group: object) -> bool:
    return group is not None


# Where the biases of relative positions are: what has the table, and what has the network that computes it.
_RELATIVE = {"block": ("blocks.{i}.attn", "blocks.{i}.attn.rel_pos"), "shared": ("rel_pos_bias", "shared_rel_pos")}
_RELATIVE_TABLE = "relative_position_bias_table"


def _relative(place: str) -> tuple[Part, ...]:
    """The table of relative positions, or the layers that compute it; the second has a bias in one kind only."""
    table, network = _RELATIVE[place]
    has: dict[str, Any] = {"rel_pos": place, "rel_pos_mlp": bool}
    return (
        *_tensor(f"{table}.{_RELATIVE_TABLE}", "T H", rel_pos=place, rel_pos_mlp=lambda mlp: mlp is None),
        *_linear(f"{network}.mlp.fc1", "G", "2", **has),
        *_tensor(f"{network}.mlp.fc2.weight", "H G", **has),
        *_tensor(f"{network}.mlp.fc2.bias", "H", **{**has, "rel_pos_mlp": _is_log}),
    )


_WITH_MLP = ("map", "attentive")
_TOKENS = (
    *_tensor("cls_token", "1 1 D", class_token=True),
    *_tensor("dist_token", "1 1 D", distilled=True),
    *_tensor("reg_token", "1 R D", num_registers=bool),
    *_tensor("det_token", "1 n D", num_detection_tokens=bool),
    *_tensor("pos_embed", "1 P D", pos_embed="learned"),
    *_tensor("mid_pos_embed", "l 1 P D", mid_pos_embed=True),
    *_tensor("pos_embed_y", "1 y D", pos_embed="factorized"),
    *_tensor("pos_embed_x", "1 x D", pos_embed="factorized"),
)
# Between these two come the tensors of a stem.
_EMBEDDING = (
    *_tensor("patch_embed.proj.weight", "D C p q", video=None),
    *_tensor("patch_embed.proj.weight", "D C t p q", video=_given),
    *_tensor("patch_embed.proj.bias", "D", patch_bias=True),
    *_norm("patch_embed.norm", "D", patch_norm=True),
    *_norm("norm_pre", "D", pre_norm=True),
    *_tensor("rope_embed.periods", "f", trained=False, rope=lambda rope: rope is not None and rope.stored_periods),
    *_tensor("rope.freqs", "2 L H e", rope=lambda rope: rope is not None and rope.mixed),
    *_tensor("rope.class_angles", "1 e", rope=lambda rope: rope is not None and rope.class_angles),
    *_relative("shared"),
)
_BLOCK = (
    *_norm("blocks.{i}.norm1", "D"),
    *_tensor("blocks.{i}.attn.qkv.weight", "Q D"),
    *_tensor("blocks.{i}.attn.qkv.bias", "Q", qkv_bias=(True, "masked")),
    *_tensor("blocks.{i}.attn.qkv.bias_mask", "Q", trained=False, qkv_bias="masked"),
    *_tensor("blocks.{i}.attn.q_bias", "D", qkv_bias="qv"),
    *_tensor("blocks.{i}.attn.v_bias", "V", qkv_bias="qv"),
    *_tensor("blocks.{i}.attn.q_norm.weight", "d", qk_norm=(True, "rms")),
    *_tensor("blocks.{i}.attn.q_norm.bias", "d", qk_norm=True),
    *_tensor("blocks.{i}.attn.q_norm.weight", "D", qk_norm="rms_width"),
    *_tensor("blocks.{i}.attn.k_norm.weight", "d", qk_norm=(True, "rms")),
    *_tensor("blocks.{i}.attn.k_norm.bias", "d", qk_norm=True),
    *_tensor("blocks.{i}.attn.k_norm.weight", "V", qk_norm="rms_width"),
    *_relative("block"),
    *_tensor("blocks.{i}.attn.rel_pos_h", "u E", rel_pos="decomposed"),
    *_tensor("blocks.{i}.attn.rel_pos_w", "v E", rel_pos="decomposed"),
    *(Part(f"blocks.{{i}}.attn.lambda_{part}", "d", {"differential": True}) for part in ("q1", "k1", "q2", "k2")),
    *_tensor("blocks.{i}.attn.sub_norm.weight", "E", differential=True),
    *_norm("blocks.{i}.attn.norm", "D", attn_norm=True),
    *_tensor("blocks.{i}.attn.proj.weight", "D D"),
    *_tensor("blocks.{i}.attn.proj.bias", "D", proj_bias=True, parallel=("none", "separate")),
    *_tensor("blocks.{i}.ls1.gamma", "D", layer_scale=(True, "attn")),
    *_norm("blocks.{i}.norm2", "D", parallel="none"),
    *_linear("blocks.{i}.mlp.fc1_g", "M", "D", "mlp_bias", ffn="swiglu"),
    *_linear("blocks.{i}.mlp.fc1_x", "M", "D", "mlp_bias", ffn="swiglu"),
    *_linear("blocks.{i}.mlp.fc1", "M", "D", "mlp_bias", ffn="mlp"),
    *_linear("blocks.{i}.mlp.fc1", "2M", "D", "mlp_bias", ffn="swiglu_packed"),
    *_norm("blocks.{i}.mlp.norm", "M", mlp_norm=True),
    *_linear("blocks.{i}.mlp.fc2", "D", "M", "mlp_bias"),
    *_tensor("blocks.{i}.ls2.gamma", "D", layer_scale=True, parallel="none"),
)
_OUTPUT = (
    *_norm("cls_norm", "D", _AFTER_BLOCKS, prefix_norm=True),
    *_norm("norm", "D", _AFTER_BLOCKS, final_norm="before"),
    *_norm("fc_norm", "D", _AFTER_BLOCKS, final_norm="after"),
    *_tensor("neck.0.weight", "N D 1 1", neck=_convolves),
    *_norm("neck.1", "N", CHOICES["norm"], neck=_convolves),
    *_tensor("neck.2.weight", "N N 3 3", neck=_convolves),
    *_norm("neck.3", "N", CHOICES["norm"], neck=_convolves),
    *_norm("neck", "D", CHOICES["norm"], neck=lambda neck: neck is not None and not neck.chans),
    *_norm("merger.norm", "D", merger=_given),
    *_linear("merger.fc1", "S", "S", merger=_given),
    *_linear("merger.fc2", "O", "S", merger=_given),
    *_tensor("attn_pool.latent", "1 1 D", pool=ATTENTION_POOLS),
    *_norm("attn_pool.blocks.{j}.norm1", "D", pool="attentive"),
    *_linear("attn_pool.blocks.{j}.attn.qkv", "3D", "D", pool="attentive"),
    *_linear("attn_pool.blocks.{j}.attn.proj", "D", "D", pool="attentive"),
    *_norm("attn_pool.blocks.{j}.norm2", "D", pool="attentive"),
    *_linear("attn_pool.blocks.{j}.mlp.fc1", "A", "D", pool="attentive"),
    *_linear("attn_pool.blocks.{j}.mlp.fc2", "D", "A", pool="attentive"),
    *_norm("attn_pool.norm1", "D", _AFTER_BLOCKS, pool="attentive"),
    *_linear("attn_pool.q", "D", "D", pool=_WITH_MLP),
    *_tensor("attn_pool.kv.weight", "2D D", pool=ATTENTION_POOLS),
    *_tensor("attn_pool.kv.bias", "2D", pool=_WITH_MLP),
    *_tensor("attn_pool.kv.bias", "2D", pool="attn", qkv_bias=bool),
    *_linear("attn_pool.proj", "D", "D", pool=("map", "attn")),
    *_norm("attn_pool.norm", "D", _AFTER_BLOCKS, pool=_WITH_MLP),
    *_linear("attn_pool.mlp.fc1", "A", "D", pool=_WITH_MLP),
    *_linear("attn_pool.mlp.fc2", "D", "A", pool=_WITH_MLP),
    *_linear("pre_logits.fc", "F", "D", representation_dim=bool),
    *_tensor("projection.weight", "J D", projection_dim=bool),
    *_statistics("head_norm", "X", head_norm=True),
    *_linear("head", "K", "W", num_classes=bool),
    *_linear("head_dist", "K", "X", num_classes=bool, pool="cls_dist"),
    *_linear("head_dist", "K", "X", num_classes=bool, head_input="cls_dist"),
)
PARTS = (*_TOKENS, *_EMBEDDING, *_BLOCK, *_OUTPUT)
"""Every tensor but those of a stem, in the order in which files store them."""


def tensor_shapes(config: ViTConfig) -> dict[str, Shape]:
    """Return every canonical tensor of a model, name -> shape, in the order in which files store them."""
    block = [(part, name) for part in _BLOCK if part.fits(config) for name in _branched(part.name, config)]
    return {
        **{part.name: part.size(config) for part in _TOKENS if part.fits(config)},
        **dict(_stem_shapes(config)),
        **{part.name: part.size(config) for part in _EMBEDDING if part.fits(config)},
        **{
            name.replace("{i}", str(index)): part.size(config, index)
            for index in range(config.depth)
            for part, name in block
        },
        **{
            part.name.replace("{j}", str(index)): part.size(config)
            for part in _OUTPUT
            if part.fits(config)
            for index in range(config.pool_depth if "{j}" in part.name else 1)
        },
    }


# A layer of a block -> its name where several of its kind stand side by side.
_BRANCHES = {
    "norm1": "attns.{j}.norm",
    "attn": "attns.{j}.attn",
    "ls1": "attns.{j}.ls",
    "norm2": "ffns.{j}.norm",
    "mlp": "ffns.{j}.mlp",
    "ls2": "ffns.{j}.ls",
}
_UNBRANCHED = {other.replace(".{j}", ""): name for name, other in _BRANCHES.items()}


def _branched(name: str, config: ViTConfig) -> list[str]:
    """The names of a tensor of a block in all branches."""
    if config.branches == 1:
        return [name]
    start, index, layer, rest = name.split(".", 3)
    template = f"{start}.{index}.{_BRANCHES[layer]}.{rest}"
    return [template.replace("{j}", str(branch)) for branch in range(config.branches)]


def _unbranched(name: str) -> tuple[str, int]:
    """The name of a tensor in a block without branches, and the branch that it is in."""
    match = re.fullmatch(r"(blocks\.[^.]+\.)(attns|ffns)\.(\d+)\.(norm|attn|mlp|ls)(\..*)", name)
    if match is None:
        return name, 0
    start, layers, branch, layer, rest = match.groups()
    return start + _UNBRANCHED.get(f"{layers}.{layer}", layer) + rest, int(branch)


def num_parameters(config: ViTConfig) -> int:
    """Return the number of parameters of the whole model, head included."""
    buffers = tuple(part.name.rpartition(".")[2] for part in PARTS if not part.trained)
    return sum(math.prod(shape) for name, shape in tensor_shapes(config).items() if not name.endswith(buffers))


def field_of(tensor: str) -> str:
    """Return the config field that a canonical tensor's presence depends on, for error messages."""
    if tensor.startswith(_BACKBONE):
        return "stem"
    name = re.sub(r"^blocks\.\d+", "blocks.{i}", _unbranched(tensor)[0])
    name = re.sub(r"^attn_pool\.blocks\.\d+", "attn_pool.blocks.{j}", name)
    return next((field for part in PARTS if part.name == name for field in part.when), "depth")


def fields_of(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the config fields that names and shapes of canonical tensors tell; the first block stands for all.

    Whether all tensors agree with those fields is for the caller to check, against :func:`tensor_shapes`.
    """
    plain = {name: _unbranched(name) for name in shapes}
    branches = max(len({branch for _, branch in plain.values()}), 1)
    shapes = {plain[name][0]: shape for name, shape in shapes.items()}
    present = {part.name: shapes[name] for part in PARTS if (name := part.name.replace("{i}", "0")) in shapes}
    sizes = _sizes_of(present)
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
    pooling = {int(name.split(".")[2]) for name in shapes if name.startswith("attn_pool.blocks.")}
    found: dict[str, Any] = {"depth": max(blocks, default=-1) + 1, "pool_depth": max(pooling, default=-1) + 1}
    found |= {"branches": branches, **_block_fields(present), **_relative_fields(present, sizes)}
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
    width, head = sizes.get("d"), sizes.get("E")  # differential attention has a norm of its whole heads
    if width and found["qk_norm"] == "rms" and width == sizes.get("D"):
        found["qk_norm"] = "rms_width"
    elif (head or width) and "D" in sizes:
        found["num_heads"] = sizes["D"] // (head or width or 1)
    if found["norm"] == "rms" and {"norm.bias", "fc_norm.bias", "attn_pool.norm.bias"} & present.keys():
        found["norm"] = "rms_blocks"
    return found | _group_fields(shapes) | _stem_fields(shapes)


def _group_fields(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Neck and merger."""
    found: dict[str, Any] = {}
    if "neck.0.weight" in shapes or "neck.weight" in shapes:
        found["neck"] = {"chans": shapes.get("neck.0.weight", (0,))[0]}
    merger, kernel = shapes.get("merger.fc2.weight", ()), shapes.get("patch_embed.proj.weight", ())
    if len(merger) == 2 and kernel:
        found["merger"] = {"dim": merger[0], "size": max(math.isqrt(merger[1] // kernel[0]), 1)}
    return found


def _block_fields(present: Mapping[str, Shape]) -> dict[str, Any]:
    """Fields that several tensors decide together: layers side by side, bias after attention, and layer scale."""
    bias, first, second = (f"blocks.{{i}}.{name}" in present for name in ("attn.proj.bias", "ls1.gamma", "ls2.gamma"))
    if "blocks.{i}.norm2.weight" in present:
        return {"parallel": "none", "proj_bias": bias, "layer_scale": second or ("attn" if first else False)}
    return {"parallel": "separate" if bias else "joint", "proj_bias": True, "layer_scale": first}


def _relative_fields(present: Mapping[str, Shape], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Where biases of relative positions come from: tables or networks, of each block or one for all, or queries."""
    for place, (table, network) in _RELATIVE.items():
        if f"{table}.{_RELATIVE_TABLE}" in present:
            return {"rel_pos": place}
        if f"{network}.mlp.fc1.weight" in present:
            scale: Any = "log" if f"{network}.mlp.fc2.bias" in present else "swin"
            return {"rel_pos": place, "rel_pos_mlp": RelPosMlp(hidden_dim=sizes.get("G", 0), scale=scale)}
    return {"rel_pos": "decomposed" if "blocks.{i}.attn.rel_pos_h" in present else "none"}


def _sizes_of(present: Mapping[str, Shape]) -> dict[str, int]:
    """The sizes of axes; what every model has counts before what hangs on other fields."""
    sizes: dict[str, int] = {}
    for part in sorted(PARTS, key=lambda part: len(part.when)):
        axes, shape = _axes(part.shape), present.get(part.name, ())
        for (factor, axis), size in zip(axes, shape, strict=False):
            if len(axes) == len(shape) and axis and size % factor == 0:
                sizes.setdefault(axis, size // factor)
    return sizes


_KINDS = {"pool", "rope", "neck", "merger", "video"}


@cache
def _decided_by_one_field() -> dict[str, list[Part]]:
    """The parts whose presence hangs on one field alone, by that field.

    Pooling and groups of fields have kinds without tensors of their own, so tensors do not tell those. That biases of
    norms hang on the kind of the norms, too, does not count.
    """
    found: dict[str, list[Part]] = {}
    for part in PARTS:
        [first, *others] = {*part.when} - {"norm"} or {*part.when} or {""}
        if first and not others and first not in _KINDS:
            found.setdefault(first, []).append(part)
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
