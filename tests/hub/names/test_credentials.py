"""A user name and a password in an address go to that server, and are neither shown nor written down."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result
from hub_fixtures import cache
from hub_process import REPO, Hub, hub
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import Fault, File, Host, host
from tiny import vit_jax_file

import vit_hub.hub.http.retry
from vit_hub.cli import main
from vit_hub.errors import DownloadError
from vit_hub.hub.fetch import fetch
from vit_hub.hub.make_mirror import add_to_mirror
from vit_hub.hub.names.credentials import credentials_of, hide_credentials, without_credentials
from vit_hub.hub.resolve import resolve
from vit_hub.registry import WeightSource

__all__ = ["cache", "host", "hub"]  # fixtures

SECRET = "s3cr3t-word"
LOGIN = f"ann:{SECRET}@"
FILE = "/tiny.npz"
BASIC = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()


def private(host: Host) -> str:
    """The file's address with a login in it."""
    host.add(FILE, File(vit_jax_file()))
    return host.url.replace("://", f"://{LOGIN}") + FILE


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def written(folder: Path) -> Iterator[str]:
    """All text in a folder, the names of the files included."""
    for path in folder.rglob("*"):
        yield str(path)
        if path.is_file():
            yield path.read_bytes().decode(errors="replace")


@given(st.text(min_size=1), st.text())
def test_any_login_is_read_and_taken_out(user: str, password: str) -> None:
    user, password = (text.encode(errors="ignore").decode() for text in (user, password))
    url = f"https://{quote(user, safe='')}:{quote(password, safe='')}@example.org/a@b?c=d@e#f@g"
    assert credentials_of(url) == (user, password)
    assert without_credentials(url) == "https://example.org/a@b?c=d@e#f@g"
    assert without_credentials(without_credentials(url)) == without_credentials(url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vit-b16",
        "owner/name@v2",
        "hf://owner/name@v2/a",
        "https://example.org/a@b",
        "https://e.org?u=http://a:b@c/",
    ],
)
def test_what_has_no_login_stays(text: str) -> None:
    assert credentials_of(text) is None
    assert without_credentials(text) == text


def test_logins_anywhere_in_a_text_are_hidden() -> None:
    text = f"401 for url 'https://{LOGIN}e.org/x' via HTTP://{LOGIN}proxy:1"
    assert hide_credentials(text) == "401 for url 'https://e.org/x' via HTTP://proxy:1"


def test_the_server_gets_it_and_nothing_keeps_it(host: Host, cache: Path, tmp_path: Path) -> None:
    url = private(host)
    host.faults[FILE] = [Fault(cut=1000)]
    assert resolve(url).path.read_bytes() == vit_jax_file()
    assert [request.headers["Authorization"] for request in host.requests] == [BASIC, BASIC]
    list(add_to_mirror(tmp_path / "mirror", [url]))
    commands = ("download", "--json"), ("download", "--dry-run"), ("lock",), ("verify",), ("inspect",), ("convert",)
    said = [run(*command, url, *(["out.safetensors"] if command == ("convert",) else [])) for command in commands]
    push = "push", url, "me/tiny", "--license", "mit", "--dry-run"
    said += [run(*push), run("cache", "ls"), run("cache", "rm", url)]
    assert [result.exit_code for result in said] == [0] * len(said), [result.output for result in said]
    assert not [text for text in (*written(tmp_path), *(result.output for result in said)) if SECRET in text]


def test_with_and_without_it_is_the_same_file(host: Host) -> None:
    url = private(host)
    assert resolve(url).path == resolve(without_credentials(url)).path
    assert len(host.requests) == 1


def test_a_locked_address_is_asked_with_the_login_that_is_given(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = private(host)
    assert run("lock", url).exit_code == 0
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "another"))
    result = run("download", "--locked", url)
    assert result.exit_code == 0, result.output
    assert [request.headers.get("Authorization") for request in host.requests] == [BASIC, BASIC]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=401),
        Fault(status=404),
        Fault(status=503),
        Fault(status=503, headers={"Retry-After": "9999"}),
        Fault(status=302, headers={"Location": "ftp://example.org/x"}),
        Fault(status=302, headers={"Location": FILE}),
        Fault(headers={"Content-Type": "text/html"}),
        Fault(headers={"Content-Encoding": "gzip"}),
        Fault(body=b"<html>"),
        Fault(body=b"version https://git-lfs"),
    ],
)
def test_no_failure_shows_it(host: Host, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", lambda seconds: None)
    url = private(host)
    host.faults[FILE] = [fault] * 40
    with pytest.raises(DownloadError) as error:
        fetch(WeightSource(kind="https", format="vit_jax", url=url))
    assert host.url in str(error.value)
    assert SECRET not in str(error.value)


def test_wrong_bytes_and_offline_do_not_show_it(host: Host) -> None:
    url = private(host)
    for pins, offline in (({"sha256": "0" * 64}, False), ({"size": 1}, False), ({}, True)):
        with pytest.raises(Exception, match=host.url) as error:
            fetch(WeightSource(kind="https", format="vit_jax", url=url, **pins), offline=offline)
        assert SECRET not in str(error.value)


def test_a_mirror_behind_a_login(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder = private(host), tmp_path / "mirror"
    list(add_to_mirror(folder, [url]))
    for path in folder.rglob("*"):
        if path.is_file():
            host.add(f"/mirror/{path.relative_to(folder).as_posix()}", File(path.read_bytes()))
    host.requests.clear()
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "another"))
    monkeypatch.setenv("VIT_HUB_MIRROR", host.url.replace("://", f"://{LOGIN}") + "/mirror")
    said = run("download", "--dry-run", without_credentials(url)).output
    said += run("download", without_credentials(url)).output
    assert {request.path.split("/")[1] for request in host.requests} == {"mirror"}
    assert {request.headers["Authorization"] for request in host.requests} == {BASIC}
    host.faults["/mirror/index.json"] = [Fault(status=500)]
    with pytest.warns(UserWarning, match=r"/mirror/index\.json: the server answered 500") as warned:
        fetch(WeightSource(kind="https", format="vit_jax", url=host.add("/other", File(vit_jax_file()))))
    assert SECRET not in said + str(warned[0].message)


def test_a_login_in_the_endpoint_is_not_shown(hub: Hub) -> None:
    hub.variables["HF_ENDPOINT"] = hub.server.url.replace("://", f"://{LOGIN}")
    said = hub.run("download", REPO, "--dry-run") + hub.run("download", "someone/nothing", code=1)
    hub.server.gated.add(REPO)
    said += hub.run("download", REPO, code=1)
    hub.server.url = ""
    said += hub.run("download", f"{hub.variables['HF_ENDPOINT']}/{REPO}", "--revision", "v3", code=1)
    assert hub.variables["HF_ENDPOINT"].partition("@")[2] in said
    assert SECRET not in said
