"""Failures that may pass, and how long they are waited out."""

from __future__ import annotations

import random
import threading
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from vit_hub.errors import DownloadError

__all__ = ["ChangedError", "PassingError", "Patience", "StoppedError", "pause", "retry_after"]

ATTEMPTS = 4  # failures in a row, without a byte gained between them
MOST_ATTEMPTS = 1000  # for one that always gains a little
LONGEST_WAIT = 120.0  # seconds; a server that wants more is not waited for
_BACKOFF = 0.5  # seconds after the first failure, doubled after each further one in a row
_JITTER = (0.75, 1.25)  # so that many clients of one server do not come back all at once


class PassingError(Exception):
    """A failure that may not happen again.

    Args:
        message: what failed.
        wait: seconds that the server asks to wait; None: it does not say.
        slow: bytes came, but too slowly to count as a gain.
    """

    def __init__(self, message: str, *, wait: float | None = None, slow: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.slow = slow


class ChangedError(Exception):
    """What the server sends now does not belong to what it sent before: all of it has to be fetched again."""


class StoppedError(Exception):
    """Another part of the same work failed or was interrupted."""


class Patience:
    """Counts the failures of one task and waits between its attempts.

    Args:
        url: for the message.
        stop: ends the waiting early.
    """

    def __init__(self, url: str, stop: threading.Event) -> None:
        self._url = url
        self._stop = stop
        self._in_a_row = 0
        self._in_all = 0

    def wait_after(self, failure: PassingError, *, gained: bool) -> None:
        """Returns when it is time for the next attempt.

        Args:
            failure: the last attempt's.
            gained: whether the last attempt brought anything; the count begins anew then.

        Raises:
            DownloadError: there have been enough attempts, or the server asks for too long a wait.
            StoppedError: the task was stopped meanwhile.
        """
        self._in_all += 1
        self._in_a_row = 1 if gained and not failure.slow else self._in_a_row + 1
        if self._in_a_row >= ATTEMPTS or self._in_all >= MOST_ATTEMPTS:
            times = ATTEMPTS if self._in_a_row >= ATTEMPTS else MOST_ATTEMPTS
            raise DownloadError(
                f"{self._url}: {failure}, {times} times", hint="try again later, or check the connection"
            ) from failure
        wait = failure.wait
        if wait is None:
            wait = _BACKOFF * 2 ** (self._in_a_row - 1) * random.uniform(*_JITTER)
        if wait > LONGEST_WAIT:
            raise DownloadError(
                f"{self._url}: {failure}", hint=f"the server asks to come back in {wait:.0f} seconds"
            ) from failure
        pause(wait, self._stop)
        if self._stop.is_set():
            raise StoppedError


def pause(seconds: float, stop: threading.Event) -> None:
    """Waits, at most until ``stop`` is set."""
    stop.wait(seconds)


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
