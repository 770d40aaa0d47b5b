"""Downloads and conversions that are killed, and processes that want the same file at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from misbehaving import File, Host, host, weights
from safetensors.numpy import save_file

import vit_hub
from vit_hub.converters import open_checkpoint
from vit_hub.hub.fetch import fetch
from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import tensor_shapes
from vit_hub.registry import WeightSource

__all__ = ["host"]  # fixture

KILLS = int(os.environ.get("VIT_HUB_TEST_KILLS", "20"))
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows knows neither fork nor SIGKILL"),
    pytest.mark.timeout(300 + 2 * KILLS),
]
PROGRAM = Path(__file__).parents[1] / "support" / "killing.py"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def killing(*arguments: object) -> dict[str, int]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    environment = {**os.environ, "VIT_HUB_TEST_KILLS": str(KILLS)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    seen: dict[str, int] = json.loads(done.stdout)
    print(seen)  # which pytest -rP shows
    return seen


def test_a_download_killed_at_random_moments(host: Host, tmp_path: Path) -> None:
    content = weights(6 << 20)
    url = host.add("/weights.safetensors", File(content, rate=150_000, drip=1_500))
    path = tmp_path / "there" / "weights.safetensors"
    seen = killing("download", url, path, hashlib.sha256(content).hexdigest())
    assert seen["killed"] == KILLS
    assert seen["wrong"] == 0
    assert seen["left"] == 1
    assert seen["most_hidden"] <= 3  # the part, its journal, and a draft of the journal
    assert path.read_bytes() == content
    assert len([request for request in host.requests if request.start]) > KILLS
    assert host.sent < 2 * len(content) * (seen["finished"] + 1)


def test_a_conversion_killed_at_random_moments(tmp_path: Path) -> None:
    config = ViTConfig(image_size=224, patch_size=16, embed_dim=384, depth=5, num_heads=6, num_classes=10)
    generator = np.random.default_rng(0)
    tensors = {name: generator.random(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    plain, source, path = tmp_path / "a.safetensors", tmp_path / "a.npz", tmp_path / "there" / "b.safetensors"
    save_file(tensors, plain)
    overrides = {"num_heads": 6, "act": "gelu_tanh"}
    vit_hub.convert(plain, source, to="vit_jax", overrides=overrides)
    vit_hub.convert(source, path, to="canonical")
    seen = killing("convert", source, path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert seen["killed"] == KILLS
    assert seen["wrong"] == 0
    assert seen["most_hidden"] == 1
    assert seen["left"] == 1
    assert open_checkpoint(path).config.depth == 5


def test_a_mirror_killed_at_random_moments(host: Host, tmp_path: Path) -> None:
    urls = [host.add(f"/{name}.safetensors", File(weights(size))) for name, size in (("a", 1 << 20), ("b", 6 << 20))]
    seen = killing("mirror", *urls, tmp_path / "mirror")
    assert (seen["killed"], seen["wrong"]) == (KILLS, 0)


def test_sixteen_processes_make_one_fetch(host: Host, cache: Path) -> None:
    content = weights(1 << 20)
    url = host.add("/weights.safetensors", File(content, rate=2e6))
    code = (
        "import sys; from vit_hub.hub.fetch import fetch; from vit_hub.registry import WeightSource;"
        "print(fetch(WeightSource(kind='https', format='', url=sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    printed = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 16
    assert len(printed) == 1
    assert Path(printed.pop()).read_bytes() == content
    assert [request.method for request in host.requests] == ["GET"]


READ_ONLY = """
import os, sys
from vit_hub.hub.fetch import fetch
from vit_hub.registry import WeightSource
if os.getuid() == 0:
    os.setuid(65534)  # whom, unlike root, the permissions bind
assert not os.access(sys.argv[2], os.W_OK)
print(fetch(WeightSource(kind="https", format="", url=sys.argv[1], sha256=sys.argv[3])))
"""


def test_a_cache_that_may_only_be_read(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = weights(1000)
    sha256 = hashlib.sha256(content).hexdigest()
    url = host.add("/weights.safetensors", File(content))
    # Not in tmp_path, whose parents are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        monkeypatch.setenv("VIT_HUB_CACHE", name)
        path = fetch(WeightSource(kind="https", format="", url=url, sha256=sha256))
        closed = [folder, *(item for item in folder.rglob("*") if item.is_dir())]
        for item in closed:
            item.chmod(0o555)
        try:
            command = [sys.executable, "-c", READ_ONLY, url, name, sha256]
            done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=dict(os.environ))
        finally:
            for item in closed:
                item.chmod(0o755)
    assert (done.stdout.strip(), done.returncode) == (str(path), 0), done.stderr
    assert len(host.requests) == 1
