"""The configuration space of every Vision Transformer in the hub: plain data, no torch.

A :class:`ViTConfig` holds everything that changes the numbers a model computes. Equation numbers are those of
"An Image is Worth 16x16 Words" (arXiv 2010.11929).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit_hub.errors import ConfigError
from vit_hub.shown import ShortRepr
from vit_hub.untrusted import BLOCKS, SIZE

__all__ = [
    "ACTIVATIONS", "ATTENTION_POOLS", "CHOICES", "RESIZE_METHODS", "RESIZING", "Merger", "Neck", "RelPosMlp", "Rope",
    "ViTConfig", "Video", "Windows", "check_choices", "check_fields", "size_pair",
]  # fmt: skip

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
ResizeMethod = Literal[
    "bilinear-align-corners",
    "bilinear-antialias",
    "bilinear",
    "bicubic",
    "bicubic-antialias",
    "bicubic-offset",
    "bicubic-align-corners",
    "relpos-geometric",
    "relpos-bilinear",
]
ACTIVATIONS: tuple[Activation, ...] = typing.get_args(Activation)
RESIZE_METHODS: tuple[ResizeMethod, ...] = typing.get_args(ResizeMethod)
_POSITIVE = ("in_chans", "embed_dim", "depth", "num_heads", "mlp_dim", "stem_width", "branches", "head_layers")
_NOT_NEGATIVE = (
    "num_registers", "representation_dim", "projection_dim", "num_classes", "pool_heads", "pool_mlp_dim",
    "pool_depth", "num_detection_tokens", "patch_padding",
)  # fmt: skip
# Of each, something is made; other numbers are compared with shapes of tensors.
_MOST = dict.fromkeys(("depth", "pool_depth", "branches"), BLOCKS.most)
_SIZES = ("image_size", "patch_size")
_SHOWN = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "num_classes")
RESIZING = ("resize", "resize_by_count", "resize_square")
"""The fields that change nothing at the size that a model was made for."""
ATTENTION_POOLS = ("map", "attn", "attentive")
"""The pools by attention of a learned query."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of the patch tokens (see :mod:`vit_hub.model.rope`).

    Attributes:
        theta: base of the frequencies.
        coordinates: ``index`` of the patch, or ``centered`` in [-1, 1] and counted in turns (DINOv3).
        normalize: what centred coordinates are divided by: each axis' length, the longer or the shorter.
        offset: added to index coordinates.
        reference_grid: index coordinates are scaled to this grid (EVA-02); None: not scaled.
        reference_ends: they are scaled so that the last patch of any grid has the coordinate of the last one of the
            reference grid (V-JEPA 2.1), not by the ratio of the sizes.
        order: whether the row or the column comes first in the channels.
        pairs: ``half`` rotates channels k and k + E/2 together, ``interleaved`` 2k and 2k + 1; ``tiled`` has the
            latter's pairs, but channel k of an axis turns by the angle of frequency k modulo E/4, so that the two of a
            pair turn by different ones (mmpretrain's EVA-02).
        mixed: the frequencies are learned per block and head (arXiv 2403.13298).
        stored_periods: the periods are in the checkpoint and used as stored (DINOv3).
        frames: the frame of a video is a coordinate, too, and comes first: each of the three turns the even part of a
            third of the channels, and the rest is not rotated (V-JEPA 2, arXiv 2506.09985).
        frequencies: both axes have the ``same`` E/4 frequencies; or they ``alternate``: of E/2 frequencies the first
            axis has the even ones, the second the odd ones (Pixtral, arXiv 2410.07073).
        class_angles: the class token is rotated, too, by learned angles that all blocks and heads share (MLCD).
        axes: the angles of the first axis come before those of the second: they are ``apart``; or they take ``turns``,
            frequency by frequency (MoonViT, arXiv 2504.07491).
    """

    theta: float = 10_000.0
    coordinates: Literal["index", "centered"] = "index"
    normalize: Literal["separate", "max", "min"] = "separate"
    offset: float = 0.0
    reference_grid: tuple[int, int] | None = None
    order: Literal["yx", "xy"] = "yx"
    pairs: Literal["half", "interleaved", "tiled"] = "interleaved"
    mixed: bool = False
    stored_periods: bool = False
    frames: bool = False
    frequencies: Literal["same", "alternate"] = "same"
    class_angles: bool = False
    axes: Literal["apart", "turns"] = "apart"
    reference_ends: bool = False

    def __post_init__(self) -> None:
        check_choices(self, "rope.")
        for name, least in (("theta", 0), ("offset", -math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < math.inf:
                raise ConfigError(f"rope.{name} must be a number{' above zero' * (least == 0)}, not {value!r}")
        if self.reference_grid is not None:
            object.__setattr__(self, "reference_grid", size_pair("rope.reference_grid", self.reference_grid))
        elif self.reference_ends:
            raise ConfigError("rope.reference_ends=True needs rope.reference_grid")


@dataclass(frozen=True, kw_only=True)
class RelPosMlp:
    """Two layers that compute a relative position bias of the offset of two patches (arXiv 2111.09883, section 3.3).

    Attributes:
        hidden_dim: width between them.
        scale: how offsets d are scaled: ``log``: sign(d) log(1 + |d|), as timm does; ``swin``: of the offset in eighths
            of the grid and to the base of eight, as Swin V2 does, whose bias is 16 times the sigmoid.
    """

    hidden_dim: int = 512
    scale: Literal["log", "swin"] = "log"

    def __post_init__(self) -> None:
        check_choices(self, "rel_pos_mlp.")
        _check_numbers(self, {"hidden_dim": 1}, "rel_pos_mlp.")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Blocks whose patches attend only to those of the same window of the grid (arXiv 2203.16527, section 3).

    Attributes:
        size: (rows, columns) of patches of a window.
        full: numbers of the blocks whose patches attend to all others.
        pad: windows at the edges are filled with zeros after the norm, and these take part in attention (Segment
            Anything, arXiv 2304.02643); False: such windows are smaller (Qwen2.5-VL, arXiv 2502.13923).
    """

    size: tuple[int, int]
    full: tuple[int, ...] = ()
    pad: bool = True

    def __post_init__(self) -> None:
        check_choices(self, "windows.")
        object.__setattr__(self, "size", size_pair("windows.size", self.size))
        object.__setattr__(self, "full", tuple(sorted(set(_numbers("windows.full", self.full, least=0)))))


@dataclass(frozen=True, kw_only=True)
class Neck:
    """Layers that make the output of the tokens, a feature map [B, channels, rows, columns].

    Attributes:
        chans: channels of the map, after a convolution of 1x1 and one of 3x3 pixels, each with a norm over the channels
            after it (arXiv 2304.02643); 0: a norm of the tokens alone.
    """

    chans: int = 256

    def __post_init__(self) -> None:
        _check_numbers(self, {"chans": 0}, "neck.")


@dataclass(frozen=True, kw_only=True)
class Merger:
    """Layers that make one output token of each square of patches, [B, N / size ** 2, dim] (arXiv 2409.12191).

    Patches are normed, joined along the channels, and pass two linear layers with GELU between them.

    Attributes:
        dim: width of the output.
        size: rows and columns of patches of a square.
    """

    dim: int
    size: int = 2

    def __post_init__(self) -> None:
        _check_numbers(self, {"dim": 1, "size": 1}, "merger.")


@dataclass(frozen=True, kw_only=True)
class Video:
    """Patches that span several frames of a video [B, T, C, h, w] (arXiv 2203.12602, section 3).

    An image is taken as a video that stands still.

    Attributes:
        frames: frames of a video, T.
        tubelet: frames of a patch.
        joint: all patches attend to one another; False: only those of the same frames (Qwen2-VL).
    """

    frames: int = 16
    tubelet: int = 2
    joint: bool = True

    def __post_init__(self) -> None:
        check_choices(self, "video.")
        _check_numbers(self, {"frames": 1, "tubelet": 1}, "video.")
        if self.frames % self.tubelet:
            raise ConfigError(f"video.frames={self.frames} is no multiple of video.tubelet={self.tubelet}")


def _check_whole(name: str, value: Any, least: int) -> None:
    """Raise ConfigError if a value is no whole number of at least a size, or beyond what a model has."""
    most = _MOST.get(name, SIZE.most)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number >= {least}, not {value!r}")
    if value > most:
        raise ConfigError(f"{name} must be at most {most:,}, not {value!r}")


def _check_numbers(instance: Any, least: Mapping[str, int], prefix: str = "") -> None:
    """Raise ConfigError if a field is no whole number of at least a size."""
    for name, smallest in least.items():
        _check_whole(f"{prefix}{name}", getattr(instance, name), smallest)


@functools.cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """The fields of a dataclass that are of a fixed choice, ``Literal`` or bool, each with its values."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        kinds = typing.get_args(hint) if typing.get_origin(hint) not in (None, Literal) else (hint,)
        values = [value for kind in kinds for value in ((True, False) if kind is bool else typing.get_args(kind))]
        if all(kind is bool or typing.get_origin(kind) is Literal for kind in kinds):
            found[name] = tuple(values)
    return found


def check_choices(instance: Any, prefix: str = "") -> None:
    """Raise ConfigError if a field of a dataclass has none of the values that its type names."""
    for name, values in _choices(instance.__class__).items():
        _check_choice(f"{prefix}{name}", getattr(instance, name), values)


def _check_choice(name: str, value: Any, values: tuple[Any, ...]) -> None:
    if not any(type(value) is type(one) and value == one for one in values):  # 1 is no True
        raise ConfigError(f"{name} must be one of {', '.join(map(str, values))}, not {value!r}")


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise ConfigError if one of these fields of a :class:`ViTConfig` has a value that no config has there.

    Groups check their own fields when they are made.
    """
    least = {**dict.fromkeys(_POSITIVE, 1), **dict.fromkeys(_NOT_NEGATIVE, 0)}
    for name, value in fields.items():
        if name in least:
            _check_whole(name, value, least[name])
        if name in _SIZES:
            size_pair(name, value)
        if name in CHOICES:
            _check_choice(name, value, CHOICES[name])


@dataclass(frozen=True, kw_only=True, repr=False)
class ViTConfig(ShortRepr):
    """Everything that decides a Vision Transformer's tensors and outputs.

    Attributes:
        image_size: (height, width) in pixels of the images the position table was made for.
        patch_size: (height, width) in pixels of one patch.
        in_chans: image channels, C in eq. 1.
        embed_dim: token width, D in eq. 1.
        depth: number of blocks, L in eq. 2-3.
        num_heads: attention heads per block; ``embed_dim`` must be a multiple of it.
        mlp_dim: hidden width of the feed-forward layer (of the gated half, where ``ffn`` is gated).
        ffn: ``mlp``: two linear layers (eq. 3); ``swiglu``: gate and value as two tensors;
            ``swiglu_packed``: gate and value as one tensor, gate first (arXiv 2002.05202).
        act: ``gelu`` (exact, erf), ``gelu_tanh`` (tanh approximation), ``quick_gelu`` (x * sigmoid(1.702 x));
            all three are in arXiv 1606.08415, section 2; or ``silu``, ``relu``.
        norm_eps: epsilon of every norm.
        norm: kind of the norms: ``layer`` (LayerNorm); ``rms`` (RMSNorm, arXiv 1910.07467); ``rms_blocks``: RMSNorm in
            the blocks, LayerNorm after them (InternViT-6B).
        qkv_bias: True, False, ``"qv"`` for models whose keys have no bias (BEiT, EVA), or ``"masked"`` for a full bias
            that is multiplied by a stored mask (DINOv3).
        proj_bias: whether the projection after attention has a bias.
        mlp_bias: whether the linear layers of the feed-forward layer have biases.
        kv_heads: heads of keys and values in each block, each shared by as many heads of queries (arXiv 2305.13245);
            empty: as many as heads of queries in all blocks.
        patch_bias: whether the patch embedding has a bias (CLIP has none).
        patch_padding: rows and columns of zeros around the image, in pixels, before it is cut into patches (ViTPose).
        patch_norm: norm of the patch embeddings, before positions are added (AIMv2, arXiv 2411.14402).
        qk_norm: norm of queries and keys (arXiv 2302.05442, section 2): True: LayerNorm over each head; ``rms``:
            RMSNorm over each head; ``rms_width``: RMSNorm over all heads together (InternViT-6B).
        qk_norm_eps: epsilon of these norms; None: that of the others.
        pre_norm: LayerNorm on the tokens before the first block (CLIP).
        class_token: a learned class token is prepended (x_class in eq. 1).
        num_detection_tokens: learned tokens after the patches, each with a row at the end of the position table (YOLOS,
            arXiv 2106.00666, section 3.1).
        mid_pos_embed: a further position table is added after every block but the last (YOLOS).
        distilled: a distillation token follows the class token (DeiT, arXiv 2012.12877, section 4).
        num_registers: register tokens after class and distillation tokens (arXiv 2309.16588).
        pos_embed: ``learned`` table (E_pos in eq. 1); ``factorized``: one learned table for rows and one for columns,
            which are added; computed: ``sincos2d`` as in big_vision, ``sincos2d_mae`` as in MAE, ``sincos1d`` over all
            patches of a video in order (arXiv 1706.03762, section 3.5); or ``none``.
        pos_embed_prefix: the learned table has rows for the class and distillation tokens.
        pos_embed_registers: the learned table has rows for the registers too, after those.
        rope: rotary position embedding of the patch tokens, or None.
        rel_pos: relative position bias on the attention logits: one table a ``block``, one ``shared`` by all (BEiT,
            arXiv 2106.08254), ``decomposed``: two tables a block, for rows and columns, whose rows the queries are
            multiplied with (arXiv 2112.01526, section 4.1), or ``none``.
        attn_norm: LayerNorm on the attention output before its projection (EVA-02, arXiv 2303.11331).
        mlp_norm: LayerNorm on the hidden activations of the feed-forward layer (EVA-02).
        prefix_norm: class and register tokens have a final norm of their own (DINOv3's untied norms).
        layer_scale: a learned per-channel factor on each residual branch (arXiv 2103.17239, eq. 4), or on that of
            attention alone (``attn``).
        pool: ``cls`` token, ``cls_dist`` (class and distillation token: the logits are the mean of two heads, the
            embedding is the mean of the tokens; 2012.12877, section 4), ``avg`` of patch tokens, ``map`` (multi-head
            attention pooling, arXiv 2106.04560, appendix), ``attn`` (the same without a projection of the query and
            without an MLP, AIMv2), ``attentive`` (further blocks, then a query that attends to normed tokens and stays
            in the sum, arXiv 2404.08471, section 3.3), ``first`` patch token, or ``none``.
        final_norm: LayerNorm ``before`` pooling on all tokens (eq. 4), ``after`` pooling, or ``none``.
        pool_renorm: the pooled token is normed once more by the final norm (BLIP's image encoder).
        pool_tokens: numbers of tokens before the patches that ``pool="cls"`` reads side by side, in this order (RADIO's
            summary, arXiv 2312.06709); empty: the class token alone.
        representation_dim: width of the tanh layer between pooling and head (2010.11929, section 3.1); 0: none.
        projection_dim: width of CLIP's bias-free projection of the pooled embedding; 0: none.
        pool_heads: attention heads of ``map``, ``attn`` and ``attentive`` pooling; 0: as many as in a block.
        pool_prefix: ``map``, ``attn`` and ``avg`` pooling read class and register tokens, too, not the patches only.
        pool_mlp_dim: hidden width of the MLPs of attention pooling; 0: as in a block.
        pool_depth: blocks of ``attentive`` pooling before its query attends.
        head_input: what the head reads: the ``pooled`` embedding; class token and patch mean side by side (``cls_avg``,
            linear heads of DINOv2); or class and distillation token, each with a head of its own, whose logits are
            averaged (``cls_dist``: as ``pool="cls_dist"``, but the embedding is the class token's).
        head_norm: BatchNorm without learned parameters before the head (linear probes of MAE, arXiv 2111.06377, A.1).
        num_classes: outputs of the linear head; 0: no head.
        stem: what comes before the patch embedding: nothing (``patch``), the ``resnet`` of the hybrids, or ``conv``;
            ``patch_size`` is then counted on the stem's output.
        stem_stages: bottleneck units of each stage of the ResNet.
        stem_width: channels of the ResNet's root.
        stem_standardize: how its kernels are standardised, by ``std`` + 1e-5 or by sqrt(``var`` + 1e-8).
        stem_norm_eps: epsilon of its group norms.
        stem_convs: (channels, kernel, stride) of each convolution of a ``conv`` stem.
        resize: how the model's own project resizes its position table at another image size.
        resize_by_count: that project leaves a table alone when the number of patches stays the same, whatever the grid.
        final_norm_eps: epsilon of the final norm where it is another than ``norm_eps``.
        windows: blocks that attend within windows of the grid, or None.
        neck: layers that make the output a feature map, or None; ``pool="avg"`` takes the mean of that map.
        merger: layers that make the output one token of several patches, or None.
        video: patches that span frames of a video, or None for images.
        norm_position: norms of a block ``pre``: before attention and feed-forward layer (eq. 2-3), or ``post``: after
            them, before the residual sum (arXiv 2111.09883, section 3.2).
        rel_pos_mlp: relative position biases are computed by this network, not learned as tables; or None.
        differential: attention is the difference of two softmaxes, each of half of a head's queries and keys
            (arXiv 2410.05258).
        parallel: attention and feed-forward layer read the same norm and are added (arXiv 2302.05442, section 2), with
            ``separate`` biases or a ``joint`` one after them; ``none``: one after the other.
        branches: so many attention layers side by side, then as many feed-forward layers, each with a norm of its own
            (arXiv 2203.09795, section 3).
        resize_square: that project resizes a table to the square of the grid's longer side, and crops it (NaFlexVit).
        head_layers: the head reads class tokens of so many of the last blocks side by side, the earliest first, each
            normed (linear evaluation of DINO and DINOv2, arXiv 2104.14294, appendix F); ``cls_avg`` adds the mean of
            the patches of the last one.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    ffn: Literal["mlp", "swiglu", "swiglu_packed"] = "mlp"
    act: Activation = "gelu"
    norm_eps: float = 1e-6
    norm: Literal["layer", "rms", "rms_blocks"] = "layer"
    qkv_bias: bool | Literal["qv", "masked"] = True
    proj_bias: bool = True
    mlp_bias: bool = True
    kv_heads: tuple[int, ...] = ()
    patch_bias: bool = True
    patch_norm: bool = False
    qk_norm: bool | Literal["rms", "rms_width"] = False
    qk_norm_eps: float | None = None
    pre_norm: bool = False
    class_token: bool = True
    distilled: bool = False
    num_registers: int = 0
    pos_embed: Literal["learned", "sincos2d", "sincos1d", "none", "factorized", "sincos2d_mae"] = "learned"
    pos_embed_prefix: bool = True
    pos_embed_registers: bool = False
    rope: Rope | None = None
    rel_pos: Literal["none", "block", "shared", "decomposed"] = "none"
    attn_norm: bool = False
    mlp_norm: bool = False
    prefix_norm: bool = False
    layer_scale: bool | Literal["attn"] = False
    pool: Literal["cls", "cls_dist", "avg", "map", "attentive", "first", "none", "attn"] = "cls"
    final_norm: Literal["before", "after", "none"] = "before"
    pool_renorm: bool = False
    representation_dim: int = 0
    projection_dim: int = 0
    pool_heads: int = 0
    pool_mlp_dim: int = 0
    pool_prefix: bool = False
    head_input: Literal["pooled", "cls_avg", "cls_dist"] = "pooled"
    head_norm: bool = False
    num_classes: int = 0
    stem: Literal["patch", "resnet", "conv"] = "patch"
    stem_stages: tuple[int, ...] = ()
    stem_width: int = 64
    stem_standardize: Literal["std", "var"] = "std"
    stem_norm_eps: float = 1e-6
    stem_convs: tuple[tuple[int, int, int], ...] = ()
    resize: ResizeMethod = "bicubic-antialias"
    resize_by_count: bool = False
    num_detection_tokens: int = 0
    mid_pos_embed: bool = False
    patch_padding: int = 0
    final_norm_eps: float | None = None
    pool_depth: int = 0
    windows: Windows | None = None
    neck: Neck | None = None
    merger: Merger | None = None
    video: Video | None = None
    norm_position: Literal["pre", "post"] = "pre"
    rel_pos_mlp: RelPosMlp | None = None
    differential: bool = False
    parallel: Literal["none", "separate", "joint"] = "none"
    branches: int = 1
    resize_square: bool = False
    head_layers: int = 1
    pool_tokens: tuple[int, ...] = ()

    def _facts(self) -> dict[str, Any]:
        """Return what says which model it is, and each field with another value than usual: a ``repr`` of the whole."""
        return {
            item.name: value
            for item in dataclasses.fields(self)
            if (value := getattr(self, item.name)) != item.default or item.name in _SHOWN
        }

    def input_shape(self, size: tuple[int, int], *, stills: bool = False) -> tuple[int, ...]:
        """Return the shape of one input of a size (height, width): [C, h, w], of a video [T, C, h, w].

        Args:
            size: of the images.
            stills: of an image, also where the model takes videos, too.
        """
        frames = () if self.video is None or stills else (self.video.frames,)
        return (*frames, self.in_chans, *size)

    @property
    def still_frames(self) -> int:
        """Frames of the video that one image stands for: all that positions need, else one patch's; without video 1."""
        if self.video is None:
            return 1
        return self.video.frames if self.pos_embed == "sincos1d" else self.video.tubelet

    def __post_init__(self) -> None:
        for name in _SIZES:
            object.__setattr__(self, name, size_pair(name, getattr(self, name)))
        for name, group in _GROUPS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _group(name, group, getattr(self, name)))
        object.__setattr__(self, "stem_stages", _numbers("stem_stages", self.stem_stages))
        object.__setattr__(self, "kv_heads", _numbers("kv_heads", self.kv_heads))
        object.__setattr__(self, "pool_tokens", _numbers("pool_tokens", self.pool_tokens, least=0))
        object.__setattr__(self, "stem_convs", _convolutions(self.stem_convs))
        check_fields(vars(self))
        for name in ("norm_eps", "stem_norm_eps", "qk_norm_eps", "final_norm_eps"):
            eps = getattr(self, name)
            optional = name in ("qk_norm_eps", "final_norm_eps")
            if not (isinstance(eps, float) and 0 < eps < 1) and not (optional and eps is None):
                raise ConfigError(f"{name} must be a number between 0 and 1, not {eps!r}")
        self._check_consistency()
        # Fields without effect take their defaults, so that configs of the same model are equal.
        for name, value in self._without_effect().items():
            object.__setattr__(self, name, value)

    def _without_effect(self) -> dict[str, Any]:
        """The fields that change nothing in this config, each with the value that says so."""
        found: dict[str, Any] = {}
        if self.pos_embed not in ("learned", "factorized"):
            found["resize_square"] = False
        if not self.num_registers or self.pos_embed != "learned":
            found["pos_embed_registers"] = False
        if not self.num_prefix_rows:
            found["pos_embed_prefix"] = False
        attends = self.pool in ATTENTION_POOLS
        if not attends or self.pool_heads == self.num_heads:
            found["pool_heads"] = 0
        if not attends or self.pool_mlp_dim == self.mlp_dim:
            found["pool_mlp_dim"] = 0
        if self.pool != "attentive":
            found["pool_depth"] = 0
        if not self.num_classes:
            found["head_layers"] = 1
        if self.pool_tokens == (0,):
            found["pool_tokens"] = ()
        if self.final_norm == "none" or self.final_norm_eps == self.norm_eps:
            found["final_norm_eps"] = None
        if self.windows is not None:
            full = tuple(block for block in self.windows.full if block < self.depth)
            windowed = len(full) < self.depth
            found["windows"] = dataclasses.replace(self.windows, full=full) if windowed else None
        if self.parallel == "joint" or (self.parallel == "separate" and not self.proj_bias):
            found |= {"parallel": "joint", "proj_bias": True}
        if self.parallel != "none" and self.layer_scale == "attn":
            found["layer_scale"] = True
        if all(heads == self.num_heads for heads in self.kv_heads):
            found["kv_heads"] = ()
        if self.num_heads == 1 and self.qk_norm == "rms_width":
            found["qk_norm"] = "rms"
        if self.norm == "rms_blocks" and self.final_norm == "none" and self.pool != "map":
            found["norm"] = "rms"
        if not self.qk_norm or self.qk_norm_eps == self.norm_eps:
            found["qk_norm_eps"] = None
        if self.stem != "resnet":
            default = {item.name: item.default for item in dataclasses.fields(self)}
            found |= {name: default[name] for name in ("stem_width", "stem_standardize", "stem_norm_eps")}
        return found

    def _check_consistency(self) -> None:
        """Raise ConfigError for fields that are each valid but contradict one another."""
        dim, pool, head, prefix = self.embed_dim, self.pool, self.num_classes > 0, self.num_prefix_tokens
        pooled, both_tokens, width = pool != "none", pool == "cls_dist", self.representation_dim
        joint = self.video is not None and self.video.joint
        plain = not prefix and not joint and self.final_norm == "none"
        holds = {
            f"num_heads: num_heads={self.num_heads} does not divide embed_dim={dim}": dim % self.num_heads == 0,
            f"image_size: image_size={self.image_size} is smaller than one patch {self.pixels_per_patch}": all(
                self.grid_size
            ),
            f"rope: rope needs heads of a multiple of 4 channels, not {self.head_dim}": (
                self.rope is None or self.rope.frames or self.head_dim % 4 == 0
            ),
            "rel_pos: rel_pos needs no prefix tokens but a class token": (
                self.rel_pos in ("none", "decomposed") or prefix == int(self.class_token)
            ),
            "rel_pos: rel_pos='decomposed' needs patches alone, without rotary positions": (
                self.rel_pos != "decomposed" or not (prefix or self.rope or joint)
            ),
            "rel_pos_mlp: rel_pos_mlp needs rel_pos='block' or 'shared'": (
                self.rel_pos_mlp is None or self.rel_pos in ("block", "shared")
            ),
            "norm_position: norms after the layers exclude layer_scale and layers side by side": (
                self.norm_position == "pre" or not (self.layer_scale or self.parallel != "none" or self.branches > 1)
            ),
            "differential: differential attention needs heads of an even width and no rotary positions": (
                not self.differential or (self.head_dim % 2 == 0 and self.rope is None)
            ),
            "branches: branches exclude parallel and rel_pos": (
                self.branches == 1 or (self.parallel == "none" and self.rel_pos == "none")
            ),
            "prefix_norm: prefix_norm=True needs prefix tokens and final_norm='before'": (
                not self.prefix_norm or (prefix > 0 and self.final_norm == "before")
            ),
            "head_input: head_input='cls_avg' or 'cls_dist' needs pool='cls' and a head": (
                self.head_input == "pooled" or (pool == "cls" and head)
            ),
            "head_input: head_input='cls_avg' reads tokens that no layer or norm follows": (
                self.head_input != "cls_avg" or not (width or self.projection_dim or self.final_norm == "after")
            ),
            "head_input: head_input='cls_dist' needs distilled=True and no layer before the head": (
                self.head_input != "cls_dist" or (self.distilled and not (width or self.projection_dim))
            ),
            f"head_layers: head_layers={self.head_layers} needs as many blocks, pool='cls', final_norm='before', and "
            "no layer before the head": (
                self.head_layers == 1
                or not head
                or (
                    (pool, self.final_norm) == ("cls", "before")
                    and self.head_layers <= self.depth
                    and self.head_input != "cls_dist"
                    and not (width or self.projection_dim or self.pool_renorm or self.head_norm)
                )
            ),
            "head_norm: head_norm=True needs one head that reads the pooled embedding": (
                not self.head_norm or (head and not both_tokens and self.head_input == "pooled")
            ),
            "stem_convs: stem='conv' and stem_convs go together": (self.stem == "conv") == bool(self.stem_convs),
            "stem_stages: stem_stages needs stem='resnet'": self.stem == "resnet" or not self.stem_stages,
            "stem_width: group norm needs a multiple of 32 channels": self.stem_width % 32 == 0,
            "pool: pool='cls' needs class_token=True": pool != "cls" or self.class_token,
            "pool_prefix: pool_prefix=True needs pool='map', 'attn' or 'avg' and prefix tokens": (
                not self.pool_prefix or (pool in ("avg", *ATTENTION_POOLS) and prefix > 0)
            ),
            "pool_tokens: pool_tokens needs pool='cls' and tokens before the patches, which nothing else reads": (
                not self.pool_tokens
                or (
                    pool == "cls"
                    and max(self.pool_tokens) < prefix
                    and not (width or self.projection_dim or self.pool_renorm)
                    and (self.final_norm, self.head_input) in (("before", "pooled"), ("none", "pooled"))
                )
            ),
            "kv_heads: kv_heads needs a divisor of num_heads for each block": (
                not self.kv_heads
                or (len(self.kv_heads) == self.depth and all(self.num_heads % heads == 0 for heads in self.kv_heads))
            ),
            "qkv_bias: qkv_bias='masked' needs as many heads of keys and values as of queries": (
                self.qkv_bias != "masked" or all(heads == self.num_heads for heads in self.kv_heads)
            ),
            "kv_heads: kv_heads excludes rope.mixed, whose frequencies are those of each head": (
                self.rope is None or not self.rope.mixed or all(heads == self.num_heads for heads in self.kv_heads)
            ),
            "rope: rope.class_angles=True needs class_token=True, and excludes rope.mixed": (
                self.rope is None or not self.rope.class_angles or (self.class_token and not self.rope.mixed)
            ),
            "rope: rope.axes='turns' excludes pairs='tiled' and rope.mixed": (
                self.rope is None or self.rope.axes == "apart" or not (self.rope.pairs == "tiled" or self.rope.mixed)
            ),
            "distilled: distilled=True needs class_token=True": self.class_token or not self.distilled,
            "num_detection_tokens: detection tokens need a learned position table with rows for all tokens": (
                not self.num_detection_tokens
                or (self.num_prefix_rows == prefix > 0 and pool in ("cls", "none") and not self.rope)
            ),
            "mid_pos_embed: mid_pos_embed=True needs detection tokens and several blocks": (
                not self.mid_pos_embed or (self.num_detection_tokens > 0 and self.depth > 1)
            ),
            "patch_padding: patch_padding needs images cut into larger patches than twice of it": (
                not self.patch_padding or (self.stem == "patch" and 2 * self.patch_padding < min(self.patch_size))
            ),
            "pool: pool='cls_dist' needs distilled=True and no representation layer": (
                not both_tokens or (self.distilled and not width)
            ),
            "projection_dim: a projection excludes a representation layer and pool='cls_dist'": (
                not self.projection_dim or not (width or both_tokens)
            ),
            "pool_renorm: pool_renorm=True needs a pooled token and final_norm='before'": (
                not self.pool_renorm or (self.pool in ("cls", "first") and self.final_norm == "before")
            ),
            "final_norm: final_norm='after' needs a pooled output, and pool is 'none'": (
                pooled or self.final_norm != "after"
            ),
            "representation_dim: a representation layer needs a pooled output, and pool is 'none'": pooled or not width,
            f"pool_heads: pool_heads={self.pool_heads} does not divide embed_dim={dim}": (
                not self.pool_heads or dim % self.pool_heads == 0
            ),
            "num_classes: a head or projection needs a pooled output, and pool is 'none'": (
                pooled or not (head or self.projection_dim)
            ),
            "pos_embed_registers: pos_embed_registers=True needs pos_embed_prefix=True": (
                not self.pos_embed_registers or self.pos_embed_prefix
            ),
            f"pos_embed: pos_embed={self.pos_embed!r} needs embed_dim to be a multiple of 4": (
                not self.pos_embed.startswith("sincos2d") or dim % 4 == 0
            ),
            "pos_embed: pos_embed='sincos1d' needs an even embed_dim": self.pos_embed != "sincos1d" or dim % 2 == 0,
            "pos_embed: a video of joint frames has pos_embed='sincos1d' or 'none', and nothing else has the former": (
                self.pos_embed == "none" or joint == (self.pos_embed == "sincos1d")
            ),
            "rope: rope.frames=True goes with a video of joint frames, and excludes pairs='half' and rope.mixed": (
                self.rope is None
                or (self.rope.frames == joint and (not joint or (self.rope.pairs != "half" and not self.rope.mixed)))
            ),
            "windows: windows need patches alone, and filled ones no rotary positions": (
                self.windows is None or not (prefix or joint or (self.windows.pad and self.rope))
            ),
            "neck: a neck needs patches alone, pool='none' or 'avg', and no other layers between blocks and head": (
                self.neck is None or (plain and pool in ("none", "avg") and not (width or self.projection_dim))
            ),
            "merger: a merger needs patches alone, without a final norm, and pool='none'": (
                self.merger is None or (plain and pool == "none" and self.neck is None)
            ),
            "video: patches of several frames need stem='patch'": self.video is None or self.stem == "patch",
        }
        for message, true in holds.items():
            if not true:
                raise ConfigError(message)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches; pixels that do not fill a patch are left out."""
        (height, width), (p, q) = (side + 2 * self.patch_padding for side in self.image_size), self.patch_size
        for stride in self.stem_strides:
            height, width = -(-height // stride), -(-width // stride)
        return height // p, width // q

    @property
    def stem_strides(self) -> tuple[int, ...]:
        """Strides of the stem's layers; each rounds the size up. A ResNet's are its root, the pooling, the stages."""
        if self.stem == "resnet":
            return (2, 2) + (2,) * max(len(self.stem_stages) - 1, 0)
        return tuple(stride for _, _, stride in self.stem_convs)

    @property
    def pixels_per_patch(self) -> tuple[int, int]:
        """(height, width) in image pixels from one patch to the next."""
        stride = math.prod(self.stem_strides)
        return self.patch_size[0] * stride, self.patch_size[1] * stride

    @property
    def patch_chans(self) -> int:
        """Input channels of the patch embedding."""
        if self.stem == "resnet":
            return self.stem_width * 2 ** (len(self.stem_stages) + 1) if self.stem_stages else self.stem_width
        return self.stem_convs[-1][0] if self.stem_convs else self.in_chans

    @property
    def num_patches(self) -> int:
        """Patches per image, N in eq. 1."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_tubelets(self) -> int:
        """Patches at one place of a video whose frames see one another; 1 for images and separate frames."""
        return self.video.frames // self.video.tubelet if self.video and self.video.joint else 1

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return int(self.class_token) + int(self.distilled) + self.num_registers

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled embedding: of a token, of those that are read side by side, or of the map of a neck."""
        if self.neck and self.neck.chans:
            return self.neck.chans
        return self.embed_dim * max(len(self.pool_tokens), 1)

    @property
    def feature_dim(self) -> int:
        """Width of the embedding after projection or representation layer, where there is one."""
        return self.projection_dim or self.representation_dim or self.pooled_dim

    @property
    def head_width(self) -> int:
        """Width of what the head reads: the embedding, or several tokens side by side."""
        return self.feature_dim * (self.head_layers + (self.head_input == "cls_avg"))

    @property
    def num_prefix_rows(self) -> int:
        """Rows of the learned position table before those of the patches."""
        if self.pos_embed != "learned" or not self.pos_embed_prefix:
            return 0
        return int(self.class_token) + int(self.distilled) + (self.num_registers if self.pos_embed_registers else 0)

    @property
    def num_relative_offsets(self) -> int:
        """Offsets that two patches may have."""
        rows, columns = self.grid_size
        return (2 * rows - 1) * (2 * columns - 1)

    @property
    def num_relative_rows(self) -> int:
        """Rows of a relative position table: one for each offset of two patches, and three for a class token."""
        return self.num_relative_offsets + 3 * int(self.class_token)

    def window(self, block: int) -> tuple[int, int] | None:
        """Return (rows, columns) of the windows of a block; None if its patches attend to all others."""
        return None if self.windows is None or block in self.windows.full else self.windows.size

    @property
    def block_norm(self) -> str:
        """Kind of the norms before and in the blocks, ``layer`` or ``rms``."""
        return "layer" if self.norm == "layer" else "rms"

    @property
    def output_norm(self) -> str:
        """Kind of the norms after the blocks, ``layer`` or ``rms``."""
        return "rms" if self.norm == "rms" else "layer"

    def kv_dim(self, block: int) -> int:
        """Return the width of the keys, and of the values, of one block."""
        return (self.kv_heads[block] if self.kv_heads else self.num_heads) * self.head_dim

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    def replace(self, **changes: Any) -> ViTConfig:
        """Return a copy with some fields changed.

        Raises:
            ConfigError: an unknown field, or the result is inconsistent.
        """
        return ViTConfig.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready data, sizes as lists."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ViTConfig:
        """Return the config of :meth:`to_dict`'s data; missing fields take their defaults.

        Raises:
            ConfigError: an unknown field, or the result is inconsistent.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ConfigError(f"unknown config field {', '.join(unknown)}", hint=f"known: {', '.join(sorted(known))}")
        return cls(**data)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in vars(value).items()} if dataclasses.is_dataclass(value) else value


def _numbers(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """Return a sequence of whole numbers of at least a size as a tuple.

    Raises:
        ConfigError: it is none.
    """
    found = tuple(values) if isinstance(values, (list, tuple)) else None
    if found is None or not all(type(value) is int and least <= value <= SIZE.most for value in found):
        raise ConfigError(f"{name} must hold whole numbers >= {least}, not {values!r}")
    if said := BLOCKS.exceeded(len(found)):
        raise ConfigError(f"{name} {said.replace(BLOCKS.unit, 'numbers')}")
    return found


def _convolutions(values: Any) -> tuple[tuple[int, int, int], ...]:
    """Return the convolutions of a stem as tuples of (channels, kernel, stride).

    Raises:
        ConfigError: they are none.
    """
    found = [_numbers("stem_convs", conv) for conv in values] if isinstance(values, (list, tuple)) else None
    if found is None or any(len(conv) != 3 for conv in found):
        raise ConfigError(f"stem_convs must hold (channels, kernel, stride) for each convolution, not {values!r}")
    return tuple(found)  # type: ignore[arg-type]


CHOICES = _choices(ViTConfig)
"""Field -> its values, for every field of a fixed choice."""
# Fields that are small configs of their own, accepted as a mapping, too.
_GROUPS: dict[str, type] = {
    "rope": Rope,
    "rel_pos_mlp": RelPosMlp,
    "windows": Windows,
    "neck": Neck,
    "merger": Merger,
    "video": Video,
}


def _group(name: str, group: type, value: Any) -> Any:
    """A small config, made of a mapping if it is none yet."""
    if isinstance(value, group):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping, not {value!r}")
    fields = {item.name: item for item in dataclasses.fields(group)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ConfigError(f"unknown config field {name}.{unknown[0]}")
    missing = [key for key, item in fields.items() if item.default is dataclasses.MISSING and key not in value]
    if missing:
        raise ConfigError(f"{name} lacks {name}.{missing[0]}")
    return group(**value)


def size_pair(name: str, value: Any) -> tuple[int, int]:
    """Return one whole number or a (height, width) pair of them as a pair.

    Raises:
        ConfigError: ``value`` is neither; ``name`` is its name in the message.
    """
    pair = (value, value) if hasattr(value, "__index__") else value  # numpy's whole numbers, too
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(f"{name} must be one number or (height, width), not {value!r}")
    if any(isinstance(side, bool) or not hasattr(side, "__index__") or operator.index(side) < 1 for side in pair):
        raise ConfigError(f"{name} must hold whole numbers >= 1, not {value!r}")
    if max(map(operator.index, pair)) > SIZE.most:
        raise ConfigError(f"{name} must be at most {SIZE.most:,}, not {value!r}")
    return operator.index(pair[0]), operator.index(pair[1])
