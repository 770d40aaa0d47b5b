"""-q prints the result and nothing else, whatever the verb, on a terminal, too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from test_cli_app import needs_terminal, on_terminal
from test_docs_command import CALLS, DATA, NAME, sign_output

import vit_hub

Run = Callable[..., Result]
VERBS = [name for name in CALLS if name not in ("bench", "probe", "push --dry-run")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the calls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", VERBS)
def test_quiet_is_quiet(run: Run, folder: Path, name: str) -> None:
    if name in ("eval", "search", "knn"):
        shutil.copytree(DATA / "digits", "labelled/7")
    if name in ("search", "knn"):
        run("embed", NAME, "labelled", "-o", "features")
    if name.startswith("cache"):
        run("download", NAME)
    if name == "inspect PROGRAM":
        run("export", NAME, "digits.pt2")
    if name in ("sign", "verify --signature"):
        sign_output(folder)
    result = run(*CALLS[name], "-q")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) < 200
    assert "\x1b" not in result.stdout


@needs_terminal
@pytest.mark.parametrize("name", ["convert", "embed", "verify"])
def test_quiet_draws_nothing_on_a_terminal(folder: Path, name: str) -> None:
    shown = on_terminal(*CALLS[name], "-q", VIT_HUB_CACHE=str(folder / "cache"))
    assert len(shown.splitlines()) <= 1
    assert "\r" not in shown
    assert "\x1b" not in shown


@needs_terminal
def test_bars_and_text_count_in_the_same_units(folder: Path) -> None:
    shown = on_terminal("convert", DATA / "vit_nano_digits.npz", "a.safetensors", NO_COLOR="1")
    assert re.search(r"converting: 100%.*\b322k/322k", shown)
    assert "322 kB" in on_terminal("inspect", "a.safetensors", NO_COLOR="1")


@pytest.mark.parametrize("to", ["canonical", "timm", "hf", "mmpretrain"])
def test_predict_names_classes_as_the_library_does(
    answer: Callable[..., object], models: Path, tmp_path: Path, to: str
) -> None:
    path = vit_hub.convert(models / "imagenet.safetensors", tmp_path / "out", to=to, lossy=True).path
    names = vit_hub.class_names(vit_hub.load(path))
    assert names is not None
    data = answer("predict", path, DATA / "digits" / "7.png")
    for guess in data["predictions"][0]["classes"]:  # type: ignore[index]
        assert guess["name"] == names[guess["index"]]
