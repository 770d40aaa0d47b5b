"""``vit-hub download``: fetch models and print the paths of their canonical files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.options import Verb, complete_source, lockfile_option, offline_option, revision_option
from vit_hub.cli.output import Output, count_of
from vit_hub.registry import UNKNOWN_LICENSE

if TYPE_CHECKING:
    from vit_hub.hub.plan import Plan, PlannedSource

_EPILOG = """\b
Examples:
  vit-hub download vit-b16
  vit-hub download vit-b16 vit-s16 --dry-run                  list what would be fetched, and from where
  vit-hub download timm/vit_base_patch14_dinov2.lvd142m       a Hugging Face repository
  vit-hub download someone/vit --revision v2                  a branch, tag or commit of it
  vit-hub download hf://someone/vit@v2/weights/b16.npz        one file of a repository
  vit-hub download augreg:B_16-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0
  vit-hub download https://example.org/vit.pth
  vit-hub download --locked                                   exactly the files in vit-hub.lock
  cp "$(vit-hub download vit-b16 -q)" mine.safetensors
"""


@click.command("download", cls=Verb, short_help="Download models.", epilog=_EPILOG)
@click.argument("names", shell_complete=complete_source, nargs=-1, metavar="NAME...")
@revision_option
@click.option("--locked", is_flag=True, help="Fetch exactly the files in the lock file, by default for all its models.")
@lockfile_option("Lock file for --locked.")
@click.option("--dry-run", is_flag=True, help="Open no connection; print what would be fetched.")
@offline_option
@click.option("--force", is_flag=True, help="Convert again even if the result is cached.")
def command(
    output: Output,
    names: tuple[str, ...],
    revision: str | None,
    locked: bool,
    lockfile: Path | None,
    dry_run: bool,
    offline: bool,
    force: bool,
) -> None:
    """Download models, verify and convert them, and print their paths.

    A NAME is a registry name, a Hugging Face repository or file, a URL, or augreg: followed by the name of an AugReg
    file. Each model is fetched and converted once. One line per model goes to stdout: the path of the canonical
    safetensors file in the cache (VIT_HUB_CACHE moves the cache). Licence, terms and size are shown on stderr before
    anything is fetched.
    """
    from vit_hub.hub.fetch import is_offline
    from vit_hub.hub.lockfile import LOCKFILE, read_lock
    from vit_hub.hub.plan import plan

    if lockfile and not locked:
        raise click.UsageError("--lockfile is for --locked")
    if locked and revision:
        raise click.UsageError("--revision does not go with --locked: the lock file says which")
    if not (names or locked):
        raise click.MissingParameter(param_hint="'NAME...'", param_type="argument")
    if locked:
        lockfile = lockfile or LOCKFILE
        names = names or tuple(read_lock(lockfile))
    found, lines = [], list[str]()
    for name in names:
        planned = plan(name, revision=revision, lockfile=lockfile)
        data = _facts(planned)
        if dry_run:
            found.append({**data, **{key: getattr(planned, key) for key in ("converted", "mirror", "sources")}})
            lines += [*([""] if lines else []), *_plan_lines(output, planned)]
            continue
        if planned.fetched_from and not is_offline(offline):
            output.announce(_announcement(planned, planned.fetched_from))
        path = vit_hub.download(
            name,
            revision=revision,
            locked=lockfile or False,
            offline=offline,
            force=force,
            progress=not (output.quiet or output.json),
        )
        found.append({**data, "path": path, "size": path.stat().st_size})
        if not output.json:
            output.lines([str(path)])
    if output.json:
        output.document(found)
    elif dry_run:
        output.lines(lines)


def _facts(planned: Plan) -> dict[str, Any]:
    return {
        "name": planned.name,
        "id": planned.id,
        "license": planned.license,
        "restricted": planned.restricted,
        "gated": planned.sources[0].gated,
    }


def _announcement(planned: Plan, source: PlannedSource) -> str:
    """Describe in one line what is about to be fetched, and under which terms."""
    size = f", {count_of(source.size, 'byte')}" if source.size else ""
    first = f"the mirror {planned.mirror} or " if planned.mirror else ""
    name = planned.id or planned.name
    place = f"; from {first}{source.address}" if first or source.address != name else ""
    return f"{name}: {'; '.join(_terms(planned, source))}{place}{size}"


def _terms(planned: Plan, source: PlannedSource) -> Iterator[str]:
    if planned.license in (None, UNKNOWN_LICENSE):
        yield "licence not known here" + (f", see {source.page}" if source.page else "")
    else:
        yield f"licence {planned.license}"
    if planned.restricted:
        yield "restricted: not an open licence, read its terms before use"
    if source.gated:
        yield f"gated: log in and accept the terms at {source.page}"


def _plan_lines(output: Output, planned: Plan) -> Iterator[str]:
    yield output.heading(planned.id or planned.name)
    facts = {
        "terms": "; ".join(_terms(planned, planned.sources[0])),
        "converted": planned.converted or "not in the cache, as far as is known",
        "asked first": planned.mirror and f"the mirror {planned.mirror}",
    }
    yield from output.fields(facts.items())
    for number, source in enumerate(planned.sources, 1):
        yield from output.fields(_source_rows(number, source))


def _source_rows(number: int, source: PlannedSource) -> Iterator[tuple[str, object]]:
    yield f"{number}. source", source.address
    facts = {
        "revision": source.revision,
        "asks for": ", ".join(source.files),
        "size": count_of(source.size, "byte") if source.size else "not known before it is fetched",
        "sha256": source.sha256,
        "gated": source.gated and f"log in and accept the terms at {source.page}",
        "cached": source.cached or ("no" if source.refused else "no: it would be fetched"),
        "refused": source.refused and "nothing pins its sha256, and --require-hashes asks for that",
    }
    yield from ((f"   {name}", fact) for name, fact in facts.items())
