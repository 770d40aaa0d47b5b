"""docs/command.md lists every verb, and the keys of every JSON document."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from signers import key_pair

import vit_hub
from vit_hub.cli import main

TEXT = (Path(__file__).parents[2] / "docs" / "command.md").read_text(encoding="utf-8")
DATA = Path(__file__).parents[2] / "vit_hub" / "data"
DIGITS, SEVEN = DATA / "vit_nano_digits.npz", DATA / "digits" / "7.png"
NAME = "vit-nano-digits"
CALLS: dict[str, tuple[object, ...]] = {
    "list": ("list", NAME),
    "recommend": ("recommend", "--task", "features"),
    "info NAME": ("info", NAME),
    "info FILE": ("info", DIGITS),
    "download": ("download", NAME),
    "download --dry-run": ("download", NAME, "--dry-run"),
    "convert": ("convert", DIGITS, "out.safetensors"),
    "inspect": ("inspect", DIGITS),
    "inspect PROGRAM": ("inspect", "digits.pt2"),
    "compare": ("compare", DIGITS, NAME),
    "check": ("check", NAME, "--against", "none"),
    "predict": ("predict", NAME, SEVEN),
    "show": ("show", NAME, SEVEN, "-o", "out.png", "--what", "top"),
    "eval": ("eval", NAME, "labelled"),
    "embed": ("embed", NAME, SEVEN, "--out", "features"),
    "search": ("search", "features", SEVEN),
    "knn": ("knn", "features", "--k", "1"),
    "probe": ("probe", "features", "--test", "features"),
    "verify": ("verify", NAME),
    "verify --signature": ("verify", "--signature", "out.safetensors", "--key", "public.pem"),
    "sign": ("sign", "out.safetensors", "--key", "private.pem"),
    "cache ls": ("cache", "ls"),
    "cache rm": ("cache", "rm", NAME),
    "cache prune": ("cache", "prune"),
    "cache dir": ("cache", "dir"),
    "lock": ("lock", NAME),
    "mirror": ("mirror", "mirrored", NAME),
    "push --dry-run": ("push", NAME, "me/digits", "--dry-run"),
    "bench": ("bench", NAME, "--against", "none", "--batch-size", "1", "--rounds", "1"),
    "completion": ("completion", "bash"),
    "completion --install": ("completion", "bash", "--install"),
    "env": ("env",),
}


def sign_output(folder: Path) -> None:
    """Make a key, and a signed model, in the working folder."""
    private, public = key_pair(folder, "signer")
    private.rename("private.pem")
    public.rename("public.pem")
    vit_hub.sign(vit_hub.convert(DIGITS, "out.safetensors").path, key="private.pem")


def documented() -> dict[str, tuple[str, list[str]]]:
    """Return the kind of document and its keys from the row of each verb."""
    rows = re.findall(r"^\| `([a-z -]+)`( [A-Z]+)? \| (a list|an object) \| (.*) \|$", TEXT, re.MULTILINE)
    keys = {row: re.findall(r"`([a-z0-9_]+)`", re.sub(r"\(.*\)", "", row[3])) for row in rows}
    return {verb + argument: (kind, keys[verb, argument, kind, text]) for verb, argument, kind, text in rows}


def test_every_verb_is_listed() -> None:
    table = TEXT.partition("## JSON")[0]
    context = click.Context(main)
    verbs = set(main.list_commands(context))
    assert {
        verb for row in re.findall(r"^\| (`[a-z`, ]+`) \|", table, re.MULTILINE) for verb in row.split("`")
    } >= verbs
    assert {name.split()[0] for name in documented()} == verbs


@pytest.mark.parametrize("name", CALLS)
def test_documents_have_the_keys_that_are_documented(
    answer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if name.startswith("cache"):
        answer("download", NAME)
    if name == "inspect PROGRAM":
        answer("export", NAME, "digits.pt2")
    if name in ("sign", "verify --signature"):
        sign_output(tmp_path)
    if name == "eval":
        shutil.copytree(DATA / "digits", "labelled/7")
    if name in ("search", "knn", "probe"):
        for label in ("one", "two"):
            shutil.copytree(DATA / "digits", f"images/{label}")
        answer("embed", NAME, "images", "-o", "features")
    kind, keys = documented()[name]
    document = answer(*CALLS[name])
    assert isinstance(document, list if kind == "a list" else dict)
    assert sorted(document[0] if kind == "a list" else document) == sorted(keys)
