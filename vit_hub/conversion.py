"""The one-call surface: open and convert checkpoints by any name that :func:`vit_hub.load` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from vit_hub.converters.adapters import find_adapter
from vit_hub.converters.containers.destination import check_destination
from vit_hub.converters.read import Checkpoint
from vit_hub.converters.resize import resized_checkpoint
from vit_hub.converters.write import Report, convert_checkpoint
from vit_hub.errors import ConfigError
from vit_hub.hub.lockfile import resolve_locked
from vit_hub.hub.names.locate import local_path
from vit_hub.hub.resolve import open_resolved, resolve

__all__ = ["Opening", "convert", "open_checkpoint"]


class Opening(TypedDict, total=False):
    """Arguments of :func:`open_checkpoint` that decide what is read, as JSON has them."""

    format: str
    overrides: dict[str, Any]
    prefix: str
    base: str
    head: str
    dequantize: bool
    revision: str


def open_checkpoint(
    source: str | Path | Checkpoint,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    base: str | Path | Checkpoint | None = None,
    head: str | Path | None = None,
    dequantize: bool = False,
    revision: str | None = None,
    locked: bool | str | Path = False,
    offline: bool = False,
    progress: bool = False,
) -> Checkpoint:
    """Open a checkpoint of any format, without reading its tensors.

    Args:
        source: registry name, Hugging Face repository, URL, or local file or folder; or an opened checkpoint, which is
            returned.
        format: insist on a format instead of recognising it.
        overrides: config fields that the file does not determine.
        prefix: what the names of the model to read begin with, such as ``student``, where a file holds several.
        base: of an adapter of peft: the model to merge it into, instead of the one that it names.
        head: file of a linear head to join with the model, such as ``dinov2_vits14_linear_head.pth``.
        dequantize: compute floating-point weights of quantized ones: bitsandbytes' 8 and 4 bits, 8-bit floats.
        revision: branch, tag or commit of the Hugging Face repository, as for :func:`vit_hub.load`.
        locked: take exactly the files of a lock file, as for :func:`vit_hub.load`.
        offline: open no connection.
        progress: show progress bars on a terminal.

    Returns:
        ``.format``, ``.config``, ``.tensors`` (canonical names, lazy), ``.provenance``, ``.dropped``, ``.inferred``.

    Raises:
        VitHubError: as for :func:`vit_hub.load`.
    """
    if isinstance(source, Checkpoint):
        given = {
            "format": format,
            "overrides": overrides,
            "prefix": prefix,
            "base": base,
            "head": head,
            "dequantize": dequantize,
            "revision": revision,
            "locked": locked,
        }
        late = [name for name, value in given.items() if value]
        if late:
            raise ConfigError(
                f"{source.path}: {late[0]}= is for opening a checkpoint, and this one is open",
                hint=f"open it with vit_hub.open_checkpoint(..., {late[0]}=...)",
            )
        return source
    if locked is False:
        resolved = resolve(source, revision=revision, offline=offline, progress=progress)
    else:
        options: dict[str, Any] = {"offline": offline, "progress": progress}
        resolved = resolve_locked(str(source), locked, revision=revision, **options)
        if head is not None and local_path(head) is None:
            head = resolve_locked(str(head), locked, **options).path
        adapter = find_adapter(resolved.path)
        base = base or (adapter.base if adapter else None)
        if base and not isinstance(base, Checkpoint) and local_path(base) is None:
            base = open_resolved(resolve_locked(str(base), locked, **options), dequantize=dequantize, offline=offline)
    return open_resolved(
        resolved,
        format=format,
        overrides=overrides,
        prefix=prefix,
        dequantize=dequantize,
        base=base,
        head=head,
        offline=offline,
        progress=progress,
    )


def convert(
    source: str | Path | Checkpoint,
    destination: str | Path,
    *,
    to: str = "canonical",
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    base: str | Path | Checkpoint | None = None,
    head: str | Path | None = None,
    dequantize: bool = False,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    resize: str = "source",
    dtype: str | None = None,
    lossy: bool = False,
    keep_rest: bool = False,
    strict_metadata: bool = False,
    overwrite: bool = True,
    revision: str | None = None,
    locked: bool | str | Path = False,
    offline: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Convert a checkpoint; every tensor of the source is accounted for in the report.

    Args:
        source: registry name, Hugging Face repository, URL, or local file or folder; or an opened checkpoint.
        destination: a file (its suffix selects the container), or a folder (no suffix, or ``/`` at its end) for the
            format's customary files.
        to: the target format: ``canonical``, ``timm``, ``hf``, ``vit_jax`` ..., or a value of
            ``open_checkpoint(...).format``.
        format: insist on a source format instead of recognising it.
        overrides: config fields that the source does not determine.
        prefix: what the names of the model to read begin with, where the source holds several.
        base: of an adapter of peft: the model to merge it into, instead of the one that it names.
        head: file of a linear head to join with the model, such as ``dinov2_vits14_linear_head.pth``.
        dequantize: compute floating-point weights of quantized ones: bitsandbytes' 8 and 4 bits, 8-bit floats.
        image_size: write the model for another (height, width) in pixels: position tables are resized.
        patch_size: another (height, width) of a patch, as for :func:`vit_hub.load`.
        resize: ``source``: resize position tables as the source's own project does; or the name of a method.
        dtype: change the dtype (``bfloat16``, ``float16``, ``float32``); None keeps every tensor's own.
        lossy: write even if the target cannot express the model; the warnings say what changes and by how much.
        keep_rest: keep tensors of the source that are left out in ``*.rest.safetensors`` beside the result.
        strict_metadata: refuse, before anything is written, to lose class names, preprocessing or a text tower, which
            is else a warning.
        overwrite: replace files that exist; config files only beside weights of the same folder, and all of theirs.
        revision: branch, tag or commit of the Hugging Face repository, as for :func:`vit_hub.load`.
        locked: take exactly the files of a lock file, as for :func:`vit_hub.load`.
        offline: open no connection.
        progress: called with the bytes written since the last call.

    Raises:
        ConfigError: the image is not a whole number of patches, or there is no such method.
        UnsupportedByFormatError: the target cannot express the model; names the field and the formats that can. Or
            ``strict_metadata`` is given and something would be lost. Or the destination has a suffix that stands for no
            container.
        VitHubError: the source cannot be read or the destination cannot be written.
    """
    check_destination(destination, overwrite=overwrite)
    ckpt = open_checkpoint(
        source,
        format=format,
        overrides=overrides,
        prefix=prefix,
        base=base,
        head=head,
        dequantize=dequantize,
        revision=revision,
        locked=locked,
        offline=offline,
        progress=progress is not None,
    )
    ckpt = resized_checkpoint(ckpt, image_size, patch_size, resize=resize)
    return convert_checkpoint(
        ckpt,
        destination,
        to=to,
        dtype=dtype,
        lossy=lossy,
        keep_rest=keep_rest,
        strict_metadata=strict_metadata,
        overwrite=overwrite,
        progress=progress,
    )
