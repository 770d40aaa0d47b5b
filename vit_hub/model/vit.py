"""The one Vision Transformer of the hub, in the order of "An Image is Worth 16x16 Words" (arXiv 2010.11929).

Every family is this class under another :class:`~vit_hub.model.config.ViTConfig`: what a model is made of is chosen
when it is built, and the forward pass reads the same for all. :meth:`VisionTransformer.forward` leads through
equations 1 to 4; the layers of a block are in :mod:`vit_hub.model.layers`.
Shapes: B images, C channels, h x w pixels, N patches, T tokens (N and those before the patches), D ``embed_dim``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_hub.errors import ConfigError
from vit_hub.model.config import ViTConfig, size_pair
from vit_hub.model.layers import (
    AttentionPool,
    AttentivePool,
    Bias,
    PatchEmbed,
    PatchMerger,
    Positions,
    RelativePositionMlp,
    block_class,
    dropout,
    dropped,
    holds,
    is_recorded,
    is_tracing,
    is_watched,
    make_neck,
    make_norm,
    surely,
)
from vit_hub.model.positions import HOST, Geometry, Holder, Resized, computed_tables, relative_bias
from vit_hub.model.resize import resize_table, resize_tensor, resized_config, table_method, whole_patches
from vit_hub.model.rope import expand_angles, mixed_angles
from vit_hub.model.windows import Partition, decomposed_bias
from vit_hub.shown import table_of

__all__ = ["VisionTransformer"]

# A batch, or images of several sizes.
Images = Tensor | list[Tensor] | tuple[Tensor, ...]
# Sizes whose tables a dynamic model keeps.
_KEPT_SIZES = 8
# The pools that read only the first tokens, and how many.
_LEADING_TOKENS = {"cls": 1, "cls_dist": 2}
_RELATIVE_TABLE = "relative_position_bias_table"
_ATTENTION_POOLS: dict[str, type[AttentionPool] | type[AttentivePool]] = {
    "attn": AttentionPool,
    "map": AttentionPool,
    "attentive": AttentivePool,
}


class VisionTransformer(nn.Module):
    """A Vision Transformer as its config says; the parameters are those of :func:`vit_hub.model.shapes.tensor_shapes`.

    Args:
        config: what the model is.
        drop_rate: dropout in training after the position table, the attention's projection and both linear layers of
            the feed-forward network (arXiv 2010.11929, appendix B.1). timm calls it ``pos_drop_rate`` and
            ``proj_drop_rate``; its own ``drop_rate`` is dropout before the head.
        attn_drop_rate: dropout of the attention's weights in training.
        drop_path_rate: share of images for which a residual branch of the last block is left out in training
            (stochastic depth, arXiv 1603.09382); it grows linearly over the blocks, from 0.

    Raises:
        ConfigError: a rate is not in [0, 1).

    Attributes:
        config: what the model is.
        input_size: (height, width) of the images it takes; less than ``config.image_size`` where they are padded.
        dynamic: take images of any size; the position information is resized for each, as ``set_image_size`` does.
            From the start True for models without a table that would be resized.
        pad: pad images of a dynamic model to whole patches instead of refusing them.
        resize: how a dynamic model resizes: ``source`` or a method's name.
        grad_checkpointing: compute the blocks again when gradients are needed, instead of keeping their activations.
        passport: where the weights come from and how to write them back (a ``vit_hub.converters.passport.Passport``);
            None for a model built from scratch.
        carried: tensors of the source that the model does not use but that writing back needs.
    """

    pos_table: Tensor | None
    rope_cos: Tensor | None
    rope_sin: Tensor | None
    rel_pos_index: Tensor | None
    rel_pos_offsets: Tensor | None

    def __init__(
        self, config: ViTConfig, *, drop_rate: float = 0.0, attn_drop_rate: float = 0.0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate, "drop_path_rate": drop_path_rate}
        for name, rate in rates.items():
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ConfigError(f"{name} must be at least 0 and less than 1, not {rate!r}")
        self.config = config
        self.input_size = config.image_size
        # Where nothing learned depends on the grid (RoPE alone, sincos tables), any size is as native as another.
        # Towers of language models and RADIO resize their table for each image.
        tables = config.pos_embed in ("learned", "factorized") or (config.rel_pos != "none" and not config.rel_pos_mlp)
        self.dynamic = not tables or config.merger is not None or config.resize_square
        self.pad = False
        self.resize = "source"
        self.grad_checkpointing = False
        self._resized: dict[tuple[object, ...], Geometry] = {}
        self.passport: Any = None
        self.carried: dict[str, Tensor] = {}

        dim = config.embed_dim

        def norm(wanted: bool, eps: float = config.norm_eps) -> nn.Module:
            return make_norm(config.output_norm, dim, eps) if wanted else nn.Identity()

        # Eq. 1: tokens before the patches, and their positions.
        self.cls_token = _token(1, dim) if config.class_token else None
        self.dist_token = _token(1, dim) if config.distilled else None
        self.reg_token = _token(config.num_registers, dim) if config.num_registers else None
        self.det_token = _token(config.num_detection_tokens, dim) if config.num_detection_tokens else None
        rows = config.num_prefix_rows + config.num_patches + config.num_detection_tokens
        self.pos_embed: Tensor | None = _token(rows, dim) if config.pos_embed == "learned" else None
        self.mid_pos_embed: Tensor | None = None
        if config.mid_pos_embed:
            self.mid_pos_embed = nn.Parameter(torch.zeros(config.depth - 1, 1, rows, dim))
        sides = config.grid_size if config.pos_embed == "factorized" else (0, 0)
        self.pos_embed_y, self.pos_embed_x = (_token(side, dim) if side else None for side in sides)
        # Positions that the attention of eq. 2 takes in instead: rotations, and biases of the logits.
        self.rope_embed: nn.Module | None = None
        if config.rope and config.rope.stored_periods:
            exponents = torch.arange(config.head_dim // 4) / (config.head_dim // 4)
            self.rope_embed = Holder("periods", config.rope.theta**exponents)
        self.rope: nn.Module | None = None
        if config.rope and config.rope.mixed:
            freqs = torch.zeros(2, config.depth, config.num_heads, config.head_dim // 2)
            self.rope = Holder("freqs", nn.Parameter(freqs))
        if config.rope and config.rope.class_angles:
            self.rope = Holder("class_angles", nn.Parameter(torch.zeros(1, config.head_dim // 2)))
        self.rel_pos_bias: nn.Module | None = None
        self.shared_rel_pos: nn.Module | None = None
        if config.rel_pos == "shared" and config.rel_pos_mlp:
            self.shared_rel_pos = RelativePositionMlp(config)
        elif config.rel_pos == "shared":
            table = torch.zeros(config.num_relative_rows, config.num_heads)
            self.rel_pos_bias = Holder(_RELATIVE_TABLE, nn.Parameter(table))
        # What of all this is computed, not learned; `reset_tables` fills it in.
        self.pos_table = self.rope_cos = self.rope_sin = self.rel_pos_index = self.rel_pos_offsets = None
        # Eq. 1: the patch embedding.
        self.patch_embed = PatchEmbed(config)
        self.pos_drop = dropout(drop_rate)
        self.norm_pre = make_norm(config.block_norm, dim, config.norm_eps) if config.pre_norm else nn.Identity()
        # Eq. 2 and 3.
        steps = max(config.depth - 1, 1)
        block = block_class(config)
        self.blocks = nn.ModuleList(
            block(config, i, drop_rate, attn_drop_rate, drop_path_rate * i / steps) for i in range(config.depth)
        )
        # Eq. 4, and the pooling of other families.
        final_eps = config.final_norm_eps or config.norm_eps
        self.norm = norm(config.final_norm == "before", final_eps)
        self.cls_norm = norm(True, final_eps) if config.prefix_norm else None
        self.attn_pool = _ATTENTION_POOLS[config.pool](config) if config.pool in _ATTENTION_POOLS else None
        self.fc_norm = norm(config.final_norm == "after", final_eps)
        # What makes another output of the tokens than a pooled one.
        self.neck = make_neck(dim, config.neck.chans) if config.neck else None
        self.merger = PatchMerger(config, config.merger) if config.merger else None
        # Heads.
        self.pre_logits: nn.Module = nn.Identity()
        if config.representation_dim:
            fc = nn.Linear(dim, config.representation_dim)
            self.pre_logits = nn.Sequential(OrderedDict(fc=fc, act=nn.Tanh()))
        self.projection = nn.Linear(dim, config.projection_dim, bias=False) if config.projection_dim else nn.Identity()
        self.head_norm = (
            nn.BatchNorm1d(config.feature_dim, eps=1e-6, affine=False) if config.head_norm else nn.Identity()
        )
        features = self.head_hidden_size
        self.head: nn.Module = nn.Linear(features, config.num_classes) if config.num_classes else nn.Identity()
        self.head_dist: nn.Module | None = None
        if "cls_dist" in (config.pool, config.head_input):
            self.head_dist = nn.Linear(features, config.num_classes) if config.num_classes else nn.Identity()
        self.apply(_init_weights)
        self.reset_tables()
        self.register_load_state_dict_post_hook(_reset_tables)  # type: ignore[no-untyped-call]

    def forward(self, images: Images) -> Tensor:
        """Return what the model is for: logits, else projection, else embedding, else tokens.

        Args:
            images: [B, C, h, w], already preprocessed; a model of videos takes [B, T, C, h, w], too; or a list of B
                images [C, h, w], which may have several sizes if the model is dynamic. They are computed as one batch,
                whose padding takes no part.

        Returns:
            [B, ``num_classes``] with a head; [B, ``projection_dim``] with CLIP's projection; [B, D] (or
            ``representation_dim``) without; [B, T, D] where the model does not pool; with a neck and no pooling
            [B, ``neck.chans``, rows, columns]; with a merger [B, N / ``merger.size`` ** 2, ``merger.dim``].

        Raises:
            ConfigError: the images are not of the model's size, or the model does not pool and is given a list.
        """
        if isinstance(images, (list, tuple)):
            self._check_pooled()
            if self.config.head_layers > 1 and images:
                return torch.cat([self(image.unsqueeze(0)) for image in images])
            return torch.cat([self.forward_head(tokens) for tokens in self._encode_each(images)])
        # A head that reads the class token alone needs nothing else of the last block.
        source = self.config.pool if self.config.head_input == "pooled" else self.config.head_input
        geometry = self._geometry(images)
        earlier: list[Tensor] = []
        tokens = self._features(images, geometry, self._leading(source), earlier)
        return self._head(tokens, geometry.grid_size, earlier=earlier)

    def _leading(self, source: str) -> int | None:
        """How many of the first tokens a pool reads, so that nothing else of the last block is needed; None: all."""
        last = max(self.config.pool_tokens, default=-1)
        return last + 1 or _LEADING_TOKENS.get(source)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the output for what :meth:`forward_features` gives: pooling (eq. 4), then the head.

        Args:
            tokens: [B, T, D], of images of the model's size where a neck or merger follows; [B, C, rows, columns] where
                a neck's map is pooled.
            pre_logits: leave out the classifier.

        Raises:
            ConfigError: the head reads tokens of several blocks.
        """
        if self.config.head_layers > 1:
            raise ConfigError(
                f"the head reads class tokens of {self.config.head_layers} blocks, and these are of the last one",
                hint="call the model itself",
            )
        return self._head(tokens, self.config.grid_size, pre_logits)

    def _head(
        self, tokens: Tensor, grid: tuple[int, int], pre_logits: bool = False, earlier: Sequence[Tensor] = ()
    ) -> Tensor:
        """The output for the features of a grid, and for class tokens [B, D] of earlier blocks if the head has any."""
        if self.merger is not None:
            if any(side % self.merger.size for side in grid):
                raise ConfigError(
                    f"a grid of {grid} patches has no whole squares of {self.merger.size}",
                    hint=f"image sizes in multiples of {self.merger.size} patches of {self.config.patch_size} pixels",
                )
            return self.merger(tokens, grid)  # type: ignore[no-any-return]
        if self.neck is not None and self.config.pool == "none":
            return self._map(tokens, grid)
        y: Tensor
        if self.config.head_input == "cls_dist":
            y = self.fc_norm(tokens[:, :2])
            if pre_logits:
                return y[:, 0]
        elif self.config.head_input == "cls_avg":
            y = torch.cat((tokens[:, 0], tokens[:, self.config.num_prefix_tokens :].mean(dim=1)), dim=1)
        else:
            y = self.head_norm(self.projection(self.pre_logits(self._pool(tokens))))
        if earlier:
            y = torch.cat((*earlier, y), dim=1)
        if self.head_dist is None:
            return y if pre_logits else self.head(y)
        return y.mean(dim=1) if pre_logits else (self.head(y[:, 0]) + self.head_dist(y[:, 1])) / 2

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The feature map of the neck, [B, C, rows, columns], of tokens [B, N, D]."""
        assert self.neck is not None
        return self.neck(torch.unflatten(tokens.transpose(1, 2), 2, grid))  # type: ignore[no-any-return]

    def _features(
        self,
        images: Tensor,
        geometry: Geometry,
        leading: int | None = None,
        earlier: list[Tensor] | None = None,
    ) -> Tensor:
        """The input of pooling: tokens [B, T, D], of which the first may be enough, or the map of a neck."""
        tokens = self._encode(images, geometry, leading, earlier)
        pooled_map = self.neck is not None and self.config.pool != "none"
        return self._map(tokens, geometry.grid_size) if pooled_map else tokens

    def _encode(
        self,
        images: Tensor,
        geometry: Geometry,
        leading: int | None = None,
        earlier: list[Tensor] | None = None,
    ) -> Tensor:
        """Tokens after the last block and the final norm: LN(z_L), [B, T, D].

        Args:
            images: [B, C, h, w].
            geometry: whatever depends on the image size: position table, rotations and biases.
            leading: only so many of the first tokens are wanted, [B, leading, D]. Every token attends to all others in
                all blocks but the last; of that one, reading the class token alone takes one query and one row of the
                feed-forward layer, and nothing else is computed, unless somebody looks on.
            earlier: gets the normed class tokens of the blocks before the last one that the head reads, each [B, D].
        """
        if leading is not None and is_watched(self.blocks[-1], self.norm):
            return self._encode(images, geometry, None, earlier)[:, :leading]
        z = self._tokens(images, geometry)  # z_0, eq. 1
        last = len(self.blocks) - 1
        for index in range(len(self.blocks)):
            wanted = leading if index == last else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                z = checkpoint(self._block, index, z, geometry, wanted, use_reentrant=False)
            else:
                z = self._block(index, z, geometry, wanted)  # z_l, eq. 2 and 3
            if earlier is not None and last - self.config.head_layers < index < last:
                earlier.append(self._norm(z[:, :1])[:, 0])
        return self._norm(self._together(z, images))  # the norm of eq. 4

    @property
    def _apart(self) -> bool:
        """True where patches of different frames of a video do not see one another: they are another image then."""
        return self.config.video is not None and not self.config.video.joint

    def _together(self, z: Tensor, images: Tensor) -> Tensor:
        """Tokens of all frames of a video side by side, [B, T, D]."""
        return z.reshape(images.shape[0], -1, z.shape[-1]) if self._apart else z

    def _encode_each(self, images: Sequence[Tensor]) -> list[Tensor]:
        """LN(z_L) of images [C, h, w], each [1, T, D], computed as one batch, padded to the most tokens.

        Padding is masked as keys; what it becomes itself is cut off.
        """
        if not images:
            raise ConfigError("the list of images is empty")
        config = self.config
        decomposed = config.rel_pos == "decomposed"
        if config.windows or decomposed or config.neck or config.merger or config.video or config.mid_pos_embed:
            # What depends on the grid inside of the blocks, or after them, is computed one by one.
            batches = [image.unsqueeze(0) for image in images]
            return [self._features(batch, self._geometry(batch)) for batch in batches]
        geometries = [self._geometry(image.unsqueeze(0)) for image in images]
        tokens = [
            self._tokens(image.unsqueeze(0), geometry) for image, geometry in zip(images, geometries, strict=True)
        ]
        lengths = [part.shape[1] for part in tokens]
        z = torch.cat([_padded(part, max(lengths)) for part in tokens])
        places, counts = torch.arange(max(lengths), device=z.device), torch.tensor(lengths, device=z.device)
        mask = z.new_zeros(len(lengths), 1, 1, max(lengths))
        mask.masked_fill_((places >= counts[:, None])[:, None, None], -torch.inf)
        for index in range(len(self.blocks)):
            z = self.blocks[index](z, None, self._positions_of_batch(index, geometries, mask))
        z = self._norm(z)
        return [z[index : index + 1, :length] for index, length in enumerate(lengths)]

    def _positions_of_batch(self, index: int, geometries: Sequence[Geometry], mask: Tensor) -> Positions:
        """The positions of each image for one block, padded, with the mask of padded keys [B, 1, 1, T]."""
        longest = mask.shape[-1]
        found = [self._positions(index, geometry) for geometry in geometries]
        ropes = [positions.rope for positions in found if positions.rope is not None]
        rope = None
        if ropes:
            cos, sin = (torch.stack([_padded(part, longest) for part in parts]) for parts in zip(*ropes, strict=True))
            rope = (cos, sin) if cos.dim() == 4 else (cos.unsqueeze(1), sin.unsqueeze(1))
        biases = [positions.bias for positions in found if positions.bias is not None]

        def joined(parts: Sequence[Tensor]) -> Tensor:
            square = (_padded(_padded(part, longest).mT, longest).mT for part in parts)
            return torch.cat(list(square)) + mask

        if not biases:
            return Positions(rope, mask)
        if isinstance(biases[0], Tensor):
            return Positions(rope, joined([bias for bias in biases if isinstance(bias, Tensor)]))
        return Positions(rope, lambda table: joined([bias(table) for bias in biases if not isinstance(bias, Tensor)]))

    def _tokens(self, images: Tensor, geometry: Geometry) -> Tensor:
        """Input of the first block: z_0 of eq. 1, [B, T, D].

        Raises:
            ConfigError: the parameters of the model are offloaded.
        """
        if any(token is not None and token.is_meta for token in self._parameters.values()) and not images.is_meta:
            raise ConfigError(
                "the parameters of the model are offloaded, and only model(images) brings them back",
                hint="call the model itself, or remove the hooks: accelerate.hooks.remove_hook_from_submodules(model)",
            )
        height, width = geometry.image_size
        if not (surely(height == images.shape[-2]) and surely(width == images.shape[-1])):
            images = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
        if self.config.video is not None:
            images = self._still(images)
        x = self.patch_embed(images)
        if self._apart:
            x = x.reshape(-1, geometry.grid_size[0] * geometry.grid_size[1], x.shape[-1])
        prefix: list[Tensor] = [
            token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None
        ]
        positions, rows = geometry.positions, self.config.num_prefix_rows
        if self.pos_embed is not None:
            positions = self._table("pos_embed", geometry, self.pos_embed)
        elif self.pos_embed_y is not None and self.pos_embed_x is not None:
            rows_table = self._table("pos_embed_y", geometry, self.pos_embed_y)
            columns_table = self._table("pos_embed_x", geometry, self.pos_embed_x)
            positions = (rows_table[:, :, None] + columns_table[:, None]).flatten(1, 2)
        detections = self.config.num_detection_tokens
        if positions is not None:
            x = x + positions[:, rows : positions.shape[1] - detections]
        if prefix:
            leading = torch.cat(prefix, dim=1)
            if positions is not None and rows:
                leading = torch.cat((leading[:, :rows] + positions[:, :rows], leading[:, rows:]), dim=1)
            x = torch.cat((leading.expand(x.shape[0], -1, -1), x), dim=1)
        if self.det_token is not None and positions is not None:
            x = torch.cat((x, (self.det_token + positions[:, -detections:]).expand(x.shape[0], -1, -1)), dim=1)
        return self.norm_pre(dropped(self.pos_drop, x))  # type: ignore[no-any-return]

    def _still(self, images: Tensor) -> Tensor:
        """The videos [B, T, C, h, w] that images [B, C, h, w] or [B, 1, C, h, w] stand for."""
        frames = self._frames(images)
        videos = images if images.dim() == 5 else images.unsqueeze(1)
        return videos if videos.shape[1] == frames else videos.expand(-1, frames, -1, -1, -1)

    def _frames(self, images: Tensor) -> int:
        """Frames that are computed with: those of a video, or those that an image stands for."""
        video = self.config.video
        if video is not None and images.dim() == 5 and (images.shape[1] > 1 or video.tubelet == 1):
            return images.shape[1]
        return self.config.still_frames

    def _block(
        self,
        index: int,
        z: Tensor,
        geometry: Geometry,
        leading: int | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """One block, eq. 2 and 3, with what its attention takes in of positions."""
        z = self.blocks[index](z, leading, self._positions(index, geometry), maps)
        if self.mid_pos_embed is not None and index < len(self.blocks) - 1:
            z = z + self._table("mid_pos_embed", geometry, self.mid_pos_embed)[index]
        return z

    def _norm(self, z: Tensor) -> Tensor:
        """The final norm, of all tokens or of the first ones."""
        if self.cls_norm is None:
            return self.norm(z)  # type: ignore[no-any-return]
        prefix = self.config.num_prefix_tokens
        return torch.cat((self.cls_norm(z[:, :prefix]), self.norm(z[:, prefix:])), dim=1)

    def _pool(self, z: Tensor) -> Tensor:
        """One embedding of all tokens, y of eq. 4: [B, D]; both tokens [B, 2, D] for ``cls_dist``, all for ``none``."""
        pool, prefix = self.config.pool, self.config.num_prefix_tokens
        if self.neck is not None:
            z = z.flatten(2).transpose(1, 2)
        if self.attn_pool is not None:
            z = self.attn_pool(z if self.config.pool_prefix else z[:, prefix:])
        elif pool == "avg":
            z = z[:, 0 if self.config.pool_prefix else prefix :].mean(dim=1)
        elif pool == "cls_dist":
            z = z[:, :2]
        elif self.config.pool_tokens:
            z = z[:, list(self.config.pool_tokens)].flatten(1)
        elif pool in ("cls", "first"):
            z = z[:, 0 if pool == "cls" else prefix]
        return self.norm(z) if self.config.pool_renorm else self.fc_norm(z)  # type: ignore[no-any-return]

    def _check_pooled(self) -> None:
        if self.config.pool == "none":
            raise ConfigError("pool='none': the model has no pooled embedding", hint="use forward_features")

    def embed(self, images: Images) -> Tensor:
        """Return the pooled embedding, before representation layer, projection and head.

        Args:
            images: [B, C, h, w], already preprocessed, or a list of images as for :meth:`forward`.

        Returns:
            [B, D]; for ``cls_dist`` the mean of both tokens, with ``pool_tokens`` those side by side, with a neck the
            mean of its map.

        Raises:
            ConfigError: the images are not of the model's size, or the model does not pool.
        """
        self._check_pooled()
        if isinstance(images, (list, tuple)):
            y = torch.cat([self._pool(tokens) for tokens in self._encode_each(images)])
        else:
            y = self._pool(self._features(images, self._geometry(images), self._leading(self.config.pool)))
        return y.mean(dim=1) if self.config.pool == "cls_dist" else y

    @overload
    def forward_features(self, images: Tensor) -> Tensor: ...

    @overload
    def forward_features(self, images: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]: ...

    def forward_features(self, images: Images) -> Tensor | list[Tensor]:
        """Return the tokens before pooling: class, distillation, registers, patches in row-major order, detections.

        Args:
            images: [B, C, h, w], already preprocessed, or a list of images as for :meth:`forward`.

        Returns:
            [B, T, D], or for a list one [T, D] an image; normed where ``final_norm`` is ``before``, as they leave the
            last block otherwise. Where a neck's map is pooled, that map [B, C, rows, columns].

        Raises:
            ConfigError: the images are not of the model's size.
        """
        if isinstance(images, (list, tuple)):
            return [tokens[0] for tokens in self._encode_each(images)]
        return self._features(images, self._geometry(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        reshape: bool = True,
        norm: bool = False,
        *,
        return_prefix_tokens: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = True,
        output_dict: bool = False,
    ) -> Any:
        """Return the outputs of chosen blocks, for dense tasks, in the order of ``indices``.

        The arguments are timm's, but for ``reshape`` and the default of ``intermediates_only``; timm gives the outputs
        in the order of the blocks.

        Args:
            images: [B, C, h, w], already preprocessed.
            indices: which blocks (negative: from the end), or how many of the last ones; None: all.
            reshape: feature maps [B, D, rows, columns] instead of tokens [B, N, D].
            norm: with the final norm, where it is one of all tokens.
            return_prefix_tokens: pairs of patches and the tokens before them [B, T - N, D], where there are any.
            stop_early: compute no block after the last one chosen; the final tokens are then those of that block.
            output_fmt: ``NLC``: as ``reshape=False``.
            intermediates_only: without the final tokens.
            output_dict: a dictionary with ``image_intermediates``, ``image_intermediates_prefix`` and
                ``image_features``.

        Returns:
            The list of outputs; a pair of the final tokens [B, T, D], normed, and that list; or the dictionary.

        Raises:
            ConfigError: there is no such block or format, or the images are not of the model's size.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(f"output_fmt must be one of NCHW, NLC, not {output_fmt!r}")
        chosen = range(len(self.blocks)) if indices is None else indices
        outputs, last, grid = self._intermediates(
            images, chosen, norm, to_the_end=not (stop_early or intermediates_only)
        )
        prefix = self.config.num_prefix_tokens
        frames = images.dim() == 5
        patches = [self._patches(tokens, grid, reshape and output_fmt == "NCHW", frames) for tokens in outputs]
        before = [tokens[:, :prefix] for tokens in outputs] if return_prefix_tokens and prefix else None
        if output_dict:
            found: dict[str, Any] = {"image_intermediates": patches}
            found |= {} if before is None else {"image_intermediates_prefix": before}
            return found if intermediates_only else {**found, "image_features": self._norm(last)}
        intermediates = patches if before is None else list(zip(patches, before, strict=True))
        return intermediates if intermediates_only else (self._norm(last), intermediates)

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], ...]:
        """Return the outputs of the last ``n`` blocks, or of blocks ``n``, as DINOv2's models do.

        Args:
            images: [B, C, h, w], already preprocessed.
            n: how many of the last blocks, or which ones.
            reshape: feature maps [B, D, rows, columns] instead of tokens [B, N, D].
            return_class_token: pairs of patches and class token [B, D].
            norm: with the final norm, where it is one of all tokens.

        Raises:
            ConfigError: there is no such block or no class token, or the images are not of the model's size.
        """
        if return_class_token and self.cls_token is None:
            raise ConfigError("return_class_token=True: the model has no class token")
        outputs, _, grid = self._intermediates(images, n, norm)
        patches = [self._patches(tokens, grid, reshape, images.dim() == 5) for tokens in outputs]
        return (
            tuple((part, z[:, 0]) for part, z in zip(patches, outputs, strict=True))
            if return_class_token
            else tuple(patches)
        )

    def _patches(self, tokens: Tensor, grid: tuple[int, int], reshape: bool, frames: bool) -> Tensor:
        """The patches of a grid among tokens [B, T, D]: [B, N, D], or feature maps [B, D, rows, columns].

        Maps of videos are [B, D, frames of patches, rows, columns].
        """
        patches = tokens[:, self.config.num_prefix_tokens : tokens.shape[1] - self.config.num_detection_tokens]
        if not reshape:
            return patches
        # An image that stands for a video has the patches of all its frames, too.
        shape = (-1, *grid) if frames or patches.shape[1] != grid[0] * grid[1] else grid
        return patches.transpose(1, 2).reshape(len(patches), self.config.embed_dim, *shape).contiguous()

    def _intermediates(
        self, images: Tensor, indices: int | Sequence[int], norm: bool, to_the_end: bool = False
    ) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """All tokens as they leave chosen blocks and the last one that is computed, each [B, T, D], and their grid."""
        depth = len(self.blocks)
        chosen = range(depth - indices, depth) if isinstance(indices, int) else indices
        wanted = [index + depth if index < 0 else index for index in chosen]
        too_many = isinstance(indices, int) and indices > depth
        if too_many or not wanted or any(not 0 <= index < depth for index in wanted):
            raise ConfigError(f"indices={indices}: the model has blocks 0 to {depth - 1}")
        outputs: dict[int, Tensor] = {}
        geometry = self._geometry(images)
        z = self._tokens(images, geometry)
        for index in range(depth if to_the_end else max(wanted) + 1):
            z = self._block(index, z, geometry)
            if index in wanted:
                tokens = self._together(z, images)
                outputs[index] = self._norm(tokens) if norm else tokens
        return [outputs[index] for index in wanted], self._together(z, images), geometry.grid_size

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """Return the softmax of every layer's attention, computed explicitly (slow; forward never does this).

        Args:
            images: [B, C, h, w], already preprocessed.

        Returns:
            One [B, heads, T, T] per block; rows are queries and sum to 1 (A of arXiv 2010.11929, eq. 6). Differential
            attention gives differences of two; a block with branches gives one for each.

        Raises:
            ConfigError: the images are not of the model's size.
        """
        return [one for _, maps in self.each_block(images) for one in maps]

    def each_block(self, images: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield what each block leaves, one at a time: attention maps of all blocks may not fit into memory.

        Args:
            images: [B, C, h, w], already preprocessed.

        Yields:
            The tokens after the block, [B, T, D], and its attention as for :meth:`attention_maps`. Of a video whose
            frames do not see one another, each frame is another image.

        Raises:
            ConfigError: the images are not of the model's size.
        """
        geometry = self._geometry(images)
        z = self._tokens(images, geometry)
        for index in range(len(self.blocks)):
            maps: list[Tensor] = []
            z = self._block(index, z, geometry, maps=maps)
            yield z, maps

    @property
    def num_classes(self) -> int:
        """Outputs of the head as it is now; 0 without one."""
        return self.head.out_features if isinstance(self.head, nn.Linear) else 0

    @property
    def num_features(self) -> int:
        """Width of the pooled embedding."""
        return self.config.pooled_dim

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier reads."""
        return self.config.head_width

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the head; of a distilled model both."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one for another number of classes; 0 leaves the embedding.

        Raises:
            ConfigError: what the model computes before the head needs one.
        """
        self.config = self.config.replace(num_classes=num_classes)
        if self.passport is not None:
            self.passport = self.passport.without_labels()  # they name the classes of the old head
        weight = self.patch_embed.proj.weight

        def head() -> nn.Module:
            if not num_classes:
                return nn.Identity()
            made = nn.Linear(self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype)
            return made.apply(_init_weights)

        self.head = head()
        if self.head_dist is not None:
            self.head_dist = head()

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are customarily trained without weight decay."""
        tokens = (
            *("cls_token", "dist_token", "reg_token", "det_token"),
            *("pos_embed", "pos_embed_y", "pos_embed_x", "mid_pos_embed"),
        )
        names = (*tokens, "rope.freqs", "rope.class_angles", "attn_pool.latent")
        ends = (_RELATIVE_TABLE, "rel_pos_h", "rel_pos_w")
        tables = (name for name, _ in self.named_parameters() if name.endswith(ends))
        return {*names, *tables} & {name for name, _ in self.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameter names from input to output, for timm's layer-wise decay of learning rates.

        Args:
            coarse: as timm calls it; blocks are not divided further.
        """
        stem = (
            r"^cls_token|dist_token|reg_token|det_token|pos_embed|mid_pos_embed|patch_embed|norm_pre|rope|rel_pos_bias"
            r"|shared_rel_pos"
        )
        return {"stem": stem, "blocks": [(r"^blocks\.(\d+)", None), (r"^(?:cls_)?norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again when gradients are needed, instead of keeping their activations."""
        self.grad_checkpointing = enable

    def set_image_size(
        self, size: int | tuple[int, int], *, resize: str = "source", pad: bool = False
    ) -> VisionTransformer:
        """Change the image size for good: position tables are resized, everything computed is computed again.

        Args:
            size: (height, width) in pixels, or one number for both.
            resize: ``source``: as the checkpoint's own project does, or one of ``RESIZE_METHODS``.
            pad: accept sizes that are not whole patches; images are padded with zeros to the right and below.

        Returns:
            The model itself.

        Raises:
            ConfigError: the size is not a whole number of patches and ``pad`` is False, or no such method.
        """
        old, new = self.config, resized_config(self.config, size, pad=pad)
        table_method(old, resize)
        with torch.no_grad():
            for name, parameter in list(self.named_parameters()):
                changed = resize_tensor(name, parameter, old, new, resize)
                if changed is not parameter:
                    owner = self.get_submodule(name.rpartition(".")[0])
                    setattr(owner, name.rpartition(".")[2], nn.Parameter(changed, parameter.requires_grad))
        if self.passport is not None and new != old:
            self.passport = self.passport.resized(old, new)
        self.config = new
        self.input_size = size_pair("image_size", size)
        self.reset_tables()
        return self

    def reset_tables(self) -> None:
        """Compute the tables that are not parameters, on the device and in the dtype of the parameters."""
        self._resized.clear()
        grid, like = self.config.grid_size, self.patch_embed.proj.weight
        for name, table in self._computed_tables(grid, self.config.num_tubelets, like).items():
            if getattr(self, name) is None:
                delattr(self, name)
            self.register_buffer(name, table, persistent=False)

    def _computed_tables(
        self, grid: tuple[int, int], tubelets: int, like: Tensor, device: torch.device = HOST
    ) -> dict[str, Tensor]:
        periods = None if self.rope_embed is None else self.rope_embed()
        return computed_tables(self.config, grid, like, periods, device, tubelets)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VisionTransformer:
        """Move or cast the model; rotations stay as exact as when it is loaded in that dtype."""
        periods: Tensor | None = getattr(self.rope_embed, "periods", None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rope_embed is not None and periods is not None and not periods.is_meta:
            self.rope_embed.periods = periods.to(self.rope_embed.periods.device)  # type: ignore[arg-type]
        self.reset_tables()
        return self

    def _geometry(self, images: Tensor) -> Geometry:
        """The tables for a batch of images: the model's own, or those of another size if it is dynamic."""
        size, video = (images.shape[-2], images.shape[-1]), self.config.video
        if is_tracing():
            size = (int(size[0]), int(size[1]))
        fits = holds(images.dim() == (5 if video and images.dim() == 5 else 4))
        fits = fits and holds(images.shape[-3] == self.config.in_chans)
        native = surely(size[0] == self.input_size[0]) and surely(size[1] == self.input_size[1])
        tubelets = 1
        if video is not None and fits:
            frames = self._frames(images)
            fits = frames % video.tubelet == 0
            tubelets = frames // video.tubelet if video.joint else 1
            native = native and tubelets == self.config.num_tubelets
        if not native and not self.dynamic:
            native = fits = fits and size == self.input_size and tubelets == self.config.num_tubelets
        if not fits:
            expected = ", ".join(map(str, (self.config.in_chans, *self.input_size)))
            videos = f" or [batch, frames in multiples of {video.tubelet}, {expected}]" if video else ""
            raise ConfigError(
                f"images have shape {tuple(images.shape)}, the model takes [batch, {expected}]{videos}",
                hint=_shape_hint(tuple(images.shape), self.config.in_chans),
            )
        if native:
            rope = None if self.rope_cos is None or self.rope_sin is None else (self.rope_cos, self.rope_sin)
            size, grid, table = self.config.image_size, self.config.grid_size, self.pos_table
            return Geometry(size, grid, table, rope, self.rel_pos_index, None, self.rel_pos_offsets)
        if is_recorded():
            return self._geometry_at(size, tubelets, images)
        key = (size, tubelets, images.device, images.dtype, self.resize, self.pad, torch.is_inference_mode_enabled())
        if key not in self._resized:
            while len(self._resized) >= _KEPT_SIZES:
                del self._resized[next(iter(self._resized))]
            self._resized[key] = self._geometry_at(size, tubelets, images)
        return self._resized[key]

    def _geometry_at(self, size: tuple[int, int], tubelets: int, images: Tensor) -> Geometry:
        """Tables computed for another size. While a program is recorded for any size, this is a part of it."""
        unit = self.config.pixels_per_patch
        squares = self.config.merger.size if self.config.merger else 1
        image_size = whole_patches(size, (squares * unit[0], squares * unit[1]), self.pad)
        grid = (image_size[0] // unit[0], image_size[1] // unit[1])
        computed = self._computed_tables(grid, tubelets, images, images.device if is_recorded() else HOST)
        rope = (computed["rope_cos"], computed["rope_sin"]) if "rope_cos" in computed else None
        pairs, offsets = computed.get("rel_pos_index"), computed.get("rel_pos_offsets")
        return Geometry(image_size, grid, computed.get("pos_table"), rope, pairs, {}, offsets)

    def _table(self, name: str, geometry: Geometry, table: Tensor) -> Tensor:
        """A learned table at the size of a geometry: resized now, or kept from an earlier batch of the size."""
        if geometry.resized is None:
            return table
        recorded = is_recorded()
        # What gradients flow through belongs to one pass.
        keep = not (recorded or table.is_meta or (torch.is_grad_enabled() and table.requires_grad))
        if keep and name in geometry.resized and geometry.resized[name].is_current(table):
            return geometry.resized[name].table
        resized = resize_table(name, table, self.config, geometry.grid_size, self.resize, symbolic=recorded)
        if keep:
            geometry.resized[name] = Resized(resized, table.clone())
        return resized

    def _positions(self, index: int, geometry: Geometry) -> Positions:
        """Rotations of queries and keys, bias of the logits and windows for one block; each if there is one."""
        window, windows = self.config.window(index), None
        if window is not None and self.config.windows is not None:
            windows = Partition(geometry.grid_size, window, self.config.windows.pad)
        return Positions(self._rotations(index, geometry), self._bias(index, geometry), windows)

    def _rotations(self, index: int, geometry: Geometry) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines for one block, each [..., T, D/H]."""
        rope, config = geometry.rope, self.config.rope
        if self.rope is None or config is None:
            return rope
        if config.mixed:
            angles = mixed_angles(config, geometry.grid_size, self.rope()[:, index])
            return expand_angles(config, angles, self.config.num_prefix_tokens, self.config.head_dim)
        if rope is None:
            return None
        # The class token turns, too.
        first = expand_angles(config, self.rope().to(rope[0].dtype), 0, self.config.head_dim)
        cos, sin = (torch.cat((one, others[1:])) for one, others in zip(first, rope, strict=True))
        return cos, sin

    def _bias(self, index: int, geometry: Geometry) -> Bias | None:
        """Bias of the logits for one block. Tables are read where the module that has them is called."""
        pairs, offsets = geometry.pairs, geometry.offsets
        if self.config.rel_pos == "decomposed":
            return self._decomposed(index, geometry)
        if pairs is None:
            return None
        if offsets is not None and self.shared_rel_pos is not None:
            return relative_bias(self.shared_rel_pos(offsets), pairs)
        if offsets is not None:
            return lambda network: relative_bias(network(offsets), pairs)
        if self.rel_pos_bias is not None:
            table = self._table(f"rel_pos_bias.{_RELATIVE_TABLE}", geometry, self.rel_pos_bias())
            return relative_bias(table, pairs)
        name = f"blocks.{index}.attn.{_RELATIVE_TABLE}"
        return lambda table: relative_bias(self._table(name, geometry, table), pairs)

    def _decomposed(self, index: int, geometry: Geometry) -> Bias:
        """A function of queries and both tables of a block; those of windows are the same for images of any size."""
        window = self.config.window(index)

        def sized(axis: str, table: Tensor) -> Tensor:
            name = f"blocks.{index}.attn.rel_pos_{axis}"
            return self._table(name, geometry, table) if window is None else table

        def bias(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
            return decomposed_bias(q, sized("h", rows), sized("w", columns), window or geometry.grid_size)

        return bias

    def save(self, path: str | Path) -> Path:
        """Write a canonical safetensors file with config and passport, so that converting back still works.

        If the model is sharded over processes (FSDP2), all of them have to call this; that of rank 0 writes.

        Raises:
            ConfigError: layers were replaced by others that no config describes, or values are not there.
            VitHubError: the file cannot be written.
        """
        from vit_hub.converters.save import save

        return save(self, path)

    def _repr_html_(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return table_of(type(self).__name__, {"parameters": f"{count:,}", **self._unusual()})

    def extra_repr(self) -> str:
        """Return the config fields that differ from the defaults."""
        return ", ".join(f"{key}={value}" for key, value in self._unusual().items())

    def _unusual(self) -> dict[str, Any]:
        default: dict[str, Any] = ViTConfig().to_dict()
        return {key: value for key, value in self.config.to_dict().items() if value != default[key]}


def _shape_hint(shape: tuple[int, ...], in_chans: int) -> str:
    """Return what to do about images of a shape that the model does not take."""
    first = ""
    if len(shape) == 3:
        first = "add the axis of the batch, images[None]; "
    elif len(shape) == 4 and shape[-1] == in_chans != shape[1]:
        first = "put the channels before height and width, images.permute(0, 3, 1, 2); "
    elif len(shape) == 4 and shape[1] != in_chans:
        first = f"load the model with in_chans={shape[1]}; "
    return f"{first}resize the images (vit_hub.preprocess), or load the model with image_size= or dynamic=True"


def _reset_tables(model: nn.Module, incompatible: object) -> None:
    """Let the tables follow the periods that load_state_dict brought."""
    if isinstance(model, VisionTransformer):
        model.reset_tables()


def _padded(tokens: Tensor, length: int) -> Tensor:
    """[..., T, D] -> [..., length, D], with zeros."""
    return F.pad(tokens, (0, 0, 0, length - tokens.shape[-2]))


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
