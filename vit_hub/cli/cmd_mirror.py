"""``vit-hub mirror``: a folder of weights for machines that cannot reach the original servers."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb, complete_source, offline_option, sign_option
from vit_hub.cli.output import Output, amount

_EPILOG = """\b
Examples:
  vit-hub mirror /srv/weights vit-b16 google/vit-base-patch16-224
  vit-hub mirror /srv/weights vit-b16 --sign private.pem
  python -m http.server --directory /srv/weights 8000
  VIT_HUB_MIRROR=http://weights.example:8000 vit-hub download vit-b16
  VIT_HUB_MIRROR=/mnt/usb/weights vit-hub download vit-b16 --offline
"""


@click.command("mirror", cls=Verb, short_help="Copy original files to a folder to serve.", epilog=_EPILOG)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.argument("names", shell_complete=complete_source, nargs=-1, required=True, metavar="NAME...")
@sign_option(
    "Sign each model's files, and the index, with this private key (PEM). A signed mirror needs it for each change."
)
@offline_option
def command(output: Output, folder: Path, names: tuple[str, ...], key: Path | None, offline: bool) -> None:
    """Copy the original files of models to a folder that a web server can serve or a disk can carry.

    DIR gets index.json and plain copies of the files, named by their sha256; more models can be added later. If
    VIT_HUB_MIRROR is such a folder or its address, files are looked for there first, and verified. Files that it does
    not have come from their original servers, with a warning. If VIT_HUB_TRUST is set, the mirror must be signed.
    """
    from vit_hub.hub.make_mirror import add_to_mirror

    found = []
    for model in add_to_mirror(folder, names, key=key, offline=offline, progress=not output.quiet):
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
        output.note(f"set VIT_HUB_MIRROR to {folder.absolute()}, or to its address when it is served")
