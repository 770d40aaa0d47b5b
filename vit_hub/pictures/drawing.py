"""Pictures as data and how they become images: one width, one set of fonts, colours that all people tell apart.

matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vit_hub.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DIVERGING", "INK", "SEQUENTIAL", "WIDTH", "Array", "Drawing", "Picture", "bare", "block_ticks", "colorbar",
    "mean_text", "needs_matplotlib", "overlay", "photo", "short", "spread",
]  # fmt: skip

Array = npt.NDArray[Any]

WIDTH = 8.0
"""Inches. At 100 dots an inch, text of 10 points can be read on a page that is 800 pixels wide."""
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"  # centred on 0
INK = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito's colours
_DPI = 150
_BRIGHTEST = 99  # percentile of a map that is drawn in the brightest colour
_TITLE, _CAPTION = 13, 8.5  # points
_TITLE_COLUMNS, _CAPTION_COLUMNS = 74, 122
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "image.interpolation": "nearest",
    "figure.facecolor": "white",
    "text.parse_math": False,  # names of classes and files are text
}


def needs_matplotlib() -> Any:
    """Return the module ``matplotlib``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "pictures need matplotlib, which is not installed", hint="pip install 'vit-hub[plots]'"
        ) from error
    return matplotlib


@dataclass(frozen=True)
class Drawing:
    """The part of a picture that a kind makes.

    Attributes:
        title: a sentence, the conclusion that the numbers allow.
        height: of the drawing without title and caption, in inches.
        draw: draws it.
        note: on this picture alone, after the caption of its kind.
    """

    title: str
    height: float
    draw: Callable[[Figure], None]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One picture of a model, drawn when it is asked for. Notebooks show it.

    Attributes:
        kind: name of its kind, one of :data:`vit_hub.pictures.KINDS`.
        title: a sentence, the conclusion that the numbers allow.
        caption: how it is computed and read.
        papers: where the kind comes from, pairs of a name and an address.
        height: in inches, without title and caption.
        draw: draws it.
    """

    kind: str
    title: str
    caption: str
    papers: tuple[tuple[str, str], ...]
    height: float
    draw: Callable[[Figure], None]

    def figure(self, *, titled: bool = True) -> Figure:
        """Return a figure of matplotlib, 8 inches wide.

        Args:
            titled: with title and caption.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        matplotlib = needs_matplotlib()
        from matplotlib.figure import Figure

        title = textwrap.wrap(self.title, _TITLE_COLUMNS) if titled else []
        caption = textwrap.wrap(self.caption, _CAPTION_COLUMNS) if titled else []
        height = self.height + (len(title) * _TITLE * 1.25 + len(caption) * _CAPTION * 1.3) / 72 + 0.2 * titled
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            self.draw(figure)
            if titled:
                figure.suptitle(
                    "\n".join(title), x=0.012, ha="left", fontsize=_TITLE, fontweight="bold", color="#1a202c"
                )
                figure.supxlabel("\n".join(caption), x=0.012, ha="left", fontsize=_CAPTION, color="#52606d")
        return figure

    def png(self, *, titled: bool = True) -> bytes:
        """Return the picture as a PNG file, 1200 pixels wide; arguments and errors of :meth:`figure`."""
        import warnings

        from PIL import Image

        file, packed = io.BytesIO(), io.BytesIO()
        figure = self.figure(titled=titled)
        with needs_matplotlib().rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # of names in scripts that the font lacks
            figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
        Image.open(file).convert("RGB").save(packed, "PNG", optimize=True)
        return packed.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def bare(axes: Axes, title: str = "") -> None:
    """Leave nothing of the axes but a title."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title)


def photo(axes: Axes, pixels: Array, title: str = "") -> None:
    """Show an image [h, w, C] of 8 bits."""
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    bare(axes, title)


def overlay(axes: Axes, pixels: Array, values: Array, patch: tuple[int, int], title: str = "") -> None:
    """Lay the values of a grid of patches over a grey image, from black to yellow at their 99th percentile.

    A few patches may draw nearly all attention; by the largest value nothing else would be seen.

    Args:
        axes: where.
        pixels: [h, w, C], 8 bits.
        values: [rows, columns], not negative.
        patch: (height, width) of a patch in pixels.
        title: above it.
    """
    axes.imshow(pixels.mean(axis=-1), cmap="gray", vmin=-60, vmax=315)
    largest = max(float(np.percentile(values, _BRIGHTEST)), 1e-12)
    extent = (-0.5, values.shape[1] * patch[1] - 0.5, values.shape[0] * patch[0] - 0.5, -0.5)
    axes.imshow(values, cmap="inferno", vmin=0, vmax=largest, alpha=0.65, extent=extent)
    axes.set_xlim(-0.5, pixels.shape[1] - 0.5)
    axes.set_ylim(pixels.shape[0] - 0.5, -0.5)
    bare(axes, title)


def colorbar(figure: Figure, shown: Any, axes: Any, label: str) -> None:
    """Add the scale of a map beside axes."""
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, aspect=30)
    bar.set_label(label)
    bar.outline.set_visible(False)


def spread(count: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` of the numbers below ``count``, evenly spread, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted))})


def block_ticks(count: int) -> Array:
    """Return which blocks, numbered from one, get a number on an axis."""
    blocks = np.arange(1, count + 1)
    return blocks if count <= 16 else blocks[:: max(1, count // 12)]


def short(text: str, length: int = 28) -> str:
    """Return a name on one line, of a length that fits below a small picture."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= length else line[: length - 3].rstrip() + "..."


def mean_text(values: Sequence[float], form: str = "{:.0%}") -> str:
    """Write one number, or the smallest and the largest of several."""
    low, high = (form.format(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
