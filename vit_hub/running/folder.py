"""The folder of a run: its manifest, and which shards are done, so that a run that was ended goes on.

``_manifest.json`` says what the rows are. A shard is done when its record in ``_shards/`` is there, which is written
after the shard itself. ``_errors.jsonl`` lists the images without a row, ``_SUCCESS`` is there when nothing is missing.
Names that begin with an underscore are passed over by programs that read the folder as one data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from filelock import FileLock

from vit_hub.conversion import Opening
from vit_hub.converters.containers import atomic_path
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.running.sources import Item
from vit_hub.untrusted import SIZE, Between, conform, read_json

__all__ = ["Folder", "Loading", "begun_in", "digest_of", "read_manifest"]

_MANIFEST, _ERRORS, _SUCCESS, _RECORDS, _LOCK = "_manifest.json", "_errors.jsonl", "_SUCCESS", "_shards", ".lock"
# What may differ between runs of the same rows: names, and what follows from the weights.
_NAMES = ("model", "options", "images", "passport", "weights.files", "weights.id")
# Of folders from before it was recorded.
_OLDER = {"runtime": "torch"}


_Count = Annotated[int, Between(0, SIZE.most)]


class Loading(Opening, total=False):
    """Options of loading that are needed to load the model of a folder again, as JSON has them."""

    image_size: int | list[int]
    patch_size: int | list[int]
    resize: str
    pad: bool


class _Weights(TypedDict):
    sha256: str


class _Later(TypedDict, total=False):
    """Keys that older folders do not have."""

    runtime: str


class _Manifest(_Later):
    """The part of a manifest that is read; it has more."""

    weights: _Weights
    preprocessing: dict[str, Any]
    what: str
    normalize: bool
    format: Literal["parquet", "npy", "safetensors", "lance"]
    stored: Literal["float32", "float16"]
    shape: list[_Count]
    dtype: str
    model: str
    options: Loading
    max_patches: _Count | None
    fast_decode: bool


class _Failed(TypedDict):
    id: int
    path: str
    reason: str


class _Record(TypedDict):
    digest: str
    rows: _Count
    errors: list[_Failed]


@dataclass(frozen=True)
class Folder:
    """Where a run writes.

    Attributes:
        path: the folder.
        manifest: its contents, JSON-ready.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def prepare(cls, path: Path, manifest: Mapping[str, Any]) -> Folder:
        """Return a folder for these rows, made if it is not there.

        Raises:
            ConfigError: it holds rows of other weights or settings; the message names what differs.
            VitHubError: it holds something else, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                if not (path / _MANIFEST).exists():
                    others = [item.name for item in path.iterdir() if not item.name.startswith(".")]
                    if others:
                        raise VitHubError(
                            f"{path}: holds {others[0]} and no {_MANIFEST}: it was not made by this command",
                            hint="write to a folder of its own",
                        )
                    (path / _RECORDS).mkdir()
                    _write_json(path / _MANIFEST, manifest)
        except OSError as error:
            raise VitHubError(f"{path}: cannot be written: {error.strerror or error}") from error
        there = read_manifest(path)
        different = _differences(there, json.loads(json.dumps(manifest)))
        if different:
            raise ConfigError(
                f"{path}: was begun with other weights or settings: {'; '.join(different)}",
                hint="go on with those, or write to another folder",
            )
        return cls(path, there)

    def record(self, number: int) -> dict[str, Any] | None:
        """Return what is known of a shard that is done: ``rows``, ``digest`` and ``errors``.

        Raises:
            VitHubError: that is damaged.
        """
        path = self._record_path(number)
        try:
            return _read(path, _Record, "delete it and run `vit-hub embed` again, which computes this shard anew")
        except FileNotFoundError:
            return None

    def finish(self, number: int, digest: str, rows: int, errors: Sequence[Mapping[str, Any]]) -> None:
        """Note that a shard is written. Its errors are added to the list, so that they can be read during the run."""
        self._record_path(number).parent.mkdir(exist_ok=True)
        _write_json(self._record_path(number), {"digest": digest, "rows": rows, "errors": list(errors)})
        if errors:
            with _locked(self.path), (self.path / _ERRORS).open("a", encoding="utf-8") as file:
                file.writelines(map(_line, errors))

    def numbers(self) -> list[int]:
        """Return the numbers of the shards that are done."""
        with contextlib.suppress(FileNotFoundError):
            names = (item.stem for item in (self.path / _RECORDS).iterdir() if item.suffix == ".json")
            return sorted(int(name.removeprefix("part-")) for name in names if re.fullmatch("part-[0-9]{5,9}", name))
        return []

    def conclude(self, shards: int, images: int) -> bool:
        """Write the list of errors anew, of all shards that are done, and mark the folder if nothing is missing.

        Several processes may do this; the last of them sees what all have done.

        Args:
            shards: number of shards of the whole run.
            images: number of images of the whole run.

        Returns:
            True if nothing is missing.

        Raises:
            ConfigError: there are more shards than the images give.
        """
        while True:
            with _locked(self.path):
                numbers = self.numbers()
                if numbers and numbers[-1] >= shards:
                    raise other_images(self.path, f"shard {numbers[-1]} is there, and they make {shards}")
                self._sum_up(numbers, shards, images)
                # Where there are no locks, another process may have finished a shard meanwhile.
                if self.numbers() == numbers:
                    return len(numbers) == shards

    def _sum_up(self, numbers: Sequence[int], shards: int, images: int) -> None:
        records = [self.record(number) or {} for number in numbers]
        errors = [error for record in records for error in record["errors"]]
        if errors:
            with atomic_path(self.path / _ERRORS) as temporary:
                temporary.write_text("".join(map(_line, errors)), encoding="utf-8")
        else:
            (self.path / _ERRORS).unlink(missing_ok=True)
        if len(numbers) == shards:
            rows = sum(record["rows"] for record in records)
            found = {"shards": shards, "images": images, "rows": rows, "errors": len(errors)}
            _write_json(self.path / _SUCCESS, found)

    @property
    def complete(self) -> bool:
        """True if no shard is missing."""
        return (self.path / _SUCCESS).exists()

    def _record_path(self, number: int) -> Path:
        return self.path / _RECORDS / f"part-{number:05d}.json"


def other_images(path: Path, what: str) -> ConfigError:
    """Return the error for other images than those that a folder was begun with."""
    return ConfigError(
        f"{path}: was begun with other images: {what}", hint="give the same images, or write to another folder"
    )


def digest_of(items: Iterable[Item]) -> str:
    """Return the identity of the images of a shard: of their names and labels."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.path, item.label]).encode())
    return digest.hexdigest()


def begun_in(path: Path) -> str | None:
    """Return the runtime that a folder's rows are computed in; None: it has no rows, or no manifest that says so."""
    with contextlib.suppress(VitHubError):
        return str({**_OLDER, **read_manifest(path)}["runtime"])
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a folder.

    Raises:
        VitHubError: it has none, or it is damaged.
    """
    try:
        return _read(path / _MANIFEST, _Manifest, "give a folder that `vit-hub embed` wrote")
    except FileNotFoundError as error:
        raise VitHubError(
            f"{path}: no {_MANIFEST} is there", hint="give a folder that `vit-hub embed` wrote"
        ) from error


def _read(path: Path, kind: Any, hint: str) -> dict[str, Any]:
    """Return a JSON file with values of the types that they should have.

    Raises:
        FileNotFoundError: it is not there.
        VitHubError: it is damaged.
    """
    try:
        found: dict[str, Any] = read_json(path, finite=False)
        conform(found, kind, "it")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise VitHubError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", hint=hint) from error
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, where its file system has locks."""
    lock = FileLock(path / _LOCK)
    with contextlib.suppress(NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    before, after = {**_OLDER, **_flat(there)}, {**_OLDER, **_flat(wanted)}
    names = [name for name in {**before, **after} if not name.startswith(_NAMES)]
    return [
        f"{name} {json.dumps(before.get(name))} there, {json.dumps(after.get(name))} now"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found


def _line(error: Mapping[str, Any]) -> str:
    return json.dumps(error) + "\n"


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
