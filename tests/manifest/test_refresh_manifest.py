"""tools/refresh_manifest.py against a local server: what it fills in, and what it leaves alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import HubServer, Reply, serving

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOOL = Path(__file__).resolve().parents[2] / "tools" / "refresh_manifest.py"
WEIGHTS, COMMIT = b"weights of a model", "c" * 40
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
DATE = "2026-11-23"

HEAD = """# What a family is about.

family = "tiny"

[defaults]
license = "mit"  # a comment that stays
"""
MODEL = """
# -------------------- tiny --------------------

[[model]]
id = "tiny"
config = {}
params = 1
data = { pretrain = "noise" }
"""
HUB = """
[[model.sources]]
kind = "hf"
format = "timm"
repo = "some/model"
file = "model.safetensors"
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serving(HubServer) as running:
        assert isinstance(running, HubServer)
        running.add_repo("some/model", {"model.safetensors": WEIGHTS, "config.json": b"{}"}, COMMIT)
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "manifest" / "tiny.toml"


@pytest.fixture
def run(hub: HubServer, file: Path, tmp_path: Path) -> Run:
    """Write the sources into a manifest of one model and refresh it."""

    def call(*sources: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        file.parent.mkdir(exist_ok=True)
        file.write_text(HEAD + MODEL + "".join(sources), encoding="utf-8")
        command = [sys.executable, str(TOOL), "--folder", str(file.parent), "--date", DATE, *options]
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        environment.pop("HF_HUB_OFFLINE", None)
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return call


def test_a_source_on_the_hub_gets_all_that_its_metadata_say(run: Run, file: Path, hub: HubServer) -> None:
    result = run(HUB + 'file_assumed = true\nrelation = "subset"\n')
    assert (result.returncode, result.stderr) == (0, "")
    assert file.read_text(encoding="utf-8") == HEAD + MODEL + HUB + (
        f'revision = "{COMMIT}"\nsha256 = "{SHA256}"\nsize = {len(WEIGHTS)}\n'
        f'evidence = "sha256, size and revision: Hugging Face\'s metadata, {DATE}"\nrelation = "subset"\n'
    )
    assert "1 sources changed, 0 with problems" in result.stdout
    assert not [path for method, path in hub.requests if method == "GET" and "resolve" in path]


def test_a_second_run_changes_nothing(run: Run, file: Path) -> None:
    run(HUB)
    text = file.read_text(encoding="utf-8")
    again = run(text.removeprefix(HEAD + MODEL), options=("--check",))
    assert (again.returncode, file.read_text(encoding="utf-8")) == (0, text)


def test_check_says_what_would_change_and_writes_nothing(run: Run, file: Path) -> None:
    result = run(HUB, options=("--check",))
    assert result.returncode == 3
    assert f'tiny.toml: tiny: + sha256 = "{SHA256}"' in result.stdout
    assert file.read_text(encoding="utf-8") == HEAD + MODEL + HUB


def test_what_is_missing_is_filled_in_beside_what_is_pinned(run: Run, file: Path) -> None:
    known = f'revision = "{COMMIT}"\nsha256 = "{SHA256}"\nevidence = "sha256 and revision: a paper"\n'
    assert run(HUB + known).returncode == 0
    [source] = tomllib.loads(file.read_text(encoding="utf-8"))["model"][0]["sources"]
    assert source["size"] == len(WEIGHTS)
    assert source["evidence"] == f"sha256 and revision: a paper; size: Hugging Face's metadata, {DATE}"


@pytest.mark.parametrize(
    "pinned",
    [
        f'sha256 = "{"0" * 64}"\nevidence = "sha256: a paper"\n',
        'size = 7\nevidence = "size: a paper"\n',
        'sha256_prefix = "00000000"\n',
    ],
)
def test_what_is_pinned_and_disagrees_is_reported_and_kept(run: Run, file: Path, pinned: str) -> None:
    result = run(HUB + pinned)
    assert result.returncode == 1
    assert "tiny: some/model/model.safetensors" in result.stderr
    assert "Hugging Face's metadata" in result.stderr
    assert file.read_text(encoding="utf-8") == HEAD + MODEL + HUB + pinned


def test_a_documented_prefix_becomes_the_whole_hash(run: Run, file: Path) -> None:
    assert run(HUB + f'sha256_prefix = "{SHA256[:8]}"\n').returncode == 0
    [source] = tomllib.loads(file.read_text(encoding="utf-8"))["model"][0]["sources"]
    assert source["sha256"] == SHA256
    assert "sha256_prefix" not in source


def test_a_small_file_has_no_hash_on_the_hub(run: Run, file: Path) -> None:
    assert run(HUB.replace("model.safetensors", "config.json")).returncode == 0
    [source] = tomllib.loads(file.read_text(encoding="utf-8"))["model"][0]["sources"]
    assert source["revision"] == COMMIT
    assert "sha256" not in source


def test_files_elsewhere_get_their_size_only(run: Run, file: Path, tmp_path: Path) -> None:
    with serving() as server:
        address = server.add("/weights.npz", Reply(WEIGHTS, headers={"ETag": f'"{SHA256}"'}))
        assert run(f'\n[[model.sources]]\nkind = "https"\nformat = "vit_jax"\nurl = "{address}"\n').returncode == 0
        assert {method for method, _ in server.requests} == {"HEAD"}
    [source] = tomllib.loads(file.read_text(encoding="utf-8"))["model"][0]["sources"]
    assert source["size"] == len(WEIGHTS)
    assert source["evidence"] == f"size: the server's Content-Length, {DATE}"
    assert "sha256" not in source


def test_one_missing_file_does_not_stop_the_others(run: Run, file: Path) -> None:
    result = run(HUB.replace("some/model", "no/model"), HUB)
    assert result.returncode == 1
    assert "tiny: no/model/model.safetensors: " in result.stderr
    missing, found = tomllib.loads(file.read_text(encoding="utf-8"))["model"][0]["sources"]
    assert "sha256" not in missing
    assert found["sha256"] == SHA256


def test_a_gated_repository_is_left_alone_where_the_manifest_says_so(run: Run, file: Path, hub: HubServer) -> None:
    hub.gated.add("some/model")
    assert run(HUB + "gated = true\n").returncode == 0
    assert file.read_text(encoding="utf-8") == HEAD + MODEL + HUB + "gated = true\n"
    result = run(HUB)
    assert result.returncode == 1
    assert '"gated = true"' in result.stderr


def test_only_the_families_asked_for(run: Run, file: Path) -> None:
    assert run(HUB, options=("--family", "tiny", "--check")).returncode == 3
    result = run(HUB, options=("--family", "huge"))
    assert result.returncode == 2
    assert "there are tiny" in result.stderr
