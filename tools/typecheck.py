"""Run mypy with the settings of pyproject.toml; arguments are passed on.

mypy finds packages by their folders and does not read setuptools' package-dir, so it gets a folder of links laid out as
the installed package is: vit_hub with converters and weights_manifest inside.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "vit_hub")
        package.mkdir()
        for path in (*(ROOT / "vit_hub").iterdir(), ROOT / "converters", ROOT / "weights_manifest"):
            (package / path.name).symlink_to(path)
        command = [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'pyproject.toml'}"]
        command += [f"--cache-dir={ROOT / '.mypy_cache'}", *sys.argv[1:]]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
