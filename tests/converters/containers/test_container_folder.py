"""Folders and sharded checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_hub.converters.containers import open_raw, write_tensors
from vit_hub.converters.tensors import from_array
from vit_hub.errors import CheckpointError, UnknownFormatError

SUFFIXES = {".safetensors": "safetensors", ".npz": "npz"}


def save(path: Path, *names: str) -> Path:
    """A file with tensors of these names, each holding its own name's length."""
    tensors = {name: from_array(np.full(2, len(name), np.float32)) for name in names}
    write_tensors(path, SUFFIXES.get(path.suffix, "torch"), tensors, {"format": "pt"})
    return path


def index(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return path


ORDER = (
    "model.safetensors",
    "other.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "weights.pth",
)


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_order_of_preference(tmp_path: Path, first: int) -> None:
    for name in ORDER[first:]:
        save(tmp_path / name, "w")
    (tmp_path / "notes.txt").write_text("nothing")
    source = open_raw(tmp_path)
    assert source.path == tmp_path
    assert source.files == (tmp_path / ORDER[first],)


@pytest.mark.parametrize("name", ["a.bin", "a.pth", "a.pt", "a.npz", "a.safetensors"])
def test_a_single_file_of_any_name(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, "w")
    (tmp_path / f"._{name}").write_text("what another system left beside it")
    assert open_raw(str(tmp_path)).files == (tmp_path / name,)


@pytest.mark.parametrize("names", [("a.pth", "b.npz"), ("a.safetensors", "b.safetensors")])
def test_candidates_that_nothing_tells_apart(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        save(tmp_path / name, "w")
    with pytest.raises(CheckpointError, match=", ".join(names)):
        open_raw(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no weights.*model\.safetensors.*pytorch_model\.bin.*\*\.npz"):
        open_raw(tmp_path)


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_raw(tmp_path / "pipe")


def test_sidecars_belong_to_folders_and_customary_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224}')
    expected = {"config.json": {"model_type": "vit"}, "preprocessor_config.json": {"size": 224}}
    mine, customary = save(tmp_path / "mine.safetensors", "w"), save(tmp_path / "model.safetensors", "w")
    assert open_raw(tmp_path).sidecars == expected
    assert open_raw(customary).sidecars == expected
    assert open_raw(mine).sidecars == {}
    customary.unlink()
    assert open_raw(tmp_path).sidecars == expected


@pytest.mark.parametrize("content", ["{", "[]", '{"a": NaNN}', "\xff", "[" * 100_000])
def test_sidecars_that_are_no_json_objects(tmp_path: Path, content: str) -> None:
    save(tmp_path / "model.safetensors", "w")
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_raw(tmp_path)


@pytest.mark.parametrize(
    ("names", "index_name", "container"),
    [
        (("m-1.safetensors", "m-2.safetensors"), "model.safetensors.index.json", "safetensors"),
        (("m-1.bin", "m-2.bin"), "pytorch_model.bin.index.json", "torch"),
    ],
)
def test_sharded(tmp_path: Path, names: tuple[str, str], index_name: str, container: str) -> None:
    files = (save(tmp_path / names[0], "a", "ccc"), save(tmp_path / names[1], "bb"))
    path = index(tmp_path, {"a": names[0], "bb": names[1], "ccc": names[0]}, index_name)
    (tmp_path / "config.json").write_text('{"x": 1}')
    for given in (tmp_path, path):
        source = open_raw(given)
        assert source.container == container
        assert source.files == files
        assert source.sidecars == {"config.json": {"x": 1}}
        assert {name: int(item.read()[0]) for name, item in source.tensors.items()} == {"a": 1, "ccc": 3, "bb": 2}
        assert source.metadata == ({"format": "pt"} if container == "safetensors" else {})


def test_shards_that_are_not_as_the_index_says(tmp_path: Path) -> None:
    one, two = save(tmp_path / "1.safetensors", "a").name, save(tmp_path / "2.safetensors", "b").name
    index(tmp_path, {"a": one, "b": "3.safetensors"})
    with pytest.raises(CheckpointError, match=r"3\.safetensors that it names is missing"):
        open_raw(tmp_path)
    index(tmp_path, {"a": one, "c": two})
    with pytest.raises(CheckpointError, match=r"2\.safetensors: tensor 'c' is not in this file"):
        open_raw(tmp_path)
    save(tmp_path / two, "a", "b")
    index(tmp_path, {"a": one, "b": two})
    with pytest.raises(CheckpointError, match=r"2\.safetensors: tensor 'a' is also in another file"):
        open_raw(tmp_path)
    save(tmp_path / "2.npz", "b")
    index(tmp_path, {"a": one, "b": "2.npz"})
    with pytest.raises(CheckpointError, match="different containers: npz, safetensors"):
        open_raw(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/x", "", ".", "..", "..\\x", "x\0", 3, None])
def test_shards_outside_the_folder(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save(tmp_path / "secret", "a")
    index(folder, {"a": name})
    with pytest.raises(CheckpointError, match="not a name in this folder"):
        open_raw(folder)


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_index_without_a_map(tmp_path: Path, weight_map: Any) -> None:
    index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="weight_map"):
        open_raw(tmp_path)


def test_index_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"a": 1}')
    with pytest.raises(UnknownFormatError, match="JSON"):
        open_raw(tmp_path)
    path.write_text('{"weight_map": {')
    with pytest.raises(CheckpointError, match="not JSON"):
        open_raw(tmp_path)
    index(tmp_path, {"a": path.name})
    with pytest.raises(CheckpointError, match="different containers: index"):
        open_raw(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that exists and cannot be read")
def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "w")
    (tmp_path / "config.json").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_raw(tmp_path)


def test_of_a_long_text_no_more_is_read_than_an_index_may_have(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text('{"weight_map": "' + "x" * 10_000)
    os.truncate(path, 1 << 40)  # sparse
    with pytest.raises(CheckpointError, match="more than 33,554,432 bytes"):
        open_raw(path)
