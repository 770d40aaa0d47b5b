"""Every reader of the package as a pair: a changed input of its own seed, and the calls that read it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from xml.sax.saxutils import quoteattr

import mutations as change
import numpy as np
import onnx
import pyarrow
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image
from pyarrow import parquet

import vit_hub
from vit_hub.certifying.certificate import read_record
from vit_hub.converters.containers import write_tensors
from vit_hub.converters.containers.hashing import file_sha256
from vit_hub.converters.tensors import from_array
from vit_hub.exporting.files import exported_file
from vit_hub.hub import mirror
from vit_hub.hub.cache import hashes, inventory, records
from vit_hub.hub.http.part_file import PartFile
from vit_hub.hub.lockfile import locked_model, read_lock
from vit_hub.hub.plan import plan
from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import tensor_shapes
from vit_hub.preprocessing.images import read_image
from vit_hub.running.evaluation import mapping_of
from vit_hub.running.folder import Folder, read_manifest
from vit_hub.running.neighbours import knn
from vit_hub.running.reading import content_of
from vit_hub.running.sources import Sources

CONFIG = ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=16, depth=1, num_heads=2, mlp_dim=8, num_classes=2)
HEADS = {"num_heads": 2}
ADDRESS = "https://example.org/w.safetensors"
RESULTS = ("parquet", "npy", "safetensors")
IMAGES = ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "tga")


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: returns an input, bytes or a folder of files.
        read: reads it, given a place for its files.
    """

    make: Callable[[Random], Any]
    read: Callable[[Any, Path, Random], None]


def seeds(folder: Path) -> None:
    """Write the small valid files that inputs are made from."""
    numbers = np.random.default_rng(0)
    values = {name: numbers.standard_normal(shape, np.float32) for name, shape in tensor_shapes(CONFIG).items()}
    lazy = {name: from_array(value) for name, value in values.items()}
    state = {name: torch.from_numpy(value) for name, value in values.items()}
    source = folder / "timm.safetensors"
    write_tensors(source, "safetensors", lazy)
    vit_hub.convert(source, folder / "canonical.safetensors", overrides=HEADS)
    for target, name in (("vit_jax", "stored.npz"), ("hf", "hf"), ("timm", "timm")):
        vit_hub.convert(source, folder / name, to=target, overrides=HEADS, lossy=True)
    arrays = vit_hub.open_checkpoint(folder / "stored.npz", overrides=HEADS).source.tensors
    write_tensors(folder / "flax.msgpack", "msgpack", arrays)
    np.savez_compressed(folder / "deflated.npz", **dict(np.load(folder / "stored.npz")))
    write_tensors(folder / "state.h5", "hdf5", {name.replace(".", "/"): item for name, item in lazy.items()})
    torch.save({"model": state, "epoch": 3, "args": [1, 2]}, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    module = torch.nn.Module()
    for name, value in state.items():
        *parents, last = name.split(".")
        inner = module
        for parent in parents:
            if not hasattr(inner, parent):
                inner.add_module(parent, torch.nn.Module())
            inner = getattr(inner, parent)
        inner.register_parameter(last, torch.nn.Parameter(value))
    torch.jit.save(torch.jit.script(module), str(folder / "script.pt"))
    _shards(folder / "hf", folder / "shards")
    dcp.save({"model": state}, checkpoint_id=folder / "dcp", no_dist=True)
    nodes = [onnx.helper.make_node("MatMul", ["x", "head.weight"], ["y"])]
    ends = [[onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 16])] for name in "xy"]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *ends, weights)), folder / "model.onnx")
    (folder / "hf" / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
    pixels = Image.fromarray(numbers.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    for kind in IMAGES:
        pixels.save(folder / f"image.{kind}")

    _adapter(folder)
    _results(folder, pixels)
    _programs(folder)


_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_resize": True, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def _adapter(folder: Path) -> None:
    """Write a LoRA adapter of peft for the model above."""
    (folder / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": True, "target_modules": ["qkv"]}
    settings |= {"base_model_name_or_path": "", "use_rslora": False, "fan_in_fan_out": False, "alpha_pattern": {}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.blocks.0.attn.qkv.lora_{}.weight"
    matrices = {name.format("A"): np.ones((2, 16), np.float32), name.format("B"): np.ones((48, 2), np.float32)}
    write_tensors(
        folder / "adapter" / "adapter_model.safetensors",
        "safetensors",
        {key: from_array(value) for key, value in matrices.items()},
    )


def _results(folder: Path, pixels: Image.Image) -> None:
    """Write images in folders of classes, a tar shard and a parquet file of them, and folders of embeddings."""
    for number, label in enumerate("aabb"):
        path = folder / "images" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(path)
    with tarfile.open(folder / "images.tar", "w") as archive:
        for path in sorted((folder / "images").rglob("*.png")):
            archive.add(path, path.name)
    content = (folder / "images" / "a" / "0.png").read_bytes()
    table = pyarrow.table({"image": [{"bytes": content, "path": "x"}] * 3, "label": [0, 1, 1]})
    parquet.write_table(table, folder / "images.parquet")
    model = vit_hub.load(folder / "canonical.safetensors")
    for to in RESULTS:
        vit_hub.embed(model, folder / "images", folder / to, to=to, workers=0, batch_size=2, shard_size=2)


def _programs(folder: Path) -> None:
    """Write what an exported file says of itself, and an ONNX file with it."""
    facts = {"config": CONFIG.to_dict(), "what": "logits", "dtype": "float32", "image_size": [8, 8], "dynamic": False}
    facts |= {"with_preprocess": True, "mean": [0.5] * 3, "std": [0.5] * 3, "version": "0"}
    facts["passport"] = vit_hub.open_checkpoint(folder / "canonical.safetensors").passport.to_dict()
    (folder / "facts.json").write_text(json.dumps(facts))


def _shards(whole: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    tensors = vit_hub.open_checkpoint(whole).source.tensors
    halves = (dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:]))
    shards = {f"model-0000{number}-of-00002.safetensors": half for number, half in enumerate(halves, 1)}
    for name, half in shards.items():
        write_tensors(folder / name, "safetensors", half)
    weight_map = {tensor: name for name, half in shards.items() for tensor in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _file(name: str, data: bytes, folder: Path, random: Random) -> None:
    path = folder / name
    path.write_bytes(data)
    use(path, random)


def _folder(files: change.Files, folder: Path, random: Random) -> None:
    path = folder / "folder"
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    use(path, random)


def use(path: Path, random: Random) -> None:
    """Do with a checkpoint what users do."""
    overrides = HEADS if random.random() < 0.7 else {}
    opened = vit_hub.open_checkpoint(path, overrides=overrides)
    json.dumps(opened.provenance)
    if random.random() < 0.5:
        model = vit_hub.load(path, overrides=overrides)
        vit_hub.preprocess(model)
        vit_hub.class_names(model)
    if random.random() < 0.5:
        to = random.choice(("canonical", "timm", "hf", "vit_jax", "torchvision", "openai_clip", "facebook"))
        keep_rest = random.random() < 0.5
        vit_hub.convert(path, path.parent / "written", to=to, overrides=overrides, lossy=True, keep_rest=keep_rest)


def _adapted(base: Path, files: change.Files, folder: Path, random: Random) -> None:
    path = folder / "adapter"
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    opened = vit_hub.open_checkpoint(path, base=base if random.random() < 0.7 else None, offline=True)
    for tensor in opened.tensors.values():
        tensor.read()


def _result(files: change.Files, folder: Path, random: Random) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    manifest = read_manifest(folder)
    there = Folder(folder, manifest)
    for number in there.numbers():
        there.record(number)
    knn(folder, k=1)


def _program(kind: str, data: bytes, folder: Path, random: Random) -> None:
    path = folder / f"program.{kind}"
    text, labels = data.decode("utf-8", "replace"), random.choice(('["a", "b"]', "[1]", "{", ""))
    if kind == "onnx":
        model = onnx.ModelProto()
        for key, value in (("vit_hub", text), ("labels", labels)):
            model.metadata_props.add(key=key, value=value)
        path.write_bytes(b"\x08\x08" + model.SerializeToString())
    elif kind == "xml":
        info = f"<vit_hub value={quoteattr(text)}/><labels value={quoteattr(labels)}/>"
        path.write_text(f'<?xml version="1.0"?><net><rt_info>{info}</rt_info></net>', encoding="utf-8")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/extra/vit_hub", text)
            archive.writestr("m/extra/labels", labels)
    if random.random() < 0.3:
        path.write_bytes(change.bits(path.read_bytes(), random))
    exported_file(path)


def _certificate(data: bytes, folder: Path, random: Random) -> None:
    path = folder / "certificate.json"
    path.write_bytes(data)
    read_record(path)


def _mapping(data: bytes, folder: Path, random: Random) -> None:
    path = folder / "mapping"
    path.write_bytes(data)
    mapping_of(path)


def _journal(data: bytes, folder: Path, random: Random) -> None:
    part = PartFile(folder / "x", pinned=random.random() < 0.5)
    part.file.write_bytes(bytes(100))
    part.journal.write_bytes(data)
    part.restore(random.choice((None, 100, 200)))
    assert 0 <= part.size <= 100


def _list(name: str, data: bytes, folder: Path, random: Random) -> None:
    path = folder / name
    path.write_bytes(data)
    for item in itertools.islice(Sources.of([str(path)]).items(), 10):
        with contextlib.suppress(OSError):
            content_of(item)


def _name(name: str, folder: Path, random: Random) -> None:
    revision = name if random.random() < 0.2 else None
    plan("someone/vit" if revision else name, revision=revision)
    vit_hub.open_checkpoint("someone/vit" if revision else name, revision=revision, offline=True)


def _image(data: bytes, folder: Path, random: Random) -> None:
    read_image(data, mode=random.choice(("RGB", "L")))


def _pin(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _lock(data: bytes, folder: Path, random: Random) -> None:
    path = folder / "vit-hub.lock"
    path.write_bytes(data)
    for name in list(read_lock(path))[:3]:
        locked_model(name, path)


def _mirror(weights: bytes, data: bytes, folder: Path, random: Random) -> None:
    (folder / "files").mkdir()
    (folder / "files" / hashlib.sha256(weights).hexdigest()).write_bytes(weights)
    (folder / mirror.INDEX).write_bytes(data)
    os.environ["VIT_HUB_MIRROR"] = str(folder)
    try:
        vit_hub.open_checkpoint(ADDRESS, offline=True, overrides=HEADS)
    finally:
        del os.environ["VIT_HUB_MIRROR"]


def _record(weights: bytes, data: bytes, folder: Path, random: Random) -> None:
    file = records.record_file(ADDRESS)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    for item in inventory.items():
        assert item.size >= 0
    inventory.prune(days=1, dry_run=True)
    vit_hub.open_checkpoint(ADDRESS, offline=True, overrides=HEADS)


def _stamp(data: bytes, folder: Path, random: Random) -> None:
    path = folder / "x"
    path.write_bytes(b"values")
    stamp = hashes.stamp_file(path)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_bytes(data)
    hashes.is_current(stamp)
    assert hashes.sha256_of(path) == file_sha256(path)


def readers(folder: Path) -> dict[str, Reader]:
    """Return the readers by name; their seeds are written to a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds(folder)
    of = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    archive = partial(change.changed_archive, change=change.changed_pickle)
    arrays = partial(change.changed_archive, change=change.changed_npy)
    files: dict[str, tuple[str, Callable[[bytes, Random], bytes]]] = {
        "safetensors": ("timm.safetensors", change.changed_safetensors),
        "canonical": ("canonical.safetensors", change.changed_safetensors),
        "npz": ("stored.npz", arrays),
        "npz_deflated": ("deflated.npz", arrays),
        "torch_zip": ("zip.pth", archive),
        "torch_legacy": ("legacy.pth", change.changed_legacy),
        "torchscript": ("script.pt", archive),
        "msgpack": ("flax.msgpack", change.bits),
        "hdf5": ("state.h5", change.bits),
        "onnx": ("model.onnx", lambda data, random: change.bits(data, random, random.choice((400, None)))),
    }
    found = {name: Reader(partial(changed, of[seed]), partial(_file, seed)) for name, (seed, changed) in files.items()}
    for name in ("hf", "timm", "shards", "dcp"):
        inside = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        found[f"folder_{name}"] = Reader(partial(change.changed_folder, inside), _folder)
    weights = of["timm.safetensors"]
    delivery = {"address": ADDRESS, "files": {"w.safetensors": _pin(weights)}}
    documents: dict[str, tuple[Any, Callable[[bytes, Path, Random], None]]] = {
        "lock": ({"version": 1, "models": {ADDRESS: delivery}}, _lock),
        "mirror": (
            {"version": 1, "addresses": {ADDRESS: delivery}, "models": {"m": {"addresses": [ADDRESS]}}},
            partial(_mirror, weights),
        ),
        "record": ({"version": 1, "asked": ADDRESS, "folder": str(folder), **delivery}, partial(_record, weights)),
        "stamp": ({"stat": ["x", 6, 1], "sha256": "0" * 64}, _stamp),
    }
    for name, (document, read) in documents.items():
        found[name] = Reader(partial(change.changed_text, json.dumps(document).encode()), read)
    found |= _more(folder, of)
    images = [of[f"image.{kind}"] for kind in IMAGES]
    found["image"] = Reader(lambda random: change.bits(random.choice(images), random), _image)
    return found


def _more(folder: Path, of: dict[str, bytes]) -> dict[str, Reader]:
    """Return the readers of what is not weights."""
    inside = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    base = folder / "timm.safetensors"
    found = {"adapter": Reader(partial(change.changed_folder, inside), partial(_adapted, base))}
    for to in RESULTS:
        paths = [path for path in (folder / to).rglob("*") if path.is_file() and path.name != ".lock"]
        files = {path.relative_to(folder / to).as_posix(): path.read_bytes() for path in paths}
        found[f"embed_{to}"] = Reader(partial(change.changed_result, files), _result)
    for kind in ("onnx", "xml", "pt2"):
        found[f"program_{kind}"] = Reader(partial(change.changed_text, of["facts.json"]), partial(_program, kind))
    for name, document, read in (
        ("certificate", _CERTIFICATE, _certificate),
        ("mapping", {"cat": 3, "dog": "n02", "x": 0}, _mapping),
        ("journal", {"version": 1, "total": 200, "validator": '"x"', "have": [[0, 50], [60, 100]]}, _journal),
    ):
        found[name] = Reader(partial(change.changed_text, json.dumps(document).encode()), read)
    found["images_tar"] = Reader(partial(change.changed_tar, of["images.tar"]), partial(_list, "images.tar"))
    parquet_file = partial(change.bits, of["images.parquet"])
    found["images_parquet"] = Reader(parquet_file, partial(_list, "images.parquet"))
    found["name"] = Reader(partial(change.changed_name, _NAMES), _name)
    return found


_CERTIFICATE = {
    "certificate": 1, "source": "m", "weights": {"sha256": "0"}, "config": {"depth": 1}, "reference": {"output": [1.0]},
    "settings": {
        "device": "cpu", "dtype": "float32", "compile": None, "runtime": "torch", "images": None, "limit": 1,
        "against": ["timm"], "opening": {"overrides": {"num_heads": 2}},
    },
    "findings": [{"name": "x", "verdict": "pass", "figures": {"error": 0.5}}],
}  # fmt: skip
_NAMES = (
    "vit-b16", "someone/vit", "someone/vit@main", "hf://someone/vit@v1/x.safetensors", "hf-hub:someone/vit",
    "https://e.org:8000/w.safetensors?a=b#c", "https://u:p@e.org/w.pth", "https://[::1]:80/x.npz", "file:///x/y.pth",
    "https://huggingface.co/a/b/resolve/main/w.pth", "gs://bucket/x.npz", "s3://bucket/x.pth", "local-dir:x",
    "augreg:B_16-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0", "./x/y.pth",
)  # fmt: skip
