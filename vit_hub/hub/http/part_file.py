"""A file that is not whole yet: its bytes on disk, and a journal of which of them are there.

Both lie beside the final name, so that the last step is a rename within one file system. Who works with them holds the
lock of the final name.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_hub.converters.containers.atomic import put_in_place

__all__ = ["Part", "Span"]

_VERSION = 1


@dataclass
class Span:
    """A stretch of the file, of which the bytes from ``start`` up to ``position`` are there.

    Attributes:
        start: offset of its first byte.
        end: offset after its last one; None where nobody knows how long the file is.
        position: offset of the next byte to come.
        claimed: offset after the bytes that are being written.
    """

    start: int
    end: int | None
    position: int
    claimed: int = 0


class Part:
    """What is there of a file.

    Args:
        path: the final name.
        pinned: whether the whole file's hash is known, which shows up a mixture of two versions.

    Attributes:
        file: holds the bytes.
        journal: says, after a crash too, which bytes of ``file`` can be relied on.
        total: bytes in the whole file, None: not known.
        validator: the server's name for this version of the file.
        spans: all of the file, in order and without gaps.
    """

    def __init__(self, path: Path, *, pinned: bool) -> None:
        self.file = path.with_name(f".{path.name}.vit-hub.part")
        self.journal = path.with_name(f".{path.name}.vit-hub.journal")
        self.total: int | None = None
        self.validator: str | None = None
        self.spans: list[Span] = []
        self._path = path
        self._pinned = pinned

    @property
    def resumable(self) -> bool:
        """Whether what is there can be continued without mixing two versions."""
        return self.total is not None and (self.validator is not None or self._pinned)

    @property
    def complete(self) -> bool:
        """Whether all of the file is there."""
        return bool(self.spans) and all(span.position == span.end for span in self.spans)

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return sum(span.position - span.start for span in self.spans)

    @property
    def missing(self) -> int:
        """Bytes to come; 0 where nobody knows how many."""
        return 0 if self.total is None else self.total - self.size

    @property
    def prefix(self) -> int:
        """Bytes that are there from the beginning of the file on, without a gap."""
        end = 0
        for span in self.spans:
            end = span.position
            if span.position != span.end:
                break
        return end

    def gaps(self) -> list[Span]:
        """The spans with bytes to come, in order."""
        return [span for span in self.spans if span.position != span.end]

    def begin(self, total: int | None, validator: str | None) -> None:
        """An empty file in place of whatever is there."""
        self.discard()
        self.total, self.validator = total, validator
        self.spans = [Span(0, total, 0)]
        with self.file.open("xb"):
            pass

    def restore(self, size: int | None) -> None:
        """Takes up what an earlier run left; what cannot be relied on is removed.

        Args:
            size: bytes that the file should have, None: not known.
        """
        try:
            record = json.loads(self.journal.read_bytes())
            self.total, self.validator, self.spans = _spans(record, self.file.stat().st_size)
        except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
            self.discard()
        if not self.resumable or size not in (None, self.total):
            self.discard()

    def split(self, length: int) -> list[Span]:
        """Cuts what is to come into spans of ``length`` bytes; gives the new ones.

        Spans may be in work: they are left ``length`` bytes beyond what is being written. ``claimed`` must not change
        meanwhile.
        """
        spans, ends, new = [], [], []
        for span in self.spans:
            spans.append(span)
            begun = max(span.position, span.claimed)
            if span.end is not None and span.end - begun > length:
                edges = [*range(begun + length, span.end, length), span.end]
                added = [Span(start, end, start) for start, end in itertools.pairwise(edges)]
                spans += added
                new += added
                ends.append((span, edges[0]))
        # In this order, so that at no time it looks as if there were nothing to come.
        self.spans = spans
        for span, end in ends:
            span.end = end
        return new

    def save(self) -> None:
        """Writes down what is there. Nothing is written for a file that could not be continued."""
        if not self.resumable:
            return
        have = [[span.start, span.position] for span in self.spans if span.position > span.start]
        record = {"version": _VERSION, "total": self.total, "validator": self.validator, "have": have}
        # The bytes reach the disk before the journal speaks of them.
        with self.file.open("r+b") as file:
            os.fsync(file.fileno())
        draft = self.journal.with_name(self.journal.name + ".tmp")
        draft.write_text(json.dumps(record), encoding="utf-8")
        draft.replace(self.journal)

    def keep(self) -> None:
        """Leaves for a later run what is of use to one."""
        with contextlib.suppress(OSError):
            if self.resumable and self.size:
                return self.save()
        return self.discard()

    def discard(self) -> None:
        """Removes everything."""
        self.total, self.validator, self.spans = None, None, []
        for file in (self.journal, self.journal.with_name(self.journal.name + ".tmp"), self.file):
            # Where even the folder is missing, or is none, there is nothing to remove.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                file.unlink()

    def finish(self) -> None:
        """Gives the file its final name."""
        put_in_place(self.file, self._path)
        self.discard()


def _spans(record: Any, size: int) -> tuple[int, str | None, list[Span]]:
    """What a journal says.

    Args:
        record: the journal.
        size: bytes of the file that it is about.

    Raises:
        ValueError, KeyError, TypeError: it contradicts itself or the file.
    """
    total, validator = int(record["total"]), record["validator"]
    if record["version"] != _VERSION or not (validator is None or isinstance(validator, str)):
        raise ValueError("not a journal")
    spans, end = [], 0
    for start, position in record["have"]:
        if not end <= start < position <= min(total, size):
            raise ValueError("it claims what cannot be")
        if start > end:
            spans.append(Span(end, start, end))
        spans.append(Span(start, position, position))
        end = position
    if end < total:
        spans.append(Span(end, total, end))
    return total, validator, spans
