"""Publishing weights on Hugging Face's hub: packaged with a model card, then sent in one commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_hub.errors import ConfigError, ModelNotFoundError, VitHubError, first_line
from vit_hub.hub.cache.hashes import sha256_of
from vit_hub.hub.http.failures import check_certificates, explain
from vit_hub.hub.model_card import PUBLISHED_FORMATS, CardFacts, is_open, model_card
from vit_hub.hub.names.address import address
from vit_hub.hub.names.credentials import hide_credentials, without_credentials
from vit_hub.hub.names.locate import locate
from vit_hub.hub.resolve import Resolved, open_resolved, resolve
from vit_hub.hub.signing import FOLDER_SIGNATURE, signature_of
from vit_hub.registry import UNKNOWN_LICENSE, Entry, WeightSource
from vit_hub.untrusted import read_json
from vit_hub.version import __version__

if TYPE_CHECKING:
    from vit_hub.converters.read import Checkpoint

__all__ = ["CARD", "Package", "Pushed", "package", "push", "signed_package"]

CARD = "README.md"
_SIDECARS = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "model.safetensors.index.json",
)
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Package:
    """The files of a repository to publish, on disk.

    Attributes:
        repo: ``owner/name``.
        format: one of :data:`vit_hub.hub.model_card.PUBLISHED_FORMATS`.
        files: name in the repository -> file on disk, without the card.
        card: the text of README.md.
        license: of the weights.
        restricted: it is no open licence.
        left_out: files of the folder that do not belong to the format.
        warnings: for the user.
        title: name of the weights.
    """

    repo: str
    format: str
    files: Mapping[str, Path]
    card: str
    license: str
    restricted: bool
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    title: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, the card included."""
        found = {name: path.stat().st_size for name, path in self.files.items()}
        return {**found, CARD: len(self.card.encode())}


def package(
    source: str | Path,
    repo: str,
    folder: Path,
    *,
    to: str | None = None,
    license: str | None = None,
    format: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    offline: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Package:
    """Package a model as a repository. Nothing is sent.

    Args:
        source: registry name, Hugging Face repository, URL, or local file or folder. A local folder that is in the
            format already is taken as it is.
        repo: ``owner/name``.
        folder: an empty folder for what is converted.
        to: one of :data:`vit_hub.hub.model_card.PUBLISHED_FORMATS`; None: the format of a local folder, else
            ``canonical``.
        license: of the weights, if the source does not state it.
        format: require this format of the source instead of recognizing it.
        overrides: config fields that the source does not tell.
        offline: open no connection for the source.
        progress: called with the bytes written since the last call.

    Raises:
        ConfigError: ``repo`` is not a repository name, or the licence is not known.
        UnsupportedByFormatError: the format cannot express the model.
        VitHubError: the source cannot be fetched or read.
    """
    from vit_hub.converters.write import convert_checkpoint

    _refuse_bad_name(repo)
    resolved = resolve(source, offline=offline, progress=progress is not None)
    ckpt = open_resolved(resolved, format=format, overrides=overrides)
    entry = resolved.entry or _entry_of(ckpt)
    found = _format_of(resolved, ckpt)
    target = to or found or "canonical"
    as_it_is = found == target and not overrides
    kept_card = _own_card(resolved.path / CARD) if as_it_is else None
    chosen, warnings = _license(ckpt, kept_card, license, without_credentials(str(source)))
    restricted = entry.restricted if entry and entry.license == chosen else not is_open(chosen)
    if chosen.lower() == UNKNOWN_LICENSE:
        warnings.append("no licence is stated: make sure that you may publish the weights at all")
    elif restricted:
        warnings.append(f"licence `{chosen}` is not an open one: make sure that its terms allow publishing the weights")
    if as_it_is:
        files, left_out = _own_files(resolved.path, ckpt)
    else:
        warnings += convert_checkpoint(ckpt, folder, to=target, progress=progress).metadata_lost
        files, left_out = {path.name: path for path in sorted(folder.iterdir())}, ()
    facts = _facts(repo, target, resolved, ckpt, entry, chosen, restricted, files, converted=not as_it_is)
    return Package(
        repo=repo,
        format=target,
        files=files,
        card=kept_card or model_card(facts),
        license=chosen,
        restricted=restricted,
        left_out=left_out,
        warnings=tuple(warnings),
        title=ckpt.passport.weights_id or Path(source).name,
    )


def signed_package(packed: Package, folder: Path, key: str | Path) -> Package:
    """Return a package with a signature of all its files, the card included.

    Args:
        packed: result of :func:`package`.
        folder: an empty folder for the signature.
        key: private key in PEM.

    Raises:
        ConfigError, SignatureError: as :func:`vit_hub.sign`.
    """
    card, signature = folder / CARD, folder / FOLDER_SIGNATURE
    card.write_bytes(packed.card.encode())
    signature.write_bytes(signature_of({**packed.files, CARD: card}, packed.repo.rpartition("/")[2], key=key))
    left_out = tuple(name for name in packed.left_out if name != FOLDER_SIGNATURE)
    return replace(packed, files={**packed.files, FOLDER_SIGNATURE: signature}, left_out=left_out)


def _refuse_bad_name(repo: str) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(repo, CARD)  # applies the hub's own rules for names
        if _REPO.fullmatch(repo):
            return
        reason = "the owner is missing"
    except HFValidationError as error:
        reason = first_line(error)
    raise ConfigError(
        f"{repo!r} is not a repository name: {reason}",
        hint="write owner/name, such as your-name/vit-b16, with letters, digits, -, _ and . only",
    )


def _entry_of(ckpt: Checkpoint) -> Entry | None:
    """Return the registry's entry of weights that were converted before."""
    try:
        return locate(ckpt.passport.weights_id)[0] if ckpt.passport.weights_id else None
    except ModelNotFoundError:
        return None


def _format_of(resolved: Resolved, ckpt: Checkpoint) -> str | None:
    """Return the format of a local folder."""
    if resolved.weight_source is not None or not resolved.path.is_dir():
        return None
    family = ckpt.format.partition("-")[0]
    if family != "canonical" and not (resolved.path / "config.json").is_file():
        return None
    names = {file.name for file in ckpt.source.files}
    return (
        family
        if family in PUBLISHED_FORMATS and names & {"model.safetensors", "model.safetensors.index.json"}
        else None
    )


def _own_card(file: Path) -> str | None:
    """Return the text of a folder's own card, if it has one.

    Raises:
        ConfigError: it is not in UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not text in UTF-8", hint="save it as UTF-8, or move it away") from error


def _own_files(folder: Path, ckpt: Checkpoint) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the files of a folder that belong to its format, and the names of the others."""
    wanted = {*_SIDECARS, *(file.name for file in ckpt.source.files)}
    present = sorted(path for path in folder.iterdir() if path.name != CARD)
    files = {
        path.name: path
        for path in present
        if path.is_file() and (path.name in wanted or path.stem.upper() in ("LICENSE", "LICENCE", "NOTICE"))
    }
    return files, tuple(path.name for path in present if path.name not in files)


def _license(ckpt: Checkpoint, card: str | None, given: str | None, source: str) -> tuple[str, list[str]]:
    """Return the licence to publish under, and warnings.

    Raises:
        ConfigError: it is not known, or the folder's own card states another.
    """
    known = ckpt.passport.license if ckpt.passport.license != UNKNOWN_LICENSE else ""
    if card is not None:
        from huggingface_hub import ModelCard

        data = ModelCard(card, ignore_metadata_errors=True).data
        stated = str(data.get("license_name") or data.get("license") or "")
        if not stated:
            raise ConfigError(
                f"{source}: its {CARD} states no licence",
                hint=f"write license: NAME between the --- lines at the top of {CARD}, or move that file away",
            )
        if given and given.lower() != stated.lower():
            raise ConfigError(
                f"{source}: its {CARD} says licence {stated}, and --license says {given}",
                hint=f"{CARD} is pushed as it is: change it there, or move that file away",
            )
        return stated, []
    if not (given or known):
        raise ConfigError(
            f"{source}: the licence of the weights is not known",
            hint='say it: --license apache-2.0, or whatever it is; "unknown" publishes them without',
        )
    if given and known and given.lower() != known.lower():
        return given, [f"licence {given} takes the place of {known}, under which the weights were published"]
    return given or known, []


def _facts(
    repo: str,
    format: str,
    resolved: Resolved,
    ckpt: Checkpoint,
    entry: Entry | None,
    license: str,
    restricted: bool,
    files: Mapping[str, Path],
    *,
    converted: bool,
) -> CardFacts:
    passport, origin = ckpt.passport, resolved.weight_source
    sources = list(passport.source)
    if any("sha256" not in item for item in sources):
        sources = [
            {"file": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)} for path in ckpt.source.files
        ]
    base = origin.repo if origin and origin.repo != repo else None
    hf_class = ""
    if format == "hf":
        hf_class = (read_json(files["config.json"], finite=False).get("architectures") or [""])[0]
    return CardFacts(
        repo=repo,
        format=format,
        config=ckpt.config,
        license=license,
        restricted=restricted,
        weights_id=passport.weights_id,
        address=address(origin) if origin else "",
        base_model=base,
        source_format=passport.format,
        source_files=sources,
        converter=__version__ if converted else passport.converter if format == "canonical" else "",
        data=entry.data if entry else {},
        preprocess=passport.preprocess,
        labels=passport.labels if isinstance(passport.labels, str) else None,
        hf_class=hf_class,
    )


_CONNECTION = "check the connection, and HF_ENDPOINT if it is set"
_NOTHING_SENT = "nothing of it is in the repository"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """``url`` of the repository, ``revision`` (the branch) and ``commit`` that was made."""

    url: str
    revision: str
    commit: str


def push(
    packed: Package,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    progress: bool = False,
) -> Pushed:
    """Send a package in one commit; make the repository or branch if missing.

    Args:
        packed: result of :func:`package`.
        private: make the repository private; an existing one must be private.
        revision: the branch; None: the main one.
        message: of the commit.
        progress: show progress bars on a terminal.

    Raises:
        VitHubError: the user is not logged in or may not write there, or the server refuses; the hint has the remedy.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    from vit_hub.hub.fetch import is_offline
    from vit_hub.hub.huggingface import hub_bars

    if is_offline():
        raise VitHubError(
            f"{packed.repo}: offline mode is on, and pushing needs a connection",
            hint="unset VIT_HUB_OFFLINE, HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE",
        )
    if get_token() is None:
        raise VitHubError(
            "not logged in to Hugging Face",
            hint="log in with `hf auth login`, or set HF_TOKEN to a token that may write",
        )
    api = HfApi(library_name="vit-hub", library_version=__version__)
    additions = [CommitOperationAdd(name, str(path)) for name, path in packed.files.items()]
    additions.append(CommitOperationAdd(CARD, packed.card.encode()))
    with _refusals(packed.repo), hub_bars(progress):
        url = hide_credentials(str(api.create_repo(packed.repo, private=private or None, exist_ok=True)))
        if private and not api.model_info(packed.repo).private:
            raise VitHubError(
                f"{packed.repo} exists already, and is public",
                hint="make it private in its settings first, or leave out --private",
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(packed.repo, branch=revision, exist_ok=True)
        commit = api.create_commit(
            packed.repo,
            additions,
            commit_message=message or f"{packed.title}, with vit-hub {__version__}",
            revision=revision,
        )
    return Pushed(url=url, revision=revision or "main", commit=commit.oid)


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """Turn the server's refusals, and failed connections, into errors of one line with a remedy."""
    from vit_hub.hub.huggingface import page_of

    try:
        check_certificates()
        yield
    except VitHubError:
        raise
    # The exceptions, and their HTTP client, differ between versions of huggingface_hub.
    except Exception as error:
        reasons = {
            401: (
                "Hugging Face does not accept the token",
                "log in again with `hf auth login`, or set HF_TOKEN to a token that may write",
            ),
            403: (
                "you may not write there",
                "is the owner you, or an organisation that you are in? The token must be one that may write: see "
                "https://huggingface.co/settings/tokens",
            ),
            404: ("there is no such repository, or you may not see it", "check the name, and that the token may write"),
        }
        failure = explain(error, page_of(WeightSource(kind="hf", format="", repo=repo)))
        words = _words(error) if _status(error) else failure.message
        unknown = (f"it cannot be pushed: {words}", f"{failure.hint or _CONNECTION}; {_NOTHING_SENT}")
        reason, hint = reasons.get(_status(error) or 0, unknown)
        raise VitHubError(f"{repo}: {reason}", hint=hint) from error


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of the server's refusal, which may be the cause of another exception."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _words(error: BaseException) -> str:
    return hide_credentials(" ".join(str(error).split())) or type(error).__name__
