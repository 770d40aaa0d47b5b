"""Draw the pictures of README.md and docs/quickstart.md, from weights that are not in the repository.

python tools/photo_pictures.py DINO CIFAR

DINO is a ViT-S/14 of DINOv2's architecture, CIFAR a classifier of CIFAR-10. docs/quickstart.md has the code of its
picture: its blocks are run with DINO in the place of the model's name.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import vit_hub

ROOT = Path(__file__).resolve().parent.parent
QUICK_START = ROOT / "docs" / "quickstart.md"
PHOTO = ROOT / "docs" / "images" / "chelsea.jpg"
NAME = "dinov2-s14"
CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def run_quick_start(model: str) -> dict[str, Any]:
    """Run the code of the quick start in the repository, with another model, and return its variables."""
    scope: dict[str, Any] = {}
    for code in re.findall(
        r"^```python\n(.*?)^```$", QUICK_START.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        exec(compile(code.replace(f'"{NAME}"', repr(model)), QUICK_START.name, "exec"), scope)
    return scope


def draw_overview(seen: dict[str, Any], classifier: str, target: Path) -> None:
    """Draw the photo, its five most probable classes, and what the quick start found."""
    model = vit_hub.load(classifier)
    with torch.inference_mode():
        shares = model(vit_hub.preprocess(model)(PHOTO)).softmax(dim=1)[0]
    best = shares.topk(5)
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.4), layout="constrained")
    axes[0].imshow(seen["photo"])
    axes[0].set_title("A photo", fontsize=10)
    axes[1].barh(range(5), best.values, color="#0b5cad")
    axes[1].invert_yaxis()
    axes[1].set_yticks(range(5), [CIFAR_10[index] for index in best.indices.tolist()])
    axes[1].set_xlim(0, 1.3)
    for row, share in enumerate(best.values.tolist()):
        axes[1].text(share + 0.03, row, f"{share:.1%}", va="center", fontsize=9)
    axes[1].set_xticks([])
    axes[1].spines[:].set_visible(False)
    axes[1].tick_params(left=False)
    axes[1].set_box_aspect(1)
    axes[1].set_title("Top 5: it is a cat", fontsize=10)
    axes[2].imshow(seen["attention"][5])
    axes[2].set_title("Attention: its eyes", fontsize=10)
    axes[3].imshow(seen["colours"])
    axes[3].set_title("Features: its parts", fontsize=10)
    for panel in (axes[0], axes[2], axes[3]):
        panel.axis("off")
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    dino, cifar = (str(Path(argument).resolve()) for argument in sys.argv[1:])
    os.chdir(ROOT)
    found = run_quick_start(dino)
    Path("quickstart.png").rename(ROOT / "docs" / "images" / "quickstart.png")
    draw_overview(found, cifar, ROOT / "docs" / "images" / "overview.png")
