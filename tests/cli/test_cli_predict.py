from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from noise import save_noise

import vit_hub
from vit_hub.cli import main
from vit_hub.preprocessing.labels import label_names
from vit_hub.running import classifying

Run = Callable[..., Result]
GOLDEN = Path(__file__).parents[1] / "golden"
HF = GOLDEN / "hf_vit_cls" / "hf"


@pytest.mark.filterwarnings("ignore:no preprocessing is recorded")
def test_the_classes_are_the_model_s_own(answer: Callable[..., Any], models: Path, photos: Path) -> None:
    model = vit_hub.load(models / "classifier.safetensors")
    with torch.inference_mode():
        expected = model(vit_hub.preprocess(model)([photos / "0.png", photos / "1.png"])).softmax(-1)
    data = answer("predict", models / "classifier.safetensors", photos / "0.png", photos / "1.png")
    assert [item["image"] for item in data["predictions"]] == [str(photos / "0.png"), str(photos / "1.png")]
    for item, probabilities in zip(data["predictions"], expected, strict=True):
        classes = item["classes"]
        assert [found["index"] for found in classes] == probabilities.argsort(descending=True).tolist()
        for found in classes:
            assert found["probability"] == pytest.approx(float(probabilities[found["index"]]), abs=1e-6)
            assert found["name"] is None


def test_text(run: Run, photos: Path) -> None:
    result = run("predict", HF, photos / "0.png", "--top", 2)
    assert result.exit_code == 0
    title, first, second = result.stdout.splitlines()
    assert title == str(photos / "0.png")
    for line in (first, second):
        share, word, number = line.split()
        assert 0 < float(share.rstrip("%")) < 100
        assert (word, number.isdigit()) == ("class", True)


def test_known_classes_have_names(run: Run, answer: Callable[..., Any], models: Path, photos: Path) -> None:
    args = ("predict", models / "imagenet.safetensors", photos / "0.png")
    result = run(*args)
    assert result.stderr == ""
    (prediction,) = answer(*args)["predictions"]
    names = [item["name"] for item in prediction["classes"]]
    assert names == [label_names("imagenet-1k")[item["index"]] for item in prediction["classes"]]
    assert [line.split("%  ")[1] for line in result.stdout.splitlines()[1:]] == names


def test_unnamed_classes_have_numbers(run: Run, models: Path, photos: Path) -> None:
    assert "%  class " in run("predict", models / "classifier.safetensors", photos / "0.png").stdout


def test_folders_stand_for_their_images(run: Run, models: Path, photos: Path, tmp_path: Path) -> None:
    result = run("predict", models / "classifier.safetensors", photos, "-q")
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(photos / "0.png"), str(photos / "1.png")]
    assert all(0 < float(row[2]) <= 1 for row in rows)
    deep = tmp_path / "a" / "b" / "c.png"
    deep.parent.mkdir(parents=True)
    shutil.copy(photos / "0.png", deep)
    assert run("predict", models / "classifier.safetensors", tmp_path, "-q").stdout.startswith(f"{deep}\t")
    deep.unlink()
    result = run("predict", models / "classifier.safetensors", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}: no image file in this folder" in result.stderr


def test_unreadable_images_do_not_stop_the_others(run: Run, models: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "notes.txt", tmp_path / "broken.jpg")
    images = (tmp_path / "broken.jpg", tmp_path / "missing.png", photos / "1.png")
    result = run("predict", models / "classifier.safetensors", *images, "-q")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{photos / '1.png'}\t")
    for image in images[:2]:
        assert f"vit-hub: error: {image}: " in result.stderr
    as_json = run("predict", models / "classifier.safetensors", *images, "--json")
    assert as_json.exit_code == 1
    broken, missing, good = json.loads(as_json.stdout)["predictions"]
    assert str(images[0]) in broken["error"]["message"]
    assert str(images[1]) in missing["error"]["message"]
    assert good["classes"]


def test_lines_as_they_come(run: Run, answer: Callable[..., Any], models: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "notes.txt", tmp_path / "broken.jpg")
    args = ("predict", models / "imagenet.safetensors", photos, tmp_path / "broken.jpg", "--top", 3)
    whole = json.loads(run(*args, "--json").stdout)["predictions"]
    result = run(*args, "--jsonl")
    assert result.exit_code == 1
    assert [json.loads(line) for line in result.stdout.splitlines()] == whole
    result = run(*args, "--csv")
    assert f"vit-hub: error: {tmp_path / 'broken.jpg'}: " in result.stderr
    header, *rows = csv.reader(result.stdout.splitlines())
    assert header == ["image", "rank", "index", "name", "probability"]
    expected = [
        [item["image"], str(rank), str(each["index"]), each["name"], str(each["probability"])]
        for item in whole[:2]
        for rank, each in enumerate(item["classes"], 1)
    ]
    assert rows == expected


def test_lists_and_archives(run: Run, answer: Callable[..., Any], models: Path, photos: Path, tmp_path: Path) -> None:
    model = models / "classifier.safetensors"
    (tmp_path / "list.txt").write_text(f"{photos / '1.png'}\n")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photos / "1.png", "x/1.png")
    expected = answer("predict", model, photos / "1.png")["predictions"][0]["classes"]
    data = answer("predict", model, tmp_path / "list.txt", tmp_path / "a.tar", "--batch-size", 1)
    assert [item["classes"] for item in data["predictions"]] == [expected, expected]
    assert data["predictions"][1]["image"] == f"{tmp_path / 'a.tar'}/x/1.png"
    from_stdin = CliRunner().invoke(main, ["predict", str(model), "-", "--json"], input=f"{photos / '1.png'}\n")
    assert json.loads(from_stdin.stdout)["predictions"][0]["classes"] == expected


def test_batches_and_processes_change_nothing(answer: Callable[..., Any], models: Path, tmp_path: Path) -> None:
    for seed in range(20):
        save_noise(tmp_path / f"{seed:02}.png", seed)
    args = ("predict", models / "classifier.safetensors", tmp_path)
    alone = answer(*args, "--batch-size", 1, "--workers", 0)["predictions"]
    together = answer(*args, "--batch-size", 4, "--workers", 2)["predictions"]
    assert [item["image"] for item in together] == [str(tmp_path / f"{seed:02}.png") for seed in range(20)]
    for one, other in zip(alone, together, strict=True):
        probabilities = [[guess["probability"] for guess in item["classes"]] for item in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6)


def test_preprocessing_can_be_given(answer: Callable[..., Any], models: Path, photos: Path) -> None:
    args = ("predict", models / "imagenet.safetensors", photos / "0.png")
    own = answer(*args)["predictions"]
    assert answer(*args, "--mean", 0.5, "--std", "0.5,0.5,0.5", "--interpolation", "bicubic")["predictions"] == own
    assert answer(*args, "--mean", 0.1)["predictions"] != own


def test_interrupted_the_results_stay(run: Run, models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classifying.classify

    def interrupted(*args: Any, **options: Any) -> Iterator[Any]:
        yield next(iter(whole(*args, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(classifying, "classify", interrupted)
    result = run("predict", models / "classifier.safetensors", photos, "-q")
    assert (result.exit_code, len(result.stdout.splitlines())) == (130, 1)
    assert result.stderr.startswith("vit-hub: error: interrupted")
    result = run("predict", models / "classifier.safetensors", photos, "--json")
    assert (result.exit_code, len(json.loads(result.stdout)["predictions"])) == (130, 1)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("headless", "has no classification head"),
        ("untrained", "is all zeros"),
        ("broken", "0.png: the model's outputs are not finite"),
        ("missing", "no such file"),
    ],
)
def test_models_that_cannot_classify(run: Run, models: Path, photos: Path, model: str, expected: str) -> None:
    result = run("predict", models / f"{model}.safetensors", photos / "0.png")
    assert result.exit_code == 1
    assert expected in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_devices_that_cannot_compute(run: Run, models: Path, photos: Path, device: str) -> None:
    result = run("predict", models / "classifier.safetensors", photos, "--device", device)
    assert result.exit_code == 1
    assert f"device '{device}' cannot be used" in result.stderr


def test_dtype(answer: Callable[..., Any], models: Path, photos: Path) -> None:
    args = ("predict", models / "half.safetensors", photos / "0.png")
    exact, rounded = answer(*args), answer(*args, "--dtype", "auto")
    best = [data["predictions"][0]["classes"][0]["probability"] for data in (exact, rounded)]
    assert best[0] == pytest.approx(best[1], abs=0.02)
    assert best[0] != best[1]


def test_images_are_required(run: Run) -> None:
    assert run("predict", "vit-b16").exit_code == 2
