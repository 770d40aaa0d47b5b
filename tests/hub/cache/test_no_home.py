"""Users without a home folder, and folders that cannot be written: the message says what to set."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_process import REPO, Hub, hub
from tiny import vit_jax_file

__all__ = ["hub"]  # a fixture

# As `docker run -u 1234`: no HOME, and no entry for the user.
PROGRAM = """
import os, pwd

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
for name in list(os.environ):
    if name == "HOME" or name.startswith("XDG_") or not os.environ[name]:
        del os.environ[name]
from vit_hub.cli import main
main()
"""


@pytest.fixture
def homeless(hub: Hub) -> Hub:
    hub.variables |= {"VIT_HUB_CACHE": "", "HF_HOME": ""}
    return hub


@pytest.mark.parametrize(
    "command",
    [
        ["cache", "dir"],
        ["cache", "ls"],
        ["cache", "prune"],
        ["download", REPO],
        ["download", "vit-nano-digits"],
        ["download", "vit-b16", "--dry-run"],
        ["inspect", REPO],
        ["inspect", "https://example.org/x.npz"],
        ["inspect", "vit-b16", "--offline"],
        ["lock", REPO],
        ["verify"],
    ],
    ids=" ".join,
)
def test_what_needs_the_cache_says_what_to_set(command: list[str], homeless: Hub) -> None:
    said = homeless.run(*command, program=PROGRAM, code=1)
    assert "no home folder" in said
    assert "VIT_HUB_CACHE" in said
    assert "Traceback" not in said
    assert not [path for path in (homeless.folder / "work").iterdir() if path.name.startswith("~")]


def test_what_needs_no_cache_works(homeless: Hub, tmp_path: Path) -> None:
    file = tmp_path / "tiny.npz"
    file.write_bytes(vit_jax_file())
    for command in (
        ["list"],
        ["info", "vit-b16"],
        ["info", file],
        ["inspect", file],
        ["inspect", "vit-nano-digits"],
        ["convert", file, tmp_path / "out.safetensors"],
        ["compare", file, "vit-nano-digits"],
    ):
        code = 3 if command[0] == "compare" else 0
        assert "Traceback" not in homeless.run(*command, program=PROGRAM, code=code)
    load = "import sys, vit_hub; print(vit_hub.load(sys.argv[1]).config.depth)"
    assert homeless.run(file, program=PROGRAM.partition("from vit_hub")[0] + load).strip().isdecimal()


def test_the_variables_are_enough(homeless: Hub) -> None:
    homeless.variables["VIT_HUB_CACHE"] = str(homeless.folder / "cache")
    said = homeless.run("inspect", REPO, program=PROGRAM, code=1)
    assert "Hugging Face's cache: this user has no home folder" in said
    assert "set HF_HOME" in said
    homeless.variables["HF_HOME"] = str(homeless.folder / "hf")
    assert REPO.rpartition("/")[2] in homeless.run("inspect", REPO, program=PROGRAM)
    assert list((homeless.folder / "work").iterdir()) == []


@pytest.mark.parametrize("variable", ["VIT_HUB_CACHE", "VIT_HUB_MIRROR"])
def test_a_tilde_that_stands_for_nothing(variable: str, homeless: Hub) -> None:
    homeless.variables |= {"VIT_HUB_CACHE": str(homeless.folder / "cache"), "HF_HOME": str(homeless.folder / "hf")}
    homeless.variables[variable] = "~/somewhere"
    said = homeless.run("inspect", REPO, program=PROGRAM, code=variable == "VIT_HUB_CACHE")
    assert "~/somewhere" in said or variable == "VIT_HUB_MIRROR"
    assert "~/x.npz" in homeless.run("inspect", "~/x.npz", program=PROGRAM, code=1)
    assert "~/x.npz" in homeless.run("info", "~/x.npz", program=PROGRAM, code=1)


def test_folders_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    hub.variables["HF_HOME"] = str(tmp_path / "file" / "hf")
    error = hub.answer("inspect", REPO, code=1)["error"]
    assert "cannot be kept" in error["message"]
    assert "HF_HOME" in error["hint"]
    hub.variables = {"VIT_HUB_CACHE": str(tmp_path / "file" / "cache")}
    # What Hugging Face's cache holds is read from there.
    assert hub.answer("inspect", REPO)["format"] == "timm"
    error = hub.answer("download", REPO, code=1)["error"]
    assert "cannot be written" in error["message"]
    assert "VIT_HUB_CACHE" in error["hint"]
    error = hub.answer("inspect", "http://127.0.0.1:9/x.npz", code=1)["error"]
    assert "VIT_HUB_CACHE" in error["hint"]
