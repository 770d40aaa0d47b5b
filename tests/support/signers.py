"""Keys and certificates of signers, made for a test."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

__all__ = ["certificate", "key_pair"]

_NOW = datetime.now(timezone.utc)


def key_pair(
    folder: Path, name: str, *, curve: ec.EllipticCurve | None = None, password: str = ""
) -> tuple[Path, Path]:
    """Write the two halves of a new key; return the files of the private and of the public one."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def certificate(
    folder: Path,
    name: str,
    *,
    by: tuple[Path, Path] | None = None,
    authority: bool = False,
    days: tuple[int, int] = (-1, 30),
) -> tuple[Path, Path]:
    """Write a key and its certificate; return their files.

    Args:
        folder: where.
        name: the subject.
        by: key and certificate of the issuer; None: it is its own.
        authority: it may issue others.
        days: from now, of its first and last moment.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private, _ = key_pair(folder, name)
    key = load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key
    if by is not None:
        loaded = load_pem_private_key(by[0].read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer, issuer = loaded, x509.load_pem_x509_certificate(by[1].read_bytes()).subject
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW + timedelta(days=days[0]))
        .not_valid_after(_NOW + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(signer, hashes.SHA256())
    )
    place = folder / f"{name}.crt.pem"
    place.write_bytes(made.public_bytes(Encoding.PEM))
    return private, place
