"""Worker processes that read images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from noise import save_noise

from vit_hub import Preprocessing
from vit_hub.errors import VitHubError
from vit_hub.running.reading import NativeSize, Reader
from vit_hub.running.sources import Item, Sources, batches_of
from vit_hub.running.workers import read_by_workers

SPEC = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
READERS = {"fixed": Reader(SPEC), "native": Reader(SPEC, NativeSize((4, 4), 12))}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Images of many sizes, two of which are none."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(23):
        save_noise(folder / f"{seed:02}.png", seed, (10 + 3 * seed, 40))
    for broken in ("07.png", "16.png"):
        (folder / broken).write_bytes(b"no image")
    return list(Sources.of(folder).items())


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(("count", "size"), [(1, 4), (2, 5), (3, 2), (4, 23)])
def test_the_same_batches_as_without(kind: str, count: int, size: int, items: list[Item]) -> None:
    reader, seen = READERS[kind], 0
    for batch in read_by_workers(batches_of(items, size), reader, count, size, polite=False):
        expected = reader.batch(batch.items, reader.read(batch.items))
        assert (batch.sizes, batch.errors) == (expected.sizes, expected.errors)
        for image, other in zip(batch.images, expected.images, strict=True):
            torch.testing.assert_close(image, other, rtol=0, atol=0)
        assert batch.items == items[seen : seen + size]
        seen += len(batch.items)
    assert seen == len(items)


class Failing(Reader):
    """A reader with an error of its own."""

    def read(self, items: object, sources: object = None) -> list[object]:  # type: ignore[override]
        raise ZeroDivisionError("a bug")


def test_a_bug_is_raised_where_it_is_seen(items: list[Item]) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        list(read_by_workers(batches_of(items, 4), Failing(SPEC), 2, 4, polite=False))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no such signals")
def test_a_killed_process_is_an_error(items: list[Item]) -> None:
    batches = read_by_workers(batches_of(items, 2), READERS["fixed"], 2, 2, polite=True)
    next(batches)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(VitHubError, match="exit status -9"):
        list(batches)
    assert not multiprocessing.active_children()


def test_left_early_no_process_stays(items: list[Item]) -> None:
    batches = read_by_workers(batches_of(items, 2), READERS["fixed"], 2, 2, polite=False)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


ALONE = """
import sys, time
from vit_hub import Preprocessing
from vit_hub.running.reading import Reader
from vit_hub.running.sources import Sources, batches_of
from vit_hub.running.workers import read_by_workers

spec = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
batches = read_by_workers(batches_of(Sources.of(sys.argv[1]).items(), 2), Reader(spec), 3, 2, polite=False)
next(batches)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no such signals")
def test_processes_end_with_the_one_that_began_them(items: list[Item]) -> None:
    folder = Path(items[0].place.file).parent
    main = subprocess.Popen([sys.executable, "-c", ALONE, str(folder)], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    assert main.stdout.readline() == "begun\n"
    children = psutil.Process(main.pid).children()
    assert len(children) == 3
    os.kill(main.pid, signal.SIGKILL)
    main.communicate()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != "zombie" for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


HANDLES_SIGTERM = (
    ALONE.replace("import sys, time", "import signal, sys, time")
    .replace("next(batches)", "signal.signal(signal.SIGTERM, lambda *_: None)\nnext(batches)\nbatches.close()")
    .replace("time.sleep(60)", "")
)


def test_a_program_that_handles_sigterm_ends_its_processes(items: list[Item]) -> None:
    folder = Path(items[0].place.file).parent
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANDLES_SIGTERM, str(folder)], capture_output=True, timeout=60, check=True
    )
    assert done.stdout == b"begun\n"
    assert time.monotonic() - start < 30
