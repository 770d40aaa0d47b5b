"""The one Vision Transformer of the hub.

Every family is this class under another :class:`~vit_hub.config.ViTConfig`: what a model is made of is chosen when it
is built, and the forward pass reads the same for all. Equation numbers are those of arXiv 2010.11929.
Shapes: B images, C channels, h x w pixels, T tokens, N patches, D ``embed_dim``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_hub.config import ViTConfig
from vit_hub.errors import ConfigError
from vit_hub.layers import AttentionPool, Block, PatchEmbed
from vit_hub.positions import sincos2d

if TYPE_CHECKING:
    from vit_hub.converters.passport import Passport

__all__ = ["VisionTransformer"]

# Pools that read only the first tokens: the last block then computes nothing else.
_LEADING_TOKENS = {"cls": 1, "cls_dist": 2}


class VisionTransformer(nn.Module):
    """A Vision Transformer as its config says; the parameters are those of :func:`vit_hub.layout.tensor_shapes`.

    Attributes:
        config: what the model is.
        passport: where the weights come from and how to write them back; None for a model built from scratch.
        carried: tensors of the source that the model does not use but that writing back needs.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, eps = config.embed_dim, config.norm_eps
        self.config = config
        self.passport: Passport | None = None
        self.carried: dict[str, Tensor] = {}

        self.cls_token = _token(1, dim) if config.class_token else None
        self.dist_token = _token(1, dim) if config.distilled else None
        self.reg_token = _token(config.num_registers, dim) if config.num_registers else None
        self.pos_embed: Tensor | None = None
        if config.pos_embed == "learned":
            self.pos_embed = _token(config.num_prefix_rows + config.num_patches, dim)
        self.register_buffer("pos_table", None, persistent=False)
        self.patch_embed = PatchEmbed(config)
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=eps) if config.final_norm == "before" else nn.Identity()
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if config.final_norm == "after" else nn.Identity()

        features = dim
        self.pre_logits: nn.Module = nn.Identity()
        if config.representation_dim:
            features = config.representation_dim
            self.pre_logits = nn.Sequential(OrderedDict(fc=nn.Linear(dim, features), act=nn.Tanh()))
        self.projection = nn.Linear(dim, config.projection_dim, bias=False) if config.projection_dim else nn.Identity()
        self.head = nn.Linear(features, config.num_classes) if config.num_classes else nn.Identity()
        self.head_dist: nn.Module | None = None
        if config.pool == "cls_dist":
            self.head_dist = nn.Linear(features, config.num_classes) if config.num_classes else nn.Identity()
        self.apply(_init_weights)
        self.reset_tables()

    def reset_tables(self) -> None:
        """Computes the tables that are not parameters, on the device and in the dtype of the parameters."""
        if self.config.pos_embed == "sincos2d":
            weight = self.patch_embed.proj.weight
            table = torch.as_tensor(sincos2d(self.config.grid_size, self.config.embed_dim))
            self.pos_table = table.to(weight).unsqueeze(0)

    def _tokens(self, images: Tensor) -> Tensor:
        """What enters the first block: z_0 of eq. 1, [B, T, D]."""
        expected = (self.config.in_chans, *self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ConfigError(
                f"images have shape {tuple(images.shape)}, the model takes [batch, {', '.join(map(str, expected))}]",
                hint="resize the images (vit_hub.preprocess) or load the model for their size",
            )
        x = self.patch_embed(images)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None]
        positions = self.pos_table if self.pos_embed is None else self.pos_embed
        rows = self.config.num_prefix_rows
        if positions is not None:
            x = x + positions[:, rows:]
        if prefix:
            leading = torch.cat(prefix, dim=1)
            if positions is not None and rows:
                leading = torch.cat((leading[:, :rows] + positions[:, :rows], leading[:, rows:]), dim=1)
            x = torch.cat((leading.expand(len(x), -1, -1), x), dim=1)
        return self.norm_pre(x)  # type: ignore[no-any-return]

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens before pooling: class, distillation, registers, then patches in row-major order.

        Args:
            images: [B, C, h, w], already preprocessed.

        Returns:
            [B, T, D]; normed where ``final_norm`` is ``before``, as they leave the last block otherwise.

        Raises:
            ConfigError: the images are not of the model's size.
        """
        x = self._tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def _pooled(self, images: Tensor) -> Tensor:
        """The pooled tokens, y of eq. 4: [B, D], or [B, 2, D] for ``cls_dist``."""
        x = self._tokens(images)
        for block in self.blocks[:-1]:
            x = block(x)
        pool = self.config.pool
        x = self.norm(self.blocks[-1](x, _LEADING_TOKENS.get(pool)))
        prefix = self.config.num_prefix_tokens
        if self.attn_pool is not None:
            x = self.attn_pool(x)
        elif pool == "avg":
            x = x[:, prefix:].mean(dim=1)
        elif pool != "cls_dist":
            x = x[:, 0 if pool == "cls" else prefix]
        return self.fc_norm(x)  # type: ignore[no-any-return]

    def embed(self, images: Tensor) -> Tensor:
        """The pooled embedding, before representation layer, projection and head.

        Args:
            images: [B, C, h, w], already preprocessed.

        Returns:
            [B, D]; for ``cls_dist`` the mean of both tokens.

        Raises:
            ConfigError: the images are not of the model's size, or the model does not pool.
        """
        if self.config.pool == "none":
            raise ConfigError("pool='none': the model has no pooled embedding", hint="use forward_features")
        x = self._pooled(images)
        return x.mean(dim=1) if self.head_dist is not None else x

    def forward(self, images: Tensor) -> Tensor:
        """What the model is for: logits, else projection, else embedding, else tokens.

        Args:
            images: [B, C, h, w], already preprocessed.

        Returns:
            [B, ``num_classes``] with a head; [B, ``projection_dim``] with CLIP's projection; [B, D] (or
            ``representation_dim``) without; [B, T, D] where the model does not pool.

        Raises:
            ConfigError: the images are not of the model's size.
        """
        if self.config.pool == "none":
            return self.forward_features(images)
        x = self._pooled(images)
        if self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2  # type: ignore[no-any-return]
        return self.head(self.projection(self.pre_logits(x)))  # type: ignore[no-any-return]

    def forward_intermediates(
        self, images: Tensor, indices: int | Sequence[int] = 1, reshape: bool = True
    ) -> list[Tensor]:
        """Outputs of chosen blocks, for dense tasks; un-normed, patches only.

        Args:
            images: [B, C, h, w], already preprocessed.
            indices: which blocks (negative: from the end), or how many of the last ones.
            reshape: feature maps [B, D, rows, columns] instead of tokens [B, N, D].

        Raises:
            ConfigError: there is no such block, or the images are not of the model's size.
        """
        depth = self.config.depth
        chosen = range(depth - indices, depth) if isinstance(indices, int) else indices
        wanted = [index + depth if index < 0 else index for index in chosen]
        if not wanted or any(not 0 <= index < depth for index in wanted):
            raise ConfigError(f"indices={indices}: the model has blocks 0 to {depth - 1}")
        outputs: dict[int, Tensor] = {}
        x = self._tokens(images)
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            if index in wanted:
                patches = x[:, self.config.num_prefix_tokens :]
                maps = patches.transpose(1, 2).reshape(len(x), -1, *self.config.grid_size)
                outputs[index] = maps.contiguous() if reshape else patches
        return [outputs[index] for index in wanted]

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """The softmax of every layer's attention, computed explicitly (slow; forward never does this).

        Args:
            images: [B, C, h, w], already preprocessed.

        Returns:
            One [B, heads, T, T] per block; rows are queries and sum to 1 (A of arXiv 2010.11929, eq. 6).

        Raises:
            ConfigError: the images are not of the model's size.
        """
        maps: list[Tensor] = []
        x = self._tokens(images)
        for block in self.blocks:
            q, k, _ = block.attn.qkv_heads(block.norm1(x))  # type: ignore[union-attr, operator]
            maps.append(F.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1))
            x = block(x)
        return maps

    def save(self, path: str | Path) -> Path:
        """Writes a canonical safetensors file with config and passport, so that converting back still works.

        Raises:
            VitHubError: the file cannot be written.
        """
        from vit_hub.saving import save

        return save(self, path)

    def extra_repr(self) -> str:
        """The config fields that differ from the defaults."""
        default: dict[str, Any] = ViTConfig().to_dict()
        return ", ".join(f"{key}={value}" for key, value in self.config.to_dict().items() if value != default[key])


def _token(rows: int, dim: int) -> nn.Parameter:
    token = nn.Parameter(torch.empty(1, rows, dim))
    nn.init.trunc_normal_(token, std=0.02)
    return token


def _init_weights(module: nn.Module) -> None:
    """timm's default for training from scratch: truncated normal weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
