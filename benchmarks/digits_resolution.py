"""Classify held-out digits with vit-nano-digits at sizes that it was not trained at.

    python benchmarks/digits_resolution.py --markdown docs/resolution.md --picture docs/resolution.png

The model comes with the package; it was trained at 32x32 pixels. The images are scikit-learn's digits, every fifth of
each class: 355 that the model never saw. Each is enlarged from 8x8 pixels by the model's own preprocessing to the size
in question, and the model is loaded at that size with one method after the other. Two columns are for comparison:
"shuffled" has the resized table with its rows in another order, and "patches" keeps the 8x8 grid and resizes the patch
kernel instead, where the size is a multiple of 8.

The table is written between two marks in the document. The picture needs matplotlib, the data scikit-learn.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits

import vit_hub
from vit_hub.model.config import RESIZE_METHODS

NAME = "vit-nano-digits"
STORED = 32
SIZES = (16, 20, 24, 28, 32, 40, 48, 64, 80)
METHODS = [method for method in RESIZE_METHODS if not method.startswith("relpos-")]
PICTURED = (24, 32, 48)
MARKS = "<!-- digits_resolution.py: begin -->", "<!-- digits_resolution.py: end -->"


def held_out() -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.int64]]:
    """The images that tools/train_nano_digits.py holds out, ink 255 on 0, and their classes."""
    data = load_digits()
    chosen = np.sort(np.concatenate([np.flatnonzero(data.target == digit)[4::5] for digit in range(10)]))
    return list(np.rint(data.images[chosen] * 255 / 16).astype(np.uint8)), data.target[chosen]


def shuffled(model: vit_hub.VisionTransformer) -> vit_hub.VisionTransformer:
    """The model with its position rows in another order: every patch gets the position of another."""
    assert model.pos_embed is not None
    rows, generator = model.config.num_prefix_rows, torch.Generator().manual_seed(0)
    order = torch.randperm(model.config.num_patches, generator=generator)
    with torch.no_grad():
        model.pos_embed[:, rows:] = model.pos_embed[:, rows:][:, order]
    return model


def measure() -> dict[int, dict[str, float | None]]:
    """Size -> column -> share of the held-out images that are classified correctly."""
    images, classes = held_out()

    def accuracy(model: vit_hub.VisionTransformer) -> float:
        with torch.inference_mode():
            found = model(vit_hub.preprocess(model)(images)).argmax(dim=1)
        return float((found.numpy() == classes).mean())

    table: dict[int, dict[str, float | None]] = {}
    for size in SIZES:
        row: dict[str, float | None] = {
            method: accuracy(vit_hub.load(NAME, image_size=size, resize=method)) for method in METHODS
        }
        row["shuffled"] = accuracy(shuffled(vit_hub.load(NAME, image_size=size)))
        patch = size * 4 // STORED
        whole = patch * STORED == size * 4
        row["patches"] = accuracy(vit_hub.load(NAME, image_size=size, patch_size=patch)) if whole else None
        table[size] = row
        print(size, row, flush=True)
    return table


def as_markdown(table: dict[int, dict[str, float | None]]) -> str:
    columns = ["size", "grid", *next(iter(table.values()))]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    for size, row in table.items():
        name = f"{size}, stored" if size == STORED else str(size)
        cells = [name, f"{size // 4}x{size // 4}"]
        cells += ["" if value is None else f"{100 * value:.1f}" for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(document: Path, table: str) -> None:
    begin, end = MARKS
    text, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        f"{begin}\n{table}\n{end}",
        document.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{document}: the table's place is not marked by {begin} and {end}")
    document.write_text(text, encoding="utf-8")


def similarities(model: vit_hub.VisionTransformer) -> npt.NDArray[np.float64]:
    """Cosine similarity of every patch's position row with every other's, one small grid per patch, side by side.

    Figure 7 of arXiv 2010.11929, in the middle. Between the small grids is a line of NaN.
    """
    assert model.pos_embed is not None
    rows, columns = model.config.grid_size
    table = torch.nn.functional.normalize(model.pos_embed[0, model.config.num_prefix_rows :].detach().double(), dim=1)
    grids = (table @ table.T).reshape(rows, columns, rows, columns).numpy()
    picture = np.full((rows * (rows + 1) - 1, columns * (columns + 1) - 1), np.nan)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (rows + 1), column * (columns + 1)
            picture[top : top + rows, left : left + columns] = grids[row, column]
    return picture


def draw(file: Path, load: Callable[[int], vit_hub.VisionTransformer]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PICTURED), figsize=(13, 4.6), layout="constrained")
    for axis, size in zip(axes, PICTURED, strict=True):
        model = load(size)
        rows, columns = model.config.grid_size
        shown = axis.imshow(similarities(model), vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        how = "as stored" if size == STORED else "resized"
        axis.set_title(f"{size}x{size} pixels: {rows}x{columns} patches, {how}", fontsize=12)
        places = [index * (rows + 1) + (rows - 1) / 2 for index in range(rows)]
        axis.set_xticks(places, [str(index + 1) for index in range(columns)])
        axis.set_yticks(places, [str(index + 1) for index in range(rows)])
        axis.tick_params(length=0)
        axis.set_xlabel("column of the patch", fontsize=11)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel("row of the patch", fontsize=11)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label("cosine similarity of position rows", fontsize=11)
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--markdown", type=Path, help="the document with the marked place for the table")
    parser.add_argument("--picture", type=Path, help="a PNG or SVG file to write")
    arguments = parser.parse_args()
    table = as_markdown(measure())
    print(table)
    if arguments.markdown is not None:
        write_table(arguments.markdown, table)
    if arguments.picture is not None:
        draw(arguments.picture, lambda size: vit_hub.load(NAME, image_size=size))


if __name__ == "__main__":
    main()
