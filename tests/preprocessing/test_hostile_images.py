"""Images of strangers: only pixels are read, not too many, and all of them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_hub.errors import VitHubError
from vit_hub.preprocessing.images import FORMATS, read_image
from vit_hub.untrusted import IMAGE_PIXELS

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n/x {} def\n%%EOF\n"


@pytest.mark.parametrize("name", ["cat.png", "cat.eps"])
def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f'#!/bin/sh\necho ran >> "{tmp_path}/log"\necho 10.0\n')
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / name).write_bytes(EPS)
    for source in (tmp_path / name, EPS, io.BytesIO(EPS)):
        with pytest.raises(VitHubError, match="of another kind than JPEG, "):
            read_image(source)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("kind", ["PDF", "PCX", "ICO", "SGI"])
def test_other_formats_are_refused(kind: str) -> None:
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, kind)
    with pytest.raises(VitHubError, match="cannot read it as an image"):
        read_image(written.getvalue())


@pytest.mark.parametrize("kind", sorted({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA"} & set(FORMATS)))
def test_formats_of_pixels_are_read(kind: str) -> None:
    written = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(written, kind)
    assert read_image(written.getvalue()).size == (8, 6)


def png(width: int, height: int) -> bytes:
    """Return a black image of few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path) -> None:
    side = int(IMAGE_PIXELS.most**0.5) + 1
    (tmp_path / "x.png").write_bytes(png(side, side))
    with pytest.raises(VitHubError, match=r"x\.png: the image of \d+ x \d+ has more than 134,217,728 pixels"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "TGA"])
def test_an_image_that_is_cut_short(kind: str) -> None:
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(written, kind)
    with pytest.raises(VitHubError):
        read_image(written.getvalue()[: len(written.getvalue()) // 2])
