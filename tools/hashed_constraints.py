"""Write constraints-hashed.txt: the packages of constraints.txt with the hashes of their files on the package index.

    pip install pip-tools
    python tools/hashed_constraints.py

``pip-compile`` asks the public index for the hashes, whatever pip is configured to take packages from. It needs the
Python of constraints.txt, and some minutes. Packages that torch needs besides, on Linux with its default build, are
added, because pip accepts nothing without a hash once one is required.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
INDEX = "https://pypi.org/simple"
HEADER = """\
# The packages of constraints.txt with the sha256 of their files on pypi.org, on Python 3.11, and on Linux what the
# default build of torch needs. Written by tools/hashed_constraints.py.
# Use: pip install --require-hashes -r constraints-hashed.txt && pip install --no-deps .
"""
_LINE = re.compile(r"^([A-Za-z0-9._-]+)==([^ ]+)(?= )", re.MULTILINE)


def canonical(name: str) -> str:
    """Return the one form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(text: str) -> dict[str, str]:
    """Return the versions in constraints, by name."""
    return {canonical(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def main() -> None:
    """Write the file."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        source, found = Path(folder, "constraints.in"), Path(folder, "hashed.txt")
        source.write_text(constraints, encoding="utf-8")
        options = ["--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header", "--no-annotate", "--quiet"]
        options += ["--index-url", INDEX, "--no-emit-index-url"]
        subprocess.run(
            [sys.executable, "-m", "piptools", "compile", str(source), *options, "-o", str(found)],
            check=True,
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""},
        )
        hashed = found.read_text(encoding="utf-8")
    ours = pinned(constraints)

    def marked(line: re.Match[str]) -> str:
        return line[0] if canonical(line[1]) in ours else f'{line[0]} ; sys_platform == "linux"'

    (ROOT / "constraints-hashed.txt").write_text(HEADER + _LINE.sub(marked, hashed), encoding="utf-8")


if __name__ == "__main__":
    main()
