"""Files appear whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vit_hub.converters.containers import atomic_path, open_raw, write_tensors
from vit_hub.converters.tensors import LazyTensor, from_array
from vit_hub.errors import CheckpointError

CONTAINERS = ("safetensors", "npz", "torch", "msgpack", "hdf5")
GOOD = {"w": from_array(np.ones(3, np.float32))}


def test_makes_folders_and_obeys_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("done")
        assert not path.exists()
    assert path.read_text() == "done"
    assert list(path.parent.iterdir()) == [path]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_system_errors_name_the_destination(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "folder", ""),
        (tmp_path / "file" / "below", f"{tmp_path / 'file'} is a file, not a folder"),
        (tmp_path / "file" / "far" / "below", f"{tmp_path / 'file'} is a file, not a folder"),
        (tmp_path / ("long" * 100) / "below", ""),
    ):
        with (
            pytest.raises(CheckpointError, match=f"{path}: cannot be written: {reason}"),
            atomic_path(path) as temporary,
        ):
            temporary.write_text("x")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]


def failing(error: BaseException) -> dict[str, LazyTensor]:
    def read() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        raise error

    return {**GOOD, "late": LazyTensor("F32", (3,), read)}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), ZeroDivisionError()])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, container: str, error: BaseException) -> None:
    path = tmp_path / "file"
    write_tensors(path, container, GOOD)
    before = path.read_bytes()
    with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)) as caught:
        write_tensors(path, container, failing(error))
    if isinstance(error, OSError):
        assert f"{path}: cannot be written: No space left" in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vit_hub.converters.containers import write_tensors
from vit_hub.converters.tensors import LazyTensor, from_array

# Larger than what is read ahead of writing, so that part of it is on disk when the second one is read.
tensors = {"first": from_array(np.zeros(8 << 20, np.float32)),
           "second": LazyTensor("F32", (1,), lambda: os.kill(os.getpid(), signal.SIGKILL))}
write_tensors(Path(sys.argv[1]), sys.argv[2], tensors)
"""


def test_a_killed_write_leaves_the_old_file_and_one_hidden_one_until_the_next(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, "safetensors", GOOD)
    before = path.read_bytes()
    finished = subprocess.run([sys.executable, "-c", KILLED, str(path), "safetensors"], check=False, cwd=tmp_path)
    assert finished.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.name.startswith(".")
    assert left.name.endswith(".vit-hub.tmp")
    assert os.path.getsize(left) > 1 << 20  # noqa: PTH202
    assert open_raw(tmp_path).files == (path,)
    write_tensors(path, "safetensors", GOOD)
    assert list(tmp_path.iterdir()) == [path]


def test_a_live_writer_of_the_same_name_is_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_path(path) as first:
        first.write_text("first")
        with atomic_path(path) as second, atomic_path(tmp_path / "other") as other:
            second.write_text("second")
            other.write_text("other")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert {item.name for item in tmp_path.iterdir()} == {"file", "other"}


def test_many_writers_of_one_name_all_succeed(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(turn: int) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(str(turn))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(400)))
    assert path.read_text().isdecimal()
    assert list(tmp_path.iterdir()) == [path]
