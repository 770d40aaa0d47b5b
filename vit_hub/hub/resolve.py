"""From a name, path or address to an opened checkpoint on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_hub.errors import CheckpointError, ConfigError, DownloadError, VitHubError
from vit_hub.hub.fetch import fetch
from vit_hub.hub.names.address import address
from vit_hub.hub.names.hugging_face import is_one_file
from vit_hub.hub.names.locate import local_path, locate
from vit_hub.hub.signing import Signature, Trust
from vit_hub.hub.trust import admit, contents_of, signatures_of
from vit_hub.registry import Entry, WeightSource, preferring
from vit_hub.version import __version__

if TYPE_CHECKING:
    from vit_hub.converters.adapters import Adapter
    from vit_hub.converters.read import Checkpoint

__all__ = ["Resolved", "fetch_any", "open_resolved", "resolve", "verify_named"]

_HINTS = ("num_heads", "image_size", "pool")
# Fields in which a file that differs from the registry is another model.
_FIXED = ("embed_dim", "depth", "mlp_dim", "patch_size", "stem", "stem_stages")


@dataclass(frozen=True)
class Resolved:
    """A checkpoint on this machine, with its entry in the registry.

    Attributes:
        path: the file or folder to open.
        entry: the registry's entry.
        weight_source: where it was fetched from; None for a local path.
        hints: config fields that a file may not tell, except those that follow from its format.
    """

    path: Path
    entry: Entry | None = None
    weight_source: WeightSource | None = None
    hints: Mapping[str, Any] = field(default_factory=dict)


def resolve(
    source: str | Path, *, revision: str | None = None, offline: bool = False, progress: bool = False
) -> Resolved:
    """Resolve a name, address or path, and fetch the checkpoint if needed.

    Args:
        source: an existing path, or a name or address as for :func:`locate`.
        revision: as for :func:`locate`.
        offline: open no connection.
        progress: show progress bars on a terminal.

    Raises:
        CheckpointError: it looks like a path, and there is no such file.
        ConfigError: there can be no such revision of it.
        ModelNotFoundError: nothing has this name; the hint names similar models.
        DownloadError: no source delivers; the message lists every failure.
        IntegrityError: a fetched file is not the pinned one.
    """
    path = local_path(source)
    if path is not None:
        if revision is not None:
            raise ConfigError(
                f"{source}: a local file or folder has no revisions", hint="leave out revision= (--revision)"
            )
        return Resolved(path)
    entry, candidates = locate(str(source), revision=revision)
    return fetch_any(entry, candidates, offline=offline, progress=progress)


def fetch_any(
    entry: Entry | None, candidates: Sequence[WeightSource], *, offline: bool = False, progress: bool = False
) -> Resolved:
    """Fetch from the first source that delivers. If it is not the first in order, a warning says which and why.

    Raises:
        DownloadError: none does.
        IntegrityError: one delivers another file than the pinned one; no further source is tried then.
    """
    failures = []
    for source in candidates:
        try:
            path = fetch(source, offline=offline, progress=progress)
        except DownloadError as error:
            failures.append(error)
        else:
            if failures:
                reasons = "; ".join(error.message for error in failures)
                what = f"{entry.id}: " if entry else ""
                warnings.warn(f"{what}taken from {address(source)}, because {reasons}", stacklevel=2)
            entry = preferring(entry, source) if entry else None
            return Resolved(path, entry, source, _hints(entry, source) if entry else {})
    if len(failures) == 1:
        raise failures[0]
    name = entry.id if entry else "it"
    # What several sources have in common is said once.
    distinct = dict.fromkeys(error.reason or error.message for error in failures)
    raise DownloadError(
        f"none of the {len(failures)} sources of {name} delivers: {'; '.join(distinct)}",
        hint="; ".join(dict.fromkeys(error.hint for error in failures if error.hint)),
    )


def _hints(entry: Entry, source: WeightSource) -> dict[str, Any]:
    fields = {**{name: getattr(entry.config, name) for name in _HINTS}, **source.config}
    return {name: fields[name] for name in _HINTS}


def open_resolved(
    resolved: Resolved,
    *,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    dequantize: bool = False,
    base: str | Path | Checkpoint | None = None,
    head: str | Path | None = None,
    offline: bool = False,
    progress: bool = False,
) -> Checkpoint:
    """Open a checkpoint with the facts that the registry has, and fill in its passport.

    An adapter of peft is merged into its base model, and a linear head of another file joined with it. Where
    ``VIT_HUB_TRUST`` is set, all files that were read must be signed.

    Args:
        resolved: result of :func:`resolve`.
        format: require this format instead of recognizing it.
        overrides: config fields that the file does not tell, or tells wrongly.
        prefix: what the names of the model to read begin with, where a file holds several.
        dequantize: compute floating-point weights of quantized ones.
        base: of an adapter: the model to merge it into, instead of the one that it names.
        head: name, address or path of the file of a linear head.
        offline: open no connection to fetch these.
        progress: show progress bars on a terminal.

    Raises:
        CheckpointError: it is another model than the registry's, or as for
            :func:`vit_hub.converters.open_checkpoint`.
        ConfigError: likewise.
        SignatureError: a file is not signed by one of ``VIT_HUB_TRUST``.
    """
    from vit_hub.converters.linear_head import HEAD_FIELDS, with_head

    def opened(fields: Mapping[str, Any] | None) -> Checkpoint:
        return _open(
            resolved,
            format=format,
            overrides=fields,
            prefix=prefix,
            dequantize=dequantize,
            base=base,
            offline=offline,
            progress=progress,
        )

    if head is None:
        ckpt = opened(overrides)
    else:
        backbone = opened({name: value for name, value in (overrides or {}).items() if name not in HEAD_FIELDS})
        ckpt = with_head(backbone, resolve(head, offline=offline, progress=progress).path, overrides)
    admit(ckpt.source)
    return dataclasses.replace(ckpt, source=dataclasses.replace(ckpt.source, admit=admit))


def verify_named(name: str, trust: Trust) -> tuple[Signature, ...]:
    """Verify the signatures of a model on this machine: of all files that loading it reads.

    Args:
        name: as for :func:`resolve`.
        trust: whose signatures count.

    Raises:
        SignatureError: a file is not signed, or not the signed one.
        VitHubError: as :func:`resolve`, offline, and :func:`open_resolved`.
    """
    return signatures_of(contents_of(open_resolved(resolve(name, offline=True), offline=True).source), trust)


def _open(
    resolved: Resolved,
    *,
    format: str | None,
    overrides: Mapping[str, Any] | None,
    prefix: str | None,
    dequantize: bool,
    base: str | Path | Checkpoint | None,
    offline: bool,
    progress: bool,
) -> Checkpoint:
    """Open a checkpoint as it is, or an adapter merged into its base model; see :func:`open_resolved`."""
    from vit_hub.converters.adapters import find_adapter, merged
    from vit_hub.converters.collecting import no_collection
    from vit_hub.converters.containers import open_raw
    from vit_hub.converters.read import read_raw
    from vit_hub.converters.recognize import encoder_names
    from vit_hub.preprocessing.spec import Preprocessing

    options: dict[str, Any] = {"format": format, "overrides": overrides, "prefix": prefix, "dequantize": dequantize}
    adapter = find_adapter(resolved.path)
    if adapter is not None:
        found = _base_of(adapter, base, {**options, "offline": offline, "progress": progress})
        return merged(found, adapter, overrides)
    if base is not None:
        raise ConfigError(
            f"{resolved.path}: base= (--base) is for an adapter of peft, and this is none", hint="leave it out"
        )
    source = resolved.weight_source
    with_sidecars = source is not None and not is_one_file(source, resolved.path)
    with no_collection():
        raw = open_raw(resolved.path, with_sidecars=with_sidecars, select=encoder_names)
        ckpt = read_raw(raw, hints=resolved.hints, **options)
    passport = dataclasses.replace(ckpt.passport, converter=ckpt.passport.converter or __version__)
    entry = resolved.entry
    if entry is not None:
        _refuse_another_model(ckpt, entry, resolved.weight_source, overrides or {})
        passport = dataclasses.replace(
            passport,
            weights_id=entry.id,
            license=entry.license,
            preprocess=Preprocessing.from_dict(entry.preprocess).to_dict() if entry.preprocess else passport.preprocess,
            # A source may have another head than the entry describes, or none.
            labels=(entry.labels if ckpt.config.num_classes == entry.config.num_classes else None) or passport.labels,
        )
    return dataclasses.replace(ckpt, passport=passport)


def _base_of(adapter: Adapter, base: str | Path | Checkpoint | None, options: Mapping[str, Any]) -> Checkpoint:
    """Open the base model of an adapter.

    Raises:
        CheckpointError: it is not found, or cannot be read.
    """
    from vit_hub.converters.read import Checkpoint

    if isinstance(base, Checkpoint):
        return base
    source, revision = base, None
    if source is None and adapter.base:
        # A relative path is meant from the adapter's folder.
        folder = adapter.path if adapter.path.is_dir() else adapter.path.parent
        beside = False
        with contextlib.suppress(OSError, ValueError):  # of what can be no path
            beside = (folder / adapter.base).exists()
        source, revision = (folder / adapter.base, None) if beside else (adapter.base, adapter.revision)
    hint = "give its base model: base=..., on the command line --base; or merge it with peft (model.merge_and_unload())"
    if source is None:
        raise CheckpointError(f"{adapter.path}: a LoRA adapter of peft that does not name its base model", hint=hint)
    fetching = {"offline": options["offline"], "progress": options["progress"]}
    try:
        resolved = resolve(source, revision=revision, **fetching)
    except VitHubError as error:
        raise CheckpointError(
            f"{adapter.path}: a LoRA adapter of peft, whose base model {str(source)!r} is not found: {error.message}",
            hint=hint,
        ) from error
    return open_resolved(resolved, **options)


def _refuse_another_model(
    ckpt: Checkpoint, entry: Entry, source: WeightSource | None, overrides: Mapping[str, Any]
) -> None:
    """Refuse a file of another architecture than its entry in the registry.

    Raises:
        CheckpointError: it is not.
    """
    described = entry.config.replace(**(source.config if source else {}))
    for name in _FIXED:
        found, expected = getattr(ckpt.config, name), getattr(described, name)
        if found != expected and name not in overrides:
            raise CheckpointError(
                f"{ckpt.path}: not the model {entry.id}: its {name} is {found}, expected {expected}",
                hint="the source delivered another file than the registry describes: "
                f"{address(source) if source else 'unknown'}",
            )
