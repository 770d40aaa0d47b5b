"""A shard of results, from what was computed to a file that counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_hub.errors import VitHubError
from vit_hub.running.engine import Done
from vit_hub.running.folder import Folder
from vit_hub.running.outputs import Rows, write_rows

__all__ = ["write_shard"]


def write_shard(folder: Folder, number: int, digest: str, parts: Sequence[Done]) -> tuple[int, int]:
    """Write the results of a shard and note that it is done; return how many rows and errors it has.

    Raises:
        VitHubError: values do not fit the dtype to store, or the folder cannot be written.
    """
    manifest = folder.manifest
    shape, store, to = tuple(manifest["shape"]), str(manifest["stored"]), str(manifest["format"])
    rows, errors = _rows_of(parts, shape, store)
    write_rows(folder.path, number, rows, shape, store, json.dumps(manifest), to)
    folder.finish(number, digest, len(rows.ids), errors)
    return len(rows.ids), len(errors)


def _rows_of(parts: Sequence[Done], shape: tuple[int, ...], store: str) -> tuple[Rows, list[dict[str, Any]]]:
    """Return the rows of batches in the dtype to store, and what stands in the list of errors.

    Raises:
        VitHubError: values do not fit the dtype.
    """
    kept = [done.items[index] for done in parts for index in done.kept]
    outputs = [row for done in parts for row in done.outputs]
    fixed = len({output.shape for output in outputs} | {shape}) == 1
    with np.errstate(over="ignore"):
        embeddings: Any = [output.astype(store, copy=False) for output in outputs]
    if store == "float16" and not all(np.isfinite(each).all() for each in embeddings):
        raise VitHubError("the outputs do not fit float16", hint="store float32, or normalize them")
    if fixed:
        embeddings = np.stack(embeddings) if embeddings else np.empty((0, *shape), store)
    rows = Rows(
        [item.id for item in kept],
        [item.path for item in kept],
        [item.label for item in kept],
        [size for done in parts for size in done.sizes],
        embeddings,
    )
    errors = [
        {"id": done.items[index].id, "path": done.items[index].path, "reason": reason}
        for done in parts
        for index, reason in sorted(done.errors.items())
    ]
    return rows, errors
