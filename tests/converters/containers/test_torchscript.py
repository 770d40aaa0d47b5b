"""TorchScript archives: the same tensors as torch's own reader finds, and nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vit_hub
from vit_hub.converters.containers import open_raw
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

WIDTH = 64


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.randn(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(x)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.c_fc(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ln_1, self.mlp, self.ln_2 = Attention(), nn.LayerNorm(WIDTH), Mlp(), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attn(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(10, WIDTH))
        self.proj = nn.Parameter(torch.randn(WIDTH, 5))
        self.conv1 = nn.Conv2d(3, WIDTH, 4, 4, bias=False)
        self.ln_pre, self.transformer, self.ln_post = nn.LayerNorm(WIDTH), Transformer(), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)


class Clip(nn.Module):
    """The names of OpenAI's archives, without what they compute; matrices are in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.positional_embedding = nn.Parameter(torch.randn(7, 8))
        self.logit_scale = nn.Parameter(torch.ones([]))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(7))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, Attention)):
                module.half()
        self.visual.proj.data = self.visual.proj.data.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


class Odd(nn.Module):
    """Values of every kind, strided, empty and shared."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.randn(6, 5)
        self.whole, self.part, self.turned = nn.Parameter(base), nn.Parameter(base[1:3, 2:]), nn.Parameter(base.t())
        self.none, self.one = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.tensor(2.5))
        kinds = (
            torch.float64,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
        for kind in kinds:
            self.register_buffer(f"a_{kind}".replace(".", "_"), torch.arange(4).to(kind))
        self.sizes, self.rates, self.flags = [1, 2], [0.5], {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.one


def scripted(module: nn.Module, path: Path) -> dict[str, Tensor]:
    torch.jit.script(module.eval()).save(str(path))
    return dict(torch.jit.load(str(path)).state_dict())


@pytest.mark.parametrize("make", [Clip, Odd])
def test_the_same_tensors_as_torch(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    wanted = scripted(make(), tmp_path / "model.pt")
    found = open_raw(tmp_path / "model.pt").tensors
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        bits = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
        array = found[name].read()
        assert (array.shape, array.dtype.itemsize) == (bits.shape, bits.dtype.itemsize)
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(bits).tobytes(), name


def test_traced_archive(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.jit.trace(model, torch.zeros(1, 3)).save(str(tmp_path / "model.pt"))
    assert list(open_raw(tmp_path / "model.pt").tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_clip_there_and_back(tmp_path: Path) -> None:
    wanted = scripted(Clip(), tmp_path / "ViT.pt")
    ckpt = vit_hub.open_checkpoint(tmp_path / "ViT.pt")
    assert ckpt.format == "openai_clip"
    assert not ckpt.warnings
    assert (ckpt.config.num_heads, ckpt.config.image_size, ckpt.config.act) == (1, (12, 12), "quick_gelu")
    vit_hub.convert(tmp_path / "ViT.pt", tmp_path / "canonical.safetensors")
    vit_hub.convert(tmp_path / "canonical.safetensors", tmp_path / "again.pt", to=ckpt.format)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert set(again) | set(ckpt.dropped) == set(wanted)
    assert not set(again) & set(ckpt.dropped)
    assert all(torch.equal(value, wanted[name]) and value.dtype == wanted[name].dtype for name, value in again.items())


def test_arrays_do_not_change_the_file(tmp_path: Path) -> None:
    scripted(Clip(), tmp_path / "ViT.pt")
    before = (tmp_path / "ViT.pt").read_bytes()
    open_raw(tmp_path / "ViT.pt").tensors["visual.proj"].read()[:] = 0
    assert (tmp_path / "ViT.pt").read_bytes() == before


def rewritten(path: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive of one linear layer with some of its members replaced."""
    torch.jit.script(nn.Linear(2, 3)).save(str(path))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).split("/")[0]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**members, **{f"{root}/{name}": data for name, data in changes.items()}}.items():
            archive.writestr(name, data)
    return path


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, getattr, torch.load, torch.hub.load, nn.Linear])
def test_programs_in_the_pickle_are_refused(tmp_path: Path, function: Callable[..., object], protocol: int) -> None:
    trace = tmp_path / "trace"
    pickled = pickle.dumps({"weight": Runs(function, f"touch {trace}")}, protocol)
    path = rewritten(tmp_path / "x.pt", {"data.pkl": pickled})
    with pytest.raises(UnsafeCheckpointError, match=function.__name__) as raised:
        open_raw(path)
    assert "state_dict" in raised.value.hint
    assert not trace.exists()


def test_the_program_itself_is_never_read(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / "x.pt"))
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        code = [name.partition("/")[2] for name in archive.namelist() if "/code/" in name or "constants" in name]
    path = rewritten(tmp_path / "x.pt", dict.fromkeys(code, b"\0 no program"))
    assert list(open_raw(path).tensors) == ["weight", "bias"]


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, count: int = 6, key: str = "0") -> bytes:
    """The pickle of a module with one tensor, as torch writes it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> object:
            return ("storage", torch.FloatStorage, key, "cpu", count) if item == "values" else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(Runs(torch._utils._rebuild_tensor_v2, "values", offset, shape, strides, False, None))
    # Put it into the module's attributes: \x80\x02 is the header, '.' the end.
    body = stream.getvalue()[2:-1]
    return b"\x80\x02c__torch__.M\nM\n)\x81}X\x01\x00\x00\x00w" + body + b"sb."


def test_a_tensor_made_by_hand(tmp_path: Path) -> None:
    found = open_raw(rewritten(tmp_path / "x.pt", {"data.pkl": tensor((3, 2), (2, 1))})).tensors
    assert found["w"].read().shape == (3, 2)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}.",
        tensor((3, 3), (3, 1)),
        tensor((3, 2), (2, 1), offset=1),
        tensor((3, 2), (2, 1), offset=-1),
        tensor((3, 2), (-2, 1)),
        tensor((3, 2), (2,)),
        tensor((3, -2), (2, 1)),
        tensor((3, 2), (2, 1), count=1 << 40),
        tensor((3, 2), (2, 1), key="../constants/0"),
        tensor((3, 2), (2, 1), key="99"),
        tensor((1 << 40,), (0,)),
        # Asks for memory for four thousand million memos.
        b"\x80\x02}r\xff\xff\xff\xff.",
        b"\x80\x04\x96" + struct.pack("<Q", 1 << 50) + b".",
    ],
)
def test_damaged_or_deceiving_pickles(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        open_raw(rewritten(tmp_path / "x.pt", {"data.pkl": pickled}))


def test_a_module_that_holds_itself(tmp_path: Path) -> None:
    pickled = b"\x80\x02c__torch__.M\nM\n)\x81q\x01}X\x01\x00\x00\x00mh\x01sb."
    with pytest.raises(CheckpointError, match="nested deeper"):
        open_raw(rewritten(tmp_path / "x.pt", {"data.pkl": pickled}))


def test_modules_that_hold_one_another_twice(tmp_path: Path) -> None:
    """Thirty modules, each holding the one before twice: 2**30 leaves."""
    pickled = b"\x80\x02N"
    for _ in range(30):
        pickled += b"q\x010c__torch__.M\nM\n)\x81}(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01ub"
    with pytest.raises(CheckpointError, match="objects"):
        open_raw(rewritten(tmp_path / "x.pt", {"data.pkl": pickled + b"."}))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_no_other_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(tensor((3, 2), (2, 1)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        for item in open_raw(rewritten(tmp_path / "x.pt", {"data.pkl": bytes(content)})).tensors.values():
            assert item.read().shape == item.shape


def test_compressed_and_big_endian_archives(tmp_path: Path) -> None:
    whole = open_raw(rewritten(tmp_path / "x.pt", {})).tensors
    compressed = open_raw(rewritten(tmp_path / "y.pt", {}, zipfile.ZIP_DEFLATED)).tensors
    assert [item.shape for item in compressed.values()] == [item.shape for item in whole.values()]
    assert all(item.read().size for item in compressed.values())
    with pytest.raises(CheckpointError, match="little-endian"):
        open_raw(rewritten(tmp_path / "x.pt", {"byteorder": b"big"}))


def test_frozen_module_has_no_parameters(tmp_path: Path) -> None:
    torch.jit.freeze(torch.jit.script(nn.Linear(2, 3).eval())).save(str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="no parameters") as raised:
        open_raw(tmp_path / "x.pt")
    assert "frozen" in raised.value.hint


def test_unknown_values_are_named(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("turn", torch.zeros(2, dtype=torch.complex64))
    torch.jit.script(model).save(str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="complex64"):
        open_raw(tmp_path / "x.pt")
