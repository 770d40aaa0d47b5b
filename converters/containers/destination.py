"""Where a checkpoint is written: a file whose suffix is known, or a folder; and what must not be overwritten."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vit_hub.converters.containers import CONTAINER_SUFFIXES
from vit_hub.converters.containers.together import finish_interrupted
from vit_hub.errors import UnsupportedByFormatError, VitHubError
from vit_hub.untrusted import usable_path

__all__ = ["canonical_file", "check_destination", "container_of", "refuse_existing"]

# What looks like the suffix of a file, and not like the end of a folder's name, such as model.v2-base or model-1.5.
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{,11}")
_PROGRAMS = (".onnx", ".pt2", ".xml")
_FORCE = "--force (overwrite=True)"


def container_of(destination: str | Path) -> str | None:
    """Return the container that a destination's suffix stands for; None: it is a folder.

    A folder is what exists as one, ends with ``/``, or has no suffix.

    Raises:
        UnsupportedByFormatError: it has a suffix that stands for no container, or is empty.
        VitHubError: it can be no path.
    """
    text = os.fspath(destination)
    if not text:
        raise UnsupportedByFormatError(
            "no destination is given", hint="name a file or a folder; . is the working folder"
        )
    path = usable_path(text)
    if path.suffix in CONTAINER_SUFFIXES:
        return CONTAINER_SUFFIXES[path.suffix]
    if text.endswith(("/", os.sep)) or path.is_dir() or not _SUFFIX.fullmatch(path.suffix):
        return None
    near = difflib.get_close_matches(path.suffix.lower(), CONTAINER_SUFFIXES, n=1)
    meant = f"did you mean {near[0]}? Files are" if near else "files are"
    programs = f"`vit-hub export` writes {', '.join(_PROGRAMS)}; " if path.suffix.lower() in _PROGRAMS else ""
    raise UnsupportedByFormatError(
        f"{path}: no files with the suffix {path.suffix} are written",
        hint=f"{programs}{meant} {', '.join(CONTAINER_SUFFIXES)}; a folder's name ends with /",
    )


def canonical_file(destination: str | Path) -> Path:
    """Return the canonical file that a destination stands for: itself, or one in that folder.

    Raises:
        UnsupportedByFormatError: it has another suffix than ``.safetensors``.
    """
    container = container_of(destination)
    if container not in (None, "safetensors"):
        raise UnsupportedByFormatError(
            f"{destination}: a canonical file is a .safetensors file",
            hint='use that suffix, or name another format: to="vit_jax", on the command line --to vit_jax',
        )
    return Path(destination) if container else Path(destination) / "model.safetensors"


def check_destination(destination: str | Path, *, overwrite: bool) -> None:
    """Refuse a destination before its source is read or fetched, as far as its name alone tells.

    Raises:
        UnsupportedByFormatError: it has a suffix that stands for no container.
        VitHubError: it is a file that exists and must not be overwritten.
    """
    if container_of(destination):
        refuse_existing([Path(destination)], overwrite=overwrite)


def refuse_existing(files: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to overwrite files; those that a killed process had begun to put in place are put there first.

    Args:
        files: to be written, the one with the weights first.
        overwrite: replace them; but config files only beside weights, since others are not of a model.

    Raises:
        VitHubError: one of them exists and must not be overwritten.
    """
    for place in (files[0], files[0].parent):
        finish_interrupted(place)
    there = [file for file in files if file.exists()]
    if not there or (overwrite and files[0] in there):
        return
    more = f", and {len(there) - 1} more of its files" if len(there) > 1 else ""
    if not overwrite:
        raise VitHubError(f"{there[0]} exists{more}", hint=f"{_FORCE} replaces it, or choose another name")
    raise VitHubError(
        f"{there[0]} exists{more}, and no {files[0].name} beside it: it may be of something else",
        hint="choose another folder",
    )
