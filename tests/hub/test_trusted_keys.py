"""``VIT_HUB_TRUST``: what is read must be signed, wherever it comes from; signed mirrors and pushes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from hub_fixtures import MakeEntry, cache, make_entry, server
from hub_process import COMMIT, REPO, Hub, config_file, hub
from hub_upload_server import OWNER, TOKEN, serving_uploads
from safetensors.numpy import load, save
from servers import Reply, Server, listening
from signers import key_pair
from tiny import timm_file, vit_jax_file

import vit_hub
import vit_hub.hub.cache.hashes
from vit_hub.cli import main
from vit_hub.converters import containers
from vit_hub.converters.containers.safetensors_file import read_safetensors
from vit_hub.errors import CheckpointError, ConfigError, SignatureError
from vit_hub.hub.cache.paths import fetched_file
from vit_hub.hub.make_mirror import add_to_mirror
from vit_hub.hub.signing import file_signature, signature_of
from vit_hub.registry import WeightSource

__all__ = ["cache", "hub", "make_entry", "server"]  # fixtures

OPTIONS = {"num_heads": 3, "act": "gelu_tanh"}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private key, whose public half is trusted."""
    private, public = key_pair(tmp_path, "signer")
    monkeypatch.setenv("VIT_HUB_TRUST", str(public))
    return private


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An unsigned folder of a tiny model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(timm_file())
    (folder / "config.json").write_bytes(config_file())
    return folder


def refused(source: object, expected: str) -> str:
    """Return the message with which every way of reading a model refuses it."""
    messages = set()
    for read in (
        vit_hub.load,
        vit_hub.open_checkpoint,
        lambda path: vit_hub.convert(path, "out.safetensors"),
        lambda path: vit_hub.compare(path, path),
        lambda path: vit_hub.create_transform(vit_hub.load(path)),
        lambda path: vit_hub.Embedder(path).weights(),
    ):
        with pytest.raises(SignatureError, match=expected) as caught:
            read(source)  # type: ignore[no-untyped-call]
        messages.add(caught.value.message)
    shown = run("inspect", source)
    assert (shown.exit_code, "error: " in shown.stderr) == (1, True)
    assert not Path("out.safetensors").exists()
    [message] = messages
    return message


def test_local_models_must_be_signed(folder: Path, key: Path, tmp_path: Path) -> None:
    refused(folder, "model.safetensors: not signed, and a signature by one of .*signer.pub.pem is required")
    vit_hub.sign(folder, key=key_pair(tmp_path, "stranger")[0])
    refused(folder, "which is not trusted")
    vit_hub.sign(folder, key=key)
    for source in (folder, folder / "model.safetensors"):
        assert vit_hub.load(source).config.num_heads == 3
    (folder / "notes.txt").write_text("what is not read need not be signed")
    assert vit_hub.load(folder).config.num_heads == 3
    (folder / "config.json").write_bytes(config_file(heads=4))
    assert "config.json" in refused(folder, "not the signed file")
    (folder / "config.json").write_bytes(config_file())
    (folder / "preprocessor_config.json").write_text("{}")
    assert "preprocessor_config.json" in refused(folder, "does not list it")
    (folder / "preprocessor_config.json").unlink()
    weights = load(timm_file())
    (folder / "model.safetensors").write_bytes(save({**weights, "head.bias": weights["head.bias"] + 1}))
    assert "model.safetensors" in refused(folder, "not the signed file")


def test_a_file_alone_and_the_config_beside_it(folder: Path, key: Path) -> None:
    file = folder / "model.safetensors"
    vit_hub.sign(file, key=key)
    assert "config.json" in refused(file, "config.json: not signed")
    (folder / "config.json").unlink()
    assert vit_hub.load(file, overrides=OPTIONS).config.num_heads == 3


def test_every_other_file_of_a_model_must_be_signed(folder: Path, key: Path, tmp_path: Path) -> None:
    vit_hub.sign(folder, key=key)
    head = tmp_path / "head.safetensors"
    weights = load(timm_file())
    head.write_bytes(save({"weight": weights["head.weight"], "bias": weights["head.bias"]}))
    with pytest.raises(SignatureError, match=r"head.safetensors: not signed"):
        vit_hub.load(folder, head=head)
    vit_hub.sign(head, key=key)
    assert vit_hub.load(folder, head=head).config.num_classes == 5
    vit_hub.convert(folder, tmp_path / "kept.safetensors")
    vit_hub.sign(tmp_path / "kept.safetensors", key=key)
    (tmp_path / "kept.safetensors.rest.safetensors").write_bytes(save({"extra": weights["head.bias"]}))
    with pytest.raises(SignatureError, match=r"rest.safetensors: not signed"):
        vit_hub.convert(tmp_path / "kept.safetensors", tmp_path / "back", to="timm", keep_rest=True)


def test_a_signed_file_that_is_missing(folder: Path, key: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    vit_hub.sign(folder, key=key)
    assert vit_hub.load(folder).config.num_heads == 3
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refused(folder, "missing, while .*model.sig by .* lists it")


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """An unsigned folder of DeepSpeed with two steps, of which the first is to be read."""
    folder = tmp_path / "run"
    for number, step in enumerate(("global_step1", "global_step2")):
        (folder / step).mkdir(parents=True)
        weights = {name: torch.from_numpy(value + number) for name, value in load(timm_file()).items()}
        torch.save({"module": weights}, folder / step / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step1")
    return folder


def test_what_points_to_a_checkpoint_is_signed_with_it(training: Path, key: Path) -> None:
    vit_hub.sign(training, key=key)
    assert vit_hub.load(training, overrides=OPTIONS).config.num_heads == 3
    found = vit_hub.open_checkpoint(training, overrides=OPTIONS).source.documents
    assert training / "latest" in found
    (training / "latest").write_text("global_step2")
    with pytest.raises(SignatureError, match="latest: not the signed file"):
        vit_hub.load(training, overrides=OPTIONS)
    (training / "latest").unlink()
    with pytest.raises(SignatureError, match="latest: missing, while"):
        vit_hub.load(training, overrides=OPTIONS)


@pytest.mark.parametrize("pointer", ["last_checkpoint", "trainer_state.json", "last.ckpt"])
def test_every_file_that_chooses_among_others_is_signed(pointer: str, folder: Path, key: Path, tmp_path: Path) -> None:
    weights = {name: torch.from_numpy(value) for name, value in load(timm_file()).items()}
    run, names = tmp_path / "run", ("epoch_1.pth", "epoch_2.pth")
    if pointer == "trainer_state.json":
        names = ("checkpoint-1/model.safetensors", "checkpoint-2/model.safetensors")
    elif pointer == "last.ckpt":
        names = ("epoch=1.ckpt",)
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("safetensors"):
            shutil.copytree(folder, (run / name).parent, dirs_exist_ok=True)
        else:
            torch.save({"state_dict": weights}, run / name)

    def point(to: str) -> None:
        if pointer == "last_checkpoint":
            (run / pointer).write_text(to)
        elif pointer == "trainer_state.json":
            (run / pointer).write_text(json.dumps({"best_model_checkpoint": str(Path(to).parent)}))
        else:
            best = {"monitor": "loss", "best_model_path": to}
            torch.save({"state_dict": weights, "callbacks": {"ModelCheckpoint": best}}, run / pointer)

    point(names[0])
    vit_hub.sign(run, key=key)
    chosen = vit_hub.open_checkpoint(run, overrides=OPTIONS)
    assert names[0].partition("/")[0] in " ".join(chosen.warnings)
    (run / pointer).unlink()
    point("elsewhere")
    with pytest.raises(SignatureError, match=f"{pointer}: not the signed file"):
        vit_hub.load(run, overrides=OPTIONS)


def test_an_adapter_and_its_base(folder: Path, key: Path, tmp_path: Path) -> None:
    vit_hub.sign(folder, key=key)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "lora_alpha": 1}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    matrix = load(timm_file())["blocks.0.attn.proj.weight"]
    change = {"lora_A": matrix[:1], "lora_B": matrix[:, :1]}
    names = {f"base_model.model.blocks.0.attn.proj.{name}.weight": part.copy() for name, part in change.items()}
    (adapter / "adapter_model.safetensors").write_bytes(save(names))
    refused(adapter, "adapter_[a-z.]+: not signed")
    vit_hub.sign(adapter, key=key)
    assert vit_hub.load(adapter).config.num_heads == 3
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "lora_alpha": 2}))
    refused(adapter, r"adapter_config.json: not the signed file")


def test_what_was_verified_is_what_is_read(folder: Path, key: Path) -> None:
    """A file that takes the name between opening and verifying is not the one that is verified."""
    vit_hub.sign(folder, key=key)
    file, signed = folder / "model.safetensors", timm_file()
    file.write_bytes(signed[:-4] + b"evil")
    opened = vit_hub.converters.open_checkpoint(folder)
    (folder / "other").write_bytes(signed)
    (folder / "other").replace(file)
    with pytest.raises(SignatureError, match="not the signed file"):
        vit_hub.hub.trust.admit(opened.source)
    assert vit_hub.load(folder)


def test_a_folder_that_is_another_one_for_a_while_is_refused(
    folder: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither name nor inode of the signed file shows that its folder was away when it was read."""
    vit_hub.sign(folder, key=key)
    evil, away = shutil.copytree(folder, tmp_path / "evil"), tmp_path / "away"
    (evil / "model.safetensors").write_bytes(timm_file()[:-4] + b"evil")

    def swapped(path: Path) -> Any:
        folder.rename(away)
        evil.rename(folder)
        found = read_safetensors(path)
        folder.rename(evil)
        away.rename(folder)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(containers, "read_safetensors", swapped)
        with pytest.raises(CheckpointError, match="another file took its name"):
            vit_hub.load(folder)
    assert vit_hub.load(folder)


def test_a_file_that_is_linked_while_it_is_read_is_the_same_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a conversion into its folder does, which puts a copy of the folder in its place."""

    def linked(path: Path) -> Any:
        found = read_safetensors(path)
        time.sleep(0.02)  # more than the clock of the file system
        path.with_name("link").hardlink_to(path)
        return found

    monkeypatch.setattr(containers, "read_safetensors", linked)
    assert containers.open_raw(folder).tensors


def test_a_signed_mirror_whose_writer_was_killed(cache: Path, key: Path, tmp_path: Path) -> None:
    """The index and its signature belong together, and the next command finishes what was begun."""
    mirror, trust = tmp_path / "mirror", key.with_name(f"{key.stem}.pub.pem")
    list(add_to_mirror(mirror, ["vit-nano-digits"], key=key))
    index = json.loads((mirror / "index.json").read_text())
    (mirror / "index.json").write_text(json.dumps({**index, "models": {}}))
    vit_hub.sign(mirror / "index.json", key=key)
    script = (
        "import os, sys, pathlib\n"
        "from vit_hub.hub.make_mirror import add_to_mirror\n"
        "replace = pathlib.Path.replace\n"
        "def killed(self, other):\n"
        "    os._exit(9) if pathlib.Path(other).name == 'index.json' else replace(self, other)\n"
        "pathlib.Path.replace = killed\n"
        "list(add_to_mirror(pathlib.Path(sys.argv[1]), ['vit-nano-digits'], key=sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(mirror), str(key)], check=False)
    assert done.returncode == 9
    list(add_to_mirror(mirror, ["vit-nano-digits"], key=key))
    assert json.loads((mirror / "index.json").read_text())["models"] == index["models"]
    assert vit_hub.verify_signature(mirror / "index.json", trust=trust)


def test_an_unchanged_file_is_hashed_once(folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit_hub.sign(folder, key=key)
    assert vit_hub.load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(vit_hub.hub.cache.hashes, "rehash", None)
        assert vit_hub.load(folder)
    content = bytearray(timm_file())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "not the signed file")


def test_only_the_own_files_of_the_package_are_exempt(key: Path, cache: Path, tmp_path: Path) -> None:
    assert vit_hub.load("vit-nano-digits").config.num_classes == 10
    path = vit_hub.download("vit-nano-digits")
    with pytest.raises(SignatureError, match="not signed"):
        vit_hub.load(path)
    shown = run("verify", "--signature", "vit-nano-digits")
    assert (shown.exit_code, "not signed" in shown.stderr) == (3, True)


def test_of_given_keys_and_the_required_ones_the_given_count(
    server: Server, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, given = key_pair(tmp_path, "other")
    required, url = key.with_name("signer.pub.pem"), server.url + "/tiny.npz"
    monkeypatch.setenv("VIT_HUB_TRUST", str(given))
    signed = tmp_path / "tiny.npz"
    signed.write_bytes(vit_jax_file())
    server.add("/tiny.npz.sig", Reply(signature_of({".": signed}, "tiny", key=other)))
    vit_hub.open_checkpoint(url, overrides=OPTIONS)
    path = fetched_file(url)
    for source in (url, path):
        monkeypatch.setenv("VIT_HUB_TRUST", str(required))
        assert run("verify", "--signature", source).exit_code == 3
        assert run("verify", "--signature", source, "--key", required).exit_code == 3
        for trusted in (required, tmp_path / "missing.pem"):
            monkeypatch.setenv("VIT_HUB_TRUST", str(trusted))
            shown = run("verify", "--signature", source, "--key", given)
            assert shown.exit_code == 0, shown.stderr
    assert file_signature(path).is_file()
    monkeypatch.setenv("VIT_HUB_TRUST", str(required))
    with pytest.raises(SignatureError, match="not trusted"):  # again, after the command
        vit_hub.load(path, overrides=OPTIONS)


def test_exported_programs_must_be_signed(key: Path, tmp_path: Path) -> None:
    program = tmp_path / "digits.pt2"
    assert run("export", "vit-nano-digits", program, "-q").exit_code == 0
    for read in (lambda: vit_hub.Embedder(program).weights(), lambda: vit_hub.compare(program, "vit-nano-digits")):
        with pytest.raises(SignatureError, match="not signed"):
            read()
    vit_hub.sign(program, key=key)
    assert vit_hub.compare(program, "vit-nano-digits").same_numbers


def test_registry_hashes_are_no_signatures_and_addresses_may_have_some(
    server: Server, make_entry: MakeEntry, key: Path, tmp_path: Path
) -> None:
    from hashlib import sha256

    url = server.url + "/tiny.npz"
    make_entry(WeightSource(kind="https", format="vit_jax", url=url, sha256=sha256(vit_jax_file()).hexdigest()))
    for read in (vit_hub.load, vit_hub.download):
        with pytest.raises(SignatureError, match=r"tiny.npz: not signed") as caught:
            read("tiny")
    assert "vit-hub mirror" in caught.value.hint
    server.add("/tiny.npz.sig", Reply(b"<html>not found</html>"))
    with pytest.raises(SignatureError, match=r"tiny.npz.sig: not a signature that can be read"):
        vit_hub.load("tiny")
    file = tmp_path / "tiny.npz"
    file.write_bytes(vit_jax_file())
    server.add("/tiny.npz.sig", Reply(signature_of({".": file}, "tiny", key=key)))
    assert vit_hub.load("tiny").config.num_heads == 3
    assert vit_hub.download("tiny") == vit_hub.download("tiny", offline=True)
    assert run("verify", "--signature", "tiny").exit_code == 0
    assert ".sig" not in run("cache", "ls").stdout


@pytest.fixture
def mirror(tmp_path: Path, key: Path, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a signed mirror of the server's file; the cache is empty again."""
    folder = tmp_path / "mirror"
    url = server.url + "/tiny.safetensors"
    shown = run("mirror", folder, url, "--sign", key)
    assert shown.exit_code == 0, shown.stderr
    shutil.rmtree(cache)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(partial(Quiet, directory=str(folder))) as address:
        monkeypatch.setenv("VIT_HUB_MIRROR", address)
        yield url


def test_a_signed_mirror_delivers_signed_models(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vit_hub.load(mirror, overrides=OPTIONS)
    monkeypatch.delenv("VIT_HUB_MIRROR")
    assert vit_hub.load(mirror, overrides=OPTIONS, offline=True)  # its signature is in the cache
    index = tmp_path / "mirror" / "index.json"
    public = tmp_path / "signer.pub.pem"
    command = ("verify", "key", index, "--signature", f"{index}.sig", "--public_key", public)
    done = subprocess.run([sys.executable, "-m", "model_signing", *map(str, command)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_that_was_cached_without_signature_gets_it_from_a_mirror(
    mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("VIT_HUB_MIRROR")
        with pytest.raises(SignatureError, match="not signed"):
            vit_hub.load(mirror, overrides=OPTIONS)
    assert vit_hub.load(mirror, overrides=OPTIONS)


def test_another_key_takes_the_place_of_one(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vit_hub.load(mirror, overrides=OPTIONS)
    private, public = key_pair(tmp_path, "next")
    monkeypatch.setenv("VIT_HUB_TRUST", str(public))
    with pytest.raises(SignatureError, match=r"^http.*: index.json.sig: signed with the key .*, which is not trusted"):
        vit_hub.load(mirror, overrides=OPTIONS)
    shutil.rmtree(tmp_path / "mirror")
    with monkeypatch.context() as patch:
        patch.delenv("VIT_HUB_MIRROR")
        assert run("mirror", tmp_path / "mirror", mirror, "--sign", private).exit_code == 0
    assert vit_hub.load(mirror, overrides=OPTIONS)


def test_a_tampered_mirror_is_refused(mirror: str, tmp_path: Path) -> None:
    index = tmp_path / "mirror" / "index.json"
    content, signature = index.read_bytes(), Path(f"{index}.sig").read_bytes()
    index.write_bytes(content.replace(b'"license": null', b'"license": "mit"'))
    for change in ("index", "no signature", "another key"):
        with pytest.raises(SignatureError, match=r"not the signed file|this mirror is not signed|not trusted"):
            vit_hub.load(mirror, overrides=OPTIONS)
        index.write_bytes(content)
        if change == "index":
            Path(f"{index}.sig").unlink()
        if change == "no signature":
            vit_hub.sign(index, key=key_pair(tmp_path, "stranger")[0])
    Path(f"{index}.sig").write_bytes(signature)
    for file in (tmp_path / "mirror" / "files").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(vit_hub.IntegrityError):
        vit_hub.load(mirror, overrides=OPTIONS)


def test_a_signed_mirror_grows_with_its_key_alone(
    mirror: str, server: Server, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIT_HUB_MIRROR")
    folder, other = tmp_path / "mirror", server.url + "/tiny.npz"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    list(add_to_mirror(folder, [mirror], key=key))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(ConfigError, match="this mirror is signed"):
        list(add_to_mirror(folder, [other]))
    with pytest.raises(SignatureError, match="not trusted"):
        list(add_to_mirror(folder, [other], key=key_pair(tmp_path, "stranger")[0]))
    index = folder / "index.json"
    index.write_bytes(index.read_bytes().replace(b'"license": null', b'"license": "mit"'))
    with pytest.raises(SignatureError, match="not the signed file"):
        list(add_to_mirror(folder, [other], key=key))
    vit_hub.sign(index, key=key)
    list(add_to_mirror(folder, [other], key=key))
    (folder / "index.json.sig").unlink()
    with pytest.raises(SignatureError, match="would be signed as it is"):
        list(add_to_mirror(folder, [other], key=key))


def test_a_repository_and_its_signature(hub: Hub, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "signer")
    hub.variables["VIT_HUB_TRUST"] = str(public)
    assert "not signed" in hub.run("inspect", REPO, code=1)
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in {"model.safetensors": timm_file(), "config.json": config_file(), "README.md": b"#"}.items():
        (folder / name).write_bytes(content)
    vit_hub.sign(folder, key=private)
    signed = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.server.add_repo("someone/signed-vit", signed, COMMIT)
    assert hub.answer("inspect", "someone/signed-vit")["config"]["num_heads"] == 3
    assert "config.json, model.safetensors" in hub.run("verify", "--signature", f"someone/signed-vit@{COMMIT}")
    hub.run("mirror", "mirrored", REPO, "--sign", private)
    hub.variables |= {"VIT_HUB_MIRROR": "mirrored"}
    assert hub.answer("inspect", REPO, "--offline")["config"]["num_heads"] == 3


@pytest.mark.parametrize("wrong", ["password", "curve", "public"])
@pytest.mark.parametrize("call", [("push", "no/such-model", "me/x"), ("mirror", "mirrored", "no/such-model")])
def test_a_key_that_cannot_sign_is_refused_first(call: tuple[str, ...], wrong: str, tmp_path: Path) -> None:
    curve, password = ec.SECP256K1() if wrong == "curve" else None, "secret" if wrong == "password" else ""
    private, public = key_pair(tmp_path, "signer", curve=curve, password=password)
    shown = run(*call, "--offline", "--sign", public if wrong == "public" else private)
    assert (shown.exit_code, "not a key that can sign" in shown.stderr) == (1, True), shown.stderr
    assert not Path("mirrored").exists()


def test_a_signed_push_is_verified_by_openssf(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = key_pair(tmp_path, "signer")
    shown = run("push", folder, "me/tiny", "--to", "timm", "--license", "mit", "--sign", private, "--dry-run", "--json")
    assert shown.exit_code == 0, shown.stderr
    names = [item["name"] for item in json.loads(shown.stdout)["files"]]
    assert sorted(names) == ["README.md", "config.json", "model.safetensors", "model.sig"]
    with serving_uploads() as uploads:
        program = f"from vit_hub.cli import main; main(['push', {str(folder)!r}, '{OWNER}/tiny', '--license', 'mit', "
        program += f"'--sign', {str(private)!r}])"
        settings = {"HF_ENDPOINT": uploads.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        for name, value in {**settings, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        subprocess.run([sys.executable, "-c", program], check=True)
        for name, content in uploads.repos[f"{OWNER}/tiny"][1].items():
            (tmp_path / "pushed" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "pushed" / name).write_bytes(content)
    pushed = tmp_path / "pushed"
    command = ("verify", "key", pushed, "--signature", pushed / "model.sig", "--public_key", public)
    done = subprocess.run([sys.executable, "-m", "model_signing", *map(str, command)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
