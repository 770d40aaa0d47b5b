"""The parts a Vision Transformer block is made of.

Shapes: B images, T tokens, D ``embed_dim``, H heads. Parameter names are timm's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_hub.config import ViTConfig

__all__ = ["Attention", "AttentionPool", "Block", "LayerScale", "Mlp", "PackedSwiGLU", "PatchEmbed", "SwiGLU"]


def _activate(name: str, x: Tensor) -> Tensor:
    """GELU in its three published forms (arXiv 1606.08415, section 2), SiLU (section 2, eq. of SiLU) and ReLU."""
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.silu(x) if name == "silu" else F.relu(x)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, D/H]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Patches to tokens, x_p E in eq. 1 of arXiv 2010.11929: [B, C, h, w] -> [B, N, D], row-major.

    A convolution with stride equal to its kernel is one matrix product over flattened patches; the parameter keeps
    the convolution's shape [D, C, p, q].
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            config.in_chans, config.embed_dim, config.patch_size, config.patch_size, bias=config.patch_bias
        )

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of every whole patch; pixels to the right and below that do not fill one are left out."""
        weight = self.proj.weight
        _, chans, p, q = weight.shape
        rows, columns = images.shape[-2] // p, images.shape[-1] // q
        patches = images[..., : rows * p, : columns * q].reshape(-1, chans, rows, p, columns, q)
        flat = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, chans * p * q)
        return F.linear(flat, weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention, eq. 2 of arXiv 2010.11929 and section 3.2 of arXiv 1706.03762."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias is True)
        self.q_bias: Tensor | None = None
        self.v_bias: Tensor | None = None
        if config.qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.proj = nn.Linear(dim, dim)

    def qkv_heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first ``queries`` tokens (None: all), keys and values of all, each [B, H, *, D/H]."""
        dim = self.qkv.in_features
        weight: Tensor = self.qkv.weight
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        if queries is None:
            q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(x[:, :queries], weight[:dim], None if bias is None else bias[:dim])
            k, v = F.linear(x, weight[dim:], None if bias is None else bias[dim:]).chunk(2, dim=-1)
        q, k, v = (_split_heads(part, self.num_heads) for part in (q, k, v))
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, queries, D] where only the first tokens' outputs are wanted."""
        q, k, v = self.qkv_heads(x, queries)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with an activation between them, eq. 3 of arXiv 2010.11929."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.act = config.act
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.fc2(_activate(self.act, self.fc1(x)))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """Gated feed-forward (act(x W) * x V) W2, arXiv 2002.05202, eq. 6; gate and value are two tensors."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.act = config.act
        self.fc1_g = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc1_x = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.fc2(_activate(self.act, self.fc1_g(x)) * self.fc1_x(x))  # type: ignore[no-any-return]


class PackedSwiGLU(nn.Module):
    """The same gated feed-forward with gate and value in one tensor, gate first (DINOv2's giant)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.act = config.act
        self.fc1 = nn.Linear(config.embed_dim, 2 * config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(_activate(self.act, gate) * value)  # type: ignore[no-any-return]


_FEED_FORWARD: dict[str, type[Mlp] | type[SwiGLU] | type[PackedSwiGLU]] = {
    "mlp": Mlp,
    "swiglu": SwiGLU,
    "swiglu_packed": PackedSwiGLU,
}


class LayerScale(nn.Module):
    """A learned factor per channel, arXiv 2103.17239, eq. 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma


class Block(nn.Module):
    """One pre-norm encoder block, eq. 2 and 3 of arXiv 2010.11929."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, eps = config.embed_dim, config.norm_eps
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = _FEED_FORWARD[config.ffn](config)
        self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, queries, D]: the first tokens only, at their share of the cost."""
        attended = self.attn(self.norm1(x), queries)
        x = x[:, :queries] + self.ls1(attended)
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class AttentionPool(nn.Module):
    """Multi-head attention pooling: one learned query attends to all tokens (arXiv 2106.04560; big_vision MAPHead).

    The attention output, without the query, is the residual of the MLP.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        q = _split_heads(self.q(self.latent), self.num_heads).expand(len(x), -1, -1, -1)
        k, v = (_split_heads(part, self.num_heads) for part in self.kv(x).chunk(2, dim=-1))
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]  # type: ignore[no-any-return]
