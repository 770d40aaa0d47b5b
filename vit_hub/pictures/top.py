"""The most probable classes of each image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vit_hub.errors import ConfigError
from vit_hub.model.outputs import check_classes
from vit_hub.pictures.drawing import INK, Drawing, photo, short
from vit_hub.pictures.kind import Kind
from vit_hub.pictures.subject import Subject, View
from vit_hub.preprocessing.of_checkpoint import class_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "most_probable"]

_TOP = 5
_LINE = 1.9  # inches of an image


@torch.inference_mode()
def most_probable(subject: Subject, top: int = _TOP) -> list[list[tuple[str, float]]]:
    """Return names and probabilities of the most probable classes of each image, best first.

    Raises:
        ConfigError: the model has no head, or one that was never trained.
    """
    check_classes(subject.model, subject.name)
    names, weight = class_names(subject.model), subject.model.patch_embed.proj.weight
    found = []
    for view in subject.views:
        shares = subject.model(view.input.to(weight.device, weight.dtype))[0].float().softmax(-1)
        best = shares.topk(min(top, len(shares)))
        found.append(
            [
                (names[index] if names else f"class {index}", share)
                for index, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        )
    return found


def _obstacle(subject: Subject) -> str:
    try:
        check_classes(subject.model, "the model")
    except ConfigError as error:
        return error.message
    return ""


def _make(subject: Subject) -> Drawing:
    classes = most_probable(subject)
    best = [f"{short(name.split(',')[0], 30)} ({share:.0%})" for (name, share), *_ in classes]
    title = f"Most probable: {', '.join(best)}"
    return Drawing(title, _LINE * len(classes), functools.partial(_draw, subject.views, classes))


def _draw(views: Sequence[View], classes: Sequence[Sequence[tuple[str, float]]], figure: Figure) -> None:
    axes = figure.subplots(len(views), 2, squeeze=False, width_ratios=(1, 2.2))
    for (left, right), view, rows in zip(axes, views, classes, strict=True):
        photo(left, view.pixels, short(view.name, 30))
        places = range(len(rows))
        right.barh(places, [share for _, share in rows], color=[INK[0], *["#a8b8c8"] * (len(rows) - 1)], height=0.7)
        right.set_ylim(_TOP - 0.5, -0.5)
        right.set_xlim(0, 1.15)
        right.set_yticks(places, [short(name) for name, _ in rows])
        right.tick_params(axis="y", length=0)
        right.set_xticks([])
        right.spines["bottom"].set_visible(False)
        for place, (_, share) in enumerate(rows):
            right.text(share + 0.01, place, f"{share:.1%}", va="center", fontsize=9)


KIND = Kind(
    "top",
    "the five most probable classes",
    "Softmax of the model's outputs, for each image as the model sees it: resized and cropped.",
    (),
    _make,
    _obstacle,
    of_images=True,
)
