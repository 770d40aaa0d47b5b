"""``vit-hub lock``: pin a project's models to exact files."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb, complete_source, lockfile_option, offline_option
from vit_hub.cli.output import Output, amount, count_of

_EPILOG = """\b
Examples:
  vit-hub lock vit-b16 google/vit-base-patch16-224
  git add vit-hub.lock
  vit-hub download --locked                 fetch exactly the files in the lock file
  vit-hub verify --lockfile vit-hub.lock    compare cached files with it
"""


@click.command("lock", cls=Verb, short_help="Pin models to exact files.", epilog=_EPILOG)
@click.argument("names", shell_complete=complete_source, nargs=-1, required=True, metavar="NAME...")
@lockfile_option("Lock file to write.")
@offline_option
def command(output: Output, names: tuple[str, ...], lockfile: Path | None, offline: bool) -> None:
    """Pin models to their present files.

    Missing files are fetched, and a lock file is written for the project to commit: for each model the address of its
    files, with the commit, and the sha256 and size of each. Models already in it stay; those named are updated.
    `vit-hub download --locked` fetches exactly these files, on any machine.
    """
    from vit_hub.hub.lockfile import LOCKFILE, lock

    file = lockfile or LOCKFILE
    locked = lock(names, file, offline=offline, progress=not output.quiet)
    if output.json:
        models = [{"name": name, **delivery.to_data()} for name, delivery in locked.items()]
        output.document({"lockfile": file, "models": models})
    elif output.quiet:
        output.lines([str(file)])
    else:
        rows = [
            (
                name,
                count_of(len(delivery.files), "file"),
                amount(sum(pin.size for pin in delivery.files.values()), "B"),
                delivery.address,
            )
            for name, delivery in locked.items()
        ]
        output.lines(output.table(("model", "files", "size", "from"), rows, right=("size",)))
        output.note(f"{file}: {count_of(len(locked), 'model')} locked; commit it")
