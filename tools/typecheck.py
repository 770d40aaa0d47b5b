"""Run mypy with the settings of pyproject.toml; arguments are passed on.

mypy finds packages by their folders and does not read setuptools' package-dir, so it gets a folder of links laid out as
the installed package is: vit_hub with converters and weights_manifest inside.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from module_imports import ROOT, lay_out


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        command = [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'pyproject.toml'}"]
        command += [f"--cache-dir={ROOT / '.mypy_cache'}", *sys.argv[1:]]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
