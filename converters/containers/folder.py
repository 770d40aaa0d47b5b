"""Folders of checkpoints: the file of the weights, the index of sharded ones, and the JSON files beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vit_hub.errors import CheckpointError

__all__ = ["find_weights", "read_index", "read_sidecars"]

# In order of preference; the patterns of a group are equally good.
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json",),
    ("*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json",),
    ("open_clip_*.bin",),
    ("*.bin", "*.pth", "*.pt", "*.npz"),
)
_SIDECARS = ("config.json", "preprocessor_config.json", "open_clip_config.json")
# Files of other names may lie in folders of unrelated things.
_CUSTOMARY = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def find_weights(folder: Path) -> Path:
    """Return the file with the weights of a folder, or the index of sharded ones.

    Raises:
        CheckpointError: there is none, or there are several equally good ones.
    """
    for patterns in _WEIGHTS:
        found = sorted(
            path
            for pattern in patterns
            for path in folder.glob(pattern)
            if path.is_file() and not path.name.startswith(".")
        )
        if len(found) > 1:
            raise CheckpointError(
                f"{folder}: several files could hold the weights: {', '.join(path.name for path in found)}",
                hint="give the path of one of them",
            )
        if found:
            return found[0]
    looked_for = ", ".join(pattern for patterns in _WEIGHTS for pattern in patterns)
    raise CheckpointError(f"{folder}: no weights in this folder", hint=f"looked for {looked_for}")


def read_index(path: Path) -> dict[Path, list[str]]:
    """Return the files of a sharded checkpoint, each with the names of its tensors.

    Raises:
        CheckpointError: malformed index, or a file that is missing or outside of the index's folder.
    """
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: this index has no 'weight_map'", hint="fetch the file again")
    shards: dict[Path, list[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise CheckpointError(
                f"{path}: the file of tensor {tensor!r} is {name!r}, which is not a name in this folder",
                hint="the index is damaged or malicious",
            )
        shards.setdefault(path.parent / name, []).append(tensor)
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{path}: the file {shard.name} that it names is missing", hint="fetch it as well")
    return shards


def read_sidecars(path: Path, weights: Path) -> dict[str, dict[str, Any]]:
    """Return the JSON files beside the weights, file name -> contents.

    Args:
        path: as the user gave it: a folder, or a file, beside which they count only if it has a customary name.
        weights: the weights found there.

    Raises:
        CheckpointError: one of them is not a JSON object.
    """
    if path == weights and path.name not in _CUSTOMARY:
        return {}
    return {name: _read_json(weights.parent / name) for name in _SIDECARS if (weights.parent / name).is_file()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}", hint="repair the file or fetch it again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: a JSON object expected", hint="repair the file or fetch it again")
    return parsed
