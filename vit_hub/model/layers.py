"""The parts a Vision Transformer block is made of.

Shapes: B images, T tokens, D ``embed_dim``, H heads. Parameter names are timm's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_hub.model.config import Merger, RelPosMlp, ViTConfig
from vit_hub.model.rope import rotate
from vit_hub.model.stems import ConvStem, ResNetStem
from vit_hub.model.windows import Partition

__all__ = [
    "Attention", "AttentionPool", "AttentivePool", "Block", "BranchedBlock", "DropPath", "LayerScale", "Mlp",
    "PackedSwiGLU", "ParallelBlock", "PatchEmbed", "PatchMerger", "Positions", "PostNormBlock", "RelativePositionMlp",
    "SwiGLU",
    "block_class", "dropout", "dropped", "make_neck", "make_norm",
]  # fmt: skip


# A bias of attention's logits, or what makes it of the layer's own table or network, or of its queries and tables.
Bias = Tensor | Callable[..., Tensor]


class Positions(NamedTuple):
    """Rotations, bias and windows, by which the attention of a block knows of positions.

    Attributes:
        rope: cosines and sines that rotate queries and keys, each [..., T, D/H].
        bias: added to the logits, [1, H, T, T]; a function makes it of the layer's own table, or of queries and both
            tables.
        windows: patches attend to those of the same window only.
    """

    rope: tuple[Tensor, Tensor] | None = None
    bias: Bias | None = None
    windows: Partition | None = None


_NO_POSITIONS = Positions()


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """Return LayerNorm (``layer``), or RMSNorm (``rms``, arXiv 1910.07467)."""
    return nn.RMSNorm(width, eps=eps) if kind == "rms" else nn.LayerNorm(width, eps=eps)


def _activate(name: str, x: Tensor, *, inplace: bool) -> Tensor:
    """GELU in its three published forms (arXiv 1606.08415, section 2), SiLU (section 2, eq. of SiLU) and ReLU."""
    if name in _GELU:
        return (torch.ops.aten.gelu_ if inplace else F.gelu)(x, approximate=_GELU[name])
    if name == "quick_gelu":
        gate = (1.702 * x).sigmoid_()
        return gate.mul_(x) if inplace else gate * x
    return F.silu(x, inplace) if name == "silu" else F.relu(x, inplace)


_GELU = {"gelu": "none", "gelu_tanh": "tanh"}


def is_tracing() -> bool:
    """Return whether torch.jit.trace records what runs; sizes are tensors then."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_recorded() -> bool:
    """Return whether what runs becomes a program that nothing may be left out of."""
    return torch.compiler.is_compiling() or is_tracing()


def holds(condition: Any) -> bool:
    """Return whether a comparison of sizes holds.

    torch.fx knows no sizes: its program is one for images that the model takes as it is, and asserts that they are.
    """
    if not isinstance(condition, torch.fx.Proxy):
        return bool(condition)
    message = "the images are not of the size that the model was traced for"
    torch._assert(condition, message)  # type: ignore[no-untyped-call]
    return True


def surely(condition: Any) -> bool:
    """Return whether a comparison of sizes holds in every run of the program that is being recorded, if one is.

    While torch.compile and torch.export record, sizes may be symbols: asking for their values would make the program
    one for these values.
    """
    if not torch.compiler.is_compiling():
        return holds(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(condition))


def _has_hooks(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(hooks)


def _is_everything_watched() -> bool:
    """Return whether somebody looks on whenever a layer is called: by hooks on all modules, or torch.fx."""
    if torch.compiler.is_compiling():  # the recorder replaces the call of all modules itself
        return False
    watched: bool = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return watched or nn.Module.__call__ is not nn.Module._wrapped_call_impl


def is_watched(*modules: nn.Module) -> bool:
    """Return whether somebody looks on when modules, or layers within them, are called."""

    def within(module: nn.Module) -> bool:
        return _has_hooks(module) or any(within(layer) for layer in module._modules.values() if layer is not None)

    return _is_everything_watched() or any(map(within, modules))


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a layer computes exactly what its class does, and nobody else takes part or looks on.

    Only then may its parameters be used without calling it, or its output be overwritten. Adapters and quantized layers
    are other classes, or have other tensors as parameters; parametrizations change the class; offloading replaces
    ``forward`` on the instance.
    """
    if type(layer) not in kinds or "forward" in vars(layer) or _has_hooks(layer) or _is_everything_watched():
        return False
    if torch.compiler.is_compiling():  # parameters are then stand-ins of other types
        return True
    tensors = [tensor for tensor in layer._parameters.values() if tensor is not None]
    return all(type(tensor) in (nn.Parameter, Tensor) for tensor in tensors)


def _may_overwrite(layer: nn.Module) -> bool:
    """Return whether a layer's output may be overwritten: nobody else can have kept it, and autograd keeps nothing.

    The hidden activations are the largest tensors of a model. Pages of a second one cost more time than the activation.
    """
    return not (torch.is_grad_enabled() or is_recorded()) and is_plain(layer, nn.Linear)


def dropout(rate: float) -> nn.Module | None:
    """Return dropout in training; None for a rate of zero, since calling what does nothing takes time."""
    return nn.Dropout(rate) if rate else None


def dropped(layer: nn.Module | None, x: Tensor) -> Tensor:
    """Return what dropout leaves, where there is any."""
    return x if layer is None else layer(x)


def _cut(qkv: Tensor, dim: int, kv_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., dim + 2 kv_dim] -> queries [..., dim], keys and values [..., kv_dim]."""
    return qkv[..., :dim], qkv[..., dim : dim + kv_dim], qkv[..., dim + kv_dim :]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, D/H]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[-1] // heads).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    """[B, H, T, D/H] -> [B, T, D]."""
    x = x.transpose(1, 2)
    # Attention kernels differ in the layout of their result, so a traced view does not fit every kernel that an
    # exported program is lowered to; a copy does.
    if torch.compiler.is_compiling():
        x = x.clone(memory_format=torch.contiguous_format)
    return x.flatten(2)


class PatchEmbed(nn.Module):
    """Patches to tokens, x_p E in eq. 1 of arXiv 2010.11929: [B, C, h, w] -> [B, N, D], row-major.

    A convolution with stride equal to its kernel is one matrix product over flattened patches; the parameter keeps
    the convolution's shape [D, C, p, q]. Patches of videos [B, T, C, h, w] span frames, too: the kernel is
    [D, C, t, p, q], and tokens are in the order of frames, rows, columns.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.backbone = _STEMS[config.stem](config) if config.stem in _STEMS else nn.Identity()
        self.padding, self.video = config.patch_padding, config.video is not None
        self.proj: nn.Conv2d | nn.Conv3d
        if config.video is None:
            self.proj = nn.Conv2d(
                config.patch_chans, config.embed_dim, config.patch_size, config.patch_size, bias=config.patch_bias
            )
        else:
            patch = (config.video.tubelet, *config.patch_size)
            self.proj = nn.Conv3d(config.in_chans, config.embed_dim, patch, patch, bias=config.patch_bias)
        self.norm = (
            make_norm(config.block_norm, config.embed_dim, config.norm_eps) if config.patch_norm else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return a token for every whole patch; pixels to the right and below that do not fill one are left out."""
        if self.padding:
            images = F.pad(images, (self.padding,) * 4)
        return self.norm(self._project(self.backbone(images)))  # type: ignore[no-any-return]

    def _project(self, images: Tensor) -> Tensor:
        video = self.video
        if not is_plain(self.proj, nn.Conv2d, nn.Conv3d):
            images = images.transpose(1, 2) if video else images
            return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
        weight = self.proj.weight
        chans, p, q = weight.shape[1], weight.shape[-2], weight.shape[-1]
        batch, rows, columns = images.shape[0], images.shape[-2] // p, images.shape[-1] // q
        if not (surely(images.shape[-2] == rows * p) and surely(images.shape[-1] == columns * q)):
            images = images[..., : rows * p, : columns * q]
        if video:
            t = weight.shape[2]
            frames = images.shape[1] // t
            boxes = images.reshape(batch, frames, t, chans, rows, p, columns, q).permute(0, 1, 4, 6, 3, 2, 5, 7)
            return F.linear(
                boxes.reshape(batch, frames * rows * columns, chans * t * p * q), weight.flatten(1), self.proj.bias
            )
        patches = images.reshape(batch, chans, rows, p, columns, q)
        flat = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, chans * p * q)
        return F.linear(flat, weight.flatten(1), self.proj.bias)


_STEMS: dict[str, type[ResNetStem] | type[ConvStem]] = {"resnet": ResNetStem, "conv": ConvStem}


class MaskedLinear(nn.Linear):
    """Linear layer whose bias is multiplied by a stored mask (DINOv3, which masks the biases of keys)."""

    def __init__(self, inputs: int, outputs: int, mask: Tensor) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("bias_mask", mask)

    @property
    def effective_bias(self) -> Tensor:
        """The bias that is added, [outputs]."""
        mask: Tensor = self.bias_mask  # type: ignore[assignment]
        return self.bias * mask

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return F.linear(x, self.weight, self.effective_bias)


class Attention(nn.Module):
    """Multi-head self-attention, eq. 2 of arXiv 2010.11929 and section 3.2 of arXiv 1706.03762.

    Several heads of queries may share one of keys and values (arXiv 2305.13245).
    """

    softmaxes = 1  # of each head

    def __init__(self, config: ViTConfig, block: int = 0, drop_rate: float = 0.0, attn_drop_rate: float = 0.0) -> None:
        super().__init__()
        dim, kv_dim = config.embed_dim, config.kv_dim(block)
        self.num_heads, self.num_kv_heads = config.num_heads, kv_dim // config.head_dim
        if config.qkv_bias == "masked":
            self.qkv: nn.Linear = MaskedLinear(dim, 3 * dim, torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(dim))
        else:
            self.qkv = nn.Linear(dim, dim + 2 * kv_dim, bias=config.qkv_bias is True)
        self.q_bias: Tensor | None = None
        self.v_bias: Tensor | None = None
        if config.qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(kv_dim))
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.norms_heads = config.qk_norm != "rms_width"
        if config.qk_norm:
            kind, eps = "layer" if config.qk_norm is True else "rms", config.qk_norm_eps or config.norm_eps
            width = config.head_dim // self.softmaxes
            widths = (width, width) if self.norms_heads else (dim, kv_dim)
            self.q_norm, self.k_norm = (make_norm(kind, width, eps) for width in widths)
        self.relative_position_bias_table: Tensor | None = None
        self.rel_pos: nn.Module | None = None
        if config.rel_pos == "block" and config.rel_pos_mlp:
            self.rel_pos = RelativePositionMlp(config)
        elif config.rel_pos == "block":
            self.relative_position_bias_table = nn.Parameter(torch.zeros(config.num_relative_rows, config.num_heads))
        self.rel_pos_h: Tensor | None = None
        self.rel_pos_w: Tensor | None = None
        if config.rel_pos == "decomposed":
            rows, columns = config.window(block) or config.grid_size
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rows - 1, config.head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * columns - 1, config.head_dim))
        self.pairs = config.rope.pairs if config.rope else ""
        self.attn_drop = nn.Dropout(attn_drop_rate)  # never called: the attention kernel takes its rate
        self.norm = make_norm(config.block_norm, dim, config.norm_eps) if config.attn_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=config.proj_bias and config.parallel != "joint")
        self.proj_drop = dropout(drop_rate)

    def _separate_bias(self) -> Tensor | None:
        """The bias of queries and values that stands beside ``qkv`` (BEiT, EVA), with zeros for the keys."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))

    def _project(self, x: Tensor, leading: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the ``leading`` tokens (None: all), keys and values of all, each [B, *, heads * D/H]."""
        separate, dim = self._separate_bias(), x.shape[-1]
        kv_dim = dim // self.num_heads * self.num_kv_heads
        if not is_plain(self.qkv, nn.Linear, MaskedLinear):
            qkv = self.qkv(x) if separate is None else self.qkv(x) + separate
            q, k, v = _cut(qkv, dim, kv_dim)
            return q[:, :leading], k, v
        weight = self.qkv.weight
        bias = self.qkv.effective_bias if isinstance(self.qkv, MaskedLinear) else self.qkv.bias
        bias = separate if separate is not None else bias
        if leading is None:
            return _cut(F.linear(x, weight, bias), dim, kv_dim)
        q = F.linear(x[:, :leading], weight[:dim], None if bias is None else bias[:dim])
        k, v = F.linear(x, weight[dim:], None if bias is None else bias[dim:]).chunk(2, dim=-1)
        return q, k, v

    def qkv_heads(
        self, x: Tensor, leading: int | None = None, rope: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of the ``leading`` tokens (None: all), keys and values of all, each [B, H, *, D/H]."""
        q, k, v = self._project(x, leading)
        if not self.norms_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (
            _split_heads(part, self.softmaxes * heads) for part, heads in ((q, self.num_heads), (k, self.num_kv_heads))
        )
        v = _split_heads(v, self.num_kv_heads)
        if self.norms_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            cos, sin = rope
            q = rotate(q, cos[..., :leading, :], sin[..., :leading, :], self.pairs)
            k = rotate(k, cos, sin, self.pairs)
        shared = self.num_heads // self.num_kv_heads
        if shared > 1:
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        leading: int | None = None,
        positions: Positions = _NO_POSITIONS,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend to all tokens.

        Args:
            x: [B, T, D].
            leading: only the outputs of so many first tokens are wanted.
            positions: rotations, bias and windows.
            maps: the weights of the attention are added to this list, [B, H, T or leading, T], computed explicitly.

        Returns:
            [B, T, D] or [B, leading, D].
        """
        rope, bias, windows = positions
        if windows is not None:
            x, rope = windows.tokens(x), windows.rotations(rope)
        q, k, v = self.qkv_heads(x, leading, rope)
        if windows is not None:
            q, k, v = windows.split(q), windows.split(k), windows.split(v)
        own = self.relative_position_bias_table if self.rel_pos is None else self.rel_pos
        if own is not None and bias is not None:
            bias = bias(own)  # type: ignore[operator]
        if self.rel_pos_h is not None and bias is not None:
            bias = bias(q, self.rel_pos_h, self.rel_pos_w)  # type: ignore[operator]
        if windows is not None and (beyond := windows.mask(q)) is not None:
            bias = beyond if bias is None else bias + beyond  # type: ignore[operator]
        bias = None if bias is None else bias[:, :, :leading]  # type: ignore[index]
        if maps is not None:
            weights = self._weights(q, k, bias)
            maps.append(weights if windows is None else windows.scatter(weights))
        x = self._attend(q, k, v, bias)
        x = x if windows is None else windows.join(x)
        return dropped(self.proj_drop, self.proj(self.norm(_join_heads(x))))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """The weighted sums of values, [B, H, T, D/H]."""
        rate = self.attn_drop.p if self.attn_drop.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """The weights of the values, [B, H, T, T]."""
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return F.softmax(logits if bias is None else logits + bias, dim=-1)


class DifferentialAttention(Attention):
    """Attention by the difference of two softmaxes, each of half of a head's queries and keys (arXiv 2410.05258)."""

    softmaxes = 2

    def __init__(self, config: ViTConfig, block: int = 0, drop_rate: float = 0.0, attn_drop_rate: float = 0.0) -> None:
        super().__init__(config, block, drop_rate, attn_drop_rate)
        half = config.head_dim // 2
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(nn.init.normal_(torch.empty(half), std=0.1)) for _ in range(4)
        )
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * block)
        self.sub_norm = nn.RMSNorm(config.head_dim, eps=1e-5)

    def _lambda(self) -> Tensor:
        """The factor of the second softmax, eq. 2; from float32, whatever the weights are in."""
        wide = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        first, second = (
            (q.to(wide) * k.to(wide)).sum().exp()
            for q, k in ((self.lambda_q1, self.lambda_k1), (self.lambda_q2, self.lambda_k2))
        )
        return first - second + self.lambda_init

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        # The halves of a head are next to each other.
        first = super()._attend(q[:, ::2], k[:, ::2], v, bias)
        second = super()._attend(q[:, 1::2], k[:, 1::2], v, bias)
        difference = first - self._lambda().to(first.dtype) * second
        return self.sub_norm(difference) * (1 - self.lambda_init)  # type: ignore[no-any-return]

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """The difference of both softmaxes, [B, H, T, T]."""
        first = super()._weights(q[:, ::2], k[:, ::2], bias)
        second = super()._weights(q[:, 1::2], k[:, 1::2], bias)
        return first - self._lambda().to(first.dtype) * second


class RelativePositionMlp(nn.Module):
    """The network that computes a table of relative position biases of the offsets (arXiv 2111.09883, section 3.3)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        kind = config.rel_pos_mlp or RelPosMlp()
        self.swin = kind.scale == "swin"
        layers = OrderedDict[str, nn.Module](fc1=nn.Linear(2, kind.hidden_dim), act=nn.ReLU())
        layers["fc2"] = nn.Linear(kind.hidden_dim, config.num_heads, bias=not self.swin)
        self.mlp = nn.Sequential(layers)
        self.prefix = config.num_relative_rows - config.num_relative_offsets

    def forward(self, offsets: Tensor) -> Tensor:
        """Scaled offsets [N, 2] -> a row for each, [N, H], and rows of zeros for the class token."""
        table = self.mlp(offsets)
        return F.pad(16 * table.sigmoid() if self.swin else table, (0, 0, 0, self.prefix))


class Mlp(nn.Module):
    """Two linear layers with an activation between them, eq. 3 of arXiv 2010.11929.

    Args:
        dim: D.
        hidden: width between the layers.
        act: the activation, one of :data:`vit_hub.model.config.ACTIVATIONS`.
        norm: of the hidden values.
        drop_rate: of dropout after each layer in training.
        bias: whether the layers have biases.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        act: str,
        norm: nn.Module | None = None,
        drop_rate: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.act = act
        self._make_first(dim, hidden, bias)
        self.drop1 = dropout(drop_rate)
        self.norm = norm or nn.Identity()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop2 = dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return dropped(self.drop2, self.fc2(self.norm(dropped(self.drop1, self._hidden(x)))))

    def _make_first(self, dim: int, hidden: int, bias: bool) -> None:
        """Make the layers that read the input."""
        self.fc1 = nn.Linear(dim, hidden, bias=bias)

    def _hidden(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, hidden]."""
        return _activate(self.act, self.fc1(x), inplace=_may_overwrite(self.fc1))


class SwiGLU(Mlp):
    """Gated feed-forward (act(x W) * x V) W2, arXiv 2002.05202, eq. 6; gate and value are two tensors."""

    def _make_first(self, dim: int, hidden: int, bias: bool) -> None:
        self.fc1_g = nn.Linear(dim, hidden, bias=bias)
        self.fc1_x = nn.Linear(dim, hidden, bias=bias)

    def _hidden(self, x: Tensor) -> Tensor:
        gate = _activate(self.act, self.fc1_g(x), inplace=_may_overwrite(self.fc1_g))
        return gate * self.fc1_x(x)  # type: ignore[no-any-return]


class PackedSwiGLU(Mlp):
    """The same gated feed-forward with gate and value in one tensor, gate first (DINOv2's giant)."""

    def _make_first(self, dim: int, hidden: int, bias: bool) -> None:
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=bias)

    def _hidden(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return _activate(self.act, gate, inplace=_may_overwrite(self.fc1)) * value  # type: ignore[no-any-return]


_FEED_FORWARD = {"mlp": Mlp, "swiglu": SwiGLU, "swiglu_packed": PackedSwiGLU}


def _feed_forward(config: ViTConfig, drop_rate: float) -> nn.Module:
    inner = make_norm(config.block_norm, config.mlp_dim, config.norm_eps) if config.mlp_norm else None
    return _FEED_FORWARD[config.ffn](config.embed_dim, config.mlp_dim, config.act, inner, drop_rate, config.mlp_bias)


class LayerScale(nn.Module):
    """A learned factor per channel, arXiv 2103.17239, eq. 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training a residual branch is left out for some images of a batch.

    What is kept is divided by the share of images that keep it, so that the expectation stays the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        if not self.training:
            return x
        kept = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(kept).div_(kept)

    def extra_repr(self) -> str:
        """Return the rate."""
        return str(self.rate)


class Block(nn.Module):
    """One pre-norm encoder block, eq. 2 and 3 of arXiv 2010.11929.

    Args:
        config: what the model is.
        block: number of the block, from 0.
        drop_rate: as for :class:`vit_hub.model.vit.VisionTransformer`, like the next one.
        attn_drop_rate: likewise.
        drop_path_rate: share of images for which a residual branch is left out in training.
    """

    def __init__(
        self,
        config: ViTConfig,
        block: int = 0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dim, eps, kind = config.embed_dim, config.norm_eps, config.block_norm
        alone = config.parallel == "none"
        self.norm1 = make_norm(kind, dim, eps)
        self.attn = attention_class(config)(config, block, drop_rate, attn_drop_rate)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.drop_path1 = DropPath(drop_path_rate) if drop_path_rate else None
        self.norm2 = make_norm(kind, dim, eps) if alone else nn.Identity()
        self.mlp = _feed_forward(config, drop_rate)
        self.ls2 = LayerScale(dim) if config.layer_scale is True and alone else nn.Identity()
        self.drop_path2 = DropPath(drop_path_rate) if drop_path_rate else None

    def forward(
        self,
        x: Tensor,
        leading: int | None = None,
        positions: Positions = _NO_POSITIONS,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, leading, D]: the first tokens only, at their share of the cost."""
        attended = self.attn(self.norm1(x), leading, positions, maps)
        x = x[:, :leading] + dropped(self.drop_path1, self.ls1(attended))
        return x + dropped(self.drop_path2, self.ls2(self.mlp(self.norm2(x))))


class PostNormBlock(Block):
    """A block whose norms come after its layers, before the residual sum (arXiv 2111.09883, section 3.2)."""

    def forward(
        self,
        x: Tensor,
        leading: int | None = None,
        positions: Positions = _NO_POSITIONS,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D] or [B, leading, D]."""
        attended = self.norm1(self.attn(x, leading, positions, maps))
        x = x[:, :leading] + dropped(self.drop_path1, attended)
        return x + dropped(self.drop_path2, self.norm2(self.mlp(x)))


class ParallelBlock(Block):
    """A block whose attention and feed-forward layer read the same norm and are added (arXiv 2302.05442, section 2)."""

    def forward(
        self,
        x: Tensor,
        leading: int | None = None,
        positions: Positions = _NO_POSITIONS,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D] or [B, leading, D]."""
        normed = self.norm1(x)
        both = self.attn(normed, leading, positions, maps) + self.mlp(normed[:, :leading])
        return x[:, :leading] + dropped(self.drop_path1, self.ls1(both))


class BranchedBlock(nn.Module):
    """Attention layers side by side, then as many feed-forward layers (arXiv 2203.09795, section 3).

    The arguments are those of :class:`Block`.
    """

    def __init__(
        self,
        config: ViTConfig,
        block: int = 0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dim = config.embed_dim

        def branch(name: str, layer: nn.Module, scaled: bool) -> nn.ModuleDict:
            norm = make_norm(config.block_norm, dim, config.norm_eps)
            scale = LayerScale(dim) if scaled else nn.Identity()
            drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
            return nn.ModuleDict({"norm": norm, name: layer, "ls": scale, "drop_path": drop_path})

        attention, count = attention_class(config), range(config.branches)
        attentions = (attention(config, block, drop_rate, attn_drop_rate) for _ in count)
        self.attns = nn.ModuleList(branch("attn", layer, bool(config.layer_scale)) for layer in attentions)
        layers = (_feed_forward(config, drop_rate) for _ in count)
        self.ffns = nn.ModuleList(branch("mlp", layer, config.layer_scale is True) for layer in layers)

    def forward(
        self,
        x: Tensor,
        leading: int | None = None,
        positions: Positions = _NO_POSITIONS,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D] or [B, leading, D]."""
        y = x[:, :leading]
        for attn in self.attns:
            attended = attn["attn"](attn["norm"](x), leading, positions, maps)  # type: ignore[index]
            y = y + attn["drop_path"](attn["ls"](attended))  # type: ignore[index]
        z = y
        for ffn in self.ffns:
            z = z + ffn["drop_path"](ffn["ls"](ffn["mlp"](ffn["norm"](y))))  # type: ignore[index]
        return z


def attention_class(config: ViTConfig) -> type[Attention]:
    """Return the class of a model's attention."""
    return DifferentialAttention if config.differential else Attention


def block_class(config: ViTConfig) -> type[Block] | type[BranchedBlock]:
    """Return the class of a model's blocks."""
    if config.branches > 1:
        return BranchedBlock
    if config.parallel != "none":
        return ParallelBlock
    return PostNormBlock if config.norm_position == "post" else Block


def _asked(query: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Let a learned query [1, 1, D] attend to the tokens of keys and values [B, T, 2 D]: [B, 1, D]."""
    q = _split_heads(query, heads).expand(kv.shape[0], -1, -1, -1)
    k, v = kv.chunk(2, dim=-1)
    return _join_heads(F.scaled_dot_product_attention(q, _split_heads(k, heads), _split_heads(v, heads)))


def _asked_weights(query: Tensor, kv: Tensor, heads: int) -> Tensor:
    """The weights with which :func:`_asked` sums the values, [B, heads, T]."""
    q, k = _split_heads(query, heads), _split_heads(kv.chunk(2, dim=-1)[0], heads)
    return F.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)[:, :, 0]


class AttentionPool(nn.Module):
    """Multi-head attention pooling: one learned query attends to all tokens (arXiv 2106.04560; big_vision MAPHead).

    The attention output, without the query, is the residual of the MLP. In AIMv2 the query is not projected, and there
    is no MLP.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.pool_heads or config.num_heads
        full = config.pool == "map"
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim) if full else nn.Identity()
        self.kv = nn.Linear(dim, 2 * dim, bias=full or bool(config.qkv_bias))
        self.proj = nn.Linear(dim, dim)
        self.norm: nn.Module | None = make_norm(config.output_norm, dim, config.norm_eps) if full else None
        self.mlp = Mlp(dim, config.pool_mlp_dim or config.mlp_dim, config.act) if full else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        pooled = self.proj(_asked(self.q(self.latent), self.kv(x), self.num_heads))
        if self.mlp is not None and self.norm is not None:
            pooled = pooled + self.mlp(self.norm(pooled))
        return pooled[:, 0]  # type: ignore[no-any-return]

    def weights(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the query's attention to the tokens, [B, heads, T]; computed explicitly."""
        return _asked_weights(self.q(self.latent), self.kv(x), self.num_heads)


class AttentivePool(nn.Module):
    """Attentive probing (arXiv 2404.08471, section 3.3): further blocks, then a query attends to their normed output.

    The query stays in the sum, and the attention has no projection of its own.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, eps, hidden = config.embed_dim, config.norm_eps, config.pool_mlp_dim or config.mlp_dim
        self.num_heads = config.pool_heads or config.num_heads
        plain = ViTConfig(
            embed_dim=dim, num_heads=self.num_heads, mlp_dim=hidden, act=config.act, norm_eps=eps, norm=config.norm
        )
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(plain) for _ in range(config.pool_depth))
        self.norm1 = make_norm(config.norm, dim, eps)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm = make_norm(config.norm, dim, eps)
        self.mlp = Mlp(dim, hidden, config.act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        pooled = self.latent + _asked(self.q(self.latent), self._kv(x), self.num_heads)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]  # type: ignore[no-any-return]

    def weights(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the query's attention to the tokens, [B, heads, T]; computed explicitly."""
        return _asked_weights(self.q(self.latent), self._kv(x), self.num_heads)

    def _kv(self, x: Tensor) -> Tensor:
        """Keys and values of the tokens, [B, T, 2 D]."""
        for block in self.blocks:
            x = block(x)
        return self.kv(self.norm1(x))  # type: ignore[no-any-return]


class _MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a feature map [B, C, rows, columns]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, columns] -> the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


# All projects with a neck have this epsilon in its norms, whatever that of the blocks is.
_NECK_EPS = 1e-6


def make_neck(dim: int, chans: int) -> nn.Module:
    """Return the neck of Segment Anything, [B, D, rows, columns] -> [B, chans, rows, columns]; its names are timm's.

    Args:
        dim: D.
        chans: channels of the result; 0 for a norm alone, which keeps them.
    """
    if not chans:
        return _MapNorm(dim, eps=_NECK_EPS)
    return nn.Sequential(
        nn.Conv2d(dim, chans, 1, bias=False),
        _MapNorm(chans, eps=_NECK_EPS),
        nn.Conv2d(chans, chans, 3, padding=1, bias=False),
        _MapNorm(chans, eps=_NECK_EPS),
    )


class PatchMerger(nn.Module):
    """One token of each square of patches: norm, join along the channels, two linear layers (arXiv 2409.12191)."""

    def __init__(self, config: ViTConfig, merger: Merger) -> None:
        super().__init__()
        width = merger.size**2 * config.embed_dim
        self.size = merger.size
        self.norm = make_norm(config.norm, config.embed_dim, config.norm_eps)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, merger.dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, D], the patches of a grid or of several, -> [B, N / size ** 2, dim], squares row-major."""
        side, dim = self.size, x.shape[-1]
        grids, rows, columns = x.shape[1] // (grid[0] * grid[1]), grid[0] // side, grid[1] // side
        squares = self.norm(x).reshape(x.shape[0], grids * rows, side, columns, side, dim).permute(0, 1, 3, 2, 4, 5)
        joined = squares.reshape(x.shape[0], grids * rows * columns, side * side * dim)
        return self.fc2(F.gelu(self.fc1(joined)))  # type: ignore[no-any-return]
