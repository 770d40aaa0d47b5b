"""``vit-hub push``: publish weights on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_hub.cli.options import Verb, complete_source, offline_option, sign_option, source_format_option
from vit_hub.cli.output import Output
from vit_hub.cli.settings import set_option
from vit_hub.hub.model_card import PUBLISHED_FORMATS

if TYPE_CHECKING:
    from vit_hub.hub.publish import Package

_EPILOG = """\b
Examples:
  vit-hub push fine-tuned.safetensors me/my-vit --license apache-2.0
  vit-hub push B_16.npz me/vit-b16 --to timm --license apache-2.0 --dry-run
  vit-hub push vit-b16 me/vit-b16 --to hf --private
  vit-hub push vit-b16 me/vit-b16 --to hf --sign private.pem
  vit-hub push b16_hf/ me/vit-b16 --revision trial          a folder as it is, to a branch
"""


@click.command("push", cls=Verb, short_help="Publish a model on the Hugging Face Hub.", epilog=_EPILOG)
@click.argument("source", shell_complete=complete_source, metavar="SRC")
@click.argument("repo", metavar="REPO")
@click.option(
    "--to",
    type=click.Choice(PUBLISHED_FORMATS),
    help="Layout of the repository: vit-hub's own file, or the folder that timm or transformers loads. By default a "
    "folder in one of these layouts is pushed as it is, and anything else as canonical.",
)
@click.option("--license", metavar="NAME", help="Licence of the weights, if the source does not state it.")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch instead of main; it is created if needed.")
@click.option("--message", help="Commit message.")
@sign_option("Sign all files, the card included, with this private key (PEM): model.sig is pushed, too.")
@click.option("--dry-run", is_flag=True, help="Send nothing; print the files, their sizes, and the model card.")
@source_format_option
@set_option
@offline_option
def command(
    output: Output,
    source: str,
    repo: str,
    to: str | None,
    license: str | None,
    private: bool,
    revision: str | None,
    message: str | None,
    key: Path | None,
    dry_run: bool,
    format: str | None,
    overrides: dict[str, Any],
    offline: bool,
) -> None:
    """Publish a model to a Hugging Face Hub repository.

    SRC is anything that `vit-hub convert` takes. REPO is owner/name; it is created if it does not exist. A model card
    (README.md) is added, with the origin, licence and preprocessing of the weights and how to load them; a README.md
    that the folder already has is kept. Log in first with `hf auth login`, or set HF_TOKEN.

    One line goes to stdout: the address of the repository.
    """
    from vit_hub.hub.publish import package, push, signed_package
    from vit_hub.hub.signing import public_key
    from vit_hub.progress import byte_bar

    if key is not None:
        public_key(key)  # which refuses now what could not sign what is converted first
    shown = not (output.quiet or output.json)
    with (
        tempfile.TemporaryDirectory(prefix="vit-hub-push-") as folder,
        tempfile.TemporaryDirectory(prefix="vit-hub-push-") as signing,
    ):
        with byte_bar("converting", None, show=shown) as advance:
            packed = package(
                source,
                repo,
                Path(folder),
                to=to,
                license=license,
                format=format,
                overrides=overrides,
                offline=offline,
                progress=advance,
            )
        if key is not None:
            packed = signed_package(packed, Path(signing), key)
        for text in packed.warnings:
            output.warning(text)
        data = {**_facts(packed), "revision": revision or "main", "private": private}
        if dry_run:
            if output.json:
                output.document({**data, "card": packed.card})
            else:
                output.lines(_preview(output, packed))
            return
        pushed = push(packed, private=private, revision=revision, message=message, progress=shown)
    if output.json:
        output.document({**data, "url": pushed.url, "commit": pushed.commit})
        return
    output.lines([pushed.url])
    output.note(f'vit_hub.load("{repo}") loads it')


def _facts(packed: Package) -> dict[str, Any]:
    return {
        "repo": packed.repo,
        "layout": packed.format,
        "license": packed.license,
        "restricted": packed.restricted,
        "files": [{"name": name, "size": size} for name, size in packed.sizes.items()],
        "left_out": packed.left_out,
    }


def _preview(output: Output, packed: Package) -> list[str]:
    rows = [(name, f"{size:,}") for name, size in packed.sizes.items()]
    lines = [
        output.heading(packed.repo),
        *output.fields([("layout", packed.format), ("licence", packed.license)]),
        "",
        *output.table(("file", "bytes"), rows, right=("bytes",)),
    ]
    if packed.left_out:
        lines += ["", output.heading("Left out of the folder"), *output.paragraphs(packed.left_out)]
    return [*lines, "", output.heading("Model card"), *packed.card.splitlines()]
