"""Pictures of any checkpoint in one call, and where they are written."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_hub.converters.containers.atomic import atomic_path
from vit_hub.converters.containers.together import files_together
from vit_hub.converters.read import Checkpoint
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.hub.names.credentials import without_credentials
from vit_hub.loading import load
from vit_hub.model.vit import VisionTransformer
from vit_hub.pictures.drawing import Picture, needs_matplotlib
from vit_hub.pictures.facts import facts_of
from vit_hub.pictures.kinds import KINDS
from vit_hub.pictures.page import page, stacked
from vit_hub.pictures.subject import Subject, View
from vit_hub.preprocessing.images import ImageLike
from vit_hub.progress import step_bar
from vit_hub.running.models import Runnable, runnable
from vit_hub.running.reading import Reader, content_of
from vit_hub.running.sources import Item, Place, Sources
from vit_hub.untrusted import usable_path

__all__ = ["Shown", "check_destination", "show"]

_MOST_IMAGES = 6
_PAGES, _PICTURE = (".html", ".htm"), ".png"
# Arguments of load that say how to compute, and hold for both models that are compared.
_OF_BOTH = ("dtype", "offline", "overrides")


@dataclass(frozen=True)
class Shown:
    """Pictures of one model.

    Attributes:
        name: what the model is called.
        pictures: in the order of :data:`vit_hub.pictures.KINDS`.
        left_out: kinds that were asked for and do not apply, with the reason.
        facts: about the model, pairs of a name and a text.
    """

    name: str
    pictures: list[Picture]
    left_out: dict[str, str]
    facts: list[tuple[str, str]]

    def write(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> dict[str, Path]:
        """Write the pictures and return the file of each kind.

        Args:
            out: ``*.html``: one page with all pictures and the facts, which fetches nothing; ``*.png``: one image, the
                pictures below each other; else a folder, made if missing, with an image ``KIND.png`` of each.
            overwrite: replace files that are there.

        Raises:
            ConfigError: a file is there, the suffix is another one, or matplotlib is not installed.
            VitHubError: a file cannot be written.
        """
        path = check_destination(out, [picture.kind for picture in self.pictures], overwrite=overwrite)
        suffix = path.suffix.lower()
        kinds = [picture.kind for picture in self.pictures]
        if suffix in _PAGES:
            _write(path, page(self.name, self.facts, self.pictures, self.left_out).encode())
        elif suffix == _PICTURE:
            _write(path, stacked([picture.png() for picture in self.pictures]))
        else:
            with files_together(path, f"{kinds[0]}.png") as within:
                for picture in self.pictures:
                    (within / f"{picture.kind}.png").write_bytes(picture.png())
            return {kind: path / f"{kind}.png" for kind in kinds}
        return dict.fromkeys(kinds, path)


def show(
    source: str | os.PathLike[str] | Checkpoint | VisionTransformer,
    images: ImageLike | Sequence[ImageLike] = (),
    *,
    what: str | Sequence[str] = (),
    against: str | os.PathLike[str] | Checkpoint | VisionTransformer | None = None,
    device: str | torch.device | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    max_patches: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Shown:
    """Make pictures of a model: of its weights, and of what it does with images.

    Args:
        source: as for :func:`vit_hub.load`, or a model.
        images: what :class:`vit_hub.Preprocessing` takes, or several; a path may be a folder, a pattern, a tar shard, a
            parquet file or a web address. The first six are shown.
        what: kinds of pictures, names of :data:`KINDS`; empty: all that apply.
        against: another model, whose blocks are compared with those of the first (kind ``cka``).
        device: where to compute.
        preprocessing: fields that differ from the checkpoint's own preprocessing, such as ``mean``.
        max_patches: let each image keep its aspect ratio, with so many patches at most.
        progress: show progress bars on a terminal.
        options: of :func:`vit_hub.load`; none for a model.

    Raises:
        ConfigError: there is no such kind, or none of those asked for applies; or matplotlib is not installed.
        VitHubError: the model or an image cannot be read.
    """
    kinds = _chosen(what)
    needs_matplotlib()
    given = list(_given(images))
    if not given:  # what is needed for images alone is not asked for
        subject, spec = _without_images(source, device=device, progress=progress, **options), None
    else:
        common: dict[str, Any] = {
            "device": device,
            "preprocessing": preprocessing,
            "max_patches": max_patches,
            "progress": progress,
        }
        run = runnable(source, **common, **options)
        subject, spec = _subject(run, given), run.preprocessing
        if against is not None:
            shared = {name: options[name] for name in _OF_BOTH if name in options}
            other = runnable(against, **common, **({} if isinstance(against, VisionTransformer) else shared))
            if _crop(other) != _crop(run):
                warnings.warn(
                    "the two models crop images differently, so their patches do not show the same; "
                    "--crop-mode and --crop-pct (preprocessing=) set it for both",
                    stacklevel=2,
                )
            subject.other = _subject(other, given)
    missing = {name: KINDS[name].missing(subject) for name in kinds}
    left_out = {name: reason for name, reason in missing.items() if reason}
    wanted = [name for name in kinds if name not in left_out]
    if not wanted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ConfigError(f"{subject.name}: there is no such picture of this model: {reasons}")
    pictures = []
    with step_bar("drawing", len(wanted), show=progress) as advance:
        for name in wanted:
            pictures.append(KINDS[name].picture(subject))
            advance(1)
    return Shown(subject.name, pictures, left_out, facts_of(subject, spec))


def check_destination(out: str | os.PathLike[str], kinds: Iterable[str] = (), *, overwrite: bool = False) -> Path:
    """Return where pictures are written.

    Args:
        out: as for :meth:`Shown.write`.
        kinds: that are to be written.
        overwrite: files may be there.

    Raises:
        ConfigError: a file is there already, or its suffix is none of those that are written.
    """
    path = usable_path(out)
    suffix = path.suffix.lower()
    single = suffix in (*_PAGES, _PICTURE)
    if not single and suffix and not path.is_dir():
        raise ConfigError(
            f"{path}: pictures are not written as {suffix}", hint="end it with .png or .html, or name a folder"
        )
    there = [file for file in ([path] if single else [path / f"{kind}.png" for kind in kinds]) if file.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"{there[0]} is there already", hint="replace it with --force (overwrite=True), or name another"
        )
    return path


def _crop(run: Runnable) -> tuple[str, float, float]:
    """Return what decides which part of an image a model sees."""
    spec = run.preprocessing
    return spec.crop_mode, spec.crop_pct, spec.image_size[0] / spec.image_size[1]


def _chosen(what: str | Sequence[str]) -> list[str]:
    names = [what] if isinstance(what, str) else list(what)
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"there is no picture {name!r}", hint=f"one of {', '.join(KINDS)}")
    return [name for name in KINDS if name in names or not names]


def _given(images: ImageLike | Sequence[ImageLike]) -> Iterable[tuple[Item, Any]]:
    """Yield the first images, each with what it is read from."""
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    found: Iterable[tuple[Item, Any]] = itertools.chain.from_iterable(map(_items, several, itertools.count(1)))
    for number, pair in enumerate(found):
        if number == _MOST_IMAGES:
            warnings.warn(f"only the first {_MOST_IMAGES} images are shown", stacklevel=3)
            return
        yield pair


def _items(image: Any, number: int) -> Iterable[tuple[Item, Any]]:
    if isinstance(image, (str, os.PathLike)):
        for item in Sources.of(image).items():
            yield item, lambda item=item: content_of(item)
    else:
        name = f"image {number}"
        yield Item(number, name, None, Place("nowhere", ""), name), image


def _without_images(source: str | os.PathLike[str] | Checkpoint | VisionTransformer, **options: Any) -> Subject:
    """Return a model whose weights alone are shown."""
    if isinstance(source, VisionTransformer):
        return Subject("model", source)
    shown = str(source.path) if isinstance(source, Checkpoint) else os.fspath(source)
    return Subject(_name(shown), load(source if isinstance(source, Checkpoint) else shown, **options))


def _subject(run: Runnable, given: Sequence[tuple[Item, Any]]) -> Subject:
    """Return a model with its own views of images.

    Raises:
        VitHubError: one of them cannot be read.
    """
    reader, views = Reader(run.preprocessing, run.native), []
    for item, source in given:
        batch = reader.batch([item], reader.read([item], [source]))
        if batch.errors:
            raise VitHubError(f"{item.name}: {batch.errors[0]}", hint="is the file complete, and an image?")
        views.append(View.of(item.path.rpartition("/")[2], batch.images[0], run.preprocessing))
    return Subject(_name(run.source), run.model, views)


def _name(source: str) -> str:
    """Return what to call a model: its name or address, or the end of its path, since pages are passed on."""
    if "://" in source:
        return without_credentials(source)
    if not source:
        return "model"
    path = Path(source)
    return "/".join(path.absolute().parts[-2:]) if path.exists() else source


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
