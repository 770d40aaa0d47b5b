"""The configuration space of every Vision Transformer in the hub: plain data, no torch.

A :class:`ViTConfig` says everything that changes the numbers a model computes. Equation numbers are those of
"An Image is Worth 16x16 Words" (arXiv 2010.11929).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_hub.errors import ConfigError

__all__ = ["ACTIVATIONS", "RESIZE_METHODS", "ViTConfig"]

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")
RESIZE_METHODS = (
    "bilinear-align-corners",
    "bilinear-antialias",
    "bilinear",
    "bicubic",
    "bicubic-antialias",
    "bicubic-offset",
    "bicubic-align-corners",
)
_CHOICES: dict[str, tuple[object, ...]] = {
    "ffn": ("mlp", "swiglu", "swiglu_packed"),
    "act": ACTIVATIONS,
    "qkv_bias": (True, False, "qv"),
    "pos_embed": ("learned", "sincos2d", "none"),
    "pool": ("cls", "cls_dist", "avg", "map", "first", "none"),
    "final_norm": ("before", "after", "none"),
    "resize": RESIZE_METHODS,
}
_POSITIVE = ("in_chans", "embed_dim", "depth", "num_heads", "mlp_dim")
_NOT_NEGATIVE = ("num_registers", "representation_dim", "projection_dim", "num_classes")
_SIZES = ("image_size", "patch_size")


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that decides a Vision Transformer's tensors and its numbers.

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
        norm_eps: epsilon of every LayerNorm.
        qkv_bias: True, False, or ``"qv"`` for models whose keys have no bias (BEiT, EVA).
        patch_bias: whether the patch embedding has a bias (CLIP has none).
        qk_norm: LayerNorm over each head's queries and keys (arXiv 2302.05442, section 2).
        pre_norm: LayerNorm on the tokens before the first block (CLIP).
        class_token: a learned class token is prepended (x_class in eq. 1).
        distilled: a distillation token follows the class token (DeiT, arXiv 2012.12877, section 4).
        num_registers: register tokens after class and distillation tokens (arXiv 2309.16588).
        pos_embed: ``learned`` table (E_pos in eq. 1), ``sincos2d`` computed as in big_vision, or ``none``.
        pos_embed_prefix: the learned table has rows for the class and distillation tokens.
        pos_embed_registers: the learned table has rows for the registers too, after those.
        layer_scale: a learned per-channel factor on each residual branch (arXiv 2103.17239, eq. 4).
        pool: ``cls`` token, ``cls_dist`` (class and distillation token: the logits are the mean of two heads, the
            embedding is the mean of the tokens; 2012.12877, section 4), ``avg`` of patch tokens, ``map`` (multi-head
            attention pooling, arXiv 2106.04560, appendix), ``first`` patch token, or ``none``.
        final_norm: LayerNorm ``before`` pooling on all tokens (eq. 4), ``after`` pooling, or ``none``.
        representation_dim: width of the tanh layer between pooling and head (2010.11929, section 3.1); 0: none.
        projection_dim: width of CLIP's bias-free projection of the pooled embedding; 0: none.
        num_classes: outputs of the linear head; 0: no head.
        resize: how the model's own project resizes its position table at another image size.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    ffn: str = "mlp"
    act: str = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool | str = True
    patch_bias: bool = True
    qk_norm: bool = False
    pre_norm: bool = False
    class_token: bool = True
    distilled: bool = False
    num_registers: int = 0
    pos_embed: str = "learned"
    pos_embed_prefix: bool = True
    pos_embed_registers: bool = False
    layer_scale: bool = False
    pool: str = "cls"
    final_norm: str = "before"
    representation_dim: int = 0
    projection_dim: int = 0
    num_classes: int = 0
    resize: str = "bicubic-antialias"

    def __post_init__(self) -> None:
        for name in _SIZES:
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        for name in _POSITIVE + _NOT_NEGATIVE:
            value, least = getattr(self, name), int(name in _POSITIVE)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number >= {least}, not {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, not {getattr(self, name)!r}")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps must be a number between 0 and 1, not {self.norm_eps!r}")
        self._check_consistency()

    def _check_consistency(self) -> None:
        """Raises ConfigError for fields that are each valid but contradict one another."""
        rules = (
            (
                "num_heads",
                self.embed_dim % self.num_heads == 0,
                f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}",
            ),
            (
                "image_size",
                self.image_size[0] >= self.patch_size[0] and self.image_size[1] >= self.patch_size[1],
                f"image_size={self.image_size} is smaller than one patch {self.patch_size}",
            ),
            ("pool", self.pool != "cls" or self.class_token, "pool='cls' needs class_token=True"),
            ("distilled", self.class_token or not self.distilled, "distilled=True needs class_token=True"),
            (
                "pool",
                self.pool != "cls_dist" or (self.distilled and not self.representation_dim),
                "pool='cls_dist' needs distilled=True and no representation layer",
            ),
            (
                "final_norm",
                self.pool != "none" or self.final_norm != "after",
                "final_norm='after' needs a pooled output, and pool is 'none'",
            ),
            (
                "num_classes",
                self.pool != "none" or not (self.num_classes or self.projection_dim),
                "a head or projection needs a pooled output, and pool is 'none'",
            ),
            (
                "pos_embed_registers",
                not self.pos_embed_registers or self.pos_embed_prefix,
                "pos_embed_registers=True needs pos_embed_prefix=True",
            ),
            (
                "pos_embed",
                self.pos_embed != "sincos2d" or self.embed_dim % 4 == 0,
                "pos_embed='sincos2d' needs embed_dim to be a multiple of 4",
            ),
        )
        for field, holds, message in rules:
            if not holds:
                raise ConfigError(f"{field}: {message}")

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches; pixels that do not fill a patch are left out."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        """Patches per image, N in eq. 1."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return int(self.class_token) + int(self.distilled) + self.num_registers

    @property
    def num_prefix_rows(self) -> int:
        """Rows of the learned position table before those of the patches."""
        if self.pos_embed != "learned" or not self.pos_embed_prefix:
            return 0
        return int(self.class_token) + int(self.distilled) + (self.num_registers if self.pos_embed_registers else 0)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    def replace(self, **changes: Any) -> ViTConfig:
        """A copy with some fields changed.

        Raises:
            ConfigError: an unknown field, or the result is inconsistent.
        """
        return ViTConfig.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data: sizes as lists, everything else as it is."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ViTConfig:
        """The inverse of :meth:`to_dict`; missing fields take their defaults.

        Raises:
            ConfigError: an unknown field, or the result is inconsistent.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ConfigError(f"unknown config field {', '.join(unknown)}", hint=f"known: {', '.join(sorted(known))}")
        return cls(**data)


def _pair(name: str, value: Any) -> tuple[int, int]:
    """One whole number or a (height, width) pair of them, as a pair."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(f"{name} must be one number or (height, width), not {value!r}")
    if any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in pair):
        raise ConfigError(f"{name} must hold whole numbers >= 1, not {value!r}")
    return int(pair[0]), int(pair[1])
