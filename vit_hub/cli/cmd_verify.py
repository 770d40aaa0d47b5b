"""``vit-hub verify``: are the files on this machine still what they should be?"""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.failures import DIFFERENT
from vit_hub.cli.options import Verb, complete_source, lockfile_option
from vit_hub.cli.output import Output, amount, count_of, pass_output

_EPILOG = """\b
Examples:
  vit-hub verify                                everything
  vit-hub verify vit-b16 --lockfile vit-hub.lock
  vit-hub verify -q || echo "something is wrong"
"""


@click.command(
    "verify", cls=Verb, short_help="Hash anew what is on this machine: is it as it should be?", epilog=_EPILOG
)
@click.argument("names", shell_complete=complete_source, nargs=-1, metavar="[NAME...]")
@lockfile_option("Compare with this lock file, too.")
@click.pass_context
@pass_output
def command(output: Output, ctx: click.Context, names: tuple[str, ...], lockfile: Path | None) -> None:
    """Hash what is on this machine anew and compare it with what it should be.

    Without a NAME everything: files that were fetched, converted ones, those in Hugging Face's cache that vit-hub used,
    and those that come with vit-hub. Each is compared with the hash that the registry pins, the one recorded when it
    was first used, and the lock file's if there is one. Exit status 3 where a file is changed or missing. No connection
    is opened. With --quiet only the files that are wrong.
    """
    from vit_hub.hub.cache.verify import verify_all
    from vit_hub.hub.lockfile import LOCKFILE, read_lock

    if lockfile is None and LOCKFILE.exists():
        lockfile = LOCKFILE
    locked = read_lock(lockfile).values() if lockfile else ()
    found = verify_all(names, locked=locked, lockfile=str(lockfile), progress=not output.quiet)
    wrong = [verdict for verdict in found if verdict.is_wrong]
    if output.json:
        output.document(found)
    elif output.quiet:
        output.lines(str(verdict.path) for verdict in wrong)
    elif found:
        rows = [
            (verdict.status, "" if verdict.size is None else amount(verdict.size, "B"), verdict.name, str(verdict.path))
            for verdict in found
        ]
        output.lines(output.table(("status", "size", "model", "file"), rows, right=("size",)))
        output.note(f"{count_of(len(found), 'file')}, {len(wrong)} of them changed or missing")
    if not output.json:
        for verdict in wrong:
            output.error({"type": "IntegrityError", "message": verdict.problem, "hint": verdict.hint})
    if wrong:
        ctx.exit(DIFFERENT)
