"""Files of results: a shard of rows as parquet, .npy, safetensors or Lance, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from vit_hub.converters.containers import atomic_path
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.running.parquet import needs_pyarrow
from vit_hub.untrusted import conform, gate, parse_json, quoted

__all__ = ["FORMATS", "MANIFEST_KEY", "Rows", "check_format", "read_rows", "table", "write_rows"]

MANIFEST_KEY = "vit_hub.manifest"
_LANCE = "embeddings.lance"
_NPY_HEADER = 1000  # characters, of which numpy's parser makes Python objects
_COLUMNS = ("id", "path", "label", "width", "height")


class _Columns(TypedDict):
    id: list[int]
    path: list[str]
    label: list[str | None]
    width: list[int]
    height: list[int]


@dataclass(frozen=True)
class Rows:
    """Results of images that could be read.

    Attributes:
        ids: positions among all images of the run.
        paths: what the images are called.
        labels: their classes; None where none is stated.
        sizes: (width, height) in pixels.
        embeddings: [N, ...] float32 or float16, or one array a row if their shapes differ.
    """

    ids: Sequence[int]
    paths: Sequence[str]
    labels: Sequence[str | None]
    sizes: Sequence[tuple[int, int]]
    embeddings: Any

    def columns(self) -> dict[str, list[Any]]:
        """Return all but the embeddings."""
        widths, heights = [size[0] for size in self.sizes], [size[1] for size in self.sizes]
        found = (self.ids, self.paths, self.labels, widths, heights)
        return {name: list(column) for name, column in zip(_COLUMNS, found, strict=True)}


def table(rows: Rows, shape: Sequence[int], dtype: str, manifest: str = "") -> Any:
    """Return rows as a pyarrow table.

    Args:
        rows: results.
        shape: of an embedding; of the last axes alone where the rows differ in the first.
        dtype: ``float32`` or ``float16``.
        manifest: JSON that goes into the schema.
    """
    import pyarrow

    columns = rows.columns()
    kinds = (pyarrow.int64(), pyarrow.string(), pyarrow.string(), pyarrow.int32(), pyarrow.int32())
    arrays = [pyarrow.array(columns[name], kind) for name, kind in zip(_COLUMNS, kinds, strict=True)]
    parts = rows.embeddings
    if isinstance(parts, np.ndarray):
        flat = parts.reshape(-1)
    else:
        flat = np.concatenate([part.reshape(-1) for part in parts]) if parts else np.empty(0, dtype)
    found = pyarrow.array(np.ascontiguousarray(flat, dtype))
    for side in reversed(shape if isinstance(parts, np.ndarray) else shape[-1:]):
        found = pyarrow.FixedSizeListArray.from_arrays(found, side)
    if not isinstance(parts, np.ndarray):
        offsets = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
        found = pyarrow.ListArray.from_arrays(pyarrow.array(offsets), found)
    metadata = {MANIFEST_KEY: manifest} if manifest else None
    schema = pyarrow.schema(
        [*map(pyarrow.field, _COLUMNS, kinds), pyarrow.field("embedding", found.type)], metadata=metadata
    )
    return pyarrow.Table.from_arrays([*arrays, found], schema=schema)


def check_format(name: str, *, varying: bool) -> None:
    """Refuse a format that cannot be written here.

    Raises:
        ConfigError: there is no such format, its package is not installed, or it cannot hold rows of several shapes.
    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {quoted(name)} for embeddings", hint=f"one of {', '.join(FORMATS)}")
    if varying and name not in ("parquet", "lance"):
        raise ConfigError(f"{name} cannot hold outputs whose shapes differ", hint="write parquet")
    if name in ("parquet", "lance"):
        needs_pyarrow()
    if name == "lance":
        _needs_lance()


def write_rows(out: Path, number: int, rows: Rows, shape: Sequence[int], dtype: str, manifest: str, to: str) -> None:
    """Write a shard; it appears complete or not at all, and takes the place of one of the same number."""
    FORMATS[to].write(out, number, rows, shape, dtype, manifest)


def read_rows(out: Path, to: str, numbers: Sequence[int]) -> Iterator[Rows]:
    """Yield the rows of a folder, shard by shard.

    Raises:
        VitHubError: a shard is missing or damaged.
    """
    hint = "delete its record, _shards/part-NNNNN.json, and run `vit-hub embed` again"
    for number in numbers:
        what = f"shard {number} cannot be read"
        try:
            with gate(out, what, hint):
                found = FORMATS[to].read(out, number)
                _check(found)
        except OSError as error:
            raise VitHubError(f"{out}: {what}: {error.strerror or error}", hint=hint) from error
        yield found


def _check(rows: Rows) -> None:
    """Compare the columns of rows with their types, and their lengths with each other.

    Raises:
        ValueError: they are not as they were written.
    """
    columns = rows.columns()
    conform(columns, _Columns, "it")
    lengths = {name: len(column) for name, column in columns.items()}
    if len({*lengths.values()}) > 1:
        raise ValueError(f"its columns differ in length: {lengths}")
    if rows.embeddings.ndim < 2 or rows.embeddings.dtype.kind != "f" or len(rows.embeddings) != len(rows.ids):
        raise ValueError(f"its embeddings are {rows.embeddings.dtype} {list(rows.embeddings.shape)}")


def _name(number: int, suffix: str) -> str:
    return f"part-{number:05d}.{suffix}"


def _write_parquet(out: Path, number: int, rows: Rows, shape: Sequence[int], dtype: str, manifest: str) -> None:
    parquet = needs_pyarrow()
    # An opened file, because a name with a colon would be taken for an address.
    with atomic_path(out / _name(number, "parquet")) as temporary, temporary.open("wb") as stream:
        # Embeddings are noise to compressors and dictionaries.
        parquet.write_table(
            table(rows, shape, dtype, manifest),
            stream,
            compression={name: "zstd" if name in _COLUMNS else "none" for name in (*_COLUMNS, "embedding")},
            use_dictionary=["label"],
            write_statistics=list(_COLUMNS),
        )


def _read_parquet(out: Path, number: int) -> Rows:
    parquet = needs_pyarrow()
    from pyarrow import OSFile

    # Not a file of Python's, which pyarrow's threads may still hold when the interpreter ends: it would be aborted.
    with OSFile(os.fsencode(out / _name(number, "parquet"))) as stream:
        return _rows(parquet.read_table(stream, partitioning=None))


def _rows(found: Any) -> Rows:
    columns = {name: found[name].to_pylist() for name in _COLUMNS}
    embeddings = found["embedding"].combine_chunks()
    shape, flat = [len(embeddings)], embeddings
    while hasattr(flat.type, "list_size"):
        shape.append(flat.type.list_size)
        flat = flat.flatten()
    if hasattr(flat, "offsets"):
        raise ValueError("the embeddings of its rows differ in shape")
    sizes = list(zip(columns["width"], columns["height"], strict=True))
    values = flat.to_numpy(zero_copy_only=False).reshape(shape)
    return Rows(columns["id"], columns["path"], columns["label"], sizes, values)


def _write_npy(out: Path, number: int, rows: Rows, shape: Sequence[int], dtype: str, manifest: str) -> None:
    columns = rows.columns()
    with atomic_path(out / _name(number, "ids.jsonl")) as temporary, temporary.open("w", encoding="utf-8") as file:
        for values in zip(*columns.values(), strict=True):
            file.write(json.dumps(dict(zip(columns, values, strict=True))) + "\n")
    with atomic_path(out / _name(number, "npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.asarray(rows.embeddings, dtype).reshape(-1, *shape), allow_pickle=False)


def _read_npy(out: Path, number: int) -> Rows:
    lines = (out / _name(number, "ids.jsonl")).read_text(encoding="utf-8").splitlines()
    columns = [parse_json(line) for line in lines]
    # Mapped, so that its length is compared with the file's before there is an array.
    return _from_columns(
        columns, np.load(out / _name(number, "npy"), mmap_mode="r", allow_pickle=False, max_header_size=_NPY_HEADER)
    )


def _from_columns(columns: Sequence[dict[str, Any]], embeddings: npt.NDArray[Any]) -> Rows:
    ids, paths, labels = ([row[name] for row in columns] for name in ("id", "path", "label"))
    return Rows(ids, paths, labels, [(row["width"], row["height"]) for row in columns], embeddings)


def _write_safetensors(out: Path, number: int, rows: Rows, shape: Sequence[int], dtype: str, manifest: str) -> None:
    from safetensors.numpy import save_file

    columns = rows.columns()
    numbers = {"id": np.int64, "width": np.int32, "height": np.int32}
    tensors: dict[str, npt.NDArray[Any]] = {name: np.array(columns[name], kind) for name, kind in numbers.items()}
    tensors["embedding"] = np.ascontiguousarray(np.asarray(rows.embeddings, dtype).reshape(-1, *shape))
    texts = {name: json.dumps(columns[name]) for name in ("path", "label")}
    with atomic_path(out / _name(number, "safetensors")) as temporary:
        save_file(tensors, temporary, metadata={**texts, MANIFEST_KEY: manifest})


def _read_safetensors(out: Path, number: int) -> Rows:
    from safetensors import safe_open

    with safe_open(out / _name(number, "safetensors"), "np") as file:
        # The package limits the header; as many rows as it may hold are more than JSON may have elsewhere.
        texts = {name: json.loads(file.metadata()[name]) for name in ("path", "label")}
        found = {name: file.get_tensor(name) for name in ("id", "width", "height", "embedding")}
    sizes = list(zip(found["width"].tolist(), found["height"].tolist(), strict=True))
    return Rows(found["id"].tolist(), texts["path"], texts["label"], sizes, found["embedding"])


def _needs_lance() -> Any:
    try:
        import lance
    except ImportError as error:
        raise ConfigError("Lance is not installed", hint="pip install pylance; or write parquet") from error
    return lance


def _write_lance(out: Path, number: int, rows: Rows, shape: Sequence[int], dtype: str, manifest: str) -> None:
    """Append a shard in one commit; what a killed run committed before it could say so is replaced."""
    lance, found = _needs_lance(), table(rows, shape, dtype, manifest)
    target = out / _LANCE
    if target.exists():
        if rows.ids:
            lance.dataset(str(target)).delete(f"id >= {min(rows.ids)} AND id <= {max(rows.ids)}")
        lance.write_dataset(found, str(target), mode="append")
    else:
        lance.write_dataset(found, str(target))


def _read_lance(out: Path, number: int) -> Rows:
    """Read all rows with the first shard; the others are in it."""
    found = _needs_lance().dataset(str(out / _LANCE)).to_table()
    return _rows(found.sort_by("id") if number == 0 else found.slice(0, 0))


class _Format(NamedTuple):
    write: Callable[[Path, int, Rows, Sequence[int], str, str], None]
    read: Callable[[Path, int], Rows]


FORMATS = {
    "parquet": _Format(_write_parquet, _read_parquet),
    "npy": _Format(_write_npy, _read_npy),
    "safetensors": _Format(_write_safetensors, _read_safetensors),
    "lance": _Format(_write_lance, _read_lance),
}
