"""``vit-hub cache``: list and remove files kept on this machine."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from vit_hub.cli.options import Verb
from vit_hub.cli.output import Output, amount, count_of

if TYPE_CHECKING:
    from vit_hub.hub.cache.inventory import Item

_EPILOG = """\b
Examples:
  vit-hub cache ls
  vit-hub cache rm vit-b16
  vit-hub cache prune --dry-run
  du -sh "$(vit-hub cache dir)"

\b
Each of these commands has the options --json, -q, --quiet and --debug.
VIT_HUB_CACHE moves the cache. Files from the Hugging Face Hub are in its own cache (HF_HOME).
"""


@click.group(
    "cache", epilog=_EPILOG, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List and remove cached files."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("dir", cls=Verb)
def show_folder(output: Output) -> None:
    """Print the folder of the cache, whether or not it exists yet."""
    from vit_hub.hub.cache.paths import cache_dir

    if output.json:
        output.document({"folder": cache_dir()})
    else:
        output.lines([str(cache_dir())])


@command.command("ls", cls=Verb)
def show_models(output: Output) -> None:
    """List fetched and converted files by model.

    Kinds: `canonical` is the converted file that `vit-hub download` prints; `web`, `mirrored` and `hugging face` are
    originals, from a plain address, from a mirror, and in Hugging Face's own cache; `program` is the model as --runtime
    exported it. "used" is the day on which the file
    was last read or written, as far as the file system records it. With --quiet, print only the names.
    """
    from vit_hub.hub.cache.inventory import items

    found = items()
    if output.json:
        output.document([_as_data(item) for item in found])
    elif output.quiet:
        output.lines(dict.fromkeys(item.name for item in found))
    elif found:
        rows = [(item.name, item.kind, amount(item.size, "B"), _day(item), str(item.path)) for item in found]
        output.lines(output.table(("model", "kind", "size", "used", "path"), rows, right=("size",)))
        output.note(f"{amount(sum(item.size for item in found), 'B')} in all")
    else:
        output.note("the cache is empty")


def _complete_cached(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from vit_hub.hub.cache.inventory import items

    return list(dict.fromkeys(item.name for item in items() if item.name.startswith(incomplete)))


@command.command("rm", cls=Verb, short_help="Remove the files and records of models.")
@click.argument("names", shell_complete=_complete_cached, nargs=-1, required=True, metavar="NAME...")
def remove_models(output: Output, names: tuple[str, ...]) -> None:
    """Remove the files of models: originals, converted files, and records of first downloads.

    Files in Hugging Face's own cache stay, because other programs may use them; `hf cache rm` removes those.
    """
    from vit_hub.hub.cache.inventory import find, remove

    chosen = list({item.path: item for name in names for item in find(name)}.values())
    size, gone, left = 0, [], []
    for item in chosen:
        freed = item.size
        if remove(item):
            size += freed
            gone.append(item)
        else:
            left.append(item)
    if output.json:
        output.document({"removed": [item.path for item in gone], "left": [item.path for item in left]})
        return
    output.lines(str(item.path) for item in gone)
    output.note(f"{amount(size, 'B')} freed")
    for item in left:
        output.warning(
            f"{item.path} was left: it is in Hugging Face's cache, which other programs use, too; `hf cache rm "
            "model/OWNER/NAME` removes it"
        )


@command.command("prune", cls=Verb)
@click.option("--dry-run", is_flag=True, help="Remove nothing; list what would be removed.")
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    help="Keep unfinished downloads that made progress within this many days.",
)
def remove_useless(output: Output, dry_run: bool, days: float) -> None:
    """Remove files that are no longer useful.

    These are unfinished downloads, leftovers of killed processes, files converted by another version of vit-hub,
    programs for other versions of a runtime, and records of files that are gone. Files that another process is working
    on stay.
    """
    from vit_hub.hub.cache.inventory import prune

    found = prune(days=days, dry_run=dry_run)
    size = sum(leftover.size for leftover in found)
    if output.json:
        output.document({"dry_run": dry_run, "size": size, "files": found})
        return
    if output.quiet:
        output.lines(str(leftover.path) for leftover in found)
        return
    if found:
        rows = [(amount(leftover.size, "B"), leftover.reason, str(leftover.path)) for leftover in found]
        output.lines(output.table(("size", "reason", "file"), rows, right=("size",)))
    verb = "would be removed" if dry_run else "removed"
    output.note(f"{count_of(len(found), 'file')} {verb}, {amount(size, 'B')}")


def _day(item: Item) -> str:
    return "missing" if item.used is None else f"{datetime.fromtimestamp(item.used):%Y-%m-%d}"


def _as_data(item: Item) -> dict[str, object]:
    return {
        "name": item.name,
        "kind": item.kind,
        "path": item.path,
        "size": item.size,
        "used": item.used,
        "address": item.delivery.address if item.delivery else None,
        "files": item.files,
    }
