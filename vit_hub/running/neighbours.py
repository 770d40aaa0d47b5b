"""Uses of a folder of embeddings: nearest neighbours, k-NN accuracy, and a linear probe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from vit_hub.errors import ConfigError, VitHubError
from vit_hub.preprocessing.spec import Preprocessing
from vit_hub.running.evaluation import wilson
from vit_hub.running.folder import Folder, Loading, read_manifest
from vit_hub.running.models import runnable
from vit_hub.running.outputs import Rows, read_rows
from vit_hub.running.reading import Reader
from vit_hub.running.sources import Sources
from vit_hub.untrusted import usable_path

__all__ = ["Neighbour", "Score", "knn", "probe", "search"]

_TEMPERATURE = 0.07  # DINO's
_ROWS = 1024  # images compared at a time
_HELD_OUT = 0.2
_POOLED = ("embedding", "projection", "logits")


@dataclass(frozen=True)
class Neighbour:
    """An image of a folder, near another one.

    Attributes:
        id: in the folder.
        path: of the image.
        label: of the image, where it has one.
        similarity: cosine of the angle between both embeddings.
    """

    id: int
    path: str
    label: str | None
    similarity: float


@dataclass(frozen=True)
class Score:
    """Accuracy of a simple classifier on embeddings.

    Attributes:
        images: that were classified.
        reference: images that it was made of.
        classes: number of labels.
        top1: share of images whose label is the most probable one.
        top5: share of images with their label among the five most probable.
        interval: 95 % confidence interval of ``top1`` (Wilson's).
    """

    images: int
    reference: int
    classes: int
    top1: float
    top5: float
    interval: tuple[float, float]


def search(out: str | Path, image: str, *, k: int = 10, source: str | None = None, **options: Any) -> list[Neighbour]:
    """Return the images of a folder that are nearest to an image, nearest first; exact.

    The image is embedded as the folder's manifest says. One shard at a time is in memory.

    Args:
        out: a folder of :func:`vit_hub.embed`.
        image: a path or address.
        k: how many to return.
        source: the model, where it is not where it was.
        options: of :func:`vit_hub.load`: ``device``, ``offline``.

    Raises:
        ConfigError: these are other weights, or the folder has no pooled embeddings.
        VitHubError: the image or the model cannot be read, or the folder is damaged.
    """
    folder = _opened(out)
    query = torch.from_numpy(_embedded(folder.manifest, image, source, options))
    best: list[Neighbour] = []
    for rows in _parts(folder):
        similar = (_unit(rows.embeddings) @ query).tolist()
        found = zip(rows.ids, rows.paths, rows.labels, similar, strict=True)
        best = sorted([*best, *(Neighbour(*each) for each in found)], key=lambda each: (-each.similarity, each.id))[:k]
    return best


def knn(out: str | Path, test: str | Path | None = None, *, k: int = 20, temperature: float = _TEMPERATURE) -> Score:
    """Return the accuracy of weighted nearest neighbours, as DINO measures it (arXiv 2104.14294, appendix F.1).

    Each of the ``k`` nearest images votes for its label with exp(cosine / temperature).

    Args:
        out: a folder of :func:`vit_hub.embed` with labels.
        test: another one, of the same model, whose images are classified; None: each image by all others.
        k: number of neighbours.
        temperature: how much nearer ones count more.

    Raises:
        ConfigError: an image has no label, or the folders are of different models.
        VitHubError: a folder is damaged.
    """
    reference, labels, names = _labelled(_opened(out), {})
    if k < 1 or k > len(reference) - (test is None):
        raise ConfigError(f"k={k}: there are {len(reference)} images with labels", hint="take fewer neighbours")
    images, truth = reference, labels
    if test is not None:
        images, truth, names = _labelled(_same(_opened(test), out), names)
    right1 = right5 = 0
    for start in range(0, len(images), _ROWS):
        part = slice(start, start + _ROWS)
        similar = images[part] @ reference.T
        if test is None:
            own = torch.arange(len(similar))
            similar[own, own + start] = -math.inf
        near = similar.topk(k, dim=1)
        votes = torch.zeros(len(similar), len(names), dtype=torch.float64)
        votes.scatter_add_(1, labels[near.indices], (near.values.double() / temperature).exp())
        hits = votes.argsort(dim=1, descending=True, stable=True)[:, :5] == truth[part, None]
        right1, right5 = right1 + int(hits[:, 0].sum()), right5 + int(hits.sum())
    return _score(right1, right5, len(images), len(reference), len(names))


def probe(out: str | Path, test: str | Path | None = None, *, strength: float = 1.0, seed: int = 0) -> Score:
    """Return the accuracy of a logistic regression on embeddings: a linear probe.

    Features are standardized; scikit-learn's L-BFGS finds the weights.

    Args:
        out: a folder of :func:`vit_hub.embed` with labels.
        test: another one, of the same model, whose images are classified; None: a fifth of the images of each label.
        strength: inverse of the regularization, scikit-learn's ``C``.
        seed: of the division where there is no ``test``.

    Raises:
        ConfigError: an image has no label, there are too few, the folders are of different models, or scikit-learn is
            not installed.
        VitHubError: a folder is damaged.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ConfigError(
            "a probe needs scikit-learn, which is not installed", hint="pip install 'vit-hub[embed]'"
        ) from error
    features, labels, names = _labelled(_opened(out), {}, normalize=False)
    given, truth = features.numpy(), labels.numpy()
    if test is not None:
        others, expected, names = _labelled(_same(_opened(test), out), names, normalize=False)
        images, wanted = others.numpy(), expected.numpy()
    else:
        counts = np.bincount(truth)
        if len(counts) < 2 or counts.min() < 2 or len(truth) * _HELD_OUT < len(counts):
            raise ConfigError(
                f"{len(truth)} images of {len(counts)} labels are too few to hold some of each out",
                hint="give a second folder: --test",
            )
        given, images, truth, wanted = train_test_split(
            given, truth, test_size=_HELD_OUT, random_state=seed, stratify=truth
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    model.fit(given, truth)
    order = model.classes_[np.argsort(-model.predict_proba(images), axis=1, kind="stable")[:, :5]]
    hits = order == wanted[:, None]
    return _score(int(hits[:, 0].sum()), int(hits.sum()), len(images), len(given), len(names))


def _score(right1: int, right5: int, images: int, reference: int, classes: int) -> Score:
    return Score(images, reference, classes, right1 / images, right5 / images, wilson(right1, images))


def _opened(out: str | Path) -> Folder:
    """Return a folder of pooled embeddings; warn if shards are missing.

    Raises:
        ConfigError: it has other outputs.
        VitHubError: it has no manifest, or no shard is finished.
    """
    path = usable_path(out)
    folder = Folder(path, read_manifest(path))
    if folder.manifest.get("what") not in _POOLED:
        raise ConfigError(f"{path}: holds {folder.manifest.get('what')}, not one embedding an image")
    if not folder.numbers():
        raise VitHubError(f"{path}: no shard is finished", hint="run `vit-hub embed` again")
    if not folder.complete:
        warnings.warn(f"{path}: some shards are missing: run `vit-hub embed` again to compute them", stacklevel=3)
    return folder


def _same(test: Folder, out: str | Path) -> Folder:
    """Return a folder if its embeddings can be compared with those of another one.

    Raises:
        ConfigError: they are of other weights or settings.
    """
    there = read_manifest(Path(out))
    for name in ("weights.sha256", "what", "preprocessing", "normalize"):
        outer, _, inner = name.partition(".")
        one, other = (data[outer][inner] if inner else data[outer] for data in (there, test.manifest))
        if one != other:
            raise ConfigError(f"{test.path}: {name} differs from that of {out}: {other} instead of {one}")
    return test


def _parts(folder: Folder) -> Iterator[Rows]:
    for rows in read_rows(folder.path, str(folder.manifest["format"]), folder.numbers()):
        if list(rows.embeddings.shape[1:]) != folder.manifest["shape"]:
            raise VitHubError(
                f"{folder.path}: a shard has embeddings of {list(rows.embeddings.shape[1:])} values, its manifest says "
                f"{folder.manifest['shape']}",
                hint="run `vit-hub embed` again",
            )
        yield rows


def _unit(embeddings: npt.NDArray[Any]) -> torch.Tensor:
    return F.normalize(torch.from_numpy(np.array(embeddings, np.float32)), dim=-1)


def _labelled(
    folder: Folder, names: Mapping[str, int], *, normalize: bool = True
) -> tuple[torch.Tensor, torch.Tensor, dict[str, int]]:
    """Return embeddings [N, D], labels as numbers [N], and the numbers of labels, those of ``names`` first.

    Raises:
        ConfigError: an image has no label.
    """
    found, parts, labels = dict(names), [], []
    for rows in _parts(folder):
        if None in rows.labels:
            path = rows.paths[rows.labels.index(None)]
            raise ConfigError(
                f"{folder.path}: {path} has no label",
                hint="embed a folder with a subfolder for each class, or a parquet file with a column of labels",
            )
        labels += [found.setdefault(str(label), len(found)) for label in rows.labels]
        parts.append(_unit(rows.embeddings) if normalize else torch.from_numpy(np.array(rows.embeddings, np.float32)))
    if not labels:
        raise ConfigError(f"{folder.path}: holds no rows")
    return torch.cat(parts), torch.tensor(labels), found


def _embedded(
    manifest: Mapping[str, Any], image: str, source: str | None, options: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """Return the embedding of one image, of length 1, computed as those of a folder were."""
    name = source or manifest["model"]
    if not name:
        raise ConfigError("the folder was made by a model in memory", hint="name its file: --model")
    loading = {key: value for key, value in manifest["options"].items() if key in Loading.__annotations__}
    loading |= {"dtype": manifest["dtype"], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were given when the folder was made
        model = runnable(name, max_patches=manifest["max_patches"], **loading)
    if model.weights()["sha256"] != manifest["weights"]["sha256"]:
        raise ConfigError(
            f"{name}: not the weights that the folder was made with, whose sha256 is {manifest['weights']['sha256']}",
            hint="name the right file: --model",
        )
    reader = Reader(Preprocessing.from_dict(manifest["preprocessing"]), model.native, manifest["fast_decode"])
    computation = model.computation(manifest["what"], batch_size=1)
    items = list(Sources.of([image]).items())[:1]
    read = reader.batch(items, reader.read(items))
    if read.errors:
        raise VitHubError(f"{image}: {read.errors[0]}")
    found = computation.fetch(computation.submit(read.images))[0]
    return np.asarray(_unit(found[None])[0].numpy(), np.float32)
