"""Run every benchmark, one after the other.

    python benchmarks/all.py

Each writes its tables to the Markdown file of its name here. ``--quick`` takes the tiniest models and one round,
to see that everything works, and writes no file: such figures mean nothing. Takes about an hour on two cores; nothing
else should run meanwhile. Needs timm and, for downloads, curl.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Script -> what makes it quick.
SCRIPTS: dict[str, list[str]] = {
    "startup.py": ["--rounds", "1"],
    "load.py": ["--sizes", "tiny", "--rounds", "1"],
    "forward.py": [
        *("--sizes", "tiny", "--batch-sizes", "1,2", "--dtypes", "float32", "--compile", ""),
        *("--processes", "1", "--rounds", "1"),
    ],
    "memory.py": ["--sizes", "tiny", "--batch-size", "2", "--dtypes", "float32", "--rounds", "1"],
    "runtimes.py": [
        *("--sizes", "tiny", "--batch-sizes", "1,2", "--dtypes", "float32"),
        *("--processes", "1", "--rounds", "1", "--side", "64"),
    ],
    "convert.py": ["--size", "tiny", "--rounds", "1"],
    "embed.py": ["--size", "tiny", "--count", "40", "--batch-sizes", "8", "--copies", "2"],
    "resize.py": ["--rounds", "1", "--count", "10"],
    "download.py": ["--megabytes", "4", "--rounds", "1"],
    "gpu.py": ["--tiny"],
}


def command(script: str, *, quick: bool) -> list[str]:
    path = HERE / script
    options = SCRIPTS[script] if quick else ["--markdown", str(path.with_suffix(".md").relative_to(HERE.parent))]
    return [sys.executable, str(path), *options]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, one round, no files")
    given = parser.parse_args()
    failed = []
    for script in SCRIPTS:
        print(f"\n== {script}\n", flush=True)
        if subprocess.run(command(script, quick=given.quick), check=False, cwd=HERE.parent).returncode:
            failed.append(script)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
