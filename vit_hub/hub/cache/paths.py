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
from vit_hub.hub.names.credentials import without_credentials

__all__ = [
    "bundled_file",
    "cache_dir",
    "canonical_file",
    "fetched_file",
    "lock_file",
    "locked",
    "mirrored_folder",
    "readable",
]

_DATA = Path(__file__).parents[2] / "data"
_READABLE = 80
_ATTEMPTS = 8


def cache_dir() -> Path:
    """The cache folder: ``VIT_HUB_CACHE``, else the user's cache folder of the operating system. It may not exist."""
    given = os.environ.get("VIT_HUB_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("vit-hub", appauthor=False)


def bundled_file(name: str) -> Path:
    """Return where the package keeps a file that it ships."""
    return _DATA / name


def fetched_file(url: str) -> Path:
    """Where the file of a URL is kept: under its own name, in a folder of the URL's."""
    url = without_credentials(url)
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


def mirrored_folder(address: str) -> Path:
    """Where the files are kept that a mirror gave for a Hugging Face address: side by side, as in the repository."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return cache_dir() / "mirrored" / f"{readable(address)}-{digest}"


def lock_file(path: Path) -> Path:
    """The file whose lock :func:`locked` holds for ``path``."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def locked(
    path: Path, *, place: str = "the cache", hint: str = "set VIT_HUB_CACHE to a folder that you may write to"
) -> Iterator[None]:
    """Makes ``path``'s folder and holds, in the ``with`` body, a lock that one process at a time can have.

    Args:
        path: what the lock is for; it need not exist.
        place: what the folder is, for the message.
        hint: what to do where it cannot be written.

    Raises:
        VitHubError: the folder cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(lock_file(path))
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
