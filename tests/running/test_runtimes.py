"""Other runtimes give the model's numbers, from a program that is made once; what they cannot do is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from click.testing import CliRunner
from kinds import KINDS
from small_models import random_images, random_model, relative_error

import vit_hub
from vit_hub.cli import main
from vit_hub.cli.options import RUNTIME_NAMES
from vit_hub.exporting import runtimes
from vit_hub.exporting.automatic import AUTO, fastest_runtime
from vit_hub.exporting.runtimes import RUNTIMES, TORCH, in_runtime
from vit_hub.running.models import runnable

NAME = "vit-nano-digits"
OTHERS = [name for name in RUNTIMES if name != TORCH]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share: making a program takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", str(cache))
    monkeypatch.setenv("VIT_HUB_OFFLINE", "1")


@pytest.fixture
def empty_cache(_own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))


def programs() -> list[Path]:
    """Files of programs in the cache."""
    return sorted(Path(os.environ["VIT_HUB_CACHE"]).glob("programs/*/program.[ox]*"))


def rows(out: Path) -> dict[str, np.ndarray]:
    return {row["path"]: np.array(row["embedding"]) for row in ds.dataset(out).to_table().to_pylist()}


@pytest.mark.parametrize(("runtime", "what"), [("onnxruntime", "tokens"), ("openvino", "block:-2")])
def test_every_output_is_the_models(runtime: str, what: str) -> None:
    model = random_model(KINDS["plain"])
    images = random_images(model.config, batch=3)
    wanted = in_runtime(model, TORCH, what=what)(images)
    assert relative_error(in_runtime(model, runtime, what=what)(images), wanted) <= 1e-5


@pytest.mark.parametrize(("kind", "runtime"), [("video", "onnxruntime"), ("video table", "openvino")])
def test_models_of_videos_take_images(kind: str, runtime: str) -> None:
    model = random_model(KINDS[kind])
    images = torch.randn(3, *model.config.input_shape(model.input_size, stills=True))
    with torch.inference_mode():
        wanted = model.forward_features(images)
    computed = runnable(model).computation("tokens", runtime=runtime, batch_size=3).submit(images)
    assert relative_error(computed, wanted) <= 1e-5


@pytest.mark.usefixtures("empty_cache")
def test_a_program_is_made_once_and_again_when_it_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    write = runtimes.write_program
    monkeypatch.setattr(runtimes, "write_program", lambda *args: made.append(args[2]) or write(*args))
    model, images = vit_hub.load(NAME), torch.rand(2, 1, 32, 32)
    wanted = in_runtime(model, "onnxruntime")(images)
    in_runtime(vit_hub.load(NAME), "onnxruntime")
    assert made == ["onnx"]
    (path,) = programs()
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(in_runtime(model, "onnxruntime")(images), wanted)
    assert made == ["onnx"] * 2
    # Other weights, another size and another output are other programs.
    with torch.no_grad():
        model.head.bias += 1
    torch.testing.assert_close(in_runtime(model, "onnxruntime")(images), wanted + 1)
    assert in_runtime(vit_hub.load(NAME, image_size=48), "onnxruntime")(torch.rand(1, 1, 48, 48)).shape == (1, 10)
    assert made == ["onnx"] * 4


def test_the_command_knows_every_runtime() -> None:
    assert {*RUNTIME_NAMES} == {*RUNTIMES, AUTO}


def test_bfloat16_is_openvinos() -> None:
    model, narrow, images = vit_hub.load(NAME), vit_hub.load(NAME, dtype="bfloat16"), torch.rand(2, 1, 32, 32)
    assert relative_error(in_runtime(narrow, "openvino")(images), model(images)) <= 5e-2
    with pytest.raises(vit_hub.ConfigError, match="does not compute in bfloat16"):
        in_runtime(narrow, "onnxruntime")


@pytest.mark.parametrize("runtime", OTHERS)
def test_rows_of_embed_are_the_same_and_the_manifest_says_where(runtime: str, photos: Path, tmp_path: Path) -> None:
    vit_hub.embed(NAME, photos, tmp_path / "torch", normalize=True, workers=0)
    report = vit_hub.embed(
        NAME, photos, tmp_path / "other", normalize=True, workers=0, batch_size=5, shard_size=8, runtime=runtime
    )
    assert (report.rows, report.complete) == (13, True)
    assert json.loads((tmp_path / "other" / "_manifest.json").read_text())["runtime"] == runtime
    wanted, found = rows(tmp_path / "torch"), rows(tmp_path / "other")
    assert wanted.keys() == found.keys()
    for path, row in wanted.items():
        np.testing.assert_allclose(found[path], row, atol=1e-5)
    with pytest.raises(vit_hub.ConfigError, match=f'runtime "{runtime}" there, "torch" now'):
        vit_hub.embed(NAME, photos, tmp_path / "other", normalize=True, workers=0, batch_size=5, shard_size=8)
    # A run goes on as it began.
    again = vit_hub.embed(
        NAME, photos, tmp_path / "other", normalize=True, workers=0, batch_size=5, shard_size=8, runtime="auto"
    )
    assert again.skipped == 2


def test_a_folder_of_before_there_were_runtimes_goes_on(photos: Path, tmp_path: Path) -> None:
    vit_hub.embed(NAME, photos, tmp_path / "out", workers=0)
    path = tmp_path / "out" / "_manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["runtime"]
    path.write_text(json.dumps(manifest))
    assert vit_hub.embed(NAME, photos, tmp_path / "out", workers=0).skipped == 1


def test_classes_and_accuracy_are_the_same(tmp_path: Path) -> None:
    images = [str(path) for path in sorted((Path(vit_hub.__file__).parent / "data" / "digits").glob("*.png"))]
    plain, other = (
        json.loads(CliRunner().invoke(main, ["predict", NAME, *images, "--json", *more]).stdout)["predictions"]
        for more in (["--workers", "0"], ["--runtime", "openvino"])
    )
    assert len(plain) == len(images)
    for one, two in zip(plain, other, strict=True):
        assert one["classes"][0]["index"] == two["classes"][0]["index"]
        assert one["classes"][0]["probability"] == pytest.approx(two["classes"][0]["probability"], abs=1e-5)
    for path in map(Path, images):
        (tmp_path / path.stem).mkdir()
        shutil.copy(path, tmp_path / path.stem)
    done = CliRunner().invoke(main, ["eval", NAME, str(tmp_path), "--runtime", "openvino", "--json"])
    assert json.loads(done.stdout)["top1"] == vit_hub.evaluate(NAME, tmp_path, workers=0).top1 == 1.0


def test_the_embedder_takes_a_runtime(photos: Path) -> None:
    batch = {"path": [str(photos / "cat" / "01.png"), str(photos / "top.jpg")]}
    plain = vit_hub.Embedder(NAME)(batch)["embedding"]
    np.testing.assert_allclose(vit_hub.Embedder(NAME, runtime="openvino")(batch)["embedding"], plain, atol=1e-5)


def test_the_choice_is_kept_and_is_the_fastest() -> None:
    model = vit_hub.load(NAME)
    first = fastest_runtime(model, what="embedding", batch_size=2)
    (path,) = Path(os.environ["VIT_HUB_CACHE"]).glob("choices/*/choice.json")
    record = json.loads(path.read_text())
    assert set(record["seconds"]) == set(RUNTIMES)
    assert first == record["runtime"] == min(record["seconds"], key=record["seconds"].get)
    other = next(name for name in RUNTIMES if name != first)
    path.write_text(json.dumps({**record, "runtime": other}))
    assert fastest_runtime(model, what="embedding", batch_size=2) == other
    path.write_text("{")
    assert fastest_runtime(model, what="embedding", batch_size=2) in RUNTIMES


@pytest.mark.usefixtures("empty_cache")
def test_programs_are_listed_and_removed_and_pruned() -> None:
    in_runtime(vit_hub.load(NAME), "onnxruntime")
    fastest_runtime(vit_hub.load(NAME), batch_size=1)
    runner = CliRunner()
    found = json.loads(runner.invoke(main, ["cache", "ls", "--json"]).stdout)
    assert [(item["name"], item["kind"]) for item in found] == [(NAME, "program")] * 2
    assert sorted(map(len, (item["files"] for item in found))) == [2, 3]
    assert json.loads(runner.invoke(main, ["cache", "prune", "--json", "--dry-run"]).stdout)["size"] == 0
    record = next(path for path in programs()[0].parent.glob("*.json"))
    record.write_text(record.read_text().replace(f'"vit-hub": "{vit_hub.__version__}"', '"vit-hub": "0.0.1"'))
    files = json.loads(runner.invoke(main, ["cache", "prune", "--json"]).stdout)["files"]
    assert {Path(file["path"]).parent for file in files if "version" in file["reason"]} == {record.parent}
    assert not record.exists()
    assert len(programs()) == 1
    assert runner.invoke(main, ["cache", "rm", NAME]).exit_code == 0
    assert not programs()


@pytest.mark.usefixtures("empty_cache")
def test_a_runtime_that_computes_something_else_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "TOLERANCES", {"float32": 0.0})
    monkeypatch.delitem(RUNTIMES, "openvino")
    assert fastest_runtime(vit_hub.load(NAME), batch_size=2) == TORCH
    with pytest.raises(vit_hub.UnsupportedByFormatError, match="differ by") as caught:
        in_runtime(vit_hub.load(NAME), "onnxruntime")
    assert "--runtime torch" in caught.value.hint
    assert not programs()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "tensorrt"}, "no runtime 'tensorrt'"),
        ({"runtime": "openvino", "compile": "default"}, "compile is for the runtime torch"),
        ({"runtime": "onnxruntime", "max_patches": 16}, "images of one size"),
        ({"runtime": "onnxruntime", "dtype": "float16"}, "float16"),
        ({"runtime": "onnxruntime", "what": "projection"}, "no projection"),
    ],
)
def test_what_a_runtime_cannot_do_is_said(options: dict[str, Any], words: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(vit_hub.ConfigError, match=words) as caught:
        vit_hub.embed(NAME, photos, tmp_path / "out", workers=0, **options)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_runtime_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_hub.exporting.export.find_spec", lambda name: None)
    with pytest.raises(vit_hub.ConfigError, match="openvino needs openvino") as caught:
        in_runtime(vit_hub.load(NAME), "openvino")
    assert caught.value.hint == "pip install 'vit-hub[openvino]'"
    assert fastest_runtime(vit_hub.load(NAME), batch_size=2) == TORCH
