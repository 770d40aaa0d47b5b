"""Names, addresses and revisions that callers and files give: refused before anything is looked up or made of them."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from vit_hub.errors import ConfigError, ModelNotFoundError
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.untrusted import REFERENCE, quoted, shorten

__all__ = ["check_name", "check_revision", "is_safe_name", "split"]

# Control characters, and halves of characters, which no encoding has.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSAFE = re.compile(r'[\\:*?"<>|]')
# Windows takes these for devices, in any folder and with any suffix.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3]) *(\.|$)", re.IGNORECASE)
_QUERY = re.compile(r"[?].*", re.DOTALL)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WITH_HOST = ("http", "https", "s3", "gs")


def check_name(name: str) -> None:
    """Refuse a text that can be neither a name nor an address.

    Raises:
        ModelNotFoundError: it is too long, has characters that no name has, or is no address behind its scheme.
    """
    if said := REFERENCE.exceeded(len(name)):
        raise ModelNotFoundError(f"{shorten(name)!r} {said}", hint="give the name or the address of a model")
    # What is written %00 in an address is a null character to whoever decodes it. A query is not decoded.
    if found := _NO_TEXT.search(name) or _NO_TEXT.search(unquote(_QUERY.sub("", name))):
        raise ModelNotFoundError(
            f"{without_credentials(name)!r} has the character {found[0]!r}", hint="check what the name was made from"
        )
    if _SCHEME.match(name):
        split(name)


def split(address: str) -> tuple[str, str]:
    """Return the host, with its port, and the path of an address.

    Raises:
        ModelNotFoundError: it is malformed.
    """
    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname  # parsed when they are read
    except ValueError as error:
        reason = str(error)
    else:
        if host or parts.scheme.lower() not in _WITH_HOST:
            return f"{host or ''}{f':{port}' if port is not None else ''}".lower(), parts.path
        reason = "no server is named"
    raise ModelNotFoundError(f"{without_credentials(address)!r} is not an address: {reason}", hint="check the address")


def check_revision(revision: str) -> None:
    """Refuse a text that can be no branch, tag or commit.

    Raises:
        ConfigError: it is none.
    """
    if not is_safe_name(revision):
        raise ConfigError(
            f"{quoted(revision)} is no revision", hint="revision= (--revision) is a branch, a tag or a commit"
        )


def is_safe_name(name: object) -> bool:
    """Return whether untrusted text is a relative file name that stays within its folder, on every system."""
    if not isinstance(name, str) or not name or len(name) >= 512 or _UNSAFE.search(name) or _NO_TEXT.search(name):
        return False
    parts = name.split("/")
    return not {"", ".", ".."} & {*parts} and not any(map(_DEVICE.match, parts))
