"""Hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

__all__ = ["BLOCK_BYTES", "file_sha256"]

# A block fits into a core's second-level cache, so that hashing it does not wait for memory again.
BLOCK_BYTES = 1 << 19


def file_sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file in 64 hex digits.

    Args:
        path: the file.
        advance: called with each count of bytes hashed; an exception from it ends the work.

    Raises:
        OSError: it cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            if advance:
                advance(count)
    return digest.hexdigest()
