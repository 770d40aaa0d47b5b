"""Write a random Vision Transformer checkpoint as google-research/vision_transformer does, without vit-hub.

    python benchmarks/make_checkpoint.py B_16.npz --size B

Names and shapes are those of the public files (vit_jax/models_vit.py before linen), sizes those of arXiv 2010.11929,
table 1, and 2106.10270, table 2. The same arguments give the same tensors. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Width, blocks, heads, hidden width. "tiny" is for trying a benchmark out.
SIZES = {
    "tiny": (32, 2, 2, 64),
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}


def usual_patch(size: str) -> int:
    """Side of a patch in pixels in the public files of this size."""
    return 14 if size == "H" else 16


def shapes(size: str, patch: int, image: int, classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter."""
    width, depth, heads, hidden = SIZES[size]
    yield "cls", (1, 1, width)
    yield "embedding/kernel", (patch, patch, 3, width)
    yield "embedding/bias", (width,)
    yield "Transformer/posembed_input/pos_embedding", (1, 1 + (image // patch) ** 2, width)
    for index in range(depth):
        block = f"Transformer/encoderblock_{index}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            yield f"{attention}/{part}/kernel", (width, heads, width // heads)
            yield f"{attention}/{part}/bias", (heads, width // heads)
        yield f"{attention}/out/kernel", (heads, width // heads, width)
        yield f"{attention}/out/bias", (width,)
        yield f"{block}/MlpBlock_3/Dense_0/kernel", (width, hidden)
        yield f"{block}/MlpBlock_3/Dense_0/bias", (hidden,)
        yield f"{block}/MlpBlock_3/Dense_1/kernel", (hidden, width)
        yield f"{block}/MlpBlock_3/Dense_1/bias", (width,)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            yield f"{block}/{norm}/scale", (width,)
            yield f"{block}/{norm}/bias", (width,)
    yield "Transformer/encoder_norm/scale", (width,)
    yield "Transformer/encoder_norm/bias", (width,)
    if classes:
        yield "head/kernel", (width, classes)
        yield "head/bias", (classes,)


def write(path: Path, size: str = "B", patch: int = 16, image: int = 224, classes: int = 1000, seed: int = 0) -> None:
    """Write the file as ``numpy.savez`` does: members stored one after the other, not aligned."""
    generator = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, shape in shapes(size, patch, image, classes):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
                np.lib.format.write_array(member, values, allow_pickle=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", type=Path, help="the npz file to write")
    parser.add_argument("--size", choices=SIZES, default="B", help="default: B")
    parser.add_argument("--patch", type=int, default=16, help="side of a patch in pixels (default: 16)")
    parser.add_argument("--image", type=int, default=224, help="side of the image in pixels (default: 224)")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of the head; 0: no head (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    given = parser.parse_args()
    write(given.path, given.size, given.patch, given.image, given.classes, given.seed)
    print(f"{given.path}: {given.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
