"""Signatures of models in OpenSSF's format, made and verified by its library, ``model_signing``.

A signature is a file of its own: ``model.sig`` in a folder lists the sha256 of every file there, ``FILE.sig`` beside a
file has that of the file. The library signs, and says which list was signed; files are compared with that list here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypedDict

from vit_hub.converters.containers import atomic_path
from vit_hub.converters.containers.atomic import is_draft
from vit_hub.converters.containers.hashing import file_sha256
from vit_hub.converters.containers.together import finish_interrupted
from vit_hub.errors import CheckpointError, ConfigError, SignatureError, VitHubError, first_line
from vit_hub.hub.names.wellformed import is_safe_name
from vit_hub.untrusted import SIGNATURE_BYTES, Matching, conform, parse_json, read_bytes, usable_path

__all__ = [
    "FOLDER_SIGNATURE",
    "TRUST",
    "Signature",
    "Signed",
    "Trust",
    "file_signature",
    "find_signature",
    "given_trust",
    "open_signature",
    "public_key",
    "read_signature",
    "read_trust",
    "required_trust",
    "requirement_set_aside",
    "sign",
    "signature_of",
    "unsigned",
    "verify_signature",
]

FOLDER_SIGNATURE = "model.sig"
"""The signature of the folder that it is in."""
TRUST = "VIT_HUB_TRUST"
"""The environment variable that names the trusted keys."""
_SET_ASIDE: ContextVar[bool] = ContextVar("_SET_ASIDE", default=False)
_PASSWORD = "VIT_HUB_SIGN_PASSWORD"
_SUFFIX = ".sig"
_ONE_FILE = "."  # its name in its own signature
_NOT_MODEL = (".git", ".gitattributes", ".github", ".gitignore", ".cache/huggingface")  # of git and `hf download`
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\r?\n?", re.DOTALL)
_LONGEST_PEM = 1 << 20
_MOST_NAMED = 5
_MOST_CERTIFICATES = 16
_DAMAGED = "the signature is damaged or malicious: fetch it again, or sign the files again with `vit-hub sign`"
_KEY_HINT = (
    "give a private key in PEM of the curve P-256, P-384 or P-521, and its password, if it has one, in "
    f"password= or {_PASSWORD}; `openssl ecparam -name prime256v1 -genkey -noout -out private.pem` makes one"
)
_TRUST_HINT = (
    "give public keys (`openssl pkey -in private.pem -pubout -out public.pem`) or certificates of authorities in PEM"
)
_CERTIFICATE_HINT = "give the certificate of this key, and its chain, in PEM; the key must have no password"
_AGAIN = "fetch the files again; if they are yours and right, sign them again with `vit-hub sign`"
_KINDS = {
    "publicKey": "key",
    "x509CertificateChain": "certificate",
    "certificate": "sigstore",
}


class _Envelope(TypedDict):
    payload: str
    payloadType: str
    signatures: list[dict[str, Any]]


class _Bundle(TypedDict):
    mediaType: str
    verificationMaterial: dict[str, Any]
    dsseEnvelope: _Envelope


class _Resource(TypedDict):
    name: str
    algorithm: str
    digest: Annotated[str, Matching("[0-9a-f]{2,256}", "a hash in hex digits")]


class _Serialization(TypedDict):
    method: str
    hash_type: str


class _Predicate(TypedDict):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(TypedDict):
    predicateType: str
    predicate: _Predicate


@dataclass(frozen=True)
class Trust:
    """Keys and certificates whose signatures are accepted.

    Attributes:
        origin: the files that they are from, or the identity, for messages.
        keys: public keys by their fingerprints: the sha256 of the text in PEM.
        certificates: of authorities, in PEM.
        identity: of the signer at sigstore, such as an e-mail address.
        issuer: the address of the provider of this identity.
    """

    origin: str
    keys: Mapping[str, bytes]
    certificates: tuple[bytes, ...] = ()
    identity: str = ""
    issuer: str = ""


@dataclass(frozen=True)
class Signature:
    """A signature that was verified.

    Attributes:
        path: its file.
        kind: ``key``, ``certificate`` or ``sigstore``.
        signer: who signed, in words: the key, the certificate's subject, or the identity.
        fingerprint: sha256 of the public key in PEM, or of the certificate; empty for sigstore.
        covered: the files that it signs, relative to its folder; ``.`` is the file that it stands beside.
        uncovered: files and folders inside of the folder that it leaves out.
    """

    path: Path
    kind: str
    signer: str
    fingerprint: str
    covered: tuple[str, ...]
    uncovered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signed:
    """Statement of a verified signature: ``hashes`` of files by name, and names that it leaves out of its folder."""

    signature: Signature
    hashes: Mapping[str, str]
    left_out: tuple[str, ...]

    def check(self, file: Path, sha256: str, folder: Path | None = None) -> str:
        """Return the name under which a file with this hash is signed.

        Args:
            file: its place.
            sha256: of its contents.
            folder: that the names are relative to; None: that of the signature.

        Raises:
            SignatureError: it is not among the signed files, or is another one.
        """
        name = _ONE_FILE if _ONE_FILE in self.hashes else self._name(file, folder)
        signer, path = self.signature.signer, self.signature.path
        if name not in self.hashes:
            raise SignatureError(
                f"{file}: not signed: {path} by {signer} does not list it",
                hint="sign the folder again with `vit-hub sign`, or remove the file",
            )
        if self.hashes[name] != sha256:
            raise SignatureError(
                f"{file}: not the signed file: its sha256 is {sha256}, {signer} signed {self.hashes[name]}",
                hint=_AGAIN,
            )
        return name

    def check_missing(self, file: Path) -> None:
        """Refuse that a file is not there, if it is among the signed ones: what is read would mean something else.

        Raises:
            SignatureError: it is.
        """
        if self._name(file) in self.hashes:
            raise SignatureError(
                f"{file}: missing, while {self.signature.path} by {self.signature.signer} lists it", hint=_AGAIN
            )

    def _name(self, file: Path, folder: Path | None = None) -> str:
        root, place = (folder or self.signature.path.parent).absolute(), file.absolute()
        return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(file)


def sign(
    path: str | Path,
    *,
    key: str | Path | None = None,
    password: str | None = None,
    certificate: str | Path | None = None,
    chain: Sequence[str | Path] = (),
    sigstore: bool = False,
    identity_token: str | None = None,
    signature: str | Path | None = None,
) -> Path:
    """Sign a file, or all files of a folder, in the format of OpenSSF's model signing.

    Args:
        path: of a folder or a file.
        key: private key in PEM, of the curve P-256, P-384 or P-521.
        password: of the key; None: ``VIT_HUB_SIGN_PASSWORD``.
        certificate: of the key, in PEM: it goes into the signature, with ``chain``.
        chain: PEM files of the authorities between the certificate and one that is trusted.
        sigstore: sign with an identity instead of a key, through sigstore's servers.
        identity_token: for sigstore; None: that of the machine, else a page of the browser asks for it.
        signature: the file to write; None: ``model.sig`` in a folder, ``FILE.sig`` beside a file.

    Returns:
        The signature's file.

    Raises:
        ConfigError: the key, certificate or choice of them cannot be used, or ``model_signing`` is not installed.
        CheckpointError: there is no such file, or the signature cannot be written.
        SignatureError: it cannot be signed.
    """
    path = usable_path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder", hint="check the path")
    if (key is not None) == sigstore or (sigstore and certificate) or (chain and not certificate):
        raise ConfigError(
            f"{path}: sign with a key, with a key and its certificate, or with sigstore",
            hint="give key= (--key), or sigstore=True (--sigstore) alone; chain= (--chain) needs a certificate",
        )
    if identity_token and not sigstore:
        raise ConfigError(f"{path}: an identity token is for sigstore", hint="leave it out, or sign with sigstore")
    signer = _sigstore_signer(identity_token) if sigstore else _key_signer(key, password, certificate, chain)
    target = usable_path(signature) if signature is not None else _place_of(path)
    if not path.is_dir():
        content = _signed(signer, {_ONE_FILE: path}, path.name, ())
    else:
        left_out = (*dict.fromkeys((FOLDER_SIGNATURE, *_own(path, target))), *_NOT_MODEL)
        finish_interrupted(path)
        # What killed writers left goes with the next one.
        names = {name for name in _names(path, left_out) if not is_draft(name)}
        if not names:
            raise CheckpointError(f"{path}: an empty folder", hint="give the folder of a model")
        content = _signed(signer, {name: path / name for name in names}, path.resolve().name, left_out)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return target


def signature_of(files: Mapping[str, Path], title: str, *, key: str | Path, password: str | None = None) -> bytes:
    """Return the signature of files that need not lie in one folder.

    Args:
        files: name in the signature -> file; ``.`` stands for the one file that a signature is beside.
        title: of the model; it proves nothing.
        key: private key in PEM.
        password: of the key; None: ``VIT_HUB_SIGN_PASSWORD``.

    Raises:
        ConfigError, SignatureError: as :func:`sign`.
    """
    left_out = () if _ONE_FILE in files else (FOLDER_SIGNATURE, *_NOT_MODEL)
    return _signed(_key_signer(key, password), files, title, left_out)


def public_key(key: str | Path, password: str | None = None) -> Trust:
    """Return the public half of a private key, to verify what it signed, or to know beforehand that it can sign.

    Raises:
        ConfigError: it cannot be read, or cannot sign, or ``model_signing`` is not installed.
    """
    _key_signer(key, password)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with _explained(f"{key}: not a private key that can be read", ConfigError, _KEY_HINT):
        secret = _password(password)
        text = _pem(load_pem_private_key(Path(key).read_bytes(), secret).public_key())
    return Trust(str(key), {hashlib.sha256(text).hexdigest(): text})


def read_trust(files: Iterable[str | Path], *, identity: str = "", issuer: str = "") -> Trust:
    """Read trusted public keys and certificates of authorities.

    Args:
        files: in PEM; each may have several of both.
        identity: trusted at sigstore.
        issuer: of the identity.

    Raises:
        ConfigError: a file cannot be read, has neither, or a private key.
    """
    _library()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from cryptography.x509 import load_pem_x509_certificate

    if bool(identity) != bool(issuer):
        raise ConfigError(
            "an identity at sigstore is of a provider: one of the two is missing",
            hint="give both: identity= and issuer= (--identity and --identity-provider)",
        )
    names = [Path(file) for file in files]
    keys: dict[str, bytes] = {}
    certificates = []
    for file in names:
        with _explained(f"{file}: not a file of public keys or certificates", ConfigError, _TRUST_HINT):
            text = read_bytes(file, most=_LONGEST_PEM)
            blocks = [(found[1], found[0]) for found in _PEM.finditer(text)]
            if not blocks or len(blocks) != text.count(b"-----BEGIN ") or len(text) > _LONGEST_PEM:
                raise ValueError(f"{len(blocks)} of its {text.count(b'-----BEGIN ')} entries can be read")
            for label, block in blocks:
                if label == b"CERTIFICATE":
                    load_pem_x509_certificate(block)
                    certificates.append(block)
                elif label == b"PUBLIC KEY":
                    key = load_pem_public_key(block)
                    if not isinstance(key, EllipticCurvePublicKey):
                        raise ValueError("it has a key that is not of an elliptic curve, with which no model is signed")
                    plain = _pem(key)
                    with _files(key=plain) as place:  # refuses a key of a curve that signs no models
                        _library().verifying.Config().use_elliptic_key_verifier(public_key=place["key"])
                    keys[hashlib.sha256(plain).hexdigest()] = plain
                else:
                    raise ValueError(f"it has {label.decode().lower()!r}, which does not belong there")
    origin = ", ".join((*map(str, names), *filter(None, [identity])))
    return Trust(origin, keys, tuple(certificates), identity, issuer)


def required_trust() -> Trust | None:
    """Return the keys that ``VIT_HUB_TRUST`` requires; None: no signature is required.

    Raises:
        ConfigError: its file cannot be used.
    """
    file = os.environ.get(TRUST) if not _SET_ASIDE.get() else ""
    return read_trust([os.path.expanduser(file)]) if file else None  # noqa: PTH111


@contextmanager
def requirement_set_aside() -> Iterator[None]:
    """Ignore ``VIT_HUB_TRUST`` in the ``with`` body, in which signatures are verified with other keys."""
    token = _SET_ASIDE.set(True)
    try:
        yield
    finally:
        _SET_ASIDE.reset(token)


def find_signature(file: Path) -> Path | None:
    """Return the signature of a file: beside it, else of the nearest folder around it that has one."""
    folders = (folder / FOLDER_SIGNATURE for folder in file.absolute().parents)
    return next((path for path in (file_signature(file), *folders) if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):  # beside a file whose name is as long as names may be
        return path.is_file()
    return False


def _place_of(path: Path) -> Path:
    """Return the place of the signature of a folder or a file."""
    return path / FOLDER_SIGNATURE if path.is_dir() else file_signature(path)


def _own(folder: Path, signature: Path) -> list[str]:
    """Return the name of a folder's signature in it, if it is there."""
    root, place = folder.absolute(), signature.absolute()
    return [place.relative_to(root).as_posix()] if place.is_relative_to(root) else []


def file_signature(file: Path) -> Path:
    """Return the place of the signature of one file."""
    return file.with_name(file.name + _SUFFIX)


def unsigned(path: Path, trust: Trust) -> SignatureError:
    """Return the error for what has no signature."""
    return SignatureError(
        f"{path}: not signed, and a signature by one of {trust.origin} is required",
        hint="fetch its signature (model.sig in its folder, or FILE.sig beside it), take it from a signed mirror "
        "(`vit-hub mirror DIR NAME --sign private.pem`), or sign what you have checked: `vit-hub sign PATH --key "
        "private.pem`",
    )


def verify_signature(
    path: str | Path,
    *,
    trust: str | Path | Sequence[str | Path] | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    signature: str | Path | None = None,
) -> Signature:
    """Verify the signature of a folder and all files in it, or that of a file.

    Args:
        path: of a folder: no file may be changed, missing or new, but for those that the signature leaves out. Or of a
            file, signed by itself or with the folder that it is in.
        trust: PEM files of public keys, or of certificates of authorities; None: ``VIT_HUB_TRUST``.
        identity: of the signer at sigstore, which is asked for its keys.
        issuer: of that identity, such as ``https://accounts.google.com``.
        signature: its file; None: ``model.sig`` in the folder, ``FILE.sig`` beside the file, or ``model.sig`` in the
            nearest folder around it.

    Raises:
        SignatureError: there is none, it is not by a trusted key, or the files are not the signed ones.
        ConfigError: nothing says who is trusted, or the keys cannot be read.
        CheckpointError: there is no such file.
    """
    path = usable_path(path)
    trusted = given_trust(trust, identity, issuer)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder", hint="check the path")
    place = usable_path(signature) if signature is not None else None
    if not path.is_dir():
        place = place or find_signature(path)
        if place is None:
            raise unsigned(path, trusted)
        signed = open_signature(place, trusted)
        return replace(signed.signature, covered=(signed.check(path, file_sha256(path)),))
    place = place or path / FOLDER_SIGNATURE
    if not place.is_file():
        raise unsigned(path, trusted)
    signed = open_signature(place, trusted)
    own = _own(path, place)
    signer = signed.signature.signer
    if extra := sorted(_names(path, (*own, *signed.left_out)) - signed.hashes.keys()):
        raise SignatureError(
            f"{path}: not among the {len(signed.hashes)} files that {signer} signed: {_some(extra)}",
            hint="remove what does not belong to the model, or sign the folder again with `vit-hub sign`",
        )
    if missing := sorted(name for name in signed.hashes if not (path / name).is_file()):
        raise SignatureError(f"{path}: missing, and signed by {signer}: {_some(missing)}", hint=_AGAIN)
    for name in sorted(signed.hashes):
        signed.check(path / name, file_sha256(path / name), path)
    uncovered = [name for name in signed.left_out if name not in own and (path / name).exists()]
    return replace(signed.signature, uncovered=tuple(sorted(uncovered)))


def given_trust(
    trust: str | Path | Sequence[str | Path] | None, identity: str | None = None, issuer: str | None = None
) -> Trust:
    """Return the keys that a caller trusts, else those of ``VIT_HUB_TRUST``.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    files = [trust] if isinstance(trust, (str, Path)) else list(trust or ())
    if files or identity or issuer:
        return read_trust(files, identity=identity or "", issuer=issuer or "")
    found = required_trust()
    if found is None:
        raise ConfigError(
            "nobody is trusted, so that no signature proves anything",
            hint=f"give public keys or certificates: trust= (--key, --certificate-chain), or set {TRUST}",
        )
    return found


def open_signature(path: Path, trust: Trust) -> Signed:
    """Verify who made a signature. The files that it lists are not looked at.

    Raises:
        SignatureError: it cannot be read, is damaged, or is not by one of the trusted.
    """
    try:
        content = read_bytes(path, most=SIGNATURE_BYTES.most)
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror or error}", hint=_AGAIN) from error
    return read_signature(content, path, trust)


def read_signature(content: bytes, path: Path, trust: Trust) -> Signed:
    """Verify who made a signature; see :func:`open_signature`.

    Args:
        content: of its file.
        path: of its file, for messages.
        trust: who may have made it.
    """
    with _explained(f"{path}: not a signature that can be read", SignatureError, _DAMAGED):
        bundle = parse_json(content, most=SIGNATURE_BYTES.most)
        conform(bundle, _Bundle, "the signature")
        statement = parse_json(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        conform(statement, _Statement, "its payload")
        material = bundle["verificationMaterial"]
        kinds = [kind for name, kind in _KINDS.items() if name in material]
        if len(kinds) != 1 or len(bundle["dsseEnvelope"]["signatures"]) != 1:
            raise ValueError("one signature is expected, with one key, certificate or identity")
    verify = {"key": _verify_key, "certificate": _verify_certificate, "sigstore": _verify_sigstore}[kinds[0]]
    signer, fingerprint, manifest = verify(content, material, path, trust)
    about = manifest.serialization_type
    if (about["method"], about["hash_type"]) != ("files", "sha256"):
        raise SignatureError(
            f"{path}: lists the {about['hash_type']} of {about['method']}, not the sha256 of files",
            hint="verify it with the model_signing library, or sign the files again with `vit-hub sign`",
        )
    with _explained(f"{path}: not a signature that can be read", SignatureError, _DAMAGED):
        hashes = {item.identifier: item.digest.digest_hex for item in manifest.resource_descriptors()}
        for name in hashes:
            if name != _ONE_FILE and not is_safe_name(name):
                raise ValueError(f"{name!r} is not a name of a file")
        if not hashes or (_ONE_FILE in hashes and len(hashes) > 1):
            raise ValueError("it lists no files, or a file beside a folder")
        left_out = tuple(map(str, about.get("ignore_paths", ())))
    return Signed(Signature(path, kinds[0], signer, fingerprint, tuple(sorted(hashes))), hashes, left_out)


_Verified = tuple[str, str, Any]  # who signed, the fingerprint, and the library's list of files


def _verify_key(content: bytes, material: Mapping[str, Any], path: Path, trust: Trust) -> _Verified:
    hint = material["publicKey"].get("hint") if isinstance(material["publicKey"], dict) else None
    possible = {name: key for name, key in trust.keys.items() if name == hint} if hint else trust.keys
    failure = _untrusted(f"{path}: signed with the key sha256:{str(hint)[:64]}", trust)
    for fingerprint, key in possible.items():
        what = f"{path}: not made with the key sha256:{fingerprint}, or changed since"
        # Of a signature that names no key the library prints a warning.
        quiet = contextlib.nullcontext() if hint else contextlib.redirect_stdout(io.StringIO())
        try:
            with _files(signature=content, key=key) as place, _explained(what, SignatureError, _AGAIN), quiet:
                config = _library().verifying.Config().use_elliptic_key_verifier(public_key=place["key"])
                return f"the key sha256:{fingerprint}", fingerprint, _signed_list(config, place["signature"])
        except SignatureError as error:
            failure = error
    raise failure


def _verify_certificate(content: bytes, material: Mapping[str, Any], path: Path, trust: Trust) -> _Verified:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    def load(item: Mapping[str, str]) -> x509.Certificate:
        return x509.load_der_x509_certificate(base64.b64decode(item["rawBytes"]))

    with _explained(f"{path}: not a signature that can be read", SignatureError, _DAMAGED):
        items = material["x509CertificateChain"]["certificates"]
        if not 0 < len(items) <= _MOST_CERTIFICATES:
            raise ValueError(f"it has {len(items)} certificates")
        chain = [load(item) for item in items]
        fingerprint = chain[0].fingerprint(SHA256()).hex()
        signer = f"the certificate of {chain[0].subject.rfc4514_string()!r}, sha256:{fingerprint}"
        now = datetime.now(timezone.utc)
        # The library asks whether they were valid when the first one began to be. Nothing proves when it was used.
        for certificate in chain:
            start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            if not start <= now <= end:
                raise SignatureError(
                    f"{path}: signed with {signer}; the certificate of {certificate.subject.rfc4514_string()!r} is "
                    f"valid from {start:%Y-%m-%d} to {end:%Y-%m-%d} only",
                    hint="sign the files again with a certificate that is valid",
                )
    anchors = [block for block in trust.certificates if x509.load_pem_x509_certificate(block).not_valid_after_utc > now]
    if not anchors:  # the library would trust every authority of the web
        raise _untrusted(f"{path}: signed with {signer}", trust)
    what = f"{path}: signed with {signer}, which no trusted authority certifies, or changed since"
    with (
        _files(signature=content, chain=b"".join(anchors)) as place,
        _explained(what, SignatureError, _trusting(trust)),
    ):
        config = _library().verifying.Config().use_certificate_verifier(certificate_chain=[place["chain"]])
        return signer, fingerprint, _signed_list(config, place["signature"])


def _verify_sigstore(content: bytes, material: Mapping[str, Any], path: Path, trust: Trust) -> _Verified:
    if not trust.identity:
        raise _untrusted(f"{path}: signed with an identity, through sigstore", trust)
    what = f"{path}: not signed by {trust.identity} of {trust.issuer}, or sigstore cannot be asked"
    with _files(signature=content) as place, _explained(what, SignatureError, "check the identity and the connection"):
        config = _library().verifying.Config().use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.issuer)
        return f"{trust.identity} of {trust.issuer}", "", _signed_list(config, place["signature"])


def _untrusted(what: str, trust: Trust) -> SignatureError:
    return SignatureError(f"{what}, which is not trusted", hint=_trusting(trust))


def _trusting(trust: Trust) -> str:
    keys = [f"the key sha256:{name}" for name in trust.keys]
    others = [f"{len(trust.certificates)} certificates"] if trust.certificates else []
    known = [*keys, *others, *([f"the identity {trust.identity}"] if trust.identity else [])]
    return f"trusted: {_some(known)}, of {trust.origin}; trust another key only if you know its owner"


class _AnyList:
    """In place of the hashes of files: equals whatever list was signed, and keeps it.

    The library compares the signed list with that of the files after it has verified who signed it. If it ever did so
    in another way, there would be no list here, and nothing would count as verified.
    """

    manifest: Any = None

    def add_ignored_paths(self, **options: object) -> None:
        """Leave nothing out."""

    def hash(self, *place: object, **options: object) -> _AnyList:
        """Return this, for any folder."""
        return self

    def __eq__(self, signed: object) -> bool:
        self.manifest = signed
        return True


def _signed_list(config: Any, signature: Path) -> Any:
    """Return the list of files of a signature, whose signer the library has verified."""
    found = _AnyList()
    config.set_hashing_config(found).verify(signature, signature)
    if found.manifest is None:
        raise ValueError("the installed model_signing verifies in a way that is not known here")
    return found.manifest


class _GivenList:
    """In place of the hashes of a folder: a list of files that is made already."""

    def __init__(self, manifest: Any) -> None:
        self._manifest = manifest

    def hash(self, *place: object, **options: object) -> Any:
        """Return the list, for any folder."""
        return self._manifest


def _signed(signer: Any, files: Mapping[str, Path], title: str, left_out: Sequence[str]) -> bytes:
    """Return the signature of files.

    Args:
        signer: the library's, configured.
        files: name in the signature -> file.
        title: of the model.
        left_out: names in the folder that are not signed.
    """
    library = _library()
    about = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(left_out)}
    with tempfile.TemporaryDirectory(prefix="vit-hub-sign-") as folder:
        place = Path(folder, FOLDER_SIGNATURE)
        with _explained(f"{title}: cannot be signed", SignatureError, "check the files and the key"):
            items = []
            for name, file in files.items():
                [found] = library.hashing.hash(file.resolve()).resource_descriptors()
                items.append(library.manifest.FileManifestItem(path=PurePosixPath(name), digest=found.digest))
            manifest = library.manifest.Manifest(title, items, library.manifest.SerializationType.from_args(about))
            signer.set_hashing_config(_GivenList(manifest)).sign(folder, place)
        return place.read_bytes()


def _key_signer(
    key: str | Path | None,
    password: str | None,
    certificate: str | Path | None = None,
    chain: Sequence[str | Path] = (),
) -> Any:
    config, secret = _library().signing.Config(), _password(password)
    with _explained(f"{key}: not a key that can sign", ConfigError, _KEY_HINT):
        if certificate is None:
            return config.use_elliptic_key_signer(private_key=key, password=secret)
    with _explained(f"{key}: cannot sign with the certificate {certificate}", ConfigError, _CERTIFICATE_HINT):
        return config.use_certificate_signer(
            private_key=key,
            signing_certificate=certificate,
            certificate_chain=list(chain) or [certificate],  # the library takes no empty one
        )


def _sigstore_signer(token: str | None) -> Any:
    config = _library().signing.Config()
    with _explained("sigstore: cannot be used", ConfigError, "check the connection, or sign with a key"):
        return config.use_sigstore_signer(use_ambient_credentials=token is None, identity_token=token)


def _password(given: str | None) -> bytes | None:
    text = given if given is not None else os.environ.get(_PASSWORD)
    return os.fsencode(text) if text else None  # the bytes of a variable that is no text, too


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _names(folder: Path, left_out: Iterable[str]) -> set[str]:
    """Return the names of all files in a folder, but for those that are left out, and all in folders of these names.

    Raises:
        SignatureError: something is no plain file, or a link to a folder.
    """
    skipped = {PurePosixPath(name) for name in left_out}
    found = set()
    for file in folder.rglob("*"):
        name = PurePosixPath(file.relative_to(folder).as_posix())
        if skipped & {name, *name.parents}:
            continue
        if file.is_symlink() and file.is_dir():
            raise SignatureError(f"{file}: a link to a folder", hint="put the folder itself there, or remove the link")
        if file.is_file():
            found.add(str(name))
        elif not file.is_dir():
            raise SignatureError(f"{file}: neither a file nor a folder", hint="remove it")
        if not is_safe_name(str(name)):
            raise SignatureError(f"{folder}: {str(name)!r} is not a name that every system can have", hint="rename it")
    return found


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "") or "nobody"


@contextmanager
def _files(**contents: bytes) -> Iterator[dict[str, Path]]:
    """Write contents to files of this process alone, for the library, which reads files."""
    with tempfile.TemporaryDirectory(prefix="vit-hub-verify-") as folder:
        places = {name: Path(folder, name) for name in contents}
        for name, content in contents.items():
            places[name].write_bytes(content)
        yield places


@contextmanager
def _explained(what: str, kind: type[VitHubError], hint: str) -> Iterator[None]:
    """Turn whatever reading keys and signatures raises into one kind of error."""
    try:
        yield
    except VitHubError:
        raise
    # Parsers and libraries of cryptography raise anything.
    except Exception as error:
        name = type(error).__name__
        reason = f"{error.strerror or error}" if isinstance(error, OSError) else first_line(error) or name
        raise kind(f"{what}: {reason}", hint=hint) from error


def _library() -> Any:
    """Return OpenSSF's library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(
            f"signatures need model-signing, which is not installed: {error}", hint="pip install 'vit-hub[sign]'"
        ) from error
    return model_signing
