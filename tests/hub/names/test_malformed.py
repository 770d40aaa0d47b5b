"""Names, addresses, revisions and paths that callers and files give, and texts that can be none."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hub_fixtures import cache
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

import vit_hub
from vit_hub.cli import main
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.hub.cache.paths import fetched_file, readable
from vit_hub.hub.lockfile import lock
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.locate import locate
from vit_hub.hub.names.wellformed import is_safe_name
from vit_hub.hub.plan import plan
from vit_hub.untrusted import usable_path

__all__ = ["cache"]  # fixture

MALFORMED = (
    *("https://[x/a.pth", "https://[::1", "https://\u2100.org/x.pth", "https://e.org:99999/x.pth", "https:///x.pth"),
    *(
        "file://[x/y",
        "s3://[/x",
        "s3://b/\ud800",
        "gs://b/\ud800",
        "gs://b/x\0",
        "hf://a/b@\ud800/x",
        "hf://a/b/%00.pth",
    ),
    *("https://example.org/\ud800.pth", "https://e.org/x?\ud800", "https://huggingface.co/a/b/resolve/\ud800/x"),
    *("\0", "a\0b", "\ud800", "a/b@\ud800", "x\x1b[31m", "a/" + "b" * 9000, "../" * 2000, "hf://a/b@%2e%2e/x"),
    *("./a\ud800.pth", "a\0b.pth"),
)
NO_PATHS = ("a\0b", "b/\ud800", "x" * 300, "x" * 300 + ".safetensors", "./" + "y" * 5000 + "/z.safetensors")


def ascii_of(text: str) -> str:
    return ascii(text)[:40]


@pytest.mark.parametrize("name", MALFORMED, ids=ascii_of)
def test_a_malformed_name_is_one_error_wherever_it_is_given(name: str, tmp_path: Path) -> None:
    given: list[Callable[[], Any]] = [
        lambda: vit_hub.open_checkpoint(name, offline=True),
        lambda: vit_hub.load("vit-nano-digits", head=name, offline=True),
        lambda: vit_hub.download(name, offline=True),
        lambda: vit_hub.compare(name, "vit-nano-digits", offline=True),
        lambda: lock([name], tmp_path / "vit-hub.lock", offline=True),
        lambda: plan(name),
    ]
    for call in given:
        with pytest.raises(VitHubError) as raised:
            call()
        assert len(str(raised.value)) < 8000
    with pytest.raises(ValueError, match="not an address|character|more than"):
        source_of(name)
    result = CliRunner().invoke(main, ["download", "--offline", "--", name])
    assert result.exit_code in (1, 2)
    assert "bug" not in result.output


@pytest.mark.parametrize("revision", ["", "\ud800", "\0", "../x", "a/../b", "x" * 600, "a\nb"], ids=ascii_of)
def test_a_revision_is_a_branch_tag_or_commit(revision: str) -> None:
    for name in ("someone/vit", "hf://someone/vit/x.pth"):
        with pytest.raises(VitHubError, match="revision"):
            vit_hub.load(name, revision=revision, offline=True)


@pytest.mark.parametrize("path", NO_PATHS, ids=ascii_of)
def test_what_is_no_path_is_an_error_before_anything_is_written(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = vit_hub.load("vit-nano-digits")
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    given: list[Callable[[], Any]] = [
        lambda: usable_path(path),
        lambda: vit_hub.convert("vit-nano-digits", path),
        lambda: vit_hub.convert("vit-nano-digits", path, to="hf"),
        lambda: model.save(path),
        lambda: vit_hub.export(model, path, to="onnx"),
        lambda: vit_hub.embed(model, [str(image)], path, workers=0),
        lambda: vit_hub.load("vit-nano-digits", locked=path),
        lambda: vit_hub.evaluate(model, image, mapping=path, workers=0),
        lambda: lock(["vit-nano-digits"], Path(path)),
        lambda: vit_hub.check(model, certificate=path),
    ]
    for call in given:
        with pytest.raises(VitHubError):
            call()
    assert not list((tmp_path / "here").iterdir())


def test_a_signed_address_may_be_long_and_its_query_is_not_decoded() -> None:
    signed = f"https://bucket.example.org/m.npz?X-Amz-Security-Token={'A' * 4000}&Signature=b%3D%0A"
    assert locate(signed)[1][0].url == signed


def test_an_image_that_is_none_is_an_error_of_its_own_row(tmp_path: Path) -> None:
    model = vit_hub.load("vit-nano-digits")
    good = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(good)
    names = ["\0.png", "\ud800.png", "x" * 300 + ".png", "https://[x/a.png", str(good)]
    out = tmp_path / "https:out"  # the name of a folder, and no address
    report = vit_hub.embed(model, names, out, workers=0, batch_size=1)
    assert (report.rows, report.errors) == (1, 4)


def test_settings_of_servers_that_are_no_addresses_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[hub")
    with pytest.raises(ConfigError, match="HF_ENDPOINT: .*http://"):
        vit_hub.download("https://127.0.0.1:9/x.pth", offline=True)


@pytest.mark.parametrize("name", ["CON", "nul.pth", "a/COM1.bin", "lpt9", "aux ", "a\x85", "\ud800", "a//b", "a/", "."])
def test_names_of_files_are_safe_on_every_system(name: str) -> None:
    assert not is_safe_name(name)


def test_no_device_of_windows_is_written_in_the_cache() -> None:
    for name in ("CON", "nul.safetensors", "Com1.x"):
        assert is_safe_name(readable(name))
        assert is_safe_name(fetched_file(f"https://e.org/{name}").name)
    assert is_safe_name("model/console.safetensors")
    assert os.fspath(fetched_file("https://e.org/w.safetensors").name) == "w.safetensors"


PIECES = some.sampled_from(
    [
        "hf://",
        "https://",
        "e.org",
        "owner/name",
        "@",
        "main",
        "/",
        "..",
        "%2f",
        "%00",
        "[",
        ":",
        "?",
        "#",
        "x.pth",
        "\\",
        "CON",
    ]
)
NAMES = some.lists(PIECES | some.text(max_size=3), max_size=8).map("".join)


@settings(deadline=None)
@given(NAMES)
def test_any_text_is_located_or_refused(name: str) -> None:
    with contextlib.suppress(VitHubError):
        _, sources = locate(name)
        assert all(source_of(address(source)) for source in sources if source.kind != "https" or source.url)


@settings(deadline=None)
@given(NAMES)
def test_an_address_is_the_one_text_of_its_source(name: str) -> None:
    try:
        source = source_of(name)
    except ValueError:
        return
    assert source_of(address(source)) == dataclasses.replace(source, url=source.url and without_credentials(source.url))


@given(some.lists(PIECES | some.text(), max_size=5).map("".join))
def test_a_safe_name_stays_within_its_folder(name: str) -> None:
    if is_safe_name(name):
        root = Path("/folder")
        assert Path(os.path.normpath(root / name)).is_relative_to(root)
        assert "\0" not in name
        assert name.encode().decode() == name


@pytest.mark.parametrize("option", ["--to", "--format", "--prefix", "--set", "--dtype", "--image-size"])
def test_a_message_does_not_repeat_all_of_a_long_value(option: str, tmp_path: Path) -> None:
    for value in ("x" * 3000, "x = 'y' " * 400):
        result = CliRunner().invoke(main, ["convert", "vit-nano-digits", str(tmp_path / "a.npz"), f"{option}={value}"])
        assert result.exit_code
        assert len(result.output) < 1500
