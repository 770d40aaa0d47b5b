"""Files that change while a model of theirs is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import random_images, random_model

import vit_hub

CONFIG = vit_hub.ViTConfig(image_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=2, mlp_dim=512, num_classes=5)
PROGRAM = """
import os, sys, torch, vit_hub, vit_hub.errors
from pathlib import Path
place, action, options, before = sys.argv[1:]
files = [file for file in [Path(place), *Path(place).glob("*")] if file.suffix in (".safetensors", ".npz", ".pth")]

def change():
    for file in files:
        if action == "cut":
            os.truncate(file, 100)
        else:
            size = file.stat().st_size
            with file.open("r+b") as opened:
                opened.seek(size // 4)
                opened.write(os.urandom(size // 2))

try:
    opened = vit_hub.open_checkpoint(place)
    if before == "before":
        change()
    with torch.no_grad():
        images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        model = vit_hub.load(opened, **eval(options))
        expected = model(images) if action == "other" else None
        change()
        outputs = model(images)
    print(tuple(outputs.shape), expected is None or torch.equal(outputs, expected))
except vit_hub.errors.VitHubError as error:
    print(type(error).__name__, error.message)
"""


class Holder(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def holder(tensors: dict[str, torch.Tensor]) -> Holder:
    """Return a module with parameters of these dotted names."""
    root = Holder()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, Holder())
            module = module.get_submodule(parent)
        module.register_parameter(last, torch.nn.Parameter(tensor))
    return root


def sharded(file: Path, folder: Path) -> Path:
    """Write timm's tensors as two shards and their index."""
    tensors = load_file(file)
    names, shards = sorted(tensors), ("model-1.safetensors", "model-2.safetensors")
    weight_map = {name: shards[place % 2] for place, name in enumerate(names)}
    folder.mkdir()
    for shard in shards:
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(str({"weight_map": weight_map}).replace("'", '"'))
    return folder


@pytest.fixture(params=["canonical", "timm", "sharded", "hf", "npz", "compressed npz", "pth", "old pth", "torchscript"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same weights in one of the containers."""
    kind, canonical = request.param, random_model(CONFIG).save(tmp_path / "canonical.safetensors")
    if kind == "canonical":
        return canonical
    if kind == "hf":
        return vit_hub.convert(canonical, tmp_path / "hf", to="hf", lossy=True).path
    if "npz" in kind:
        file = vit_hub.convert(canonical, tmp_path / "m.npz", to="vit_jax", lossy=True).path
        if kind == "compressed npz":
            np.savez_compressed(file, **np.load(file))
        return file
    file = vit_hub.convert(canonical, tmp_path / "timm.safetensors", to="timm", lossy=True).path
    if kind == "timm":
        return file
    if kind == "sharded":
        return sharded(file, tmp_path / "sharded")
    tensors, pickled = load_file(file), tmp_path / "m.pth"
    if kind == "torchscript":
        torch.jit.script(holder(tensors)).save(str(pickled))
    else:
        torch.save(tensors, pickled, _use_new_zipfile_serialization=kind == "pth")
    return pickled


def run(place: Path, action: str, options: str, before: str = "") -> str:
    command = [sys.executable, "-c", PROGRAM, str(place), action, options, before]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode} {done.stderr}"
    return done.stdout.strip()


def test_a_file_may_be_cut_short_under_its_model(place: Path) -> None:
    assert run(place, "cut", "{}") == "(1, 5) True"


def test_a_file_may_be_overwritten_under_its_model(tmp_path: Path) -> None:
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    assert run(file, "other", "{}") == "(1, 5) True"
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    assert run(file, "other", "{'mmap': False}") == "(1, 5) True"


def test_other_dtypes_are_read_as_well(tmp_path: Path) -> None:
    for options in ("{'dtype': 'auto'}", "{'device': 'cpu'}"):
        file = random_model(CONFIG).save(tmp_path / "m.safetensors")
        assert run(file, "cut", options) == "(1, 5) True"


def test_an_opened_file_that_was_cut_short_is_refused(place: Path) -> None:
    """Only a pickle of the old form is in memory already."""
    said = run(place, "cut", "{'mmap': True}", "before")
    changed = "CheckpointError" in said and "the file was changed while it was read" in said
    assert changed or (said == "(1, 5) True" and place.name == "m.pth")


def test_a_source_cut_short_during_a_conversion_is_an_error(tmp_path: Path) -> None:
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    program = """
import os, sys, vit_hub, vit_hub.errors
opened = vit_hub.open_checkpoint(sys.argv[1])
os.truncate(sys.argv[1], 100)
try:
    vit_hub.convert(opened, sys.argv[2], to="vit_jax", lossy=True)
except vit_hub.errors.VitHubError as error:
    print(error.message)
"""
    target = tmp_path / "out.npz"
    command = [sys.executable, "-c", program, str(file), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the file was changed while it was read" in done.stdout
    assert not target.exists()


def memory(model: vit_hub.VisionTransformer, file: Path) -> bool:
    """Return whether a parameter is a view of the mapped file."""
    address = model.blocks[0].attn.qkv.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.endswith(str(file))
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_files_of_the_caches_are_mapped_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    own = random_model(CONFIG).save(tmp_path / "m.safetensors")
    cached = random_model(CONFIG).save(tmp_path / "cache" / "canonical" / "m" / "m.safetensors")
    beside = random_model(CONFIG).save(tmp_path / "cache" / "m.safetensors")
    found = {
        (file, mmap): memory(vit_hub.load(file, mmap=mmap), file)
        for file in (own, cached, beside)
        for mmap in (None, True, False)
    }
    assert [case for case, mapped in found.items() if mapped] == [
        (own, True),
        (cached, None),
        (cached, True),
        (beside, True),
    ]


def test_models_of_one_opened_file_share_no_memory(place: Path) -> None:
    opened, images = vit_hub.open_checkpoint(place), random_images(CONFIG)
    with torch.no_grad():
        first, second = vit_hub.load(opened), vit_hub.load(opened)
        before = second(images)
        for parameter in first.parameters():
            parameter.zero_()
        assert torch.equal(second(images), before)


@pytest.mark.parametrize("mmap", [None, True, False])
def test_a_file_replaced_by_our_own_writers_changes_nothing(mmap: bool | None, tmp_path: Path) -> None:
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    model, images = vit_hub.load(file, mmap=mmap), random_images(CONFIG)
    fresh = vit_hub.load(file, mmap=False)
    other = random_model(CONFIG, seed=1)
    other.save(file)
    with torch.no_grad():
        assert torch.equal(model(images), fresh(images))
        assert torch.equal(vit_hub.load(file)(images), other(images))


@pytest.mark.parametrize("mmap", [None, True])
def test_a_model_can_be_saved_over_its_own_file(mmap: bool | None, tmp_path: Path) -> None:
    file = random_model(CONFIG).save(tmp_path / "m.safetensors")
    before = vit_hub.load(file, mmap=False).state_dict()
    vit_hub.load(file, mmap=mmap).save(file)
    after = vit_hub.load(file).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
