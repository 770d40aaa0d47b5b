"""Embeddings of many images in a folder of files: complete, resumable, and with a record of what they are."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError
from vit_hub.exporting.automatic import AUTO
from vit_hub.model.vit import VisionTransformer
from vit_hub.progress import on_terminal, step_bar
from vit_hub.running.embedder import Embedder
from vit_hub.running.engine import Done, run
from vit_hub.running.folder import Folder, Loading, begun_in, digest_of, other_images
from vit_hub.running.models import Runnable, runnable
from vit_hub.running.outputs import check_format
from vit_hub.running.ray_engine import embed_on_ray
from vit_hub.running.reading import Reader
from vit_hub.running.shards import write_shard
from vit_hub.running.sources import Item, Sources, batches_of, writable
from vit_hub.untrusted import usable_path
from vit_hub.version import __version__

__all__ = ["EmbeddingReport", "embed", "manifest_of", "share_of_run"]

_SHARD_BYTES = 32 << 20
_SHARD_IMAGES = 1024
_STORED = ("float32", "float16")
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EmbeddingReport:
    """Outcome of a run.

    Attributes:
        path: the folder.
        images: number of images of the whole run.
        rows: rows that this process wrote.
        errors: images without a row among those that this process tried.
        shards: shards of the whole run.
        skipped: those of them that were done before.
        complete: no shard is missing.
    """

    path: Path
    images: int
    rows: int
    errors: int
    shards: int
    skipped: int
    complete: bool


def embed(
    source: str | os.PathLike[str] | Checkpoint | VisionTransformer,
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    what: str = "embedding",
    normalize: bool = False,
    to: str = "parquet",
    store: str = "float32",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: str | None = None,
    runtime: str | None = None,
    shard_size: int | None = None,
    share: tuple[int, int] | None = None,
    retry_errors: bool = False,
    max_patches: int | None = None,
    fast_decode: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    engine: str = "local",
    actors: int | None = None,
    progress: bool = False,
    **options: Any,
) -> EmbeddingReport:
    """Compute embeddings of images and write them to a folder, each image once.

    The folder has shards of a fixed number of images, which appear complete or not at all. A run that ended early goes
    on when it is started again: only missing shards are computed. ``_manifest.json`` names weights, preprocessing and
    settings; other ones are refused. Images that cannot be read are listed in ``_errors.jsonl``.

    Args:
        source: as for :func:`vit_hub.load`, or a model.
        images: files, folders, patterns, ``http(s)`` addresses, lists (``.txt``, ``-``: stdin), tar shards, parquet
            files.
        out: the folder to write.
        what: ``embedding`` (pooled), ``logits``, ``projection`` (CLIP's), ``tokens`` (all, before pooling) or
            ``block:N``.
        normalize: divide embeddings by their length.
        to: ``parquet``, ``npy``, ``safetensors`` or ``lance``.
        store: dtype in the files, ``float32`` or ``float16``.
        batch_size: images computed at a time; None: chosen for the device.
        workers: processes that read and preprocess; 0: none, in turn with computing; None: chosen for the device.
        compile: a mode of torch.compile, such as ``default``; None: not compiled.
        runtime: what computes: ``torch`` (None), ``onnxruntime``, ``openvino``, or ``auto``: the fastest of them here.
        shard_size: images in a shard; None: 1024, or fewer where their outputs are large.
        share: (rank, number of processes): compute every so-manieth shard only; None: as torchrun or SLURM says.
        retry_errors: compute shards with errors again.
        max_patches: let each image keep its aspect ratio, with so many patches at most.
        fast_decode: let JPEG files be shrunk while they are decoded; pixels differ a little.
        preprocessing: fields that differ from the checkpoint's own preprocessing, such as ``{"mean": 0.5}``.
        image_column: the column of parquet files with images; None: found by its type.
        label_column: that with classes; None: found by its name.
        engine: ``local``: this process and its workers; ``ray``: a cluster of Ray, which sees the images, the weights
            and the folder under the same paths.
        actors: of Ray: how many processes have the model; None: one for each GPU, or core.
        progress: show progress bars on a terminal.
        options: of :func:`vit_hub.load`: ``device``, ``dtype``, ``image_size``, ``overrides``, ...

    Raises:
        ConfigError: the folder was begun with other weights, settings or images; or the model has no such output.
        VitHubError: the model cannot be loaded, the images are not there, or the folder cannot be written.
    """
    if store not in _STORED:
        raise ConfigError(f"store must be one of {', '.join(_STORED)}, not {store!r}")
    if engine not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if engine == "ray" and not isinstance(source, (str, os.PathLike)):
        raise ConfigError("a model in memory cannot be sent to Ray's processes", hint="give its name or path")
    if shard_size is not None and shard_size < 1:
        raise ConfigError(f"shard_size must be at least 1, not {shard_size!r}")
    check_format(to, varying=max_patches is not None and (what == "tokens" or what.startswith("block")))
    rank, world = share_of_run() if share is None else share
    sources = Sources.of(images, image_column, label_column)
    model = runnable(source, preprocessing=preprocessing, max_patches=max_patches, progress=progress, **options)
    if runtime == AUTO:
        runtime = begun_in(Path(out)) or AUTO
    computation = model.computation(what, normalize=normalize, compile=compile, batch_size=batch_size, runtime=runtime)
    reader = Reader(model.preprocessing, model.native, fast_decode)
    shape = computation.shape()
    if shard_size is None:
        shard_size = automatic_shard_size(shape, store)
    settings = {"what": what, "normalize": normalize, "format": to, "stored": store, "shard_size": shard_size}
    settings |= {"max_patches": max_patches, "fast_decode": fast_decode, "runtime": computation.runtime}
    manifest = manifest_of(model, settings, shape, sources, options)
    folder = Folder.prepare(usable_path(out), manifest)
    task = _Run(folder, sources, shard_size, (rank, world), retry_errors)
    total = sources.count() if progress and on_terminal() else None
    with step_bar("embedding", total, show=progress) as advance, task.writer:
        if engine == "ray":
            name = os.path.abspath(model.source) if Path(model.source).exists() else model.source  # noqa: PTH100
            embedder = Embedder(
                name,
                what=what,
                normalize=normalize,
                batch_size=computation.batch_size,
                threads=workers or 1,
                compile=compile,
                runtime=computation.runtime,
                fast_decode=fast_decode,
                preprocessing=preprocessing,
                max_patches=max_patches,
                **options,
            )
            del computation, reader, model
            for count, rows, errors in embed_on_ray(embedder, folder, task.missing(advance), actors=actors):
                task.rows, task.errors = task.rows + rows, task.errors + errors
                advance(count)
            return task.conclude()
        for done in run(task.batches(computation.batch_size, advance), reader, computation, workers=workers):
            task.add(done)
            advance(len(done.items))
        return task.conclude()


def automatic_shard_size(shape: tuple[int, ...], store: str) -> int:
    """Return how many images make a shard: 1024, or what fills 32 MiB, in a power of two."""
    bytes_each = math.prod(shape) * np.dtype(store).itemsize
    return min(_SHARD_IMAGES, 1 << max(0, (_SHARD_BYTES // max(1, bytes_each)).bit_length() - 1))


def manifest_of(
    model: Runnable, settings: Mapping[str, Any], shape: tuple[int, ...], sources: Sources, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a folder says of its rows, JSON-ready."""
    config = model.model.config
    passport = model.model.passport
    plain = {
        name: writable(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else value
        for name, value in options.items()
    }
    return {
        "version": __version__,
        "weights": model.weights(),
        "config": config.to_dict(),
        "preprocessing": model.preprocessing.to_dict(),
        **settings,
        "pooling": config.pool,
        "dtype": str(model.model.patch_embed.proj.weight.dtype).removeprefix("torch."),
        "shape": list(shape),
        "model": writable(model.source),
        "options": {
            name: value for name, value in plain.items() if name in Loading.__annotations__ and value is not None
        },
        "images": [writable(name) for name in sources.given[:_LISTED]],
        "passport": passport.to_dict() if passport is not None else None,
    }


# How many of the sources are listed.
_LISTED = 100


def share_of_run() -> tuple[int, int]:
    """Return the rank of this process and the number of processes: torchrun's, else SLURM's, else (0, 1).

    Raises:
        ConfigError: the environment contradicts itself.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world in os.environ:
            try:
                found = int(os.environ[rank]), int(os.environ[world])
            except ValueError:
                found = (0, 0)
            if not 0 <= found[0] < found[1]:
                raise ConfigError(f"{rank}={os.environ[rank]} and {world}={os.environ[world]} do not fit together")
            return found
    return 0, 1


@dataclass
class _Shard:
    """A shard whose results come in.

    Attributes:
        digest: of its images.
        waiting: images without a result so far.
        parts: results.
    """

    digest: str
    waiting: int
    parts: list[Done] = field(default_factory=list)


@dataclass
class _Run:
    """The work that is left, and what is made of it."""

    folder: Folder
    sources: Sources
    shard_size: int
    share: tuple[int, int]
    retry_errors: bool
    open: dict[int, _Shard] = field(default_factory=dict)
    images: int = 0
    shards: int = 0
    skipped: int = 0
    rows: int = 0
    errors: int = 0
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    writing: Future[None] | None = None

    def missing(self, advance: Callable[[int], None]) -> Iterator[tuple[int, str, list[Item]]]:
        """Yield the number, the digest and the images of the shards that are missing.

        Raises:
            ConfigError: a shard that is done was of other images.
        """
        rank, world = self.share
        for number, shard in enumerate(batches_of(self.sources.items(), self.shard_size)):
            self.shards, self.images = number + 1, self.images + len(shard)
            if number % world != rank:
                advance(len(shard))
                continue
            digest, record = digest_of(shard), self.folder.record(number)
            if record is not None and record["digest"] != digest:
                raise other_images(self.folder.path, f"those of shard {number}, {shard[0].path} and on, have changed")
            if record is not None and not (self.retry_errors and record["errors"]):
                self.skipped += 1
                self.errors += len(record["errors"])
                advance(len(shard))
                continue
            yield number, digest, shard

    def batches(self, size: int, advance: Callable[[int], None]) -> Iterator[list[Item]]:
        """Yield batches of the shards that are missing; none reaches over the end of a shard."""
        for number, digest, shard in self.missing(advance):
            self.open[number] = _Shard(digest, len(shard))
            yield from batches_of(shard, size)

    def add(self, done: Done) -> None:
        """Take the results of a batch; write its shard when it is complete, while the next one is computed."""
        number = done.items[0].id // self.shard_size
        shard = self.open[number]
        shard.parts.append(done)
        shard.waiting -= len(done.items)
        if not shard.waiting:
            del self.open[number]
            if self.writing is not None:
                self.writing.result()
            self.writing = self.writer.submit(self._write, number, shard)

    def conclude(self) -> EmbeddingReport:
        """Wait for what is being written, and sum up."""
        if self.writing is not None:
            self.writing.result()
        complete = self.folder.conclude(self.shards, self.images)
        return EmbeddingReport(
            self.folder.path, self.images, self.rows, self.errors, self.shards, self.skipped, complete
        )

    def _write(self, number: int, shard: _Shard) -> None:
        rows, errors = write_shard(self.folder, number, shard.digest, shard.parts)
        self.rows += rows
        self.errors += errors
