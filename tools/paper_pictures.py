"""Draw the pictures of docs/paper.md with the bundled model.

python tools/paper_pictures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import vit_hub

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "images"
DIGITS = ROOT / "vit_hub" / "data" / "digits"
BLUE, ORANGE, GREEN = "#0b5cad", "#d55e00", "#009e73"
WIDE = (8, 2.6)


def figure(title: str, *ratios: float) -> tuple[Any, Any]:
    made, axes = plt.subplots(1, len(ratios), figsize=WIDE, layout="constrained", width_ratios=ratios, squeeze=False)
    made.suptitle(title, fontsize=11)
    return made, axes[0]


def plain(panel: Any, content: Any, title: str = "", **options: Any) -> None:
    panel.imshow(content, **options)
    panel.set_title(title, fontsize=9)
    panel.set_xticks([])
    panel.set_yticks([])


def tiles(images: torch.Tensor, rows: int) -> torch.Tensor:
    """Images [N, h, w] side by side in rows, with a pixel between them."""
    images = F.pad(images, (0, 1, 0, 1), value=float("nan"))
    count, height, width = images.shape
    grid = images.reshape(rows, count // rows, height, width).transpose(1, 2)
    return grid.reshape(rows * height, count // rows * width)


def patches(model: vit_hub.VisionTransformer, images: torch.Tensor) -> Any:
    drawn, axes = figure("An image becomes 64 tokens: each patch times 48 kernels of its size", 1, 1, 1.3)
    plain(axes[0], images[0, 0], "the image, 32x32 pixels", cmap="gray")
    cut = images[0, 0].unfold(0, 4, 4).unfold(1, 4, 4).flatten(0, 1)
    plain(axes[1], tiles(cut, 8), "its 8x8 patches", cmap="gray")
    kernels = model.patch_embed.proj.weight.detach()[:, 0]
    most = float(kernels.abs().max())
    plain(axes[2], tiles(kernels, 6), "the columns of E", cmap="RdBu_r", vmin=-most, vmax=most)
    return drawn


def positions(model: vit_hub.VisionTransformer) -> Any:
    drawn, axes = figure("Nobody told the model where patches are: it learned that neighbours are alike", 1, 1, 1, 1)
    assert model.pos_embed is not None
    table = F.normalize(model.pos_embed.detach()[0, 1:], dim=1)
    for panel, (row, column) in zip(axes, ((0, 0), (2, 5), (4, 3), (6, 7)), strict=True):
        alike = (table @ table[8 * row + column]).unflatten(0, (8, 8))
        shown = panel.imshow(alike, cmap="RdBu_r", vmin=-1, vmax=1)
        panel.plot(column, row, "s", color="black", markersize=9, fillstyle="none")
        panel.set_title(f"row {row + 1}, column {column + 1}", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    drawn.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.8)
    return drawn


def attention(model: vit_hub.VisionTransformer, images: torch.Tensor) -> Any:
    drawn, axes = figure("Each head of the last block looks at another part of the image", 1, 1, 1, 1)
    plain(axes[0], images[0, 0], "the image", cmap="gray")
    with torch.inference_mode():
        heads = model.attention_maps(images)[-1][0, :, 0, 1:].unflatten(1, (8, 8))
    for index, (panel, weights) in enumerate(zip(axes[1:], heads, strict=True)):
        plain(panel, weights, f"class token, head {index + 1}", cmap="viridis")
    return drawn


def activations() -> Any:
    drawn, axes = figure("Three functions are called GELU, and they do not give the same numbers", 1, 1)
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    exact = F.gelu(x)
    others = {
        "tanh (vit_jax, big_vision)": F.gelu(x, approximate="tanh"),
        "quick (OpenAI's CLIP)": x * (1.702 * x).sigmoid(),
    }
    axes[0].plot(x, exact, color=BLUE, label="exact (timm, transformers)")
    for colour, style, (label, values) in zip((ORANGE, GREEN), ("--", ":"), others.items(), strict=True):
        axes[0].plot(x, values, style, color=colour, label=label)
        axes[1].plot(x, values - exact, style, color=colour, label=label)
    axes[0].set_title("value", fontsize=9)
    axes[1].set_title("difference from the exact one", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    for panel in axes:
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return drawn


def answers(model: vit_hub.VisionTransformer) -> Any:
    drawn, axes = figure("The residual stream holds an answer after every block, and each block mends it", 1)
    images = vit_hub.preprocess(model)([DIGITS / f"{digit}.png" for digit in range(10)])
    with torch.inference_mode():
        found = model.forward_intermediates(images, reshape=False, return_prefix_tokens=True)
        right = [model.head(model.norm(prefix[:, 0])).softmax(dim=1).diagonal() for _, prefix in found]
    steps = range(1, len(right) + 1)
    axes[0].plot(steps, torch.stack(right), color="#9aa5b1", linewidth=1)
    axes[0].plot(steps, torch.stack(right).mean(dim=1), "o-", color=BLUE, linewidth=2, label="mean of the ten digits")
    axes[0].set_xticks(steps, [f"block {step}" for step in steps])
    axes[0].set_ylim(0, 1)
    axes[0].set_ylabel("probability of\nthe right digit", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    axes[0].spines[["top", "right"]].set_visible(False)
    return drawn


if __name__ == "__main__":
    torch.set_num_threads(1)
    digits = vit_hub.load("vit-nano-digits")
    seven = vit_hub.preprocess(digits)(DIGITS / "7.png")
    drawings = {
        "patches": patches(digits, seven),
        "positions": positions(digits),
        "attention": attention(digits, seven),
        "gelu": activations(),
        "answers": answers(digits),
    }
    for drawing_name, drawing in drawings.items():
        drawing.savefig(TARGET / f"paper-{drawing_name}.png", dpi=100)
