from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from click.testing import Result

import vit_hub

Run = Callable[..., Result]
NAME = "vit-nano-digits"
DIGITS = Path(vit_hub.__file__).parent / "data" / "digits"


def test_embeddings_of_a_folder(run: Run, tmp_path: Path) -> None:
    result = run("embed", NAME, DIGITS, "-o", tmp_path / "out", "--batch-size", 1)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert lines == [[str(tmp_path / "out")], ["images", "10"], ["written", "10 rows"]]
    found = ds.dataset(tmp_path / "out").to_table()
    model = vit_hub.load(NAME)
    with torch.inference_mode():
        expected = [
            model.embed(vit_hub.preprocess(model)(DIGITS / path))[0].numpy() for path in found["path"].to_pylist()
        ]
    assert np.array_equal(np.array(found["embedding"].to_pylist(), np.float32), np.stack(expected))
    assert run("embed", NAME, DIGITS, "-o", tmp_path / "out", "-q").stdout == f"{tmp_path / 'out'}\n"


def test_errors_and_the_exit_status(run: Run, answer: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    args = ("embed", NAME, DIGITS / "7.png", tmp_path / "a.png", "-o", tmp_path / "out")
    result = run(*args)
    assert result.exit_code == 1
    assert "1, listed in" in result.stdout
    report = answer(*args, "--skip-errors")
    assert (report["images"], report["rows"], report["errors"], report["complete"]) == (2, 0, 1, True)
    assert json.loads(run(*args, "--json").stdout) == report
    refused = run(*args, "--normalize")
    assert refused.exit_code == 1
    assert "normalize false there, true now" in refused.stderr


def test_options(run: Run, tmp_path: Path) -> None:
    args = ("--what", "tokens", "--store", "float16", "--mean", "0.4", "--std", "0.3", "--image-size", 48)
    result = run("embed", NAME, DIGITS, "-o", tmp_path / "out", *args, "--shard-size", 4, "--crop-mode", "center")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["shape"] == [145, 48]
    assert manifest["preprocessing"]["mean"] == [0.4]
    assert manifest["preprocessing"]["std"] == [0.3]
    assert manifest["preprocessing"]["crop_mode"] == "center"
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


@pytest.mark.parametrize(
    ("option", "value"), [("--batch-size", "many"), ("--batch-size", "0"), ("--mean", "grey"), ("--to", "csv")]
)
def test_wrong_usage(run: Run, tmp_path: Path, option: str, value: str) -> None:
    result = run("embed", NAME, DIGITS, "-o", tmp_path / "out", option, value)
    assert result.exit_code == 2
    assert option in result.stderr


def test_images_and_a_folder_are_required(run: Run, tmp_path: Path) -> None:
    assert run("embed", NAME, DIGITS).exit_code == 2
    assert run("embed", NAME, "-o", tmp_path / "out").exit_code == 2
