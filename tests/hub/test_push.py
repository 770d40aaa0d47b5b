"""``vit-hub push``: by the real huggingface_hub client to a local server, and back again.

The client reads its settings when it is imported, so the command runs in processes of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hub_upload_server import OWNER, TOKEN, UploadServer, serving_uploads
from huggingface_hub import ModelCard
from tiny import CONFIG, timm_file, vit_jax_file

import vit_hub
from vit_hub.converters import convert_checkpoint, open_checkpoint
from vit_hub.converters.passport import Passport
from vit_hub.hub.model_card import CardFacts, is_open, model_card

REPO = f"{OWNER}/tiny-vit"
PROGRAM = "from vit_hub.cli import main; main()"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def server() -> Iterator[UploadServer]:
    with serving_uploads() as running:
        yield running


@pytest.fixture
def command(server: UploadServer, tmp_path: Path) -> Command:
    """Run ``vit-hub`` or, given ``program=``, other code in a process of its own, logged in with the right token."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VIT_HUB_"))}
    settings = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # its protocol has no local server
        "VIT_HUB_CACHE": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }

    def run(*args: object, program: str = PROGRAM, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, args)],
            env={**inherited, **settings, **variables},
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A canonical file of a tiny model, which says its licence."""
    npz = tmp_path / "tiny.npz"
    npz.write_bytes(vit_jax_file())
    model = vit_hub.load(npz)
    assert model.passport
    model.passport = Passport(**{**vars(model.passport), "license": "mit"})
    return model.save(tmp_path / "tiny.safetensors")


def written(files: Mapping[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def outputs(path: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = vit_hub.load(path)(images)
        return result


def test_what_is_pushed_comes_back(server: UploadServer, command: Command, source: Path, tmp_path: Path) -> None:
    done = command("push", source, REPO)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{server.url}/{REPO}\n", "")
    assert list(server.repos[REPO][1]) == ["model.safetensors", "README.md"]
    assert server.repos[REPO][1]["model.safetensors"] == source.read_bytes()
    back = command(program=f"import vit_hub; print(vit_hub.download({REPO!r}))")
    assert back.returncode == 0, back.stderr
    images = torch.randn(2, 3, *CONFIG.image_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(outputs(Path(back.stdout.strip()), images), outputs(source, images))

    convert_checkpoint(open_checkpoint(source), tmp_path / "again.npz", to="vit_jax")
    convert_checkpoint(open_checkpoint(back.stdout.strip()), tmp_path / "returned.npz", to="vit_jax")
    assert (tmp_path / "returned.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_timm_loads_what_is_pushed_for_it(server: UploadServer, command: Command, source: Path, tmp_path: Path) -> None:
    found = json.loads(command("push", source, REPO, "--to", "timm", "--json").stdout)
    assert [item["name"] for item in found["files"]] == ["config.json", "model.safetensors", "README.md"]
    assert (found["layout"], found["url"], len(found["commit"])) == ("timm", f"{server.url}/{REPO}", 40)
    folder = written(server.repos[REPO][1], tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, *CONFIG.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), outputs(source, images), atol=1e-5, rtol=1e-5)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in card.text


def test_transformers_loads_what_is_pushed_for_it(
    server: UploadServer, command: Command, source: Path, tmp_path: Path
) -> None:
    done = command("push", source, REPO, "--to", "hf", "--message", "a first try")
    assert done.returncode == 0, done.stderr
    assert server.messages == ["a first try"]
    files = server.repos[REPO][1]
    assert {*files} == {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
    folder = written(files, tmp_path / "hf_folder")
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 3, *CONFIG.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images).logits, outputs(source, images), atol=1e-5, rtol=1e-5)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-classification")
    assert f'ViTForImageClassification.from_pretrained("{REPO}")' in card.text


@pytest.mark.parametrize("layout", ["canonical", "timm", "hf"])
def test_a_folder_in_a_layout_is_pushed_as_it_is(
    server: UploadServer, command: Command, source: Path, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "folder"
    vit_hub.convert(source, folder, to=layout)
    (folder / "LICENSE").write_text("MIT")
    (folder / "optimizer.pt").write_bytes(b"secret")
    done = command("push", folder, REPO, "--license", "mit", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert (found["layout"], found["left_out"]) == (layout, ["optimizer.pt"])
    sent = dict(server.repos[REPO][1])
    card = sent.pop("README.md").decode()
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "optimizer.pt"}
    assert "license: mit" in card


def test_a_folders_own_card_is_kept(command: Command, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    vit_hub.convert(source, folder, to="hf")
    card = "---\nlicense: cc-by-nc-4.0\n---\n# Mine\n"
    (folder / "README.md").write_text(card)
    found = json.loads(command("push", folder, REPO, "--dry-run", "--json").stdout)
    assert (found["card"], found["license"], found["restricted"]) == (card, "cc-by-nc-4.0", True)
    refused = command("push", folder, REPO, "--license", "mit")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "README.md says licence cc-by-nc-4.0" in refused.stderr
    (folder / "README.md").write_text("# Mine\n")
    assert "states no licence" in command("push", folder, REPO).stderr
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n# M\xfcller\n")
    assert "README.md: not text in UTF-8" in command("push", folder, REPO).stderr


def test_a_dry_run_sends_nothing(server: UploadServer, command: Command, source: Path) -> None:
    done = command("push", source, REPO, "--dry-run", HF_TOKEN="")
    assert (done.returncode, server.requests) == (0, [])
    for text in ("model.safetensors", "README.md", "license: mit", "library_name: vit-hub", "vit_hub.load("):
        assert text in done.stdout


def test_the_card_says_where_the_weights_come_from(server: UploadServer, command: Command, tmp_path: Path) -> None:
    config = json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 3, "img_size": 32}})
    server.add_repo("someone/base", {"model.safetensors": timm_file(), "config.json": config.encode()})
    done = command("push", "someone/base", REPO, "--license", "Terms of Ours", "--dry-run", "--json")
    assert done.returncode == 0, done.stdout
    assert "Terms of Ours` is not an open one" in done.stderr
    card = ModelCard(json.loads(done.stdout)["card"])
    assert card.data.base_model == "someone/base"
    assert (card.data.license, card.data.license_name) == ("other", "terms-of-ours")
    for text in (
        hashlib.sha256(timm_file()).hexdigest(),
        "`hf://someone/base`",
        f"converted by | vit-hub {vit_hub.__version__}",
        "The licence is not an open one",
    ):
        assert text in card.text


def test_a_licence_is_needed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "tiny.npz").write_bytes(vit_jax_file())
    refused = command("push", "tiny.npz", REPO)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the licence of the weights is not known" in refused.stderr
    assert "--license" in refused.stderr
    allowed = command("push", "tiny.npz", REPO, "--license", "unknown", "--dry-run")
    assert "no licence is stated" in allowed.stderr
    assert "license: unknown" in allowed.stdout
    assert "Nobody states a licence" in allowed.stdout


def test_another_licence_is_warned_of(command: Command, source: Path) -> None:
    done = command("push", source, REPO, "--license", "apache-2.0", "--dry-run", "--json")
    assert "licence apache-2.0 takes the place of mit" in done.stderr
    assert json.loads(done.stdout)["license"] == "apache-2.0"


def test_a_branch_of_a_private_repository(server: UploadServer, command: Command, source: Path) -> None:
    done = command("push", source, REPO, "--private", "--revision", "trial")
    assert done.returncode == 0, done.stderr
    assert server.private == {REPO}
    assert server.repos[REPO][1] == {}
    assert {*server.branches[REPO, "trial"]} == {"model.safetensors", "README.md"}


def test_what_is_public_is_not_taken_for_private(server: UploadServer, command: Command, source: Path) -> None:
    server.add_repo(REPO, {"old": b"old"})
    done = command("push", source, REPO, "--private")
    assert done.returncode == 1
    assert "and is public" in done.stderr
    assert server.repos[REPO][1] == {"old": b"old"}


@pytest.mark.parametrize(
    ("repo", "variables", "words"),
    [
        ("tiny-vit", {}, ["'tiny-vit' is not a repository name", "owner/name"]),
        (f"{OWNER}/tiny--vit", {}, ["is not a repository name", "owner/name"]),
        (REPO, {"HF_TOKEN": ""}, ["not logged in", "hf auth login", "HF_TOKEN"]),
        (REPO, {"HF_TOKEN": "hf_old"}, ["does not accept the token", "hf auth login"]),
        ("somebody/tiny-vit", {}, ["somebody/tiny-vit: you may not write there", "organisation"]),
        (REPO, {"VIT_HUB_OFFLINE": "1"}, ["offline mode is on", "VIT_HUB_OFFLINE"]),
        (REPO, {"HF_ENDPOINT": "http://127.0.0.1:9"}, [f"{REPO}: it cannot be pushed", "HF_ENDPOINT"]),
        (REPO, {"HF_ENDPOINT": "nonsense"}, [f"{REPO}: it cannot be pushed", "check HF_ENDPOINT (nonsense)"]),
        (REPO, {"SSL_CERT_FILE": "missing.pem"}, ["SSL_CERT_FILE names missing.pem, and there is no such file"]),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(
    server: UploadServer, command: Command, source: Path, repo: str, variables: dict[str, str], words: list[str]
) -> None:
    done = command("push", source, repo, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    for word in words:
        assert word in error + hint
    assert server.repos == {}


def test_a_push_that_breaks_off_changes_nothing(server: UploadServer, command: Command, source: Path) -> None:
    server.add_repo(REPO, {"old": b"old"})
    server.broken = "/commit/"
    done = command("push", source, REPO)
    assert done.returncode == 1
    assert "it cannot be pushed" in done.stderr
    assert server.repos[REPO][1] == {"old": b"old"}


def facts(**changes: Any) -> CardFacts:
    given = {"repo": REPO, "format": "canonical", "config": CONFIG, "license": "mit", "restricted": False, "data": {}}
    return CardFacts(**{**given, **changes})


def test_a_card_takes_nobodys_text_for_markup() -> None:
    name = "a|b`c<script>[x](y).npz"
    card = model_card(facts(source_files=[{"file": name, "size": 3, "sha256": "0" * 64}], license="MIT"))
    assert "a\\|b\\`c\\<script\\>\\[x\\](y).npz" in card
    assert ModelCard(card).data.license == "mit"
    card = model_card(facts(format="hf", hf_class="X\n```\n<script>"))
    assert "from transformers import AutoModel\n" in card
    assert "script" not in card


@pytest.mark.parametrize(
    ("change", "tag", "use"),
    [
        ({}, "image-classification", "logits = model(images)"),
        ({"num_classes": 0}, "image-feature-extraction", "embedding = model.embed(images)"),
        ({"num_classes": 0, "pool": "none"}, "image-feature-extraction", "tokens = model.forward_features(images)"),
    ],
)
def test_a_card_says_what_the_model_is_for(change: dict[str, Any], tag: str, use: str) -> None:
    card = ModelCard(model_card(facts(config=CONFIG.replace(**change))))
    assert card.data.pipeline_tag == tag
    assert use in card.text


def test_open_licences_are_known() -> None:
    assert is_open("Apache-2.0")
    assert not is_open("cc-by-nc-4.0")
    assert not is_open("unknown")
