"""Images to work on: where they are, in an order that is the same in every run, without reading them.

Files, folders, patterns, lists, tar shards as WebDataset writes them and parquet files with a column of images all
become a stream of :class:`Item`. Nothing is held but the entries of one folder, or the labels of one row group.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vit_hub.errors import ConfigError, VitHubError, first_line
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.running.parquet import HUGGING_FACE, image_column, label_column, needs_pyarrow
from vit_hub.untrusted import parse_json

__all__ = ["STDIN", "Item", "Place", "Sources", "batches_of", "writable"]

STDIN = "-"
_IMAGES = (
    *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_TAR, _PARQUET, _LIST = ".tar", ".parquet", ".txt"
_PATTERN = re.compile(r"[*?\[]")
_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of an image are.

    Attributes:
        kind: ``file`` (the file itself), ``url``, ``tar`` (``start`` and ``length`` in bytes), ``parquet`` (row
            ``start`` of row group ``group``, in ``column``) or ``nowhere`` (the reason is ``file``).
        file: path or address.
        start: offset in bytes, or row.
        length: in bytes.
        group: row group.
        column: name of the column with images.
    """

    kind: Literal["file", "url", "tar", "parquet", "nowhere"]
    file: str
    start: int = 0
    length: int = 0
    group: int = 0
    column: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One image.

    Attributes:
        id: position among all images of a run, from 0.
        path: what it is called in results: the path as given, relative to the given folder where it was found in one;
            ``shard.tar/name`` and ``file.parquet/row`` inside of these.
        label: the class that the source states: of a folder the first subfolder, as torchvision's ImageFolder has it.
        place: where its bytes are.
        name: what it is called in messages.
        number: of the class, where the source numbers classes that have names.
    """

    id: int
    path: str
    label: str | None
    place: Place
    name: str
    number: int | None = None


@dataclass(frozen=True)
class Sources:
    """Images that a user named.

    Attributes:
        given: files, folders, patterns (``photos/**/*.jpg``), ``http(s)`` addresses, ``-`` or ``.txt`` files (a list,
            one of these a line), tar shards, parquet files.
        image_column: of parquet files; None: the one that holds images.
        label_column: of parquet files; None: ``label`` and the like, if there is one.
    """

    given: tuple[str, ...]
    image_column: str | None = None
    label_column: str | None = None

    @classmethod
    def of(
        cls,
        images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> Sources:
        """Return the images of one path or several. A list on stdin is read now, so that it can be gone through again.

        Raises:
            ConfigError: none is given.
        """
        several = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        given = [os.fspath(image) for image in several]
        expanded = [line for name in given for line in (_lines(sys.stdin) if name == STDIN else [name])]
        if not expanded:
            raise ConfigError("no images are given", hint="name files, folders or addresses")
        return cls(tuple(expanded), image_column, label_column)

    def items(self) -> Iterator[Item]:
        """Yield every image, in an order that depends on names only.

        Raises:
            VitHubError: a folder has no image, or a parquet file no column of images.
        """
        found = (entry for name in self.given for entry in self._expanded(name))
        for index, (path, label, place, name, number) in enumerate(found):
            yield Item(index, writable(path), label, place, name, number)

    def count(self) -> int:
        """Count the images."""
        return sum(1 for _ in self.items())

    def _expanded(self, name: str) -> Iterator[_Entry]:
        if _URL.match(name):
            shown = without_credentials(name)
            yield shown, None, Place("url", name), shown, None
            return
        path = Path(name)
        # Unlike a path's methods, these do not fail for what cannot be a name.
        if os.path.isdir(name):  # noqa: PTH112
            yield from self._folder(path)
        elif _PATTERN.search(name) and not os.path.exists(name):  # noqa: PTH110
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
            if not matches:
                raise VitHubError(f"{name}: no file matches this pattern")
            for match in matches:
                # A pattern such as photos/** matches folders and, one by one, what is in them.
                if not Path(match).is_dir():
                    yield from self._file(Path(match), match, None)
        else:
            yield from self._file(path, name, None)

    def _file(self, path: Path, shown: str, label: str | None) -> Iterator[_Entry]:
        """Yield what one file holds; ``shown`` is what it is called in results."""
        suffix = path.suffix.lower()
        if suffix == _TAR:
            yield from _tar(path, shown)
        elif suffix == _PARQUET:
            yield from self._parquet(path, shown)
        elif suffix == _LIST:
            try:
                with path.open(encoding="utf-8", errors="surrogateescape") as lines:
                    for line in _lines(lines):
                        yield from self._expanded(line)
            except OSError as error:
                raise VitHubError(f"{path}: {error.strerror or error}") from error
        else:
            yield shown, label and writable(label), Place("file", os.fspath(path)), os.fspath(path), None

    def _folder(self, folder: Path) -> Iterator[_Entry]:
        some = False
        for path, parts in _walk(os.fspath(folder), (), frozenset()):
            label = parts[0] if len(parts) > 1 else None
            for entry in self._file(Path(path), "/".join(parts), label):
                some = True
                yield entry
        if not some:
            raise VitHubError(
                f"{folder}: no image file in this folder", hint=f"looked for {', '.join((*_IMAGES, _TAR, _PARQUET))}"
            )

    def _parquet(self, path: Path, shown: str) -> Iterator[_Entry]:
        parquet = needs_pyarrow()
        try:
            file = parquet.ParquetFile(path)
        except Exception as error:  # of pyarrow, which has an error for each kind of Python's
            yield _damaged_parquet(path, shown, error)
            return
        with file:
            schema = file.schema_arrow
            column = image_column(schema, self.image_column, os.fspath(path))
            labels = label_column(schema, self.label_column, os.fspath(path))
            names = _class_names(schema.metadata, labels) if labels else None
            row = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                stated: Iterable[Any] = itertools.repeat(None, size)
                try:
                    if size > path.stat().st_size:
                        raise ValueError(f"{size:,} rows in a smaller number of bytes")
                    if labels:
                        stated = file.read_row_group(group, columns=[labels])[labels].to_pylist()
                except Exception as error:
                    yield _damaged_parquet(path, shown, error)
                    return
                for start, label in enumerate(stated):
                    place = Place("parquet", os.fspath(path), start, group=group, column=column)
                    number = label if names and isinstance(label, int) else None
                    yield f"{shown}/{row}", _label(label, names), place, f"{path}/{row}", number
                    row += 1


def _damaged_parquet(path: Path, shown: str, error: Exception) -> _Entry:
    place = Place("nowhere", f"cannot be read as parquet: {first_line(error)}")
    return shown, None, place, os.fspath(path), None


_Entry = tuple[str, "str | None", Place, str, "int | None"]


def batches_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of ``size`` items, the last one shorter."""
    stream = iter(items)
    while batch := list(itertools.islice(stream, size)):
        yield batch


def writable(text: str) -> str:
    """Return a name as text that can be written; names of files may be any bytes."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no file's name
        return text.encode("utf-8", "backslashreplace").decode()


def _lines(stream: Iterable[str]) -> Iterator[str]:
    return (line for line in (line.rstrip("\r\n") for line in stream) if line.strip())


def _walk(
    folder: str, parts: tuple[str, ...], above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the files of a folder and those below it with images, by name; links are followed unless they go round.

    Hidden files and folders are left out.
    """
    try:
        about = os.stat(folder)  # noqa: PTH116
        seen = above | {(about.st_dev, about.st_ino)}
        if len(seen) == len(above):
            return
        with os.scandir(folder) as listing:
            shown = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda each: each.name)
            entries = [(entry, entry.is_dir()) for entry in shown]
    except OSError as error:
        raise VitHubError(f"{error.filename or folder}: {error.strerror or error}") from error
    for entry, is_folder in entries:
        inside = (*parts, entry.name)
        if is_folder:
            yield from _walk(entry.path, inside, seen)
        elif entry.name.lower().endswith((*_IMAGES, _TAR, _PARQUET)) and entry.is_file():
            yield entry.path, inside


def _tar(path: Path, shown: str) -> Iterator[_Entry]:
    """Yield the images of a tar shard; files whose names are alike up to the first dot belong together.

    The label is the text of the one that ends in ``.cls``.
    """
    try:
        with path.open("rb") as stream, tarfile.TarFile(fileobj=stream) as archive:
            members = (member for member in archive if member.isfile())
            for _, group in itertools.groupby(members, key=lambda member: _key(member.name)):
                files = list(group)
                label = next((_text(archive, file) for file in files if file.name.lower().endswith(".cls")), None)
                for file in files:
                    if file.name.lower().endswith(_IMAGES) and not file.issparse():
                        place = Place("tar", os.fspath(path), file.offset_data, file.size)
                        yield f"{shown}/{file.name}", label, place, f"{path}/{file.name}", None
                archive.members.clear()  # type: ignore[attr-defined]  # else it would keep all of them
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        yield shown, None, Place("nowhere", f"cannot be read as a tar archive: {reason}"), os.fspath(path), None


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    file = archive.extractfile(member)
    return file.read().decode("utf-8", "replace").strip() if file else None


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """Return the names of the classes that Hugging Face's datasets keep in a parquet file."""
    try:
        feature = parse_json((metadata or {})[HUGGING_FACE], finite=False)["info"]["features"][column]
        names = feature["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _label(value: Any, names: Sequence[str] | None) -> str | None:
    if value is None:
        return None
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value)
