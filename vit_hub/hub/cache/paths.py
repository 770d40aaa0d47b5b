"""The places of fetched and converted files in the cache, and locks so that one process at a time writes there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import platformdirs

from vit_hub.errors import VitHubError
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.wellformed import is_safe_name

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "CHOICE",
    "PROGRAM_RECORD",
    "STORES",
    "bundled_file",
    "cache_dir",
    "canonical_file",
    "choice_file",
    "fetched_file",
    "file_lock",
    "file_lock_path",
    "hugging_face_cache",
    "is_bundled",
    "is_cached",
    "is_trusted",
    "mirrored_folder",
    "program_folder",
    "readable",
]

PROGRAM_RECORD, CHOICE = "program.json", "choice.json"
"""The files that say how a program was made, and which runtime is the fastest."""
STORES = ("canonical", "files", "mirrored", "programs", "choices")
"""The folders of weights in the cache, and of what was made and measured of them for other runtimes."""

_DATA = Path(__file__).parents[2] / "data"
_READABLE = 80
_ATTEMPTS = 8
LOCK_TIME = 600.0  # seconds that the holder of a lock may take without a change of a file beside it
_LOCK_LOOK = 10.0  # seconds between two looks


def cache_dir() -> Path:
    """Return the cache folder: ``VIT_HUB_CACHE``, else the operating system's for the user. It may not exist.

    Raises:
        VitHubError: the user has no home folder to hold it.
    """
    given = os.environ.get("VIT_HUB_CACHE")
    with contextlib.suppress(RuntimeError):  # neither HOME nor an entry for this user
        if given:
            return Path(given).expanduser().absolute()
        folder = platformdirs.user_cache_path("vit-hub", appauthor=False)
        if folder.is_absolute():
            return folder
    raise VitHubError(
        f"{given or 'the cache'}: this user has no home folder to hold it",
        hint="set VIT_HUB_CACHE to the path of a folder that you may write to, and HF_HOME for files of Hugging Face's "
        "hub; or set HOME",
    )


def hugging_face_cache() -> Path:
    """Return the folder of ``huggingface_hub``'s cache (``HF_HUB_CACHE``, ``HF_HOME``). It may not exist.

    Raises:
        VitHubError: the user has no home folder to hold it.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    if folder.parts[0] == "~":  # which the client would take for a name in the working folder
        raise VitHubError(
            "Hugging Face's cache: this user has no home folder to hold it",
            hint="set HF_HOME to the path of a folder that you may write to, or set HOME",
        )
    return folder


def is_bundled(path: Path) -> bool:
    """Return whether a file is one of the package's own."""
    return path.resolve().is_relative_to(_DATA.resolve())


def is_cached(path: Path) -> bool:
    """Return whether a file lies in a cache or in the package: replaced as a whole perhaps, never changed in place."""
    folders = [_DATA]
    with contextlib.suppress(VitHubError):
        root = cache_dir()
        folders += [root / store for store in STORES]
    real = path.resolve()
    return any(real.is_relative_to(folder.resolve()) for folder in folders) or _is_of_hugging_face(real)


def is_trusted(path: Path) -> bool:
    """Return whether a file in the cache can only have been put there by this user, root, or the cache's owner.

    A link is not trusted: whoever may write to its target is not known. Files elsewhere, of the user or of Hugging
    Face's cache, are not judged.
    """
    root = cache_dir()
    if not path.is_relative_to(root):
        return True
    try:
        if path.is_symlink():
            return False
        if not hasattr(os, "geteuid"):  # Windows does not tell owners
            return True
        owners = {os.geteuid(), 0, root.stat().st_uid}
        inside = [path, *path.parents]
        return all(item.lstat().st_uid in owners for item in inside[: inside.index(root)])
    except OSError:
        return False


def _is_of_hugging_face(path: Path) -> bool:
    """Return whether a file lies in a cache of Hugging Face's, by its layout: without an import of the client."""
    return any(
        folder.name in ("blobs", "snapshots") and folder.parent.name.startswith("models--") for folder in path.parents
    )


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
    found = re.sub(r"[^A-Za-z0-9._+-]+", "--", name).strip(".-")[-_READABLE:].lstrip(".-") or "unnamed"
    return found if is_safe_name(found) else f"_{found}"  # a device of Windows


def mirrored_folder(address: str) -> Path:
    """Return the folder for the files of a Hugging Face address from a mirror: laid out as in the repository."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return cache_dir() / "mirrored" / f"{readable(address)}-{digest}"


def program_folder(key: str) -> Path:
    """Return the folder for a model as a program of another runtime.

    Args:
        key: 64 hex digits that stand for the weights and all that decides about the program.
    """
    return cache_dir() / "programs" / key[:32]


def choice_file(key: str) -> Path:
    """Return the file for the choice of the fastest runtime; ``key`` as for :func:`program_folder`."""
    return cache_dir() / "choices" / key[:32] / CHOICE


def file_lock_path(path: Path) -> Path:
    """Return the file that :func:`file_lock` locks for ``path``."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def file_lock(
    path: Path, *, place: str = "the cache", hint: str = "set VIT_HUB_CACHE to a folder that you may write to"
) -> Iterator[None]:
    """Make ``path``'s folder and hold, in the ``with`` body, a lock that one process at a time can have.

    Args:
        path: the file to lock; it need not exist.
        place: the folder, in words, for the message.
        hint: the remedy if it cannot be written.

    Raises:
        VitHubError: the folder cannot be written, or another process holds the lock and does nothing.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file_lock_path(path))
    try:
        for remaining in reversed(range(_ATTEMPTS)):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _acquire(lock, path)
                break
            except FileNotFoundError:  # `vit-hub cache prune` may remove a folder while it is empty
                if not remaining:
                    raise
    except Timeout as error:
        raise VitHubError(
            f"{path}: another process holds its lock, and has changed nothing there for {LOCK_TIME:.0f} seconds",
            hint="end that process, then run it again",
        ) from error
    except OSError as error:
        raise VitHubError(f"{path.parent}: {place} cannot be written: {error.strerror or error}", hint=hint) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, path: Path) -> None:
    """Wait for a lock for as long as its holder makes progress.

    Raises:
        filelock.Timeout: it makes none.
    """
    from filelock import Timeout

    seen, since = _newest(path.parent), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=min(_LOCK_LOOK, LOCK_TIME))
            return
        except Timeout:
            now = _newest(path.parent)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= LOCK_TIME:
                raise


def _newest(folder: Path) -> int:
    """Return when a file of a folder was last changed."""
    times = [0]
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # removed meanwhile
            times.append(file.stat().st_mtime_ns)
    return max(times)
