"""Folders of checkpoints: the file of the weights, the index of sharded ones, and the JSON files beside them.

The folder may be one on disk or one of a repository: the rules are about names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vit_hub.errors import CheckpointError
from vit_hub.untrusted import parse_json, read_bytes

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "CUSTOMARY_WEIGHTS",
    "PART",
    "SIDECARS",
    "config_files",
    "find_weights",
    "is_customary",
    "is_name",
    "listed",
    "looks_like_weights",
    "parts_of",
    "read_document",
    "read_index",
    "read_sidecars",
    "weight_files",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""The files of an adapter of peft, in order of preference."""
# In order of preference; the patterns of a group are equally good.
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json",),
    ("open_clip_model.safetensors",),
    ("*.safetensors.index.json", "*.safetensors.index.*.json"),
    ("*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json",),
    ("open_clip_*.bin",),
    ("*.bin.index.json", "*.bin.index.*.json"),
    ("model.weights.h5",),
    ("flax_model.msgpack",),
    ("flax_model.msgpack.index.json",),
    ("tf_model.h5",),
    ("tf_model.h5.index.json",),
    ("*.bin", "*.pth", "*.pt", "*.pth.tar", "*.ckpt", "*.npz", "*.msgpack", "*.h5"),
    ("*.onnx",),
)
# What training, or a conversion that keeps everything, leaves beside the weights.
_OTHERS = (
    "rest.safetensors",
    "*.rest.safetensors",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "random_states*",
    "training_args*",
    "adapter_model*",
    ".*",
)
SIDECARS = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "open_clip_config.json",
    "task.json",
    "preprocessor.json",
    "image_converter.json",
    "metadata.json",
)
"""The JSON files that may say more about the weights beside them."""
# Files with the rest of a checkpoint, by the name of its first one.
_PARTS = {"model.weights.h5": ("task.weights.h5",)}
# The name of a tensor of a checkpoint of several such files: file and name in it.
PART = re.compile(r"([\w.-]+\.h5):(.+)")
CUSTOMARY_WEIGHTS = (*(name for group in _WEIGHTS for name in group if "*" not in name), *ADAPTER_WEIGHTS)
"""Names of weights, in order of preference."""
# ``model.fp16.safetensors`` is a variant of its folder's. Files of other names may lie in folders of unrelated things.
_VARIANTS = (
    "model.*.safetensors",
    "model.safetensors.index*.json",
    "pytorch_model.*.bin",
    "pytorch_model.bin.index*.json",
    "open_clip_pytorch_model.bin",
)
_MOST_LISTED = 12


def weight_files(names: Collection[str]) -> list[str]:
    """Return, of the files of one folder, the one that holds the weights: the index of sharded ones, or a file.

    Args:
        names: of all files, without the folder.

    Returns:
        One name; none if nothing looks like weights; several where they are equally good.
    """
    possible = sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in _OTHERS))
    for patterns in _WEIGHTS:
        found = [name for name in possible if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if found:
            return found
    return [name for name in ADAPTER_WEIGHTS if name in names][:1]


def config_files(name: str) -> tuple[str, ...]:
    """Return the JSON files that may say more about weights of a name."""
    return (ADAPTER_CONFIG,) if name in ADAPTER_WEIGHTS else SIDECARS


def looks_like_weights(name: str) -> bool:
    """Return whether a file's name, without its folder, is one of weights."""
    return bool(weight_files([name]))


def is_customary(name: str) -> bool:
    """Return whether a file of this name is about the same model as the JSON files beside it."""
    return name in CUSTOMARY_WEIGHTS or any(fnmatchcase(name, pattern) for pattern in _VARIANTS)


def listed(names: Iterable[str]) -> str:
    """Return a list of files for a message, those that look like weights first."""
    ordered = sorted(names, key=lambda name: (not looks_like_weights(name.rpartition("/")[2]), name))
    more = len(ordered) - _MOST_LISTED
    return ", ".join(ordered[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "") or "no files"


def find_weights(folder: Path) -> Path:
    """Return the file with the weights of a folder, or the index of sharded ones.

    Raises:
        CheckpointError: there is none, or there are several equally good ones.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()]
    found = weight_files(names)
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: several files could hold the weights: {', '.join(found)}",
            hint="give the path of one of them",
        )
    if not found:
        looked_for = ", ".join(pattern for patterns in _WEIGHTS for pattern in patterns)
        raise CheckpointError(
            f"{folder}: no weights in this folder", hint=f"looked for {looked_for}; it has {listed(names)}"
        )
    return folder / found[0]


def is_name(text: object) -> bool:
    """Return whether untrusted text is the name of a file in the same folder."""
    return isinstance(text, str) and text not in ("", ".", "..") and not set(text) & set("/\\\0")


def parts_of(path: Path, weights: Path) -> tuple[Path, ...]:
    """Return the files of a checkpoint in a folder: the weights found there, and others that hold the rest."""
    others = (weights.with_name(name) for name in _PARTS.get(weights.name, ()))
    return (weights, *(file for file in others if path != weights and file.is_file()))


def read_index(path: Path, seen: dict[Path, str] | None = None) -> dict[Path, list[str]]:
    """Return the files of a sharded checkpoint, each with the names of its tensors.

    Args:
        path: of the index.
        seen: as for :func:`read_document`.

    Raises:
        CheckpointError: malformed index, or a file outside of the index's folder.
    """
    weight_map = _parsed(path, read_document(path, seen)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: this index has no 'weight_map'", hint="fetch the file again")
    shards: dict[Path, list[str]] = {}
    for tensor, name in weight_map.items():
        if not is_name(name):
            raise CheckpointError(
                f"{path}: the file of tensor {tensor!r} is {name!r}, which is not a name in this folder",
                hint="the index is damaged or malicious",
            )
        shards.setdefault(path.parent / name, []).append(tensor)
    return shards


def read_sidecars(weights: Path, seen: dict[Path, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the JSON files beside the weights, file name -> contents.

    Args:
        weights: their file.
        seen: as for :func:`read_document`.

    Raises:
        CheckpointError: one of them is not a JSON object.
    """
    found = {}
    for name in SIDECARS:
        content = read_document(weights.parent / name, seen)
        if content is not None:
            found[name] = _parsed(weights.parent / name, content)
    return found


def read_document(path: Path, seen: dict[Path, str] | None) -> bytes | None:
    """Return the contents of a file that says what else is read, or what it means; None: there is no such file.

    Args:
        path: of the file, of which :data:`~vit_hub.untrusted.JSON_BYTES` are read, and one byte more.
        seen: gets the sha256 of what was read, by file; empty where there is none.

    Raises:
        OSError: it cannot be read.
    """
    content = read_bytes(path) if path.is_file() else None
    if seen is not None:
        seen[path] = "" if content is None else hashlib.sha256(content).hexdigest()
    return content


def _parsed(path: Path, content: bytes | None) -> dict[str, Any]:
    if content is None:
        raise CheckpointError(f"{path}: no such file", hint="fetch it again")
    try:
        # What others wrote may have numbers that are none, in fields that nothing here reads.
        parsed = parse_json(content, finite=False)
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}", hint="repair the file or fetch it again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: a JSON object expected", hint="repair the file or fetch it again")
    return parsed
