"""Train vit-nano-digits, the bundled Vision Transformer, and measure its accuracy.

    python tools/train_nano_digits.py --out vit_hub/data/vit_nano_digits.npz --samples vit_hub/data/digits

The data is scikit-learn's copy of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0): 1797 images of 8x8 pixels with values 0 to 16.
Every fifth image of each class, in the order of the data set, is held out and never trained on, nor was any choice made
by it: 355 images, written by the same 13 people as the rest.

The file has the layout and the conventions of google-research/vision_transformer. Training takes a few minutes on two
cores. Every random number is seeded and torch's deterministic algorithms are on: two runs of 3 epochs on one machine
gave the same bytes (torch 2.13, 2 threads); of a whole run this has not been measured. Another processor or version may
round sums differently and end in slightly different weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

import vit_hub
from vit_hub.converters.save import snapshot
from vit_hub.converters.write import convert_checkpoint
from vit_hub.preprocessing.project_files import CONVENTIONS

CONFIG = vit_hub.ViTConfig(
    image_size=(32, 32),
    patch_size=(4, 4),  # as many patches as the original images have pixels
    in_chans=1,
    embed_dim=48,
    depth=4,
    num_heads=3,
    mlp_dim=96,
    num_classes=10,
    act="gelu_tanh",
    norm_eps=1e-6,
    resize="bilinear-align-corners",
    resize_by_count=True,
)
PREPROCESSING = dataclasses.replace(CONVENTIONS["vit_jax"], image_size=CONFIG.image_size, mean=(0.5,), std=(0.5,))

SEED = 0
EPOCHS = 150
BATCH = 64
PEAK_RATE = 2e-3
WARM_UP = 0.1  # of all steps
WEIGHT_DECAY = 0.1
SMOOTHING = 0.1
MAX_TURN = 10.0  # degrees
MAX_SHIFT = 2.0  # pixels of the model's input, half a pixel of the original
MAX_ZOOM = 1.1

HELD_OUT_EVERY = 5
SAMPLE_SIZE = (64, 64)

Pixels = npt.NDArray[np.uint8]


def read_digits() -> tuple[list[Pixels], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Images uint8 [8, 8] with ink 255 on 0, their classes, and which of them are held out."""
    data = load_digits()
    images = [np.rint(image * 255 / 16).astype(np.uint8) for image in data.images]
    classes = data.target.astype(np.int64)
    held_out = np.zeros(len(classes), np.bool_)
    for digit in range(CONFIG.num_classes):
        held_out[np.flatnonzero(classes == digit)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
    return images, classes, held_out


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and shift each image [1, h, w] of a batch at random; the outside is background.

    Both operators are linear, and the background is -1 after preprocessing.
    """

    def between(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * limit

    turn, zoom = between(math.radians(MAX_TURN)), torch.exp(between(math.log(MAX_ZOOM)))
    # affine_grid counts from -1 to 1 across the image.
    right, down = (between(2 * MAX_SHIFT / side) for side in reversed(CONFIG.image_size))
    cos, sin = zoom * turn.cos(), zoom * turn.sin()
    matrices = torch.stack((cos, -sin, right, sin, cos, down), dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def train(images: Tensor, classes: Tensor) -> vit_hub.VisionTransformer:
    """A model after a fixed number of steps of AdamW; no step or epoch is picked afterwards."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = vit_hub.VisionTransformer(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.99))
    steps = len(images) // BATCH  # an epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, epochs=EPOCHS, steps_per_epoch=steps, pct_start=WARM_UP
    )
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator)[: steps * BATCH].reshape(steps, BATCH):
            logits = model(augment(images[batch], generator))
            loss = F.cross_entropy(logits, classes[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}: loss {total / steps:.3f}", flush=True)
    return model.eval()


def count_right(file: Path, images: list[Pixels], classes: npt.NDArray[np.int64]) -> int:
    """Count the images that the saved file classifies correctly, using only the library's public functions."""
    model = vit_hub.load(file)
    with warnings.catch_warnings():
        # A bare file says nothing of preprocessing; the convention that is then assumed is the one trained with.
        warnings.simplefilter("ignore")
        prepare = vit_hub.preprocess(model)
    with torch.no_grad():
        logits = model(prepare([Image.fromarray(image) for image in images]))
    return int((logits.argmax(dim=1).numpy() == classes).sum())


def write_samples(folder: Path, images: list[Pixels], classes: npt.NDArray[np.int64]) -> None:
    """The first image of each class as ``<class>.png``.

    They are enlarged linearly: people can look at them, and the preprocessing, which is linear too, makes of them what
    it makes of the 8x8 original, but for rounding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(CONFIG.num_classes):
        original = Image.fromarray(images[int(np.argmax(classes == digit))])
        original.resize(SAMPLE_SIZE, Image.Resampling.BILINEAR).save(folder / f"{digit}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the npz file to write")
    parser.add_argument("--samples", type=Path, help="folder for one held-out image of each class")
    parser.add_argument("--threads", type=int, default=2, help="another number changes the last bits (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)

    images, classes, held_out = read_digits()
    kept, tested = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    start = time.perf_counter()
    model = train(PREPROCESSING([images[i] for i in kept]), torch.from_numpy(classes[kept]))
    print(f"trained on {len(kept)} images in {time.perf_counter() - start:.0f} s")
    convert_checkpoint(snapshot(model), arguments.out, to="vit_jax")
    test_images = [images[i] for i in tested]
    right = count_right(arguments.out, test_images, classes[tested])
    print(f"{arguments.out}: {right} of {len(tested)} held-out images right, {right / len(tested):.2%}")
    if arguments.samples is not None:
        write_samples(arguments.samples, test_images, classes[tested])


if __name__ == "__main__":
    main()
