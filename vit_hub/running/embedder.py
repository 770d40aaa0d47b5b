"""A model as a function from columns to columns, for Ray Data, Daft, Spark and Hugging Face's datasets."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vit_hub.errors import ConfigError, VitHubError
from vit_hub.running.computing import Computation
from vit_hub.running.engine import Done, computed
from vit_hub.running.models import runnable
from vit_hub.running.reading import Reader
from vit_hub.running.sources import Item, Place

__all__ = ["Embedder"]

_COLUMNS = ("image", "img", "bytes", "path")


class Embedder:
    """A callable that adds embeddings to a batch of images: a dict of columns in, a dict of columns out.

    It can be pickled and sent to other processes; each loads the model when it is first called.

    Args:
        source: as for :func:`vit_hub.load`: a name or path that all processes find.
        column: the column with images: bytes of files, paths, arrays, Pillow images, or Hugging Face's
            ``{"bytes", "path"}``; None: ``image``, ``img``, ``bytes`` or ``path``, the first of them that is there. It
            is left out of the result, unless it is ``path``.
        what: ``embedding``, ``logits``, ``projection``, ``tokens`` or ``block:N``.
        normalize: divide embeddings by their length.
        batch_size: images computed at a time; None: chosen for the device.
        threads: that read and preprocess images.
        compile: a mode of torch.compile; None: not compiled.
        runtime: what computes: ``torch`` (None), ``onnxruntime``, ``openvino``, or ``auto``: the fastest of them here.
        errors: what becomes of images that cannot be read: ``raise``, or ``null``: their row is NaN, and the column
            ``error`` says why.
        fast_decode: let JPEG files be shrunk while they are decoded; pixels differ a little.
        preprocessing: fields that differ from the checkpoint's own preprocessing.
        max_patches: let each image keep its aspect ratio, with so many patches at most.
        options: of :func:`vit_hub.load`: ``device``, ``dtype``, ``image_size``, ...

    Raises:
        ConfigError: ``errors`` is neither, or the source is an opened checkpoint, which cannot be sent.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        column: str | None = None,
        what: str = "embedding",
        normalize: bool = False,
        batch_size: int | None = None,
        threads: int = 1,
        compile: str | None = None,
        runtime: str | None = None,
        errors: str = "raise",
        fast_decode: bool = False,
        preprocessing: Mapping[str, Any] | None = None,
        max_patches: int | None = None,
        **options: Any,
    ) -> None:
        if errors not in ("raise", "null"):
            raise ConfigError(f"errors must be raise or null, not {errors!r}")
        if not isinstance(source, (str, os.PathLike)):
            raise ConfigError(f"a {type(source).__name__} cannot be sent to other processes", hint="give its path")
        self.source, self.column, self.errors = os.fspath(source), column, errors
        self.device = options.get("device") or "cpu"
        self._computing: dict[str, Any] = {
            "what": what,
            "normalize": normalize,
            "batch_size": batch_size,
            "compile": compile,
            "runtime": runtime,
        }
        self._loading: dict[str, Any] = {"preprocessing": preprocessing, "max_patches": max_patches, **options}
        self._fast_decode, self._threads = fast_decode, threads
        self._ready: _Ready | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ready": None}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the columns of a batch without the images, with ``width``, ``height`` and ``embedding`` [N, ...].

        Raises:
            VitHubError: there is no such column, the model cannot be loaded, or an image cannot be read and ``errors``
                is ``raise``.
        """
        column = self.column or next((name for name in _COLUMNS if name in batch), _COLUMNS[0])
        if column not in batch:
            raise ConfigError(
                f"the batch has no column {column!r}", hint=f"Embedder(..., column=); it has {', '.join(batch)}"
            )
        given = list(batch[column])
        names = [str(path) for path in batch["path"]] if "path" in batch else [f"image {i}" for i in range(len(given))]
        items = [Item(index, name, None, Place("nowhere", ""), name) for index, name in enumerate(names)]
        embeddings: list[Any] = [np.full(self._prepared().shape, np.nan, np.float32)] * len(given)
        sizes = [(0, 0)] * len(given)
        reasons: list[str | None] = [None] * len(given)
        for start in range(0, len(given), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            done = self.results(items[chosen], [_image(value) for value in given[chosen]])
            for index, reason in done.errors.items():
                if self.errors == "raise":
                    raise VitHubError(
                        f"{done.items[index].name}: {reason}", hint="Embedder(..., errors='null') goes on"
                    )
                reasons[start + index] = reason
            for index, output, size in zip(done.kept, done.outputs, done.sizes, strict=True):
                embeddings[start + index], sizes[start + index] = output, size
        found: dict[str, Any] = {name: values for name, values in batch.items() if name == "path" or name != column}
        about: npt.NDArray[np.int32] = np.array(sizes, np.int32).reshape(-1, 2)
        found |= {
            "width": about[:, 0],
            "height": about[:, 1],
            "embedding": _stacked(embeddings, self._prepared().shape),
        }
        return found if self.errors == "raise" else {**found, "error": np.array(reasons, object)}

    @property
    def batch_size(self) -> int:
        """Images computed at a time."""
        return self._prepared().computation.batch_size

    def weights(self) -> dict[str, Any]:
        """Return the identity of the weights, as a manifest has it."""
        return self._prepared().weights

    def results(self, items: Sequence[Item], sources: Sequence[Any] | None = None) -> Done:
        """Compute one batch: images, as they are or where their items say that they are."""
        ready = self._prepared()
        read = ready.reader.batch(items, ready.reader.read(items, sources))
        return computed(read, ready.computation.submit(read.images) if len(read.images) else None, ready.computation)

    def _prepared(self) -> _Ready:
        if self._ready is None:
            model = runnable(self.source, **self._loading)
            computation = model.computation(**self._computing)
            reader = Reader(model.preprocessing, model.native, self._fast_decode, self._threads)
            self._ready = _Ready(reader, computation, computation.shape(), model.weights())
        return self._ready


class _Ready(NamedTuple):
    """A model that is loaded, and the shape of its output for one image."""

    reader: Reader
    computation: Computation
    shape: tuple[int, ...]
    weights: dict[str, Any]


def _stacked(embeddings: Sequence[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return [N, ...], or N objects if they differ in shape."""
    if len({embedding.shape for embedding in embeddings}) <= 1:
        return np.stack(embeddings) if embeddings else np.empty((0, *shape), np.float32)
    found = np.empty(len(embeddings), object)
    found[:] = list(embeddings)
    return found


def _image(value: Any) -> Any:
    """Return what a column holds as something that can be read."""
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    return value if isinstance(value, bytes) else io.BytesIO(value) if isinstance(value, memoryview) else value
