"""``list``, ``info`` and ``download``: what the registry knows, and where the weights are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from vit_hub import ViTConfig, get_config, list_models, open_checkpoint
from vit_hub.hub.cache.paths import fetched_file
from vit_hub.registry import get_entry

Run = Callable[..., Result]
GOLDEN = Path(__file__).parents[1] / "golden"
B16 = "vit-b16.augreg2-in21k-ft-in1k-224"


def test_list_shows_every_model_once(run: Run) -> None:
    header, *rows = [line.split("\t") for line in run("list").stdout.splitlines()]
    columns = "id family params image_size top1 top1_data license restricted gated formats"
    assert header == columns.split()
    assert [row[0] for row in rows] == list_models()
    row = next(row for row in rows if row[0] == B16)
    assert row == f"{B16} augreg 86567656 224x224 85.108 imagenet-1k apache-2.0 false false timm".split()


def test_list_marks_licences_that_are_not_open(run: Run, answer: Callable[..., Any]) -> None:
    rows = {row.split()[1]: row for row in run("list", "mae*", "--markdown").stdout.splitlines()}
    assert " cc-by-nc-4.0\\* " in rows["mae-b16.in1k-224"]
    assert "*" not in run("list", "--family", "augreg", "--markdown").stdout
    [model] = answer("list", "mae-b16.in1k-224")
    assert (model["license"], model["restricted"], model["gated"]) == ("cc-by-nc-4.0", True, False)


def test_list_quiet_is_ids_only(run: Run) -> None:
    assert run("list", "-q").stdout.splitlines() == list_models()


@pytest.mark.parametrize("pattern", ["*b16*384*", "google/*", "VIT_BASE_PATCH16_224*", "B_16-*"])
def test_list_matches_every_name(run: Run, pattern: str) -> None:
    found = run("list", pattern, "-q").stdout.split()
    assert found == list_models(pattern)
    assert found


def test_a_pattern_without_wildcards_is_part_of_a_name(run: Run) -> None:
    assert run("list", "augreg2", "-q").stdout.split() == list_models("*augreg2*")


def test_list_by_family(run: Run) -> None:
    found = run("list", "--family", "vit-sam", "-q").stdout.split()
    assert found
    assert {get_entry(name).family for name in found} == {"vit-sam"}
    assert run("list", "*l16*", "--family", "vit-sam", "-q").stdout.split() == ["vit-l16.sam-in1k-224"]


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("vit-b61",), "did you mean vit-b16"),
        (("*vit-b61*",), "did you mean vit-b16"),
        (("xyzzy",), "`vit-hub list` shows all names"),
        (("--family", "resnet"), "families: aimv2, augreg, "),
        (("*gsam*", "--family", "augreg"), "4 models without --family augreg; 37 models without '*gsam*'"),
    ],
)
def test_list_without_a_match(run: Run, args: tuple[str, ...], hint: str) -> None:
    result = run("list", *args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"hint: {hint}" in result.stderr
    assert json.loads(run("list", *args, "--json").stdout)["error"]["type"] == "ModelNotFoundError"


def test_list_as_data(answer: Callable[..., Any]) -> None:
    models = {model["id"]: model for model in answer("list")}
    assert list(models) == list_models()
    model = models[B16]
    assert "vit-b16" in model["aliases"]
    assert model["params"] == 86_567_656
    assert model["image_size"] == [224, 224]
    assert model["formats"] == ["timm"]
    assert model["metrics"][0]["value"] == 85.108


def test_info_tells_what_the_registry_knows(run: Run) -> None:
    text = run("info", "vit-b16").stdout
    entry = get_entry("vit-b16")
    for expected in (
        B16,
        "86,567,656",
        "35.1 GFLOP",
        "197: class token + 14x14 patches of 16x16 pixels",
        entry.sources[0].sha256,
        entry.sources[0].revision,
        "346,284,714 bytes",
        "1,000 of imagenet-1k: tench, goldfish",
        "85.108 % at 224 pixels",
        "crop_pct       0.9",
    ):
        assert str(expected) in text


def test_info_lists_the_fields_that_matter(run: Run, answer: Callable[..., Any]) -> None:
    usual = vars(ViTConfig())
    for name in ("vit-b16", "beit-b16", "dinov3-s16", "vit-r-ti16", "siglip-b16"):
        text, config = run("info", name).stdout, vars(get_config(name))
        listed = [field for field in config if f"\n  {field} " in text]
        assert {field for field in config if config[field] != usual[field]} <= {*listed}
        assert {"image_size", "patch_size", "act", "pool", "num_classes"} <= {*listed}
        assert f"{len(config) - len(listed)} fields have their usual values" in text
        assert set(answer("info", name)["config"]) == set(config)


def test_info_does_not_call_an_embedding_classes_without_names(run: Run) -> None:
    assert "512 outputs of the head; their names are not known" in run("info", "pe-core-ti16").stdout


def test_no_model_has_a_name_twice() -> None:
    for name in list_models():
        aliases = get_entry(name).aliases
        assert len({*aliases}) == len(aliases), name


def test_info_says_nothing_that_nobody_documents(run: Run) -> None:
    text = run("info", "vit-ti16").stdout
    assert "sha256" not in text
    assert "None" not in text
    assert "assumed from the repository's convention" in text


def test_info_says_what_is_not_free_and_what_wants_a_login(run: Run) -> None:
    text = run("info", "dinov3-s16").stdout
    assert "dinov3-license (not an open licence" in text
    assert text.count("requires a login and acceptance of its terms") == 1
    assert "not an open one" not in run("info", "vit-b16").stdout


@pytest.mark.parametrize("name", list_models())
def test_info_of_every_model(answer: Callable[..., Any], run: Run, name: str) -> None:
    data = answer("info", name)
    assert data["id"] == name
    assert data["config"] == get_config(name).to_dict()
    assert data["license"]
    assert data["sources"]
    assert "None" not in run("info", name).stdout


def test_info_of_a_file(answer: Callable[..., Any], run: Run) -> None:
    file = GOLDEN / "vitjax_gap" / "checkpoint.npz"
    data = answer("info", file)
    ckpt = open_checkpoint(file)
    assert data["config"] == ckpt.config.to_dict()
    assert data["format"] == ckpt.format
    text = run("info", file).stdout
    assert "convention of google-research/vision_transformer" in text
    assert "16: 4x4 patches of 8x8 pixels" in text


def test_info_fetches_nothing(run: Run) -> None:
    result = run("info", "somebody/some-model")
    assert result.exit_code == 1
    assert "vit-hub inspect somebody/some-model" in result.stderr


def test_info_takes_settings_for_files_only(run: Run, models: Path) -> None:
    assert "--set" in run("info", models / "classifier.safetensors", "--set", "act=relu").stdout
    assert run("info", "vit-b16", "--set", "act=relu").exit_code == 2


@pytest.fixture
def url() -> str:
    """An address whose file is in the cache already."""
    address = "https://example.org/checkpoint.npz"
    file = fetched_file(address)
    file.parent.mkdir(parents=True)
    shutil.copy(GOLDEN / "vitjax_gap" / "checkpoint.npz", file)
    return address


def test_download_prints_paths_and_nothing_else(run: Run, url: str) -> None:
    for args in ((), ("-q",), ("--force",), ("--offline",)):
        result = run("download", url, *args)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        (path,) = result.stdout.splitlines()
        assert open_checkpoint(path).format == "canonical"


def test_download_several(run: Run, answer: Callable[..., Any], url: str) -> None:
    paths = run("download", url, url).stdout.split()
    assert len(paths) == 2
    found = answer("download", url, url)
    assert [item["path"] for item in found] == paths
    assert [item["name"] for item in found] == [url, url]
    assert found[0]["size"] == Path(paths[0]).stat().st_size


def test_download_refuses(run: Run, tmp_path: Path) -> None:
    result = run("download", "vit-b16", "--offline")
    assert result.exit_code == 1
    assert "offline" in result.stderr
    assert result.stdout == ""
    assert "vit-hub convert" in run("download", tmp_path).stderr
    assert run("download").exit_code == 2
