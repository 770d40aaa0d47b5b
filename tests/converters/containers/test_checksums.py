"""Damaged values in zip archives, whose checksums tell."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_hub.converters.containers import open_raw
from vit_hub.errors import CheckpointError

ARRAYS = {
    "row": np.arange(3000, dtype="f4").reshape(60, 50),
    "column": np.asfortranarray(np.arange(3000, dtype="f4").reshape(60, 50)),
    "scalar": np.float32(7).reshape(()),
    "none": np.zeros((0, 4), "f4"),
}


def npz(path: Path) -> None:
    np.savez(path, **ARRAYS)


def torch_file(path: Path) -> None:
    torch.save({name: torch.tensor(array) for name, array in ARRAYS.items()}, path)


@pytest.mark.parametrize("save", [npz, torch_file])
def test_one_flipped_bit_is_noticed(tmp_path: Path, save: object) -> None:
    assert callable(save)
    path = tmp_path / "a.npz"
    save(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        large = [info for info in archive.infolist() if info.file_size >= 12_000]
    assert len(large) == 2
    for name, tensor in open_raw(path).tensors.items():
        np.testing.assert_array_equal(tensor.read(), ARRAYS[name])
    for info in large:
        at = info.header_offset + info.file_size // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        failed = []
        for name, tensor in open_raw(path).tensors.items():
            try:
                tensor.read()
            except CheckpointError as error:
                assert "checksum" in error.message
                failed.append(name)
        assert len(failed) == 1


def test_a_file_of_torch_without_checksums(tmp_path: Path) -> None:
    options = pytest.importorskip("torch.serialization")
    if not hasattr(options, "set_crc32_options"):
        pytest.skip("this torch always computes them")
    options.set_crc32_options(False)
    try:
        torch_file(tmp_path / "a.pth")
    finally:
        options.set_crc32_options(True)
    for name, tensor in open_raw(tmp_path / "a.pth").tensors.items():
        np.testing.assert_array_equal(tensor.read(), ARRAYS[name])
