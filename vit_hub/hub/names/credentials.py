"""User names and passwords in addresses: sent to their server, and neither shown nor stored."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["credentials_of", "hide_credentials", "without_credentials"]

_CREDENTIALS = re.compile(r"([a-z][a-z0-9+.-]*://)[^/?#\s]*@", re.IGNORECASE)


def credentials_of(url: str) -> tuple[str, str] | None:
    """Return the user name and the password in ``https://user:password@host/...``; None if there are none."""
    match = _CREDENTIALS.match(url)
    if match is None:
        return None
    user, _, password = match[0][len(match[1]) : -1].partition(":")
    return unquote(user), unquote(password)


def without_credentials(url: str) -> str:
    """Return the address without user name and password; any other text as it is."""
    match = _CREDENTIALS.match(url)
    return match[1] + url[match.end() :] if match else url


def hide_credentials(text: str) -> str:
    """Return a text, such as another program's message, without user names and passwords in its addresses."""
    return _CREDENTIALS.sub(r"\1", text)
