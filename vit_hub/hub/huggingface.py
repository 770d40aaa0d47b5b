"""Files of Hugging Face repositories, through ``huggingface_hub``: its cache, token, endpoint and switches."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vit_hub.errors import CheckpointError, DownloadError, VitHubError, first_line
from vit_hub.hub.cache.hashes import verify
from vit_hub.hub.cache.paths import hugging_face_cache
from vit_hub.hub.names.address import is_safe_name
from vit_hub.hub.names.credentials import hide_credentials, without_credentials
from vit_hub.progress import on_terminal
from vit_hub.registry import WeightSource
from vit_hub.version import __version__

__all__ = ["cached_weights", "companions", "fetch_from_hub", "hub_bars", "page_of", "possible_files"]

# The weights of a repository under their customary names, in order of preference.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# The config that customarily named weights depend on, and files that may stand beside them.
_CONFIG = "config.json"
_EXTRAS = ("preprocessor_config.json",)
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_NO_SPACE = "Not enough free disk space"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")


class _AbsentError(DownloadError):
    """The repository has no such file."""


class _NotCachedError(DownloadError):
    """The file is not in the cache, and offline mode is on."""


def fetch_from_hub(source: WeightSource, *, offline: bool, progress: bool = False) -> Path:
    """Fetch the weights of a repository and their config files into Hugging Face's cache.

    Args:
        source: ``repo``, ``revision`` (None: ``main``), and ``file``; None: the weights under a customary name, shards
            included.
        offline: use only the cache.
        progress: show bars on a terminal.

    Returns:
        The weight file, or the index of sharded ones.

    Raises:
        DownloadError: the repository, revision or file does not exist or cannot be fetched; the hint has the remedy.
        IntegrityError: the file is not the pinned one.
        VitHubError: the disk is full.
    """
    hugging_face_cache()
    names = (source.file,) if source.file else _WEIGHTS
    failures: list[DownloadError] = []
    with hub_bars(progress):
        for name in names:
            try:
                path = _file(source, name, offline)
            except (_AbsentError, _NotCachedError) as error:
                failures.append(error)
                continue
            verify(path, source, hint=_remedy(path))
            if PurePosixPath(name).name in _WEIGHTS:
                _fetch_companions(path, name, source, offline)
            return path
    if source.file:
        raise failures[0]
    unknown = [failure for failure in failures if isinstance(failure, _NotCachedError)]
    if unknown:
        raise unknown[0]
    raise DownloadError(
        f"{_described(source)} has none of the files {', '.join(_WEIGHTS)}",
        hint=f"is it a repository of weights? See {page_of(source)}; or give the address of one file",
    )


def possible_files(source: WeightSource) -> tuple[str, ...]:
    """Return the files to request: of the weights the first that exists, and the files that belong to it."""
    names = (source.file,) if source.file else _WEIGHTS
    beside = [
        str(PurePosixPath(names[0]).with_name(extra))
        for extra in (_CONFIG, *_EXTRAS)
        if PurePosixPath(names[0]).name in _WEIGHTS
    ]
    return (*names, *beside)


def cached_weights(source: WeightSource) -> Path | None:
    """Return the weight file in Hugging Face's cache, even if the repository has a newer one; None: there is none."""
    for name in (source.file,) if source.file else _WEIGHTS:
        with suppress(DownloadError):
            path = _cached(source, name)
            if path:
                return path
    return None


def page_of(source: WeightSource) -> str:
    """Return the address of the repository's page."""
    return f"{without_credentials(os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')}/{source.repo}"


def _file(source: WeightSource, name: str, offline: bool) -> Path:
    """Return one file of the repository, compared with the hub's own hash if it gives one."""
    # The files of a commit never change. Offline the client is not called: it may make a request before it looks.
    path = _cached(source, name) if offline or _COMMIT.fullmatch(source.revision or "") else None
    if path is None and offline:
        raise _NotCachedError(
            f"{_described(source)}: {name} is not in Hugging Face's cache, and offline mode is on",
            hint="fetch it once with a connection: without offline=True (--offline), VIT_HUB_OFFLINE and "
            "HF_HUB_OFFLINE",
        )
    if path is None:
        path = _fetched(source, name)
    # The cache names a large file by its ETag, which is its sha256.
    if _SHA256.fullmatch(_blob(path).name):
        pinned = replace(source, sha256=_blob(path).name, sha256_prefix=None, size=None)
        verify(path, pinned, hint=_remedy(path))
    return path


def _cached(source: WeightSource, name: str) -> Path | None:
    """Return the file in the cache; None if the cache knows nothing of it.

    Raises:
        _AbsentError: the cache remembers that the repository has no such file.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(source.repo or "", name, revision=source.revision)
    except ValueError as error:
        raise DownloadError(f"{_described(source)}: {_shown(error)}", hint="check the name") from error
    if found is _CACHED_NO_EXIST:
        raise _AbsentError(f"{_described(source)} has no file {name}", hint=f"see {page_of(source)}")
    return Path(found) if isinstance(found, str) else None


def _fetched(source: WeightSource, name: str) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    where = _described(source)
    try:
        with warnings.catch_warnings():
            # The client checks the free disk space before the first byte, and only warns.
            warnings.filterwarnings("error", _NO_SPACE)
            found = hf_hub_download(
                source.repo or "", name, revision=source.revision, library_name="vit-hub", library_version=__version__
            )
    except hub.GatedRepoError as error:
        raise DownloadError(
            f"{where} is gated",
            hint=f"accept its terms at {page_of(source)}, then {_LOGIN}",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{where} does not exist, or is private",
            hint=f"check the name; for a private one {_LOGIN}",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise DownloadError(f"{where}: there is no such revision", hint=f"see {page_of(source)}") from error
    except hub.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        refused = _status(cause) in (401, 403)
        raise DownloadError(
            f"{where}: {name} cannot be fetched: {_shown(cause)}",
            hint=_LOGIN if refused else "check the connection, the proxy, and HF_ENDPOINT if it is set",
        ) from error
    except hub.EntryNotFoundError as error:
        raise _AbsentError(f"{where} has no file {name}", hint=f"see {page_of(source)}") from error
    except UserWarning as error:
        raise _disk_full(f"{where}: {name}: {_shown(error)}") from error
    # The exceptions, and their HTTP client, differ between versions of huggingface_hub.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise _disk_full(f"{where}: {name} cannot be kept: {error.strerror}") from error
        hint = _LOGIN if _status(error) in (401, 403) else ""
        raise DownloadError(f"{where}: {name} cannot be fetched: {_shown(error)}", hint=hint) from error
    return Path(found)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the server's refusal, if it is one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _disk_full(message: str) -> VitHubError:
    # No DownloadError: another source would need the same space.
    return VitHubError(message, hint="make room, or set HF_HUB_CACHE to a folder on another disk")


def _blob(path: Path) -> Path:
    """Return the target of a link in the cache; the path itself if the cache has no links."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _remedy(path: Path) -> str:
    return f"delete {_blob(path)} from Hugging Face's cache and fetch it again"


def _fetch_companions(path: Path, name: str, source: WeightSource, offline: bool) -> None:
    """Fetch the shards of an index and the config files, from the commit of the weights."""
    # The cache keeps a commit's files in a folder of its name.
    commit = path.parents[len(PurePosixPath(name).parts) - 1].name
    source = replace(source, revision=commit)
    for shard in _shards(path):
        _file(source, str(PurePosixPath(name).with_name(shard)), offline)
    for extra in (_CONFIG, *_EXTRAS):
        sidecar = str(PurePosixPath(name).with_name(extra))
        try:
            _file(source, sidecar, offline)
        except _AbsentError:
            continue
        except _NotCachedError:
            # Without the config the outputs could silently differ.
            if extra == _CONFIG:
                raise


def companions(path: Path) -> list[Path]:
    """Return the files that were fetched with the weights: shards and config files beside them."""
    if path.name not in _WEIGHTS:
        return []
    files = [path.with_name(name) for name in (*_shards(path), _CONFIG, *_EXTRAS)]
    return [file for file in files if file.is_file()]


def _shards(path: Path) -> list[str]:
    if path.suffix != ".json":
        return []
    try:
        shards = sorted({str(shard) for shard in json.loads(path.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an index of sharded weights: {error!r}") from error
    for shard in shards:
        if "/" in shard or not is_safe_name(shard):
            raise CheckpointError(
                f"{path}: an index of sharded weights that names {shard!r}, which is not a file beside it",
                hint="report it to its authors; another revision may be right (revision=, --revision)",
            )
    return shards


def _described(source: WeightSource) -> str:
    return f"{source.repo}@{source.revision}" if source.revision else str(source.repo)


def _shown(error: BaseException) -> str:
    return hide_credentials(first_line(error))


@contextmanager
def hub_bars(wanted: bool) -> Iterator[None]:
    """Disable huggingface_hub's progress bars, unless they are wanted and stderr is a terminal."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if (wanted and on_terminal()) or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
