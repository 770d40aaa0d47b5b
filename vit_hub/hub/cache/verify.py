"""Re-check the hashes of cached and bundled files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_hub.errors import IntegrityError, ModelNotFoundError
from vit_hub.hub.cache.hashes import check, rehash
from vit_hub.hub.cache.inventory import HUGGING_FACE, PROGRAM, Item, find, items
from vit_hub.hub.cache.paths import bundled_file
from vit_hub.hub.cache.records import Delivery, Pin
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.locate import known_source, locate
from vit_hub.progress import byte_bar
from vit_hub.registry import WeightSource, get_entry
from vit_hub.weights_manifest import outlines

__all__ = ["Verdict", "verify_all"]

OK, CHANGED, MISSING, UNKNOWN = "ok", "changed", "missing", "not recorded"
_BUNDLED = "bundled"
_Pins = dict[str, WeightSource]  # authority, such as "registry" -> what it pins


@dataclass(frozen=True)
class Verdict:
    """The result of checking one file.

    Attributes:
        name: the model.
        kind: of :class:`vit_hub.hub.cache.inventory.Item`, or ``bundled``.
        path: the file.
        status: ``ok``, ``changed``, ``missing``, or ``not recorded``: nothing pins it.
        size: bytes; None: it is missing.
        sha256: of the file as it is now.
        checked: the authorities that it was compared with: ``record``, ``registry``, the lock file.
        problem: the difference, with both hashes.
        hint: the remedy.
    """

    name: str
    kind: str
    path: Path
    status: str
    size: int | None = None
    sha256: str | None = None
    checked: tuple[str, ...] = ()
    problem: str = ""
    hint: str = ""

    @property
    def is_wrong(self) -> bool:
        """Return whether the file is changed or missing."""
        return self.status in (CHANGED, MISSING)


def verify_all(
    names: Sequence[str] = (), *, locked: Iterable[Delivery] = (), lockfile: str = "", progress: bool = False
) -> list[Verdict]:
    """Re-check hashes of cached files against the registry, the records and a lock file.

    A verified file is not hashed again when it is loaded.

    Args:
        names: of models; empty: everything in the cache and in the package.
        locked: the deliveries that a lock file pins.
        lockfile: the lock file's name, for messages.
        progress: show a bar on a terminal.

    Raises:
        ModelNotFoundError: there are no files of a model.
    """
    pinned = {delivery.address: delivery for delivery in locked}
    chosen = [item for name in names for item in _named(name)] if names else [*items(), *_bundled(outlines())]
    # Models may share a file, such as the config of one commit.
    tasks: dict[Path, tuple[Item, _Pins]] = {}
    for item in chosen:
        for file, pins in _expected(item, pinned, lockfile):
            tasks.setdefault(file, (item, {}))[1].update(pins)
    total = sum(file.stat().st_size for file in tasks if file.is_file())
    with byte_bar("verifying", total, show=progress) as advance:
        return [_verdict(file, item, pins, advance) for file, (item, pins) in tasks.items()]


def _named(name: str) -> list[Item]:
    try:
        entry, _ = locate(name)
    except ModelNotFoundError:  # the cache may have a model that the registry does not know
        return find(name)
    bundled = list(_bundled([entry.id] if entry and entry.id in outlines() else []))
    try:
        return [*find(name), *bundled]
    except ModelNotFoundError:
        if not bundled:
            raise
        return bundled


def _bundled(ids: Iterable[str]) -> Iterator[Item]:
    """Yield the models that the package ships."""
    for model_id in ids:
        if 'kind = "bundled"' in outlines()[model_id].text:
            for source in get_entry(model_id).sources:
                path = bundled_file(source.file or "")
                pin = Pin(source.sha256 or "", source.size or 0)
                yield Item(model_id, _BUNDLED, path, path.parent, Delivery(address(source), {path.name: pin}))


def _expected(item: Item, locked: Mapping[str, Delivery], lockfile: str) -> Iterator[tuple[Path, _Pins]]:
    """Yield the files of an item, each with what is pinned of it."""
    if item.kind == PROGRAM:  # checked whenever it is opened, and made again
        return
    if item.delivery is None:
        yield item.path, {}
        return
    pinned = {"registry" if item.kind == _BUNDLED else "record": item.delivery}
    documented: _Pins = {}
    if item.kind != "canonical":
        exact = source_of(item.delivery.address)
        known = known_source(exact)
        if known and known[1].revision in (None, exact.revision):
            documented = {"registry": known[1]}
        if item.delivery.address in locked:
            pinned[lockfile] = locked[item.delivery.address]
    for name in item.delivery.files:
        pins = {
            authority: WeightSource(kind="", format="", sha256=pin.sha256, size=pin.size)
            for authority, delivery in pinned.items()
            if (pin := delivery.files.get(name))
        }
        yield item.folder / name, {**pins, **(documented if name == item.delivery.main else {})}


def _verdict(file: Path, item: Item, pins: _Pins, advance: Callable[[int], None]) -> Verdict:
    try:
        sha256, size = rehash(file, advance), file.stat().st_size
    except OSError as error:
        problem = f"{file}: {error.strerror or error}"
        return Verdict(
            item.name, item.kind, file, MISSING, checked=tuple(pins), problem=problem, hint=_remedy(item, file)
        )
    status, problem = OK if pins else UNKNOWN, ""
    for authority, source in pins.items():
        try:
            check(source, str(file), size=size, sha256=sha256, hint="")
        except IntegrityError as error:
            status, problem = CHANGED, f"{error.message} ({authority})"
            break
    hint = _remedy(item, file) if status == CHANGED else ""
    return Verdict(item.name, item.kind, file, status, size, sha256, tuple(pins), problem, hint)


def _remedy(item: Item, file: Path) -> str:
    if item.kind == _BUNDLED:
        return "the installation is damaged: install vit-hub again"
    if not file.is_file():
        return f"`vit-hub download {item.name}` fetches it again; `vit-hub cache rm {item.name}` forgets it"
    if item.kind == HUGGING_FACE:
        return f"delete {file.resolve()} from Hugging Face's cache, then `vit-hub download {item.name}`"
    return f"`vit-hub cache rm {item.name}`, then `vit-hub download {item.name}`"
