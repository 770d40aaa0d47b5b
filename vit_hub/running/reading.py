"""Images read and preprocessed, in batches, wherever they are."""

from __future__ import annotations

import functools
import io
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vit_hub.errors import VitHubError
from vit_hub.preprocessing.images import open_image
from vit_hub.preprocessing.spec import Preprocessing, native_size
from vit_hub.running.parquet import needs_pyarrow
from vit_hub.running.sources import Item, Place
from vit_hub.untrusted import gate, quoted

__all__ = ["Batch", "NativeSize", "Outcome", "Reader"]

_URL_BYTES = 256 << 20  # an answer that is larger is no image
_FETCHING = 8  # addresses at once in each process
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: those with rows as columns


# The model's input for an image, [C, h, w], and (width, height) of the image in pixels, upright, as it is; or why it
# cannot be read.
Outcome: TypeAlias = tuple[npt.NDArray[np.float32], tuple[int, int]] | str


@dataclass
class Batch:
    """Images that were read together.

    Attributes:
        items: all that were asked for.
        images: the model's input for those that could be read, [N, C, h, w], or a list of [C, h, w] if sizes differ.
        sizes: of those, as an :data:`Outcome` has them.
        errors: position among the items -> why the image cannot be read.
    """

    items: list[Item]
    images: Tensor | list[Tensor]
    sizes: list[tuple[int, int]]
    errors: dict[int, str] = field(default_factory=dict)


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
    """Reading and preprocessing for a model.

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

    def largest(self) -> int:
        """Return the number of values of the largest input that an image is made into."""
        if self.native is None:
            return len(self.preprocessing.mean) * math.prod(self.preprocessing.image_size)
        return len(self.preprocessing.mean) * self.native.max_patches * math.prod(self.native.patch_size)

    def read(self, items: Sequence[Item], sources: Sequence[Any] | None = None) -> Iterable[Outcome]:
        """Return the model's input for each image, or why there is none.

        Args:
            items: the images, read where they say that they are.
            sources: instead of those places, what :class:`Preprocessing` takes.
        """
        given = sources or [functools.partial(content_of, item) for item in items]
        # Most of the time that an address takes is waiting.
        threads = _FETCHING if any(item.place.kind == "url" for item in items) else self.threads
        return _mapped(self._one, items, given, threads)

    def batch(self, items: Sequence[Item], outcomes: Iterable[Outcome]) -> Batch:
        """Return what was read of images as a batch."""
        found = list(outcomes)
        errors = {index: outcome for index, outcome in enumerate(found) if isinstance(outcome, str)}
        read = [outcome for outcome in found if not isinstance(outcome, str)]
        images: Any = [torch.from_numpy(image) for image, _ in read]
        if self.native is None:
            images = torch.stack(images) if images else torch.empty(0)
        return Batch(list(items), images, [size for _, size in read], errors)

    def _one(self, item: Item, source: Any) -> Outcome:
        try:
            image, size = self._read(source() if callable(source) else source, item.name)
            if self.native is not None:
                return self._at_its_size(image, item.name), size
            return self.preprocessing.prepared(image, item.name), size
        except (VitHubError, OSError, MemoryError) as error:
            return _reason(error, item.name)

    def _read(self, source: Any, name: str) -> tuple[Image.Image, tuple[int, int]]:
        """Return an image in 8 bits, and (width, height) of it before anything was done."""
        if not self.fast_decode or not isinstance(source, bytes) or source[:2] != b"\xff\xd8":
            image = self.preprocessing.read(source, name)
            return image, image.size
        opened = open_image(io.BytesIO(source), name)
        whole = opened.size
        share = 2 * max(self.preprocessing.resize_to) / min(whole)
        opened.draft(None, (math.ceil(share * whole[0]), math.ceil(share * whole[1])))
        upright = opened.getexif().get(_ORIENTATION) not in _TURNED
        return self.preprocessing.read(opened, name), whole if upright else whole[::-1]

    def _at_its_size(self, image: Image.Image, name: str) -> npt.NDArray[np.float32]:
        assert self.native is not None
        size = native_size((image.height, image.width), self.native.patch_size, self.native.max_patches)
        spec = replace(self.preprocessing.with_image_size(size), crop_mode="squash", crop_pct=1.0)
        return spec.prepared(image, name)


def _mapped(
    function: Callable[[Item, Any], Outcome], items: Sequence[Item], sources: Sequence[Any], threads: int
) -> Iterable[Outcome]:
    if threads <= 1:
        return map(function, items, sources)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items, sources))


def content_of(item: Item) -> bytes:
    """Return the bytes of an image.

    Raises:
        VitHubError, OSError: they cannot be had.
    """
    with gate(item.name, "cannot be read", "check its name"):  # such as a null character in it
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
    with _ROWS:
        rows = _rows(place.file, place.group, place.column, (about.st_mtime_ns, about.st_size))
    value = rows[place.start].as_py()
    if isinstance(value, dict):
        path, value = value.get("path"), value["bytes"]
        if value is None and path:
            if not Path(path).is_file():  # a device never ends
                raise VitHubError(f"the row names {quoted(path)}, which is no file here")
            return Path(path).read_bytes()
    if value is None:
        raise VitHubError("the row has no image")
    return bytes(value)


_ROWS = threading.Lock()  # threads of a process wait for one of them to read a group


@functools.lru_cache(maxsize=2)
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


def _reason(error: BaseException, name: str) -> str:
    """Return why an image cannot be read, without its name, which stands beside it."""
    reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error) or type(error).__name__
    return str(reason).removeprefix(f"{name}: ").removeprefix(f"{name} ")
