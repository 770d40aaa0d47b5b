"""``vit-hub lock``: write down exactly which files a project's models are made of."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb, complete_source, lockfile_option, offline_option
from vit_hub.cli.output import Output, amount, count_of, pass_output

_EPILOG = """\b
Examples:
  vit-hub lock vit-b16 google/vit-base-patch16-224
  git add vit-hub.lock
  vit-hub download --locked                 what the lock file says, and nothing else
  vit-hub verify --lockfile vit-hub.lock    is it still that?
"""


@click.command("lock", cls=Verb, epilog=_EPILOG)
@click.argument("names", shell_complete=complete_source, nargs=-1, required=True, metavar="NAME...")
@lockfile_option("The lock file to write.")
@offline_option
@pass_output
def command(output: Output, names: tuple[str, ...], lockfile: Path | None, offline: bool) -> None:
    """Pin models to exactly the files that they are made of now.

    Fetches what is needed and writes a lock file for the project to commit: for each model where its files come from,
    with the commit, and the sha256 and size of each. Models that are in it already stay; those named are updated.
    `vit-hub download --locked` takes exactly these files on any machine, at any time.
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
