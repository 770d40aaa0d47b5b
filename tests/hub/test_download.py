"""The whole path: a name, a fetched and verified file, a canonical one in the cache, a model."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_fixtures import MakeEntry, cache, make_entry, server
from servers import HubServer, Reply, Server, serving
from tiny import CONFIG, timm_file, vit_jax_file

import vit_hub.hub.download
from vit_hub.converters import open_checkpoint
from vit_hub.errors import CheckpointError, ConfigError, DownloadError, ModelNotFoundError
from vit_hub.hub.cache.paths import cache_dir
from vit_hub.registry import Entry, WeightSource

__all__ = ["cache", "make_entry", "server"]  # fixtures

SHA256 = hashlib.sha256(vit_jax_file()).hexdigest()


@pytest.fixture
def pinned(make_entry: MakeEntry, server: Server) -> Entry:
    return make_entry(
        WeightSource(
            kind="https", format="vit_jax", url=server.url + "/tiny.npz", sha256=SHA256, size=len(vit_jax_file())
        )
    )


def test_from_a_name_to_a_canonical_file(pinned: Entry) -> None:
    path = vit_hub.download("tiny")
    assert path.parent == cache_dir() / "canonical" / "tiny"
    ckpt = open_checkpoint(path, format="canonical")
    assert ckpt.config == CONFIG.replace(resize=ckpt.config.resize, resize_by_count=ckpt.config.resize_by_count)
    passport = ckpt.passport
    assert (passport.format, passport.weights_id, passport.license) == ("vit_jax", "tiny", "mit")
    assert passport.source == [{"file": "tiny.npz", "size": len(vit_jax_file()), "sha256": SHA256}]
    assert passport.converter == vit_hub.__version__
    assert passport.preprocess == pinned.preprocess
    assert vit_hub.compare(path, "tiny").same_weights


def test_the_canonical_file_gives_the_same_numbers(pinned: Entry) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = vit_hub.load("tiny")(images)
        assert torch.equal(vit_hub.load(vit_hub.download("tiny"))(images), expected)
    assert expected.shape == (2, 5)


def test_it_is_fetched_and_converted_once(pinned: Entry, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = vit_hub.download("tiny")
    before = path.stat()
    (fetched,) = (cache_dir() / "files").rglob("*.npz")
    fetched.unlink()
    monkeypatch.setenv("VIT_HUB_OFFLINE", "1")
    assert vit_hub.download("tiny") == path
    assert path.stat() == before
    assert server.count() == 1


def test_without_a_pin_the_fetched_file_says_whether_to_convert(
    make_entry: MakeEntry, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_entry("/tiny.npz")
    path = vit_hub.download("tiny")
    before = path.stat()
    assert vit_hub.download("tiny") == path
    assert path.stat() == before
    make_entry("/tiny.npz", license="apache-2.0")
    assert vit_hub.download("tiny") == path
    assert open_checkpoint(path).passport.license == "apache-2.0"
    monkeypatch.setattr(vit_hub.hub.download, "__version__", "99.0")
    assert vit_hub.download("tiny") != path
    assert server.count() == 1


def test_force_converts_again(pinned: Entry) -> None:
    path = vit_hub.download("tiny")
    content, before = path.read_bytes(), path.stat()
    assert vit_hub.download("tiny", force=True) == path
    assert path.read_bytes() == content
    assert path.stat().st_ino != before.st_ino or path.stat().st_mtime_ns != before.st_mtime_ns


def test_a_damaged_canonical_file_is_written_anew(pinned: Entry) -> None:
    path = vit_hub.download("tiny")
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert vit_hub.download("tiny") == path
    assert path.read_bytes() == content


def test_a_failed_conversion_leaves_nothing(pinned: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(array: object, buffers: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vit_hub.converters.containers.chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vit_hub.download("tiny")
    assert not [path for path in (cache_dir() / "canonical").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert vit_hub.download("tiny").is_file()


def test_an_address_is_downloaded_too(server: Server) -> None:
    path = vit_hub.download(server.url + "/tiny.npz")
    assert path.parent == cache_dir() / "canonical" / "tiny"
    assert vit_hub.load(path).config.num_heads == CONFIG.num_heads


def test_a_canonical_source_keeps_its_provenance(pinned: Entry, server: Server) -> None:
    first = vit_hub.download("tiny")
    second = vit_hub.download(server.add("/canonical.safetensors", Reply(first.read_bytes())))
    assert second != first
    assert second.read_bytes() == first.read_bytes()


def test_a_local_file_is_for_convert(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(vit_jax_file())
    with pytest.raises(ConfigError, match="convert"):
        vit_hub.download(str(tmp_path / "x.npz"))
    with pytest.raises(CheckpointError, match="no such file"):
        vit_hub.download(str(tmp_path / "y.npz"))


def test_unknown_names_and_dead_links(make_entry: MakeEntry) -> None:
    with pytest.raises(ModelNotFoundError):
        vit_hub.download("vit-b61")
    make_entry("/gone.npz")
    with pytest.raises(DownloadError, match="404"):
        vit_hub.download("tiny")


def test_a_hugging_face_repository_from_its_name_to_a_model(tmp_path: Path) -> None:
    config = b'{"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 3, "act_layer": "gelu_tanh"}}'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    code = (
        "import vit_hub; path = vit_hub.download('someone/tiny-vit'); print(path.parent.name);"
        "config = vit_hub.load(path).config; print(config.num_heads, config.act);"
        "print(config == vit_hub.load('someone/tiny-vit', offline=True).config)"
    )
    with serving(HubServer) as hub:
        assert isinstance(hub, HubServer)
        hub.add_repo("someone/tiny-vit", {"model.safetensors": timm_file(), "config.json": config})
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["someone--tiny-vit", "3 gelu_tanh", "True"]


def test_download_needs_no_framework() -> None:
    code = (
        "import sys, vit_hub.hub.download, vit_hub.hub.fetch, vit_hub.hub.resolve;"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'httpx2') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
