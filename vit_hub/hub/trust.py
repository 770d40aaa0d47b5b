"""The gate that every checkpoint passes: where ``VIT_HUB_TRUST`` is set, no file is read that no trusted key signed.

The package's own files are exempt: whoever can change them can change this gate. A hash in the registry is no
signature: it says that a file is the published one, not that the keys' owner wants it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.hub.cache.hashes import sha256_of
from vit_hub.hub.cache.paths import is_bundled
from vit_hub.hub.signing import Signature, Signed, Trust, find_signature, open_signature, required_trust, unsigned

__all__ = ["admit", "contents_of", "require_signed", "signatures_of"]

Contents = Mapping[Path, Callable[[], str] | None]
"""Files that were read, each with a function that returns the sha256 of what was read; None: it is not there."""


def contents_of(source: RawCheckpoint) -> Contents:
    """Return the files of a checkpoint: weights through what is open, documents as they were read, or missed."""
    weights = {file: partial(sha256_of, file, source.held.get(file)) for file in (*source.files, *source.held)}
    documents = {file: partial(str, sha256) if sha256 else None for file, sha256 in source.documents.items()}
    return {**weights, **documents}


def admit(source: RawCheckpoint) -> None:
    """Apply :func:`require_signed` to what was read of a checkpoint."""
    require_signed(contents_of(source))


def require_signed(contents: Contents) -> None:
    """Refuse files without a signature by a key of ``VIT_HUB_TRUST``, if that is set.

    Raises:
        SignatureError: a file has none, is not the signed one, or was signed and is missing.
        ConfigError: the keys cannot be read, or ``model_signing`` is not installed.
    """
    trust = required_trust()
    if trust is not None:
        signatures_of({file: found for file, found in contents.items() if not is_bundled(file)}, trust)


def signatures_of(contents: Contents, trust: Trust) -> tuple[Signature, ...]:
    """Return the signatures by trusted keys that files have, each with those of the files that it covers.

    Raises:
        SignatureError: a file has none, is not the signed one, or is missing where the others' signature lists it.
    """
    places, present = {}, {file: found for file, found in contents.items() if found is not None}
    for file in present:
        place = find_signature(file)
        if place is None:
            raise unsigned(file, trust)
        places[file] = place
    opened: dict[Path, Signed] = {place: open_signature(place, trust) for place in dict.fromkeys(places.values())}
    for file in contents.keys() - present.keys():
        for signed in opened.values():
            signed.check_missing(file)
    covered: dict[Path, list[str]] = {}
    for file, place in places.items():  # hashed only now: large files take long
        covered.setdefault(place, []).append(opened[place].check(file, present[file]()))
    return tuple(replace(opened[place].signature, covered=tuple(sorted(names))) for place, names in covered.items())
