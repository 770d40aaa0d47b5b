"""Values are read only when asked for, and the memory they took is given back."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vit_hub.converters.containers import open_raw, write_tensors
from vit_hub.converters.tensors import LazyTensor, from_array

MIB = 1 << 20
# What a subprocess runs. Linux's "high water mark" is the process's own; getrusage would count its parent's before it.
PEAK = """
import sys
from pathlib import Path
import numpy as np
import {imports}
from vit_hub.converters.containers import open_raw, write_tensors
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
path = Path(sys.argv[1])
before = peak()
{body}
print((peak() - before) // 1024)
"""


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")


def peak(path: Path, body: str, imports: str = "safetensors") -> int:
    """MiB above the interpreter and its imports."""
    script = PEAK.format(body=body, imports=imports)
    result = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    return int(result.stdout)


def many(mebibytes: int) -> dict[str, LazyTensor]:
    """Tensors of 8 MiB that exist only while they are read."""
    shape = (2 * MIB // 1024, 1024)
    return {
        f"block/{index}": LazyTensor("F32", shape, lambda index=index: np.full(shape, index, np.float32))  # type: ignore[misc]
        for index in range(mebibytes // 8)
    }


@needs_linux
@pytest.mark.parametrize("container", ["safetensors", "npz", "torch"])
def test_converting_takes_memory_for_some_tensors_and_not_for_all(tmp_path: Path, container: str) -> None:
    path = tmp_path / "large"
    write_tensors(path, container, many(240))
    body = f"""
tensors = open_raw(path).tensors
write_tensors(path.parent / "copy", {container!r}, {{name: item.permute((1, 0)) for name, item in tensors.items()}})
"""
    assert peak(path, body, "torch" if container == "torch" else "safetensors") < 120
    found = open_raw(tmp_path / "copy").tensors["block/29"].read()
    assert found.shape == (1024, 2048)
    assert (found == 29).all()


@needs_linux
def test_one_tensor_of_a_huge_file(tmp_path: Path) -> None:
    """The file is sparse: reading all of its 8 GiB would take minutes or fail."""
    gibibytes = 8
    entries = ",".join(
        f'"t{i}":{{"dtype":"U8","shape":[{1 << 30}],"data_offsets":[{i << 30},{(i + 1) << 30}]}}'
        for i in range(gibibytes)
    )
    header = f"{{{entries}}}".encode()
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (gibibytes << 30))
    assert peak(path, 'assert open_raw(path).tensors["t7"].read()[-5:].sum() == 0') < 40


def test_arrays_in_use_survive_the_renewal_of_the_mapping(tmp_path: Path) -> None:
    for container in ("safetensors", "npz", "torch"):
        path = tmp_path / container
        write_tensors(path, container, many(96))
        held = [item.read() for item in open_raw(path).tensors.values()]
        assert all((array == index).all() for index, array in enumerate(held))


@needs_linux
def test_few_file_handles_however_many_tensors_are_held(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write_tensors(path, "npz", {str(index): from_array(np.full(4, index, np.int16)) for index in range(2000)})
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    held = [item.read() for item in open_raw(path).tensors.values()]
    # The file for reading, its mapping, and the file for its hash.
    assert len(os.listdir("/proc/self/fd")) - before <= 3  # noqa: PTH208
    assert all((array == index).all() for index, array in enumerate(held))


@needs_linux
def test_a_slice_of_a_stacked_tensor_touches_only_its_part(tmp_path: Path) -> None:
    """Layers stacked in one tensor are read one by one; npz members are not aligned, and must not be copied whole."""
    path = tmp_path / "stacked.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("stacked.npy", "w", force_zip64=True) as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (400, MIB // 4)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(400):
            member.write(bytes(MIB))
    assert peak(path, 'assert open_raw(path).tensors["stacked"].read()[-1].sum() == 0') < 40


def test_files_that_change_while_they_are_open(tmp_path: Path) -> None:
    for container in ("safetensors", "npz", "torch"):
        path = tmp_path / container
        write_tensors(path, container, {"w": from_array(np.ones(4, np.float32))})
        source = open_raw(path)
        write_tensors(path, container, {"w": from_array(np.zeros(4, np.float32))})
        assert source.tensors["w"].read().tolist() == [1, 1, 1, 1]


def test_opening_imports_no_torch(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.npz", "npz", {"w": from_array(np.ones(4, np.float32))})
    script = """
import sys
from pathlib import Path
from vit_hub.converters.containers import open_raw, write_tensors
copy = Path(sys.argv[1], "y.safetensors")
write_tensors(copy, "safetensors", open_raw(copy.with_name("x.npz")).tensors)
open_raw(copy)
assert not {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
