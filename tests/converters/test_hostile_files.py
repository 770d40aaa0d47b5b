"""Small files that ask for much: each is refused with an error that names it, in little memory and time."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit_hub
from vit_hub.converters.containers import pickles, write_tensors
from vit_hub.converters.read import CONFIG_KEY, PASSPORT_KEY
from vit_hub.converters.tensors import from_array
from vit_hub.errors import CheckpointError, VitHubError
from vit_hub.model.shapes import tensor_shapes
from vit_hub.untrusted import BLOCKS, NAME_LENGTH, TENSORS, Limit

CONFIG = vit_hub.ViTConfig(image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_dim=8, num_classes=2)
TENSORS_OF_ONE = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(CONFIG).items()}
HEADS = {"num_heads": 2}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

# Opens each file that it is given under a limit of memory; prints how each ended, and the peak.
OPEN = """
import json, resource, sys, time, warnings
import vit_hub, vit_hub.converters.read, vit_hub.converters.formats
warnings.simplefilter("ignore")
vit_hub.converters.formats.all_formats()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30),) * 2)
for path in sys.argv[1:]:
    begun = time.process_time()
    try:
        vit_hub.open_checkpoint(path, overrides={"num_heads": 2})
        ended = "opened"
    except vit_hub.VitHubError as error:
        ended = f"{type(error.__cause__).__name__}: {error}"
    print(json.dumps([path, ended, time.process_time() - begun]))
"""


def safetensors(path: Path, header: dict[str, Any], values: bytes = b"") -> Path:
    """Write a file of any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path


def plain(path: Path, *, extra: dict[str, Any] | None = None, metadata: dict[str, str] | None = None) -> Path:
    """Write a small model, with more entries in its header, whose values are empty."""
    write_tensors(path, "safetensors", {name: from_array(value) for name, value in TENSORS_OF_ONE.items()})
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    end = len(content) - start
    added = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [end, end]} for name, shape in (extra or {}).items()
    }
    return safetensors(path, {**({"__metadata__": metadata} if metadata else {}), **header, **added}, content[start:])


def pickled(path: Path, body: bytes, *members: str) -> Path:
    """Write the zip archive of a pickle as torch does."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        for name in members:
            archive.writestr(f"archive/{name}", b"\x80\x02).")
    return path


def written(path: Path, content: bytes) -> Path:
    """Write bytes."""
    path.write_bytes(content)
    return path


def text(value: str) -> bytes:
    """Return the opcode of a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def canonical(path: Path, config: str | None = None, passport: str | None = None) -> Path:
    """Write a canonical file with other metadata."""
    found = {CONFIG_KEY: config or json.dumps(CONFIG.to_dict())}
    return plain(path, metadata={**found, PASSPORT_KEY: passport} if passport else found)


NESTED_KEY = b"})" + b"2\x86" * 40 + b"K\x01s"
ENCODED = b"c_codecs\nencode\n" * 27 + text("A" * 64) + text("latin1") + b"\x86R" + (text("hex") + b"\x86R") * 26
SIZES = b"ctorch\nSize\nq\x020" + b"h\x02h\x01\x85R0" * 30_000 + b"N"
LIST = b"]q\x01(" + b"K\x01K\x02\x86" * 30_000 + b"e"
HOSTILE: dict[str, Callable[[Path], Path]] = {
    "a far block": lambda path: plain(path, extra={"blocks.20000000.norm1.weight": [0]}),
    "a farther block": lambda path: plain(path, extra={"blocks.99999999999999999999.norm1.weight": [0]}),
    "a depth": lambda path: canonical(path, json.dumps({**CONFIG.to_dict(), "depth": 10**7})),
    "a depth of many digits": lambda path: canonical(path, '{"depth":' + "9" * 5000 + "}"),
    "a grid": lambda path: canonical(
        path, json.dumps({**CONFIG.to_dict(), "image_size": [10**6, 10**6], "pos_embed": "sincos2d"})
    ),
    "a stem": lambda path: canonical(path, json.dumps({**CONFIG.to_dict(), "stem": "resnet", "stem_stages": [10**9]})),
    "nested config": lambda path: canonical(path, "[" * 100_000),
    "nested passport": lambda path: canonical(path, passport='{"format":' + "[" * 500 + "]" * 500 + "}"),
    "a key twice": lambda path: canonical(path, '{"depth": 1, "depth": 1}'),
    "many names": lambda path: safetensors(path, {f"w{number}": EMPTY for number in range(TENSORS.most + 1)}),
    "many kernels": lambda path: safetensors(path, {f"a{n}.patch_embed.proj.weight": EMPTY for n in range(3000)}),
    "a long name": lambda path: plain(path, extra={"a." * NAME_LENGTH.most: [0]}),
    "an axis": lambda path: plain(path, extra={"mask_token": [0, 2**62]}),
    "axes": lambda path: plain(path, extra={"mask_token": [0] * 70}),
    "half a character": lambda path: plain(path, extra={"decoder.\ud800": [0]}),
    "a nested key": lambda path: pickled(path, NESTED_KEY),
    "a nested key in TorchScript": lambda path: pickled(path, NESTED_KEY, "constants.pkl"),
    "nested encodings": lambda path: pickled(path, ENCODED),
    "a length in an old file": lambda path: written(path, b"\x80\x02\x8e" + struct.pack("<Q", 1 << 40) + b"x."),
    "copies of a list": lambda path: pickled(path, LIST + SIZES),
    "a long key": lambda path: pickled(path, b"(" + b"K\x01" * 10_000 + b"tq\x01}" + b"h\x01K\x01s" * 10_000),
    "a name that grows": lambda path: pickled(
        path,
        b"c__builtin__\ngetattr\nq\x01cnumpy\nx\n" + text("a" * 900) + b"q\x030h\x01" + b"cnumpy\nx\nh\x03\x86R" * 2,
    ),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the size of the process is read from Linux's /proc")
def test_small_files_take_little(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name.replace(' ', '_')}.bin") for name, write in HOSTILE.items()]
    done = subprocess.run([sys.executable, "-c", OPEN, *paths], capture_output=True, text=True, check=True)
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert [path for path, *_ in ended] == list(map(str, paths))
    assert not [(path, how) for path, how, _ in ended if path not in how or "MemoryError" in how]
    assert not [(path, seconds) for path, _, seconds in ended if seconds > 5]


def test_layers_that_config_json_has(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", "safetensors", {k: from_array(v) for k, v in TENSORS_OF_ONE.items()})
    folder = tmp_path / "hf"
    vit_hub.convert(tmp_path / "x.safetensors", folder, to="hf", overrides=HEADS, lossy=True)
    config = json.loads((folder / "config.json").read_text())
    for value in (BLOCKS.most + 1, 10**30, 1e400, "12", [1], float("nan")):
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": value}))
        with pytest.raises(VitHubError, match=str(tmp_path)):
            vit_hub.open_checkpoint(folder)


@pytest.mark.parametrize(
    "field",
    [
        {"carried": [["x"]]},
        {"labels": [1, 2]},
        {"source": [5]},
        {"sidecars": {"config.json": 5}},
        {"shapes": {"x": [1.5]}},
        {"shapes": {"x": [True]}},
        {"names": {"x": None}},
        {"resized_from": {"image_size": "224"}},
        {"format": 5},
    ],
)
def test_values_of_a_passport_have_their_types(tmp_path: Path, field: dict[str, Any]) -> None:
    path = canonical(tmp_path / "x.safetensors", passport=json.dumps({"format": "timm", **field}))
    with pytest.raises(CheckpointError, match=f"x.safetensors: the passport .* damaged: {next(iter(field))}"):
        vit_hub.open_checkpoint(path)


def test_a_pickle_of_many_opcodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "PICKLE_OPCODES", Limit(1000, "opcodes", "a pickle"))
    with pytest.raises(CheckpointError, match=r"x\.pth: .* more than 1,000 opcodes"):
        vit_hub.open_checkpoint(pickled(tmp_path / "x.pth", b"N0" * 1000 + b"N"))


def test_numbers_that_no_value_needs_may_be_any(tmp_path: Path) -> None:
    import torch

    state = {name: torch.from_numpy(value) for name, value in TENSORS_OF_ONE.items()}
    state["norm.bias"] = torch.ones(16)
    torch.save(state, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    # The strides of the class token, [1, 1, 16], of which the first two reach nothing.
    name = next(name for name in members if name.endswith("data.pkl"))
    assert b"K\x10K\x10K\x01\x87" in members[name]
    members[name] = members[name].replace(b"K\x10K\x10K\x01\x87", b"\x8a\x09" + b"\xff" * 8 + b"\0K\x10K\x01\x87", 1)
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    opened = vit_hub.open_checkpoint(tmp_path / "x.pth", overrides=HEADS)
    assert np.array_equal(opened.tensors["cls_token"].read(), TENSORS_OF_ONE["cls_token"])


def test_any_error_of_a_format_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError("nothing there")

    path = plain(tmp_path / "x.safetensors")
    monkeypatch.setattr(vit_hub.converters.read, "infer_config", broken)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*LookupError: nothing there") as error:
        vit_hub.open_checkpoint(path, overrides=HEADS)
    assert isinstance(error.value.__cause__, LookupError)


def test_warnings_made_errors_stay_warnings(tmp_path: Path) -> None:
    path = plain(tmp_path / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vit_hub.open_checkpoint(path, overrides=HEADS)
