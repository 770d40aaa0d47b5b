from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from noise import save_noise


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Compute in one thread, here and in processes: the model is tiny, and sums are the same everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("VIT_HUB_OFFLINE", "1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 12 images of two classes and one of none, and a file that is no image."""
    folder = tmp_path / "photos"
    for seed in range(12):
        place = folder / ("cat" if seed < 6 else "dog") / ("deep" if seed % 3 == 0 else "")
        save_noise(place / f"{seed:02}.png", seed, (40 + seed, 50))
    save_noise(folder / "top.jpg", 12)
    (folder / "notes.md").write_text("no image")
    return folder
