"""Keep excerpts of the source in documents as the source is.

python tools/code_excerpts.py

A comment before a code block names what is in it: a file, a class or function of it, and the lines of that from the
first one with a text to the next one with another text; without them, all of it:

    <!-- code: vit_hub/model/layers.py Mlp.forward "return" "return" -->
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
EXCERPT = re.compile(
    r'^(?P<marker><!-- code: (?P<file>\S+) (?P<name>\S+)(?: "(?P<first>[^"]+)" "(?P<last>[^"]+)")? -->\n)'
    r"```python\n.*?^```$",
    re.MULTILINE | re.DOTALL,
)


def lines_of(file: str, name: str) -> list[str]:
    """The lines of a class, function or method of a file."""
    text = (ROOT / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part)
    assert isinstance(node, (ast.ClassDef, ast.FunctionDef))
    return text.splitlines()[node.lineno - 1 : node.end_lineno]


def excerpt(file: str, name: str, first: str | None, last: str | None) -> str:
    """The lines that a marker names, without the indentation they share.

    Raises:
        ValueError: there are no such lines.
    """
    try:
        lines = lines_of(file, name)
        if first is not None and last is not None:
            start = next(index for index, line in enumerate(lines) if first in line)
            lines = lines[start : next(index for index in range(start, len(lines)) if last in lines[index]) + 1]
    except StopIteration:
        raise ValueError(f"{file} has no {name} with lines from {first!r} to {last!r}: mend the marker") from None
    # What is for the type checker says nothing here.
    return re.sub(r"  # type: ignore\S*.*", "", textwrap.dedent("\n".join(lines)))


def updated(document: str) -> str:
    """A document with its excerpts as the source is now."""

    def as_it_is(found: re.Match[str]) -> str:
        code = excerpt(found["file"], found["name"], found["first"], found["last"])
        return f"{found['marker']}```python\n# {found['name']} in {found['file']}\n{code}\n```"

    return EXCERPT.sub(as_it_is, document)


if __name__ == "__main__":
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = updated(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            sys.stdout.write(f"{path}\n")
