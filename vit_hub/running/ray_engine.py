"""Shards computed by a cluster of Ray: Ray Data's actor pool, each actor with a model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vit_hub.errors import ConfigError
from vit_hub.running.embedder import Embedder
from vit_hub.running.folder import Folder
from vit_hub.running.shards import write_shard
from vit_hub.running.sources import Item, batches_of

__all__ = ["ShardWorker", "embed_on_ray"]


class ShardWorker:
    """Work of an actor: compute the shards of a batch and write them where all processes see them.

    It can be done again at any time: a shard takes its own place.

    Args:
        embedder: the model.
        folder: where shards are written.
    """

    def __init__(self, embedder: Embedder, folder: Folder) -> None:
        self._embedder, self._folder = embedder, folder

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[int]]:
        """Return how many ``images``, ``rows`` and ``errors`` shards have.

        Raises:
            ConfigError: the weights are not those of the driver.
        """
        sha256, wanted = self._embedder.weights()["sha256"], self._folder.manifest["weights"]["sha256"]
        if sha256 != wanted:
            raise ConfigError(f"{self._embedder.source}: its sha256 here is {sha256}, where the run began {wanted}")
        found: dict[str, list[int]] = {"images": [], "rows": [], "errors": []}
        for number, digest, packed in zip(batch["number"], batch["digest"], batch["items"], strict=True):
            items: list[Item] = pickle.loads(packed)
            parts = [self._embedder.results(chosen) for chosen in batches_of(items, self._embedder.batch_size)]
            rows, errors = write_shard(self._folder, int(number), str(digest), parts)
            for name, count in (("images", len(items)), ("rows", rows), ("errors", errors)):
                found[name].append(count)
        return found


def embed_on_ray(
    embedder: Embedder, folder: Folder, shards: Iterable[tuple[int, str, list[Item]]], *, actors: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Compute shards on a cluster of Ray, and yield how many images, rows and errors each has, as they are done.

    The cluster is the one that this process is connected to, else that of ``RAY_ADDRESS``, else one of this machine's
    cores. A shard whose actor dies is computed again by another one.

    Args:
        embedder: the model; each actor loads it.
        folder: where shards are written; all machines see it under its path.
        shards: number, digest and images.
        actors: how many; None: one for each GPU if the model is on one, else for each core.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "engine ray needs Ray, which is not installed", hint="pip install 'vit-hub[ray]'; or leave out --engine"
        ) from error
    rows = [
        {"number": number, "digest": digest, "items": pickle.dumps([_absolute(item) for item in items])}
        for number, digest, items in shards
    ]
    if not rows:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="WARNING")
    on_gpu = str(embedder.device).startswith("cuda")
    available = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1))
    size = min(actors or max(1, available), len(rows))
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardWorker,
        fn_constructor_args=(embedder, replace(folder, path=folder.path.absolute())),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size),
        num_gpus=1 if on_gpu else 0,
    )
    for row in done.iter_rows():
        yield int(row["images"]), int(row["rows"]), int(row["errors"])


def _absolute(item: Item) -> Item:
    if item.place.kind in ("url", "nowhere"):
        return item
    return replace(item, place=replace(item.place, file=os.path.abspath(item.place.file)))  # noqa: PTH100
