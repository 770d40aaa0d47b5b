"""Folders that training tools leave: where the weights are in them, and a sentence on what was chosen."""

from __future__ import annotations

import re
from pathlib import Path

from vit_hub.converters.containers.dcp import METADATA
from vit_hub.converters.containers.folder import is_name, listed, read_document
from vit_hub.converters.containers.torch_file import read_state
from vit_hub.errors import CheckpointError, VitHubError
from vit_hub.untrusted import parse_json

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
# Files of one run, by their names without suffix: timm's, Lightning's, mmengine's, those of Facebook's projects.
_SUFFIX = re.compile(r"\.(ckpt|pth\.tar|pth|pt)")
_BEST = re.compile(r"(.*[-_])?best([-_].*)?")
_LAST = re.compile(r"(last|latest|checkpoint|final|model_final)(?:-v(\d+))?")
_STEP = re.compile(r"(?:checkpoint|epoch|step|iter)[-_=]?(\d+)")
_LAST_NAMED = "last_checkpoint"  # a file of mmengine's and detectron2's


def enter(folder: Path, seen: dict[Path, str]) -> tuple[Path, str] | None:
    """Return the file or subfolder with the weights of a folder of a training tool, and why; None if it is no such.

    Args:
        folder: to look in.
        seen: gets the files that decided, as for :func:`~vit_hub.converters.containers.folder.read_document`.

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
        if len(whole) == 1:
            return (folder / whole[0], "") if state or whole[0].endswith(".ckpt") else None
        return _of_run(folder, whole, seen)
    if files:
        return _deepspeed(folder, files)
    latest = read_document(folder / "latest", seen)
    if latest is not None:
        name = latest.decode(errors="replace").strip()[:200]
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
        return _of_steps(folder, [path for _, path in sorted(numbered)], seen)
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


def _of_steps(folder: Path, steps: list[Path], seen: dict[Path, str]) -> tuple[Path, str]:
    """Return the best of the checkpoints of a run if Trainer recorded it, else the last."""
    last = steps[-1]
    best = _best(folder, last, seen)
    if best is not None and best != last:
        return best, f"{best.name} is read, the best by trainer_state.json; {last.name} is the last"
    others = f", of {len(steps)} such folders" if len(steps) > 1 else ""
    return last, f"{last.name} is read, the last{others}" if others else f"{last.name} is read"


def _of_run(folder: Path, files: list[str], seen: dict[Path, str]) -> tuple[Path, str] | None:
    """Return the best of the checkpoints of one run if a name or a file says so, else the last.

    None if a name is no such checkpoint's.
    """
    parts = {name: _SUFFIX.split(name) for name in files}
    stems = {name: found[0] for name, found in parts.items() if len(found) == 3 and not found[2]}
    best = [name for name, stem in stems.items() if _BEST.fullmatch(stem)]
    versions = {name: match for name, stem in stems.items() if (match := _LAST.fullmatch(stem))}
    steps = {name: [int(number) for number in _STEP.findall(stem)] for name, stem in stems.items()}
    if len(stems) < len(files) or not all(name in best or name in versions or steps[name] for name in files):
        # Lightning's names may be anything; the records may be of different times.
        recorded = {_lightning_best(folder / name) for name in files if name.endswith(".ckpt")} & {*files}
        return _chosen(folder, recorded.pop(), "the best by their callbacks", files) if len(recorded) == 1 else None
    # Lightning numbers another last.ckpt that it finds: last-v1.ckpt is newer.
    last = max(versions, key=lambda name: int(versions[name][2] or 0), default="")
    last = last or _named(folder / _LAST_NAMED, files, seen) or max(steps, key=lambda name: steps[name])
    found = _lightning_best(folder / last)
    if found in files and found != last:
        return _chosen(folder, found, f"the best by the callbacks in {last}", files)
    if best:
        return _chosen(folder, best[-1], "the best by its name", files) if len(best) == 1 else None
    return _chosen(folder, last, "the last", files)


def _chosen(folder: Path, name: str, why: str, files: list[str]) -> tuple[Path, str]:
    others = listed(other for other in files if other != name)
    return folder / name, f"{name} is read, {why}; the folder also has {others}"


def _named(file: Path, files: list[str], seen: dict[Path, str]) -> str:
    """Return the one of these files that a text file names last, also by the path of another machine."""
    name = re.split(r"[/\\]", (read_document(file, seen) or b"").decode(errors="replace").strip())[-1]
    return name if name in files else ""


def _lightning_best(file: Path) -> str:
    """Return the name of a run's best checkpoint by what Lightning's callback wrote into one; empty if none did."""
    try:
        state = read_state(file)
    except VitHubError:
        return ""
    callbacks = state.get("callbacks") if isinstance(state, dict) else None
    for content in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(content, dict) and content.get("monitor") and isinstance(content.get("best_model_path"), str):
            return re.split(r"[/\\]", content["best_model_path"])[-1]
    return ""


def _best(folder: Path, last: Path, seen: dict[Path, str]) -> Path | None:
    for path in (folder / "trainer_state.json", last / "trainer_state.json"):
        try:
            state = parse_json(read_document(path, seen) or b"", finite=False)
        except ValueError:
            continue
        named = state.get("best_model_checkpoint") if isinstance(state, dict) else None
        if isinstance(named, str):
            # The path of the machine that trained the model, also of another system.
            found = folder / re.split(r"[/\\]", named.rstrip("/\\"))[-1]
            if found.is_dir() and _NUMBERED.fullmatch(found.name):
                return found
    return None
