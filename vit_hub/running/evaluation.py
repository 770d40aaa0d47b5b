"""Accuracy of a classifier on labelled images, with its uncertainty, beside what is published."""

from __future__ import annotations

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError, ModelNotFoundError, VitHubError
from vit_hub.model.outputs import check_classes
from vit_hub.model.vit import VisionTransformer
from vit_hub.preprocessing.labels import LABEL_FILES, label_keys, label_names
from vit_hub.preprocessing.of_checkpoint import class_names
from vit_hub.progress import step_bar
from vit_hub.registry import Metric, get_entry
from vit_hub.running.engine import run
from vit_hub.running.models import Runnable, runnable
from vit_hub.running.reading import Reader
from vit_hub.running.sources import Item, Sources, batches_of
from vit_hub.shown import ShortRepr
from vit_hub.untrusted import conform, parse_json, usable_path

__all__ = ["ClassResult", "Evaluation", "evaluate", "mapping_of", "wilson"]

_Z = 1.959963984540054  # of the normal distribution: 95 % lie within
_SYNSET = re.compile(r"n\d{8}")
_SUGGESTIONS = 3
# What is published that the classifier itself has: no k-NN, linear probe or text encoder beside it.
_METRIC = re.compile(r"imagenet-1k top-1 \(.*|accuracy .*")


@dataclass(frozen=True)
class ClassResult:
    """Accuracy on the images of one class.

    Attributes:
        label: what the source calls it.
        index: of the model's output.
        name: the model's name for it, where known.
        images: how many were computed.
        top1: share of them that is right.
    """

    label: str
    index: int
    name: str | None
    images: int
    top1: float


@dataclass(frozen=True, repr=False)
class Evaluation(ShortRepr):
    """Accuracy on labelled images.

    Attributes:
        model: what was evaluated.
        images: how many were computed.
        top1: share of images whose most probable class is right.
        top5: share of images with the right class among the five most probable.
        interval: 95 % confidence interval of ``top1`` (Wilson's).
        published: published ``top1`` of these weights, where known.
        published_name: of what data and by whom.
        within: the published value lies in the interval; None where it is not known.
        errors: images that could not be read; they do not count.
        classes: accuracy by class.
        confusion: images by class (rows, as in ``classes``) and prediction (columns, outputs of the model).
    """

    model: str
    images: int
    top1: float
    top5: float
    interval: tuple[float, float]
    published: float | None
    published_name: str | None
    within: bool | None
    errors: int
    classes: tuple[ClassResult, ...]
    confusion: npt.NDArray[np.int64]

    def _facts(self) -> dict[str, object]:
        names = ("model", "images", "top1", "top5", "interval", "published", "within", "errors")
        return {**{name: getattr(self, name) for name in names}, "classes": len(self.classes)}


def evaluate(
    source: str | os.PathLike[str] | Checkpoint | VisionTransformer,
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    mapping: str | os.PathLike[str] | Mapping[str, int | str] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    compile: str | None = None,
    runtime: str | None = None,
    fast_decode: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Evaluation:
    """Measure the accuracy of a classifier.

    The label of an image (its folder, a column of parquet, a ``.cls`` file) is matched with the model's classes: by
    ``mapping``; else a number is the index of the output; else a WordNet synset (``n01440764``) is that class of
    ImageNet; else it is the name of a class. If the model's classes have no names and the labels are as many as they,
    they are taken in the order of the data set's numbers, else in alphabetical order, with a warning.

    Args:
        source: as for :func:`vit_hub.load`, or a model.
        images: as for :func:`vit_hub.embed`, with labels.
        mapping: label -> index, synset or name; or a file with it: a JSON object, or lines of label, tab, class.
        batch_size: images computed at a time; None: chosen for the device.
        workers: processes that read and preprocess; 0: none, in turn with computing; None: chosen for the device.
        compile: a mode of torch.compile; None: not compiled.
        runtime: what computes: ``torch`` (None), ``onnxruntime``, ``openvino``, or ``auto``: the fastest of them here.
        fast_decode: let JPEG files be shrunk while they are decoded; pixels differ a little.
        preprocessing: fields that differ from the checkpoint's own preprocessing, such as ``{"mean": 0.5}``.
        image_column: the column of parquet files with images; None: found by its type.
        label_column: that with classes; None: found by its name.
        progress: show progress bars on a terminal.
        options: of :func:`vit_hub.load`: ``device``, ``dtype``, ``image_size``, ``overrides``, ...

    Raises:
        ConfigError: images have no label, a label is no class of the model, or the model cannot classify.
        VitHubError: the model cannot be loaded, or no image could be read.
    """
    sources = Sources.of(images, image_column, label_column)
    numbers, count = _labels_of(sources)
    model = runnable(source, preprocessing=preprocessing, progress=progress, **options)
    check_classes(model.model, model.source or "the model")
    targets = _targets(numbers, model.model, mapping_of(mapping))
    computation = model.computation("logits", compile=compile, batch_size=batch_size, runtime=runtime)
    reader = Reader(model.preprocessing, None, fast_decode)
    places = {label: place for place, label in enumerate(targets)}
    confusion = np.zeros((len(targets), model.model.config.num_classes), np.int64)
    right5 = errors = 0
    batches = batches_of(sources.items(), computation.batch_size)
    with step_bar("evaluating", count, show=progress) as advance:
        for done in run(batches, reader, computation, workers=workers):
            advance(len(done.items))
            errors += len(done.errors)
            for index, logits in zip(done.kept, done.outputs, strict=True):
                label = str(done.items[index].label)
                order = np.argsort(-logits, kind="stable")[:5]
                confusion[places[label], order[0]] += 1
                right5 += int(targets[label] in order)
    return _evaluation(model, targets, confusion, right5, errors)


def wilson(right: int, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share: its bounds in 0..1."""
    share, weight = right / images, _Z**2 / images
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / images + weight / (4 * images))
    return max(0.0, middle - half), min(1.0, middle + half)


def _evaluation(
    model: Runnable, targets: Mapping[str, int], confusion: npt.NDArray[np.int64], right5: int, errors: int
) -> Evaluation:
    images = int(confusion.sum())
    if not images:
        raise VitHubError("none of the images could be read", hint="`vit-hub predict` says why of each")
    names = class_names(model.model)
    classes = []
    for row, (label, index) in zip(confusion, targets.items(), strict=True):
        shown = int(row.sum())
        share = int(row[index]) / shown if shown else math.nan
        classes.append(ClassResult(label, index, names[index] if names else None, shown, share))
    right = sum(int(row[index]) for row, index in zip(confusion, targets.values(), strict=True))
    interval = wilson(right, images)
    metric = _published(model)
    published = metric.value / 100 if metric else None
    return Evaluation(
        model=model.source,
        images=images,
        top1=right / images,
        top5=right5 / images,
        interval=interval,
        published=published,
        published_name=f"{metric.name}: {metric.evidence}" if metric else None,
        within=None if published is None else interval[0] <= published <= interval[1],
        errors=errors,
        classes=tuple(classes),
        confusion=confusion,
    )


def _labels_of(sources: Sources) -> tuple[dict[str, int | None], int]:
    """Return the labels of images, sorted, with the numbers that the source gives them, and how many images there are.

    Raises:
        ConfigError: an image has none.
    """
    labels, count = dict[str, int | None](), 0
    for item in sources.items():
        labels[_required(item)] = item.number
        count += 1
    return dict(sorted(labels.items())), count


def _required(item: Item) -> str:
    if item.label is None and item.place.kind != "nowhere":
        raise ConfigError(
            f"{item.name}: nothing says what class it is",
            hint="give a folder with a subfolder for each class, or a parquet file with a column of labels "
            "(--label-column)",
        )
    return str(item.label)


def _published(model: Runnable) -> Metric | None:
    """Return a published accuracy of these weights, at the model's image size if there is one for several."""
    name = getattr(model.model.passport, "weights_id", "")
    try:
        metrics = get_entry(name).metrics if name else ()
    except ModelNotFoundError:
        return None
    fitting = [metric for metric in metrics if _METRIC.fullmatch(metric.name)]
    size = model.model.config.image_size[0]
    return min(fitting, key=lambda metric: metric.image_size != size, default=None)


def mapping_of(given: str | os.PathLike[str] | Mapping[str, int | str] | None) -> dict[str, int | str]:
    """Return a mapping, read from a file if it is one.

    Raises:
        ConfigError: the file is neither a JSON object nor lines of two columns.
        VitHubError: it cannot be read.
    """
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    path = usable_path(given)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VitHubError(f"{path}: cannot be read: {error.strerror or error}") from error
    found: dict[str, int | str]
    try:
        text = content.decode("utf-8-sig")  # some editors put a mark before it
        if text.lstrip().startswith("{"):
            found = parse_json(text)
            conform(found, dict[str, int | str], "it")
            return found
        rows = [(number, line.split("\t")) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        wrong = [number for number, row in rows if len(row) != 2]
        if wrong:
            raise ValueError(f"line {wrong[0]} has not two columns with a tab between them")
        return {label.strip(): name.strip() for _, (label, name) in rows}
    except ValueError as error:
        raise ConfigError(
            f"{path}: is no mapping of labels to classes: {error}",
            hint='write a JSON object, {"cat": 3}, or lines of label, tab, class',
        ) from error


def _targets(
    numbers: Mapping[str, int | None], model: VisionTransformer, mapping: Mapping[str, int | str]
) -> dict[str, int]:
    """Return the index of the model's output for each label, of which some have a number.

    Raises:
        ConfigError: a label is no class of the model.
    """
    classes, labels = model.config.num_classes, list(numbers)
    names = _Names(model)
    found = {label: names.index(mapping.get(label, label)) for label in labels}
    missing = [label for label, index in found.items() if index is None or not 0 <= index < classes]
    if not missing:
        return {label: index for label, index in found.items() if index is not None}
    stated = {label: number for label, number in numbers.items() if number is not None and number < classes}
    if not names.known and not mapping and len(stated) == len(labels):
        warnings.warn(
            "the model's classes have no names: those of the data set are taken by their numbers", stacklevel=3
        )
        return stated
    if not names.known and not mapping and len(missing) == len(labels) == classes:
        warnings.warn(
            f"the model's classes have no names: the {classes} labels are taken in alphabetical order, "
            f"{labels[0]} for output 0 to {labels[-1]} for output {classes - 1}",
            stacklevel=3,
        )
        return {label: index for index, label in enumerate(labels)}
    first = str(mapping.get(missing[0], missing[0]))
    near = difflib.get_close_matches(first, names.known, n=_SUGGESTIONS)
    raise ConfigError(
        f"{len(missing)} of {len(labels)} labels are no class of the model, such as {first!r}",
        hint=(f"did you mean {', '.join(near)}? " if near else "")
        + f"Name folders by index (0 to {classes - 1}), synset or class, or give a file that maps them: --mapping",
    )


class _Names:
    """The names that a model's classes go by."""

    def __init__(self, model: VisionTransformer) -> None:
        self.known = list(class_names(model) or ())
        self._indices: dict[str, int] = {}
        for name, index in self._spellings(model.config.num_classes):
            self._indices.setdefault(name, index)

    def index(self, label: int | str) -> int | None:
        """Return the class of a label: its number, a synset, or a name."""
        text = str(label)
        if text.isascii() and text.isdecimal():
            return int(text)
        return self._indices.get(_loose(text))

    def _spellings(self, classes: int) -> Iterator[tuple[str, int]]:
        """Yield names in the order in which they count: in full, synsets, then the first lemma if no other has it."""
        yield from ((_loose(name), index) for index, name in enumerate(self.known))
        for kind in LABEL_FILES:
            names = label_names(kind)
            if len(names) == classes and (not self.known or tuple(self.known) == names):
                yield from ((key, index) for index, key in enumerate(label_keys(kind)) if _SYNSET.fullmatch(key))
        first = [_loose(name.partition(",")[0]) for name in self.known]
        yield from ((name, index) for index, name in enumerate(first) if first.count(name) == 1)


def _loose(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
