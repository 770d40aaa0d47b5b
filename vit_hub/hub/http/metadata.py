"""Commits and ETags of a hub, checked before its client makes names of files from them."""

from __future__ import annotations

import re
from typing import Any

from vit_hub.errors import DownloadError

__all__ = ["guard_names"]

# The client takes a commit as the name of a folder, and the ETag as that of a file.
_NAMING = ("X-Repo-Commit", "X-Linked-ETag", "ETag")
_NAME = re.compile(r'(?:W/)?"?[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}"?')


def guard_names() -> None:
    """Make huggingface_hub's client refuse a commit or an ETag that would lead out of its cache.

    Those who run the server of ``HF_ENDPOINT``, or can change its answers, could write files anywhere otherwise.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    # Of httpx, or of requests, which huggingface_hub had before 1.0.
    hooks = dict(session.event_hooks if hasattr(session, "event_hooks") else session.hooks)
    if _refuse_paths in hooks.get("response", []):
        return
    hooks["response"] = [*hooks.get("response", []), _refuse_paths]
    if hasattr(session, "event_hooks"):
        session.event_hooks = hooks
    else:
        session.hooks = hooks


def _refuse_paths(response: Any, **_: Any) -> None:
    """Check an answer about a file.

    Raises:
        DownloadError: it names something else than one file.
    """
    if response.request.method != "HEAD":
        return
    for header in _NAMING:
        value = response.headers.get(header)
        if value is not None and not _NAME.fullmatch(value):
            raise DownloadError(
                f"{str(response.request.url).partition('?')[0]}: the server's {header} {value!r} is no name of a file",
                hint="nothing was kept; the server is not to be trusted: check HF_ENDPOINT",
            )
