"""Sending a package of weights to Hugging Face's hub, through ``huggingface_hub``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vit_hub.errors import VitHubError
from vit_hub.hub.logins import hide_logins
from vit_hub.hub.packaging import CARD, Package

__all__ = ["Pushed", "push"]

_CONNECTION = "check the connection, and HF_ENDPOINT if it is set; nothing of it is in the repository"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """``url`` of the repository, ``revision`` (the branch) and ``commit`` that was made."""

    url: str
    revision: str
    commit: str


def push(
    packed: Package,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    progress: bool = False,
) -> Pushed:
    """Sends a package in one commit; a repository or branch that is not there is made.

    Args:
        packed: what :func:`vit_hub.hub.packaging.package` made.
        private: make the repository a private one; one that is there already must be.
        revision: the branch; None: the main one.
        message: of the commit.
        progress: show progress bars on a terminal.

    Raises:
        VitHubError: nobody is logged in, or may not write there, or the server refuses; the hint has the remedy.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    from vit_hub import __version__
    from vit_hub.hub.fetch import is_offline
    from vit_hub.hub.huggingface import hub_bars

    if is_offline():
        raise VitHubError(
            f"{packed.repo}: offline mode is on, and pushing needs a connection",
            hint="unset VIT_HUB_OFFLINE and HF_HUB_OFFLINE",
        )
    if get_token() is None:
        raise VitHubError(
            "nobody is logged in to Hugging Face",
            hint="log in with `hf auth login`, or set HF_TOKEN to a token that may write",
        )
    api = HfApi(library_name="vit-hub", library_version=__version__)
    additions = [CommitOperationAdd(name, str(path)) for name, path in packed.files.items()]
    additions.append(CommitOperationAdd(CARD, packed.card.encode()))
    with _refusals(packed.repo), hub_bars(progress):
        url = hide_logins(str(api.create_repo(packed.repo, private=private or None, exist_ok=True)))
        if private and not api.model_info(packed.repo).private:
            raise VitHubError(
                f"{packed.repo} is there already, and it is public",
                hint="make it private in its settings first, or leave out --private",
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(packed.repo, branch=revision, exist_ok=True)
        commit = api.create_commit(
            packed.repo,
            additions,
            commit_message=message or f"{packed.title}, with vit-hub {__version__}",
            revision=revision,
        )
    return Pushed(url=url, revision=revision or "main", commit=commit.oid)


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """Says in one line what the server refused, and what to do about it."""
    try:
        yield
    except VitHubError:
        raise
    # Which exceptions of which HTTP client come out of it differs between the versions of huggingface_hub.
    except Exception as error:
        reasons = {
            401: (
                "Hugging Face does not accept the token",
                "log in again with `hf auth login`, or set HF_TOKEN to a token that may write",
            ),
            403: (
                "you may not write there",
                "is the owner you, or an organisation that you are in? The token must be one that may write: see "
                "https://huggingface.co/settings/tokens",
            ),
            404: ("there is no such repository, or you may not see it", "check the name, and that the token may write"),
        }
        reason, hint = reasons.get(_status(error) or 0, (f"it cannot be pushed: {_words(error)}", _CONNECTION))
        raise VitHubError(f"{repo}: {reason}", hint=hint) from error


def _status(error: BaseException | None) -> int | None:
    """The status of the server's refusal; it may be what another exception was raised from."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _words(error: BaseException) -> str:
    return hide_logins(" ".join(str(error).split())) or type(error).__name__
