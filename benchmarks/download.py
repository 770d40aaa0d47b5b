"""Times downloads over loopback beside ``curl`` of the same file in the same run. Linux only.

    python benchmarks/download.py --markdown benchmarks/download.md

A server in a process of its own sends a random safetensors file with sendfile(2), so that it costs little. Every round
runs ``curl -o``, ``curl -o`` and ``sync`` of the file, vit-hub as it is (one connection, and more if the file is not
there after a second), and vit-hub with all of its connections from the start; the table has the medians. The file is in
the page cache of the server; outputs are new files, removed afterwards; the interpreter is up with vit_hub imported.
``curl`` starts a process, vit-hub sets up its client.

vit-hub hashes the file while it comes, compares the hash with the pinned one, looks whether it is a checkpoint, and
ends with fsync and a rename, as always; ``curl`` does none of it. "CPU" is user and system time of the client.
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
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np
import report

from vit_hub.hub.http import download, transfer
from vit_hub.registry import WeightSource

HEADER = ("client", "time", "rate", "rate / curl", "rate / (curl + sync)", "CPU")


def answer(connection: socket.socket, descriptor: int, size: int) -> None:
    """Answers the requests of one connection: the file, or the range of it that is asked for."""
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
                while start < end:
                    start += os.sendfile(connection.fileno(), descriptor, start, end - start)
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


def serve(file: Path) -> None:
    """Prints the port, then serves until it is killed."""
    descriptor, size = os.open(file, os.O_RDONLY), file.stat().st_size
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=answer, args=(connection, descriptor, size), daemon=True).start()


def write_checkpoint(path: Path, size: int) -> str:
    """A safetensors file of one tensor of random bytes; gives its sha256."""
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


def fetch(source: WeightSource, path: Path, *, ramp: float) -> None:
    """Opens further connections after so many seconds."""
    transfer.RAMP = ramp
    download.stream_to(path, source)


def timed(action: Callable[[Path], None], path: Path) -> tuple[float, float]:
    """Wall and CPU seconds."""

    def cpu() -> float:
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    os.sync()  # what the one before left in memory is not written at this one's expense
    start, before = time.perf_counter(), cpu()
    action(path)
    result = time.perf_counter() - start, cpu() - before
    path.unlink()
    return result


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
    given = options.parse_args()
    if given.once:
        serve(Path(given.once))
    os.environ["NO_PROXY"] = "127.0.0.1"
    with (
        report.report("Downloads beside `curl`", __doc__, given) as lines,
        tempfile.TemporaryDirectory(dir=given.folder) as name,
    ):
        folder = Path(name)
        os.environ["VIT_HUB_CACHE"] = str(folder / "cache")
        file, size = folder / "served.safetensors", given.megabytes * report.MB
        sha256 = write_checkpoint(file, size)
        command = [sys.executable, str(Path(__file__).resolve()), "--once", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/model.safetensors"
            source = WeightSource(kind="https", format="", url=url, sha256=sha256, size=file.stat().st_size)
            usual = transfer.RAMP
            actions: dict[str, Callable[[Path], None]] = {
                "curl": lambda path: curl(url, path, sync=False),
                "curl + sync": lambda path: curl(url, path, sync=True),
                "vit-hub": lambda path: fetch(source, path, ramp=usual),
                f"vit-hub, {download.CONNECTIONS} connections at once": lambda path: fetch(source, path, ramp=0.0),
            }
            times: dict[str, list[tuple[float, float]]] = {title: [] for title in actions}
            for _ in range(given.rounds):
                for title, action in actions.items():
                    times[title].append(timed(action, folder / "fetched.safetensors"))
            server.kill()
        lines += [
            f"A file of {given.megabytes} MB; medians of {given.rounds} rounds; httpx2 {httpx2.__version__}, "
            f"curl {curl_version()}. Goal: at least 0.8 of curl's rate.",
            "",
            *report.table(
                ("client", "time", "rate", "rate / curl", "rate / (curl + sync)", "CPU"), rows_of(times, size)
            ),
        ]


if __name__ == "__main__":
    main()
