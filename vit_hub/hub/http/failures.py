"""Failed connections in words: what is wrong, what to do about it, and whether another attempt can help."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import proxy_bypass

from vit_hub.errors import DownloadError, first_line
from vit_hub.hub.names.credentials import hide_credentials, without_credentials

__all__ = ["Failure", "check_certificates", "explain", "proxy_login"]

# X509_V_ERR_* of OpenSSL.
_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_NAME = (62, 64)
_TRUST = "set SSL_CERT_FILE to a file with the certificates to trust"
_INSPECTED = f"if a proxy or firewall inspects connections here, {_TRUST}, its own among them"
# Of requests that no server gets, since they have no usable address.
_NO_ADDRESS = ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL")
# There is no network, rather than a server that does not answer.
_NO_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_NONE = "no connection can be made"
_DIRECT = "set NO_PROXY for servers that are reached without it"
# Of a proxy: another attempt gets the same.
_STATUS = re.compile(r"\b(400|401|403|404|405|407)\b")
# Variables of other programs, which users expect to be read here, too.
_OTHERS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Failure:
    """A failed connection.

    Attributes:
        message: what is wrong.
        hint: the remedy; empty if there is none but to wait.
        final: another attempt cannot help.
        no_network: no server was reached at all, and most probably none can be.
    """

    message: str
    hint: str
    final: bool
    no_network: bool = False


def explain(error: BaseException, url: str) -> Failure:
    """Explain the failure of a connection.

    Args:
        error: of any HTTP client; the cause is searched for in its chain.
        url: the requested address.
    """
    message = hide_credentials(first_line(error))
    causes = list(_causes(error))
    proxy = _proxy_of(url)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(*_distrust(cause, url), final=True)
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return Failure(
                f"no secure connection to {_server(url)}: {cause.reason or first_line(cause)}",
                f"check that {_address(url)} begins rightly with https:// and not http://"
                + (f", and the proxy in {proxy}" if proxy else ""),
                final=True,
            )
    if any(type(cause).__name__ in _NO_ADDRESS for cause in causes):
        return Failure(f"{_server(url) or url}: {message}", f"check {_address(url)}", final=True)
    if any(type(cause).__name__ == "ProxyError" for cause in causes):
        status = _STATUS.search(message)
        hint = proxy_login() if status and status[0] == "407" else f"check {proxy or 'HTTPS_PROXY'}; {_DIRECT}"
        return Failure(f"the proxy refuses: {message}", hint, final=status is not None)
    if proxy:
        return Failure(message, f"check {proxy}, whose proxy is used, and the connection; {_DIRECT}", final=False)
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return Failure(
                f"the name of {_server(url)} cannot be resolved: {cause.strerror or message}",
                f"check {_address(url)} and the connection; behind a proxy, set HTTPS_PROXY",
                final=cause.errno == socket.EAI_NONAME,
                no_network=True,
            )
        if isinstance(cause, ConnectionRefusedError):
            hint = f"check {_address(url)}: nothing listens there; behind a proxy, set HTTPS_PROXY"
            return Failure(message, hint, final=False)
        if isinstance(cause, OSError) and cause.errno in _NO_NETWORK:
            message = f"{_server(url)} cannot be reached: {cause.strerror or message}"
            return Failure(message, "check the connection; behind a proxy, set HTTPS_PROXY", False, no_network=True)
    return Failure(message, "", final=False)


def check_certificates() -> None:
    """Check the variables that name the certificates to trust.

    Raises:
        DownloadError: one of them names nothing that can be used; the client would not say which.
    """
    for variable, argument in (("SSL_CERT_FILE", "cafile"), ("SSL_CERT_DIR", "capath")):
        value = os.environ.get(variable)
        if not value:
            continue
        kind, exists = ("file", Path(value).is_file()) if argument == "cafile" else ("folder", Path(value).is_dir())
        hint = f"set {variable} to the {kind} of the certificates to trust, or unset it"
        if not exists:
            raise DownloadError(f"{_NONE}: {variable} names {value}, and there is no such {kind}", hint=hint)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(**{argument: value})
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or first_line(error)
            raise DownloadError(f"{_NONE}: {variable} names {value}, which is unusable: {reason}", hint=hint) from error
        return  # the client reads the first of them only


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was raised from; some clients keep that in an argument or as ``reason``."""
    waiting, seen = [error], set[int]()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        found = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        waiting += [other for other in found if isinstance(other, BaseException)]


def _distrust(error: ssl.SSLCertVerificationError, url: str) -> tuple[str, str]:
    """Return the message and the hint for a certificate that is not accepted."""
    server, code = _server(url), getattr(error, "verify_code", 0)
    reason = getattr(error, "verify_message", "") or first_line(error)
    message = f"the certificate of {server} is not accepted: {reason.rstrip('.')}"
    if code in (_EXPIRED, _NOT_YET_VALID):
        return message, f"check this machine's clock, and ask those who run the server; {_INSPECTED}"
    if code in _WRONG_NAME:
        return message, f"check {_address(url)}: the certificate is another server's; {_INSPECTED}"
    given = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    if given:
        return message, f"{given} names {os.environ[given]}, without the authority of this one: add it there" + (
            "" if given == "SSL_CERT_FILE" else ", or set SSL_CERT_FILE"
        )
    other = next((name for name in _OTHERS if os.environ.get(name)), None)
    aside = f" ({other} is not read here: set SSL_CERT_FILE to {os.environ[other]})" if other else ""
    return message, f"{_TRUST}, such as your company's or proxy's{aside}"


def proxy_login() -> str:
    """Return the remedy for a proxy's status 407."""
    return "the proxy requires a login: give it in HTTPS_PROXY and HTTP_PROXY, as http://USER:PASSWORD@HOST:PORT"


def _proxy_of(url: str) -> str | None:
    """Return the name of the variable that gives the proxy for an address, with its value."""
    parts = _parts(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            value = os.environ.get(variable)
            if value:
                return f"{variable} ({without_credentials(value)})"
    return None


def _server(url: str) -> str:
    return _parts(without_credentials(url)).netloc


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # no address at all
        return SplitResult("", "", "", "", "")


def _address(url: str) -> str:
    """Return where the address comes from, in words."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return f"HF_ENDPOINT ({without_credentials(endpoint)})" if endpoint and url.startswith(endpoint) else "the address"
