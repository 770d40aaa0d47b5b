"""Things beside the package that people look for: torch.hub's entry points, a container, a job of GitHub's, aliases."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_process import COMMIT, REPO, Hub, hub

import vit_hub

__all__ = ["hub"]  # a fixture

ROOT = Path(__file__).parents[2]
NAME = "vit-nano-digits"


def entry_point(name: str, **options: Any) -> Any:
    return torch.hub.load(str(ROOT), name, source="local", **options)


def test_torch_hub_loads_models_by_their_short_names() -> None:
    model = entry_point("vit_nano_digits")
    for other in (vit_hub.load(NAME), torch.hub.load(str(ROOT), "load", NAME, source="local")):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert entry_point("vit_nano_digits", image_size=64).config.image_size == (64, 64)
    empty = entry_point("vit_ti16", pretrained=False)
    assert empty.config == vit_hub.get_config("vit-ti16")


def test_torch_hub_needs_no_installation(tmp_path: Path) -> None:
    for name in ("vit_hub", "converters", "weights_manifest", "hubconf.py"):
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    program = f"import torch; print(torch.hub.load({str(tmp_path)!r}, 'vit_nano_digits', source='local').config.depth)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout == "4\n", done.stderr


def test_from_pretrained_is_load() -> None:
    assert vit_hub.from_pretrained is vit_hub.load
    assert vit_hub.from_pretrained(NAME, image_size=64).config.image_size == (64, 64)


def test_the_container_has_what_the_package_needs() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    project = (ROOT / "pyproject.toml").read_text()
    folders = set(re.findall(r'^"vit_hub[\w.]*" = "(\w+)"$', project, re.MULTILINE))
    assert folders < copied


def test_the_job_of_github_runs(hub: Hub) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "hub.md").read_text(), re.DOTALL)
    job = yaml.safe_load(text)["jobs"]["verify"]
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert set(job["env"]) == {"VIT_HUB_CACHE", "HF_HOME"}
    assert runs[1:] == ["vit-hub download --locked", "vit-hub verify --locked"]
    hub.run("lock", REPO, NAME)
    shutil.rmtree(hub.folder / "cache")
    shutil.rmtree(hub.folder / "hf")
    for run in runs[1:]:
        hub.run(*run.split()[1:])


def test_verify_locked_wants_every_file_as_locked(hub: Hub) -> None:
    assert "no such lock file" in hub.run("verify", "--locked", code=1)
    hub.run("lock", REPO, NAME)
    names = {row["name"] for row in hub.answer("verify", "--locked")}
    assert names == {f"{REPO}@{COMMIT}", NAME} or names == {REPO, NAME}
    assert hub.run("verify", "--locked", NAME, code=2)
    # Another file of the cache does not matter.
    hub.run("download", f"hf://{REPO}/model.safetensors")
    hub.run("verify", "--locked")
    shutil.rmtree(hub.folder / "hf")
    shutil.rmtree(hub.folder / "cache")
    [row] = [row for row in hub.answer("verify", "--locked", code=3) if row["status"] != "ok"]
    assert row["status"] == "missing"
    assert REPO in row["problem"]
    assert row["hint"] == "`vit-hub download --locked` fetches it"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_verify_locked_finds_a_changed_file(hub: Hub, name: str) -> None:
    hub.run("lock", REPO)
    [file] = (hub.folder / "hf").rglob(f"snapshots/*/{name}")
    file.resolve().write_bytes(file.read_bytes() + b" ")
    [row] = [row for row in hub.answer("verify", "--locked", code=3) if row["status"] != "ok"]
    assert (row["status"], Path(row["path"]).name) == ("changed", name)
