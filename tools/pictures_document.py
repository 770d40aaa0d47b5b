"""Make the pictures of docs/pictures.md: of the bundled digits model, a ViT for CIFAR-10, and a DINOv2-small.

    python tools/pictures_document.py --cifar10 FOLDER --dinov2 FOLDER

Both folders are checkpoints of any format; without one, its pictures stay as they are. The photos are those that
scikit-image ships: the astronaut Eileen Collins (NASA, public domain), Chelsea the cat (Stefan van der Walt, CC0) and a
rocket of SpaceX (CC0). Pictures are reduced to 256 colours.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from vit_hub.pictures import KINDS, show

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "pictures"
DIGITS = ROOT / "vit_hub" / "data" / "digits"
PHOTOS = ("astronaut", "chelsea", "rocket")
# Photos are large: one of them is enough where each head has a copy.
ONE_PHOTO = ("heads",)


def photos(folder: Path) -> list[Path]:
    """The photos as files, so that the pictures name them."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png" for name in PHOTOS]
    for name, file in zip(PHOTOS, files, strict=True):
        Image.fromarray(getattr(data, name)()).save(file)
    return files


def make(name: str, source: Any, images: list[Path]) -> None:
    folder = TARGET / name
    folder.mkdir(parents=True, exist_ok=True)
    pictures = show(source, images, what=[kind for kind in KINDS if kind not in ONE_PHOTO]).pictures
    pictures += show(source, images[:1], what=ONE_PHOTO).pictures
    for picture in pictures:
        image = Image.open(io.BytesIO(picture.png())).quantize(256, kmeans=2)
        image.save(folder / f"{picture.kind}.png", optimize=True)
        print(f"{name}/{picture.kind}: {picture.title}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cifar10", type=Path, help="a classifier of CIFAR-10")
    parser.add_argument("--dinov2", type=Path, help="a DINOv2-small")
    parser.add_argument("--photos", type=Path, default=Path("photos"), help="folder for the photos")
    arguments = parser.parse_args()
    make("digits", "vit-nano-digits", [DIGITS / f"{digit}.png" for digit in (3, 7)])
    files = photos(arguments.photos)
    if arguments.cifar10 is not None:
        make("cifar10", arguments.cifar10, [files[1], files[0], files[2]])
    if arguments.dinov2 is not None:
        make("dinov2", arguments.dinov2, files[:2])


if __name__ == "__main__":
    main()
