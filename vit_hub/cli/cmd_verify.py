"""``vit-hub verify``: re-check the hashes of the files on this machine, or signatures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

from vit_hub.cli.failures import DIFFERENT, error_data
from vit_hub.cli.options import Verb, complete_source, lockfile_option
from vit_hub.cli.output import Output, amount, count_of

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NOT_VERIFIED = {"path": None, "kind": None, "signer": None, "fingerprint": None, "covered": (), "uncovered": ()}
_EPILOG = """\b
Examples:
  vit-hub verify                                all files
  vit-hub verify vit-b16 --lockfile vit-hub.lock
  vit-hub verify --locked                       the files of a project, all of which must be there
  vit-hub verify -q || echo "something is wrong"
  vit-hub verify --signature out/ --key public.pem
  vit-hub verify --signature model.npz --signature-file signatures/model.sig --certificate-chain authority.pem
"""


@click.command("verify", cls=Verb, short_help="Re-check hashes of cached files, or signatures.", epilog=_EPILOG)
@click.argument("names", shell_complete=complete_source, nargs=-1, metavar="[NAME...]")
@click.option("--locked", is_flag=True, help="Check exactly the files in the lock file, all of which must be there.")
@lockfile_option("Also compare with this lock file.")
@click.option("--signature", is_flag=True, help="Verify the signatures of these models, files and folders instead.")
@click.option("--signature-file", type=_FILE, metavar="FILE", help="Signature of the one file or folder.")
@click.option(
    "--key", "keys", type=_FILE, metavar="FILE", multiple=True, help="Trusted public keys (PEM), for --signature."
)
@click.option(
    "--certificate-chain",
    "certificates",
    type=_FILE,
    metavar="FILE",
    multiple=True,
    help="Certificates of trusted authorities (PEM), for --signature.",
)
@click.option("--identity", metavar="NAME", help="Trusted signer at sigstore, such as an e-mail address.")
@click.option("--identity-provider", metavar="URL", help="Provider of this identity.")
def command(
    output: Output,
    names: tuple[str, ...],
    locked: bool,
    lockfile: Path | None,
    signature: bool,
    signature_file: Path | None,
    keys: tuple[Path, ...],
    certificates: tuple[Path, ...],
    identity: str | None,
    identity_provider: str | None,
) -> int:
    """Re-check the hashes of the files on this machine, without opening a connection.

    Without a NAME, all files: fetched and converted ones, those that vit-hub used in Hugging Face's cache, and those
    that come with vit-hub. Each is compared with the hash pinned by the registry, the one recorded when it was first
    used, and the one in the lock file if there is one. The exit status is 3 if a file has changed or is missing. With
    --quiet, print only these files.

    With --signature, verify who signed models, files or folders, and that they are as they were signed: by one of the
    given keys, authorities or identities, which are then the only ones that count, else by one of VIT_HUB_TRUST. Of a
    folder, no file may be changed, missing or new. The exit status is 3 if that is not so.
    """
    if signature:
        given = {"identity": identity, "issuer": identity_provider}
        return _verify_signatures(output, names, signature_file, [*keys, *certificates], given)
    if signature_file or keys or certificates or identity or identity_provider:
        raise click.UsageError("Keys, certificates, identities and signature files are for --signature.")
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


def _verify_signatures(
    output: Output, names: tuple[str, ...], file: Path | None, trust: list[Path], identity: dict[str, str | None]
) -> int:
    """Verify and print the signatures of models, files and folders; return the exit status."""
    from vit_hub.errors import SignatureError
    from vit_hub.hub.names.locate import local_path
    from vit_hub.hub.resolve import verify_named
    from vit_hub.hub.signing import given_trust, requirement_set_aside, verify_signature

    if not names or (file and len(names) > 1):
        raise click.UsageError("--signature needs the names of models, files or folders; with --signature-file one.")
    trusted = given_trust(trust, **identity)  # wrong keys are no failed verification
    found, wrong = [], []
    for name in names:
        path = local_path(name)
        try:
            if path is None:
                with requirement_set_aside() if trust or any(identity.values()) else nullcontext():
                    signatures = verify_named(name, trusted)
            else:
                signatures = (verify_signature(path, trust=trust, signature=file, **identity),)
            found += [{"name": name, **asdict(signature), "problem": "", "hint": ""} for signature in signatures]
        except SignatureError as error:
            wrong.append(error_data(error))
            found.append({"name": name, **_NOT_VERIFIED, "problem": error.message, "hint": error.hint})
    if output.json:
        output.document(found)
    elif output.quiet:
        output.lines(item["name"] for item in found if item["problem"])
    else:
        for item in (item for item in found if not item["problem"]):
            facts = [
                ("signed by", item["signer"]),
                ("signature", str(item["path"])),
                ("covers", ", ".join(item["covered"])),
                ("leaves out", ", ".join(item["uncovered"]) or "nothing"),
            ]
            output.lines([output.heading(item["name"]), *output.fields(facts)])
    if not output.json:
        for problem in wrong:
            output.error(problem)
    return DIFFERENT if wrong else 0
