"""From the network into a partial file, over one connection or several; hashed and recorded in a journal meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from io import FileIO
from typing import Any

import httpx2

from vit_hub.errors import IntegrityError
from vit_hub.hub.http.part_file import PartFile, Piece
from vit_hub.hub.http.response import Response, request
from vit_hub.hub.http.retry import ChangedError, TransientError

__all__ = ["NOTHING_KEPT", "Transfer"]

NOTHING_KEPT = "nothing was kept; the file was changed at its source, or the connection is tampered with"
CONNECTIONS = 4
JOURNAL_EVERY = 1.0  # seconds, at most
JOURNAL_BYTES = 32 << 20  # at most; the disk writes while more is coming, and has little left to do at the end
_LAG = 0.005  # seconds between two looks for bytes to hash
_TICK = 0.1  # seconds between two movements of the bar


class Transfer:
    """Receive the missing pieces of a partial file.

    Args:
        client: of :func:`vit_hub.hub.http.response.new_client`.
        url: of the file.
        part: the partial file.
        most: bytes after which the file is too long; None: no limit.
    """

    def __init__(self, client: httpx2.Client, url: str, part: PartFile, *, most: int | None) -> None:
        self._client = client
        self._url = url
        self._part = part
        self._most = most
        self._waiting = deque(part.missing_pieces())
        self._open: set[Response] = set()
        self._stopped = False

    def run(self, response: Response | None, advance: Callable[[int], None]) -> str:
        """Complete the file, over as many connections as it has missing pieces, up to ``CONNECTIONS``.

        Args:
            response: one that begins where the first missing piece does; None: nothing is missing.
            advance: called with each count of new bytes.

        Returns:
            The sha256 of the whole file.

        Raises:
            TransientError: all connections failed.
            ChangedError: the server has another version of the file now.
            DownloadError: the server does not deliver.
            IntegrityError: it delivers more than ``most`` bytes.
            OSError: the file cannot be written.
        """
        part, saved = self._part, time.monotonic()
        shown = kept = part.size
        pieces = [self._waiting.popleft() for _ in range(min(CONNECTIONS, len(self._waiting)))]
        with ThreadPoolExecutor(1 + len(pieces)) as pool:
            hashing = pool.submit(self._hash)
            workers = [pool.submit(self._work, piece, None if n else response) for n, piece in enumerate(pieces)]
            tasks: list[Future[Any]] = [*workers, hashing]
            running = set(tasks)
            try:
                while running:
                    done, running = wait(tasks, timeout=_TICK, return_when=FIRST_EXCEPTION)
                    results = [task.result() for task in tasks if task in done]
                    if running == {hashing} and not part.complete:
                        raise next(failure for failure in results if failure)
                    size = part.size
                    advance(size - shown)
                    shown = size
                    if time.monotonic() - saved > JOURNAL_EVERY or size - kept > JOURNAL_BYTES:
                        part.save()
                        saved, kept = time.monotonic(), size
            finally:
                self._stopped = True
                for opened in tuple(self._open):
                    opened.abort()
        return hashing.result()

    def _hash(self) -> str:
        """Follow the bytes as they come, reading them back from the system's cache."""
        while (sha256 := self._part.sha256) is None and not self._stopped:
            if not self._part.hash_next():
                time.sleep(_LAG)
        return sha256 or ""

    def _work(self, piece: Piece | None, response: Response | None) -> TransientError | None:
        """Receive pieces until none is waiting; return the failure that ends this connection before."""
        with self._part.file.open("r+b", buffering=0) as file:
            while piece and not self._stopped:
                try:
                    self._receive(response or self._request(piece), piece, file)
                except TransientError as failure:
                    # Servers refuse surplus connections with various statuses, or by closing them; the others go on.
                    self._waiting.appendleft(piece)
                    return failure
                response = None
                try:
                    piece = self._waiting.popleft()
                except IndexError:
                    piece = None
        return None

    def _request(self, piece: Piece) -> Response:
        part = self._part
        response = request(
            self._client, self._url, start=piece.position, end=piece.end, total=part.total, validator=part.validator
        )
        if not response.is_part:
            response.close()
            raise ChangedError("the server sends the whole file in place of a part: it changed, or cannot be divided")
        return response

    def _receive(self, response: Response, piece: Piece, file: FileIO) -> None:
        self._open.add(response)
        try:
            file.seek(piece.position)
            chunks = response.chunks()
            while not self._stopped and (chunk := next(chunks, None)) is not None:
                data = memoryview(chunk if piece.end is None else chunk[: piece.end - piece.position])
                while data:
                    count = file.write(data)
                    data = data[count:]
                    piece.position += count
                if piece.position == piece.end:
                    return
                if self._most is not None and piece.position > self._most:
                    raise IntegrityError(
                        f"{self._url}: more than the {self._most:,} bytes that are pinned", hint=NOTHING_KEPT
                    )
            if self._stopped:
                return
            if piece.end is not None:
                raise TransientError(f"the answer ended {piece.end - piece.position:,} bytes too early")
            piece.end = piece.position
        finally:
            self._open.discard(response)
            response.close()
