"""Time whole processes: the cost of the command line and the import before any work is done. Linux only.

    python benchmarks/startup.py --markdown benchmarks/startup.md

Every round runs each command once, one after the other; the table has the medians of wall and CPU time, the wall time
above that of an interpreter that does nothing, and the largest memory of any round (ru_maxrss). Files are in the page
cache and modules compiled after a first run that does not count.

`timm` and `transformers` import torch; `import vit_hub`, `--help`, `list` and `info` do not need it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

from report import in_mb, in_ms, parser, report, step, table

HERE = Path(__file__).resolve().parent
NOTHING = "python -c pass"


class Run(NamedTuple):
    """Seconds, and bytes at the peak."""

    wall: float
    cpu: float
    memory: int


def commands() -> dict[str, list[str]]:
    """Map each label to its command; each command has run once."""
    scripts = Path(sysconfig.get_path("scripts"))
    python = [sys.executable, "-c"]
    found = {
        NOTHING: [*python, "pass"],
        'python -c "import vit_hub"': [*python, "import vit_hub"],
        "vit-hub --help": [str(scripts / "vit-hub"), "--help"],
        "vit-hub list": [str(scripts / "vit-hub"), "list"],
        "vit-hub info vit-b16": [str(scripts / "vit-hub"), "info", "vit-b16"],
    }
    if (scripts / "hf").exists():
        found["hf --help"] = [str(scripts / "hf"), "--help"]
    for command in found.values():
        run(command)
    # Where torchvision does not fit the torch that is there, torchvision_operators.py helps.
    for name in ("timm", "transformers"):
        tried = ([*python, f"import {name}"], [*python, f"import torchvision_operators, {name}"])
        found[f'python -c "import {name}"'] = next(command for command in tried if works(command))
    return found


def works(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True, env=environment()).returncode == 0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}


def run(command: list[str]) -> Run:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    given = parser(__doc__, rounds=11).parse_args()
    with report("Starting", __doc__, given) as lines:
        chosen = commands()
        runs: dict[str, list[Run]] = {title: [] for title in chosen}
        for turn in range(given.rounds):
            step(f"round {turn + 1} of {given.rounds}")
            for title, command in chosen.items():
                runs[title].append(run(command))
        idle = statistics.median(each.wall for each in runs[NOTHING])
        own = statistics.median(each.wall for each in runs["vit-hub --help"])
        rows = []
        for title, found in runs.items():
            wall, cpu = (statistics.median(column) for column in ([each[i] for each in found] for i in (0, 1)))
            above = in_ms(max(wall - idle, 0.0))
            memory = in_mb(max(each.memory for each in found))
            rows.append((f"`{title}`", in_ms(wall), in_ms(cpu), above, f"{wall / own:.2f}", memory))
        lines += [f"Medians of {given.rounds} rounds.", ""]
        lines += table(("command", "wall", "CPU", "above `pass`", "/ `vit-hub --help`", "memory"), rows)


if __name__ == "__main__":
    main()
