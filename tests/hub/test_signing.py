"""Signatures: made and verified, here and by OpenSSF's own command, and refused with a reason."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_signing
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hub_fixtures import cache
from signers import certificate, key_pair

import vit_hub
from vit_hub.cli import main
from vit_hub.errors import CheckpointError, ConfigError, SignatureError, VitHubError

__all__ = ["cache"]  # a fixture

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "sub/more.json": b"[]"}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def openssf(*args: object) -> str:
    """Run the command of model-signing, which must succeed."""
    command = [sys.executable, "-m", "model_signing", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path, "signer")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def signed(model: Path, keys: tuple[Path, Path]) -> Path:
    vit_hub.sign(model, key=keys[0])
    return model


def refused(path: Path, trust: Path, expected: str, **options: Any) -> SignatureError:
    with pytest.raises(SignatureError, match=expected) as caught:
        vit_hub.verify_signature(path, trust=trust, **options)
    assert caught.value.hint
    return caught.value


def test_a_folder_has_a_verdict_of_who_signed_what(model: Path, keys: tuple[Path, Path]) -> None:
    (model / ".gitattributes").write_text("*.safetensors filter=lfs")
    shown = run("sign", model, "--key", keys[0])
    assert (shown.exit_code, shown.stdout.strip()) == (0, str(model / "model.sig"))
    found = vit_hub.verify_signature(model, trust=keys[1])
    fingerprint = hashlib.sha256(keys[1].read_bytes()).hexdigest()
    assert (found.kind, found.fingerprint, found.signer) == ("key", fingerprint, f"the key sha256:{fingerprint}")
    assert (found.covered, found.uncovered) == (tuple(sorted(FILES)), (".gitattributes",))
    shown = run("verify", "--signature", model, "--key", keys[1])
    assert shown.exit_code == 0
    assert all(text in shown.stdout for text in (fingerprint, "model.safetensors", "leaves out  .gitattributes"))
    [item] = json.loads(run("verify", "--signature", model, "--key", keys[1], "--json").stdout)
    assert (item["covered"], item["fingerprint"], item["problem"]) == (sorted(FILES), fingerprint, "")
    assert not list(model.glob(".*.tmp"))


def test_both_ways_with_the_command_of_openssf(model: Path, keys: tuple[Path, Path]) -> None:
    file = model / "model.safetensors"
    private, public = ("--private_key", keys[0]), ("--public_key", keys[1])
    vit_hub.sign(model, key=keys[0])
    openssf("verify", "key", model, "--signature", model / "model.sig", *public)
    assert vit_hub.sign(file, key=keys[0]) == model / "model.safetensors.sig"
    openssf("verify", "key", file, "--signature", model / "model.safetensors.sig", *public)
    for signature in ("model.sig", "model.safetensors.sig"):
        (model / signature).unlink()
    openssf("sign", "key", file, "--signature", model / "model.safetensors.sig", *private)
    assert vit_hub.verify_signature(file, trust=keys[1]).covered == (".",)
    (model / "model.safetensors.sig").unlink()
    openssf("sign", "key", model, "--signature", model / "model.sig", *private)
    assert vit_hub.verify_signature(model, trust=keys[1]).covered == tuple(sorted(FILES))
    assert vit_hub.verify_signature(file, trust=keys[1]).covered == ("model.safetensors",)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_curves_passwords_and_other_places(model: Path, tmp_path: Path, curve: Any, monkeypatch: Any) -> None:
    private, public = key_pair(tmp_path, "secret", curve=curve, password="open sesame")
    with pytest.raises(ConfigError, match="secret.pem: not a key that can sign"):
        vit_hub.sign(model, key=private)
    monkeypatch.setenv("VIT_HUB_SIGN_PASSWORD", "open sesame")
    place = vit_hub.sign(model, key=private, signature=tmp_path / "signatures" / "one.sig")
    assert vit_hub.verify_signature(model, trust=public, signature=place).covered == tuple(sorted(FILES))
    assert not (model / "model.sig").exists()


def test_every_change_has_its_own_error(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    file, content = signed / "model.safetensors", FILES["model.safetensors"]
    file.write_bytes(b"Weights")
    error = refused(signed, keys[1], r"model.safetensors: not the signed file: its sha256 is [0-9a-f]{64}")
    assert hashlib.sha256(content).hexdigest() in error.message
    refused(file, keys[1], "not the signed file")
    file.unlink()
    refused(signed, keys[1], "missing, and signed by .*: model.safetensors")
    file.write_bytes(content)
    (signed / "sub" / "new.bin").write_bytes(b"!")
    refused(signed, keys[1], "not among the 3 files that .* signed: sub/new.bin")
    refused(signed / "sub" / "new.bin", keys[1], "does not list it")
    (signed / "sub" / "new.bin").unlink()
    (signed / "link").symlink_to(tmp_path)
    refused(signed, keys[1], "link: a link to a folder")
    (signed / "link").unlink()
    assert vit_hub.verify_signature(signed, trust=keys[1])
    refused(signed, key_pair(tmp_path, "other")[1], "signed with the key sha256:[0-9a-f]{64}, which is not trusted")
    (signed / "model.sig").unlink()
    refused(signed, keys[1], "model: not signed")
    shown = run("verify", "--signature", signed, "--key", keys[1])
    assert (shown.exit_code, "not signed" in shown.stderr) == (3, True)


def test_several_keys_in_one_file(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(key_pair(tmp_path, "other")[1].read_bytes() + keys[1].read_bytes())
    assert vit_hub.verify_signature(signed, trust=both).kind == "key"


def test_a_signature_that_names_no_key(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old versions of model-signing wrote such ones."""
    place = signed / "model.sig"
    content = json.loads(place.read_bytes())
    del content["verificationMaterial"]["publicKey"]["hint"]
    place.write_text(json.dumps(content))
    both = tmp_path / "both.pem"
    other = key_pair(tmp_path, "other")[1]
    both.write_bytes(keys[1].read_bytes() + other.read_bytes())
    assert vit_hub.verify_signature(signed, trust=both).fingerprint == hashlib.sha256(keys[1].read_bytes()).hexdigest()
    assert not capsys.readouterr().out
    refused(signed, other, "not made with the key")


def test_certificates(model: Path, tmp_path: Path) -> None:
    root = certificate(tmp_path, "root", authority=True)
    middle = certificate(tmp_path, "middle", by=root, authority=True)
    leaf = certificate(tmp_path, "leaf", by=middle)
    stranger = certificate(tmp_path, "stranger", authority=True)
    shown = run("sign", model, "--key", leaf[0], "--certificate", leaf[1], "--chain", middle[1])
    assert shown.exit_code == 0, shown.stderr
    found = vit_hub.verify_signature(model, trust=root[1])
    assert (found.kind, "CN=leaf" in found.signer, found.covered) == ("certificate", True, tuple(sorted(FILES)))
    openssf("verify", "certificate", model, "--signature", model / "model.sig", "--certificate_chain", root[1])
    assert run("verify", "--signature", model, "--certificate-chain", root[1]).exit_code == 0
    refused(model, stranger[1], "no trusted authority certifies")
    refused(model, key_pair(tmp_path, "plain")[1], "CN=leaf.* is not trusted")
    content = json.loads((model / "model.sig").read_bytes())
    content["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(b"0" * 70).decode()
    (model / "model.sig").write_text(json.dumps(content))
    refused(model, root[1], "no trusted authority certifies, or changed since")
    direct = certificate(tmp_path, "direct", by=root)
    vit_hub.sign(model, key=direct[0], certificate=direct[1])
    openssf("verify", "certificate", model, "--signature", model / "model.sig", "--certificate_chain", root[1])
    # The library itself accepts what was valid when its certificate began to be.
    expired = certificate(tmp_path, "expired", by=root, days=(-30, -2))
    vit_hub.sign(model, key=expired[0], certificate=expired[1])
    refused(model, root[1], "CN=expired.* is valid from .* to .* only")
    with pytest.raises(ConfigError, match="cannot sign with the certificate"):
        vit_hub.sign(model, key=leaf[0], certificate=expired[1])


def _changed(content: dict[str, Any], **payload: Any) -> bytes:
    envelope = content["dsseEnvelope"]
    statement = {**json.loads(base64.b64decode(envelope["payload"])), **payload}
    changed = {**envelope, "payload": base64.b64encode(json.dumps(statement).encode()).decode()}
    return json.dumps({**content, "dsseEnvelope": changed}).encode()


def test_hostile_signatures_are_errors_of_one_kind(signed: Path, keys: tuple[Path, Path]) -> None:
    place = signed / "model.sig"
    good = json.loads(place.read_bytes())
    statement = json.loads(base64.b64decode(good["dsseEnvelope"]["payload"]))
    deep = "[" * 100_000 + "]" * 100_000
    hostile: dict[str, bytes] = {
        "empty": b"",
        "huge": b" " * (9 << 20),
        "deep": deep.encode(),
        "deep payload": json.dumps(
            {**good, "dsseEnvelope": {**good["dsseEnvelope"], "payload": base64.b64encode(deep.encode()).decode()}}
        ).encode(),
        "twice": b'{"mediaType": "a", "mediaType": "b"}',
        "no payload": json.dumps({**good, "dsseEnvelope": {}}).encode(),
        "no list": json.dumps({**good, "dsseEnvelope": {**good["dsseEnvelope"], "signatures": {}}}).encode(),
        "no base64": json.dumps({**good, "dsseEnvelope": {**good["dsseEnvelope"], "payload": "\u2028"}}).encode(),
        "no key": json.dumps({**good, "verificationMaterial": {}}).encode(),
        "key of another type": json.dumps({**good, "verificationMaterial": {"publicKey": [1]}}).encode(),
        "hint of another type": json.dumps({**good, "verificationMaterial": {"publicKey": {"hint": {}}}}).encode(),
        "no certificates": json.dumps({**good, "verificationMaterial": {"x509CertificateChain": 3}}).encode(),
        "thousands of certificates": json.dumps(
            {**good, "verificationMaterial": {"x509CertificateChain": {"certificates": [{"rawBytes": ""}] * 9999}}}
        ).encode(),
        "damaged certificate": json.dumps(
            {**good, "verificationMaterial": {"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}}
        ).encode(),
        "of sigstore": json.dumps({**good, "verificationMaterial": {"certificate": {"rawBytes": "AAAA"}}}).encode(),
        "other media type": json.dumps({**good, "mediaType": "text/plain"}).encode(),
        "resources": _changed(good, predicate={**statement["predicate"], "resources": 7}),
        "changed list": _changed(good, predicate={**statement["predicate"], "resources": []}),
        "changed title": _changed(good, subject=[{"name": "another", "digest": statement["subject"][0]["digest"]}]),
    }
    for name, content in hostile.items():
        place.write_bytes(content)
        with pytest.raises(SignatureError) as caught:
            vit_hub.verify_signature(signed, trust=keys[1])
        assert str(place) in caught.value.message, name
        assert caught.value.hint, name


def test_what_is_not_a_list_of_sha256_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    hashing = model_signing.hashing.Config().use_file_serialization(hashing_algorithm="blake3")
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(hashing).sign(signed, signed / "model.sig")
    refused(signed, keys[1], "lists the blake3 of files")


def test_wrong_calls(signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no key")
    rsa = tmp_path / "rsa.pem"
    key = generate_private_key(65537, 2048).public_key()
    rsa.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    half = tmp_path / "half.pem"
    half.write_bytes(keys[1].read_bytes() + keys[1].read_bytes()[:60])
    for trust in (text, rsa, half, keys[0], tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=r"not a file of public keys"):
            vit_hub.verify_signature(signed, trust=trust)
    with pytest.raises(ConfigError, match="nobody is trusted"):
        vit_hub.verify_signature(signed)
    with pytest.raises(ConfigError, match="one of the two is missing"):
        vit_hub.verify_signature(signed, identity="me@example.org")
    with pytest.raises(CheckpointError, match="no such file"):
        vit_hub.sign(tmp_path / "missing", key=keys[0])
    for options in ({}, {"key": keys[0], "sigstore": True}, {"key": keys[0], "chain": [text]}):
        with pytest.raises(ConfigError, match="sign with a key"):
            vit_hub.sign(signed, **options)  # type: ignore[arg-type]
    assert run("sign", signed).exit_code == 2
    assert run("verify", "--key", keys[1]).exit_code == 2
    assert run("verify", "--signature").exit_code == 2
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match="signatures need model-signing") as caught:
        vit_hub.sign(signed, key=keys[0])
    assert caught.value.hint == "pip install 'vit-hub[sign]'"


def test_identities_reach_the_library(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def answer(self: object, **options: Any) -> None:
        asked.append(options)
        raise OSError("no network")

    monkeypatch.setattr(model_signing.signing.Config, "use_sigstore_signer", answer)
    monkeypatch.setattr(model_signing.verifying.Config, "use_sigstore_verifier", answer)
    with pytest.raises(VitHubError, match="sigstore: cannot be used: no network"):
        vit_hub.sign(signed, sigstore=True, identity_token="token")
    content = json.loads((signed / "model.sig").read_bytes())
    content["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}}
    (signed / "model.sig").write_text(json.dumps(content))
    shown = run(
        *("verify", "--signature", signed, "--identity", "me@example.org"),
        *("--identity-provider", "https://id.example.org"),
    )
    assert (shown.exit_code, "me@example.org of https://id.example.org" in shown.stderr) == (3, True)
    assert asked == [
        {"use_ambient_credentials": False, "identity_token": "token"},
        {"identity": "me@example.org", "oidc_issuer": "https://id.example.org"},
    ]


def test_a_signature_elsewhere_in_the_folder_is_not_signed(model: Path, keys: tuple[Path, Path]) -> None:
    place = model / "sub/own.sig"
    for _ in range(2):
        vit_hub.sign(model, key=keys[0], signature=place)
        found = vit_hub.verify_signature(model, trust=keys[1], signature=place)
        assert found.covered == tuple(sorted(FILES))
    openssf("verify", "key", model, "--signature", place, "--public_key", keys[1])


def test_what_a_killed_writer_left_is_not_signed(model: Path, keys: tuple[Path, Path]) -> None:
    """The next writer removes it, and that is the signature's."""
    script = (
        "import os, sys, vit_hub, vit_hub.converters.containers.atomic as atomic\n"
        "atomic.put_in_place = lambda *paths: os._exit(9)\n"
        "vit_hub.sign(sys.argv[1], key=sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(model), str(keys[0])], check=False)
    assert done.returncode == 9
    assert list(model.glob(".*.vit-hub.tmp"))
    vit_hub.sign(model, key=keys[0])
    assert vit_hub.verify_signature(model, trust=keys[1]).covered == tuple(sorted(FILES))


def test_the_records_of_a_download_are_no_part_of_the_model(signed: Path, keys: tuple[Path, Path]) -> None:
    records = signed / ".cache/huggingface/download/model.safetensors.metadata"
    records.parent.mkdir(parents=True)
    records.write_text("commit")
    assert vit_hub.verify_signature(signed, trust=keys[1]).uncovered == (".cache/huggingface",)
    openssf("verify", "key", signed, "--signature", signed / "model.sig", "--public_key", keys[1])


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_what_can_be_no_path_is_an_error(name: str, signed: Path, keys: tuple[Path, Path]) -> None:
    for path, signature in ((name, None), (signed, name)):
        with pytest.raises(VitHubError):
            vit_hub.sign(path, key=keys[0], signature=signature)
        with pytest.raises(VitHubError):
            vit_hub.verify_signature(path, trust=keys[1], signature=signature)


def test_a_name_too_long_for_one_of_a_signature_beside_it(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    file = tmp_path / ("m" * 243 + ".safetensors")
    file.write_bytes(b"weights")
    with pytest.raises(SignatureError, match="not signed"):
        vit_hub.verify_signature(file, trust=keys[1])


def test_a_password_that_is_no_text(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, _ = key_pair(tmp_path, "secret", password="long enough")
    monkeypatch.setenv("VIT_HUB_SIGN_PASSWORD", "\udcff")
    with pytest.raises(ConfigError, match="not a key that can sign"):
        vit_hub.sign(model, key=private)
