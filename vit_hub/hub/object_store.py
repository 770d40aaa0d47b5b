"""Files of ``s3://`` addresses, through fsspec and its credentials; an extra."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vit_hub.errors import DownloadError, first_line
from vit_hub.hub.cache.hashes import write_checked
from vit_hub.hub.http.download import refuse_no_checkpoint
from vit_hub.registry import WeightSource

__all__ = ["copy_object"]

_CHUNK = 1 << 20  # bytes
_SELF = "or fetch the file yourself and give its path"


def copy_object(path: Path, source: WeightSource, *, progress: bool = False) -> None:
    """Fetch ``source.url`` to ``path``, which appears complete and checked, or not at all.

    Args:
        path: the file.
        source: ``url``, ``s3://bucket/key``, and what is pinned of size and sha256.
        progress: show a bar on a terminal.

    Raises:
        DownloadError: the extra is not installed, or the store does not deliver.
        IntegrityError: the file is not the pinned one.
        CheckpointError: it is no checkpoint, or cannot be written.
    """
    url = source.url or ""
    try:
        import fsspec

        store, key = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DownloadError(
            f"{url}: {first_line(error)}", hint=f"s3:// needs `pip install 'vit-hub[s3]'`; {_SELF}"
        ) from error
    is_pinned = bool(source.sha256 or source.sha256_prefix)
    chunks, inspect = _chunks(url, store, key), partial(refuse_no_checkpoint, name=url, is_pinned=is_pinned)
    write_checked(path, chunks, source, url, hint="nothing was kept", progress=progress, inspect=inspect)


def _chunks(url: str, store: Any, key: str) -> Iterator[bytes]:
    try:
        with store.open(key, "rb") as remote:
            while chunk := remote.read(_CHUNK):
                yield chunk
    # Each store has errors of its own.
    except Exception as error:
        raise DownloadError(
            f"{url}: {first_line(error)}",
            hint=f"check the address and the credentials (FSSPEC_S3_ANON=true for a public bucket); {_SELF}",
        ) from error
