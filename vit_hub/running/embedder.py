"""A model as a function from columns to columns, for Ray Data, Daft, Spark and Hugging Face's datasets."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.running.computing import Computation
from vit_hub.running.engine import computed
from vit_hub.running.models import runnable
from vit_hub.running.reading import Reader
from vit_hub.running.sources import Item, Place

__all__ = ["Embedder"]


class Embedder:
    """A callable that adds embeddings to a batch of images: a dict of columns in, a dict of columns out.

    It can be pickled and sent to other processes; each loads the model when it is first called.

    Args:
        source: as for :func:`vit_hub.load`: a name or path that all processes find.
        column: the column with images: bytes of files, paths, arrays, Pillow images, or Hugging Face's
            ``{"bytes", "path"}``. It is left out of the result.
        what: ``embedding``, ``logits``, ``projection``, ``tokens`` or ``block:N``.
        normalize: divide embeddings by their length.
        batch_size: images computed at a time; None: chosen for the device.
        errors: what becomes of images that cannot be read: ``raise``, or ``null``: their row is NaN, and the column
            ``error`` says why.
        fast_decode: let JPEG files be shrunk while they are decoded; pixels differ a little.
        preprocessing: fields that differ from the checkpoint's own preprocessing.
        options: of :func:`vit_hub.load`: ``device``, ``dtype``, ``image_size``, ...

    Raises:
        ConfigError: ``errors`` is neither, or the source is an opened checkpoint, which cannot be sent.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        column: str = "image",
        what: str = "embedding",
        normalize: bool = False,
        batch_size: int | None = None,
        errors: str = "raise",
        fast_decode: bool = False,
        preprocessing: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if errors not in ("raise", "null"):
            raise ConfigError(f"errors must be raise or null, not {errors!r}")
        if isinstance(source, Checkpoint):
            raise ConfigError("an opened checkpoint cannot be sent to other processes", hint="give its path")
        self.source, self.column, self.errors = os.fspath(source), column, errors
        self._settings: dict[str, Any] = {"what": what, "normalize": normalize, "batch_size": batch_size}
        self._fast_decode = fast_decode
        self._options: dict[str, Any] = {"preprocessing": preprocessing, **options}
        self._ready: tuple[Reader, Computation, tuple[int, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ready": None}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the columns of a batch without the images, with ``width``, ``height`` and ``embedding`` [N, ...].

        Raises:
            VitHubError: there is no such column, the model cannot be loaded, or an image cannot be read and ``errors``
                is ``raise``.
        """
        if self.column not in batch:
            raise ConfigError(
                f"the batch has no column {self.column!r}", hint=f"Embedder(..., column=); it has {', '.join(batch)}"
            )
        reader, computation, shape = self._prepared()
        given = list(batch[self.column])
        names = [str(path) for path in batch["path"]] if "path" in batch else [f"image {i}" for i in range(len(given))]
        items = [Item(index, name, None, Place("nowhere", ""), name) for index, name in enumerate(names)]
        embeddings = np.full((len(given), *shape), np.nan, np.float32)
        sizes: npt.NDArray[np.int32] = np.zeros((len(given), 2), np.int32)
        reasons: list[str | None] = [None] * len(given)
        for start in range(0, len(given), computation.batch_size):
            chosen = slice(start, start + computation.batch_size)
            read = reader.batch(items[chosen], [_image(value) for value in given[chosen]])
            done = computed(read, computation.submit(read.images) if len(read.images) else None, computation)
            for index, reason in done.errors.items():
                if self.errors == "raise":
                    raise VitHubError(
                        f"{done.items[index].name}: {reason}", hint="Embedder(..., errors='null') goes on"
                    )
                reasons[start + index] = reason
            kept = [start + index for index in done.kept]
            if kept:
                embeddings[kept], sizes[kept] = done.outputs, done.sizes
        found: dict[str, Any] = {name: column for name, column in batch.items() if name != self.column}
        found |= {"width": sizes[:, 0], "height": sizes[:, 1], "embedding": embeddings}
        return found if self.errors == "raise" else {**found, "error": np.array(reasons, object)}

    def _prepared(self) -> tuple[Reader, Computation, tuple[int, ...]]:
        if self._ready is None:
            model = runnable(self.source, **self._options)
            computation = Computation(model.model, **self._settings)
            self._ready = Reader(model.preprocessing, None, self._fast_decode), computation, computation.shape()
        return self._ready


def _image(value: Any) -> Any:
    """Return what a column holds as something that can be read."""
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    return value if isinstance(value, bytes) else io.BytesIO(value) if isinstance(value, memoryview) else value
