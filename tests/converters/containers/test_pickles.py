"""Pickled data beside weights: read as plain data, whatever its class, and nothing imported or run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import decimal
import enum
import functools
import io
import os
import pathlib
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import types
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vit_hub
from vit_hub.converters.containers import open_raw
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Stage(enum.Enum):
    FIT = "fit"


class Wordy(str, enum.Enum):
    TRAIN = "train"


class Settings(dict[str, Any]):
    """A dict with attributes, as EasyDict and OmegaConf's nodes are."""

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value


@dataclass
class Record:
    rate: float
    parent: Any = None


Point = collections.namedtuple("Point", "x y")


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


EXTRAS: dict[str, Callable[[], object]] = {
    "numpy scalar": lambda: np.float64(0.9),
    "numpy array": lambda: np.arange(3.0),
    "numpy objects": lambda: np.array(["a", None], dtype=object),
    "numpy generator": lambda: np.random.default_rng(0).bit_generator.state,
    "numpy random state": lambda: np.random.RandomState(0),
    "path": lambda: pathlib.Path("/data/run"),
    "pure path": lambda: pathlib.PureWindowsPath("c:/data"),
    "namespace": lambda: argparse.Namespace(lr=0.1, out=pathlib.Path("x")),
    "simple namespace": lambda: types.SimpleNamespace(lr=0.1),
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "counter": lambda: collections.Counter("aab"),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "ordered": lambda: collections.OrderedDict(a=1),
    "date": lambda: datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
    "duration": lambda: datetime.timedelta(seconds=3),
    "decimal": lambda: decimal.Decimal("0.1"),
    "uuid": lambda: uuid.UUID(int=3),
    "enum": lambda: Stage.FIT,
    "string enum": lambda: Wordy.TRAIN,
    "dict subclass": lambda: Settings(a=1, b=Settings(c=[1])),
    "dataclass": lambda: Record(0.1, Record(0.2)),
    "named tuple": lambda: Point(1, 2),
    "slots": Slots,
    "class": lambda: Record,
    "partial": lambda: functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "function": lambda: torch.nn.functional.gelu,
    "module": lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU()),
    "dtype and device": lambda: (torch.float16, torch.device("cpu"), torch.Size([1, 2])),
    "set": lambda: {1, 2},
    "frozen set": lambda: frozenset({1}),
    "complex and bytes": lambda: (1j, b"abc", bytearray(b"abc"), slice(1, 2), range(3)),
    "regular expression": lambda: re.compile("a+", re.ASCII),
    "type of None": lambda: type(None),
    "exception": lambda: ValueError("no"),
    "generic alias": lambda: list[int],
    "tuple as key": lambda: {(1, "a"): 2, (1, (2, 3)): 4},
    "large number": lambda: {1 << 200: 1 << 3000},
    "quantized": lambda: {"state": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", EXTRAS)
def test_data_beside_weights_is_no_hindrance(tmp_path: Path, name: str, protocol: int, zipped: bool) -> None:
    content = {"model": {"w": WEIGHT}, "hyper_parameters": {"it": EXTRAS[name](), "after": WEIGHT}}
    path = tmp_path / "x.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    tensors = open_raw(path).tensors
    assert next(iter(tensors)) == "model/w"
    assert list(tensors)[-1] == "hyper_parameters/after"
    assert np.array_equal(tensors["model/w"].read(), WEIGHT.numpy())


def test_a_dict_of_another_class_holds_weights(tmp_path: Path) -> None:
    torch.save(Settings(model=Settings(w=WEIGHT)), tmp_path / "x.pth")
    assert list(open_raw(tmp_path / "x.pth").tensors) == ["model/w"]


def test_nothing_is_imported(tmp_path: Path) -> None:
    """The classes of a file may be of modules that do not exist here, or that do something when they are imported."""
    (tmp_path / "trap.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('trace').touch()\nclass A: pass\n"
    )
    program = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import trap
torch.save({"w": torch.ones(2), "config": [trap.A(), trap.A]}, sys.argv[1] + "/x.pth")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    (tmp_path / "trace").unlink()
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from vit_hub.converters.containers import open_raw
assert list(open_raw(sys.argv[1] + "/x.pth").tensors) == ["w"]
assert "trap" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert not (tmp_path / "trace").exists()


class Call:
    """Its pickle calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


class Inner:
    def method(self) -> None: ...


def a_function(*_: object) -> None:
    raise AssertionError("called")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        Call(os.system, "touch trace"),
        Call(subprocess.Popen, "touch trace"),
        Call(eval, "1"),
        Call(exec, "1"),
        Call(getattr, "text", "upper"),
        Call(print, "x"),
        Call(torch.load, "x"),
        Call(torch.hub.load, "a", "b"),
        Call(torch.storage._load_from_bytes, b"x"),
        Call(a_function, 1),
        Call(Inner.method, 1),
        Call(functools.reduce, a_function, [1, 2]),
        Call(__import__("operator").attrgetter, "x"),
        Call(functools.partial, os.system, "touch trace"),
        Call(pathlib.Path.touch, pathlib.Path("trace")),
        Call(vit_hub.load, "x"),
        [eval],
        {"a": {"b": os.system}},
    ],
)
def test_calls_are_refused_by_name(tmp_path: Path, call: object, zipped: bool) -> None:
    torch.save({"w": WEIGHT, "extra": call}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match=r"would run [\w.]+") as raised:
        open_raw(tmp_path / "x.pth")
    assert "safetensors" in raised.value.hint
    assert not (tmp_path / "trace").exists()


def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2), "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.nn\.modules\.linear\.Linear") as raised:
        open_raw(tmp_path / "x.pth")
    assert "state_dict" in raised.value.hint


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
    return path


def long(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@pytest.mark.parametrize(
    "pickled",
    [
        # bytearray(6 GiB)
        b"cbuiltins\nbytearray\n(\x8a\x08" + struct.pack("<q", 6 << 30) + b"tR.",
        # A text encoded to hex again and again.
        b"c_codecs\nencode\n" * 27 + text("A" * 64) + text("latin1") + b"\x86R" + (text("hex") + b"\x86R") * 26 + b".",
        # Tuples of tuples as a key: their hash takes 2**40 steps.
        b"})q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(40)) + b"K\x01s.",
        b"})" + b"2\x86" * 40 + b"K\x01s.",
        b"\x8f(" + b")" + b"2\x86" * 40 + b"\x90.",
        # Numbers with the same hash.
        b"}(" + b"".join(long(k * (2**61 - 1)) + b"N" for k in range(1, 20_000)) + b"u.",
        b"r\xff\xff\xff\xff.",
        b"}r\xff\xff\xff\xff.",
        b"\x96" + struct.pack("<Q", 1 << 50) + b".",
        b"(" * 1000 + b"t" * 1000 + b".",
    ],
)
def test_small_pickles_stay_small_and_quick(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(CheckpointError):
        open_raw(archive(tmp_path / "x.pth", b"\x80\x04" + pickled))


def test_what_stands_for_weights_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"'w' is quantized by PyTorch \(torch.qint8\)") as raised:
        open_raw(tmp_path / "x.pth")
    assert "dequantize" in raised.value.hint


def sample() -> bytes:
    stream = io.BytesIO()
    torch.save({"m": {"w": WEIGHT, "b": WEIGHT[0]}, "e": [make() for make in EXTRAS.values()]}, stream)
    with zipfile.ZipFile(stream) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))


PICKLED = sample()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_pickles_give_no_other_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(PICKLED)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        open_raw(archive(tmp_path / "x.pth", bytes(content)))


OPCODES = [bytes([ord(code.code)]) for code in pickletools.opcodes if code.arg is None]
OPCODES += [text("a"), b"K\x01", b"cos\nsystem\n", b"ca\nB\n", b"h\x00", b"q\x00"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from([*OPCODES, text("a"), b"K\x01", b"cos\nsystem\n", b"ca\nB\n", b"h\x00", b"q\x00"]))
)
def test_any_program_ends_without_running(tmp_path: Path, parts: list[bytes]) -> None:
    with contextlib.suppress(CheckpointError):
        open_raw(archive(tmp_path / "x.pth", b"\x80\x04" + b"".join(parts) + b"."))


def test_plain_pickles_of_tensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": WEIGHT}))
    with pytest.raises(UnsafeCheckpointError, match="_load_from_bytes"):
        open_raw(tmp_path / "x.pkl")


def test_a_plain_pickle_is_named(tmp_path: Path) -> None:
    content = {"model": {"backbone.net.pos_embed": np.zeros((1, 5, 4), np.float32)}, "__author__": "somebody"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"a plain pickle.*detectron2") as raised:
        open_raw(tmp_path / "model_final.pkl")
    assert "torch.save" in raised.value.hint
