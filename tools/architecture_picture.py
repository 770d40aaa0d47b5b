"""Draw docs/architecture.svg: the path of a checkpoint, and the rooms with the imports that the source has.

python tools/architecture_picture.py
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from html import escape
from itertools import pairwise
from typing import NamedTuple

from module_imports import IMPORTS, MODULES, ROOT, is_inside

TARGET = ROOT / "docs" / "architecture.svg"

WIDTH = 800
MARGIN = 20
LINE = 14
STYLE = """
  text { font-family: 'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif; font-size: 10.5px; fill: #2d3748 }
  .title { font-size: 15px; font-weight: bold; fill: #1a202c }
  .name { font-size: 12px; font-weight: bold; fill: #1a202c }
  .note { font-style: italic; fill: #52606d }
  .box { stroke-width: 1.2 }
  .library { fill: #e8f1fb; stroke: #2b6cb0 }
  .hub { fill: #f1ebfa; stroke: #6b46c1 }
  .converters { fill: #e6f6ec; stroke: #2f855a }
  .data { fill: #fdf3e1; stroke: #b7791f }
  .line { fill: none; stroke: #4a5568; stroke-width: 1.3; marker-end: url(#tip) }
  .both { marker-start: url(#tip) }
  .upward { stroke: #c53030; stroke-dasharray: 4 3 }
"""


class Box(NamedTuple):
    """A rectangle with a name above lines of text."""

    kind: str
    name: str
    text: tuple[str, ...]
    left: float
    right: float
    top: float
    height: float

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def middle(self) -> float:
        return self.top + self.height / 2

    @property
    def center(self) -> float:
        return (self.left + self.right) / 2

    def svg(self) -> str:
        size = f'x="{self.left:g}" y="{self.top:g}" width="{self.right - self.left:g}" height="{self.height:g}" rx="6"'
        first = self.top + (self.height - LINE * len(self.text)) / 2 + 4
        lines = [f'<rect class="box {self.kind}" {size}/>', _text(self.left + 10, first, self.name, "name")]
        lines += [_text(self.left + 10, first + LINE * row, text) for row, text in enumerate(self.text, 1)]
        return "\n".join(lines)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _line(*points: tuple[float, float], kind: str = "") -> str:
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="{f"line {kind}".strip()}" d="M{path}"/>'


# The path of a checkpoint: rows of (kind, module or folder in the repository, text).
READING = (
    ("data", "", ("npz, safetensors,", "PyTorch, sharded,", "Hugging Face folder")),
    ("converters", "converters/containers", ("first bytes decide;", "headers become", "lazy tensors")),
    ("converters", "converters/recognize.py", ("the table that explains", "most tensors: format,", "dialect, prefix")),
    ("converters", "converters/rules", ("names and axes; every", "tensor converted,", "carried or dropped")),
    (
        "converters",
        "converters/infer_config.py",
        ("the config, and where", "each field comes from;", "shapes are checked"),
    ),
)
USING = (
    ("converters", "converters/resize.py", ("another image or patch", "size: a checkpoint again")),
    ("converters", "converters/build.py", ("mapped tensors become", "the parameters")),
    ("converters", "converters/folding.py", ("rewrites a model with", "the same outputs")),
    (
        "converters",
        "converters/write.py",
        ("rules read backwards, then", "the plan is read back: same", "config, or an error"),
    ),
)
RESULTS = (
    ("library", "vit_hub/preprocessing", ("images as the project that", "trained it prepares them")),
    ("library", "vit_hub/model/vit.py", ("VisionTransformer: logits,", "embeddings, tokens")),
    ("converters", "converters/save.py", ("config and passport", "go along")),
    ("data", "", ("tensor by tensor; complete", "under its name or not", "there at all")),
)


def _row(top: float, cells: Iterable[tuple[str, str, tuple[str, ...]]], file: str) -> list[Box]:
    """Boxes side by side; ``file`` is the name of the box that no module stands for."""
    found, cells = [], list(cells)
    gap = 18
    width = (WIDTH - 2 * MARGIN - gap * (len(cells) - 1)) / len(cells)
    height = LINE * (max(len(text) for _, _, text in cells) + 1) + 12
    for number, (kind, place, text) in enumerate(cells):
        if not (ROOT / place).exists():
            raise SystemExit(f"{place} is not there any more")
        name = place.split("/", 1)[1] if place else file
        name += "/" * (place != "" and (ROOT / place).is_dir())
        left = MARGIN + number * (width + gap)
        found.append(Box(kind, name, text, round(left, 1), round(left + width, 1), top, height))
    return found


def draw_path(top: float) -> tuple[list[str], float]:
    """The path of a checkpoint, and where it ends."""
    reading = _row(top, READING, "file or folder")
    opened = Box(
        "converters",
        "Checkpoint",
        ("read.py: config, canonical tensors (lazy), passport, and an account of every tensor of the source",),
        MARGIN,
        WIDTH - MARGIN,
        reading[0].bottom + 24,
        42,
    )
    using = _row(opened.bottom + 24, USING, "")
    results = _row(using[0].bottom + 24, RESULTS, "file or folder")
    lines = [
        _line((left.right, left.middle), (right.left, right.middle))
        for row in (reading, results)
        for left, right in pairwise(row)
    ]
    resize, build, folding, write = using
    lines += [_line((reading[-1].center, reading[-1].bottom), (reading[-1].center, opened.top))]
    lines += [_line((box.center, opened.bottom), (box.center, box.top)) for box in (build, write)]
    lines += [_line((resize.center, opened.bottom), (resize.center, resize.top), kind="both")]
    lines += [_line((folding.right, folding.middle), (write.left, write.middle), kind="both")]
    lines += [_line((box.center, box.bottom), (box.center, results[0].top)) for box in (build, write)]
    boxes = [box.svg() for box in (*reading, opened, *using, *results)]
    return [*lines, *boxes], results[0].bottom


class Room(NamedTuple):
    """A box of the picture: the rooms in it, its sides, and its text; without one, the names of its modules."""

    kind: str
    name: str
    members: tuple[str, ...]
    left: float
    right: float
    text: str = ""


# From the ground up, in the order of tests/test_architecture.py.
ROOMS = (
    Room(
        "library",
        "errors, progress, shown, untrusted, version",
        ("errors", "progress", "shown", "untrusted", "version"),
        280,
        780,
        "for every room",
    ),
    Room("data", "weights_manifest/", ("weights_manifest",), 20, 180, "TOML, one per family"),
    Room("library", "model/", ("model",), 150, 510),
    Room("library", "preprocessing/", ("preprocessing",), 280, 510),
    Room("library", "registry, choosing", ("registry", "choosing"), 20, 250, "names and facts of published weights"),
    Room("converters", "tensors", ("converters.tensors",), 620, 780, "described before read"),
    Room("converters", "containers/", ("converters.containers",), 540, 780),
    Room(
        "converters",
        "casting, passport",
        ("converters.casting", "converters.passport"),
        280,
        600,
        "dtypes; the way back",
    ),
    Room("converters", "rules/", ("converters.rules",), 280, 600),
    Room("converters", "formats/", ("converters.formats",), 210, 600),
    Room("converters", "converters/", ("converters",), 370, 600),
    Room("library", "interop", ("interop",), 430, 780, "timm and transformers, in memory"),
    Room("hub", "hub/names/", ("hub.names",), 20, 340),
    Room("hub", "hub/cache/", ("hub.cache",), 20, 340),
    Room("hub", "hub/http/", ("hub.http",), 20, 340),
    Room("hub", "hub/", ("hub",), 20, 410),
    Room("library", "loading, conversion", ("loading", "conversion"), 20, 410, "load, open and convert in one call"),
    Room("library", "exporting/", ("exporting",), 20, 520),
    Room("library", "running/", ("running",), 20, 410),
    Room("library", "benching", ("benching",), 430, 780, "times beside peers, runtimes and the bound of the device"),
    Room("library", "pictures/", ("pictures",), 20, 300),
    Room("library", "certifying/", ("certifying",), 320, 780),
    Room("library", "vit_hub", ("",), 140, 530, "the public names, each imported on first use"),
    Room("library", "cli/", ("cli", "__main__"), 20, 780),
)
_MEMBERS = {
    f"vit_hub.{member}".removesuffix("."): number for number, item in enumerate(ROOMS) for member in item.members
}


def room_of(module: str) -> int:
    """The number of the room that a module is in: the one with the longest name that it is inside of."""
    return _MEMBERS[max((name for name in _MEMBERS if is_inside(module, name)), key=len)]


def arrows() -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Imports between rooms: those downward that no chain of others says already, and those upward."""
    found = {(room_of(module), room_of(name)) for module, names in IMPORTS.items() for name in names}
    down = {(upper, lower) for upper, lower in found if upper > lower}
    reached: dict[int, set[int]] = {}
    for number in range(len(ROOMS)):
        direct = {lower for upper, lower in down if upper == number}
        reached[number] = direct.union(*(reached[lower] for lower in direct))
    kept = {
        (upper, lower)
        for upper, lower in down
        if not any(lower in reached[other] for start, other in down if start == upper)
    }
    return kept, {(lower, upper) for lower, upper in found if lower < upper}


def _imports_between(start: int, end: int) -> list[tuple[str, str]]:
    pairs = [(module, name) for module, names in IMPORTS.items() for name in names if room_of(module) == start]
    return [(a.removeprefix("vit_hub."), b.removeprefix("vit_hub.")) for a, b in sorted(pairs) if room_of(b) == end]


def _modules(number: int) -> str:
    """Names of a room's modules; verbs and formats are counted."""
    names = [
        module.rpartition(".")[2]
        for module, path in MODULES.items()
        if path.name != "__init__.py" and room_of(module) == number
    ]
    if ROOMS[number].name == "formats/":
        return f"{len([name for name in names if not name.startswith('_')])} modules, one per format"
    verbs = [name.removeprefix("cmd_") for name in names if name.startswith("cmd_")]
    others = [name for name in names if not name.startswith(("cmd_", "__"))]
    return ", ".join(others) + (f"; {len(verbs)} verbs: {', '.join(verbs)}" if verbs else "")


def draw_rooms(top: float) -> tuple[list[str], float]:
    """The rooms with arrows from each to those that it imports, and where they end."""
    down, up = arrows()
    level = [0] * len(ROOMS)
    for upper, lower in sorted(down):
        level[upper] = max(level[upper], level[lower] + 1)
    texts = [
        tuple(textwrap.wrap(item.text or _modules(number), int((item.right - item.left - 14) / 6)))
        for number, item in enumerate(ROOMS)
    ]
    boxes: dict[int, Box] = {}
    for row in range(max(level), -1, -1):
        members = [number for number in range(len(ROOMS)) if level[number] == row]
        height = LINE * (max(len(texts[number]) for number in members) + 1) + 12
        for number in members:
            item = ROOMS[number]
            boxes[number] = Box(item.kind, item.name, texts[number], item.left, item.right, top, height)
        top += height + 22
    taken: list[tuple[float, float, float]] = []
    lines = []
    for upper, lower in sorted(down, reverse=True):
        start, end = boxes[upper], boxes[lower]
        x = _column(start, end, boxes.values(), taken)
        taken.append((x, start.bottom, end.top))
        lines.append(_line((x, start.bottom), (x, end.top)))
    for lower, upper in sorted(up):
        start, end = boxes[lower], boxes[upper]
        # Out at the top, up beside everything that stands over the start, and in from the side.
        x = max(box.right for box in boxes.values() if end.top <= box.top < start.top and box.left < start.right) + 10
        first, above = start.right - 10, start.top - 11
        lines.append(
            _line(
                (first, start.top), (first, above), (x, above), (x, end.middle), (end.right, end.middle), kind="upward"
            )
        )
        names = [text for pair in _imports_between(lower, upper) for text in (f"{pair[0]} imports", pair[1])]
        lines += [_text(x + 8, (end.middle + above) / 2 + LINE * row, text, "note") for row, text in enumerate(names)]
    return [*lines, *(box.svg() for box in boxes.values())], top - 22


def _column(start: Box, end: Box, boxes: Iterable[Box], taken: list[tuple[float, float, float]]) -> int:
    """An x at which a vertical line from box to box meets nothing, near the middle of what they share."""
    left, right = int(max(start.left, end.left)) + 8, int(min(start.right, end.right)) - 8
    between = [box for box in boxes if start.bottom <= box.top < end.top]
    others = [x for x, first, last in taken if first < end.top and start.bottom < last]
    free = [
        x
        for x in range(left, right + 1, 2)
        if not any(box.left - 6 < x < box.right + 6 for box in between)
        and all(abs(x - other) >= 14 for other in others)
    ]
    if not free:
        raise SystemExit(f"no room for an arrow from {start.name} to {end.name}: move one of them")
    return min(free, key=lambda x: abs(2 * x - left - right))


def picture() -> str:
    """The whole picture."""
    path, bottom = draw_path(46)
    rooms, end = draw_rooms(bottom + 64)
    height = end + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}"',
        f'  width="{WIDTH}" height="{height:g}" role="img">',
        "<title>The path of a checkpoint through vit-hub, and the rooms of the package with their imports</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"',
        '  orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="#4a5568"/></marker></defs>',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height:g}" rx="10" fill="#ffffff"/>',
        _text(MARGIN, 30, "The path of a checkpoint", "title"),
        *path,
        _text(MARGIN, bottom + 40, "Rooms and their imports", "title"),
        _text(
            270, bottom + 40, "an arrow points to what is imported; arrows that follow from others are left out", "note"
        ),
        *rooms,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
    print(TARGET)
