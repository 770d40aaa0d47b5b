"""The forms in which a file or repository of Hugging Face's hub can be written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vit_hub.converters.containers import CONTAINER_SUFFIXES
from vit_hub.errors import ConfigError, ModelNotFoundError
from vit_hub.hub.names.wellformed import split
from vit_hub.registry import WeightSource

__all__ = ["hub_source", "is_address", "is_one_file"]

_ADDRESS = re.compile("(https?://|hf://|gs://|s3://|augreg:|hf[-_]hub:)", re.IGNORECASE)
_ELSEWHERE = ("augreg:", "gs://", "s3://")
_REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"
# As the hub has them, and huggingface_hub.utils.validate_repo_id: words joined by single dots and hyphens.
_POSSIBLE = re.compile(r"(?!.*(?:--|\.\.))\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b(?<!\.git)", re.ASCII)
# Only these revisions have a slash in them; in others it is written %2F.
_REVISION = r"(?P<revision>refs/[\w-]+/[^/]+|[^/]+)"
_NAME = re.compile(rf"{_REPOSITORY}(@(?P<revision>[\w./-]+))?")
_HF = re.compile(rf"hf://(models/)?{_REPOSITORY}(@{_REVISION})?(/(?P<file>.+?))?/?", re.IGNORECASE)
_TIMM = re.compile(rf"hf[-_]hub:{_REPOSITORY}(@(?P<revision>[\w./-]+))?", re.IGNORECASE)
_PAGE = re.compile(rf"/{_REPOSITORY}(/(resolve|blob|raw|tree)/{_REVISION}(/(?P<file>.+?))?)?/?")
_SITES = ("huggingface.co", "hf.co")


def is_address(text: str) -> bool:
    """Return whether a text starts like an address, so that it is no path."""
    return _ADDRESS.match(text) is not None


def hub_source(text: str) -> WeightSource | None:
    """Return the repository, revision and file on Hugging Face's hub that a text means; None if it is something else.

    The file may be a folder; only the repository can tell.

    Args:
        text: ``owner/name``, ``owner/name@revision``, ``hf://owner/name@revision/path/to/file`` (revision and file may
            be left out), timm's and open_clip's ``hf-hub:owner/name@revision``, or an address of the web site (under
            ``HF_ENDPOINT`` too).

    Raises:
        ModelNotFoundError: it starts with ``hf://`` or ``hf-hub:``, and the rest is malformed.
        ConfigError: ``HF_ENDPOINT`` is no address.
    """
    scheme = _ADDRESS.match(text)
    if scheme is None:
        match = _possible(_NAME.fullmatch(text))
    elif scheme[1].lower().startswith("http"):
        match = _on_site(text)
    elif scheme[1].lower() in _ELSEWHERE:
        return None
    else:
        match = _possible((_HF if scheme[1].lower() == "hf://" else _TIMM).fullmatch(text))
        if match is None or _leads_out(match):
            forms = "hf://owner/name, hf://owner/name@revision/path/to/file or hf-hub:owner/name@revision"
            raise ModelNotFoundError(f"{text!r} is not an address on Hugging Face's hub", hint=f"write {forms}")
    if match is None:
        return None
    found: dict[str, Any] = {name: unquote(value) for name, value in match.groupdict().items() if value}
    return WeightSource(kind="hf", format="", **found)


def is_one_file(source: WeightSource, path: Path) -> bool:
    """Return whether a fetched file was requested by its name; otherwise it is the weights of a whole folder."""
    return source.kind != "hf" or (source.file is not None and path.as_posix().endswith(f"/{source.file}"))


def _on_site(url: str) -> re.Match[str] | None:
    """Match the path of a page or file on the hub's web site; None if the address is somewhere else."""
    server, path = split(url)
    try:
        endpoint, root = split(os.environ.get("HF_ENDPOINT", ""))
    except ModelNotFoundError as error:
        raise ConfigError(f"HF_ENDPOINT: {error.message}", hint="set it to an address, or unset it") from error
    if server in _SITES:
        root = ""
    elif not server or server != endpoint:
        return None
    root = root.rstrip("/")
    match = _possible(_PAGE.fullmatch(path.removeprefix(root))) if path.startswith(root) else None
    # A file that merely lies in a folder of the same server.
    is_file = match is not None and match["revision"] is None and path.endswith(tuple(CONTAINER_SUFFIXES))
    return None if match is None or is_file or _leads_out(match) else match


def _possible(match: re.Match[str] | None) -> re.Match[str] | None:
    return match if match and _POSSIBLE.fullmatch(match["repo"]) else None


def _leads_out(match: re.Match[str]) -> bool:
    """Return whether a decoded part leads out of the repository."""
    return any(".." in unquote(part or "").split("/") for part in match.groups())
