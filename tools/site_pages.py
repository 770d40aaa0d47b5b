"""The pages of the documentation site that docs/ does not have as they are; a hook of mkdocs.yml.

README.md is the first page, and the documents that it links to follow under their own names. Notebooks become pages,
formulas MathML, and the catalogue is written beside them. Links in the documents are those of the repository.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catalogue
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Link, Navigation
from mkdocs.structure.pages import Page
from module_imports import ROOT, lay_out

# Documents outside of docs/: page of the site -> file of the repository.
DOCUMENTS = {
    "index.md": "README.md",
    "policy.md": "SECURITY.md",  # not security.md, which is a page of its own
    **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")},
    **{path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/*.md")},
}
PAGES = {document: page for page, document in DOCUMENTS.items()}
CODE = re.compile(r"(^```.*?^```$|``.*?``|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):<code>~?([\w.]+)</code>")

_layout = tempfile.TemporaryDirectory()


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the package as it is installed."""
    if not any(Path(_layout.name).iterdir()):
        lay_out(Path(_layout.name))
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [_layout.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents, the notebooks' pages and the catalogue."""
    for page, document in DOCUMENTS.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))
    for path in sorted((ROOT / "docs").glob("notebooks/*.ipynb")):
        page = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, page, content=notebook_page(path)))
    for name, text in catalogue.files().items():
        files.append(File.generated(config, f"catalogue/{name}", content=text))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Put the catalogue after the first two pages."""
    nav.items.insert(2, Link("Catalogue of models", "catalogue/index.html"))
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to pages of the site, and write formulas as MathML."""
    source = DOCUMENTS.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        there = PAGES.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(there, posixpath.dirname(page.file.src_uri) or '.')}{found[2] or ''})"

    return outside_code(markdown, lambda text: formulas(LINK.sub(led, text)))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the roles of docstrings to what they name, where the site has it."""

    def linked(found: re.Match[str]) -> str:
        return f'<autoref identifier="{found[1]}" optional><code>{found[1].rpartition(".")[2]}</code></autoref>'

    return ROLE.sub(linked, content)


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change the text of a page, but for its code."""
    parts = CODE.split(markdown)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def formulas(text: str) -> str:
    """Write `$$...$$` and `$...$` as MathML, which browsers show without a script."""

    def apart(found: re.Match[str]) -> str:
        return f'<div style="overflow: auto hidden">{convert(found[1].strip(), display="block")}</div>'

    text = re.sub(r"\$\$(.+?)\$\$", apart, text, flags=re.DOTALL)
    return re.sub(r"(?<![\w$])\$([^$\n]+?)\$(?![\w$])", lambda found: convert(found[1]), text)


def notebook_page(path: Path) -> str:
    """The cells of a notebook and what they put out, as Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *map(_output, cell["outputs"])]
    link = f"[{path.name}]({path.name}) is this page as a notebook."
    return "\n\n".join([*parts, link, ""])


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        description = html.escape("".join(data.get("text/plain", "")))
        return f'<img alt="{description}" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    return f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```"
