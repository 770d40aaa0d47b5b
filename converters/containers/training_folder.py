"""Folders that training tools leave: where the weights are in them, and a sentence on what was chosen."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vit_hub.converters.containers.dcp import METADATA
from vit_hub.converters.containers.folder import is_name
from vit_hub.errors import CheckpointError

__all__ = ["enter"]

# Subfolders of steps, epochs and runs, as Trainer, accelerate, DeepSpeed and Lightning number them.
_NUMBERED = re.compile(r"(checkpoint|global_step|step|epoch|iter|version|run)[-_]?(\d+)")
# Subfolders that hold nothing but checkpoints.
_ALONE = ("checkpoints", "lightning_logs", "checkpoint")
_WEIGHTS = re.compile(
    r"[^.].*\.(safetensors|bin|pth|pt|ckpt|npz|tar|h5|msgpack|safetensors\.index\.json|bin\.index\.json)"
)
# State of the training beside the weights.
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|sampler|scaler|training_args|rng_state|random_states|custom_checkpoint|dl_state_dict|meta)"
    r"([-_]\w+)?\.\w+|.*optim_states\.pt"
)
_DEEPSPEED = re.compile(r"(zero_pp_rank_\d+_)?mp_rank_(\d+)_model_states\.pt")
_FSDP = re.compile(r"pytorch_model_fsdp\w*")


def enter(folder: Path) -> tuple[Path, str] | None:
    """Return the file or subfolder with the weights of a folder of a training tool, and why; None if it is no such.

    Raises:
        CheckpointError: the weights are in parts that only the tool itself can put together, or there are several.
    """
    if (folder / METADATA).is_file():
        return folder / METADATA, ""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    parts = [name for name in names if name.endswith(".distcp")]
    if parts:
        raise CheckpointError(
            f"{folder}: a folder of torch.distributed.checkpoint ({parts[0]}) without its file {METADATA}",
            hint="copy that file, too: its name begins with a dot",
        )
    files = [name for name in names if _WEIGHTS.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name)]
    whole = [name for name in files if not _DEEPSPEED.fullmatch(name)]
    if whole:
        state = [name for name in names if _NO_WEIGHTS.fullmatch(name)]
        if len(whole) == 1 and (state or whole[0].endswith(".ckpt")):
            return folder / whole[0], ""
        if all(name.endswith(".ckpt") for name in whole):
            raise CheckpointError(
                f"{folder}: several checkpoints: {', '.join(whole)}", hint="give the path of one of them"
            )
        return None
    if files:
        return _deepspeed(folder, files)
    latest = folder / "latest"
    if latest.is_file():
        name = latest.read_text(errors="replace").strip()[:200]
        if not is_name(name) or not (folder / name).is_dir():
            raise CheckpointError(
                f"{folder}: DeepSpeed's file 'latest' names {name!r}, which is no folder here",
                hint="give the path of a global_step folder, or of a file",
            )
        return folder / name, f"{name} is read, which DeepSpeed's file 'latest' names"
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    sharded = [path for path in folders if _FSDP.fullmatch(path.name) and (path / METADATA).is_file()]
    if len(sharded) == 1:
        return sharded[0], f"{sharded[0].name} is read"
    numbered = [(int(match[2]), path) for path in folders if (match := _NUMBERED.fullmatch(path.name))]
    if numbered:
        return _of_steps(folder, [path for _, path in sorted(numbered)])
    alone = [path for path in folders if path.name in _ALONE]
    return (alone[0], f"{alone[0].name} is read") if alone else None


def _deepspeed(folder: Path, files: list[str]) -> tuple[Path, str]:
    ranks = [name for name in files if name.startswith("mp_rank_")]
    if not ranks:
        raise CheckpointError(
            f"{folder}: DeepSpeed's ZeRO stage 3 keeps the weights in parts, one a process",
            hint="run its zero_to_fp32.py in the folder above, and give the file that it writes",
        )
    if len(ranks) > 1:
        raise CheckpointError(
            f"{folder}: DeepSpeed's model parallelism keeps the weights in {len(ranks)} parts",
            hint="put them together with the tool that trained the model",
        )
    return folder / ranks[0], ""


def _of_steps(folder: Path, steps: list[Path]) -> tuple[Path, str]:
    """Return the best of the checkpoints of a run if Trainer recorded it, else the last."""
    last = steps[-1]
    best = _best(folder, last)
    if best is not None and best != last:
        return best, f"{best.name} is read, the best by trainer_state.json; {last.name} is the last"
    others = f", of {len(steps)} such folders" if len(steps) > 1 else ""
    return last, f"{last.name} is read, the last{others}" if others else f"{last.name} is read"


def _best(folder: Path, last: Path) -> Path | None:
    for path in (folder / "trainer_state.json", last / "trainer_state.json"):
        try:
            state = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        named = state.get("best_model_checkpoint") if isinstance(state, dict) else None
        if isinstance(named, str):
            # The path of the machine that trained the model, also of another system.
            found = folder / re.split(r"[/\\]", named.rstrip("/\\"))[-1]
            if found.is_dir() and _NUMBERED.fullmatch(found.name):
                return found
    return None
