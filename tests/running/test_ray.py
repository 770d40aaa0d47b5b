"""A real cluster of Ray on this machine gives what one process gives, also when an actor is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as ds
import pytest
from noise import save_noise

import vit_hub

ray = pytest.importorskip("ray")
NAME = "vit-nano-digits"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
        yield
        ray.shutdown()


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(out).to_table().to_pylist()
    return found


def actors() -> list[psutil.Process]:
    """The processes with a model among those that this one started."""
    return [process for process in psutil.Process().children(recursive=True) if _is_actor(process)]


def _is_actor(process: psutil.Process) -> bool:
    try:
        return any("ShardWorker" in part for part in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.usefixtures("cluster")
def test_an_actor_is_killed_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for seed in range(48):
        save_noise(folder / f"{seed:02}.png", seed, (300, 300))
    (folder / "07.png").write_bytes(b"broken")
    options: dict[str, Any] = {"shard_size": 4, "batch_size": 4}
    local = vit_hub.embed(NAME, folder, tmp_path / "local", **options)
    killed: list[int] = []

    def kill() -> None:
        for _ in range(2000):
            if len(list((tmp_path / "ray").glob("_shards/*.json"))) >= 2 and (found := actors()):
                killed.append(found[0].pid)
                os.kill(found[0].pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    report = vit_hub.embed(NAME, folder, tmp_path / "ray", engine="ray", actors=2, **options)
    thread.join()
    assert killed
    assert report.complete
    assert (report.rows, report.errors, report.shards) == (local.rows, local.errors, local.shards) == (47, 1, 12)
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    for name in ("_errors.jsonl", "_SUCCESS"):
        assert (tmp_path / "ray" / name).read_text() == (tmp_path / "local" / name).read_text()
    again = vit_hub.embed(NAME, folder, tmp_path / "ray", engine="ray", **options)
    assert (again.rows, again.skipped) == (0, 12)


@pytest.mark.usefixtures("cluster")
def test_map_batches_with_the_embedder_itself(tmp_path: Path) -> None:
    paths = [save_noise(tmp_path / f"{seed}.png", seed) for seed in range(6)]
    data = ray.data.from_items([{"path": str(path), "image": path.read_bytes()} for path in paths])
    ray.data.DataContext.get_current().enable_progress_bars = False
    strategy = ray.data.ActorPoolStrategy(size=1)
    found = data.map_batches(vit_hub.Embedder, fn_constructor_args=(NAME,), batch_size=3, compute=strategy).take_all()
    expected = vit_hub.Embedder(NAME)({"image": [row["path"] for row in found]})["embedding"]
    assert len(found) == 6
    for row, embedding in zip(found, expected, strict=True):
        assert row["embedding"] == pytest.approx(embedding, abs=1e-5)
