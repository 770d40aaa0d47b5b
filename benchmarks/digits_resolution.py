"""Classify held-out digits with vit-nano-digits at sizes that it was not trained at.

    python benchmarks/digits_resolution.py --markdown docs/resolution.md --picture docs/resolution.png

The model comes with the package; it was trained at 32x32 pixels. The images are scikit-learn's digits, every fifth of
each class: 355 that the model never saw. Each is enlarged from 8x8 pixels by the model's own preprocessing to the size
in question, and the model is loaded at that size with one method after the other. Two columns are for comparison:
"shuffled" has the resized table with its rows in another order, and "patches" keeps the 8x8 grid and resizes the patch
kernel instead, where the size is a multiple of 8.

The table is written between two marks in the document. The picture is that of `vit-hub show --what resize` and needs
matplotlib, the data scikit-learn.
"""

from __future__ import annotations

import argparse
import re
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--markdown", type=Path, help="the document with the marked place for the table")
    parser.add_argument("--picture", type=Path, help="a PNG file to write")
    arguments = parser.parse_args()
    if arguments.markdown is not None or arguments.picture is None:
        table = as_markdown(measure())
        print(table)
    if arguments.markdown is not None:
        write_table(arguments.markdown, table)
    if arguments.picture is not None:
        (picture,) = vit_hub.pictures.show(NAME, what="resize").pictures
        arguments.picture.write_bytes(picture.png())


if __name__ == "__main__":
    main()
