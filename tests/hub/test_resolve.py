"""The meaning of names, and which of their sources is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import PREPROCESS, MakeEntry, cache, make_entry, server
from servers import Reply, Server
from tiny import CONFIG, timm_file

import vit_hub
from vit_hub import registry, weights_manifest
from vit_hub.errors import CheckpointError, ConfigError, DownloadError, IntegrityError, ModelNotFoundError
from vit_hub.hub.fetch import fetch
from vit_hub.hub.names.locate import local_path, locate
from vit_hub.hub.resolve import Resolved, open_resolved, resolve
from vit_hub.preprocessing.spec import Preprocessing
from vit_hub.registry import WeightSource, get_entry, list_models

__all__ = ["cache", "make_entry", "server"]  # fixtures

SHA256 = hashlib.sha256(timm_file()).hexdigest()


@pytest.mark.parametrize("name", ["vit-b16", "weights.npz", "folder/model", "google/vit-base-patch16-224"])
def test_an_existing_path_wins(name: str) -> None:
    Path(name).mkdir(parents=True)
    assert resolve(name) == Resolved(Path(name))
    assert resolve(Path(name).absolute()) == Resolved(Path(name).absolute())


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "b16.npz").touch()
    assert local_path("~/b16.npz") == tmp_path / "b16.npz"


@pytest.mark.parametrize(
    "name",
    ["b16.npz", "model.safetensors", "a/b.pth", "x.pth.tar", "x.bin", "x.pt", "./x", "../x", "/x/y", "~/x", "C:\\x"],
)
def test_what_looks_like_a_path_is_no_name(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file") as error:
        resolve(name)
    assert name in error.value.message


def test_a_path_object_is_never_a_name() -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        resolve(Path("vit-b16"))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_what_no_path_can_be_is_one_clear_error(name: str) -> None:
    with pytest.raises((CheckpointError, ModelNotFoundError)):
        resolve(name)


@pytest.mark.parametrize(
    "name",
    ["vit-b16", "VIT_B16", "vit_base_patch16_224.augreg2_in21k_ft_in1k", "google/vit-base-patch16-224"],
)
def test_names_of_the_registry_give_its_sources(name: str) -> None:
    assert locate(name) == (get_entry(name), get_entry(name).sources)


def test_an_address_that_the_registry_knows_is_its_source() -> None:
    entry = get_entry("vit-b16.orig-in21k-ft-in1k-224")
    known = next(source for source in entry.sources if source.url)
    assert locate(str(known.url)) == (entry, (known,))


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("someone/tiny-vit", "someone/tiny-vit", None),
        ("someone/tiny_vit.v1@main", "someone/tiny_vit.v1", "main"),
        ("google/vit-base-patch16-224@refs/pr/1", "google/vit-base-patch16-224", "refs/pr/1"),
    ],
)
def test_other_repositories_are_the_hubs(name: str, repo: str, revision: str | None) -> None:
    entry, (source,) = locate(name)
    assert entry is None
    assert (source.kind, source.repo, source.revision, source.file) == ("hf", repo, revision, None)


TIMM = "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
PINNED = "063c6c38a5d8510b2e57df480445e94b231dad2c"


@pytest.mark.parametrize(
    ("name", "repo", "revision", "file"),
    [
        ("hf://someone/tiny", "someone/tiny", None, None),
        ("HF://someone/tiny@v1", "someone/tiny", "v1", None),
        ("hf://someone/tiny/model.safetensors", "someone/tiny", None, "model.safetensors"),
        ("hf://someone/tiny@v1/a/b.npz", "someone/tiny", "v1", "a/b.npz"),
        ("hf://someone/tiny@refs/pr/3/b.npz", "someone/tiny", "refs/pr/3", "b.npz"),
        ("hf://someone/tiny@a%2Fb/c.npz", "someone/tiny", "a/b", "c.npz"),
        ("hf-hub:someone/tiny", "someone/tiny", None, None),
        ("hf_hub:someone/tiny@v1", "someone/tiny", "v1", None),
        ("https://huggingface.co/someone/tiny", "someone/tiny", None, None),
        ("https://huggingface.co/someone/tiny/tree/v1", "someone/tiny", "v1", None),
        ("https://huggingface.co/someone/tiny/resolve/main/x%20y.npz?download=true", "someone/tiny", "main", "x y.npz"),
        ("https://hf.co/someone/tiny/blob/refs%2Fpr%2F3/a/b.npz", "someone/tiny", "refs/pr/3", "a/b.npz"),
        ("https://mirror.example.org/hub/someone/tiny/resolve/v1/b.npz", "someone/tiny", "v1", "b.npz"),
    ],
)
def test_places_on_the_hub_are_fetched_by_its_client(
    name: str, repo: str, revision: str | None, file: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/hub/")
    entry, (source,) = locate(name)
    assert entry is None
    assert (source.kind, source.repo, source.revision, source.file) == ("hf", repo, revision, file)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/datasets/someone/data/resolve/main/x.npz",
        "https://huggingface.co/folder/x.npz",
        "https://example.org/someone/tiny/resolve/main/x.npz",
        "https://mirror.example.org/someone/tiny/resolve/main/x.npz",
    ],
)
def test_other_addresses_are_plain_ones(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/hub")
    assert locate(url) == (None, (WeightSource(kind="https", format="", url=url),))


@pytest.mark.parametrize(
    "name",
    [
        f"hf://{TIMM}",
        f"hf://{TIMM}/model.safetensors",
        f"hf://{TIMM.upper().replace('TIMM', 'timm')}@{PINNED}",
        f"hf-hub:{TIMM}",
        f"{TIMM}@{PINNED}",
        f"https://huggingface.co/{TIMM}/resolve/{PINNED}/model.safetensors",
    ],
)
def test_the_registry_knows_what_is_at_a_place_on_the_hub(name: str) -> None:
    entry, (source,) = locate(name)
    assert entry == get_entry("vit-b16")
    assert source == entry.sources[0]


@pytest.mark.parametrize("name", [f"{TIMM}@main", f"hf://{TIMM}@v2", f"hf://{TIMM}/other.safetensors"])
def test_it_does_not_know_other_revisions_and_files(name: str) -> None:
    entry, (source,) = locate(name)
    assert entry is None
    assert source.sha256 is None


@pytest.mark.parametrize(
    "name",
    [
        "hf://",
        "hf://someone",
        "hf-hub:tiny",
        "hf-hub:a/b/c",
        "hf:///x/y",
        "hf://a/b/../c",
        "hf://a/b/%2e%2e/c",
        "hf://a/b/x%2F..%2Fc",
        "hf://a/b@%2e%2e/c",
        "hf://../b/c",
    ],
)
def test_a_malformed_place_on_the_hub_says_how_it_is_written(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="owner/name"):
        resolve(name)


MANIFEST = """
family = "made-up"

[defaults]
license = "mit"
data = { pretrain = "noise" }
config = { act = "gelu" }
preprocess = { mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], interpolation = "bicubic" }
"""
MODEL = """
[[model]]
id = "{id}"
aliases = {aliases}

[[model.sources]]
kind = "hf"
format = "timm"
repo = "{repo}"
file = "{file}"
"""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A manifest of its own."""
    models = [
        ("a.one", "[]", "timm/vit_a_patch16.one", "model.safetensors"),
        ("a.two", "[]", "timm/vit_a_patch16.two", "model.safetensors"),
        ("b.one", '["vit_b_patch16"]', "timm/vit_b_patch16.one", "model.safetensors"),
        ("b.two", "[]", "timm/vit_b_patch16.two", "model.safetensors"),
        ("c.one", "[]", "someone/many", "one.pth"),
        ("c.two", "[]", "someone/many", "two.pth"),
    ]
    text = [MODEL.format(**dict(zip(("id", "aliases", "repo", "file"), model, strict=True))) for model in models]
    (tmp_path / "made_up.toml").write_text(MANIFEST + "".join(text))
    caches = (weights_manifest.outlines, registry._names)
    monkeypatch.setattr(weights_manifest, "FOLDER", tmp_path)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("vit_b_patch16", "b.one"),
        ("vit_b_patch16.two", "b.two"),
        ("timm/vit_b_patch16.two", "b.two"),
        ("hf_hub:timm/vit_a_patch16.one", "a.one"),
        ("hf://someone/many/two.pth", "c.two"),
    ],
)
@pytest.mark.usefixtures("made_up")
def test_a_name_that_means_one_model(name: str, found: str) -> None:
    entry, _ = locate(name)
    assert entry
    assert entry.id == found


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vit_a_patch16", "a.one, a.two"),
        ("someone/many", "c.one, c.two"),
        ("hf://someone/many", "c.one, c.two"),
        ("hf-hub:someone/many", "c.one, c.two"),
    ],
)
@pytest.mark.usefixtures("made_up")
def test_a_name_that_means_several_lists_them(name: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError, match="names 2 models") as error:
        locate(name)
    assert error.value.hint == f"say which: {meant}"


def test_another_revision_pins_nothing() -> None:
    entry, (source,) = locate("vit-b16", revision="main")
    assert entry == get_entry("vit-b16")
    assert (source.repo, source.file, source.revision) == (TIMM, "model.safetensors", "main")
    assert (source.sha256, source.size, source.evidence) == (None, None, "")
    assert locate("vit-b16", revision=PINNED) == (entry, entry.sources)


def test_a_revision_is_one_of_the_repository_that_is_named() -> None:
    names = ("google/vit-base-patch16-224", "vit-b16.orig-in21k-ft-in1k-224")
    assert [source.repo for source in locate(names[0], revision="v1")[1]] == [names[0]]
    sources = locate(names[1], revision="v1")[1]
    assert {source.kind for source in sources} == {"hf"}
    assert {source.revision for source in sources} == {"v1"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit-nano-digits", "none of its sources is on Hugging Face's hub"),
        ("https://example.org/x.npz", "none of its sources is on Hugging Face's hub"),
        ("someone/tiny@v2", "the name says revision 'v2'"),
        ("hf://someone/tiny@v2/x.npz", "the name says revision 'v2'"),
        ("local", "has no revisions"),
    ],
)
def test_where_there_can_be_no_such_revision(name: str, words: str) -> None:
    Path("local").mkdir()
    for take in (vit_hub.load, vit_hub.open_checkpoint):
        with pytest.raises(ConfigError, match=words):
            take(name, revision="v1")


@pytest.mark.parametrize("name", ["vit-b61", "a/b/c", "", "someone/", "two words"])
def test_anything_else_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as error:
        resolve(name)
    assert error.value.hint


@pytest.mark.parametrize("name", ["az://box/model.pth", "ftp://host/x", "hdfs://a/b.safetensors", "WANDB://a/b:v3"])
def test_an_address_of_another_kind_says_which_there_are(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be fetched.*https://, hf://, gs://, s3:// and file://"):
        locate(name)


def test_a_mistyped_name_gets_suggestions() -> None:
    with pytest.raises(ModelNotFoundError, match="vit-b16"):
        resolve("vit-b61")


def test_an_address_is_fetched(server: Server) -> None:
    resolved = resolve(server.url + "/tiny.safetensors")
    assert resolved.path.read_bytes() == timm_file()
    assert (resolved.entry, resolved.hints) == (None, {})
    assert resolved.weight_source is not None
    ckpt = open_resolved(resolved, overrides={"num_heads": 3})
    assert (ckpt.format, ckpt.config.num_heads) == ("timm", 3)


def test_the_registry_says_what_the_file_cannot(make_entry: MakeEntry) -> None:
    entry = make_entry("/tiny.safetensors")
    resolved = resolve("tiny")
    assert (resolved.entry, resolved.weight_source) == (entry, entry.sources[0])
    ckpt = open_resolved(resolved)
    assert ckpt.config.num_heads == CONFIG.num_heads
    # The activation follows the format that is read, not the entry's first source.
    assert ckpt.config.act == "gelu"
    assert (ckpt.passport.weights_id, ckpt.passport.license, ckpt.passport.labels) == ("tiny", "mit", "imagenet-1k")
    assert ckpt.passport.preprocess is not None
    assert Preprocessing.from_dict(ckpt.passport.preprocess) == PREPROCESS


def test_undocumented_preprocessing_is_left_to_the_files(make_entry: MakeEntry) -> None:
    make_entry("/tiny.safetensors", preprocess={})
    assert open_resolved(resolve("tiny")).passport.preprocess is None


def test_the_caller_knows_better_than_the_registry(make_entry: MakeEntry) -> None:
    make_entry("/tiny.safetensors")
    assert open_resolved(resolve("tiny"), overrides={"num_heads": 2}).config.num_heads == 2


def test_a_source_may_differ_from_its_entry(make_entry: MakeEntry, server: Server) -> None:
    source = WeightSource(
        kind="https", format="timm", url=server.url + "/tiny.safetensors", config={"pool": "avg", "act": "relu"}
    )
    make_entry(source, config=CONFIG.replace(num_classes=7))
    resolved = resolve("tiny")
    assert resolved.hints == {"num_heads": 3, "image_size": (32, 32), "pool": "avg"}
    ckpt = open_resolved(resolved)
    assert ckpt.config.num_classes == 5
    assert ckpt.passport.labels is None


def test_the_next_source_is_taken_where_one_does_not_deliver(make_entry: MakeEntry) -> None:
    entry = make_entry("/gone.safetensors", "/tiny.npz", "/tiny.safetensors")
    with pytest.warns(UserWarning, match=r"tiny: taken from .*/tiny.npz, because .*/gone.safetensors: .* 404"):
        resolved = resolve("tiny")
    assert resolved.weight_source == entry.sources[1]
    ckpt = open_resolved(resolved)
    assert (ckpt.format, ckpt.config.act) == ("vit_jax", "gelu_tanh")


def test_a_file_of_another_model_is_refused(make_entry: MakeEntry) -> None:
    entry = make_entry("/tiny.npz", config=CONFIG.replace(embed_dim=24))
    with pytest.raises(CheckpointError, match="not the model tiny: its embed_dim is 12, expected 24") as error:
        open_resolved(resolve("tiny"))
    assert str(entry.sources[0].url) in error.value.hint


def test_all_failures_are_listed(make_entry: MakeEntry, server: Server) -> None:
    server.add("/page.npz", Reply(b"<html>"))
    make_entry("/gone.safetensors", "/page.npz")
    with pytest.raises(DownloadError, match="none of the 2 sources of tiny") as error:
        resolve("tiny")
    assert "/gone.safetensors: the server answered 404" in error.value.message
    assert "/page.npz: the server sent an HTML page" in error.value.message
    assert error.value.hint


def test_a_wrong_file_is_not_passed_over(make_entry: MakeEntry, server: Server) -> None:
    wrong = WeightSource(kind="https", format="timm", url=server.url + "/tiny.safetensors", sha256="0" * 64)
    make_entry(wrong, "/tiny.npz")
    with pytest.raises(IntegrityError, match=SHA256):
        resolve("tiny")


def test_offline_a_source_in_the_cache_is_taken(make_entry: MakeEntry, server: Server) -> None:
    entry = make_entry("/tiny.npz", "/tiny.safetensors")
    with pytest.raises(DownloadError, match="offline"):
        resolve("tiny", offline=True)
    fetch(entry.sources[1])
    before = len(server.requests)
    with pytest.warns(UserWarning, match="offline mode is on"):
        assert resolve("tiny", offline=True).weight_source == entry.sources[1]
    assert len(server.requests) == before


def test_every_entry_of_the_registry_has_what_a_passport_needs() -> None:
    for name in list_models():
        entry = get_entry(name)
        assert not entry.preprocess or Preprocessing.from_dict(entry.preprocess).image_size == entry.config.image_size
