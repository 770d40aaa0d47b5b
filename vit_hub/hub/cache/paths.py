"""The places of fetched and converted files in the cache, and locks so that one process at a time writes there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from vit_hub.errors import VitHubError
from vit_hub.hub.names.credentials import without_credentials

__all__ = [
    "bundled_file",
    "cache_dir",
    "canonical_file",
    "fetched_file",
    "file_lock",
    "file_lock_path",
    "mirrored_folder",
    "readable",
]

_DATA = Path(__file__).parents[2] / "data"
_READABLE = 80
_ATTEMPTS = 8


def cache_dir() -> Path:
    """Return the cache folder: ``VIT_HUB_CACHE``, else the operating system's for the user. It may not exist."""
    given = os.environ.get("VIT_HUB_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("vit-hub", appauthor=False)


def bundled_file(name: str) -> Path:
    """Return the place of a file that the package ships."""
    return _DATA / name


def fetched_file(url: str) -> Path:
    """Return the place for the file of a URL: under its own name, in a folder for this URL."""
    url = without_credentials(url)
    name = readable(unquote(PurePosixPath(urlsplit(url).path).name))
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_dir() / "files" / f"{PurePosixPath(name).stem}-{digest}" / name


def canonical_file(name: str, sha256: str, version: str) -> Path:
    """Return the place for the canonical form of a source file.

    Args:
        name: of the model, for people who look into the cache.
        sha256: of the source file.
        version: of the converter.
    """
    return cache_dir() / "canonical" / readable(name) / f"{sha256[:16]}-{version}.safetensors"


def readable(name: str) -> str:
    """Return a name as one portable file name; different names may become the same."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "--", name).strip(".-")[-_READABLE:].lstrip(".-") or "unnamed"


def mirrored_folder(address: str) -> Path:
    """Return the folder for the files of a Hugging Face address from a mirror: laid out as in the repository."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return cache_dir() / "mirrored" / f"{readable(address)}-{digest}"


def file_lock_path(path: Path) -> Path:
    """Return the file that :func:`file_lock` locks for ``path``."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def file_lock(
    path: Path, *, place: str = "the cache", hint: str = "set VIT_HUB_CACHE to a folder that you may write to"
) -> Iterator[None]:
    """Make ``path``'s folder and hold, in the ``with`` body, a lock that one process at a time can have.

    Args:
        path: the file to lock; it need not exist.
        place: the folder, in words, for the message.
        hint: the remedy if it cannot be written.

    Raises:
        VitHubError: the folder cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(file_lock_path(path))
    try:
        for remaining in reversed(range(_ATTEMPTS)):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
                break
            except FileNotFoundError:  # `vit-hub cache prune` may remove a folder while it is empty
                if not remaining:
                    raise
    except OSError as error:
        raise VitHubError(f"{path.parent}: {place} cannot be written: {error.strerror or error}", hint=hint) from error
    try:
        yield
    finally:
        lock.release()
