"""A partial file: its bytes on disk, a journal of the valid ones, and the hash of what is contiguous from the start.

Both files lie beside the final name, so that the last step is a rename within one file system. The caller holds the
file lock of the final name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_hub.converters.containers.atomic import put_in_place
from vit_hub.hub.cache.paths import is_trusted
from vit_hub.untrusted import read_json

__all__ = ["PartFile", "Piece"]

_VERSION = 1
_BLOCK = 1 << 20  # bytes hashed at a time


@dataclass
class Piece:
    """A range of the file, of which the bytes from ``start`` up to ``position`` have been received.

    ``end`` is None where the length of the file is not known.
    """

    start: int
    end: int | None
    position: int


class PartFile:
    """The received part of a file.

    Args:
        path: the final name.
        pinned: the hash of the whole file is known, which reveals a mixture of two versions.

    Attributes:
        file: holds the bytes.
        journal: says, after a crash too, which bytes of ``file`` are valid.
        total: bytes in the whole file; None: not known.
        validator: the server's name for this version of the file.
        pieces: the whole file, in order and without gaps.
    """

    def __init__(self, path: Path, *, pinned: bool) -> None:
        self.file = path.with_name(f".{path.name}.vit-hub.part")
        self.journal = path.with_name(f".{path.name}.vit-hub.journal")
        self._draft = self.journal.with_name(self.journal.name + ".tmp")
        self._path = path
        self._pinned = pinned
        self._reset(None, None, [])

    def _reset(self, total: int | None, validator: str | None, pieces: list[Piece]) -> None:
        self.total, self.validator, self.pieces = total, validator, pieces
        self._digest, self._hashed = hashlib.sha256(), 0

    @property
    def resumable(self) -> bool:
        """Return whether the rest can be requested alone, without the risk of mixing two versions."""
        return self.total is not None and (self.validator is not None or self._pinned)

    @property
    def complete(self) -> bool:
        """Return whether the whole file has been received."""
        return bool(self.pieces) and not self.missing_pieces()

    @property
    def size(self) -> int:
        """Bytes received."""
        return sum(piece.position - piece.start for piece in self.pieces)

    def missing_pieces(self) -> list[Piece]:
        """Return the incomplete pieces, in order."""
        return [piece for piece in self.pieces if piece.position != piece.end]

    def begin(self, total: int | None, validator: str | None) -> None:
        """Start an empty file in place of whatever is there."""
        self.discard()
        self._reset(total, validator, [Piece(0, total, 0)])
        self.file.touch(exist_ok=False)

    def restore(self, size: int | None) -> None:
        """Continue the part of an earlier run; remove one that is not valid.

        Args:
            size: bytes that the file should have; None: not known.
        """
        try:
            if not (is_trusted(self.file) and is_trusted(self.journal)):
                raise ValueError("of another user")
            self._reset(*_parse(read_json(self.journal), self.file.stat().st_size))
        except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
            self.discard()
        if not self.resumable or size not in (None, self.total):
            self.discard()

    def divide(self, length: int) -> None:
        """Cut what is missing into pieces of at most ``length`` bytes. No piece may be in work."""
        pieces = []
        for piece in self.pieces:
            while piece.end is not None and piece.end - piece.position > length:
                edge = piece.position + length
                pieces.append(Piece(piece.start, edge, piece.position))
                piece = Piece(edge, piece.end, edge)
            pieces.append(piece)
        self.pieces = pieces

    def hash_next(self) -> bool:
        """Hash the next block, if all of it has been received; return whether it has."""
        complete, received = self.complete, 0
        for piece in self.pieces:
            received = piece.position
            if piece.position != piece.end:
                break
        count = min(received - self._hashed, _BLOCK)
        if count < _BLOCK and not (complete and count):
            return False
        with self.file.open("rb", buffering=0) as file:
            file.seek(self._hashed)
            block = file.read(count)
        if len(block) != count:
            raise OSError(f"{self.file} became shorter while it was fetched")
        self._digest.update(block)
        self._hashed += count
        return True

    @property
    def sha256(self) -> str | None:
        """The hash of the whole file; None while there is more to hash."""
        return self._digest.hexdigest() if self.complete and self._hashed == self.size else None

    def save(self) -> None:
        """Write the journal, unless the file could not be continued anyway."""
        if not self.resumable:
            return
        have = [[piece.start, piece.position] for piece in self.pieces if piece.position > piece.start]
        record = {"version": _VERSION, "total": self.total, "validator": self.validator, "have": have}
        # The bytes reach the disk before the journal lists them.
        with self.file.open("r+b") as file:
            os.fsync(file.fileno())
        self._draft.write_text(json.dumps(record), encoding="utf-8")
        self._draft.replace(self.journal)

    def keep(self) -> None:
        """Leave for a later run what it can continue, and nothing else."""
        with contextlib.suppress(OSError):
            if self.resumable and self.size:
                return self.save()
        return self.discard()

    def discard(self) -> None:
        """Remove everything."""
        self._reset(None, None, [])
        for file in (self.journal, self._draft, self.file):
            # Where even the folder is missing, or is a file, there is nothing to remove.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                file.unlink()

    def finish(self) -> None:
        """Give the file its final name."""
        put_in_place(self.file, self._path)
        self.discard()


def _parse(record: Any, size: int) -> tuple[int, str | None, list[Piece]]:
    """Return the total, the validator and the pieces of a journal.

    Raises:
        ValueError, KeyError, TypeError: it contradicts itself, or the ``size`` of the file that it is about.
    """
    total, validator = int(record["total"]), record["validator"]
    if record["version"] != _VERSION or not (validator is None or isinstance(validator, str)):
        raise ValueError("not a journal")
    pieces: list[Piece] = []
    end = 0
    for start, position in record["have"]:
        if not end <= start < position <= min(total, size):
            raise ValueError("ranges out of order, or beyond the end")
        if start > end:
            pieces.append(Piece(end, start, end))
        pieces.append(Piece(start, position, position))
        end = position
    if end < total:
        pieces.append(Piece(end, total, end))
    return total, validator, pieces
