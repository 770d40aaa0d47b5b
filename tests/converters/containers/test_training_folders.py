"""Folders that training tools leave: the weights that torch's own readers find, and a word on what was chosen."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from vit_hub.converters.containers import RawCheckpoint, open_raw
from vit_hub.converters.read import open_checkpoint
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

STATE = {"blocks.0.w": torch.arange(12.0).reshape(3, 4), "half": torch.ones(2, dtype=torch.bfloat16)}


def same(source: RawCheckpoint, wanted: dict[str, torch.Tensor]) -> bool:
    assert set(source.tensors) == set(wanted)
    return all(
        np.ascontiguousarray(source.tensors[name].read()).tobytes()
        == value.contiguous().view(torch.uint8).numpy().tobytes()
        for name, value in wanted.items()
    )


# torch.distributed.checkpoint


def test_nested_dicts_and_other_items(tmp_path: Path) -> None:
    content = {
        "model": STATE,
        "epoch": 3,
        "note": "abc",
        "optim": {"state": {"blocks.0.w": {"exp_avg": STATE["half"]}}},
    }
    dcp.save(content, checkpoint_id=tmp_path / "d", no_dist=True)
    wanted = {f"model/{name}": value for name, value in STATE.items()}
    wanted["optim/state/blocks.0.w/exp_avg"] = STATE["half"]
    for path in (tmp_path / "d", tmp_path / "d" / ".metadata", tmp_path / "d" / "__0_0.distcp"):
        source = open_raw(path)
        assert same(source, wanted)
        assert source.container == "torch"


def test_tensors_in_parts_of_several_processes(tmp_path: Path) -> None:
    program = """
import sys, torch
import torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).reshape(5, 7)
dcp.save({
    "rows": distribute_tensor(whole, mesh, [Shard(0)]),
    "columns": distribute_tensor(whole, mesh, [Shard(1)]),
    "copy": distribute_tensor(whole, mesh, [Replicate()]),
    "short": distribute_tensor(whole[:1], mesh, [Shard(0)]),
}, checkpoint_id=folder + "/d")
dist.destroy_process_group()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert len(list((tmp_path / "d").glob("*.distcp"))) == 2
    whole = torch.arange(35.0).reshape(5, 7)
    source = open_raw(tmp_path / "d")
    assert same(source, {"rows": whole, "columns": whole, "copy": whole, "short": whole[:1]})
    assert len(source.files) == 3
    next((tmp_path / "d").glob("__1_*.distcp")).unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp.* missing"):
        open_raw(tmp_path / "d")


def test_memory_stays_flat(tmp_path: Path) -> None:
    dcp.save({f"w{i}": torch.ones(1 << 20) for i in range(16)}, checkpoint_id=tmp_path, no_dist=True)
    source = open_raw(tmp_path)
    tracemalloc.start()
    assert all(item.read().sum() == 1 << 20 for item in source.tensors.values())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


def test_parts_without_their_metadata(tmp_path: Path) -> None:
    dcp.save(STATE, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"distributed\.checkpoint.*without its file \.metadata"):
        open_raw(tmp_path)


def chunked(folder: Path, shape: tuple[int, int], blocks: list[tuple[int, int, int, int]], tensors: int = 1) -> Path:
    """Write tensors of ones, in blocks (row, column, height, width)."""
    dcp.save({f"w{i}": torch.ones(shape) for i in range(tensors)}, checkpoint_id=folder, no_dist=True)
    about = pickle.loads((folder / ".metadata").read_bytes())
    stored = {index.fqn: place for index, place in about.storage_data.items()}
    about.storage_data = {}
    for name, tensor in about.state_dict_metadata.items():
        tensor.chunks = [ChunkStorageMetadata(torch.Size(item[:2]), torch.Size(item[2:])) for item in blocks]
        about.storage_data |= {MetadataIndex(name, torch.Size(item[:2])): stored[name] for item in blocks}
    (folder / ".metadata").write_bytes(pickle.dumps(about))
    return folder


TILES = [(0, 0, 1, 2), (1, 0, 2, 1), (0, 2, 2, 1), (2, 1, 1, 2), (1, 1, 1, 1)]  # a pinwheel


@pytest.mark.parametrize(
    ("blocks", "whole"),
    [
        (TILES, True),
        ([*TILES, (1, 1, 0, 1)], True),
        (TILES[:-1], False),
        ([*TILES[:-1], (0, 0, 1, 1)], False),
        ([*TILES, (1, 1, 0, 3)], False),
        ([(0, 0, 3, 3), (0, 0, 1, 1)], False),
    ],
)
def test_parts_have_neither_gaps_nor_overlaps(
    tmp_path: Path, blocks: list[tuple[int, int, int, int]], whole: bool
) -> None:
    folder = chunked(tmp_path, (3, 3), blocks)
    if whole:
        assert open_raw(folder).tensors["w0"].shape == (3, 3)
    else:
        with pytest.raises(CheckpointError, match="do not make up"):
            open_raw(folder)


def test_many_parts_take_no_long_time(tmp_path: Path) -> None:
    rows = [(row, 0, 1, 1) for row in range(4096)]
    folder = chunked(tmp_path, (4096, 1), rows, tensors=3)
    start = time.process_time()
    assert len(open_raw(folder).tensors) == 3
    assert time.process_time() - start < 8  # where each was compared with each, 20 and more


def test_metadata_are_not_executed(tmp_path: Path) -> None:
    dcp.save(STATE, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / ".metadata").write_bytes(b"\x80\x04cposix\nsystem\nX\x05\x00\x00\x00touch\x85R.")
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        open_raw(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp")
    dcp.save(STATE, checkpoint_id=folder, no_dist=True)
    return folder


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_damage_gives_no_other_error(tmp_path: Path, saved: Path, file: str, data: st.DataObject) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((saved / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / file).write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    with contextlib.suppress(CheckpointError):
        for item in open_raw(tmp_path).tensors.values():
            assert item.read().shape == item.shape


# Folders of a run


def model(folder: Path, value: float = 0, name: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"w": torch.full((2,), value)}
    save_file(content, folder / name) if name.endswith("safetensors") else torch.save(content, folder / name)


def read(folder: Path) -> tuple[float, tuple[str, ...]]:
    source = open_raw(folder)
    assert source.path == folder
    return float(source.tensors["w"].read()[0]), source.warnings


def test_the_last_step_is_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100, 20):
        model(tmp_path / f"checkpoint-{step}", step)
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text(json.dumps({"step": step}))
        torch.save({}, tmp_path / f"checkpoint-{step}" / "optimizer.pt")
        torch.save({}, tmp_path / f"checkpoint-{step}" / "training_args.bin")
    value, (warning,) = read(tmp_path)
    assert value == 100
    assert "checkpoint-100 is read" in warning
    assert open_raw(tmp_path).sidecars["config.json"] == {"step": 100}
    model(tmp_path, 1)
    assert read(tmp_path) == (1, ())


@pytest.mark.parametrize("named", ["out/checkpoint-10", "/elsewhere/out/checkpoint-10/", r"C:\out\checkpoint-10"])
def test_the_best_step_is_read_where_it_is_known(tmp_path: Path, named: str) -> None:
    for step in (10, 20):
        model(tmp_path / f"checkpoint-{step}", step)
    state = tmp_path / "checkpoint-20" / "trainer_state.json"
    state.write_text(json.dumps({"best_model_checkpoint": named}))
    value, (warning,) = read(tmp_path)
    assert value == 10
    assert "best" in warning
    assert "checkpoint-20 is the last" in warning
    for content in ('{"best_model_checkpoint": null}', '{"best_model_checkpoint": "../x"}', "[", "3"):
        state.write_text(content)
        assert read(tmp_path)[0] == 20


def test_accelerate(tmp_path: Path) -> None:
    model(tmp_path / "a", 1)
    for name in ("optimizer.bin", "scheduler.bin", "sampler.bin", "scaler.pt"):
        torch.save({"w": torch.zeros(2)}, tmp_path / "a" / name)
    (tmp_path / "a" / "random_states_0.pkl").write_bytes(b"")
    assert read(tmp_path / "a") == (1, ())
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "model.st")
    model(tmp_path / "a", 2, "pytorch_model_fsdp.bin")
    assert read(tmp_path / "a") == (2, ())
    model(tmp_path / "p" / "checkpoints" / "checkpoint_3", 3)
    model(tmp_path / "p" / "checkpoints" / "checkpoint_12", 12)
    assert read(tmp_path / "p")[0] == 12
    dcp.save({"model": {"w": torch.ones(2)}}, checkpoint_id=tmp_path / "s" / "pytorch_model_fsdp_0", no_dist=True)
    dcp.save({"optimizer": {"w": torch.ones(2)}}, checkpoint_id=tmp_path / "s" / "optimizer_0", no_dist=True)
    assert list(open_raw(tmp_path / "s").tensors) == ["model/w"]


def test_lightning(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_11" / "checkpoints"
    model(folder, 4, "epoch=1-step=2.ckpt")
    model(tmp_path / "lightning_logs" / "version_2" / "checkpoints", 1, "epoch=0-step=1.ckpt")
    for path in (tmp_path, tmp_path / "lightning_logs", folder.parent, folder):
        assert read(path)[0] == 4
    model(folder, 5, "last.ckpt")
    value, warnings = read(tmp_path)
    assert value == 5
    assert "last.ckpt is read, the last; the folder also has epoch=1-step=2.ckpt" in warnings
    model(folder, 6, "last-v1.ckpt")
    assert read(folder)[0] == 6


def lightning(folder: Path, value: float, name: str, best: str, monitor: str | None = "val_acc") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    callback = {"monitor": monitor, "best_model_score": torch.tensor(0.5), "best_model_path": best}
    content = {"w": torch.full((2,), value), "callbacks": {f"ModelCheckpoint{{'monitor': {monitor!r}}}": callback}}
    torch.save(content, folder / name)


def test_the_best_by_lightning(tmp_path: Path) -> None:
    for name, value, best in (("epoch=1-step=2", 1, 1), ("epoch=2-step=4", 2, 2), ("epoch=10-step=20", 3, 2)):
        lightning(tmp_path / "a", value, f"{name}.ckpt", f"/home/me/run/epoch={best}-step={2 * best}.ckpt")
    value, [warning] = read(tmp_path / "a")
    assert value == 2
    assert "the best by the callbacks in epoch=10-step=20.ckpt; the folder also has" in warning
    lightning(tmp_path / "a", 4, "last.ckpt", r"C:\run\epoch=1-step=2.ckpt")
    assert read(tmp_path / "a")[0] == 1
    lightning(tmp_path / "a", 4, "last.ckpt", "epoch=1-step=2.ckpt", monitor=None)
    assert read(tmp_path / "a")[0] == 4  # without a number to watch it is only the last one written
    lightning(tmp_path / "b", 1, "val_acc=0.91.ckpt", "val_acc=0.91.ckpt")
    lightning(tmp_path / "b", 2, "val_acc=0.89.ckpt", "val_acc=0.91.ckpt")
    assert read(tmp_path / "b")[0] == 1
    lightning(tmp_path / "b", 2, "val_acc=0.89.ckpt", "val_acc=0.89.ckpt")
    with pytest.raises(CheckpointError, match=r"val_acc=0\.89\.ckpt, val_acc=0\.91\.ckpt"):
        open_raw(tmp_path / "b")
    (tmp_path / "b" / "val_acc=0.89.ckpt").write_bytes(b"damaged")
    assert read(tmp_path / "b")[0] == 1


@pytest.mark.parametrize(
    ("names", "wanted", "why"),
    [
        (
            ("checkpoint-1.pth.tar", "checkpoint-12.pth.tar", "last.pth.tar", "model_best.pth.tar"),
            3,
            "best by its name",
        ),
        (("checkpoint-9.pth.tar", "checkpoint-12.pth.tar", "last.pth.tar"), 2, "the last"),
        (("checkpoint-9.pth.tar", "checkpoint-12.pth.tar"), 1, "the last"),
        (("checkpoint.pth", "checkpoint0020.pth"), 0, "the last"),
        (("epoch_9.pth", "best_accuracy_top1_epoch_9.pth", "epoch_10.pth"), 1, "best by its name"),
        (("last.pt", "best.pt"), 1, "best by its name"),
    ],
)
def test_files_of_one_run(tmp_path: Path, names: tuple[str, ...], wanted: int, why: str) -> None:
    for value, name in enumerate(names):
        model(tmp_path, value, name)
    (tmp_path / "args.yaml").write_text("model: vit_tiny\n")
    value, [warning] = read(tmp_path)
    assert value == wanted
    assert why in warning


def test_the_file_that_names_the_last(tmp_path: Path) -> None:
    model(tmp_path, 1, "epoch_1.pth")
    model(tmp_path, 2, "iter_900.pth")
    (tmp_path / "last_checkpoint").write_text("/data/work_dirs/vit/epoch_1.pth")
    assert read(tmp_path)[0] == 1


@pytest.mark.parametrize("names", [("vit_s_16.pth", "vit_s_32.pth"), ("best_a.pth", "best_b.pth", "last.pth")])
def test_files_of_several_models_are_no_run(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        model(tmp_path, 1, name)
    with pytest.raises(CheckpointError, match="several files could hold the weights"):
        open_raw(tmp_path)


def deepspeed(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        torch.save({"module": {"w": torch.ones(2)}, "ds_version": "0.14"}, folder / name)
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def test_deepspeed(tmp_path: Path) -> None:
    deepspeed(tmp_path / "global_step5", "mp_rank_00_model_states.pt")
    deepspeed(tmp_path / "global_step9", "mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text("global_step5\n")
    source = open_raw(tmp_path)
    assert source.files == (tmp_path / "global_step5" / "mp_rank_00_model_states.pt",)
    assert "global_step5" in source.warnings[0]
    assert open_raw(tmp_path / "global_step5").files == source.files
    (tmp_path / "latest").unlink()
    assert "global_step9" in str(open_raw(tmp_path).files)
    for name in ("../x", "/etc", "nothing", "\0", ""):
        (tmp_path / "latest").write_text(name)
        with pytest.raises(CheckpointError, match="latest"):
            open_raw(tmp_path)


def test_deepspeed_in_parts(tmp_path: Path) -> None:
    deepspeed(
        tmp_path / "zero3", "zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"
    )
    with pytest.raises(CheckpointError, match="stage 3") as raised:
        open_raw(tmp_path / "zero3")
    assert "zero_to_fp32.py" in raised.value.hint
    deepspeed(tmp_path / "parallel", "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt")
    with pytest.raises(CheckpointError, match="model parallelism"):
        open_raw(tmp_path / "parallel")


def test_steps_within_steps_end(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(9):
        folder = folder / "checkpoint-1"
    model(folder)
    with pytest.raises(CheckpointError, match="nested deeper"):
        open_raw(tmp_path)


def test_placeholders_of_zero_stage_3(tmp_path: Path) -> None:
    names = ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "norm.weight")
    torch.save({"module": {name: torch.empty(0) for name in names}}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="ZeRO stage 3") as raised:
        open_checkpoint(tmp_path)
    assert "zero_to_fp32.py" in raised.value.hint
