"""Where fetched and converted files are kept, and who may write there at a time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from vit_hub.errors import VitHubError

__all__ = ["cache_dir", "canonical_file", "fetched_file", "locked", "readable"]

_READABLE = 80


def cache_dir() -> Path:
    """The cache folder: ``VIT_HUB_CACHE``, else the user's cache folder of the operating system. It may not exist."""
    given = os.environ.get("VIT_HUB_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("vit-hub", appauthor=False)


def fetched_file(url: str) -> Path:
    """Where the file of a URL is kept: under its own name, in a folder of the URL's."""
    name = readable(unquote(PurePosixPath(urlsplit(url).path).name))
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_dir() / "files" / f"{PurePosixPath(name).stem}-{digest}" / name


def canonical_file(name: str, sha256: str, version: str) -> Path:
    """Where the canonical form of a source file is kept.

    Args:
        name: what the model is called, for people who look into the cache.
        sha256: of the source file.
        version: of the converter.
    """
    return cache_dir() / "canonical" / readable(name) / f"{sha256[:16]}-{version}.safetensors"


def readable(name: str) -> str:
    """A name as one portable file name; different names may become the same."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "--", name).strip(".-")[-_READABLE:].lstrip(".-") or "unnamed"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes ``path``'s folder and holds, in the ``with`` body, a lock that one process at a time can have.

    Raises:
        VitHubError: the cache cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise VitHubError(
            f"{path.parent}: the cache cannot be written: {error.strerror or error}",
            hint="set VIT_HUB_CACHE to a folder that you may write to",
        ) from error
    try:
        yield
    finally:
        lock.release()
