"""``vit-hub verify``: re-check the hashes of the files on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.failures import DIFFERENT
from vit_hub.cli.options import Verb, complete_source, lockfile_option
from vit_hub.cli.output import Output, amount, count_of

_EPILOG = """\b
Examples:
  vit-hub verify                                all files
  vit-hub verify vit-b16 --lockfile vit-hub.lock
  vit-hub verify --locked                       the files of a project, all of which must be there
  vit-hub verify -q || echo "something is wrong"
"""


@click.command("verify", cls=Verb, short_help="Re-check hashes of cached files.", epilog=_EPILOG)
@click.argument("names", shell_complete=complete_source, nargs=-1, metavar="[NAME...]")
@click.option("--locked", is_flag=True, help="Check exactly the files in the lock file, all of which must be there.")
@lockfile_option("Also compare with this lock file.")
def command(output: Output, names: tuple[str, ...], locked: bool, lockfile: Path | None) -> int:
    """Re-check the hashes of the files on this machine, without opening a connection.

    Without a NAME, all files: fetched and converted ones, those that vit-hub used in Hugging Face's cache, and those
    that come with vit-hub. Each is compared with the hash pinned by the registry, the one recorded when it was first
    used, and the one in the lock file if there is one. The exit status is 3 if a file has changed or is missing. With
    --quiet, print only these files.
    """
    from vit_hub.hub.cache.verify import verify_all, verify_locked
    from vit_hub.hub.lockfile import LOCKFILE, read_lock

    if locked and names:
        raise click.UsageError("--locked is for all models of the lock file; leave out the names, or --locked.")
    if lockfile is None and (locked or LOCKFILE.exists()):
        lockfile = LOCKFILE
    pinned, progress = read_lock(lockfile) if lockfile else {}, not output.quiet
    if locked:
        found = verify_locked(pinned, lockfile=str(lockfile), progress=progress)
    else:
        found = verify_all(names, locked=pinned.values(), lockfile=str(lockfile), progress=progress)
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
    return DIFFERENT if wrong else 0
