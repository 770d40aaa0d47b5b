"""``download``: its announcements before anything is fetched, and its plan."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hub_fixtures import MakeEntry, cache, make_entry, server
from servers import Server

import vit_hub
from vit_hub.cli import main
from vit_hub.hub.cache.paths import fetched_file
from vit_hub.registry import WeightSource

__all__ = ["cache", "make_entry", "server"]  # fixtures

AUGREG = "augreg:B_16-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0"


@pytest.fixture(autouse=True)
def _online(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIT_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("VIT_HUB_MIRROR", raising=False)


@pytest.fixture
def run() -> Callable[..., Any]:
    def call(*args: object) -> Any:
        result = CliRunner().invoke(main, ["download", *map(str, args)])
        assert result.exit_code == 0, result.output
        return result

    return call


def gated_source(**fields: Any) -> WeightSource:
    return WeightSource(kind="hf", format="hf", repo="someone/gated", file="model.safetensors", gated=True, **fields)


def test_the_terms_are_told_before_the_first_byte(
    make_entry: MakeEntry, run: Callable[..., Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url + "/tiny.safetensors"
    make_entry(
        WeightSource(kind="https", format="timm", url=url, size=len(server.replies["/tiny.safetensors"][0].body)),
        license="cc-by-nc-4.0",
        restricted=True,
    )
    asked_before: list[int] = []
    announce = vit_hub.cli.output.Output.announce

    def listening(output: Any, text: str) -> None:
        asked_before.append(len(server.requests))
        announce(output, text)

    monkeypatch.setattr(vit_hub.cli.output.Output, "announce", listening)
    result = run("tiny")
    assert asked_before == [0]
    [announced] = result.stderr.splitlines()
    for text in ("tiny: licence cc-by-nc-4.0", "restricted: not an open licence", f"from {url}", " bytes"):
        assert text in announced
    assert len(result.stdout.splitlines()) == 1
    assert run("tiny").stderr == ""


@pytest.mark.parametrize("switch", ["-q", "--json"])
def test_who_wants_only_the_result_gets_only_that(make_entry: MakeEntry, run: Callable[..., Any], switch: str) -> None:
    make_entry("/tiny.safetensors")
    result = run("tiny", switch)
    assert result.stderr == ""
    if switch == "--json":
        [found] = json.loads(result.stdout)
        assert {key: found[key] for key in ("name", "id", "license", "restricted", "gated")} == {
            "name": "tiny",
            "id": "tiny",
            "license": "mit",
            "restricted": False,
            "gated": False,
        }
        assert Path(found["path"]).stat().st_size == found["size"]


def test_a_dry_run_tells_all_and_asks_nobody(
    make_entry: MakeEntry, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    make_entry(gated_source(revision="c" * 40, sha256="0" * 64, size=1234567, evidence="test"), "/tiny.npz")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    text = run("tiny", "someone/else", AUGREG, "vit-nano-digits", "--dry-run").stdout
    for part in (
        "gated: log in and accept the terms at https://huggingface.co/someone/gated",
        f"hf://someone/gated@{'c' * 40}/model.safetensors",
        "1,234,567 bytes",
        "hf://someone/else",
        "licence not known here, see https://huggingface.co/someone/else",
        f"/{AUGREG.removeprefix('augreg:')}.npz",
        "bundled:vit_nano_digits.npz",
    ):
        assert part in text
    tiny, else_, augreg, digits = json.loads(
        run("tiny", "someone/else", AUGREG, "vit-nano-digits", "--dry-run", "--json").stdout
    )
    assert (tiny["license"], tiny["gated"], tiny["converted"]) == ("mit", True, None)
    gated, plain = tiny["sources"]
    assert (gated["revision"], gated["size"], gated["cached"]) == ("c" * 40, 1234567, None)
    assert gated["files"][:3] == ["model.safetensors", "config.json", "preprocessor_config.json"]
    assert (plain["files"], plain["size"], plain["gated"]) == (["tiny.npz"], None, False)
    assert (else_["license"], else_["gated"], else_["sources"][0]["revision"]) == (None, None, None)
    assert (augreg["id"], augreg["license"]) == (AUGREG, "apache-2.0")
    assert Path(digits["sources"][0]["cached"]).is_file()
    assert not cache.exists()


def test_a_dry_run_tells_what_would_be_refused(run: Callable[..., Any]) -> None:
    assert "refused" in run("someone/else", "--dry-run", "--require-hashes").stdout
    [found] = json.loads(run("someone/else", "--dry-run", "--json").stdout)
    assert not found["sources"][0]["refused"]


def test_a_dry_run_sees_what_is_in_the_cache(make_entry: MakeEntry, run: Callable[..., Any]) -> None:
    entry = make_entry("/tiny.npz")
    run("tiny")
    [found] = json.loads(run("tiny", "--dry-run", "--json").stdout)
    assert found["sources"][0]["cached"] == str(fetched_file(str(entry.sources[0].url)))


def test_another_revision_is_planned(make_entry: MakeEntry, run: Callable[..., Any]) -> None:
    make_entry(gated_source(revision="c" * 40, sha256="0" * 64, evidence="test"), "/tiny.npz")
    [found] = json.loads(run("tiny", "--revision", "v2", "--dry-run", "--json").stdout)
    [source] = found["sources"]
    assert (source["revision"], source["sha256"]) == ("v2", None)
    assert source["address"] == "hf://someone/gated@v2/model.safetensors"
    result = CliRunner().invoke(main, ["download", "vit-nano-digits", "--revision", "v2"])
    assert result.exit_code == 1
    assert "none of its sources is on Hugging Face's hub" in result.stderr


def test_the_mirror_is_told(make_entry: MakeEntry, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    make_entry("/tiny.npz")
    monkeypatch.setenv("VIT_HUB_MIRROR", "/mnt/weights")
    assert "the mirror /mnt/weights" in run("tiny", "--dry-run").stdout


def test_which_source_was_taken_is_told(make_entry: MakeEntry, run: Callable[..., Any]) -> None:
    make_entry("/gone.npz", "/tiny.npz")
    assert "/tiny.npz, because" in run("tiny").stderr
