"""Reports of the benchmarks: a header with machine and command, tables, and the Markdown file."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MB = 1_000_000


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Make the parser that all benchmarks extend; ``--once`` runs one measurement in a new process of the script."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--rounds", type=int, default=rounds, help=f"measurements per row (default: {rounds})")
    made.add_argument("--folder", type=Path, help="where files are written (default: a temporary folder)")
    made.add_argument("--markdown", type=Path, help="also write the tables to this file")
    made.add_argument("--once", help=argparse.SUPPRESS)
    return made


def names(text: str) -> list[str]:
    """Parse options such as ``--sizes Ti,B``."""
    return [name for name in text.split(",") if name]


def add_sizes(options: argparse.ArgumentParser, known: Iterable[str], default: str, note: str = "") -> None:
    """Add ``--sizes``, with what there is to say of some of them."""
    said = f"of {', '.join(known)}, separated by commas (default: {default}{note})"
    options.add_argument("--sizes", type=names, default=names(default), help=said)


def step(text: str) -> None:
    """Print the next step on stderr: some benchmarks take long."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def report(title: str, doc: str | None, given: argparse.Namespace, device: str = "cpu") -> Iterator[list[str]]:
    """Collect lines; at the end print them under a header, and write the Markdown file if one was asked for.

    The explanation in the file is the script's docstring without its first line and its example.
    """
    lines: list[str] = []
    before = os.getloadavg()[0]
    yield lines
    load = f"Load average of the machine before and after: {before:.1f}, {os.getloadavg()[0]:.1f}."
    text = "\n".join([f"{machine(given.folder, device)}.", load, f"Command: `{command()}`.", "", *lines])
    print(text)
    if given.markdown is not None:
        paragraphs = [part for part in (doc or "").rstrip().split("\n\n")[1:] if not part.startswith("    ")]
        content = "\n\n".join([f"# {title}", text, *paragraphs])
        given.markdown.write_text(content + "\n", encoding="utf-8")


def command() -> str:
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def machine(folder: Path | None = None, device: str = "cpu") -> str:
    """Describe the processor, GPU, memory, file system of a folder (None: the temporary one) and versions."""
    import tempfile

    from vit_hub.benching import machine as described

    about = described(device)
    stat = ["stat", "-f", "-c", "%T", str(folder or tempfile.gettempdir())]
    kind = subprocess.run(stat, check=True, capture_output=True, text=True).stdout.strip()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = f"{about.pop('processor')}, {about.pop('cores')} cores ({about.pop('threads')} threads)"
    gpu = about.pop("gpu")
    system = f"{about.pop('system')} {platform.release().partition('-')[0]}"
    versions = [f"{name} {version}" for name, version in about.items()]
    return ", ".join(
        [processor, *([gpu] if gpu else []), f"{total:.0f} GiB of memory", f"file system {kind}", system, *versions]
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Make a Markdown table; the first ``left`` columns are text, the others numbers, aligned on the right."""
    widths = [max(3, *(len(row[index]) for row in (header, *rows))) for index in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    marks = ["-" * width if index < left else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return [line(header), line(marks), *map(line, rows)]


def in_ms(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds >= 0.01 else 2}f} ms"


def in_mb(size: float | None) -> str:
    return "-" if size is None else f"{size / MB:.0f} MB"
