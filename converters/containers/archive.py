"""Zip archives of numpy and torch: checked before unpacking, written with stored and aligned members."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import isal_zlib

from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.tensors import Array
from vit_hub.errors import CheckpointError

__all__ = [
    "Member",
    "StoredZip",
    "check_expansion",
    "read_directory",
    "read_member",
    "read_members",
    "stored_array",
    "stored_zip",
]

# PKWARE APPNOTE.TXT 4.3.7: signature, ..., file name length, extra field length.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
_BOMB_BYTES = 64 << 20
_BOMB_RATIO = 100
_ALIGNMENT = 64
_LONGEST_START = 64 << 10  # bytes before the values of a member, such as the header of an npy file


@dataclass(frozen=True)
class Member:
    """One file of a checked archive.

    Attributes:
        name: as in the archive.
        offset: of the (compressed) data in the file.
        stored: bytes in the file.
        size: bytes of the contents.
        crc: CRC-32 of the contents; 0: not computed, as torch can be told to.
        compressed: deflated rather than stored as it is.
    """

    name: str
    offset: int
    stored: int
    size: int
    crc: int
    compressed: bool


def check_expansion(path: Path, what: str, size: int, stored: int) -> None:
    """Refuse contents that expand far beyond their size in the file.

    Raises:
        CheckpointError: more than 64 MiB and more than 100 times the stored size.
    """
    if size > _BOMB_BYTES and size > _BOMB_RATIO * stored:
        raise CheckpointError(
            f"{path}: {what} would expand from {stored:,} to {size:,} bytes: refused as a decompression bomb",
            hint=f"files over {_BOMB_BYTES >> 20} MiB may expand at most {_BOMB_RATIO} times; "
            "if you trust this one, save it uncompressed",
        )


def read_directory(path: Path, stream: BinaryIO | None = None) -> tuple[list[zipfile.ZipInfo], int]:
    """Return the entries of an archive's directory, and where it begins.

    Args:
        path: the file, which is named in errors.
        stream: the archive, where it is not the whole file.

    Raises:
        CheckpointError: damaged or truncated archive.
    """
    try:
        with zipfile.ZipFile(stream or path) as archive:
            return archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated zip archive of {path.stat().st_size:,} bytes: {error}",
            hint="fetch the file again",
        ) from error


def read_members(file: MappedFile) -> dict[str, Member]:
    """Check a zip archive without unpacking it, and return its members in the order of its directory.

    Raises:
        CheckpointError: damaged, truncated or encrypted archive, an unknown compression, duplicated names,
            overlapping members, or a decompression bomb.
    """
    path = file.path
    infos, end = read_directory(path, file.stream())
    members: dict[str, Member] = {}
    for info in infos:
        if info.filename in members:
            raise CheckpointError(f"{path}: two members are named {info.filename!r}", hint="save the file again")
        members[info.filename] = _member(file, info)
    _check_layout(path, infos, members, end)
    check_expansion(
        path,
        "the archive",
        sum(member.size for member in members.values()),
        sum(member.stored for member in members.values()),
    )
    return members


def _member(file: MappedFile, info: zipfile.ZipInfo) -> Member:
    where = f"{file.path}: member {info.filename!r}"
    if info.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{where} is encrypted", hint="save the file again without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(
            f"{where} is compressed by method {info.compress_type}", hint="only stored and deflated members are read"
        )
    compressed = info.compress_type == zipfile.ZIP_DEFLATED
    if not compressed and info.compress_size != info.file_size:
        raise CheckpointError(
            f"{where}: {info.compress_size:,} bytes stored, {info.file_size:,} declared", hint="the archive is damaged"
        )
    header = file.bytes(info.header_offset, _LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise CheckpointError(f"{where} begins beyond the end of the file", hint="the archive is damaged")
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if signature != b"PK\x03\x04":
        raise CheckpointError(f"{where}: no member begins at byte {info.header_offset:,}", hint="the file is damaged")
    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return Member(info.filename, offset, info.compress_size, info.file_size, info.CRC, compressed)


def _check_layout(path: Path, infos: list[zipfile.ZipInfo], members: dict[str, Member], end: int) -> None:
    ordered = sorted(infos, key=lambda info: info.header_offset)
    # Not strict: of an empty archive there is nothing but the end.
    for info, limit in zip(ordered, [*(info.header_offset for info in ordered[1:]), end], strict=False):
        member = members[info.filename]
        if member.offset + member.stored > limit:
            raise CheckpointError(
                f"{path}: member {info.filename!r} ends at byte {member.offset + member.stored:,}, "
                f"beyond {limit:,} where the next part of the archive begins",
                hint="the archive is damaged or malicious",
            )


def read_member(file: MappedFile, member: Member, limit: int | None = None) -> bytearray:
    """Return the unpacked contents of a member, or their first ``limit`` bytes.

    Raises:
        CheckpointError: the contents do not match the directory.
    """
    size = member.size if limit is None else min(limit, member.size)
    if member.compressed:
        # One byte more than declared shows a member that is longer.
        stored = file.bytes(member.offset, member.stored if limit is None else min(member.stored, 2 * limit + 1024))
        try:
            data = bytearray(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size + 1))
        except zlib.error as error:
            raise CheckpointError(f"{file.path}: member {member.name!r} cannot be unpacked: {error}") from error
        if limit is not None:
            del data[size:]
    else:
        data = bytearray(file.bytes(member.offset, size))
    if len(data) != size or (limit is None and member.crc and isal_zlib.crc32(data) != member.crc):
        raise CheckpointError(
            f"{file.path}: member {member.name!r} does not hold the declared {member.size:,} bytes",
            hint="the file is damaged: fetch it again",
        )
    return data


def stored_array(
    file: MappedFile,
    member: Member,
    offset: int,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    *,
    fortran: bool = False,
) -> Array:
    """Return values of an uncompressed member, as a view of the mapped file.

    Where they are all that follows the member's first bytes, they are compared with its checksum.

    Args:
        file: the archive.
        member: of the archive.
        offset: of the first value in the member.
        dtype: of the values.
        shape: of the array.
        fortran: the values are in column-major order.

    Raises:
        CheckpointError: the contents do not match the checksum.
    """
    array = file.array(member.offset + offset, dtype, shape, fortran=fortran)
    if offset <= _LONGEST_START and offset + array.nbytes == member.size:
        _compare(file, member)
    return array


def _compare(file: MappedFile, member: Member) -> None:
    """Compare the contents of an uncompressed member with its checksum, once."""
    if not member.crc or member.offset in file.checked:
        return
    crc = 0
    for block in file.blocks(member.offset, member.size):
        crc = isal_zlib.crc32(block, crc)
    if crc != member.crc:
        raise CheckpointError(
            f"{file.path}: member {member.name!r} does not match its checksum",
            hint="the file is damaged: fetch it again",
        )
    file.checked.add(member.offset)


class StoredZip:
    """A writer of uncompressed members, all dated 1980, so that equal input gives equal bytes."""

    def __init__(self, archive: zipfile.ZipFile, file: BinaryIO) -> None:
        self._archive = archive
        self._file = file

    def add(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write one member; its data begins at a multiple of 64 bytes so that it can be mapped.

        Raises:
            CheckpointError: the name is not possible in a zip archive.
        """
        info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        if info.filename != name:
            raise CheckpointError(f"{name!r} cannot be the name of a member of a zip archive")
        info.create_system = 3
        info.external_attr = 0o644 << 16
        # The local header is followed by the name, this padding field (id "FB", as torch's own) and 20 bytes of zip64.
        start = self._file.tell() + _LOCAL_HEADER.size + len(name.encode()) + 4 + 20
        padding = -start % _ALIGNMENT
        info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        with self._archive.open(info, "w", force_zip64=True) as member:
            for part in parts:
                member.write(part)


@contextmanager
def stored_zip(path: Path) -> Iterator[StoredZip]:
    """Open a new archive for writing.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        yield StoredZip(archive, file)
