"""Archives of torch.export: the state dict of the program, and nothing of the program itself is read."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vit_hub.converters.containers import open_raw
from vit_hub.errors import CheckpointError, UnsafeCheckpointError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        base = torch.randn(4, 6)
        self.linear, self.turned = nn.Linear(6, 4), nn.Parameter(base.t())
        self.narrow = nn.Parameter(torch.randn(3).bfloat16())
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x @ self.turned) * self.count + self.narrow.float().sum()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, path = Small(), tmp_path_factory.mktemp("exported") / "x.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(2, 6),)), path)
    return path, dict(model.state_dict())


def equal(path: Path, wanted: dict[str, Tensor]) -> bool:
    found = open_raw(path).tensors
    assert set(found) == set(wanted)
    return all(
        np.ascontiguousarray(found[name].read()).tobytes()
        == value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, value in wanted.items()
    )


def test_the_state_dict(exported: tuple[Path, dict[str, Tensor]]) -> None:
    assert equal(*exported)


def test_an_archive_of_an_older_torch(tmp_path: Path, exported: tuple[Path, dict[str, Tensor]]) -> None:
    stream = io.BytesIO()
    torch.save(exported[1], stream)
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("version", "8.2")
        archive.writestr("serialized_exported_program.json", "not read")
        archive.writestr("serialized_state_dict.pt", stream.getvalue())
    assert equal(tmp_path / "x.pt2", exported[1])


def rewritten(source: Path, path: Path, changes: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, next((data for end, data in changes.items() if name.endswith(end)), old.read(name)))
    return path


def test_the_program_is_never_read(tmp_path: Path, exported: tuple[Path, dict[str, Tensor]]) -> None:
    changes = {"models/model.json": b"no program", "sample_inputs/model.pt": b"cos\nsystem\n."}
    assert equal(rewritten(exported[0], tmp_path / "x.pt2", changes), exported[1])


def test_a_pickled_weight_is_not_executed(tmp_path: Path, exported: tuple[Path, dict[str, Tensor]]) -> None:
    with zipfile.ZipFile(exported[0]) as archive:
        name = next(name for name in archive.namelist() if name.endswith("_weights_config.json"))
        config = archive.read(name).replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    changes = {"_weights_config.json": config, "weight_0": stream.getvalue()}
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        open_raw(rewritten(exported[0], tmp_path / "x.pt2", changes))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_no_other_error(
    tmp_path: Path, exported: tuple[Path, dict[str, Tensor]], data: st.DataObject
) -> None:
    with zipfile.ZipFile(exported[0]) as archive:
        content = bytearray(archive.read(next(n for n in archive.namelist() if n.endswith("_weights_config.json"))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = rewritten(exported[0], tmp_path / "x.pt2", {"_weights_config.json": bytes(content)})
    with contextlib.suppress(CheckpointError):
        for item in open_raw(path).tensors.values():
            assert item.read().shape == item.shape
