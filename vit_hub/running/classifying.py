"""Classes of many images, as they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from vit_hub.model.outputs import check_classes
from vit_hub.preprocessing.of_checkpoint import class_names
from vit_hub.running.engine import run
from vit_hub.running.models import Runnable
from vit_hub.running.reading import Reader
from vit_hub.running.sources import Item, Sources, batches_of

__all__ = ["Guess", "Prediction", "classify"]


@dataclass(frozen=True)
class Guess:
    """One class of an image.

    Attributes:
        index: of the model's output.
        name: of the class, where it is known.
        probability: the softmax of all outputs.
    """

    index: int
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """Classes of one image.

    Attributes:
        item: the image.
        classes: the most probable ones, best first; empty where there is an error.
        error: why there are none.
    """

    item: Item
    classes: list[Guess] = field(default_factory=list)
    error: str | None = None


def classify(
    model: Runnable,
    sources: Sources,
    *,
    top: int = 5,
    batch_size: int | None = None,
    workers: int | None = None,
    compile: str | None = None,
    runtime: str | None = None,
    fast_decode: bool = False,
) -> Iterator[Prediction]:
    """Yield the most probable classes of images, in their order, as they are computed.

    Args:
        model: with a classification head.
        sources: the images.
        top: number of classes.
        batch_size: images computed at a time; None: chosen for the device.
        workers: processes that read and preprocess; 0: none, in turn with computing; None: chosen for the device.
        compile: a mode of torch.compile; None: not compiled.
        runtime: what computes: ``torch`` (None), ``onnxruntime``, ``openvino``, or ``auto``: the fastest of them here.
        fast_decode: let JPEG files be shrunk while they are decoded; pixels differ a little.

    Raises:
        ConfigError: the model has no head, or one that was never trained.
        VitHubError: the images are not there, or a worker process was killed.
    """
    check_classes(model.model, model.source)
    names = class_names(model.model)
    computation = model.computation("logits", compile=compile, batch_size=batch_size, runtime=runtime)
    reader = Reader(model.preprocessing, None, fast_decode)
    for done in run(batches_of(sources.items(), computation.batch_size), reader, computation, workers=workers):
        guesses = _best(torch.from_numpy(done.outputs), names, top) if done.kept else []
        found = dict(zip(done.kept, guesses, strict=True))
        for index, item in enumerate(done.items):
            yield Prediction(item, found.get(index, []), done.errors.get(index))


def _best(logits: torch.Tensor, names: Sequence[str] | None, top: int) -> list[list[Guess]]:
    best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        [
            Guess(index, names[index] if names else None, probability)
            for index, probability in zip(indices, probabilities, strict=True)
        ]
        for indices, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
