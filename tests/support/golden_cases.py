"""Recorded checkpoints of other projects: small random models with the inputs and outputs of the projects' own code.

Each folder of ``tests/golden``, and of those that come with the package (``vit_hub/data/golden``), is a case: a native
checkpoint, ``input.npy``, one file per recorded output, and ``meta.json``, which says which project and version made it
and how.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_hub.certifying.golden import FOLDER, OUTPUTS

__all__ = ["CASES", "OUTPUTS", "RESIZED", "Case", "native_tensors"]

GOLDEN = Path(__file__).parents[1] / "golden"

# Projects whose files say nothing of the number of heads, and those whose files say nothing of the activation.
_HEADS_UNSTATED = ("timm", "fb", "torchvision", "openclip", "openai")
_ACTIVATION_UNSTATED = ("timm", "openclip")
# Models without a position table of a size, outside of Hugging Face's folders: the image size has to be given.
_SIZE_UNSTATED = ("timm_dinov3", "fb_dinov3", "bv_tok_sincos2d")


_SUFFIXES = (".safetensors", ".bin", ".pth", ".npz", ".h5", ".msgpack")


@dataclass(frozen=True)
class Case:
    """One folder."""

    folder: Path
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.meta["checkpoint"]

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields that neither the checkpoint's tensors nor a config file beside them state."""
        if "overrides" in self.meta:
            return dict(self.meta["overrides"])
        config: dict[str, Any] = self.meta["config"]
        options: dict[str, Any] = {}
        if self.name.startswith(_HEADS_UNSTATED) and config.get("heads"):
            options["num_heads"] = config["heads"]
        activation = str(config.get("activation", "")).lower()
        if self.name.startswith(_ACTIVATION_UNSTATED) and ("quick" in activation or "tanh" in activation):
            options["act"] = "quick_gelu" if "quick" in activation else "gelu_tanh"
        # The released DINOv3 models are pooled by timm otherwise than by their authors, as this one is.
        if self.name.startswith("timm_dinov3"):
            options["pool"] = {"token": "cls"}.get(config["pooling"], config["pooling"])
        height, width = config["image_size"]
        if self.name.startswith(_SIZE_UNSTATED) or (not self.name.startswith("hf") and height != width):
            options["image_size"] = (height, width)
        return options

    def images(self) -> Tensor:
        return torch.from_numpy(np.load(self.folder / self.meta["input"]["file"]))

    def outputs(self) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(np.load(self.folder / described["file"]))
            for name, described in self.meta["outputs"].items()
        }


_FILES = [file for folder in (GOLDEN, FOLDER) for file in folder.glob("*/meta.json")]
_ALL = [
    Case(file.parent, json.loads(file.read_text(encoding="utf-8")))
    for file in sorted(_FILES, key=lambda file: file.parent.name)
]
# Those that run at the size they were made for.
CASES = tuple(case for case in _ALL if case.meta.get("checkpoint") and not case.meta.get("resize"))
# Those that run at another.
RESIZED = tuple(case for case in _ALL if case.meta.get("resize"))


def native_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> (dtype, shape, bytes) of a weight file or a folder of them, read by the projects' own readers."""
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES]
        if len(files) > 1 and all(file.suffix == ".h5" for file in files):  # the parts of a preset of keras-hub
            return {f"{file.name}:{name}": value for file in files for name, value in native_tensors(file).items()}
        return {name: value for file in files for name, value in native_tensors(file).items()}
    if path.suffix == ".h5":
        import h5py

        datasets: dict[str, h5py.Dataset] = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: datasets.update({name: item} if isinstance(item, h5py.Dataset) else {}))
            return {name: (str(item.dtype), item.shape, item[()].tobytes()) for name, item in datasets.items()}
    if path.suffix == ".msgpack":
        import msgpack

        tree = msgpack.unpackb(path.read_bytes(), ext_hook=lambda _, data: tuple(msgpack.unpackb(data)))
        return _flat("", tree)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _described("", load_file(path))
    return _described("", torch.load(path, map_location="cpu", weights_only=True))


def _flat(prefix: str, tree: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The arrays of nested maps of flax, names joined by ``/``."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(f"{prefix}{name}/", value)
        else:
            shape, dtype, raw = value
            found[prefix + name] = (dtype, tuple(shape), raw)
    return found


def _described(prefix: str, tree: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors of nested dicts, names joined by ``/``."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _described(f"{prefix}{name}/", value)
        elif isinstance(value, Tensor):
            raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            found[prefix + name] = (str(value.dtype), tuple(value.shape), raw)
    return found
