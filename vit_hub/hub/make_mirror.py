"""Writing a mirror: :mod:`vit_hub.hub.mirror` describes its format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vit_hub.converters.containers import atomic_path
from vit_hub.converters.containers.hashing import file_sha256
from vit_hub.converters.containers.together import files_together, finish_interrupted
from vit_hub.errors import ConfigError, SignatureError
from vit_hub.hub.cache.paths import file_lock
from vit_hub.hub.cache.records import Delivery, Pin, Record
from vit_hub.hub.fetch import record_of
from vit_hub.hub.mirror import FILES, INDEX, VERSION, copy_checked, has_file, parse_index
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.hub.names.locate import refuse_local
from vit_hub.hub.resolve import Resolved, resolve
from vit_hub.hub.signing import Trust, file_signature, open_signature, public_key, signature_of
from vit_hub.registry import WeightSource
from vit_hub.untrusted import usable_path

__all__ = ["Mirrored", "add_to_mirror"]


@dataclass(frozen=True)
class Mirrored:
    """The files of one model in a mirror.

    Attributes:
        name: the model's id in the registry, else the given name.
        address: the origin of the files, with the commit.
        license: in the registry; None: it does not have the model.
        restricted: the licence is not an open one.
        files: their number.
        size: their bytes.
        added: new bytes.
    """

    name: str
    address: str
    license: str | None
    restricted: bool
    files: int
    size: int
    added: int


def add_to_mirror(
    folder: Path,
    names: Sequence[str],
    *,
    key: str | Path | None = None,
    offline: bool = False,
    progress: bool = False,
) -> Iterator[Mirrored]:
    """Fetch models and add their files to a mirror, one model after the other.

    Args:
        folder: the mirror's; made if missing.
        names: as for :func:`vit_hub.download`.
        key: private key in PEM that signs each model's files, and the index; an index that is there already must be
            signed with it, as what it lists is signed again.
        offline: open no connection: take cached files.
        progress: show progress bars on a terminal.

    Raises:
        ConfigError: a name is a local file; the mirror is signed, and there is no key; or the key cannot sign.
        SignatureError: somebody else signed or changed the mirror's index.
        VitHubError: as :func:`vit_hub.hub.resolve.resolve`; or the folder cannot be written, or has a damaged index.
    """
    usable_path(folder)
    for name in names:
        refuse_local(name)
    signer = public_key(key) if key is not None else None
    _check_index(folder, signer)
    for name in names:
        resolved = resolve(name, offline=offline, progress=progress)
        assert resolved.weight_source is not None
        record = record_of(resolved.weight_source, resolved.path)
        added = sum(_add_file(folder, record, file, progress) for file in record.delivery.files)
        yield _add_to_index(folder, name, resolved, resolved.weight_source, record.delivery, added, key, signer)


def _check_index(folder: Path, signer: Trust | None) -> None:
    """Refuse an index that is signed by others, or would be as it is, or no longer would be."""
    file = folder / INDEX
    finish_interrupted(file)
    signature = file_signature(file)
    if signer is None:
        if signature.exists():
            raise ConfigError(f"{folder}: this mirror is signed", hint="give its key: key= (--sign private.pem)")
    elif file.exists():
        if not signature.exists():
            raise SignatureError(
                f"{folder}: this mirror is not signed, and its index would be signed as it is",
                hint=f"sign it if you know what it lists: `vit-hub sign {file} --key PRIVATE`; or make a new mirror",
            )
        open_signature(signature, signer).check(file, file_sha256(file))


def _add_file(folder: Path, record: Record, name: str, progress: bool) -> int:
    """Copy one file, unless the mirror has it undamaged; return the number of new bytes."""
    pin = record.delivery.files[name]
    path = folder / FILES / pin.sha256
    if has_file(path, pin):
        return 0
    copy_checked(record.folder / name, path, pin, hint="fetch it again", progress=progress)
    return pin.size


def _add_to_index(
    folder: Path,
    name: str,
    resolved: Resolved,
    source: WeightSource,
    delivery: Delivery,
    added: int,
    key: str | Path | None,
    signer: Trust | None,
) -> Mirrored:
    entry, file = resolved.entry, folder / INDEX
    found = Mirrored(
        entry.id if entry else without_credentials(name),
        delivery.address,
        entry.license if entry else None,
        entry.restricted if entry else False,
        len(delivery.files),
        sum(pin.size for pin in delivery.files.values()),
        added,
    )
    with file_lock(file, place="the mirror", hint="give a folder that you may write to"):
        index: dict[str, Any] = {"version": VERSION, "addresses": {}, "models": {}}
        _check_index(folder, signer)  # again: another process may have written it meanwhile
        if file.exists():
            index = parse_index(file.read_bytes(), str(folder))
        if key is not None and signer is not None:
            known = index["addresses"].get(delivery.address)
            delivery = _signed(folder, found.name, source, delivery, known, key, signer)
        index["addresses"] |= dict.fromkeys(_addresses(source, delivery), delivery.to_data())
        index["models"][found.name] = {"address": found.address, "license": found.license}
        text = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
        if file.exists() and file.read_bytes() == text:
            return found
        with files_together(folder, INDEX) as within:
            (within / INDEX).write_bytes(text)
            if key is not None:
                signature = signature_of({".": within / INDEX}, INDEX, key=key)
                file_signature(within / INDEX).write_bytes(signature)
    return found


def _signed(
    folder: Path,
    title: str,
    source: WeightSource,
    delivery: Delivery,
    known: Any,
    key: str | Path,
    signer: Trust,
) -> Delivery:
    """Return a delivery with the signature of its files, which is among the files of the mirror.

    Args:
        folder: the mirror's.
        title: of the model.
        source: of the delivery: the file of an address is signed alone, files of a repository together.
        delivery: its files are in the mirror.
        known: the same of the index so far, from when it was signed before; None: there is none.
        key: private key in PEM.
        signer: the public half.
    """
    if known is not None:
        before = Delivery.from_data(known)
        if before.signature and replace(before, signature=None) == delivery:
            place = folder / FILES / before.signature.sha256
            if has_file(place, before.signature):
                open_signature(place, signer)
                return before
    files = {name: folder / FILES / pin.sha256 for name, pin in delivery.files.items()}
    content = signature_of({".": files[delivery.main]} if source.kind == "https" else files, title, key=key)
    pin = Pin(hashlib.sha256(content).hexdigest(), len(content))
    with atomic_path(folder / FILES / pin.sha256) as temporary:
        temporary.write_bytes(content)
    return replace(delivery, signature=pin)


def _addresses(source: WeightSource, delivery: Delivery) -> list[str]:
    """Return the addresses to list it under: the requested one, with its commit, and with its commit and file."""
    exact = source_of(delivery.address)
    return [address(source), address(replace(source, revision=exact.revision)), delivery.address]
