"""Whether the files that are on this machine are still what they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_hub.errors import IntegrityError, ModelNotFoundError
from vit_hub.hub.cache.hashes import check, hash_anew
from vit_hub.hub.cache.inventory import HUGGING_FACE, Item, find, items, known_source
from vit_hub.hub.cache.paths import bundled_file
from vit_hub.hub.cache.records import Delivery, Pin
from vit_hub.hub.names.address import address, source_of
from vit_hub.hub.names.locate import locate
from vit_hub.progress import byte_bar
from vit_hub.registry import WeightSource, get_entry
from vit_hub.weights_manifest import outlines

__all__ = ["Verdict", "verify_all"]

OK, CHANGED, MISSING, UNKNOWN = "ok", "changed", "missing", "not recorded"
_BUNDLED = "bundled"
_Pins = dict[str, WeightSource]  # who says it -> what


@dataclass(frozen=True)
class Verdict:
    """What became of one file.

    Attributes:
        name: the model.
        kind: whose folder the file lies in, as :class:`vit_hub.hub.cache.inventory.Item` has it, or ``bundled``.
        path: the file.
        status: ``ok``, ``changed``, ``missing``, or ``not recorded``: nothing says what it should be.
        size: bytes; None: it is missing.
        sha256: of the file as it is now.
        checked: who says what it should be: ``record``, ``registry``, the lock file.
        problem: what is wrong, with both hashes.
        hint: what to do about it.
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
        """Whether something is to be done about it."""
        return self.status in (CHANGED, MISSING)


def verify_all(
    names: Sequence[str] = (), *, locked: Iterable[Delivery] = (), lockfile: str = "", progress: bool = False
) -> list[Verdict]:
    """Hashes files anew and compares them with what is pinned, recorded and locked.

    A file that was verified is not hashed again when it is loaded.

    Args:
        names: of models; none: everything in the cache and in the package.
        locked: what a lock file pins, to compare with it, too.
        lockfile: the lock file's name, for messages.
        progress: show a bar on a terminal.

    Raises:
        ModelNotFoundError: nothing of a model is here.
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
    except ModelNotFoundError:  # what is in the cache may have a name that nobody else knows
        return find(name)
    bundled = list(_bundled([entry.id] if entry and entry.id in outlines() else []))
    try:
        return [*find(name), *bundled]
    except ModelNotFoundError:
        if not bundled:
            raise
        return bundled


def _bundled(ids: Iterable[str]) -> Iterator[Item]:
    """The models that are in the package."""
    for model_id in ids:
        if 'kind = "bundled"' in outlines()[model_id].text:
            for source in get_entry(model_id).sources:
                path = bundled_file(source.file or "")
                pin = Pin(source.sha256 or "", source.size or 0)
                yield Item(model_id, _BUNDLED, path, path.parent, Delivery(address(source), {path.name: pin}))


def _expected(item: Item, locked: Mapping[str, Delivery], lockfile: str) -> Iterator[tuple[Path, _Pins]]:
    """The files of an item, each with what it should be."""
    if item.delivery is None:
        yield item.path, {}
        return
    said = {"registry" if item.kind == _BUNDLED else "record": item.delivery}
    documented: _Pins = {}
    if item.kind != "canonical":
        exact = source_of(item.delivery.address)
        known = known_source(exact)
        if known and known[1].revision in (None, exact.revision):
            documented = {"registry": known[1]}
        if item.delivery.address in locked:
            said[lockfile] = locked[item.delivery.address]
    for name in item.delivery.files:
        pins = {
            who: WeightSource(kind="", format="", sha256=delivery.files[name].sha256, size=delivery.files[name].size)
            for who, delivery in said.items()
            if name in delivery.files
        }
        yield item.folder / name, {**pins, **(documented if name == item.delivery.main else {})}


def _verdict(file: Path, item: Item, pins: _Pins, advance: Callable[[int], None]) -> Verdict:
    try:
        sha256, size = hash_anew(file, advance), file.stat().st_size
    except OSError as error:
        problem = f"{file}: {error.strerror or error}"
        return Verdict(
            item.name, item.kind, file, MISSING, checked=tuple(pins), problem=problem, hint=_remedy(item, file)
        )
    status, problem = OK if pins else UNKNOWN, ""
    for who, source in pins.items():
        try:
            check(source, str(file), size=size, sha256=sha256, hint="")
        except IntegrityError as error:
            status, problem = CHANGED, f"{error.message} ({who})"
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
