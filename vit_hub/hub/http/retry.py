"""Transient failures, and how long to wait before the next attempt."""

from __future__ import annotations

import random
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from vit_hub.errors import DownloadError

__all__ = ["ChangedError", "RetryPolicy", "TransientError", "retry_after"]

ATTEMPTS = 4  # failures in a row, without a byte gained between them
ATTEMPTS_WITHOUT_NETWORK = 2  # likewise, where nothing was ever received and no server is reached
MOST_ATTEMPTS = 1000  # for a connection that always gains a little
LONGEST_WAIT = 120.0  # seconds; a server that asks for more is given up
_BACKOFF = 0.5  # seconds after the first failure, doubled after each further one in a row
_JITTER = (0.75, 1.25)  # so that many clients of one server do not come back all at once

pause = time.sleep


class TransientError(Exception):
    """A failure that may not happen again.

    Args:
        message: what failed.
        wait: seconds that the server asks to wait; None: it does not say.
        slow: bytes came, but too slowly to count as a gain.
        hint: the remedy if it happens again and again.
        no_network: no server is reached, and most probably none can be.
    """

    def __init__(
        self,
        message: str,
        *,
        wait: float | None = None,
        slow: bool = False,
        hint: str = "",
        no_network: bool = False,
    ) -> None:
        super().__init__(message)
        self.no_network = no_network
        self.hint = hint
        self.wait = wait
        self.slow = slow


class ChangedError(Exception):
    """The server's answer belongs to another version of the file: all of it has to be fetched again."""


class RetryPolicy:
    """Count the failures of one download and wait between its attempts.

    Args:
        url: for the message.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._in_a_row = 0
        self._in_all = 0
        self._gained = False

    def wait_after(self, failure: TransientError, *, gained: bool) -> None:
        """Return when it is time for the next attempt.

        Args:
            failure: of the last attempt.
            gained: the last attempt received new bytes; the count starts again then.

        Raises:
            DownloadError: there were enough attempts, or the server asks for too long a wait.
        """
        self._in_all += 1
        self._gained = self._gained or gained
        self._in_a_row = 1 if gained and not failure.slow else self._in_a_row + 1
        most = ATTEMPTS_WITHOUT_NETWORK if failure.no_network and not self._gained else ATTEMPTS
        if self._in_a_row >= most or self._in_all >= MOST_ATTEMPTS:
            times = most if self._in_a_row >= most else MOST_ATTEMPTS
            raise DownloadError(
                f"{self._url}: {failure}, {times} times",
                hint=failure.hint or "try again later, or check the connection",
                reason=str(failure) if failure.no_network else "",
            ) from failure
        wait = failure.wait
        if wait is None:
            wait = _BACKOFF * 2 ** (self._in_a_row - 1) * random.uniform(*_JITTER)
        if wait > LONGEST_WAIT:
            raise DownloadError(
                f"{self._url}: {failure}", hint=f"the server asks to come back in {wait:.0f} seconds"
            ) from failure
        pause(wait)


def retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
