"""Time downloads from a local server, unthrottled and throttled, beside ``curl`` in the same run. Linux only.

    python benchmarks/download.py --markdown benchmarks/download.md

A server in a process of its own sends a random safetensors file with sendfile(2), so that it costs little: as fast as
loopback allows, or, as many servers on the internet do, with a limit on the rate of each connection. Every round runs
``curl -o``, ``curl -o`` and ``sync`` of the file, vit-hub limited to one connection, and vit-hub as it is; the tables
have the medians. The file is in the page cache of the server; outputs are new files, removed afterwards; the
interpreter is up with vit_hub imported. ``curl`` starts a process, vit-hub sets up its client.

vit-hub hashes the file while it comes, compares the hash with the pinned one, checks that it is a checkpoint, and ends
with fsync and a rename, as always; ``curl`` does none of it. "CPU" is user and system time of the client.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import report

from vit_hub.hub.http import download, transfer
from vit_hub.registry import WeightSource

CONNECTIONS, LARGE = transfer.CONNECTIONS, download.LARGE
BURST = 1 << 18  # bytes that a throttled connection sends at a time
HEADER = ("client", "time", "rate", "rate / curl", "rate / (curl + sync)", "CPU")


def answer(connection: socket.socket, descriptor: int, size: int, rate: float) -> None:
    """Answer the requests of one connection: the file, or the range of it that is requested.

    Args:
        connection: with the client.
        descriptor: of the file.
        size: of the file, in bytes.
        rate: limit in bytes per second; 0: none.
    """
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request := read_head(connection):
            found = re.search(rb"\r\nrange: *bytes=(\d+)-(\d*)", request, re.IGNORECASE)
            start, end = (int(found[1]), int(found[2] or size - 1) + 1) if found else (0, size)
            lines = [
                "HTTP/1.1 206 Partial Content" if found else "HTTP/1.1 200 OK",
                *([f"Content-Range: bytes {start}-{end - 1}/{size}"] if found else []),
                f"Content-Length: {end - start}",
                "Accept-Ranges: bytes",
                'ETag: "1"',
            ]
            try:
                connection.sendall("\r\n".join([*lines, "", ""]).encode())
                begun, first = time.monotonic(), start
                while start < end:
                    start += os.sendfile(
                        connection.fileno(), descriptor, start, min(end - start, BURST if rate else size)
                    )
                    if rate:
                        time.sleep(max(0.0, begun + (start - first) / rate - time.monotonic()))
            except OSError:  # the client has what it wants
                return


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        try:
            piece = connection.recv(65536)
        except OSError:
            return b""
        if not piece:
            return b""
        head += piece
    return head


def serve(file: Path, rate: float) -> None:
    """Print the port, then serve until killed."""
    descriptor, size = os.open(file, os.O_RDONLY), file.stat().st_size
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=answer, args=(connection, descriptor, size, rate), daemon=True).start()


@contextmanager
def serving(file: Path, rate: float) -> Iterator[str]:
    """Yield the address of ``file`` on a server in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--once", str(file), "--rate", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/model.safetensors"
        finally:
            server.kill()


def write_checkpoint(path: Path, size: int) -> str:
    """Write a safetensors file of one tensor of random bytes; return its sha256."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    generator, digest = np.random.default_rng(0), hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(header).to_bytes(8, "little"), header):
            digest.update(piece)
            file.write(piece)
        for offset in range(0, size, 1 << 24):
            block = generator.bytes(min(1 << 24, size - offset))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def curl(url: str, path: Path, *, sync: bool) -> None:
    subprocess.run(["curl", "--silent", "--fail", "--noproxy", "*", "-o", str(path), url], check=True)
    if sync:
        subprocess.run(["sync", str(path)], check=True)


def fetch(source: WeightSource, path: Path, *, connections: int) -> None:
    transfer.CONNECTIONS = connections
    download.LARGE = LARGE if connections > 1 else sys.maxsize  # one connection fetches all in one piece
    download.stream_to(path, source)


def timed(action: Callable[[Path], None], path: Path) -> tuple[float, float]:
    """Return wall and CPU seconds."""

    def cpu() -> float:
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    os.sync()  # what the one before left in memory is not written at this one's expense
    start, before = time.perf_counter(), cpu()
    action(path)
    result = time.perf_counter() - start, cpu() - before
    path.unlink()
    return result


def measure(url: str, sha256: str, file: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU seconds of each client."""
    source = WeightSource(kind="https", format="", url=url, sha256=sha256, size=file.stat().st_size)
    actions: dict[str, Callable[[Path], None]] = {
        "curl": lambda path: curl(url, path, sync=False),
        "curl + sync": lambda path: curl(url, path, sync=True),
        "vit-hub, 1 connection": lambda path: fetch(source, path, connections=1),
        f"vit-hub, {CONNECTIONS} connections": lambda path: fetch(source, path, connections=CONNECTIONS),
    }
    times: dict[str, list[tuple[float, float]]] = {title: [] for title in actions}
    for _ in range(rounds):
        for title, action in actions.items():
            times[title].append(timed(action, file.with_name("fetched.safetensors")))
    return times


def rows_of(times: dict[str, list[tuple[float, float]]], size: int) -> list[tuple[str, ...]]:
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    plain, synced = (medians[name][0] for name in list(medians)[:2])
    return [
        (
            name,
            f"{wall:.2f} s",
            f"{size / wall / report.MB:.0f} MB/s",
            f"{plain / wall:.2f}",
            f"{synced / wall:.2f}",
            f"{used:.2f} s",
        )
        for name, (wall, used) in medians.items()
    ]


def curl_version() -> str:
    return subprocess.run(["curl", "--version"], check=True, capture_output=True, text=True).stdout.split()[1]


def main() -> None:
    options = report.parser(__doc__, rounds=9)
    options.add_argument("--megabytes", type=int, default=400, help="size of the file (default: 400)")
    options.add_argument("--rate", type=float, default=40.0, help="limit of each connection, in MB/s (default: 40)")
    options.add_argument("--throttled-rounds", type=int, default=3, help="measurements with it (default: 3)")
    given = options.parse_args()
    if given.once:
        serve(Path(given.once), given.rate * report.MB)
    os.environ["NO_PROXY"] = "127.0.0.1"
    with (
        report.report("Downloads beside `curl`", __doc__, given) as lines,
        tempfile.TemporaryDirectory(dir=given.folder) as name,
    ):
        folder = Path(name)
        os.environ["VIT_HUB_CACHE"] = str(folder / "cache")
        file, size = folder / "served.safetensors", given.megabytes * report.MB
        sha256 = write_checkpoint(file, size)
        lines += [
            f"A file of {given.megabytes} MB; httpx2 {httpx2.__version__}, curl {curl_version()}. "
            "Goal: at least 0.8 of curl's rate.",
        ]
        for title, rate, rounds in (
            ("Without a limit", 0.0, given.rounds),
            (f"Each connection limited to {given.rate:.0f} MB/s", given.rate, given.throttled_rounds),
        ):
            with serving(file, rate) as url:
                times = measure(url, sha256, file, rounds)
            lines += ["", f"{title}; medians of {rounds} rounds:", "", *report.table(HEADER, rows_of(times, size))]


if __name__ == "__main__":
    main()
