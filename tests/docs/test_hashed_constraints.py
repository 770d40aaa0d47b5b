"""constraints-hashed.txt pins what constraints.txt pins, each with hashes."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_REQUIREMENT = re.compile(
    r"^([\w.-]+)==(\S+)(?: ; (.*?))? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def name_of(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_both_pin_the_same_versions() -> None:
    hashed = (ROOT / "constraints-hashed.txt").read_text(encoding="utf-8")
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    wanted = {name_of(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE)}
    found = {name_of(name): (version, marker) for name, version, marker, _ in _REQUIREMENT.findall(hashed)}
    assert {name: version for name, (version, _) in found.items() if name in wanted} == wanted
    # What else is there comes with torch's default build.
    assert all(marker == 'sys_platform == "linux"' for name, (_, marker) in found.items() if name not in wanted)
    rest = [line for line in _REQUIREMENT.sub("", hashed).splitlines() if line and not line.startswith("#")]
    assert not rest
