"""Downloads that break off and go on: in the same run, in the next one, over one connection and over several."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from interrupting import LISTEN
from misbehaving import Fault, File, Host, host, weights

import vit_hub.hub.http.download
import vit_hub.hub.http.retry
from vit_hub.errors import DownloadError, IntegrityError
from vit_hub.hub.http.download import stream_to
from vit_hub.hub.http.part_file import PartFile
from vit_hub.registry import WeightSource

__all__ = ["host"]  # fixture

WEIGHTS = weights(200_000)
NEW = weights(210_000, seed=1)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
TOTAL = len(WEIGHTS)
FILE = "/weights.safetensors"
GONE = Fault(status=404)
FETCH = f"""
{LISTEN}
import sys
from pathlib import Path
from vit_hub.hub.http.download import stream_to
from vit_hub.registry import WeightSource
stream_to(Path(sys.argv[1]), WeightSource(kind="https", format="", url=sys.argv[2]))
"""
QUARTERS = [TOTAL * quarter // 4 for quarter in range(4)]


@pytest.fixture(autouse=True)
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which take no time."""
    pauses: list[float] = []
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(vit_hub.hub.http.retry, "pause", pauses.append)
    return pauses


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "there" / "weights.safetensors"


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this size come over four connections, in eight pieces."""
    monkeypatch.setattr(vit_hub.hub.http.download, "LARGE", 100_000)
    monkeypatch.setattr(vit_hub.hub.http.download, "PIECE", 25_600)


def web(url: str, **pins: Any) -> WeightSource:
    return WeightSource(kind="https", format="", url=url, **pins)


def left(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


def leave_a_part(host: Host, path: Path, file: File, cut: int, **pins: Any) -> WeightSource:
    """Ends a first run in the middle of the file."""
    source = web(host.add(FILE, file, Fault(cut=cut), GONE), **pins)
    with pytest.raises(DownloadError, match="404"):
        stream_to(path, source)
    assert not path.exists()
    return source


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("cut", QUARTERS)
def test_a_cut_body_goes_on_where_it_ended(host: Host, path: Path, cut: int, reset: bool) -> None:
    source = web(host.add(FILE, File(WEIGHTS), Fault(cut=cut, reset=reset)))
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS
    assert left(path) == [path.name]
    first, second = host.requests
    assert first.start is None
    assert second.headers["If-Range"] == '"v1"'
    assert second.start is not None
    assert second.start <= cut if reset else second.start == cut
    assert second.sent == TOTAL - second.start


@pytest.mark.parametrize("cut", QUARTERS[1:])
def test_another_process_goes_on_where_it_ended(host: Host, path: Path, cut: int) -> None:
    url = leave_a_part(host, path, File(WEIGHTS), cut).url
    assert left(path) == [f".{path.name}.vit-hub.journal", f".{path.name}.vit-hub.part"]
    subprocess.run([sys.executable, "-c", FETCH, str(path), str(url)], check=True, env=dict(os.environ))
    assert path.read_bytes() == WEIGHTS
    assert left(path) == [path.name]
    assert host.requests[-1].start == cut
    assert host.requests[-1].sent == TOTAL - cut


def test_a_link_that_always_breaks_but_gains_finishes(host: Host, path: Path, waits: list[float]) -> None:
    stream_to(path, web(host.add(FILE, File(WEIGHTS), *[Fault(cut=10_000)] * 20)))
    assert path.read_bytes() == WEIGHTS
    assert [request.start or 0 for request in host.requests] == [*range(0, 200_001, 10_000)]
    assert max(waits) < 1  # each gain begins the count anew


def test_a_link_that_gains_nothing_more_ends_and_what_is_there_stays(host: Host, path: Path) -> None:
    source = web(host.add(FILE, File(WEIGHTS), Fault(cut=50_000), *[Fault(status=503)] * 9))
    with pytest.raises(DownloadError, match="503 Service Unavailable, 4 times"):
        stream_to(path, source)
    host.faults[FILE] = []
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS
    assert host.requests[-1].start == 50_000


@pytest.mark.parametrize(
    ("file", "pins", "condition"),
    [
        (File(WEIGHTS, modified=formatdate(1e9, usegmt=True)), {}, '"v1"'),
        (File(WEIGHTS, etag='W/"v1"', modified=formatdate(1e9, usegmt=True)), {}, formatdate(1e9, usegmt=True)),
        (File(WEIGHTS, etag=None), {"sha256": SHA256}, None),
        (File(WEIGHTS, etag=None, modified=formatdate(4e9, usegmt=True)), {"sha256_prefix": SHA256[:8]}, None),
    ],
    ids=["etag", "date", "hash", "prefix"],
)
def test_what_a_part_is_continued_with(
    host: Host, path: Path, file: File, pins: dict[str, Any], condition: str | None
) -> None:
    stream_to(path, leave_a_part(host, path, file, 70_000, **pins))
    assert path.read_bytes() == WEIGHTS
    assert host.requests[-1].start == 70_000
    assert host.requests[-1].headers.get("If-Range") == condition


@pytest.mark.parametrize(
    "file",
    [File(WEIGHTS, etag=None), File(WEIGHTS, etag='W/"v1"'), File(WEIGHTS, ranges=False)],
    ids=["no validator", "weak", "no ranges"],
)
def test_what_cannot_be_continued_is_fetched_anew(host: Host, path: Path, file: File) -> None:
    source = leave_a_part(host, path, file, 70_000)
    host.faults[FILE] = [Fault(cut=90_000)]
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS
    assert left(path) == [path.name]
    assert host.requests[-1].sent == TOTAL


CHANGES = {
    "new ETag": (File(NEW, etag='"v2"'), Fault()),
    "If-Range ignored": (File(NEW, etag='"v2"', if_range=False), Fault()),
    "same ETag, other length": (File(NEW), Fault()),
    "shorter": (File(weights(60_000, seed=2), etag='"v1"'), Fault()),
    "other start": (File(NEW, etag='"v2"'), Fault(headers={"Content-Range": f"bytes 0-9/{TOTAL}"})),
    "no range": (File(NEW, etag='"v2"', if_range=False), Fault(headers={"Content-Range": ""})),
    "other unit": (File(NEW, if_range=False), Fault(headers={"Content-Range": f"lines 1-{TOTAL}/{TOTAL}"})),
    "other length of the body": (File(WEIGHTS), Fault(headers={"Content-Length": "77"})),
}


@pytest.mark.parametrize("later", [False, True], ids=["same run", "next run"])
@pytest.mark.parametrize("change", CHANGES)
def test_two_versions_are_never_mixed(host: Host, path: Path, change: str, later: bool) -> None:
    file, fault = CHANGES[change]
    if later:
        source = leave_a_part(host, path, File(WEIGHTS), 70_000)
        host.add(FILE, file, fault)
    else:
        source = web(host.add(FILE, File(WEIGHTS), Fault(cut=70_000, then=file), fault))
    stream_to(path, source)
    assert path.read_bytes() == file.content
    assert left(path) == [path.name]


def test_a_change_that_nothing_tells_is_found_by_the_hash(host: Host, path: Path) -> None:
    other = weights(200_000, seed=2)
    source = leave_a_part(host, path, File(WEIGHTS, etag=None), 70_000, sha256=SHA256)
    host.add(FILE, File(other, etag=None))
    with pytest.raises(IntegrityError, match=SHA256):
        stream_to(path, source)
    assert left(path) == []
    with pytest.raises(IntegrityError, match=hashlib.sha256(other).hexdigest()):
        stream_to(path, source)


def test_a_changed_pin_begins_anew(host: Host, path: Path) -> None:
    source = leave_a_part(host, path, File(NEW), 70_000)
    url = host.add(FILE, File(WEIGHTS, etag='"v2"'))
    assert url == source.url
    stream_to(path, web(url, size=TOTAL))
    assert path.read_bytes() == WEIGHTS
    assert host.requests[-1].start is None


def test_what_is_whole_already_is_not_asked_for(host: Host, path: Path) -> None:
    part = PartFile(path, pinned=False)
    path.parent.mkdir()
    part.begin(TOTAL, '"v1"')
    part.file.write_bytes(WEIGHTS)
    part.pieces[0].position = TOTAL
    part.keep()
    stream_to(path, web(host.add(FILE, File(WEIGHTS)), sha256=SHA256))
    assert path.read_bytes() == WEIGHTS
    assert left(path) == [path.name]
    assert host.requests == []


@pytest.mark.parametrize(
    "claim",
    [
        {"have": [[0, TOTAL]]},  # more than the part has
        {"have": [[0, 50_000], [40_000, 60_000]]},
        {"have": [[-5, 10]]},
        {"have": [[10, 10]]},
        {"have": 7},
        {"have": [[0, "x"]]},
        {"total": 10},
        {"total": None},
        {"validator": 5},
        {"version": 99},
    ],
    ids=str,
)
def test_a_journal_that_cannot_be_true_is_not_believed(host: Host, path: Path, claim: dict[str, Any]) -> None:
    source = leave_a_part(host, path, File(WEIGHTS), 70_000)
    journal = PartFile(path, pinned=False).journal
    journal.write_text(json.dumps(json.loads(journal.read_text()) | claim))
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS
    assert left(path) == [path.name]
    assert host.requests[-1].start is None


@pytest.mark.parametrize("spoil", [b"", b"{", b"\0" * 40, None])
def test_a_part_without_a_journal_is_not_believed(host: Host, path: Path, spoil: bytes | None) -> None:
    source = leave_a_part(host, path, File(WEIGHTS), 70_000)
    part = PartFile(path, pinned=True)
    if spoil is None:
        part.journal.unlink()
    else:
        part.journal.write_bytes(spoil)
    stream_to(path, source)
    assert host.requests[-1].start is None
    assert left(path) == [path.name]


@pytest.mark.usefixtures("several")
def test_several_connections_fetch_a_large_file(host: Host, path: Path) -> None:
    stream_to(path, web(host.add(FILE, File(WEIGHTS, rate=200_000, drip=2_000)), sha256=SHA256, size=TOTAL))
    assert path.read_bytes() == WEIGHTS
    assert 7 <= len(host.requests) <= 9
    assert sum(request.start is None for request in host.requests) == 1
    assert host.most_busy >= 4


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    "faults",
    [
        [Fault(cut=10_000), Fault(cut=0), Fault(cut=12_345, reset=True), Fault(cut=25_599), Fault(cut=1)],
        [Fault(status=429, parallel=True)] * 3,
        [Fault(status=503, parallel=True, headers={"Retry-After": "3000"})] * 3,
        [Fault(cut=0, reset=True, parallel=True)] * 3,
        [Fault(), Fault(status=200, body=WEIGHTS, headers={"Content-Range": ""})],
        [Fault(), Fault(headers={"Content-Range": f"bytes 1-9/{TOTAL}"})],
    ],
    ids=["cut", "429", "503", "reset", "whole", "wrong range"],
)
def test_several_connections_survive(host: Host, path: Path, faults: list[Fault]) -> None:
    stream_to(path, web(host.add(FILE, File(WEIGHTS, rate=400_000, drip=4_000), *faults)))
    assert path.read_bytes() == WEIGHTS
    assert left(path) == [path.name]


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("after", range(0, 8, 2))
def test_a_change_between_two_pieces_gives_the_new_file(host: Host, path: Path, after: int, if_range: bool) -> None:
    new = File(NEW, etag='"v2"', if_range=if_range)
    stream_to(path, web(host.add(FILE, File(WEIGHTS), *[Fault()] * after, Fault(then=new))))
    assert path.read_bytes() in (NEW, WEIGHTS)  # which of them depends on how many pieces were left
    assert left(path) == [path.name]


@pytest.mark.usefixtures("several")
def test_pieces_are_continued_by_the_next_run(host: Host, path: Path) -> None:
    cuts = [Fault(cut=20_000), Fault(cut=15_000), Fault(cut=10_000), Fault(cut=5_000)]
    source = web(host.add(FILE, File(WEIGHTS, rate=200_000, drip=5_000), *cuts, *[GONE] * 4))
    with pytest.raises(DownloadError, match="404"):
        stream_to(path, source)
    host.faults[FILE], before = [], host.sent
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS
    assert host.sent - before < TOTAL
    assert left(path) == [path.name]


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("file", [File(WEIGHTS, ranges=False), File(WEIGHTS, etag=None)], ids=["ranges", "validator"])
def test_what_cannot_be_divided_comes_over_one_connection(host: Host, path: Path, file: File) -> None:
    stream_to(path, web(host.add(FILE, file)))
    assert path.read_bytes() == WEIGHTS
    assert len(host.requests) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupted_run_ends_at_once_and_leaves_its_part(host: Host, path: Path) -> None:
    source = web(host.add(FILE, File(WEIGHTS, rate=500, drip=10_000)))  # the second piece comes after 20 seconds
    with subprocess.Popen([sys.executable, "-c", FETCH, str(path), str(source.url)], stderr=subprocess.PIPE) as run:
        part = PartFile(path, pinned=False).file
        while not (part.exists() and part.stat().st_size):
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert b"KeyboardInterrupt" in run.communicate()[1]
        assert time.monotonic() - begun < 5
    assert not path.exists()
    host.files[FILE].rate = None
    stream_to(path, source)
    assert path.read_bytes() == WEIGHTS
    assert host.requests[-1].start == 10_000


def test_the_bar_begins_at_what_is_there(host: Host, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = leave_a_part(host, path, File(WEIGHTS), 70_000)
    bars: list[Any] = []
    counts: list[int] = []

    @contextlib.contextmanager
    def bar(label: str, total: int | None, *, show: bool, initial: int) -> Iterator[Callable[[int], None]]:
        bars.append((label, total, show, initial))
        yield counts.append

    monkeypatch.setattr(vit_hub.hub.http.download, "byte_bar", bar)
    stream_to(path, source, progress=True)
    assert bars == [(path.name, TOTAL, True, 70_000)]
    assert sum(counts) == TOTAL - 70_000
