"""One text for each place that weights come from: ``hf://owner/name@revision/file``, a URL, ``bundled:file``.

It is shown, recorded, locked and published, so it has no user name and password in it.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from vit_hub.errors import ModelNotFoundError
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.hugging_face import hub_source
from vit_hub.hub.names.wellformed import check_name, is_safe_name
from vit_hub.registry import WeightSource

__all__ = ["address", "is_commit", "is_fixed", "source_of"]

_BUNDLED = "bundled:"
_COMMIT = re.compile("[0-9a-f]{40}")


def address(source: WeightSource) -> str:
    """Return the address of a source, without the parts that it does not give; the inverse of :func:`source_of`."""
    if source.kind == "https":
        return without_credentials(source.url or "")
    if source.kind == "bundled":
        return f"{_BUNDLED}{source.file}"
    # The slashes of a branch such as refs/pr/1 would be taken for those before the file.
    revision = f"@{quote(source.revision, safe='')}" if source.revision else ""
    return f"hf://{source.repo}{revision}" + (f"/{source.file}" if source.file else "")


def source_of(address: str) -> WeightSource:
    """Return the source of an address; it pins nothing but the revision.

    Raises:
        ValueError: not an address.
    """
    try:
        check_name(address)
    except ModelNotFoundError as error:
        raise ValueError(error.message) from error
    if re.match("(https?|s3)://", address, re.IGNORECASE):
        return WeightSource(kind="https", format="", url=address)
    if address.startswith(_BUNDLED) and is_safe_name(address.removeprefix(_BUNDLED)):
        return WeightSource(kind="bundled", format="", file=address.removeprefix(_BUNDLED))
    try:
        found = hub_source(address) if address.startswith("hf://") else None
    except ModelNotFoundError as error:
        raise ValueError(error.message) from error
    if found is None:
        raise ValueError(f"{address!r} is not an address of weights")
    return found


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a commit, which never changes, rather than a branch or tag."""
    return bool(_COMMIT.fullmatch(revision or ""))


def is_fixed(source: WeightSource) -> bool:
    """Return whether a source cannot move, as a branch or tag of a repository can."""
    return source.kind != "hf" or is_commit(source.revision)
