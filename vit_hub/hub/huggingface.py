"""Files of Hugging Face repositories, through ``huggingface_hub``: its cache, token, endpoint and switches."""

from __future__ import annotations

import errno
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import httpx2

from vit_hub.converters.containers import CONTAINER_SUFFIXES
from vit_hub.converters.containers.folder import (
    CUSTOMARY_WEIGHTS,
    SIDECARS,
    config_files,
    is_customary,
    listed,
    looks_like_weights,
    read_index,
    weight_files,
)
from vit_hub.errors import CheckpointError, DownloadError, VitHubError, first_line
from vit_hub.hub.cache.hashes import verify
from vit_hub.hub.cache.paths import hugging_face_cache
from vit_hub.hub.http.failures import check_certificates, explain, proxy_login
from vit_hub.hub.http.metadata import guard_names
from vit_hub.hub.http.response import TRANSIENT
from vit_hub.hub.http.retry import RetryPolicy, TransientError, retry_after
from vit_hub.hub.names.address import address, is_commit
from vit_hub.hub.names.credentials import hide_credentials, without_credentials
from vit_hub.hub.names.hugging_face import is_one_file
from vit_hub.hub.names.wellformed import is_safe_name
from vit_hub.progress import on_terminal
from vit_hub.registry import WeightSource
from vit_hub.version import __version__

__all__ = [
    "cached_weights",
    "describe_fetched",
    "fetch_beside",
    "fetch_from_hub",
    "hub_bars",
    "page_of",
    "possible_files",
]

T = TypeVar("T")

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_NO_SPACE = "Not enough free disk space"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_FETCH_ONCE = (
    "fetch it once with a connection: without offline=True (--offline), VIT_HUB_OFFLINE, HF_HUB_OFFLINE and "
    "TRANSFORMERS_OFFLINE"
)
_SHA256 = re.compile("[0-9a-f]{64}")


class _AbsentError(DownloadError):
    """The repository has no such file."""


class _UnreachableError(DownloadError):
    """There is no connection to the hub."""


class _NotCachedError(DownloadError):
    """The file is not in the cache, and offline mode is on."""


def fetch_from_hub(source: WeightSource, *, offline: bool, progress: bool = False) -> Path:
    """Fetch weights of a repository and the config files beside them into Hugging Face's cache.

    Args:
        source: ``repo``, ``revision`` (None: ``main``), and ``file``: a file or a folder; None: the repository's own
            folder. Of a folder, the weights are those that a folder on disk with the same files would load.
        offline: use only the cache.
        progress: show bars on a terminal.

    Returns:
        The weight file, or the index of sharded ones.

    Raises:
        DownloadError: the repository, revision or file does not exist or cannot be fetched; the hint has the remedy.
        IntegrityError: the file is not the pinned one.
        VitHubError: the disk is full, or the cache cannot be written.
    """
    hugging_face_cache()
    with hub_bars(progress):
        try:
            name = _name(source, offline)
        except _UnreachableError as error:
            if cached_weights(source) is None:
                raise
            warnings.warn(f"{error.message}: taken from Hugging Face's cache", stacklevel=2)
            offline, name = True, _name(source, True)
        path = _file(source, name, offline)
        verify(path, source, hint=_remedy(path))
        if not is_one_file(source, path) or is_customary(PurePosixPath(name).name):
            _fetch_companions(path, name, source, offline)
        return path


def fetch_beside(path: Path, source: WeightSource, name: str, *, offline: bool) -> None:
    """Fetch one more file of the repository, from the commit of weights that are in the cache, if it has the file.

    Args:
        path: of the weights.
        source: theirs.
        name: of the file in the repository.
        offline: use only the cache.

    Raises:
        DownloadError: it cannot be fetched.
    """
    with suppress(_AbsentError, _NotCachedError), hub_bars(False):
        _file(replace(source, revision=_snapshot(path).name), name, offline)


def possible_files(source: WeightSource) -> tuple[str, ...]:
    """Return the files that may be fetched: of weights under customary names the first that exists, and configs."""
    folder = PurePosixPath(source.file or "")
    if not _names_a_file(source):
        return tuple(str(folder / name) for name in (*CUSTOMARY_WEIGHTS, *SIDECARS))
    beside = config_files(folder.name) if is_customary(folder.name) else ()
    return (str(folder), *(str(folder.with_name(extra)) for extra in beside))


def cached_weights(source: WeightSource) -> Path | None:
    """Return the weight file in Hugging Face's cache, even if the repository has a newer one; None: there is none."""
    with suppress(VitHubError):
        name = source.file if _names_a_file(source) else _chosen(source, _cached_names(source), True)
        return _cached(source, name or "")
    return None


def page_of(source: WeightSource) -> str:
    """Return the address of the repository's page."""
    return f"{without_credentials(os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')}/{source.repo}"


def _name(source: WeightSource, offline: bool) -> str:
    """Return the name in the repository of the weight file, or of the index of sharded ones.

    Raises:
        DownloadError, CheckpointError: as :func:`_chosen`, or the hub cannot be reached.
    """
    if source.file and _names_a_file(source):
        if not (offline or _is_kept(source, source.file)):
            _reach(source, source.file)
        return source.file
    best = str(PurePosixPath(source.file or "") / CUSTOMARY_WEIGHTS[0])
    if not offline and _is_kept(source, best):
        return best
    return _chosen(source, _cached_names(source) if offline else _listing(source), offline)


def _names_a_file(source: WeightSource) -> bool:
    """Return whether the source names a file rather than a folder, as far as the name alone tells."""
    return PurePosixPath(source.file or "").suffix in (*CONTAINER_SUFFIXES, ".json")


def _chosen(source: WeightSource, names: Sequence[str], offline: bool) -> str:
    """Return the file with the weights, or the index of sharded ones, among all files of a repository.

    Raises:
        DownloadError: there is none.
        CheckpointError: there are several that are equally good.
    """
    if source.file and source.file in names:
        return source.file
    folder = PurePosixPath(source.file or "")
    inside = [PurePosixPath(name).name for name in names if PurePosixPath(name).parent == folder]
    found = weight_files(inside)
    where = f"{_described(source)}{f': {source.file}' if source.file else ''}"
    if len(found) > 1:
        exact = address(replace(source, file=str(folder / found[0])))
        raise CheckpointError(
            f"{where}: several files could hold the weights: {', '.join(found)}",
            hint=f"give the address of one of them, such as {exact}",
        )
    if found:
        return str(folder / found[0])
    if offline:
        raise _NotCachedError(
            f"{where}: its weights are not in Hugging Face's cache, and offline mode is on", hint=_FETCH_ONCE
        )
    there = [name for name in names if folder in PurePosixPath(name).parents]
    if source.file and not there:
        raise _AbsentError(f"{_described(source)} has no file or folder {source.file}", hint=f"it has {listed(names)}")
    below = next((name for name in sorted(there) if looks_like_weights(PurePosixPath(name).name)), None)
    one = f"; give the address of one, such as {address(replace(source, file=below))}" if below else ""
    raise DownloadError(f"{where} has no weights that can be read", hint=f"it has {listed(there)}{one}")


def _listing(source: WeightSource) -> list[str]:
    """Return the names of all files of a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    api = HfApi(library_name="vit-hub", library_version=__version__)
    try:
        info = _patiently(
            source,
            "its list of files",
            lambda: api.model_info(source.repo or "", revision=source.revision, timeout=HF_HUB_ETAG_TIMEOUT),
        )
    except VitHubError:
        raise
    except Exception as error:
        raise _explained(error, source, "its list of files") from error
    return [item.rfilename for item in info.siblings or () if is_safe_name(item.rfilename)]


def _cached_names(source: WeightSource) -> list[str]:
    """Return the names of the files of a repository that are in the cache."""
    from huggingface_hub.file_download import repo_folder_name

    folder = hugging_face_cache() / repo_folder_name(repo_id=source.repo or "", repo_type="model")
    revision = source.revision or "main"
    if not is_safe_name(revision):
        return []
    with suppress(OSError):
        revision = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / revision
    return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]


def _reach(source: WeightSource, name: str) -> None:
    """Wait until the hub answers, so that the client does not retry what cannot pass; it gets the answer itself.

    Raises:
        DownloadError: there is no connection.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    try:
        url = hf_hub_url(source.repo or "", name, revision=source.revision)
        _patiently(source, name, lambda: get_hf_file_metadata(url, timeout=HF_HUB_ETAG_TIMEOUT, library_name="vit-hub"))
    except VitHubError:
        raise
    except Exception:
        pass  # an answer, which the client gets again, and records


def _file(source: WeightSource, name: str, offline: bool) -> Path:
    """Return one file of the repository, compared with the hub's own hash if it gives one."""
    # The files of a commit never change. Offline the client is not called: it may make a request before it looks.
    path = _cached(source, name) if offline or is_commit(source.revision) else None
    if path is None and offline:
        raise _NotCachedError(
            f"{_described(source)}: {name} is not in Hugging Face's cache, and offline mode is on",
            hint=_FETCH_ONCE,
        )
    if path is None:
        path = _fetched(source, name)
    # The cache names a large file by its ETag, which is its sha256.
    if _SHA256.fullmatch(_blob(path).name):
        pinned = replace(source, sha256=_blob(path).name, sha256_prefix=None, size=None)
        verify(path, pinned, hint=_remedy(path))
    return path


def _is_kept(source: WeightSource, name: str) -> bool:
    """Return whether the cache has the file for certain: that of a commit never changes."""
    try:
        return is_commit(source.revision) and _cached(source, name) is not None
    except _AbsentError:
        return False


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
    from huggingface_hub import hf_hub_download

    where = _described(source)
    try:
        with warnings.catch_warnings():
            # The client checks the free disk space before the first byte, and only warns.
            warnings.filterwarnings("error", _NO_SPACE)
            guard_names()
            found = hf_hub_download(
                source.repo or "", name, revision=source.revision, library_name="vit-hub", library_version=__version__
            )
    except UserWarning as error:
        raise _disk_full(f"{where}: {name}: {_shown(error)}") from error
    except VitHubError:
        raise
    # The exceptions, and their HTTP client, differ between versions of huggingface_hub.
    except Exception as error:
        raise _explained(error, source, name) from error
    return Path(found)


def _explained(error: Exception, source: WeightSource, what: str) -> VitHubError:
    """Return the error for a refusal, or a failure, of the client.

    Args:
        error: the client's.
        source: in the repository.
        what: was requested.
    """
    from huggingface_hub import errors as hub

    where, page = _described(source), page_of(source)
    if isinstance(error, hub.GatedRepoError):
        return DownloadError(f"{where} is gated", hint=f"accept its terms at {page}, then {_LOGIN}")
    if isinstance(error, hub.RepositoryNotFoundError):
        endpoint = (
            f", and HF_ENDPOINT ({page.rpartition(str(source.repo))[0]})" if os.environ.get("HF_ENDPOINT") else ""
        )
        hint = f"check the name{endpoint}; for a private one {_LOGIN}"
        return DownloadError(f"{where} does not exist, or is private", hint=hint)
    if isinstance(error, hub.RevisionNotFoundError):
        return DownloadError(f"{where}: there is no such revision", hint=f"see {page}")
    if isinstance(error, hub.EntryNotFoundError) and not isinstance(error, hub.LocalEntryNotFoundError):
        return _AbsentError(f"{where} has no file {what}", hint=f"see {page}")
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return _disk_full(f"{where}: {what} cannot be kept: {error.strerror}")
    if isinstance(error, OSError) and error.filename and error.errno in _NOT_WRITABLE:
        return VitHubError(
            f"{where}: {what} cannot be kept: {error.filename}: {error.strerror}",
            hint="set HF_HOME to a folder that you may write to",
        )
    cause = error.__cause__ if isinstance(error, hub.LocalEntryNotFoundError) and error.__cause__ else error
    status, failure = _status(cause), explain(cause, page)
    hint = {401: _LOGIN, 403: _LOGIN, 407: proxy_login()}.get(status or 0, failure.hint)
    return DownloadError(
        f"{where}: {what} cannot be fetched: {failure.message}",
        hint=hint or "check the connection, the proxy, and HF_ENDPOINT if it is set",
    )


def _patiently(source: WeightSource, what: str, call: Callable[[], T]) -> T:
    """Make a request that the client does not retry itself, again after failures of the connection.

    Raises:
        _UnreachableError: the connection fails again and again, or in a way that does not pass.
        Exception: what the call raises otherwise.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    where = f"{_described(source)}: {what}"
    policy = RetryPolicy(f"{where} cannot be fetched")
    try:
        check_certificates()
    except DownloadError as error:
        raise _UnreachableError(error.message, hint=error.hint) from error
    while True:
        try:
            return call()
        except (httpx2.TransportError, OSError) as error:
            is_of_disk = isinstance(error, OSError) and error.filename is not None
            status = _status(error)
            if is_of_disk or isinstance(error, OfflineModeIsEnabled) or (status and status not in TRANSIENT):
                raise
            failure = explain(error, page_of(source))
            reason = failure.message if failure.no_network else ""
            if failure.final:
                message = f"{where} cannot be fetched: {failure.message}"
                raise _UnreachableError(message, hint=failure.hint, reason=reason) from error
            waiting = TransientError(
                failure.message, wait=_wanted_wait(error), hint=failure.hint, no_network=failure.no_network
            )
            try:
                policy.wait_after(waiting, gained=False)
            except DownloadError as given_up:
                raise _UnreachableError(given_up.message, hint=given_up.hint, reason=reason) from error


def _wanted_wait(error: BaseException) -> float | None:
    """Return the seconds that a busy server asks to wait; None: it does not say."""
    return retry_after(getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", ""))


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
    """Fetch the shards of an index and the config files, from the commit of the weights.

    Args:
        path: of the fetched weights.
        name: theirs in the repository.
        source: requested.
        offline: use only the cache.
    """
    source = replace(source, revision=_snapshot(path).name)
    for shard in _shards(path):
        _file(source, str(PurePosixPath(name).with_name(shard)), offline)
    configs = config_files(path.name)
    config = "open_clip_config.json" if path.name.startswith("open_clip") else configs[0]
    for extra in configs:
        sidecar = str(PurePosixPath(name).with_name(extra))
        try:
            _file(source, sidecar, offline)
        except _AbsentError:
            continue
        except _NotCachedError:
            # Without the config the outputs could silently differ.
            if extra == config:
                raise


def _snapshot(path: Path) -> Path:
    """Return the folder of a commit's files in the cache, which has its name."""
    # From the outside: a repository's own folders may have any names.
    return next(
        folder
        for folder in reversed(path.parents)
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    )


def describe_fetched(source: WeightSource, path: Path) -> tuple[Path, str, list[Path]]:
    """Describe fetched weights.

    Returns:
        The folder of the repository's files, the exact address, and all files that belong to the weights, which come
        first.
    """
    folder = _snapshot(path)
    revision = folder.name if is_commit(folder.name) else source.revision
    is_one, customary = is_one_file(source, path), is_customary(path.name)
    # The config files beside weights of other names belong to them only where the whole folder is wanted.
    file = path.relative_to(folder).as_posix() if is_one or customary else source.file
    beside = (
        [path.with_name(name) for name in (*_shards(path), *config_files(path.name))] if customary or not is_one else []
    )
    exact = address(replace(source, revision=revision, file=file))
    return folder, exact, [path, *(other for other in beside if other.is_file())]


def _shards(path: Path) -> list[str]:
    """Return the files of an index that hold an image encoder: all of them, or a few of a larger model's."""
    from vit_hub.converters.recognize import encoder_names

    if path.suffix != ".json":
        return []
    shards = read_index(path)
    wanted = set(encoder_names([name for names in shards.values() for name in names]))
    return sorted(shard.name for shard, names in shards.items() if not wanted.isdisjoint(names))


def _described(source: WeightSource) -> str:
    return f"{source.repo}@{source.revision}" if source.revision else str(source.repo)


def _shown(error: BaseException) -> str:
    return hide_credentials(first_line(error))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the client from logging each attempt: what fails in the end is an error. HF_HUB_VERBOSITY shows all."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    level = get_verbosity()
    if not os.environ.get("HF_HUB_VERBOSITY"):
        set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        set_verbosity(level)


@contextmanager
def hub_bars(wanted: bool) -> Iterator[None]:
    """Silence huggingface_hub, and disable its progress bars unless they are wanted and stderr is a terminal."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    with _silence():
        if (wanted and on_terminal()) or are_progress_bars_disabled():
            yield
            return
        disable_progress_bars()
        try:
            yield
        finally:
            enable_progress_bars()
