"""Images read and preprocessed, in batches, wherever they are: what worker processes do."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from vit_hub.errors import VitHubError
from vit_hub.preprocessing.spec import Preprocessing, native_size
from vit_hub.running.parquet import needs_pyarrow
from vit_hub.running.sources import Item, Place

__all__ = ["Batch", "NativeSize", "Reader"]

_Result = TypeVar("_Result")
_URL_BYTES = 256 << 20  # an answer that is larger is no image
_FETCHING = 8  # addresses at once in each process
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: those with rows as columns


@dataclass
class Batch:
    """Images that were read together.

    Attributes:
        items: all that were asked for.
        images: the model's input for those that could be read, [N, C, h, w], or a list of [C, h, w] if sizes differ.
        sizes: (width, height) in pixels of those, upright, before preprocessing.
        errors: position among the items -> why the image cannot be read.
    """

    items: list[Item]
    images: Tensor | list[Tensor]
    sizes: list[tuple[int, int]]
    errors: dict[int, str] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU copies from without waiting; called by torch's data loader."""
        images = self.images
        pinned = images.pin_memory() if isinstance(images, Tensor) else [image.pin_memory() for image in images]
        return replace(self, images=pinned)


@dataclass(frozen=True)
class NativeSize:
    """Sizes that keep the aspect ratio of each image; see :func:`vit_hub.native_size`.

    Attributes:
        patch_size: (height, width) in pixels.
        max_patches: largest number of patches of an image.
    """

    patch_size: tuple[int, int]
    max_patches: int


@dataclass(frozen=True)
class Reader:
    """Data set of torch's data loader, whose indices are items.

    Attributes:
        preprocessing: of the model.
        native: give each image a size of its own.
        fast_decode: let libjpeg shrink JPEG files by 2, 4 or 8 where what is left is at least twice the size that is
            needed; pixels differ a little from those of the whole image.
        threads: that read images of a batch at once.
    """

    preprocessing: Preprocessing
    native: NativeSize | None = None
    fast_decode: bool = False
    threads: int = 1

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """Read and preprocess a batch. Images that cannot be read are among its errors."""
        return self.batch(items, [functools.partial(content_of, item) for item in items])

    def batch(self, items: Sequence[Item], sources: Sequence[Any]) -> Batch:
        """Preprocess images: what :class:`Preprocessing` takes, or functions that return it, one for each item."""
        channels, (height, width) = len(self.preprocessing.mean), self.preprocessing.image_size
        rows = None if self.native else _shared(len(items), channels, height, width)
        images, sizes, errors = list[Tensor](), list[tuple[int, int]](), dict[int, str]()
        # Most of the time that an address takes is waiting.
        threads = _FETCHING if any(item.place.kind == "url" for item in items) else self.threads
        for index, found in enumerate(_mapped(self._one, items, sources, threads)):
            if isinstance(found, str):
                errors[index] = found
                continue
            image, size = found
            if rows is None:
                images.append(image)
            else:
                rows[len(sizes)] = image
            sizes.append(size)
        return Batch(list(items), images if rows is None else rows[: len(sizes)], sizes, errors)

    def _one(self, item: Item, source: Any) -> tuple[Tensor, tuple[int, int]] | str:
        """Return the model's input for one image, and its size; or why it cannot be read."""
        try:
            image, size = self._read(source() if callable(source) else source, item.name)
            if self.native is not None:
                return self._at_its_size(image, item.name), size
            return torch.from_numpy(self.preprocessing.prepared(image, item.name)), size
        except (VitHubError, OSError, MemoryError) as error:
            return _reason(error, item.name)

    def _read(self, source: Any, name: str) -> tuple[Image.Image, tuple[int, int]]:
        """Return an image in 8 bits, and (width, height) of it before anything was done."""
        if not self.fast_decode or not isinstance(source, bytes) or source[:2] != b"\xff\xd8":
            image = self.preprocessing.read(source, name)
            return image, image.size
        try:
            opened = Image.open(io.BytesIO(source))
        except Exception as error:  # as read_image has it
            raise VitHubError(f"{name}: cannot read it as an image: {error}") from error
        whole = opened.size
        share = 2 * max(self.preprocessing.resize_to) / min(whole)
        opened.draft(None, (math.ceil(share * whole[0]), math.ceil(share * whole[1])))
        upright = opened.getexif().get(_ORIENTATION) not in _TURNED
        return self.preprocessing.read(opened, name), whole if upright else whole[::-1]

    def _at_its_size(self, image: Image.Image, name: str) -> Tensor:
        assert self.native is not None
        size = native_size((image.height, image.width), self.native.patch_size, self.native.max_patches)
        spec = replace(self.preprocessing.with_image_size(size), crop_mode="squash", crop_pct=1.0)
        return torch.from_numpy(spec.prepared(image, name)).contiguous()


def _mapped(
    function: Callable[..., _Result], items: Sequence[Item], sources: Sequence[Any], threads: int
) -> Iterable[_Result]:
    if threads <= 1:
        return map(function, items, sources)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items, sources))


def content_of(item: Item) -> bytes:
    """Return the bytes of an image.

    Raises:
        VitHubError, OSError: they cannot be had.
    """
    return _KINDS[item.place.kind](item.place)


def _file(place: Place) -> bytes:
    return Path(place.file).read_bytes()


def _tar(place: Place) -> bytes:
    with Path(place.file).open("rb") as file:
        file.seek(place.start)
        content = file.read(place.length)
    if len(content) < place.length:
        raise VitHubError("the archive ends within it")
    return content


def _parquet(place: Place) -> bytes:
    about = Path(place.file).stat()
    value = _rows(place.file, place.group, place.column, (about.st_mtime_ns, about.st_size))[place.start].as_py()
    if isinstance(value, dict):
        path, value = value.get("path"), value["bytes"]
        if value is None and path:
            return Path(path).read_bytes()
    if value is None:
        raise VitHubError("the row has no image")
    return bytes(value)


@functools.lru_cache(maxsize=1)
def _rows(file: str, group: int, column: str, version: tuple[int, int]) -> Any:
    """One row group of images; batches go through them in order, so that each is read once in a process.

    Another version of the file, by its time and size, is another file.
    """
    with needs_pyarrow().ParquetFile(file, memory_map=True) as opened:
        return opened.read_row_group(group, columns=[column])[column]


def _url(place: Place) -> bytes:
    from vit_hub.hub.http.response import request
    from vit_hub.hub.http.retry import RetryPolicy, TransientError
    from vit_hub.hub.names.credentials import without_credentials

    policy, url = RetryPolicy(place.file), without_credentials(place.file)
    while True:
        try:
            response = request(_client(place.file), url)
            try:
                content = bytearray()
                for chunk in response.chunks():
                    content += chunk
                    if len(content) > _URL_BYTES:
                        raise VitHubError(f"{url}: more than {_URL_BYTES >> 20} MiB, which is no image")
                return bytes(content)
            finally:
                response.close()
        except TransientError as error:
            policy.wait_after(error, gained=False)


@functools.lru_cache(maxsize=4)
def _client_of(credentials: tuple[str, str] | None) -> Any:
    from vit_hub.hub.http.response import new_client

    return new_client(credentials)


def _client(url: str) -> Any:
    from vit_hub.hub.names.credentials import credentials_of

    return _client_of(credentials_of(url))


def _nowhere(place: Place) -> bytes:
    raise VitHubError(place.file)


_KINDS = {"file": _file, "tar": _tar, "parquet": _parquet, "url": _url, "nowhere": _nowhere}


def _shared(*shape: int) -> Tensor:
    """Return a float32 tensor to fill; in a worker in shared memory, as torch's own collation has it."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape)
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0).set_(storage).resize_(shape)


def _reason(error: BaseException, name: str) -> str:
    """Return why an image cannot be read, without its name, which stands beside it."""
    reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error) or type(error).__name__
    return str(reason).removeprefix(f"{name}: ").removeprefix(f"{name} ")
