"""One page with all pictures of a model, which fetches nothing; and one image of several."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from vit_hub.pictures.drawing import Picture
from vit_hub.version import __version__

__all__ = ["page", "stacked"]

_GAP = 36  # pixels between pictures
_STYLE = """
:root { color-scheme: light dark; --ink: #1a202c; --soft: #52606d; --line: #d9e2ec; --back: #f7f9fb; --card: #ffffff;
  --link: #0b5cad }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #a3b1bf; --line: #30363d; --back: #0d1117;
  --card: #161b22; --link: #79b8ff } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main { max-width: 880px; margin: 0 auto; padding: 24px 16px 48px }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 16px; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; line-height: 1.35; margin: 0 0 12px; overflow-wrap: anywhere }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px; margin: 0 0 20px }
section > div { overflow-x: auto }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px }
p { margin: 12px 0 0; color: var(--soft); font-size: .9rem }
a { color: var(--link) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; font-size: .95rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
nav { margin: 0 0 20px; font-size: .9rem }
nav a { margin-right: 12px; white-space: nowrap }
footer { color: var(--soft); font-size: .85rem }
@media (max-width: 520px) { dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: 8px }
  section { padding: 12px } img { min-width: 620px } }
@media print { section { break-inside: avoid } }
"""
_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<section aria-label="Facts"><dl>
{facts}
</dl></section>
<nav aria-label="Pictures">
{links}
</nav>
{pictures}
{left_out}
<footer>Made by vit-hub {version}.</footer>
</main>
</body>
</html>
"""


def page(name: str, facts: Sequence[tuple[str, str]], pictures: Sequence[Picture], left_out: Mapping[str, str]) -> str:
    """Return an HTML page: facts, pictures with their conclusions as headings, and what does not apply.

    Args:
        name: of the model.
        facts: pairs of a name and a text.
        pictures: in their order.
        left_out: kinds that do not apply, with the reason.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    links = "\n".join(f'<a href="#{escape(picture.kind)}">{escape(picture.kind)}</a>' for picture in pictures)
    return _FRAME.format(
        title=escape(name),
        style=_STYLE,
        facts=_pairs(facts),
        links=links,
        pictures="\n".join(map(_section, pictures)),
        left_out=_left_out(left_out),
        version=escape(__version__),
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)


def _section(picture: Picture) -> str:
    png = picture.png(titled=False)
    width, height = Image.open(io.BytesIO(png)).size
    data = base64.b64encode(png).decode()
    papers = "; ".join(f'<a href="{escape(url)}">{escape(text)}</a>' for text, url in picture.papers)
    caption = escape(picture.caption) + (f" {papers}." if papers else "")
    return (
        f'<section id="{escape(picture.kind)}">\n<h2>{escape(picture.title)}</h2>\n<div tabindex="0">'
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(picture.title)}">'
        f"</div>\n<p>{caption}</p>\n</section>"
    )


def _left_out(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return ""
    return (
        f'<section aria-label="What does not apply"><h2>What does not apply</h2><dl>\n'
        f"{_pairs(list(left_out.items()))}\n</dl></section>"
    )


def stacked(images: Sequence[bytes]) -> bytes:
    """Return PNG files as one, below each other on white."""
    opened = [Image.open(io.BytesIO(each)) for each in images]
    if len(opened) == 1:
        return images[0]
    height = sum(each.height for each in opened) + _GAP * (len(opened) - 1)
    whole = Image.new("RGB", (max(each.width for each in opened), height), "white")
    top = 0
    for each in opened:
        whole.paste(each, (0, top))
        top += each.height + _GAP
    file = io.BytesIO()
    whole.save(file, "PNG", optimize=True)
    return file.getvalue()
