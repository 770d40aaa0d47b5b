"""``vit-hub download``: from names to canonical files on this machine."""

from __future__ import annotations

import click

import vit_hub
from vit_hub.cli.options import Verb, complete_source, offline_option
from vit_hub.cli.output import Output, pass_output

_EPILOG = """\b
Examples:
  vit-hub download vit-b16
  vit-hub download vit-b16 vit-s16 --quiet
  cp "$(vit-hub download vit-b16 -q)" mine.safetensors
"""


@click.command("download", cls=Verb, epilog=_EPILOG)
@click.argument("names", shell_complete=complete_source, nargs=-1, required=True, metavar="NAME...")
@offline_option
@click.option("--force", is_flag=True, help="Convert again even where the cache has the result.")
@pass_output
def command(output: Output, names: tuple[str, ...], offline: bool, force: bool) -> None:
    """Fetch models and print where they are.

    A NAME is a name of the registry, a Hugging Face repository or a URL. Its weights are fetched, verified and
    converted, each once. It gives one line on stdout: the path of the canonical safetensors file in the cache
    (VIT_HUB_CACHE moves the cache).
    """
    found = []
    for name in names:
        path = vit_hub.download(name, offline=offline, force=force, progress=not output.quiet)
        found.append({"name": name, "path": path, "size": path.stat().st_size})
        if not output.json:
            output.lines([str(path)])
    if output.json:
        output.document(found)
