"""Stems before the patch embedding: the ResNet of the hybrids, and a stack of convolutions.

Shapes: B images, C channels, h x w pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_hub.model.config import ViTConfig

__all__ = ["ConvStem", "ResNetStem"]

_GROUPS = 32


def _same_padding(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME: the output has ceil(size / stride) pixels, an odd remainder goes to the right and bottom."""
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = torch.sym_max(((size + stride - 1) // stride - 1) * stride + kernel - size, 0)  # type: ignore[no-untyped-call]
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


class StandardizedConv(nn.Module):
    """Convolution whose kernel is standardised per output channel (arXiv 1903.10520), with SAME padding.

    The original divides by std + 1e-5 (``std``), timm by sqrt(var + 1e-8) (``var``).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, standardize: str) -> None:
        super().__init__()
        self.stride, self.standardize = stride, standardize
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', ceil(h / stride), ceil(w / stride)]."""
        weight = self.weight
        centred = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
        scale = variance.sqrt() + 1e-5 if self.standardize == "std" else (variance + 1e-8).sqrt()
        return F.conv2d(_same_padding(x, weight.shape[-1], self.stride), centred / scale, stride=self.stride)


class _ConvNorm(nn.Module):
    """A standardised convolution and its group norm, where the residual changes shape."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: ViTConfig) -> None:
        super().__init__()
        self.conv = StandardizedConv(inputs, outputs, 1, stride, config.stem_standardize)
        self.norm = nn.GroupNorm(_GROUPS, outputs, eps=config.stem_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class _Bottleneck(nn.Module):
    """Bottleneck residual unit of a ResNet with group norm (arXiv 1512.03385, figure 5; 1912.11370, section 3)."""

    def __init__(self, inputs: int, width: int, stride: int, config: ViTConfig) -> None:
        super().__init__()
        standardize, eps, outputs = config.stem_standardize, config.stem_norm_eps, 4 * width
        self.conv1 = StandardizedConv(inputs, width, 1, 1, standardize)
        self.norm1 = nn.GroupNorm(_GROUPS, width, eps=eps)
        self.conv2 = StandardizedConv(width, width, 3, stride, standardize)
        self.norm2 = nn.GroupNorm(_GROUPS, width, eps=eps)
        self.conv3 = StandardizedConv(width, outputs, 1, 1, standardize)
        self.norm3 = nn.GroupNorm(_GROUPS, outputs, eps=eps)
        changes = inputs != outputs or stride != 1
        self.downsample = _ConvNorm(inputs, outputs, stride, config) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.downsample(x) + self.norm3(self.conv3(y)))


class _Root(nn.Module):
    """7x7 convolution with stride 2, group norm, ReLU and max pooling: a quarter of the resolution."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.conv = StandardizedConv(config.in_chans, config.stem_width, 7, 2, config.stem_standardize)
        self.norm = nn.GroupNorm(_GROUPS, config.stem_width, eps=config.stem_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(_same_padding(x, 3, 2, -math.inf), 3, 2)


class _Stage(nn.Module):
    def __init__(self, inputs: int, width: int, units: int, stride: int, config: ViTConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                _Bottleneck(inputs if unit == 0 else 4 * width, width, stride if unit == 0 else 1, config)
                for unit in range(units)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]


class ResNetStem(nn.Module):
    """The ResNet of the R+ViT hybrids (arXiv 2010.11929, section 4.1), names as in timm.

    [B, C, h, w] -> [B, C', h / s, w / s], s = 4 times 2 for each stage after the first.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.stem = _Root(config)
        stages, inputs = [], config.stem_width
        for index, units in enumerate(config.stem_stages):
            width = config.stem_width * 2**index
            stages.append(_Stage(inputs, width, units, 1 if index == 0 else 2, config))
            inputs = 4 * width
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map that the patch embedding reads."""
        return self.stages(self.stem(x))  # type: ignore[no-any-return]


class _ConvNormReLU(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class ConvStem(nn.Module):
    """Convolutions with batch norm and ReLU (arXiv 2106.14881), as torchvision builds them.

    [B, C, h, w] -> [B, C', h / s, w / s], s the product of the strides.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        inputs, layers = config.in_chans, []
        for outputs, kernel, stride in config.stem_convs:
            layers.append(_ConvNormReLU(inputs, outputs, kernel, stride))
            inputs = outputs
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map that the patch embedding reads."""
        return self.layers(x)  # type: ignore[no-any-return]
