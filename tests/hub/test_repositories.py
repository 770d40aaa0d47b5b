"""A repository loads exactly when a folder with the same files does, to the same model, by all forms of its address."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_process import COMMIT, REPO, Hub, config_file, hub
from safetensors.torch import load, save
from tiny import timm_file, vit_jax_file

from vit_hub.hub.names.hugging_face import hub_source

__all__ = ["hub"]  # a fixture

WEIGHTS, CONFIG = timm_file(), config_file()
SHARDED = {
    "model.safetensors.index.fp16.json": json.dumps(
        {"weight_map": dict.fromkeys(load(WEIGHTS), "model.fp16-00001-of-00001.safetensors")}
    ).encode(),
    "model.fp16-00001-of-00001.safetensors": WEIGHTS,
}


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save(load(WEIGHTS), file)
    return file.getvalue()


REPOSITORIES = {
    "plain": {"model.safetensors": WEIGHTS, "config.json": CONFIG},
    "open_clip's names": {"open_clip_model.safetensors": WEIGHTS, "config.json": CONFIG},
    "variant": {"model.fp16.safetensors": WEIGHTS, "config.json": CONFIG},
    "sharded variant": {**SHARDED, "config.json": CONFIG},
    "two forms": {"model.fp16.safetensors": WEIGHTS[:-1], "model.safetensors": WEIGHTS, "config.json": CONFIG},
    "own name": {"vit_tiny.safetensors": WEIGHTS, "config.json": CONFIG},
    "own name, no config": {"vit_tiny.npz": vit_jax_file(), "README.md": b"words"},
    "pickled": {"model.pth": pickled(), "config.json": CONFIG, "optimizer.pt": b"no weights"},
    "pickled, by torch's name": {"pytorch_model.bin": pickled(), "config.json": CONFIG, "training_args.bin": b"none"},
    "several": {"a.npz": vit_jax_file(), "b.npz": vit_jax_file()},
    "none": {"README.md": b"words", "config.json": CONFIG},
    "below": {"README.md": b"words", "image_encoder/model.safetensors": WEIGHTS},
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def config_of(hub: Hub, source: object) -> Any:
    """Return what `inspect` finds, or None if it fails."""
    process = hub.command("inspect", source, "--json")
    out, _ = process.communicate(timeout=120)
    found = json.loads(out)
    return None if process.returncode else (found["format"], found["config"])


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_gives_what_a_folder_gives(name: str, hub: Hub, tmp_path: Path) -> None:
    files = REPOSITORIES[name]
    hub.server.add_repo(REPO, files)
    found = config_of(hub, REPO)
    assert found == config_of(hub, write(tmp_path / "copy", files))
    assert (found is None) == (name in ("several", "none", "below"))
    if found:
        del hub.server.repos[REPO]
        hub.variables["VIT_HUB_OFFLINE"] = "1"
        assert config_of(hub, REPO) == found
        shutil.rmtree(tmp_path / "cache")  # only Hugging Face's cache is left
        assert config_of(hub, REPO) == found


def test_only_what_is_needed_is_fetched(hub: Hub) -> None:
    hub.server.add_repo(REPO, {**REPOSITORIES["two forms"], "pytorch_model.bin": pickled(), "tf_model.h5": b"x"})
    hub.run("inspect", REPO)
    fetched = {
        path.rpartition("/")[2] for method, path in hub.server.requests if method == "GET" and "/api/" not in path
    }
    assert fetched == {"model.safetensors", "config.json"}


def test_only_the_shards_with_the_image_encoder_are_fetched(hub: Hub, tmp_path: Path) -> None:
    tower = {f"vision_tower.{name}": tensor for name, tensor in load(WEIGHTS).items()}
    text = {f"language_model.model.layers.{i}.mlp.up_proj.weight": torch.ones(2) for i in range(4)}
    shards = {"model-00001-of-00002.safetensors": text, "model-00002-of-00002.safetensors": tower}
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    files = {
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        "config.json": CONFIG,
        **{file: save(tensors) for file, tensors in shards.items()},
    }
    hub.server.add_repo(REPO, files)
    found = config_of(hub, REPO)
    assert found
    assert found == config_of(hub, write(tmp_path / "copy", files))
    assert "model-00001-of-00002.safetensors" not in " ".join(path for _, path in hub.server.requests)
    hub.run("convert", REPO, tmp_path / "out.safetensors")
    assert "fetch all files" in hub.answer("convert", REPO, tmp_path / "b", "--keep-rest", code=1)["error"]["hint"]
    hub.run("lock", REPO)
    hub.run("verify", "--lockfile", "vit-hub.lock")
    del hub.server.repos[REPO]
    assert hub.answer("inspect", REPO, "--offline")["config"] == found[1]


def test_an_adapter_of_a_repository_is_merged_into_the_base_that_it_names(hub: Hub, tmp_path: Path) -> None:
    qkv = load(WEIGHTS)["blocks.0.attn.qkv.weight"]
    first, second = torch.randn(2, qkv.shape[1]), torch.randn(qkv.shape[0], 2)
    start = "base_model.model.blocks.0.attn.qkv"
    adapter = {f"{start}.lora_A.weight": first, f"{start}.lora_B.weight": second}
    settings = {"peft_type": "LORA", "base_model_name_or_path": REPO, "lora_alpha": 6, "r": 2}
    hub.server.add_repo(REPO, REPOSITORIES["plain"])
    hub.server.add_repo(
        "someone/adapter",
        {"adapter_model.safetensors": save(adapter), "adapter_config.json": json.dumps(settings).encode()},
    )
    hub.run("convert", "someone/adapter", tmp_path / "merged.safetensors")
    merged = load((tmp_path / "merged.safetensors").read_bytes())["blocks.0.attn.qkv.weight"]
    assert torch.allclose(merged, qkv + 3 * second @ first, atol=1e-5)
    hub.run("convert", "someone/adapter", tmp_path / "again.safetensors", "--offline")
    hub.run("convert", "hf://someone/adapter/adapter_model.safetensors", tmp_path / "file.safetensors")
    assert len({(tmp_path / f"{name}.safetensors").read_bytes() for name in ("merged", "again")}) == 1


FOLDERS = {
    "image_encoder/model.safetensors": WEIGHTS,
    "image_encoder/config.json": CONFIG,
    "config.json": config_file(heads=6),
    "other.bin": b"not this one",
}


@pytest.mark.parametrize(
    "address",
    [
        "hf://{repo}/image_encoder",
        "hf://{repo}/image_encoder/",
        "hf://{repo}@main/image_encoder",
        "hf://{repo}@{commit}/image_encoder",
        "hf://{repo}@refs%2Fpr%2F1/image_encoder",
        "hf://{repo}/image_encoder/model.safetensors",
        "{url}/{repo}/tree/main/image_encoder",
        "{url}/{repo}/tree/refs%2Fpr%2F1/image_encoder",
        "{url}/{repo}/blob/main/image_encoder/model.safetensors",
        "{url}/{repo}/resolve/main/image_encoder/model.safetensors?download=true",
        "{url}/{repo}/tree/{commit}/image_encoder/",
    ],
)
def test_a_folder_of_a_repository(address: str, hub: Hub, tmp_path: Path) -> None:
    hub.server.add_repo(REPO, FOLDERS)
    hub.server.revisions.add("refs/pr/1")
    found = config_of(hub, address.format(repo=REPO, commit=COMMIT, url=hub.server.url))
    assert found == config_of(hub, write(tmp_path / "copy", FOLDERS) / "image_encoder")
    assert found
    hub.run("download", address.format(repo=REPO, commit=COMMIT, url=hub.server.url))
    rows = hub.answer("cache", "ls")
    assert {Path(file).name for row in rows for file in row["files"] if row["kind"] == "hugging face"} == {
        "model.safetensors",
        "config.json",
    }


@pytest.mark.parametrize("within", ["", "tower"])
@pytest.mark.parametrize("files", ["plain", "own name"])
def test_locked_and_mirrored_weights_keep_their_config(files: str, within: str, hub: Hub, tmp_path: Path) -> None:
    hub.server.add_repo(REPO, {f"{within}/{name}".lstrip("/"): body for name, body in REPOSITORIES[files].items()})
    address = f"hf://{REPO}/{within}".rstrip("/")
    path = hub.run("download", address)
    hub.run("lock", address)
    assert hub.run("download", address, "--locked") == path
    hub.run("verify", "--lockfile", "vit-hub.lock")
    hub.run("mirror", tmp_path / "mirror", address)
    for name in ("cache", "hf"):
        shutil.rmtree(tmp_path / name)
    hub.server.repos.clear()
    hub.variables["VIT_HUB_MIRROR"] = str(tmp_path / "mirror")
    assert hub.run("download", address) == path
    assert hub.run("download", address, "--locked") == path


def test_a_repository_of_several_weights_lists_them(hub: Hub) -> None:
    hub.server.add_repo(REPO, REPOSITORIES["several"])
    error = hub.answer("inspect", REPO, code=1)["error"]
    assert "a.npz, b.npz" in error["message"]
    assert f"hf://{REPO}/a.npz" in error["hint"]
    assert config_of(hub, f"hf://{REPO}/a.npz")


def test_a_repository_without_weights_lists_what_it_has(hub: Hub) -> None:
    hub.server.add_repo(REPO, REPOSITORIES["below"])
    error = hub.answer("inspect", REPO, code=1)["error"]
    assert f"{REPO} has no weights" in error["message"]
    assert "it has image_encoder/model.safetensors, README.md" in error["hint"]
    assert f"hf://{REPO}/image_encoder/model.safetensors" in error["hint"]
    error = hub.answer("inspect", f"hf://{REPO}/text_encoder", code=1)["error"]
    assert "no file or folder text_encoder" in error["message"]
    assert "image_encoder/model.safetensors" in error["hint"]


def test_a_config_of_other_weights_is_not_read(hub: Hub, tmp_path: Path) -> None:
    """Beside weights of any name a config may be about something else, in a repository as in a folder."""
    files = {**REPOSITORIES["several"], "config.json": b"[no json"}
    hub.server.add_repo(REPO, files)
    found = config_of(hub, f"hf://{REPO}/a.npz")
    assert found
    assert found == config_of(hub, write(tmp_path / "copy", files) / "a.npz")


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("https://huggingface.co/owner/name/tree/main", None),
        ("https://huggingface.co/owner/name/tree/main/", None),
        ("https://huggingface.co/owner/name/tree/main/a/b", "a/b"),
        ("https://huggingface.co/owner/name/blob/main/a/m.safetensors", "a/m.safetensors"),
        ("hf://owner/name/", None),
        ("hf://owner/name@v1/a/", "a"),
    ],
)
def test_addresses_of_folders(text: str, file: str | None) -> None:
    found = hub_source(text)
    assert found is not None
    assert (found.repo, found.file) == ("owner/name", file)


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "FILE:{}", "local-dir:{}"])
def test_local_addresses(form: str, hub: Hub, tmp_path: Path) -> None:
    folder = write(tmp_path / "a folder", REPOSITORIES["own name"])
    quoted = str(folder) if form.startswith("local-dir") else str(folder).replace(" ", "%20")
    assert config_of(hub, form.format(quoted)) == config_of(hub, folder)
    assert "no such file" in hub.run("inspect", form.format(f"{quoted}-missing"), code=1)
    assert hub.server.requests == []


def test_files_of_another_machine_are_refused(hub: Hub) -> None:
    assert "the machine example.org" in hub.run("inspect", "file://example.org/x.npz", code=1)


STORE = """
import io, sys, fsspec
from fsspec.implementations.memory import MemoryFileSystem

class Store(MemoryFileSystem):
    protocol = "s3"
    store = {}
    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

fsspec.register_implementation("s3", Store, clobber=True)
Store().pipe("s3://bucket/a/tiny.npz", open(sys.argv.pop(1), "rb").read())
Store().pipe("s3://bucket/page.npz", b"<html></html>")
from vit_hub.cli import main
main()
"""


def test_objects_of_a_store(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "tiny.npz"
    file.write_bytes(vit_jax_file())
    path = hub.run(file, "download", "s3://bucket/a/tiny.npz", program=STORE)
    assert hub.run("download", "s3://bucket/a/tiny.npz", "--offline") == path
    assert "not a checkpoint" in hub.run(file, "inspect", "s3://bucket/page.npz", program=STORE, code=1)
    assert "s3://bucket/none.npz" in hub.run(file, "inspect", "s3://bucket/none.npz", program=STORE, code=1)
    [row] = [row for row in hub.answer("cache", "ls") if row["kind"] == "web"]
    assert Path(row["path"]).read_bytes() == vit_jax_file()


def test_a_store_without_the_extra_names_it() -> None:
    program = "import sys; sys.modules['s3fs'] = None; from vit_hub.cli import main; main()"
    command = [sys.executable, "-c", program, "inspect", "s3://bucket/x.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "vit-hub[s3]" in done.stderr


def test_objects_of_google_are_fetched_by_their_public_address(hub: Hub) -> None:
    found = hub.run("inspect", "gs://some bucket/x y.npz", "--offline", code=1)
    assert "https://storage.googleapis.com/some%20bucket/x%20y.npz: not in the cache" in found
