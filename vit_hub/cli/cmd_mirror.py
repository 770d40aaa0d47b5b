"""``vit-hub mirror``: a folder of weights for machines without a way to the originals."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb, complete_source, offline_option
from vit_hub.cli.output import Output, amount, pass_output

_EPILOG = """\b
Examples:
  vit-hub mirror /srv/weights vit-b16 google/vit-base-patch16-224
  python -m http.server --directory /srv/weights 8000
  VIT_HUB_MIRROR=http://weights.example:8000 vit-hub download vit-b16
  VIT_HUB_MIRROR=/mnt/usb/weights vit-hub download vit-b16 --offline
"""


@click.command(
    "mirror", cls=Verb, short_help="Put the original files of models into a folder to serve.", epilog=_EPILOG
)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.argument("names", shell_complete=complete_source, nargs=-1, required=True, metavar="NAME...")
@offline_option
@pass_output
def command(output: Output, folder: Path, names: tuple[str, ...], offline: bool) -> None:
    """Put the original files of models into a folder that any web server or disk can offer.

    DIR gets index.json and the files by their sha256, as plain copies; naming more models later extends it. Where
    VIT_HUB_MIRROR is such a folder, or its address, it is asked before the weights' own servers, and what it delivers
    is verified. What it does not have comes from where it always came, with a warning.
    """
    from vit_hub.hub.make_mirror import add_to_mirror

    found = []
    for model in add_to_mirror(folder, names, offline=offline, progress=not output.quiet):
        found.append(model)
        if model.restricted:
            output.warning(f"{model.name}: its licence ({model.license}) may not let you pass the weights on")
    if output.json:
        output.document({"folder": folder, "models": found})
    elif output.quiet:
        output.lines([str(folder)])
    else:
        rows = [
            (model.name, amount(model.size, "B"), amount(model.added, "B"), model.license or "unknown", model.address)
            for model in found
        ]
        output.lines(output.table(("model", "size", "added", "licence", "from"), rows, right=("size", "added")))
        output.note(f"use it with VIT_HUB_MIRROR={folder.absolute()}, or serve it and give its address")
