"""Connections that cannot be: certificates, proxies, names. The message says which; only what may pass is awaited."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx2
import pytest
from hub_fixtures import cache
from hub_process import REPO, Hub
from servers import TLS, HubServer, Reply, listening, serving
from tiny import timm_file

import vit_hub.hub.http.retry
from vit_hub.errors import DownloadError
from vit_hub.hub.fetch import fetch
from vit_hub.hub.http.failures import explain
from vit_hub.hub.http.response import Response
from vit_hub.hub.http.retry import RetryPolicy, TransientError
from vit_hub.hub.resolve import fetch_any
from vit_hub.registry import WeightSource

__all__ = ["cache"]  # a fixture

AUTHORITY = str(TLS / "authority.pem")
FILE = "/tiny.safetensors"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", found.append)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return found


def refusal(url: str) -> DownloadError:
    with pytest.raises(DownloadError) as error:
        fetch(WeightSource(kind="https", format="", url=url))
    return error.value


@pytest.mark.parametrize(
    ("certificate", "variables", "message", "hint"),
    [
        ("valid", {}, "unable to get local issuer certificate", "set SSL_CERT_FILE to a file"),
        ("valid", {"REQUESTS_CA_BUNDLE": AUTHORITY}, "issuer certificate", f"set SSL_CERT_FILE to {AUTHORITY}"),
        ("valid", {"SSL_CERT_FILE": "other.pem"}, "issuer certificate", "SSL_CERT_FILE names other.pem"),
        ("expired", {"SSL_CERT_FILE": AUTHORITY}, "certificate has expired", "clock"),
        ("other_name", {"SSL_CERT_FILE": AUTHORITY}, "certificate is not valid for '127.0.0.1'", "check the address"),
        ("valid", {"SSL_CERT_FILE": "missing.pem"}, "SSL_CERT_FILE names missing.pem, and there is no such file", ""),
        ("valid", {"SSL_CERT_DIR": "missing"}, "SSL_CERT_DIR names missing, and there is no such folder", ""),
        ("valid", {"SSL_CERT_FILE": "empty.pem"}, "SSL_CERT_FILE names empty.pem, which is unusable", ""),
    ],
)
def test_a_certificate_that_is_not_accepted_ends_at_once(
    certificate: str,
    variables: dict[str, str],
    message: str,
    hint: str,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("empty.pem").touch()
    # An authority that has not signed any of them.
    Path("other.pem").write_text(ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(_certificate("expired"))))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with serving(certificate=certificate) as server:
        error = refusal(server.add(FILE, Reply(timm_file())))
    assert message in error.message
    assert "certificate" in error.message + error.hint
    assert hint in error.hint
    assert "SSL_CERT" in str(error)
    assert waits == []


def _certificate(name: str) -> str:
    text = (TLS / f"{name}.pem").read_text()
    return text[text.index("-----BEGIN CERTIFICATE") :]


def test_a_trusted_certificate_is_accepted(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", AUTHORITY)
    with serving(certificate="valid") as server:
        url = server.add(FILE, Reply(timm_file()))
        assert fetch(WeightSource(kind="https", format="", url=url)).read_bytes() == timm_file()


def test_plain_http_where_tls_is_expected(waits: list[float]) -> None:
    with serving() as server:
        error = refusal(server.url.replace("http:", "https:") + FILE)
    assert "no secure connection" in error.message
    assert "http://" in error.hint
    assert waits == []


def proxy(status: int) -> contextlib.AbstractContextManager[str]:
    """Run a proxy that answers every request with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_CONNECT
        do_HEAD = do_CONNECT

        def log_message(self, format: str, *args: object) -> None:
            pass

    return listening(Handler)


@contextlib.contextmanager
def nothing() -> Iterator[str]:
    """Yield an address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("status", "attempts", "words"), [(407, 1, "requires a login"), (None, 4, "PROXY (http://127")]
)
def test_what_a_proxy_does_names_the_proxy(
    scheme: str, status: int | None, attempts: int, words: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    with nothing() if status is None else proxy(status) as address:
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, address.replace("http://", "http://me:secret@"))
        error = refusal(f"{scheme}://models.example.org{FILE}")
    assert words in error.hint
    assert "secret" not in str(error)
    assert len(waits) == attempts - 1


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (502, 4)])
def test_a_tunnel_that_a_proxy_refuses(
    status: int, attempts: int, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    with proxy(status) as address:
        monkeypatch.setenv("HTTPS_PROXY", address)
        error = refusal(f"https://models.example.org{FILE}")
    assert f"the proxy refuses: {status}" in error.message
    assert f"HTTPS_PROXY ({address})" in error.hint
    assert len(waits) == attempts - 1


NO_NETWORK = {
    "no such name": (socket.gaierror(socket.EAI_NONAME, "no such name"), 1, "name of models.example.org cannot be"),
    "no resolver": (socket.gaierror(socket.EAI_AGAIN, "no such name"), 2, "name of models.example.org cannot be"),
    "unreachable": (OSError(errno.ENETUNREACH, "Network is unreachable"), 2, "models.example.org cannot be reached"),
}


@pytest.fixture(params=NO_NETWORK)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """How many attempts are made without a network, and what is said."""
    error, attempts, message = NO_NETWORK[request.param]

    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts, message


def test_without_a_network_little_is_tried(no_network: tuple[int, str], waits: list[float]) -> None:
    attempts, message = no_network
    error = refusal(f"https://models.example.org{FILE}")
    assert message in error.message
    assert "HTTPS_PROXY" in error.hint
    assert len(waits) == attempts - 1


def test_without_a_network_each_server_is_named_once(no_network: tuple[int, str], waits: list[float]) -> None:
    _, message = no_network
    sources = [WeightSource(kind="https", format="", url=f"https://models.example.org/{name}.npz") for name in "abc"]
    with pytest.raises(DownloadError, match="none of the 3 sources of it delivers") as error:
        fetch_any(None, sources)
    assert error.value.message.count("models.example.org") == 1
    assert message in error.value.message
    assert sum(waits) < 3


def test_a_network_that_goes_away_in_the_middle_is_awaited(waits: list[float]) -> None:
    policy = RetryPolicy("x")
    policy.wait_after(TransientError("cut"), gained=True)
    policy.wait_after(TransientError("no network", no_network=True), gained=False)
    policy.wait_after(TransientError("no network", no_network=True), gained=False)
    with pytest.raises(DownloadError, match="no network, 4 times"):
        policy.wait_after(TransientError("no network", no_network=True), gained=False)


@pytest.mark.parametrize("endpoint", ["nonsense", "huggingface.co", "htps://huggingface.co", "http://"])
@pytest.mark.parametrize("address", [REPO, f"hf://{REPO}/model.safetensors"])
def test_an_endpoint_that_is_no_address_is_named_at_once(endpoint: str, address: str, tmp_path: Path) -> None:
    start = time.monotonic()
    error = Hub(HubServer(endpoint), tmp_path).answer("inspect", address, code=1)["error"]
    assert "HF_ENDPOINT (" + endpoint.rstrip("/") in error["hint"]
    assert "times" not in error["message"]
    assert time.monotonic() - start < 15


class Troubled(HubServer):
    """A hub that cuts every file of weights."""

    def answer(self, method: str, path: str) -> Reply:
        reply = super().answer(method, path)
        if method == "GET" and path.endswith(".safetensors"):
            return Reply(reply.body[:100], headers=reply.headers, length=len(reply.body))
        return replace(reply, headers={**reply.headers, "X-HF-Warning": "topic; log in to go faster"})


def test_attempts_of_the_client_are_not_logged(tmp_path: Path) -> None:
    with serving(Troubled) as server:
        assert isinstance(server, HubServer)
        machine = Hub(server, tmp_path)
        machine.publish()
        process = machine.command("inspect", REPO)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    error, hint = err.splitlines()
    assert error.startswith(f"vit-hub: error: {REPO}: model.safetensors cannot be fetched: ")
    assert hint.startswith("hint: ")


def test_a_busy_hub_is_asked_a_few_times(tmp_path: Path) -> None:
    class Busy(HubServer):
        def answer(self, method: str, path: str) -> Reply:
            return Reply(status=503, headers={"Retry-After": "0"})

    with serving(Busy) as server:
        assert isinstance(server, HubServer)
        for address in (REPO, f"hf://{REPO}/model.safetensors"):
            start = time.monotonic()
            error = Hub(server, tmp_path).answer("inspect", address, code=1)["error"]
            assert "503" in error["message"]
            assert "4 times" in error["message"]
            assert time.monotonic() - start < 15, "the client retries for 23 seconds"


def test_an_address_where_nothing_listens(waits: list[float]) -> None:
    with nothing() as address:
        assert "nothing listens there" in refusal(address + FILE).hint
    assert len(waits) == 3


def test_the_cause_is_found_however_a_client_wraps_it() -> None:
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
    cause.verify_code, cause.verify_message = 18, "self-signed certificate"
    reasoned = RuntimeError("retries exceeded")
    reasoned.reason = cause  # type: ignore[attr-defined]
    for error in (cause, RuntimeError(cause), reasoned, OSError(RuntimeError("x", cause))):
        found = explain(error, "https://example.org/x")
        assert found.final
        assert "self-signed certificate" in found.message


@pytest.mark.parametrize(
    ("certificate", "variables", "words"),
    [
        ("valid", {}, "set SSL_CERT_FILE"),
        ("valid", {"SSL_CERT_FILE": "missing.pem"}, "SSL_CERT_FILE names missing.pem"),
        ("expired", {"SSL_CERT_FILE": AUTHORITY}, "has expired"),
        ("other_name", {"SSL_CERT_FILE": AUTHORITY}, "HF_ENDPOINT"),
    ],
)
@pytest.mark.parametrize("address", [REPO, f"hf://{REPO}/model.safetensors"])
def test_a_repository_behind_such_a_certificate(
    certificate: str, variables: dict[str, str], words: str, address: str, tmp_path: Path
) -> None:
    with serving(HubServer, certificate) as server:
        assert isinstance(server, HubServer)
        machine = Hub(server, tmp_path, {"SSL_CERT_FILE": "", **variables})
        machine.publish()
        start = time.monotonic()
        error = machine.answer("inspect", address, code=1)["error"]
        took = time.monotonic() - start
    assert words in error["message"] + error["hint"]
    assert "certificate" in error["message"] + error["hint"]
    assert took < 15, "the client retries for 23 seconds"


def test_a_repository_behind_a_trusted_certificate(tmp_path: Path) -> None:
    with serving(HubServer, "valid") as server:
        assert isinstance(server, HubServer)
        machine = Hub(server, tmp_path, {"SSL_CERT_FILE": AUTHORITY})
        machine.publish()
        assert machine.answer("inspect", REPO)["format"] == "timm"


@pytest.mark.parametrize("address", [REPO, f"hf://{REPO}/model.safetensors"])
def test_a_repository_behind_a_proxy_that_requires_a_login(address: str, tmp_path: Path) -> None:
    with proxy(407) as place:
        machine = Hub(HubServer("https://models.example.org"), tmp_path, {"HTTPS_PROXY": place})
        error = machine.answer("inspect", address, code=1)["error"]
    assert "http://USER:PASSWORD@HOST:PORT" in error["hint"]


@pytest.mark.parametrize("address", [REPO, f"hf://{REPO}/model.safetensors"])
def test_what_the_cache_has_is_taken_while_the_hub_is_away(address: str, tmp_path: Path) -> None:
    with serving(HubServer) as server:
        assert isinstance(server, HubServer)
        machine = Hub(server, tmp_path)
        machine.publish()
        path = machine.run("download", address)
    process = machine.command("download", address)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, path)
    assert "taken from Hugging Face's cache" in err


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    with nothing() as place:
        error = Hub(HubServer(place), tmp_path).answer("inspect", REPO, code=1)["error"]
    assert f"HF_ENDPOINT ({place})" in error["hint"]


def test_the_signature_of_an_address_is_not_shown_where_the_body_breaks() -> None:
    class Broken(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            damaged = ssl.SSLError(1, "[SSL: BAD_RECORD] bad record")
            damaged.reason = "BAD_RECORD"
            raise httpx2.ReadError("bad record") from damaged
            yield b""

    request = httpx2.Request("GET", "https://cdn.example/file.npz?Signature=secret")
    response = Response(
        http=httpx2.Response(200, request=request, stream=Broken()),
        total=None,
        validator=None,
        is_part=False,
        takes_ranges=False,
    )
    with pytest.raises(DownloadError, match=r"https://cdn\.example/file\.npz") as error:
        list(response.chunks())
    assert "secret" not in f"{error.value.message} {error.value.hint}"
