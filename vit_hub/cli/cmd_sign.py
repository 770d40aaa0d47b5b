"""``vit-hub sign``: sign models."""

from __future__ import annotations

from pathlib import Path

import click

from vit_hub.cli.options import Verb
from vit_hub.cli.output import Output

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_EPILOG = """\b
Examples:
  openssl ecparam -name prime256v1 -genkey -noout -out private.pem
  openssl pkey -in private.pem -pubout -out public.pem
  vit-hub sign out/ --key private.pem                   writes out/model.sig
  vit-hub sign model.npz --key private.pem              writes model.npz.sig
  vit-hub verify --signature out/ --key public.pem
  vit-hub sign out/ --key private.pem --certificate signer.pem --chain authority.pem
"""


@click.command("sign", cls=Verb, short_help="Sign a model.", epilog=_EPILOG)
@click.argument("path", metavar="DIR|FILE", type=click.Path(exists=True, path_type=Path))
@click.option("--key", type=_FILE, metavar="FILE", help="Private key (PEM) of the curve P-256, P-384 or P-521.")
@click.option("--certificate", type=_FILE, metavar="FILE", help="Certificate (PEM) of the key, kept in the signature.")
@click.option(
    "--chain", type=_FILE, metavar="FILE", multiple=True, help="Certificates (PEM) between it and a trusted authority."
)
@click.option("--sigstore", is_flag=True, help="Sign with an identity instead of a key, through sigstore's servers.")
@click.option("--identity-token", metavar="TOKEN", help="Token of the identity; by default the machine's, or a login.")
@click.option("--signature-file", type=click.Path(path_type=Path), metavar="FILE", help="Signature to write.")
def command(
    output: Output,
    path: Path,
    key: Path | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    sigstore: bool,
    identity_token: str | None,
    signature_file: Path | None,
) -> None:
    """Sign a model in the format of OpenSSF's model signing.

    The signature is written to model.sig in a folder, of all files there, or to FILE.sig beside a file. The password of
    a key is taken from VIT_HUB_SIGN_PASSWORD. model-signing is needed: pip install 'vit-hub[sign]'.

    One line goes to stdout: the path of the signature.
    """
    from vit_hub.hub.signing import sign

    if (key is None) != sigstore:
        raise click.UsageError("Give the --key to sign with, or --sigstore.")
    written = sign(
        path,
        key=key,
        certificate=certificate,
        chain=chain,
        sigstore=sigstore,
        identity_token=identity_token,
        signature=signature_file,
    )
    if output.json:
        output.document({"path": path, "signature": written})
    else:
        output.lines([str(written)])
