"""A kind of picture: what it shows, of which models, and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vit_hub.pictures.drawing import Drawing, Picture
from vit_hub.pictures.subject import Subject

__all__ = ["ONE_PATCH", "VIT", "Kind"]

VIT = "https://arxiv.org/abs/2010.11929"
ONE_PATCH = "one patch has no others to compare with"


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Attributes:
        name: as ``what`` takes it.
        about: what it shows, in a few words.
        caption: how it is computed and read.
        papers: where it comes from, pairs of a name and an address.
        make: computes and describes it.
        obstacle: why a model has none; empty where it has.
        of_images: it needs an image.
    """

    name: str
    about: str
    caption: str
    papers: tuple[tuple[str, str], ...]
    make: Callable[[Subject], Drawing]
    obstacle: Callable[[Subject], str] = lambda subject: ""
    of_images: bool = False

    def missing(self, subject: Subject) -> str:
        """Return why there is no such picture of a subject; empty if there is one."""
        return self.obstacle(subject) or ("no image is given" if self.of_images and not subject.views else "")

    def picture(self, subject: Subject) -> Picture:
        """Compute the picture of a subject."""
        made = self.make(subject)
        caption = " ".join(filter(None, (self.caption, made.note)))
        return Picture(self.name, made.title, caption, self.papers, made.height, made.draw)
