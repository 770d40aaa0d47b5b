"""Where ``convert`` and ``export`` write: suffixes that are not known, and files that exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from vit_hub import convert, export, load
from vit_hub.errors import UnsupportedByFormatError, VitHubError

Run = Callable[..., Result]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.onnx", "`vit-hub export` writes .onnx, .pt2, .xml"),
        ("a.gguf", "files are .safetensors, .npz, .pth"),
        ("out.safetensor", "did you mean .safetensors?"),
        ("b.NPZ", "did you mean .npz?"),
        ("c.json", "files are .safetensors"),
        ("d.keras", "a folder's name ends with /"),
    ],
)
@pytest.mark.parametrize("to", ["canonical", "timm"])
def test_unknown_suffixes_are_refused(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str, to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("convert", models / "classifier.safetensors", name, "--to", to)
    assert result.exit_code == 1
    error, remedy = result.stderr.splitlines()
    assert error == f"vit-hub: error: {name}: no files with the suffix {Path(name).suffix} are written"
    assert hint in remedy
    with pytest.raises(UnsupportedByFormatError, match="no files with the suffix"):
        convert(models / "classifier.safetensors", name, to=to)
    with pytest.raises(UnsupportedByFormatError, match="no files with the suffix"):
        load(models / "classifier.safetensors").save(name)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_destination_is_refused(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no destination is given" in run("convert", models / "classifier.safetensors", "").stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_refused_before_anything_is_read_or_fetched(run: Run, tmp_path: Path) -> None:
    result = run("convert", "vit-b16", tmp_path / "a.gguf")
    assert "no files with the suffix .gguf" in result.stderr
    (tmp_path / "a.safetensors").touch()
    assert "a.safetensors exists" in run("convert", "vit-b16", tmp_path / "a.safetensors").stderr


@pytest.mark.parametrize(
    "name", ["plain", "b16.v2/", "model-1.5", "vit_base_patch16_224.augreg2_in21k_ft_in1k", "there.v2"]
)
def test_what_is_a_folder(run: Run, models: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "there.v2").mkdir()
    destination = f"{tmp_path}/{name}"
    assert run("convert", models / "classifier.safetensors", destination).exit_code == 0
    assert (Path(destination) / "model.safetensors").is_file()


def test_a_file_that_exists_stays_without_force(run: Run, models: Path, tmp_path: Path) -> None:
    file, args = tmp_path / "a.safetensors", ("convert", models / "classifier.safetensors")
    file.write_text("mine")
    result = run(*args, file)
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == f"vit-hub: error: {file} exists"
    assert "--force" in hint
    assert json.loads(run(*args, file, "--json").stdout)["error"]["type"] == "VitHubError"
    assert tree(tmp_path) == {"a.safetensors": b"mine"}
    assert run(*args, file, "--force").exit_code == 0
    assert load(file).config.num_classes == 4


def test_a_folder_keeps_what_was_not_written_there(run: Run, models: Path, tmp_path: Path) -> None:
    args = ("convert", models / "classifier.safetensors", tmp_path, "--to", "timm")
    (tmp_path / "notes.txt").write_text("mine")
    assert run(*args).exit_code == 0
    first = tree(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    result = run(*args)
    assert result.exit_code == 1
    assert "model.safetensors exists, and 1 more of its files" in result.stderr
    assert run(*args, "--force").exit_code == 0
    assert tree(tmp_path) == first
    assert first["notes.txt"] == b"mine"


def test_config_files_go_with_the_weights_that_are_replaced(run: Run, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".git").mkdir(parents=True)
    (out / ".git" / "HEAD").write_text("mine")
    assert run("convert", models / "classifier.safetensors", out, "--to", "hf").exit_code == 0
    assert (out / "preprocessor_config.json").exists()
    assert run("convert", out, out, "--to", "timm", "--force").exit_code == 0  # its own source, too
    assert sorted(tree(out)) == [".git/HEAD", "config.json", "model.safetensors"]
    assert run("convert", models / "classifier.safetensors", out, "--force").exit_code == 0
    assert sorted(tree(out)) == [".git/HEAD", "model.safetensors"]
    (out / "config.json").write_text('{"of": "my program"}')  # a canonical file has none
    assert run("convert", models / "classifier.safetensors", out, "--force").exit_code == 0
    assert sorted(tree(out)) == [".git/HEAD", "config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_command_again_after_a_kill(run: Run, models: Path, tmp_path: Path) -> None:
    source, out = models / "classifier.safetensors", tmp_path / "out"
    assert run("convert", source, out, "--to", "hf").exit_code == 0
    expected = tree(out)
    draft = out / ".0-0.vit-hub.tmp"  # killed after the old weights were removed, before the new ones came
    (draft / "build").mkdir(parents=True)
    (draft / "lock").touch()
    (out / "model.safetensors").rename(draft / "build" / "model.safetensors")
    names = sorted(expected)
    plan: dict[str, Any] = {"folder": ".", "first": "model.safetensors", "names": names, "gone": [], "exchanged": None}
    plan["made"] = (draft / "lock").stat().st_ctime_ns
    (draft / "plan.json").write_text(json.dumps(plan))
    result = run("convert", source, out, "--to", "hf")
    assert "model.safetensors exists" in result.stderr
    assert tree(out) == expected


def test_what_a_killed_command_left_is_no_model(run: Run, models: Path, tmp_path: Path) -> None:
    draft = tmp_path / "out" / ".0-0.vit-hub.tmp"
    assert run("convert", models / "classifier.safetensors", f"{draft / 'build'}/", "--to", "hf").exit_code == 0
    (draft / "lock").touch()
    result = run("inspect", tmp_path / "out")
    assert result.exit_code == 1
    assert "no weights in this folder" in result.stderr
    assert run("convert", models / "classifier.safetensors", tmp_path / "out", "--to", "hf").exit_code == 0
    assert not draft.exists()


def test_a_config_of_something_else_is_not_overwritten(run: Run, models: Path, tmp_path: Path) -> None:
    args = ("convert", models / "classifier.safetensors", tmp_path, "--to", "timm")
    (tmp_path / "config.json").write_text('{"of": "my program"}')
    before = tree(tmp_path)
    for options, message in (((), "config.json exists"), (("--force",), "no model.safetensors beside it")):
        result = run(*args, *options)
        assert result.exit_code == 1
        assert message in result.stderr
        assert tree(tmp_path) == before
    with pytest.raises(VitHubError, match="it may be of something else"):
        convert(models / "classifier.safetensors", tmp_path, to="timm")


def test_the_library_overwrites_unless_told(models: Path, tmp_path: Path) -> None:
    source, file = models / "classifier.safetensors", tmp_path / "a.safetensors"
    for _ in range(2):
        assert convert(source, file).files == [file]
    with pytest.raises(VitHubError, match="exists"):
        convert(source, file, overwrite=False)


def test_an_exported_file_that_exists_stays_without_force(run: Run, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.pt2"
    file.write_text("mine")
    result = run("export", models / "classifier.safetensors", file)
    assert result.exit_code == 1
    assert f"{file} exists" in result.stderr
    with pytest.raises(VitHubError, match="exists"):
        export(models / "classifier.safetensors", file, overwrite=False)
    assert file.read_text() == "mine"
