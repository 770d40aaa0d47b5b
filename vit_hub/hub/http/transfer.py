"""From the network into a part file, over several connections, hashed on the way."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from io import FileIO
from typing import Any

import httpx2

from vit_hub.errors import IntegrityError
from vit_hub.hub.http.part_file import Part, Span
from vit_hub.hub.http.response import Answer, ask
from vit_hub.hub.http.retry import ChangedError, PassingError, Patience, StoppedError

__all__ = ["NOTHING_KEPT", "Transfer"]

NOTHING_KEPT = "nothing was kept; the file was changed at its source, or the connection is tampered with"
RAMP = 1.0  # seconds with one connection; one that is done by then needs no help
LARGE = 64 << 20  # bytes that must be left then for further connections to be opened
PIECE = 32 << 20  # bytes asked for at a time where there are several
JOURNAL_EVERY = 1.0  # seconds, at most
JOURNAL_BYTES = 32 << 20  # at most; the disk writes while more is coming, and has little left to do at the end
SLOW_RATE = 1024.0  # bytes a second; a connection that gives less than this ...
SLOW_TIME = 60.0  # ... over so many seconds is cut, and another one goes on in its place
_BLOCK = 1 << 20  # bytes hashed at a time
_LAG = 0.005  # seconds between two looks for bytes to hash
_TICK = 0.1  # seconds between two movements of the bar


class Transfer:
    """Fetches what is missing of a part.

    Args:
        client: of :func:`vit_hub.hub.http.response.new_client`.
        url: of the file.
        part: with all of its spans known.
        most: bytes after which the file is too long, None: no limit.
    """

    def __init__(self, client: httpx2.Client, url: str, part: Part, *, most: int | None) -> None:
        self._client = client
        self._url = url
        self._part = part
        self._most = most
        self._waiting = deque(part.gaps())
        self._open: set[Answer] = set()
        self._working = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, answer: Answer | None, connections: int, advance: Callable[[int], None]) -> str:
        """Fills the part.

        Args:
            answer: one that begins where the part's first gap does; None: nothing is missing.
            connections: how many at most.
            advance: called with each count of new bytes.

        Returns:
            The sha256 of the whole file.

        Raises:
            PassingError: the connection broke, and the rest alone cannot be asked for.
            ChangedError: the server has another file now.
            DownloadError: the server does not deliver.
            IntegrityError: it delivers more than ``most`` bytes.
            OSError: the disk does not take it.
        """
        begun = saved = time.monotonic()
        shown = kept = self._part.size
        with ThreadPoolExecutor(connections + 1) as pool:
            hashing = pool.submit(self._hash)
            tasks: list[Future[Any]] = [hashing]
            if answer:
                tasks.append(pool.submit(self._work, self._take(), answer))
            try:
                running = True
                while running:
                    if connections > 1 and time.monotonic() - begun >= RAMP:
                        tasks += [pool.submit(self._work, self._take(), None) for _ in range(self._divide(connections))]
                        connections = 1
                    done, undone = wait(tasks, timeout=_TICK, return_when=FIRST_EXCEPTION)
                    size = self._part.size
                    advance(size - shown)
                    shown = size
                    for task in done:
                        task.result()
                    running = bool(undone)
                    if time.monotonic() - saved > JOURNAL_EVERY or size - kept > JOURNAL_BYTES:
                        self._part.save()
                        saved, kept = time.monotonic(), size
            finally:
                self._abort()
        return hashing.result()

    def _divide(self, connections: int) -> int:
        """Makes work for several connections of what is left, if it is much; says for how many more."""
        with self._lock:
            if not self._working or self._part.missing < LARGE:
                return 0
            self._waiting = deque(sorted([*self._waiting, *self._part.split(PIECE)], key=lambda span: span.start))
            return min(connections - 1, len(self._waiting))

    def _work(self, span: Span | None, answer: Answer | None) -> None:
        patience = Patience(self._url, self._stop)
        with self._part.file.open("r+b", buffering=0) as file:
            while span and self._fill(span, answer, patience, file):
                answer = None
                span = self._take(again=True)

    def _take(self, *, again: bool = False) -> Span | None:
        """The next span to work on; None ends the work of a connection."""
        with self._lock:
            span = self._waiting.popleft() if self._waiting else None
            self._working += (span is not None) - again
            return span

    def _leave(self, span: Span) -> bool:
        """Hands the span to the other connections, if there are any."""
        with self._lock:
            if self._working == 1:
                return False
            self._working -= 1
            self._waiting.appendleft(span)
            return True

    def _fill(self, span: Span, answer: Answer | None, patience: Patience, file: FileIO) -> bool:
        """Whether the span is whole; if not, others see to it, and there is a connection less."""
        while span.position != span.end:
            before = span.position
            try:
                self._receive(answer or self._ask(span), span, file)
            except PassingError as failure:
                if self._stop.is_set():
                    raise StoppedError from failure
                if not self._part.resumable:
                    raise
                gained = span.position > before
                # Servers refuse connections that are too many for them in various ways.
                if not gained and self._leave(span):
                    return False
                patience.wait_after(failure, gained=gained)
            answer = None
        return True

    def _ask(self, span: Span) -> Answer:
        part = self._part
        answer = ask(
            self._client, self._url, start=span.position, end=span.end, total=part.total, validator=part.validator
        )
        if not answer.is_part:
            answer.close()
            raise ChangedError("the server sends the whole file in place of a part: it changed, or cannot be divided")
        return answer

    def _receive(self, answer: Answer, span: Span, file: FileIO) -> None:
        with self._lock:
            self._open.add(answer)
        try:
            if self._stop.is_set():
                raise StoppedError
            file.seek(span.position)
            since, then = time.monotonic(), span.position
            for chunk in answer.chunks():
                with self._lock:  # the end may be moved here
                    data = chunk if span.end is None else chunk[: span.end - span.position]
                    span.claimed = span.position + len(data)
                _write(file, data)
                span.position += len(data)
                if span.position == span.end:
                    return
                if self._stop.is_set():
                    raise StoppedError
                if self._most is not None and span.position > self._most:
                    raise IntegrityError(
                        f"{self._url}: more than the {self._most:,} bytes that are pinned", hint=NOTHING_KEPT
                    )
                elapsed = time.monotonic() - since
                if elapsed >= SLOW_TIME:
                    if span.position - then < SLOW_RATE * elapsed:
                        raise PassingError(f"{span.position - then:,} bytes in {elapsed:.0f} seconds", slow=True)
                    since, then = time.monotonic(), span.position
            if span.end is None:
                span.end = span.position
        finally:
            with self._lock:
                self._open.discard(answer)
            answer.close()

    def _hash(self) -> str:
        """Follows the bytes as they come, reading them back from the system's cache."""
        digest, position, block = hashlib.sha256(), 0, memoryview(bytearray(_BLOCK))
        with self._part.file.open("rb", buffering=0) as file:
            while True:
                complete = self._part.complete
                ready = min(self._part.prefix - position, _BLOCK)
                if ready == _BLOCK or (complete and ready):
                    count = file.readinto(block[:ready])
                    if not count:
                        raise OSError(f"{self._part.file} became shorter while it was fetched")
                    digest.update(block[:count])
                    position += count
                elif complete:
                    return digest.hexdigest()
                elif self._stop.wait(_LAG):
                    raise StoppedError

    def _abort(self) -> None:
        self._stop.set()
        with self._lock:
            for answer in self._open:
                answer.abort()


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
